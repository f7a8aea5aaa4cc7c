//! One file per command; each prints data to stdout and talks on stderr.

mod add;
mod config;
mod flush;
mod health;
mod identify;
mod journal;
mod pending;
mod stats;

use std::io::{self, IsTerminal as _, Write as _};
use std::path::PathBuf;

use shared::config::{Config, ConfigError};
use shared::control::ControlError;
use shared::database::DatabaseError;
use shared::exit::Exit;
use shared::files::WriteError;
use tracing_subscriber::EnvFilter;

use crate::args::{Args, Command, Common};
use crate::shell::{self, RunError};

#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    #[error(transparent)]
    Config(ConfigError),
    #[error(transparent)]
    Run(RunError),
    #[error(transparent)]
    Journal(DatabaseError),
    #[error("There is no journal at {}. `tracker run` makes it", path.display())]
    NoJournal { path: PathBuf },
    #[error("The journal at {} does not answer. What the tracker itself tells is shown without it", path.display())]
    JournalSilent { path: PathBuf },
    #[error(transparent)]
    Control(ControlError),
    #[error(transparent)]
    Write(#[from] WriteError),
    #[error("{0}")]
    Usage(String),
    #[error("Cannot {op}: {source}")]
    Io { op: String, source: io::Error },
}

impl CommandError {
    pub fn exit(&self) -> Exit {
        match self {
            CommandError::Config(_) => Exit::Config,
            CommandError::Run(e) => e.exit(),
            CommandError::Journal(DatabaseError::Full { .. }) => Exit::TryLater,
            CommandError::Journal(e) if e.is_permanent() => Exit::Config,
            CommandError::NoJournal { .. } | CommandError::JournalSilent { .. } => Exit::TryLater,
            CommandError::Usage(_) => Exit::Usage,
            CommandError::Write(e) if e.source.kind() == io::ErrorKind::StorageFull => Exit::TryLater,
            CommandError::Control(e) => control_exit(e),
            CommandError::Write(_) | CommandError::Journal(_) | CommandError::Io { .. } => Exit::Failed,
        }
    }
}

/// Who may not ask, or not this, may not later either.
fn control_exit(e: &ControlError) -> Exit {
    match e {
        ControlError::Forbidden { .. } | ControlError::Refused { retry: false, .. } => Exit::Failed,
        _ => Exit::TryLater,
    }
}

pub fn run(args: Args) -> Result<Exit, anyhow::Error> {
    let common = args.common;
    let config = || Config::load(&common.config).map_err(CommandError::Config);
    let exit = match args.command {
        Command::Run => shell::run(config()?).map_err(CommandError::Run)?,
        Command::Stats { json, watch } => stats::run(&config()?, json, watch)?,
        Command::Health { json } => health::run(&config()?, json)?,
        Command::Pending { leg, null, json } => pending::run(&config()?, leg.as_deref(), null, json)?,
        Command::Add { root, subtree, from0, paths } => {
            let paths = add::collect(from0.as_deref(), paths)?;
            add::run(&config()?, root.as_deref(), subtree, &paths)?
        }
        Command::Flush => flush::run(&config()?, common.verbose > 0)?,
        Command::Identify { subdir, path } => identify::run(&path, subdir)?,
        Command::Journal { what } => journal::run(&config()?, what)?,
        Command::Config { what } => config::run(&config()?, what)?,
    };
    Ok(exit)
}

/// To stderr: standard output is for data. RUST_LOG is heard where nothing else was said.
pub fn init_logging(common: &Common) {
    let level = match (common.quiet, common.verbose) {
        (true, _) => "error",
        (false, 0) => "info",
        (false, 1) => "debug",
        (false, _) => "trace",
    };
    // The migrations' own talk is of no use to anybody.
    let wanted =
        std::env::var(EnvFilter::DEFAULT_ENV).unwrap_or_else(|_| format!("{level},rusqlite_migration=warn"));
    let filter = EnvFilter::builder().parse_lossy(wanted);
    let colour = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_target(false)
        // A log that nobody reads must stop nothing: the complaint about it would panic.
        .log_internal_errors(false)
        .with_ansi(colour);
    // The service manager's journal has times of its own.
    if std::env::var_os("JOURNAL_STREAM").is_some() {
        log.without_time().init();
    } else {
        log.init();
    }
}

/// A reader that went away (`| head`) is no failure.
fn print(bytes: &[u8]) -> Result<(), CommandError> {
    put(bytes).map(drop)
}

/// False if the reader went away.
fn put(bytes: &[u8]) -> Result<bool, CommandError> {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(e) => Err(CommandError::Io { op: "write to standard output".to_owned(), source: e }),
    }
}

/// Rows in columns; all but the last are padded, numbers (as told) to the right.
fn table(header: &[&str], right: &[usize], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().map(|r| r[column].chars().count());
        cells.chain([header[column].chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let mut out = String::new();
    let header: Vec<String> = header.iter().map(|s| (*s).to_owned()).collect();
    for row in std::iter::once(&header).chain(rows) {
        let cell = |(column, text): (usize, &String)| {
            let width = widths[column];
            if right.contains(&column) { format!("{text:>width$}") } else { format!("{text:<width$}") }
        };
        let line: Vec<String> = row.iter().enumerate().map(cell).collect();
        out.push_str(line.join("  ").trim_end());
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let rows = vec![vec!["a".into(), "1".into()], vec!["long".into(), "200".into()]];
        assert_eq!(table(&["NAME", "ROWS"], &[1], &rows), "NAME  ROWS\na        1\nlong   200\n");
    }
}
