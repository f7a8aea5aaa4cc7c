//! `tracker stats`: from the status file and the journal, so that it answers even when the tracker hangs.

use std::fmt::Write as _;
use std::fs::{File, TryLockError};
use std::os::unix::net::UnixStream;

use serde::Serialize;
use shared::clock::{self, Clock, SystemClock};
use shared::config::Config;
use shared::database::DatabaseError;
use shared::exit::Exit;
use shared::journal::Journal;
use shared::limits;
use shared::status::{FilesystemStatus, RootStatus, Status, StatusError};

use super::pending::open_journal;
use super::{CommandError, print, table};

/// A stable face: fields only get added.
#[derive(Debug, Serialize)]
struct Stats {
    schema: u32,
    /// `running`, `hangs` or `not-running`.
    tracker: &'static str,
    /// Nanoseconds since the last completed probe.
    #[serde(skip_serializing_if = "Option::is_none")]
    probe_age_ns: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<Status>,
    #[serde(skip_serializing_if = "Option::is_none")]
    journal: Option<JournalStats>,
}

#[derive(Debug, Serialize)]
struct JournalStats {
    head: u64,
    floor: u64,
    entries: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    oldest_ns: Option<i64>,
    roots: Vec<RootCounts>,
    legs: Vec<LegCounts>,
}

#[derive(Debug, Serialize)]
struct RootCounts {
    name: String,
    state: String,
    state_since_ns: i64,
    pending: u64,
    gaps: u64,
}

#[derive(Debug, Serialize)]
struct LegCounts {
    name: String,
    /// False before its first run.
    known: bool,
    claimed: u64,
    acked: u64,
    pending: u64,
    deferred: u64,
    last_ack_ns: i64,
}

const SCHEMA: u32 = 1;

pub fn run(config: &Config, json: bool) -> Result<Exit, CommandError> {
    let status = match Status::load(&config.status_path()) {
        Ok(status) => Some(status),
        Err(StatusError::Missing { .. }) => None,
        Err(e @ StatusError::Bad { .. }) => {
            eprintln!("tracker: {e}");
            None
        }
    };
    let journal = match open_journal(config) {
        Ok(journal) => Some(journal_stats(config, &journal).map_err(CommandError::Journal)?),
        Err(CommandError::NoJournal { .. }) => None,
        Err(e) => return Err(e),
    };
    let alive = status.as_ref().is_some_and(is_alive) || holds_its_place(config);
    let (tracker, probe_age_ns) = condition(status.as_ref(), alive, SystemClock.boot_ns());
    let stats = Stats { schema: SCHEMA, tracker, probe_age_ns, status, journal };
    if json {
        let text = serde_json::to_string(&stats)
            .map_err(|e| CommandError::Io { op: "write JSON".to_owned(), source: e.into() })?;
        print(format!("{text}\n").as_bytes())?;
    } else {
        print(human(&stats).as_bytes())?;
    }
    Ok(if tracker == NOT_RUNNING { Exit::TryLater } else { Exit::Ok })
}

const RUNNING: &str = "running";
const HANGS: &str = "hangs";
const NOT_RUNNING: &str = "not-running";

/// Running, by what is known of the process now; and the age of the heartbeat.
fn condition(status: Option<&Status>, alive: bool, boot_ns: i64) -> (&'static str, Option<i64>) {
    let Some(status) = status.filter(|_| alive) else {
        return (if alive { RUNNING } else { NOT_RUNNING }, None);
    };
    let age = boot_ns - status.probed_boot_ns;
    let hangs = age > 2 * limits::PROBE_INTERVAL.as_nanos() as i64;
    (if hangs { HANGS } else { RUNNING }, Some(age))
}

/// In this boot a process of this number exists, of our name: numbers are used again.
fn is_alive(status: &Status) -> bool {
    let pid = status.pid;
    let same_boot = clock::boot_id().is_ok_and(|id| id == status.boot_id);
    same_boot
        && std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim() == "tracker")
}

