//! `syncer status`: where each leg stands, from the journal, its catalog and its last report.

use std::fmt::Write as _;

use serde::Serialize;
use shared::clock;
use shared::config::Leg;
use shared::exit::Exit;
use shared::journal::{Deferred, Journal};
use shared::path::RelPath;

use crate::catalog::{Catalog, Totals};
use crate::commands::{Context, destination};
use crate::live::{self, LiveError};
use crate::report::bytes;

const SCHEMA: u32 = 1;
const OWED_SHOWN: usize = 20;

/// A stable face: fields only get added.
#[derive(Debug, Serialize)]
struct LegStatus {
    schema: u32,
    leg: String,
    destination: String,
    /// `None`: it never ran.
    runs: Option<u64>,
    /// Journal rows it has not acked.
    pending: u64,
    deferred: u64,
    owed: Vec<Owed>,
    #[serde(flatten)]
    totals: Totals,
    /// The report of the last run, as it was printed.
    last: Option<serde_json::Value>,
}

#[derive(Debug, Serialize)]
struct Owed {
    root: String,
    #[serde(flatten)]
    path: RelPath,
    #[serde(skip)]
    what: String,
    scope: String,
    class: String,
    attempts: u32,
    since_ns: i64,
    not_before_ns: i64,
    last_error: String,
}

pub fn show(context: &Context, legs: &[&Leg]) -> anyhow::Result<Exit> {
    let journal = match live::open_journal(&context.config) {
        Ok(journal) => journal,
        Err(e) => {
            eprintln!("syncer: {e}");
            return Ok(e.exit());
        }
    };
    for leg in legs {
        let status = match of_leg(context, &journal, leg) {
            Ok(status) => status,
            Err(e) => {
                eprintln!("syncer: {e}");
                return Ok(e.exit());
            }
        };
        if context.json {
            println!("{}", serde_json::to_string(&status)?);
        } else {
            print!("{}", text(&status));
        }
    }
    Ok(Exit::Ok)
}

fn of_leg(context: &Context, journal: &Journal, leg: &Leg) -> Result<LegStatus, LiveError> {
    let name = leg.name.as_str();
    let row = journal.leg(name)?;
    let (head, _) = journal.head_and_floor()?;
    let roots = journal.roots()?;
    let owed = |d: Deferred| Owed {
        root: roots.iter().find(|r| r.id == d.key.root).map_or_else(|| "?".into(), |r| r.name.clone()),
        what: d.what(),
        path: d.key.path,
        scope: d.key.scope.to_string(),
        class: d.class.to_string(),
        attempts: d.attempts,
        since_ns: d.since_ns,
        not_before_ns: d.not_before_ns,
        last_error: d.last_error,
    };
    let catalog_path = live::catalog_path(&context.config, leg);
    let mut totals = Totals::default();
    if catalog_path.exists() {
        totals = Catalog::open(&catalog_path)?.all_totals()?;
    }
    let marker = std::fs::read(live::marker_path(&context.config, leg)).ok();
    let marker: Option<serde_json::Value> = marker.and_then(|m| serde_json::from_slice(&m).ok());
    Ok(LegStatus {
        schema: SCHEMA,
        leg: name.to_owned(),
        destination: destination(leg),
        runs: row.as_ref().map(|r| r.last_run),
        pending: journal.count_between(row.map_or(0, |r| r.cursor()), head)?,
        deferred: journal.deferred_count(name)?,
        owed: journal.deferred(name, OWED_SHOWN)?.into_iter().map(owed).collect(),
        totals,
        last: marker.and_then(|m| m.get("report").cloned()),
    })
}

fn text(status: &LegStatus) -> String {
    let mut out = String::new();
    let t = &status.totals;
    let _ = writeln!(out, "{} → {}", status.leg, status.destination);
    let field = |report: &serde_json::Value, key: &str| {
        report.get(key).and_then(serde_json::Value::as_i64).unwrap_or(0)
    };
    let last = match (&status.last, status.runs) {
        (Some(report), _) => format!(
            "run {} ended {} with exit code {}",
            field(report, "run"),
            clock::show(field(report, "finished_ns")),
            field(report, "exit")
        ),
        (None, Some(runs)) => format!("run {runs} left no report"),
        (None, None) => "never ran".into(),
    };
    let _ = writeln!(out, "  last run     {last}");
    let _ = writeln!(out, "  mirrored     {} objects, {}", t.objects, bytes(t.bytes));
    let _ = writeln!(out, "  pending      {} journal rows", status.pending);
    if t.unheld > 0 {
        let _ =
            writeln!(out, "  not held     {} symlinks and special files: this kind of leg cannot", t.unheld);
    }
    if t.absent > 0 {
        let _ = writeln!(
            out,
            "  gone         {} paths at the source, their objects wait for the guard",
            t.absent
        );
    }
    if t.held > 0 {
        let _ = writeln!(out, "  held         {} paths: an object that is not ours has their name", t.held);
    }
    let _ = writeln!(out, "  owed         {} paths", status.deferred);
    for owed in &status.owed {
        let _ = writeln!(
            out,
            "    {}: {} ({}, {}, {} attempts, since {}): {}",
            owed.root,
            owed.what,
            owed.scope,
            owed.class,
            owed.attempts,
            clock::show(owed.since_ns),
            owed.last_error
        );
    }
    if status.deferred > status.owed.len() as u64 {
        let _ = writeln!(out, "    … and {} more", status.deferred - status.owed.len() as u64);
    }
    out
}
