//! One filesystem's thread: carries out the machine's commands on its source and its own connection to the journal.

use std::collections::BTreeMap;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crossbeam_channel::{Receiver, Sender, bounded};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use shared::clock::{Clock, SystemClock};
use shared::entry::Cause;
use shared::journal::{Change, Coalesce, Commit, Journal, RootState};
use shared::limits;
use shared::path;
use shared::status::{FilesystemStatus, RootStatus};

use super::heads::Heads;
use super::{Report, report};
use crate::batch::{self, Batch};
use crate::daemon::{Command, Event, Machine, Request, Verdict};
use crate::intake::fanotify::Fanotify;
use crate::intake::inotify::Inotify;
use crate::intake::{EventSource, PlaceError, RootSeen, settled_by_gap};
use crate::roots::{Found, OwnDir, TrackedRoot};

pub enum Message {
    /// Answered with the head.
    Flush(Sender<u64>),
    Probe,
    Stop,
}

/// What the status file says of one filesystem.
#[derive(Debug, Clone, Default)]
pub struct SlotStatus {
    pub filesystem: FilesystemStatus,
    pub roots: Vec<RootStatus>,
}

#[derive(Debug, Default)]
pub struct SlotShared {
    status: Mutex<SlotStatus>,
    /// Counts the turns of the thread.
    pub progress: AtomicU64,
    /// The thread waits for a tracked disk.
    pub resolving: AtomicBool,
    /// A change of the status was reported and not yet written.
    told: AtomicBool,
}

impl SlotShared {
    fn lock(&self) -> MutexGuard<'_, SlotStatus> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn status(&self) -> SlotStatus {
        self.told.store(false, Ordering::Relaxed);
        self.lock().clone()
    }
}

/// The other threads' end of the inbox.
#[derive(Clone)]
pub struct Flusher {
    inbox: Sender<Message>,
    wake: Arc<OwnedFd>,
}

impl Flusher {
    fn send(&self, message: Message) {
        // A thread that ended hears nothing; who waits for its answer sees the channel closed.
        if self.inbox.send(message).is_ok()
            && let Err(e) = rustix::io::write(&self.wake, &1u64.to_ne_bytes())
        {
            tracing::debug!("cannot wake a thread: {e}");
        }
    }

    /// The receiver gets the head once everything before is committed, or is cut off.
    pub fn flush(&self) -> Receiver<u64> {
        let (answer, receiver) = bounded(1);
        self.send(Message::Flush(answer));
        receiver
    }
}

/// A running thread.
pub struct SlotHandle {
    flusher: Flusher,
    pub shared: Arc<SlotShared>,
}

impl SlotHandle {
    pub fn probe(&self) {
        self.flusher.send(Message::Probe);
    }

    pub fn stop(&self) {
        self.flusher.send(Message::Stop);
    }

    pub fn flusher(&self) -> Flusher {
        self.flusher.clone()
    }
}

/// What a thread is made of.
pub struct SlotParts {
    /// Its place among the threads.
    pub number: usize,
    pub name: String,
    /// Names the filesystem in the journal's doubts.
    pub fs_key: String,
    pub roots: Vec<TrackedRoot>,
    /// Directories whose content is ours.
    pub own: Vec<OwnDir>,
    pub journal: Journal,
    pub cause: Cause,
    pub heads: Arc<Heads>,
    pub reports: Sender<Report>,
}

struct Slot {
    parts: SlotParts,
    source: Option<Box<dyn EventSource>>,
    remembered: Coalesce,
    /// What the journal has not taken yet.
    pending: Option<Commit>,
    states: Vec<Option<RootState>>,
    /// Placed, and the gap that covers the time before is committed.
    watching: bool,
    clock: SystemClock,
    shared: Arc<SlotShared>,
    inbox: Receiver<Message>,
    wake: Arc<OwnedFd>,
    flushes: BTreeMap<u64, Sender<u64>>,
    next_flush: u64,
}

