//! `tracker pending`: what waits to be looked at, for everybody or for one leg.

use std::collections::BTreeMap;

use serde::Serialize;
use shared::clock;
use shared::config::{Config, Leg};
use shared::entry::Scope;
use shared::exit::Exit;
use shared::journal::{Journal, RootId};
use shared::limits;
use shared::path::RelPath;

use super::{CommandError, print, table};

/// One line, whatever its origin.
#[derive(Debug, Serialize)]
struct Row {
    schema: u32,
    root: String,
    scope: Scope,
    #[serde(flatten)]
    path: RelPath,
    /// Of a file without a usable name.
    #[serde(skip_serializing_if = "Option::is_none")]
    handle: Option<String>,
    /// Why the entry exists, or the class of a deferred row.
    cause: String,
    deferred: bool,
    seq: u64,
    at_ns: i64,
}

const SCHEMA: u32 = 1;

pub fn run(config: &Config, leg: Option<&str>, null: bool, json: bool) -> Result<Exit, CommandError> {
    let leg = match leg {
        Some(name) => Some(config.leg(name).ok_or_else(|| {
            CommandError::Usage(format!("There is no leg named `{name}` in {}", config.file.display()))
        })?),
        None => None,
    };
    let journal = open_journal(config)?;
    let rows = collect(&journal, leg).map_err(CommandError::Journal)?;
    if null {
        let mut out = Vec::new();
        for row in &rows {
            out.extend_from_slice(format!("{}\t{}\t", row.root, row.scope).as_bytes());
            // An empty path would read as the root itself.
            out.extend_from_slice(row.handle.as_ref().map_or(row.path.as_bytes(), String::as_bytes));
            out.push(0);
        }
        print(&out)?;
    } else if json {
        let lines: Result<Vec<String>, _> = rows.iter().map(serde_json::to_string).collect();
        let lines = lines.map_err(|e| CommandError::Io { op: "write JSON".to_owned(), source: e.into() })?;
        print(lines.iter().map(|l| format!("{l}\n")).collect::<String>().as_bytes())?;
    } else {
        print(human(&rows).as_bytes())?;
    }
    Ok(Exit::Ok)
}

pub(super) fn open_journal(config: &Config) -> Result<Journal, CommandError> {
    let path = config.journal_path();
    if !path.exists() {
        return Err(CommandError::NoJournal { path });
    }
    Journal::open(&path).map_err(CommandError::Journal)
}

fn collect(journal: &Journal, leg: Option<&Leg>) -> Result<Vec<Row>, shared::database::DatabaseError> {
    let roots: BTreeMap<RootId, String> = journal.roots()?.into_iter().map(|r| (r.id, r.name)).collect();
    let of_leg = |leg: &Leg, name: &String| leg.roots.iter().any(|r| r.root.as_str() == name);
    let wanted = |id: RootId| leg.is_none_or(|leg| roots.get(&id).is_some_and(|name| of_leg(leg, name)));
    let name = |id: RootId| roots.get(&id).cloned().unwrap_or_else(|| format!("#{}", id.0));
    let (head, _) = journal.head_and_floor()?;
    let mut after = match leg {
        // A leg that never ran begins with a full pass and owes no entry.
        Some(leg) => journal.leg(leg.name.as_str())?.map_or(0, |l| l.cursor()),
        None => 0,
    };
    let mut rows = Vec::new();
    loop {
        let entries = journal.read(after, head, limits::READ_ROWS_MAX)?;
        let Some(last) = entries.last() else { break };
        after = last.seq;
        rows.extend(entries.into_iter().filter(|e| wanted(e.root)).map(|e| Row {
            schema: SCHEMA,
            root: name(e.root),
            scope: e.scope,
            path: e.path,
            handle: e.handle.map(|h| h.to_blob().iter().map(|b| format!("{b:02x}")).collect()),
            cause: e.cause.to_string(),
            deferred: false,
            seq: e.seq,
            at_ns: e.at_ns,
        }));
    }
    if let Some(leg) = leg.map(|leg| leg.name.as_str()) {
        let count = journal.deferred_count(leg)? as usize;
        let deferred = journal.deferred(leg, count)?.into_iter();
        rows.extend(deferred.filter(|d| wanted(d.key.root)).map(|d| Row {
            schema: SCHEMA,
            root: name(d.key.root),
            scope: d.key.scope,
            path: d.key.path,
            handle: None,
            cause: d.class.to_string(),
            deferred: true,
            seq: d.seq,
            at_ns: d.since_ns,
        }));
    }
    Ok(rows)
}

fn human(rows: &[Row]) -> String {
    if rows.is_empty() {
        return "Nothing is pending.\n".to_owned();
    }
    let line = |r: &Row| {
        let cause = if r.deferred { format!("deferred: {}", r.cause) } else { r.cause.clone() };
        let what = r.handle.as_ref().map_or_else(|| r.path.to_string(), |h| format!("handle {h}"));
        vec![r.seq.to_string(), clock::show(r.at_ns), r.root.clone(), r.scope.to_string(), cause, what]
    };
    let lines: Vec<Vec<String>> = rows.iter().map(line).collect();
    table(&["SEQ", "SINCE", "ROOT", "SCOPE", "CAUSE", "PATH"], &[0], &lines)
}
