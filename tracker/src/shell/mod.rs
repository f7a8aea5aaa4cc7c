//! Threads that carry out commands: one per filesystem, the control socket, the watch on mounts; and the loop that
//! starts, probes and stops them.

pub mod begin;
pub mod bound;
pub mod news;
mod peer;
mod process;
pub mod room;
mod server;
pub mod slot;
mod start;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, unbounded};
use sd_notify::NotifyState;
use shared::clock::{Clock, SystemClock};
use shared::config::Config;
use shared::database::DatabaseError;
use shared::exit::Exit;
use shared::files::{self, Durability};
use shared::limits;
use shared::status::{SCHEMA, Status};

use server::Server;
pub(crate) use slot::JOURNAL_ERROR;
use slot::SlotHandle;
pub use start::RunError;
use start::Started;

/// What wakes the loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Report {
    /// The filesystem is marked and its gap rows are committed, or none of its roots is there.
    Ready,
    /// The thread of this number has checked its roots.
    Probed(usize),
    /// The status changed.
    Changed,
    /// A thread ended; false if it could not commit everything.
    Ended(bool),
    /// Something was mounted or unmounted.
    Mounts,
    Signal,
}

/// How often rows that every leg has acked are dropped.
const PRUNE_INTERVAL: Duration = Duration::from_secs(60);
/// The status file is rewritten at most this often on change.
const STATUS_INTERVAL: Duration = Duration::from_secs(1);

/// `tracker run`: until SIGTERM or SIGINT.
pub fn run(config: Config) -> Result<Exit, RunError> {
    let (reports, inbox) = unbounded();
    // CPU time counts from here on, too.
    let begun = (SystemClock.wall_ns(), SystemClock.boot_ns());
    let started = start::start(config, &reports)?;
    start::watch_signals(&reports)?;
    start::watch_mounts(&reports);
    let mut daemon = Daemon::new(started, inbox, begun)?;
    let stopped = daemon.serve();
    daemon.stop(stopped)
}

struct Daemon {
    config: Config,
    slots: Vec<SlotHandle>,
    server: Arc<Server>,
    inbox: Receiver<Report>,
    clock: SystemClock,
    session: i64,
    boot_id: String,
    started_ns: i64,
    started_boot_ns: i64,
    probed_boot_ns: i64,
    probes_due: BTreeSet<usize>,
    ended: usize,
    ready: usize,
    unclean: bool,
    changed: bool,
    tick: Duration,
    next_tick: Instant,
    status_at: Instant,
    pruned_at: Instant,
    progress: Vec<u64>,
}

impl Daemon {
    fn new(started: Started, inbox: Receiver<Report>, begun: (i64, i64)) -> Result<Daemon, RunError> {
        let clock = SystemClock;
        let watchdog = sd_notify::watchdog_enabled().map_or(limits::PROBE_INTERVAL, |t| t / 2);
        let tick = watchdog.min(limits::PROBE_INTERVAL);
        let now = Instant::now();
        Ok(Daemon {
            progress: vec![0; started.slots.len()],
            slots: started.slots,
            server: started.server,
            config: started.config,
            session: started.session,
            boot_id: started.boot_id,
            inbox,
            started_ns: begun.0,
            started_boot_ns: begun.1,
            probed_boot_ns: clock.boot_ns(),
            clock,
            probes_due: BTreeSet::new(),
            ended: 0,
            ready: 0,
            unclean: false,
            changed: false,
            tick,
            next_tick: now + tick,
            status_at: now,
            pruned_at: now,
        })
    }

    /// Runs until a signal, or until a thread ends by itself.
    fn serve(&mut self) -> bool {
        loop {
            match self.inbox.recv_timeout(self.until_next()) {
                Ok(Report::Ready) => {
                    self.ready += 1;
                    if self.ready == self.slots.len() {
                        self.write_status();
                        notify(&[NotifyState::Ready]);
                        tracing::info!("tracking {} roots", self.config.roots.len());
                    }
                }
                Ok(Report::Probed(slot)) => {
                    if self.probes_due.remove(&slot) && self.probes_due.is_empty() {
                        self.probed_boot_ns = self.clock.boot_ns();
                        self.write_status();
                    }
                }
                Ok(Report::Changed) => self.changed = true,
                Ok(Report::Mounts) => self.slots.iter().for_each(SlotHandle::mounts_changed),
                Ok(Report::Ended(clean)) => {
                    self.ended += 1;
                    self.unclean |= !clean;
                    return false;
                }
                Ok(Report::Signal) | Err(RecvTimeoutError::Disconnected) => return true,
                Err(RecvTimeoutError::Timeout) => {}
            }
            if !self.on_time() {
                return false;
            }
        }
    }