/// Starts the thread.
pub fn spawn(parts: SlotParts) -> std::io::Result<SlotHandle> {
    let (sender, inbox) = crossbeam_channel::unbounded();
    let flags = rustix::event::EventfdFlags::CLOEXEC | rustix::event::EventfdFlags::NONBLOCK;
    let wake = Arc::new(rustix::event::eventfd(0, flags)?);
    let shared = Arc::new(SlotShared::default());
    shared.lock().roots = parts.roots.iter().map(root_status).collect();
    shared.lock().filesystem.name = parts.name.clone();
    let slot = Slot::new(parts, Arc::clone(&shared), inbox, Arc::clone(&wake));
    let run = move || {
        let mut end = End { reports: slot.parts.reports.clone(), clean: false };
        end.clean = slot.run();
    };
    std::thread::Builder::new().name("intake".into()).spawn(run)?;
    Ok(SlotHandle { flusher: Flusher { inbox: sender, wake }, shared })
}

/// Tells of the thread's end, by a panic too: a tracker that lost a thread must not go on as if nothing were.
struct End {
    reports: Sender<Report>,
    clean: bool,
}

impl Drop for End {
    fn drop(&mut self) {
        report(&self.reports, Report::Ended(self.clean));
    }
}

impl Slot {
    fn new(parts: SlotParts, shared: Arc<SlotShared>, inbox: Receiver<Message>, wake: Arc<OwnedFd>) -> Slot {
        Slot {
            states: vec![None; parts.roots.len()],
            watching: false,
            parts,
            source: None,
            remembered: Coalesce::default(),
            pending: None,
            clock: SystemClock,
            shared,
            inbox,
            wake,
            flushes: BTreeMap::new(),
            next_flush: 0,
        }
    }

    /// False if something could not be committed.
    fn run(mut self) -> bool {
        let mut machine = Machine::new(self.parts.cause);
        let mut event = Event::Begin;
        loop {
            self.shared.progress.fetch_add(1, Ordering::Relaxed);
            self.receive(&mut machine);
            let doubts = self.source.as_ref().map(|s| s.doubt_state()).unwrap_or_default();
            match machine.step(self.clock.boot_ns(), event, doubts) {
                Command::End => break,
                command => event = self.carry_out(command, machine.events_read()),
            }
        }
        // The group and the journal are closed before anybody hears of the end.
        self.pending.is_none()
    }

    fn receive(&mut self, machine: &mut Machine) {
        while let Ok(message) = self.inbox.try_recv() {
            match message {
                Message::Flush(answer) => {
                    self.flushes.insert(self.next_flush, answer);
                    machine.request(Request::Flush(self.next_flush));
                    self.next_flush += 1;
                }
                Message::Probe => machine.request(Request::Probe),
                Message::Stop => machine.request(Request::Stop),
            }
        }
    }

    fn carry_out(&mut self, command: Command, read: u64) -> Event {
        match command {
            Command::Place => self.place(),
            Command::CommitGap(cause) => self.commit_gap(cause),
            Command::Announce => self.tell(Report::Ready),
            Command::Wait { until_ns, listen } => self.wait(until_ns, listen),
            Command::Nap => {
                std::thread::sleep(limits::INTAKE_NAP);
                Event::Done
            }
            Command::Read => self.read(),
            Command::CountQueued => Event::Queued(self.source.as_ref().map_or(0, |s| s.queued())),
            Command::Commit => self.commit(read),
            Command::Check { flush } => self.check(flush),
            Command::Answer(id) => self.answer(id),
            Command::End => Event::Done,
        }
    }

    fn tell(&self, what: Report) -> Event {
        report(&self.parts.reports, what);
        Event::Done
    }

    /// Changes the status and has it written soon.
    fn note(&self, change: impl FnOnce(&mut SlotStatus)) {
        change(&mut self.shared.lock());
        if !self.shared.told.swap(true, Ordering::Relaxed) {
            report(&self.parts.reports, Report::Changed);
        }
    }

