//! `tracker pending`: what waits to be looked at, for everybody or for one leg.

use std::collections::BTreeMap;

use serde::Serialize;
use shared::clock;
use shared::config::{Config, Leg};
use shared::entry::{Handle, Scope};
use shared::exit::Exit;
use shared::journal::{Deferred, Entry, Journal, RootId};
use shared::limits;
use shared::path::RelPath;

use super::{CommandError, print, put, table};

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
    /// Of a deferred row: how often it was tried.
    #[serde(skip_serializing_if = "Option::is_none")]
    attempts: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_error: Option<String>,
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
    let mut shown = 0;
    each_page(&journal, leg, |rows| {
        let page = match (null, json) {
            (true, _) => rows.iter().flat_map(record).collect(),
            (false, true) => lines(rows)?,
            (false, false) => human(rows, shown == 0).into_bytes(),
        };
        shown += rows.len();
        // A reader that went away wants no more.
        put(&page)
    })?;
    if shown == 0 && !null && !json {
        print(b"Nothing is pending.\n")?;
    }
    Ok(Exit::Ok)
}

/// `ROOT<TAB>SCOPE<TAB>PATH` and NUL.
fn record(row: &Row) -> Vec<u8> {
    let mut out = format!("{}\t{}\t", row.root, row.scope).into_bytes();
    // An empty path would read as the root itself.
    out.extend_from_slice(row.handle.as_ref().map_or(row.path.as_bytes(), String::as_bytes));
    out.push(0);
    out
}

fn lines(rows: &[Row]) -> Result<Vec<u8>, CommandError> {
    let mut out = Vec::new();
    for row in rows {
        serde_json::to_writer(&mut out, row)
            .map_err(|e| CommandError::Io { op: "write JSON".to_owned(), source: e.into() })?;
        out.push(b'\n');
    }
    Ok(out)
}

pub(super) fn open_journal(config: &Config) -> Result<Journal, CommandError> {
    let path = config.journal_path();
    if !path.exists() {
        return Err(CommandError::NoJournal { path });
    }
    Journal::open_to_read(&path).map_err(CommandError::Journal)
}

/// All that waits, in pages that fit into memory, as long as `show` wants more. The rows are those of the moment
/// each page is read at.
fn each_page(
    journal: &Journal,
    leg: Option<&Leg>,
    mut show: impl FnMut(&[Row]) -> Result<bool, CommandError>,
) -> Result<(), CommandError> {
    let known = journal.roots().map_err(CommandError::Journal)?;
    let roots: BTreeMap<RootId, String> = known.into_iter().map(|r| (r.id, r.name)).collect();
    let of_leg = |leg: &Leg, name: &String| leg.roots.iter().any(|r| r.root.as_str() == name);
    let wanted = |id: RootId| leg.is_none_or(|leg| roots.get(&id).is_some_and(|name| of_leg(leg, name)));
    let name = |id: RootId| roots.get(&id).cloned().unwrap_or_else(|| format!("#{}", id.0));
    let (head, _) = journal.head_and_floor().map_err(CommandError::Journal)?;
    let row = leg.map(|leg| journal.leg(leg.name.as_str())).transpose().map_err(CommandError::Journal)?;
    // A leg that never ran begins with a full pass and has acked no entry.
    let mut after = row.flatten().map_or(0, |l| l.cursor());
    loop {
        let entries = journal.read(after, head, limits::READ_ROWS_MAX).map_err(CommandError::Journal)?;
        let Some(last) = entries.last() else { break };
        after = last.seq;
        let ours = entries.into_iter().filter(|e| wanted(e.root));
        let rows: Vec<Row> = ours.map(|e| entry_row(e, name)).collect();
        if !rows.is_empty() && !show(&rows)? {
            return Ok(());
        }
    }
    let Some(leg) = leg.map(|leg| leg.name.as_str()) else { return Ok(()) };
    let count = journal.deferred_count(leg).map_err(CommandError::Journal)? as usize;
    let deferred = journal.deferred(leg, count).map_err(CommandError::Journal)?.into_iter();
    let rows: Vec<Row> = deferred.filter(|d| wanted(d.key.root)).map(|d| deferred_row(d, name)).collect();
    if !rows.is_empty() {
        show(&rows)?;
    }
    Ok(())
}

fn entry_row(entry: Entry, name: impl Fn(RootId) -> String) -> Row {
    Row {
        schema: SCHEMA,
        root: name(entry.root),
        scope: entry.scope,
        path: entry.path,
        handle: entry.handle.as_ref().map(hex),
        cause: entry.cause.to_string(),
        deferred: false,
        seq: entry.seq,
        at_ns: entry.at_ns,
        attempts: None,
        last_error: None,
    }
}

fn deferred_row(row: Deferred, name: impl Fn(RootId) -> String) -> Row {
    Row {
        schema: SCHEMA,
        root: name(row.key.root),
        scope: row.key.scope,
        path: row.key.path,
        handle: row.key.handle.as_ref().map(hex),
        cause: row.class.to_string(),
        deferred: true,
        seq: row.seq,
        at_ns: row.since_ns,
        attempts: Some(row.attempts),
        last_error: Some(row.last_error).filter(|e| !e.is_empty()),
    }
}

fn hex(handle: &Handle) -> String {
    handle.to_blob().iter().map(|b| format!("{b:02x}")).collect()
}

fn human(rows: &[Row], first: bool) -> String {
    let line = |r: &Row| {
        let cause = if r.deferred { format!("deferred: {}", r.cause) } else { r.cause.clone() };
        let what = r.handle.as_ref().map_or_else(|| r.path.to_string(), |h| format!("handle {h}"));
        vec![r.seq.to_string(), clock::show(r.at_ns), r.root.clone(), r.scope.to_string(), cause, what]
    };
    let lines: Vec<Vec<String>> = rows.iter().map(line).collect();
    let text = table(&["SEQ", "SINCE", "ROOT", "SCOPE", "CAUSE", "PATH"], &[0], &lines);
    if first { text } else { text.split_once('\n').map_or(String::new(), |(_, rows)| rows.to_owned()) }
}