/// Seen from a container, where neither boot nor process may be visible: the lock is held or, where it cannot be
/// opened, somebody listens at the control socket. The lock is shared with others who only ask.
fn holds_its_place(config: &Config) -> bool {
    match File::open(config.lock_path()) {
        Ok(lock) => matches!(lock.try_lock_shared(), Err(TryLockError::WouldBlock)),
        Err(_) => UnixStream::connect(config.control_path()).is_ok(),
    }
}

fn journal_stats(config: &Config, journal: &Journal) -> Result<JournalStats, DatabaseError> {
    let (head, floor) = journal.head_and_floor()?;
    let (entries, oldest_ns) = journal.entry_count()?;
    // What every leg has acked waits for nobody, also before it is pruned.
    let rows = config.legs.iter().map(|leg| journal.leg(leg.name.as_str()));
    let rows = rows.collect::<Result<Vec<_>, _>>()?;
    let slowest =
        rows.iter().map(|row| row.as_ref().map_or(floor, |leg| leg.cursor())).min().unwrap_or(floor);
    let known = journal.roots()?;
    let mut roots = Vec::new();
    for row in known.iter().filter(|r| config.roots.iter().any(|c| c.name.as_str() == r.name)) {
        let (pending, gaps) = journal.pending(row.id, slowest)?;
        roots.push(RootCounts {
            name: row.name.clone(),
            state: row.state.to_string(),
            state_since_ns: row.state_since_ns,
            pending,
            gaps,
        });
    }
    let mut legs = Vec::new();
    for leg in &config.legs {
        let name = leg.name.as_str();
        let row = journal.leg(name)?;
        let (claimed, acked, last_ack_ns) =
            row.as_ref().map_or((0, 0, 0), |l| (l.claimed, l.acked, l.last_ack_ns));
        let cursor = row.as_ref().map_or(0, |leg| leg.cursor());
        let mut pending = 0;
        for root in &leg.roots {
            if let Some(known) = known.iter().find(|r| r.name == root.root.as_str()) {
                pending += journal.pending(known.id, cursor)?.0;
            }
        }
        let deferred = journal.deferred_count(name)?;
        let known = row.is_some();
        legs.push(LegCounts { name: name.to_owned(), known, claimed, acked, pending, deferred, last_ack_ns });
    }
    Ok(JournalStats { head, floor, entries, oldest_ns, roots, legs })
}

fn human(stats: &Stats) -> String {
    let mut out = String::new();
    let mut line = |text: String| writeln!(out, "{text}").expect("writing to a string cannot fail");
    match (&stats.status, stats.tracker) {
        (Some(s), NOT_RUNNING) => {
            line(format!("tracker   not running (last seen {})", clock::show(s.written_ns)));
        }
        (None, NOT_RUNNING) => line("tracker   not running".to_owned()),
        (None, condition) => line(format!("tracker   {condition}, its status is not written yet")),
        (Some(s), condition) => {
            let age = stats.probe_age_ns.unwrap_or(0) / 1_000_000_000;
            let since = clock::show(s.started_ns);
            line(format!("tracker   {condition}, pid {}, since {since}, last probe {age} s ago", s.pid));
        }
    }
    if let Some(journal) = &stats.journal {
        let age = |oldest: i64| (SystemClock.wall_ns() - oldest).max(0) / 1_000_000_000;
        let oldest = journal.oldest_ns.map_or(String::new(), |t| format!(", the oldest {} s old", age(t)));
        line(format!("journal   {} entries{oldest}, head {}", journal.entries, journal.head));
    }
    if let Some(status) = &stats.status {
        out.push_str(&roots_table(&status.roots, stats.journal.as_ref()));
        out.push_str(&filesystems_table(&status.filesystems));
        out.push_str(&remarks(status));
    }
    if let Some(journal) = &stats.journal {
        out.push_str(&legs_table(&journal.legs));
    }
    out
}

fn roots_table(roots: &[RootStatus], journal: Option<&JournalStats>) -> String {
    let row = |r: &RootStatus| {
        let counts = journal.and_then(|j| j.roots.iter().find(|c| c.name == r.name));
        let number = |n: Option<u64>| n.map_or("-".to_owned(), |n| n.to_string());
        vec![
            r.name.clone(),
            r.state.clone(),
            r.source.clone(),
            number(counts.map(|c| c.pending)),
            number(counts.map(|c| c.gaps)),
            r.path.clone(),
        ]
    };
    let rows: Vec<Vec<String>> = roots.iter().map(row).collect();
    format!("\n{}", table(&["ROOT", "STATE", "SOURCE", "PENDING", "GAPS", "PATH"], &[3, 4], &rows))
}