    fn note_error(&self, error: &str) {
        let fresh = self.shared.lock().filesystem.last_error != error;
        if fresh {
            tracing::error!("{}: {error}", self.parts.name);
        }
        self.note(|s| s.filesystem.last_error = error.to_owned());
    }

    /// What failed works again: its error is over, not that of anything else.
    fn recovered(&self, kind: &str) {
        if self.shared.lock().filesystem.last_error.starts_with(kind) {
            self.note(|s| s.filesystem.last_error.clear());
        }
    }

    fn place(&mut self) -> Event {
        // The old group goes first: there may be only so many.
        self.source = None;
        self.watching = false;
        let placed = self.on_disk(|slot| place(&slot.parts.roots, &slot.parts.own));
        match placed {
            Ok((source, seen, reason)) => {
                let (kind, roots) = (source.kind(), seen.len());
                self.note(|s| {
                    s.filesystem.source = kind.as_str().to_owned();
                    for root in &mut s.roots[..roots] {
                        root.source = kind.as_str().to_owned();
                        root.source_reason = reason.clone();
                        root.blind_spots = kind.blind_spots();
                    }
                });
                self.source = Some(source);
                self.recovered(PLACE_ERROR);
                self.store_states(&seen, false);
                Event::Placed
            }
            Err(PlaceError::Absent(seen)) => {
                self.store_states(&seen, false);
                Event::NotPlaced
            }
            Err(e) => {
                let why = format!("{PLACE_ERROR}: {e}");
                self.note_error(&why);
                let failing = |root| RootSeen { root, state: RootState::Failing, why: why.clone() };
                let seen: Vec<RootSeen> = (0..self.parts.roots.len()).map(failing).collect();
                self.store_states(&seen, false);
                Event::PlaceFailed
            }
        }
    }

    /// Work that may hang with a tracked disk.
    fn on_disk<T>(&mut self, work: impl FnOnce(&mut Slot) -> T) -> T {
        self.shared.resolving.store(true, Ordering::Relaxed);
        let out = work(self);
        self.shared.resolving.store(false, Ordering::Relaxed);
        out
    }

    fn commit_gap(&mut self, cause: Cause) -> Event {
        let doubts = match self.parts.journal.doubts(&self.parts.fs_key) {
            Ok(doubts) => settled_by_gap(doubts),
            Err(e) => {
                self.note_error(&e.to_string());
                return Event::NotCommitted;
            }
        };
        let commit = Commit {
            changes: self.parts.roots.iter().map(|r| Change::gap(r.id, cause)).collect(),
            doubts: Vec::new(),
            settled: doubts.into_iter().map(|h| (self.parts.fs_key.clone(), h)).collect(),
        };
        let stored = self.store(commit);
        if !stored {
            // It is made anew at the next try.
            self.pending = None;
            return Event::NotCommitted;
        }
        self.note(|s| s.filesystem.gaps += 1);
        self.record_gaps(&[cause]);
        self.watching = true;
        let seen = look_at(&self.parts.roots);
        self.store_states(&seen, true);
        Event::Committed
    }

    /// What the journal and the status say of the roots. `ok` only once the gap is committed.
    fn store_states(&mut self, seen: &[RootSeen], covered: bool) {
        for RootSeen { root, state, why } in seen {
            if self.states[*root] == Some(*state) || (*state == RootState::Ok && !covered) {
                continue;
            }
            let id = self.parts.roots[*root].id;
            match self.parts.journal.set_root_state(id, *state, why, self.clock.wall_ns()) {
                Ok(_) => self.states[*root] = Some(*state),
                Err(e) => self.note_error(&e.to_string()),
            }
            if *state != RootState::Ok {
                tracing::error!("root {}: {state}: {why}", self.parts.roots[*root].name);
            }
            self.note(|s| {
                s.roots[*root].state = state.to_string();
                s.roots[*root].state_reason = why.clone();
            });
        }
    }

