//! `tracker journal`: check, back up and shrink it, also beside a running tracker.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use serde::Serialize;
use shared::config::Config;
use shared::exit::Exit;
use shared::files;
use shared::journal::Journal;

use super::{CommandError, print};
use crate::args::JournalCommand;

const SCHEMA: u32 = 1;

#[derive(Serialize)]
struct Checked {
    schema: u32,
    whole: bool,
    problems: Vec<String>,
}

#[derive(Serialize)]
struct BackedUp<'a> {
    schema: u32,
    file: &'a Path,
    bytes: u64,
}

#[derive(Serialize)]
struct Vacuumed {
    schema: u32,
    bytes_before: u64,
    bytes_after: u64,
}

pub fn run(config: &Config, what: JournalCommand) -> Result<Exit, CommandError> {
    let path = config.journal_path();
    if !path.exists() {
        return Err(CommandError::NoJournal { path });
    }
    match what {
        JournalCommand::Check { json } => check(&path, json),
        JournalCommand::Backup { force, json, file } => backup(&path, &file, force, json),
        JournalCommand::Vacuum { json } => vacuum(&path, json),
    }
}

fn check(path: &Path, json: bool) -> Result<Exit, CommandError> {
    let mut journal = Journal::open_to_read(path).map_err(CommandError::Journal)?;
    let problems = journal.problems().map_err(CommandError::Journal)?;
    let exit = if problems.is_empty() { Exit::Ok } else { Exit::Failed };
    let text = if problems.is_empty() {
        format!("{} is whole.\n", path.display())
    } else {
        let all: String = problems.iter().map(|p| format!("{p}\n")).collect();
        format!(
            "{all}\n{} is damaged. Stop the tracker, move the file away, and start it again: a new journal is made, and the next run of each leg compares everything.\n",
            path.display()
        )
    };
    tell(json, &Checked { schema: SCHEMA, whole: problems.is_empty(), problems }, &text)?;
    Ok(exit)
}

fn backup(path: &Path, file: &Path, force: bool, json: bool) -> Result<Exit, CommandError> {
    refuse_target(path, file, force)?;
    let journal = Journal::open_to_read(path).map_err(CommandError::Journal)?;
    files::make(file, force, |temp| journal.copy_to(temp).map_err(CommandError::Journal))?;
    let bytes = std::fs::metadata(file).map_or(0, |m| m.len());
    let text = format!("{} has a copy of {bytes} bytes.\n", file.display());
    tell(json, &BackedUp { schema: SCHEMA, file, bytes }, &text)?;
    Ok(Exit::Ok)
}

/// The journal itself is no place for its copy, and what stands there stays unless it is told to go.
fn refuse_target(path: &Path, file: &Path, force: bool) -> Result<(), CommandError> {
    let identity = |p: &Path| std::fs::metadata(p).ok().map(|m| (m.dev(), m.ino()));
    let beside = |suffix: &str| {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        PathBuf::from(name)
    };
    let Some(there) = identity(file) else { return Ok(()) };
    if ["", "-wal", "-shm"].iter().any(|suffix| identity(&beside(suffix)) == Some(there)) {
        return Err(CommandError::Usage(format!("{} is the journal itself", file.display())));
    }
    if !force {
        let what = format!("{} exists. Name another file, or replace it with --force", file.display());
        return Err(CommandError::Usage(what));
    }
    Ok(())
}

fn vacuum(path: &Path, json: bool) -> Result<Exit, CommandError> {
    let mut journal = Journal::open(path).map_err(CommandError::Journal)?;
    let (bytes_before, bytes_after) = journal.vacuum().map_err(CommandError::Journal)?;
    let text = format!("{}: {bytes_before} bytes before, {bytes_after} after.\n", path.display());
    tell(json, &Vacuumed { schema: SCHEMA, bytes_before, bytes_after }, &text)?;
    Ok(Exit::Ok)
}

fn tell(json: bool, value: &impl Serialize, text: &str) -> Result<(), CommandError> {
    if !json {
        return print(text.as_bytes());
    }
    let text = serde_json::to_string(value)
        .map_err(|e| CommandError::Io { op: "write JSON".to_owned(), source: e.into() })?;
    print(format!("{text}\n").as_bytes())
}
