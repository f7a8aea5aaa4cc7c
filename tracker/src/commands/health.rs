//! `tracker health`: whether every root is what it should be and watched, as an exit code for scripts. What is known
//! comes from the status file, so that it answers even when the daemon hangs; only the canary needs the daemon.

use serde::Serialize;
use shared::config::{Config, Root};
use shared::control::{self, Canary, ControlError};
use shared::exit::{self, Exit};
use shared::journal::RootState;
use shared::status::{RootStatus, Status};

use super::stats::page::{self, Page};
use super::stats::{self, HANGS, NOT_RUNNING, RUNNING, Stats};
use super::{CommandError, control_exit, print};
use crate::shell::JOURNAL_ERROR;

const SCHEMA: u32 = 1;

/// A stable face: fields only get added.
#[derive(Debug, Serialize)]
struct Health {
    schema: u32,
    healthy: bool,
    exit: Exit,
    /// `running`, `hangs` or `not-running`.
    tracker: &'static str,
    /// Nanoseconds since the last completed probe: the heartbeat.
    #[serde(skip_serializing_if = "Option::is_none")]
    probe_age_ns: Option<i64>,
    /// Why the exit code is not 0 for another reason than a root.
    #[serde(skip_serializing_if = "Option::is_none")]
    trouble: Option<String>,
    roots: Vec<RootHealth>,
    /// Errors that the tracker has last met, each with its filesystem.
    errors: Vec<String>,
}

#[derive(Debug, Serialize)]
struct RootHealth {
    name: String,
    path: String,
    healthy: bool,
    /// Of the last probe; `unknown` where none is told.
    state: String,
    /// Why it is not healthy.
    reason: String,
    source: String,
    /// Why this source and not the better one.
    source_reason: String,
    blind_spots: Vec<String>,
    /// `heard`, `silent` (the kernel did not tell of it), `no-answer` (its filesystem hangs), or `none` (not asked
    /// for, or the source has none).
    canary: &'static str,
    /// Gaps that a leg has yet to work off; `None` without a journal.
    open_gaps: Option<u64>,
}

pub fn run(config: &Config, json: bool) -> Result<Exit, CommandError> {
    let stats::Gathered { stats, failed } = stats::gather(config);
    // A tracker that hangs would only be waited for.
    let canaries = (stats.tracker == RUNNING).then(|| control::ask_canaries(&config.control_path()));
    let health = judge(config, &stats, canaries);
    if json {
        let text = serde_json::to_string(&health)
            .map_err(|e| CommandError::Io { op: "write JSON".to_owned(), source: e.into() })?;
        print(format!("{text}\n").as_bytes())?;
    } else {
        print(human(&health, &stats).as_bytes())?;
    }
    // What is known was told; a journal that cannot be read still decides.
    failed.map_or(Ok(health.exit), Err)
}

fn judge(config: &Config, stats: &Stats, canaries: Option<Result<Vec<Canary>, ControlError>>) -> Health {
    let trouble = match (&stats.status, stats.tracker, &canaries) {
        (_, NOT_RUNNING, _) => Some("the tracker does not run".to_owned()),
        (_, HANGS, _) => Some("the tracker hangs: its last probe is too old".to_owned()),
        (None, ..) => Some("the tracker has not told its status yet".to_owned()),
        (_, _, Some(Err(e))) => Some(e.to_string()),
        (Some(status), ..) => {
            let errors = status.filesystems.iter().map(|f| &f.last_error);
            errors.into_iter().find(|e| e.starts_with(JOURNAL_ERROR)).cloned()
        }
    };
    let own = match (&trouble, &canaries) {
        (Some(_), Some(Err(e))) => control_exit(e),
        (Some(_), _) => Exit::TryLater,
        (None, _) => Exit::Ok,
    };
    let canaries = canaries.and_then(Result::ok);
    // What a tracker that is gone said last is no proof of anything.
    let status = stats.status.as_ref().filter(|_| stats.tracker != NOT_RUNNING);
    let root = |root: &shared::config::Root| {
        let name = root.name.as_str();
        let mut seen = status.and_then(|s| s.roots.iter().find(|r| r.name == name)).cloned();
        let asked =
            canaries.as_ref().filter(|_| seen.is_some()).map(|all| all.iter().find(|c| c.root == name));
        if let (Some(seen), Some(Some(asked))) = (&mut seen, asked) {
            // The file may be a second older.
            seen.state.clone_from(&asked.state);
            seen.state_reason.clone_from(&asked.state_reason);
            seen.source.clone_from(&asked.source);
        }
        let counts = stats.journal.as_ref().and_then(|j| j.roots.iter().find(|r| r.name == name));
        let mut health = root_health(root, seen, canary(asked), counts.map(|c| c.gaps), status.is_some());
        health.healthy &= trouble.is_none();
        health
    };
    let roots: Vec<RootHealth> = config.roots.iter().map(root).collect();
    let outcome = |r: &RootHealth| match (r.reason.as_str(), r.canary) {
        ("", _) => Exit::Ok,
        (_, NO_ANSWER) => Exit::TryLater,
        _ => Exit::Unproven,
    };
    let exit = exit::gravest(roots.iter().map(outcome).chain([own]));
    Health {
        schema: SCHEMA,
        healthy: exit == Exit::Ok,
        exit,
        tracker: stats.tracker,
        probe_age_ns: stats.probe_age_ns,
        trouble,
        roots,
        errors: status.map(errors).unwrap_or_default(),
    }
}