    fn wait(&mut self, until_ns: Option<i64>, listen: bool) -> Event {
        let timeout = until_ns.map(|until| {
            let left = until.saturating_sub(self.clock.boot_ns()).max(0);
            Timespec { tv_sec: left / 1_000_000_000, tv_nsec: left % 1_000_000_000 }
        });
        let mut fds = vec![PollFd::new(&self.wake, PollFlags::IN)];
        if let (true, Some(source)) = (listen, &self.source) {
            fds.push(PollFd::from_borrowed_fd(source.fd(), PollFlags::IN));
        }
        if poll(&mut fds, timeout.as_ref()).is_err() {
            return Event::Woken { readable: false };
        }
        let readable = fds.get(1).is_some_and(|fd| !fd.revents().is_empty());
        let woken = !fds[0].revents().is_empty();
        if woken {
            // Resets the counter; the messages themselves are in the channel.
            let emptied = rustix::io::read(self.wake.as_fd(), &mut [0u8; 8]);
            tracing::trace!("woken: {emptied:?}");
        }
        Event::Woken { readable }
    }

    fn read(&mut self) -> Event {
        let now = self.clock.boot_ns();
        let Some(source) = &mut self.source else { return Event::Empty };
        let taken = source.read();
        if taken.is_ok() {
            self.recovered(READ_ERROR);
        }
        let Some(source) = &mut self.source else { return Event::Empty };
        match taken {
            Ok(Some(taken)) => {
                if taken.drained {
                    source.drained(now);
                }
                let mut status = self.shared.lock();
                status.filesystem.events_read += taken.events;
                status.filesystem.bytes_read += taken.bytes as u64;
                Event::Read { events: taken.events, bytes: taken.bytes, drained: taken.drained }
            }
            Ok(None) => {
                source.drained(now);
                Event::Empty
            }
            Err(e) => {
                self.note_error(&format!("{READ_ERROR}: {e}"));
                Event::ReadFailed
            }
        }
    }

    fn commit(&mut self, read: u64) -> Event {
        if let Some(kept) = self.pending.take()
            && self.committed(kept) == Event::NotCommitted
        {
            return Event::NotCommitted;
        }
        let now = self.clock.boot_ns();
        let commit = self.on_disk(|slot| {
            let source = slot.source.as_mut()?;
            let mut batch = Batch::default();
            source.translate(&mut batch, read, now);
            let turn = source.doubt_turn(now);
            let doubts = source.doubt_count() as u64;
            if turn.gap {
                batch.gap(&slot.parts.roots, Cause::Unresolved);
            }
            slot.count(&batch, doubts);
            let gaps = std::mem::take(&mut batch.gaps);
            Some((batch.into_commit(&slot.parts.fs_key, turn), gaps))
        });
        let Some((commit, gaps)) = commit else { return Event::Committed };
        let event = self.committed(commit);
        self.record_gaps(&gaps);
        event
    }

    /// For people: the row itself may be covered by an older one that no leg has claimed yet.
    fn record_gaps(&mut self, causes: &[Cause]) {
        for cause in causes {
            let text = format!("{}: {cause}", self.parts.name);
            // Each start begins with one.
            match cause {
                Cause::Start | Cause::Boot => tracing::info!("gap: {text}"),
                _ => tracing::warn!("gap: {text}"),
            }
            if let Err(e) = self.parts.journal.add_history(self.clock.wall_ns(), "gap", None, &text) {
                self.note_error(&format!("{JOURNAL_ERROR}: {e}"));
            }
        }
    }

    fn count(&self, batch: &Batch, doubts: u64) {
        let mut status = self.shared.lock();
        let fs = &mut status.filesystem;
        fs.dropped += batch.dropped;
        fs.overflows += batch.overflows;
        fs.gaps += batch.gaps.len() as u64;
        fs.doubts = doubts;
        if let Some(error) = &batch.error {
            fs.last_error.clone_from(error);
        }
    }

    fn committed(&mut self, commit: Commit) -> Event {
        if self.store(commit) { Event::Committed } else { Event::NotCommitted }
    }

