//! `tracker stats`: from the status file and the journal, so that it answers even when the tracker hangs.

mod journal;
pub(super) mod page;
mod watch;

use std::fs::{File, TryLockError};
use std::io::{self, IsTerminal as _};
use std::os::unix::net::UnixStream;

use serde::Serialize;
use shared::clock::{self, Clock as _, SystemClock};
use shared::config::Config;
use shared::exit::Exit;
use shared::limits;
use shared::status::{FilesystemStatus, Rates, Status, StatusError};

use super::{CommandError, print};
use journal::JournalStats;
use page::Page;

/// A stable face: fields only get added. What is not known is left out, never zero.
#[derive(Debug, Serialize)]
pub(super) struct Stats {
    pub(super) schema: u32,
    /// `running`, `hangs` or `not-running`.
    pub(super) tracker: &'static str,
    /// Nanoseconds since the last completed probe.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) probe_age_ns: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) uptime_ns: Option<i64>,
    /// Of all changes, the share that needed no entry of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) coalesced_share: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) status: Option<Status>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) journal: Option<JournalStats>,
}

const SCHEMA: u32 = 1;

pub fn run(config: &Config, json: bool, watch: bool) -> Result<Exit, CommandError> {
    let out = io::stdout();
    let terminal = out.is_terminal();
    // https://no-color.org: set, and not empty.
    let colour = terminal && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    if watch && terminal && !json {
        return watch::on_terminal(|size| Ok(page(config)?.render(colour, Some(size))));
    }
    if watch {
        return watch::on_pipe(|| if json { line(&gather(config).stats) } else { Ok(block(config)?) });
    }
    let gathered = gather(config);
    if json {
        print(&line(&gathered.stats)?)?;
    } else {
        print(page::of(&gathered.stats).render(colour, None).as_bytes())?;
    }
    // What is known was told; what failed still decides.
    match gathered.failed {
        Some(e) => Err(e),
        None if gathered.stats.tracker == NOT_RUNNING => Ok(Exit::TryLater),
        None => Ok(Exit::Ok),
    }
}

fn line(stats: &Stats) -> Result<Vec<u8>, CommandError> {
    let json = serde_json::to_vec(stats);
    let mut line = json.map_err(|e| CommandError::Io { op: "write JSON".to_owned(), source: e.into() })?;
    line.push(b'\n');
    Ok(line)
}

/// For a terminal, with what failed on it.
fn page(config: &Config) -> Result<Page, CommandError> {
    let gathered = gather(config);
    let mut page = page::of(&gathered.stats);
    if let Some(e) = gathered.failed {
        page.trouble(&e.to_string());
    }
    Ok(page)
}

fn block(config: &Config) -> Result<Vec<u8>, CommandError> {
    Ok((page(config)?.render(false, None) + "\n").into_bytes())
}

pub(super) struct Gathered {
    pub(super) stats: Stats,
    /// Why the journal is missing in it.
    pub(super) failed: Option<CommandError>,
}

pub(super) fn gather(config: &Config) -> Gathered {
    let mut status = match Status::load(&config.status_path()) {
        Ok(status) => Some(status),
        Err(StatusError::Missing { .. }) => None,
        Err(e @ StatusError::Bad { .. }) => {
            eprintln!("tracker: {e}");
            None
        }
    };
    let (journal, failed) = match journal::read(config) {
        Ok(journal) => (Some(journal), None),
        Err(CommandError::NoJournal { .. }) => (None, None),
        Err(e) => (None, Some(e)),
    };
    let now = SystemClock.boot_ns();
    let alive = status.as_ref().is_some_and(is_alive) || holds_its_place(config);
    let (tracker, probe_age_ns) = condition(status.as_ref(), alive, now);
    let uptime_ns = status.as_ref().filter(|_| alive).and_then(|s| uptime(s, now));
    for fs in status.iter_mut().flat_map(|s| &mut s.filesystems) {
        fs.rates = if alive { fs.rates.at(now) } else { Rates::default() };
    }
    let coalesced_share = status.as_ref().and_then(|s| coalesced_share(&s.filesystems));
    let stats = Stats { schema: SCHEMA, tracker, probe_age_ns, uptime_ns, coalesced_share, status, journal };
    Gathered { stats, failed }
}

pub(super) const RUNNING: &str = "running";
pub(super) const HANGS: &str = "hangs";
pub(super) const NOT_RUNNING: &str = "not-running";

/// Running, by what is known of the process now; and the age of the heartbeat.
fn condition(status: Option<&Status>, alive: bool, boot_ns: i64) -> (&'static str, Option<i64>) {
    let Some(status) = status.filter(|_| alive) else {
        return (if alive { RUNNING } else { NOT_RUNNING }, None);
    };
    let age = boot_ns - status.probed_boot_ns;
    let hangs = age > 2 * limits::PROBE_INTERVAL.as_nanos() as i64;
    (if hangs { HANGS } else { RUNNING }, Some(age))
}

/// An older tracker does not tell.
fn uptime(status: &Status, boot_ns: i64) -> Option<i64> {
    (status.started_boot_ns > 0).then(|| boot_ns - status.started_boot_ns)
}

fn coalesced_share(filesystems: &[FilesystemStatus]) -> Option<f64> {
    let sum = |count: fn(&FilesystemStatus) -> u64| filesystems.iter().map(count).sum::<u64>();
    let saved = sum(|f| f.coalesced + f.merged);
    let all = saved + sum(|f| f.entries);
    (all > 0).then(|| saved as f64 / all as f64)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn status(pid: u32, boot_id: &str) -> Status {
        page::tests::status(pid, boot_id)
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

    #[test]
    fn what_needed_no_entry_is_a_share_of_all_changes() {
        let fs = |entries, coalesced, merged| FilesystemStatus {
            entries,
            coalesced,
            merged,
            ..FilesystemStatus::default()
        };
        assert_eq!(coalesced_share(&[fs(0, 0, 0)]), None, "of nothing there is no share");
        assert_eq!(coalesced_share(&[fs(20, 30, 40), fs(10, 0, 0)]), Some(0.7));
    }

    #[test]
    fn a_tracker_that_does_not_tell_its_start_has_no_uptime() {
        let mut status = status(1, "");
        assert_eq!(uptime(&status, 100), None);
        status.started_boot_ns = 40;
        assert_eq!(uptime(&status, 100), Some(60));
    }
}