    fn until_next(&self) -> Duration {
        let now = Instant::now();
        let mut next = self.next_tick;
        if self.changed && self.ready == self.slots.len() {
            next = next.min(self.status_at + STATUS_INTERVAL);
        }
        next.saturating_duration_since(now)
    }

    /// False if it cannot go on.
    fn on_time(&mut self) -> bool {
        let now = Instant::now();
        let all_ready = self.ready == self.slots.len();
        if self.changed && all_ready && now >= self.status_at + STATUS_INTERVAL {
            self.write_status();
        }
        if now >= self.next_tick {
            self.next_tick = now + self.tick;
            self.feed_watchdog();
            self.probe();
            self.server.regain_room();
            if now >= self.pruned_at + PRUNE_INTERVAL {
                self.pruned_at = now;
                self.prune();
            }
            return self.journal_is_in_place();
        }
        true
    }

    fn probe(&mut self) {
        for (number, slot) in self.slots.iter().enumerate() {
            if self.probes_due.insert(number) {
                slot.probe();
            }
        }
    }

    /// Every thread must have come round since the last time, or be waiting for a tracked disk, which is no fault
    /// that a restart would mend.
    fn feed_watchdog(&mut self) {
        let mut alive = true;
        for (slot, last) in self.slots.iter().zip(&mut self.progress) {
            let progress = slot.shared.progress.load(Ordering::Relaxed);
            alive &= progress != *last || slot.shared.resolving.load(Ordering::Relaxed);
            *last = progress;
        }
        if alive {
            notify(&[NotifyState::Watchdog]);
        }
    }

    fn prune(&mut self) {
        let before = self.server.collapses();
        if let Err(e) = self.server.tidy() {
            tracing::warn!("{e}");
        }
        self.changed |= self.server.collapses() != before;
    }

    /// False if the journal is not the one that was opened: what is written would be lost with it.
    fn journal_is_in_place(&self) -> bool {
        match self.server.check_place() {
            Err(e @ DatabaseError::Replaced { .. }) => {
                tracing::error!("{e}");
                false
            }
            _ => true,
        }
    }

    fn write_status(&mut self) {
        self.changed = false;
        self.status_at = Instant::now();
        let mut status = Status {
            schema: SCHEMA,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            boot_id: self.boot_id.clone(),
            started_ns: self.started_ns,
            started_boot_ns: self.started_boot_ns,
            written_ns: self.clock.wall_ns(),
            probed_boot_ns: self.probed_boot_ns,
            rss_bytes: process::rss_bytes(),
            cpu_ns: process::cpu_ns(),
            collapses: self.server.collapses(),
            roots: Vec::new(),
            filesystems: Vec::new(),
        };
        for slot in &self.slots {
            let seen = slot.shared.status(self.clock.boot_ns());
            status.roots.extend(seen.roots);
            status.filesystems.push(seen.filesystem);
        }
        let path = self.config.status_path();
        let written = serde_json::to_vec_pretty(&status)
            .map_err(|e| e.to_string())
            .and_then(|json| files::replace(&path, &json, Durability::Renamed).map_err(|e| e.to_string()));
        if let Err(e) = written {
            tracing::warn!("{e}");
        }
    }

    /// Reads what is queued once more, commits it, ends the session.
    fn stop(&mut self, asked: bool) -> Result<Exit, RunError> {
        notify(&[NotifyState::Stopping]);
        self.slots.iter().for_each(SlotHandle::stop);
        while self.ended < self.slots.len() {
            match self.inbox.recv() {
                Ok(Report::Ended(clean)) => {
                    self.ended += 1;
                    self.unclean |= !clean;
                }
                Ok(_) => {}
                Err(_) => break,
            }
        }
        self.write_status();
        self.server.close();
        if self.unclean || !asked {
            return Err(RunError::Unclean);
        }
        self.end_session().map_err(RunError::Journal)?;
        tracing::info!("stopped, everything is committed");
        Ok(Exit::Ok)
    }

    fn end_session(&self) -> Result<(), DatabaseError> {
        self.server.end_session(self.session, self.clock.wall_ns())
    }
}

fn notify(states: &[NotifyState<'_>]) {
    if let Err(e) = sd_notify::notify(states) {
        tracing::warn!("The service manager cannot be told: {e}");
    }
}

/// A sender that never blocks and never fails in a way that matters: the loop outlives its threads.
pub(crate) fn report(to: &Sender<Report>, what: Report) {
    if to.send(what).is_err() {
        tracing::debug!("{what:?} came after the end");
    }
}