    /// Commits, or keeps it for the next try.
    fn store(&mut self, commit: Commit) -> bool {
        if batch::is_empty(&commit) {
            return true;
        }
        let at_ns = self.clock.wall_ns();
        match self.parts.journal.append(&mut self.remembered, &commit, at_ns) {
            Ok(done) => {
                self.note(|s| {
                    s.filesystem.entries += done.rows;
                    s.filesystem.coalesced += done.coalesced;
                    s.filesystem.commits += 1;
                    s.filesystem.last_commit_ns = at_ns;
                });
                self.recovered(JOURNAL_ERROR);
                self.parts.heads.publish(done.head);
                true
            }
            Err(e) => {
                self.note_error(&format!("{JOURNAL_ERROR}: {e}"));
                self.pending = Some(commit);
                false
            }
        }
    }

    fn check(&mut self, flush: bool) -> Event {
        let (intact, seen) = self.on_disk(|slot| match &mut slot.source {
            Some(source) => {
                let checked = source.check();
                (checked.intact, checked.roots)
            }
            None => (false, look_at(&slot.parts.roots)),
        });
        let covered = intact && self.watching;
        self.store_states(&seen, covered);
        report(&self.parts.reports, Report::Probed(self.parts.number));
        if seen.iter().all(|r| r.state != RootState::Ok) {
            self.watching = false;
            // Nobody reads a group that serves no root, and its queue would fill up with kernel memory. What it holds
            // is covered by the gap of the next placing.
            self.source = None;
            return Event::Checked(Verdict::Absent);
        }
        if !intact {
            return Event::Checked(Verdict::Unwatched);
        }
        if flush && let Some(source) = &mut self.source {
            let mut unseen = Batch::default();
            source.unseen(&mut unseen);
            if let Some(error) = &unseen.error {
                self.note_error(error);
            }
            if !self.store(unseen.into_commit(&self.parts.fs_key, Default::default())) {
                return Event::NotCommitted;
            }
        }
        Event::Checked(Verdict::Intact)
    }

    fn answer(&mut self, id: u64) -> Event {
        let head = self.parts.journal.head_and_floor().map_or_else(|_| self.parts.heads.get(), |h| h.0);
        if let Some(answer) = self.flushes.remove(&id)
            && answer.send(head).is_err()
        {
            tracing::debug!("nobody waits for flush {id} any more");
        }
        Event::Done
    }
}

/// How the errors begin that end when the same thing succeeds.
const PLACE_ERROR: &str = "cannot be watched";
const READ_ERROR: &str = "cannot read events";
const JOURNAL_ERROR: &str = "the journal does not take entries";

type Placed = (Box<dyn EventSource>, Vec<RootSeen>, String);

/// fanotify, or inotify with the reason why not fanotify.
fn place(roots: &[TrackedRoot], own: &[OwnDir]) -> Result<Placed, PlaceError> {
    match Fanotify::place(roots, own) {
        Ok((source, seen)) => Ok((Box::new(source), seen, String::new())),
        Err(PlaceError::Refused { reason }) => {
            let (source, seen) = Inotify::place(roots, own)?;
            Ok((Box::new(source), seen, reason))
        }
        Err(e) => Err(e),
    }
}

fn look_at(roots: &[TrackedRoot]) -> Vec<RootSeen> {
    let seen = |(root, tracked): (usize, &TrackedRoot)| match tracked.look() {
        Found::Ok(_) => RootSeen { root, state: RootState::Ok, why: String::new() },
        Found::Not { state, why } => RootSeen { root, state, why },
    };
    roots.iter().enumerate().map(seen).collect()
}

fn root_status(root: &TrackedRoot) -> RootStatus {
    use std::os::unix::ffi::OsStrExt as _;
    RootStatus {
        name: root.name.clone(),
        path: path::escape(root.path.as_os_str().as_bytes()),
        state: RootState::Missing.to_string(),
        state_reason: "not looked at yet".to_owned(),
        source: String::new(),
        source_reason: String::new(),
        blind_spots: Vec::new(),
    }
}

#[cfg(test)]
mod tests;