fn filesystems_table(filesystems: &[FilesystemStatus]) -> String {
    let row = |f: &FilesystemStatus| {
        let counts =
            [f.events_read, f.entries, f.coalesced, f.dropped, f.commits, f.overflows, f.gaps, f.doubts];
        let mut row: Vec<String> = counts.iter().map(u64::to_string).collect();
        row.push(f.name.clone());
        row
    };
    let rows: Vec<Vec<String>> = filesystems.iter().map(row).collect();
    let header =
        ["EVENTS", "ENTRIES", "COALESCED", "DROPPED", "COMMITS", "OVERFLOWS", "GAPS", "DOUBTS", "FILESYSTEM"];
    format!("\n{}", table(&header, &[0, 1, 2, 3, 4, 5, 6, 7], &rows))
}

/// Why a root has its state and source, what is not seen, and the last errors.
fn remarks(status: &Status) -> String {
    let mut lines = Vec::new();
    for root in &status.roots {
        if !root.state_reason.is_empty() {
            lines.push(format!("{}: {}: {}", root.name, root.state, root.state_reason));
        }
        if !root.source_reason.is_empty() {
            lines.push(format!("{}: {} because {}", root.name, root.source, root.source_reason));
        }
        if !root.blind_spots.is_empty() {
            lines.push(format!("{}: not seen: {}", root.name, root.blind_spots.join(", ")));
        }
    }
    let errors = status.filesystems.iter().filter(|f| !f.last_error.is_empty());
    lines.extend(errors.map(|f| format!("{}: error: {}", f.name, f.last_error)));
    lines.iter().fold(String::from("\n"), |all, line| all + line + "\n")
}

fn legs_table(legs: &[LegCounts]) -> String {
    if legs.is_empty() {
        return String::new();
    }
    let row = |l: &LegCounts| {
        let last = match (l.known, l.last_ack_ns) {
            (false, _) => "never run".to_owned(),
            (true, 0) => "-".to_owned(),
            (true, at) => clock::show(at),
        };
        let counts = [l.claimed, l.acked, l.pending, l.deferred];
        let mut row = vec![l.name.clone()];
        row.extend(counts.iter().map(u64::to_string));
        row.push(last);
        row
    };
    let rows: Vec<Vec<String>> = legs.iter().map(row).collect();
    format!(
        "\n{}",
        table(&["LEG", "CLAIMED", "ACKED", "PENDING", "DEFERRED", "LAST ACK"], &[1, 2, 3, 4], &rows)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(pid: u32, boot_id: &str) -> Status {
        Status {
            schema: 1,
            version: String::new(),
            pid,
            boot_id: boot_id.to_owned(),
            started_ns: 0,
            written_ns: 0,
            probed_boot_ns: 0,
            roots: Vec::new(),
            filesystems: Vec::new(),
        }
    }

    #[test]
    fn without_a_live_process_of_this_boot_it_does_not_run() {
        let boot = clock::boot_id().unwrap();
        assert!(!is_alive(&status(std::process::id(), "another boot")));
        assert!(!is_alive(&status(1, &boot)), "a process of another name");
        assert_eq!(condition(None, false, 0), (NOT_RUNNING, None));
        assert_eq!(condition(None, true, 0), (RUNNING, None));
        assert_eq!(condition(Some(&status(1, &boot)), false, 0), (NOT_RUNNING, None));
    }

    #[test]
    fn an_old_heartbeat_shows_that_it_hangs() {
        let status = status(1, "");
        let interval = limits::PROBE_INTERVAL.as_nanos() as i64;
        assert_eq!(condition(Some(&status), true, 2 * interval).0, RUNNING);
        assert_eq!(condition(Some(&status), true, 2 * interval + 1).0, HANGS);
    }
}
