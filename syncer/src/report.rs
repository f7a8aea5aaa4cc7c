//! What a run tells: the counts, the troubles and the exit code, for people, for `--json` and for the marker.

use std::fmt::Write as _;

use serde::Serialize;
use shared::clock;
use shared::exit::Exit;
use shared::path::RelPath;

use crate::leg::Calls;
use crate::run::Tally;

pub const SCHEMA: u32 = 1;
/// Troubles named one by one; the rest is in the counts and in `syncer status`.
pub const TROUBLES_MAX: usize = 20;

/// A stable face: fields only get added.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    pub schema: u32,
    pub leg: String,
    pub run: u64,
    pub exit: Exit,
    /// Every outcome; `exit` is the gravest.
    pub outcomes: Vec<Exit>,
    pub aborted: bool,
    pub started_ns: i64,
    pub finished_ns: i64,
    pub entries: u64,
    #[serde(flatten)]
    pub tally: Tally,
    pub files_sent: u64,
    pub bytes_sent: u64,
    /// Directories, links and attributes.
    pub others_sent: u64,
    /// Read, and equal to what the destination has.
    pub found_unchanged: u64,
    pub removed: u64,
    /// Changed, and no event had said so.
    pub found_without_event: u64,
    /// Absent rows that the guard judged.
    pub absent: u64,
    pub deferred: u64,
    pub held: u64,
    pub listed: u64,
    pub lost: u64,
    /// Objects that are not ours and were left alone.
    pub foreign: u64,
    pub full_pass: Option<String>,
    pub guard: Option<String>,
    /// Why the tracker could not be asked.
    pub tracker: Option<String>,
    pub roots: Vec<RootReport>,
    pub troubles: Vec<Trouble>,
    pub calls: Calls,
    /// Sentences for people: what could not be set, what stands apart.
    pub notes: Vec<String>,
    /// Nothing was written: this is what a run would do.
    pub dry_run: bool,
}

#[derive(Debug, Clone, Serialize)]
pub struct RootReport {
    pub name: String,
    pub unproven: Option<String>,
}

/// One thing that did not work.
#[derive(Debug, Clone, Serialize)]
pub struct Trouble {
    pub root: String,
    #[serde(flatten)]
    pub path: RelPath,
    /// The path, or what stands in its place for people.
    pub what: String,
    pub class: String,
    pub reason: String,
}

impl Trouble {
    /// Of the run as a whole.
    pub fn of_run(reason: String) -> Trouble {
        let (root, path, what) = (String::new(), RelPath::root(), String::new());
        Trouble { root, path, what, class: "run".into(), reason }
    }

    fn text(&self) -> String {
        match self.class.as_str() {
            "run" => self.reason.clone(),
            class => format!("{}: {} ({class}): {}", self.root, self.what, self.reason),
        }
    }
}

impl Report {
    pub fn begin(leg: &str, now_ns: i64) -> Report {
        Report {
            schema: SCHEMA,
            leg: leg.to_owned(),
            run: 0,
            exit: Exit::Ok,
            outcomes: Vec::new(),
            aborted: false,
            started_ns: now_ns,
            finished_ns: now_ns,
            entries: 0,
            tally: Tally::default(),
            files_sent: 0,
            bytes_sent: 0,
            others_sent: 0,
            found_unchanged: 0,
            removed: 0,
            found_without_event: 0,
            absent: 0,
            deferred: 0,
            held: 0,
            listed: 0,
            lost: 0,
            foreign: 0,
            full_pass: None,
            guard: None,
            tracker: None,
            roots: Vec::new(),
            troubles: Vec::new(),
            calls: Calls::default(),
            notes: Vec::new(),
            dry_run: false,
        }
    }

    /// True if the destination changed.
    pub fn did_something(&self) -> bool {
        self.files_sent + self.others_sent + self.removed > 0
    }