const NO_ANSWER: &str = "no-answer";
const SILENT: &str = "silent";

/// `asked`: of all roots, and whether there was an answer for this one.
fn canary(asked: Option<Option<&Canary>>) -> &'static str {
    match asked.map(|answer| answer.map(|canary| canary.heard)) {
        Some(Some(Some(true))) => "heard",
        Some(Some(Some(false))) => SILENT,
        Some(None) => NO_ANSWER,
        Some(Some(None)) | None => "none",
    }
}

fn root_health(
    root: &Root,
    seen: Option<RootStatus>,
    canary: &'static str,
    open_gaps: Option<u64>,
    told: bool,
) -> RootHealth {
    let reason = why_not(seen.as_ref(), canary, told);
    RootHealth {
        name: root.name.as_str().to_owned(),
        path: root.path.display().to_string(),
        healthy: told && reason.is_empty(),
        state: seen.as_ref().map_or("unknown", |s| s.state.as_str()).to_owned(),
        reason,
        source: seen.as_ref().map(|s| s.source.clone()).unwrap_or_default(),
        source_reason: seen.as_ref().map(|s| s.source_reason.clone()).unwrap_or_default(),
        blind_spots: seen.map(|s| s.blind_spots).unwrap_or_default(),
        canary,
        open_gaps,
    }
}

/// Empty if the root is what it should be and served.
fn why_not(seen: Option<&RootStatus>, canary: &str, told: bool) -> String {
    match (seen, canary) {
        // Told once for all.
        (None, _) if !told => String::new(),
        (None, _) => "the running tracker does not know it: restart the tracker".to_owned(),
        (Some(s), _) if s.state != RootState::Ok.to_string() => format!("{}: {}", s.state, s.state_reason),
        (Some(s), _) if s.source.is_empty() => "nothing watches it".to_owned(),
        (Some(_), SILENT) => "the kernel did not tell that it was opened".to_owned(),
        (Some(_), NO_ANSWER) => "its filesystem does not answer".to_owned(),
        (Some(_), _) => String::new(),
    }
}

fn errors(status: &Status) -> Vec<String> {
    let bad = status.filesystems.iter().filter(|f| !f.last_error.is_empty());
    bad.map(|f| format!("{}: {}", f.name, f.last_error)).collect()
}

fn human(health: &Health, stats: &Stats) -> String {
    let row = |r: &RootHealth| {
        let gaps = r.open_gaps.map_or("-".to_owned(), |n| n.to_string());
        let words = [&r.name, &r.state, &r.source, r.canary, &gaps, &r.path];
        words.map(str::to_owned).to_vec()
    };
    let rows: Vec<Vec<String>> = health.roots.iter().map(row).collect();
    let mut page = Page::default();
    page::tracker(&mut page, stats);
    page.blank();
    let header = ["ROOT", "STATE", "SOURCE", "CANARY", "GAPS", "PATH"];
    page.table(&header, &[4], &rows, |n| !health.roots[n].healthy);
    page.blank();
    if let Some(status) = &stats.status {
        page::remarks(&mut page, status);
    }
    health.trouble.iter().for_each(|why| page.trouble(&format!("not healthy: {why}")));
    for root in health.roots.iter().filter(|r| !r.reason.is_empty()) {
        page.trouble(&format!("not healthy: {}: {}", root.name, root.reason));
    }
    if health.healthy {
        page.remark("healthy: every root is what it should be, and watched");
    }
    page.render(false, None)
}

#[cfg(test)]
mod tests;