    /// What did not work, without the counts that change from round to round.
    pub fn troubles_text(&self) -> String {
        let troubles = self.troubles.iter().map(|t| format!("{} {} {}", t.class, t.what, t.reason));
        let roots = self.roots.iter().filter_map(|r| r.unproven.clone());
        troubles
            .chain(roots)
            .chain(self.guard.clone())
            .chain(self.tracker.clone())
            .collect::<Vec<_>>()
            .join("\n")
    }

    /// For people: one line of result, then only what deserves attention.
    pub fn text(&self) -> String {
        let mut out = String::new();
        let seconds = (self.finished_ns - self.started_ns) as f64 / 1e9;
        let word = match self.exit {
            Exit::Ok => "done",
            _ if self.aborted => "aborted",
            Exit::Partial => "done in part",
            Exit::Guard => "waiting for approval",
            Exit::Unproven => "a root is not proven",
            Exit::TryLater => "try later",
            _ => "failed",
        };
        let word = if self.dry_run { "dry run" } else { word };
        let (sent, removed) = if self.dry_run { ("to send", "to remove") } else { ("sent", "removed") };
        let _ = writeln!(
            out,
            "{}: {word} in {seconds:.1} s: {} files ({}) {sent}, {} other, {} adopted, {} {removed}, {} unchanged",
            self.leg,
            self.files_sent,
            bytes(self.bytes_sent),
            self.others_sent,
            self.tally.adopted,
            self.removed,
            self.tally.same + self.found_unchanged
        );
        let mut note = |text: String| {
            let _ = writeln!(out, "  {text}");
        };
        if let Some(reason) = &self.full_pass {
            note(format!("full pass ({reason}): {} objects listed, {} lost", self.listed, self.lost));
        }
        if let Some(reason) = &self.guard {
            note(format!(
                "{} paths are gone at the source, their objects wait: {reason}. Look at them with `syncer run --leg {} --dry-run --allow-deletes {}`; without --dry-run they go",
                self.absent, self.leg, self.absent
            ));
        }
        if let Some(reason) = &self.tracker {
            note(format!("{reason}. Only what the journal had was synced, nothing was deleted"));
        }
        for root in self.roots.iter().filter_map(|r| r.unproven.as_ref()) {
            note(root.clone());
        }
        if self.found_without_event > 0 {
            note(format!("found changed without an event: {}", self.found_without_event));
        }
        if self.tally.unheld > 0 {
            let what = "symlinks and special files seen that this kind of leg does not hold";
            note(format!("{} {what}", self.tally.unheld));
        }
        if self.foreign > 0 {
            note(format!("{} objects at the destination are not ours and were left alone", self.foreign));
        }
        if self.held > 0 {
            note(format!("{} paths are held: an object that is not ours stands at their name", self.held));
        }
        self.notes.iter().cloned().for_each(&mut note);
        if self.deferred > 0 {
            note(format!("{} paths are owed, see `syncer status`", self.deferred));
        }
        let mut lines: Vec<String> = self.troubles.iter().map(Trouble::text).collect();
        // Files without a known name read alike.
        lines.dedup();
        lines.into_iter().for_each(note);
        out
    }

    /// The fields that the monitoring of earlier mirror scripts reads.
    pub fn marker(&self, host: &str, source: &str, destination: &str) -> serde_json::Value {
        let status = match self.exit {
            _ if self.aborted => "aborted",
            Exit::Ok => "success",
            _ => "failed",
        };
        serde_json::json!({
            "job": format!("longshore-{}", self.leg),
            "host": host,
            "started_at": clock::show(self.started_ns),
            "completed_at": clock::show(self.finished_ns),
            "duration_seconds": (self.finished_ns - self.started_ns) / 1_000_000_000,
            "source": source,
            "destination": destination,
            "status": status,
            "message": self.text().lines().next().unwrap_or_default(),
            "files_transferred": self.files_sent,
            "bytes_transferred": self.bytes_sent,
            "report": self,
        })
    }
}

/// Bytes for people.
pub fn bytes(n: u64) -> String {
    indicatif::BinaryBytes(n).to_string()
}
