//! One filesystem's work: carries out the machine's commands on its source and its own connection to the journal, turn by
//! turn.

mod adopt;
mod count;
mod handle;
mod store;
mod thread;

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};
use shared::clock::Clock;
use shared::config::Config;
use shared::control::Canary;
use shared::entry::Cause;
use shared::journal::{Coalesce, Commit, Journal, RootState};
use shared::limits;
use shared::status::RootStatus;

use super::bound::Bound;
use super::news::Heads;
use super::room::Room;
use super::{Report, report};
use crate::batch::Batch;
use crate::daemon::{Command, Event, Machine, Request, Verdict};
use crate::generation::{self, Generations, Pace};
use crate::host::Host;
use crate::intake::fanotify::Fanotify;
use crate::intake::keep::Keep;
use crate::intake::{EventSource, Kind, PlaceError, RootSeen};
use crate::linked::Linked;
use crate::meter::Meter;
use crate::roots::{Found, OwnDir, Standing, TrackedRoot};

pub use handle::{Flusher, SlotHandle, SlotShared, SlotStatus};
use handle::{Message, root_status};
pub(crate) use store::JOURNAL_ERROR;
pub(super) use thread::spawn;

/// What a slot is made of.
pub struct SlotParts<H: Host> {
    /// Its place among the slots.
    pub number: usize,
    pub host: H,
    pub name: String,
    /// Names the filesystem in the journal's doubts.
    pub fs_key: String,
    pub roots: Vec<TrackedRoot>,
    /// Directories whose content is ours.
    pub own: Vec<OwnDir>,
    pub journal: Journal,
    pub cause: Cause,
    /// How the tracker before ended, for people.
    pub before: &'static str,
    pub keep: Keep<H>,
    pub common: Common,
    pub reports: Sender<Report>,
}

/// What the threads of all filesystems have together.
#[derive(Clone)]
pub struct Common {
    pub heads: Arc<Heads>,
    pub bound: Arc<Bound>,
    pub room: Arc<Room>,
}

impl Common {
    pub fn new(config: &Config, clock: Arc<dyn Clock>, room: Room) -> Common {
        let bound = Bound::new(config, clock);
        Common { heads: Arc::default(), bound: Arc::new(bound), room: Arc::new(room) }
    }
}

/// One filesystem's work. When it is dropped, nothing is written: what is kept is as after a kill.
pub struct Slot<H: Host> {
    parts: SlotParts<H>,
    machine: Machine,
    /// What the last command led to.
    event: Event,
    source: Option<Box<dyn EventSource<H::Memory>>>,
    remembered: Coalesce,
    linked: Linked,
    /// What the journal has not taken yet.
    pending: Option<Commit>,
    states: Vec<Option<RootState>>,
    generations: Generations,
    pace: Pace,
    /// Where each root stood before the last check that found all as it should be.
    stood: Vec<Option<Standing>>,
    /// The roots that the next gap is for; empty for all.
    gaps: Vec<(usize, Cause)>,
    /// Bytes that the source holds beyond what the last commit took.
    left_to_translate: usize,
    /// The last batch was let go for a gap, because the disk is full.
    letting_go: bool,
    /// Placed, and the gap that covers the time before is committed.
    watching: bool,
    clock: Arc<dyn Clock>,
    shared: Arc<SlotShared>,
    inbox: Receiver<Message>,
    flushes: BTreeMap<u64, Sender<u64>>,
    canaries: BTreeMap<u64, Sender<Vec<Canary>>>,
    next_flush: u64,
}

/// What a turn came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    Went,
    /// The next turn is after this time: the kernel merges events meanwhile.
    Naps(Duration),
    /// The next turn is at this boot time, at a message, or, if it listens, as soon as events can be read.
    Waits {
        until_ns: Option<i64>,
        listen: bool,
    },
    /// There is no other. Clean if the journal took everything.
    Ended {
        clean: bool,
    },
}

impl<H: Host> Slot<H> {
    /// `wake` is written to with every message.
    pub fn new(parts: SlotParts<H>, wake: Option<Arc<OwnedFd>>) -> (Slot<H>, SlotHandle) {
        let (sender, inbox) = crossbeam_channel::unbounded();
        let shared = Arc::new(SlotShared::default());
        shared.lock().roots = parts.roots.iter().map(root_status).collect();
        shared.lock().filesystem.name = parts.name.clone();
        *shared.meter() = Meter::new(parts.roots.iter().map(|r| (r.id, r.name.clone())));
        let handle = SlotHandle { flusher: Flusher { inbox: sender, wake }, shared: Arc::clone(&shared) };
        let slot = Slot {
            machine: Machine::new(parts.cause, parts.keep.has_group()),
            event: Event::Begin,
            states: vec![None; parts.roots.len()],
            generations: Generations::default(),
            pace: Pace::default(),
            stood: Vec::new(),
            watching: false,
            gaps: Vec::new(),
            left_to_translate: 0,
            letting_go: false,
            clock: parts.host.clock(),
            parts,
            source: None,
            remembered: Coalesce::default(),
            linked: Linked::default(),
            pending: None,
            shared,
            inbox,
            flushes: BTreeMap::new(),
            canaries: BTreeMap::new(),
            next_flush: 0,
        };
        (slot, handle)
    }

    /// Carries out one command of the machine.
    pub fn turn(&mut self) -> Turn {
        if self.event == Event::Begin && !self.parts.keep.has_group() {
            self.say_how_it_began("the service manager had kept nothing of it");
        }
        self.shared.progress.fetch_add(1, Ordering::Relaxed);
        self.receive();
        let doubts = self.source.as_ref().map(|s| s.doubt_state()).unwrap_or_default();
        self.event = match self.machine.step(self.clock.boot_ns(), self.event, doubts) {
            Command::Adopt => self.adopt(),
            Command::Place => self.place(),
            Command::CommitGap(cause) => self.commit_gap(cause),
            Command::Announce => self.tell(Report::Ready),
            Command::Wait { until_ns, listen } => {
                self.event = Event::Woken { readable: false };
                return Turn::Waits { until_ns, listen };
            }
            Command::Nap => {
                self.event = Event::Done;
                return Turn::Naps(limits::INTAKE_NAP);
            }
            Command::Read => self.read(),
            Command::CountQueued => Event::Queued(self.count_queued()),
            Command::Commit => self.commit(self.machine.events_read()),
            Command::Check { flush } => self.check(flush),
            Command::Answer(id) => self.answer(id),
            Command::End => return Turn::Ended { clean: self.end() },
        };
        Turn::Went
    }

    /// After a wait: whether it ended because events can be read.
    pub fn woken(&mut self, readable: bool) {
        if let Event::Woken { .. } = self.event {
            self.event = Event::Woken { readable };
        }
    }

    /// False if the journal did not take everything.
    fn end(&mut self) -> bool {
        let clean = self.machine.all_committed();
        if clean {
            self.on_disk(|slot| {
                generation::make_last(&slot.parts.host, &slot.parts.roots, &mut slot.parts.journal);
            });
            self.source.iter_mut().for_each(|source| source.leave());
        }
        clean
    }

    fn receive(&mut self) {
        while let Ok(message) = self.inbox.try_recv() {
            match message {
                // Cut off: it is told at once.
                Message::Flush(_) | Message::Canary(_) if self.is_crowded() => {}
                Message::Flush(answer) => {
                    self.flushes.insert(self.next_flush, answer);
                    self.machine.request(Request::Flush(self.next_flush));
                    self.next_flush += 1;
                }
                Message::Canary(answer) => {
                    self.on_disk(|slot| slot.source.iter_mut().for_each(|source| source.ring()));
                    // Without one, no more than that the thread comes round.
                    if self.heard().is_empty() {
                        self.answer_canaries(&answer);
                        continue;
                    }
                    self.canaries.insert(self.next_flush, answer);
                    self.machine.request(Request::Flush(self.next_flush));
                    self.next_flush += 1;
                }
                Message::Probe => self.machine.request(Request::Probe),
                Message::Mounts => {
                    self.shared.mounts.take();
                    if !self.on_disk(|slot| slot.is_steady()) {
                        self.machine.request(Request::Probe);
                    }
                }
                Message::Stop => self.machine.request(Request::Stop),
            }
        }
    }

    fn is_crowded(&self) -> bool {
        self.flushes.len() + self.canaries.len() >= limits::WAITING_MAX
    }

    fn tell(&self, what: Report) -> Event {
        report(&self.parts.reports, what);
        Event::Done
    }

    /// Changes the status and has it written soon.
    fn note(&self, change: impl FnOnce(&mut SlotStatus)) {
        change(&mut self.shared.lock());
        if self.shared.told.raise() {
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
        self.end_source();
        let stood = self.on_disk(|slot| slot.standing());
        let placed = self.on_disk(|slot| place(&mut slot.parts));
        match placed {
            Ok((source, seen, reason)) => {
                self.begin_source(source, seen.len(), &reason);
                if seen.iter().all(|r| r.state == RootState::Ok) {
                    self.stood = stood;
                }
                self.store_states(&seen, false);
                Event::Placed
            }
            Err(PlaceError::Absent(seen)) => {
                self.end_source();
                self.store_states(&seen, false);
                Event::NotPlaced
            }
            Err(e) => {
                self.end_source();
                let why = format!("{PLACE_ERROR}: {e}");
                self.note_error(&why);
                let failing = |root| RootSeen { root, state: RootState::Failing, why: why.clone() };
                let seen: Vec<RootSeen> = (0..self.parts.roots.len()).map(failing).collect();
                self.store_states(&seen, false);
                Event::PlaceFailed
            }
        }
    }

    fn begin_source(&mut self, source: Box<dyn EventSource<H::Memory>>, roots: usize, reason: &str) {
        let kind = source.kind();
        if kind != Kind::Fanotify {
            self.parts.keep.forget();
        }
        self.note(|s| {
            s.filesystem.source = kind.as_str().to_owned();
            for (root, tracked) in s.roots[..roots].iter_mut().zip(&self.parts.roots) {
                root.source = kind.as_str().to_owned();
                root.source_reason = reason.to_owned();
                let fs = tracked.expected.as_ref().map_or("", |identity| &identity.fs);
                root.blind_spots = kind.blind_spots(fs);
            }
        });
        self.source = Some(source);
        self.recovered(PLACE_ERROR);
    }

    /// Nobody reads its group any more: it would fill up with kernel memory.
    fn end_source(&mut self) {
        self.watching = false;
        self.stood.clear();
        self.count_buffered(0);
        let buffer = self.source.take().and_then(|mut source| source.take_buffer());
        self.parts.keep.give_back(buffer);
    }

    /// Work that may hang with a tracked disk.
    fn on_disk<T>(&mut self, work: impl FnOnce(&mut Slot<H>) -> T) -> T {
        self.shared.resolving.store(true, Ordering::Relaxed);
        let out = work(self);
        self.shared.resolving.store(false, Ordering::Relaxed);
        out
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
                    self.generations.drained(now);
                    source.drained(now);
                }
                self.count_read(&taken, now);
                Event::Read { events: taken.events, bytes: taken.bytes, drained: taken.drained }
            }
            Ok(None) => {
                self.generations.drained(now);
                source.drained(now);
                Event::Empty
            }
            Err(e) => {
                self.note_error(&format!("{READ_ERROR}: {e}"));
                Event::ReadFailed
            }
        }
    }

    fn standing(&self) -> Vec<Option<Standing>> {
        self.parts.roots.iter().map(|root| self.parts.host.standing(&root.path)).collect()
    }

    /// True if no mount can have changed for these roots. To open them, as a check does, would make the unmount of one
    /// fail just when another was unmounted.
    fn is_steady(&self) -> bool {
        let stood = !self.stood.is_empty() && self.stood.iter().all(Option::is_some);
        stood && self.stood == self.standing() && self.source.as_ref().is_some_and(|s| s.is_steady())
    }

    /// Whether every root that is there is watched, and what was seen of each. Touches their disk.
    fn look(&mut self) -> (bool, Vec<RootSeen>) {
        match &mut self.source {
            Some(source) => {
                let checked = source.check();
                (checked.intact, checked.roots)
            }
            None => (false, look_at(&self.parts.host, &self.parts.roots)),
        }
    }

    fn check(&mut self, flush: bool) -> Event {
        if !flush {
            self.count_queued();
        }
        let (intact, seen, stood) = self.on_disk(|slot| {
            // Before the look: what changes during it is seen the next time.
            let stood = slot.standing();
            let (intact, seen) = slot.look();
            (intact, seen, stood)
        });
        let all_well = intact && seen.iter().all(|r| r.state == RootState::Ok);
        self.stood = if all_well { stood } else { Vec::new() };
        let covered = intact && self.watching;
        self.store_states(&seen, covered);
        report(&self.parts.reports, Report::Probed(self.parts.number));
        if seen.iter().all(|r| r.state != RootState::Ok) {
            // What its group holds is covered by the gap of the next placing.
            self.end_source();
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
        if let Some(answer) = self.canaries.remove(&id) {
            return self.answer_canaries(&answer);
        }
        let head =
            self.parts.journal.head_and_floor().map_or_else(|_| self.parts.common.heads.get(), |h| h.0);
        if let Some(answer) = self.flushes.remove(&id)
            && answer.send(head).is_err()
        {
            tracing::debug!("nobody waits for flush {id} any more");
        }
        Event::Done
    }

    fn heard(&self) -> Vec<Option<bool>> {
        self.source.as_ref().map(|source| source.heard()).unwrap_or_default()
    }

    fn answer_canaries(&self, answer: &Sender<Vec<Canary>>) -> Event {
        let heard = self.heard();
        let told = |(root, seen): (usize, RootStatus)| Canary {
            root: seen.name,
            state: seen.state,
            state_reason: seen.state_reason,
            source: seen.source,
            heard: heard.get(root).copied().flatten(),
        };
        let roots = self.shared.lock().roots.clone();
        if answer.send(roots.into_iter().enumerate().map(told).collect()).is_err() {
            tracing::debug!("nobody waits for canaries any more");
        }
        Event::Done
    }
}

/// How the errors begin that end when the same thing succeeds.
const PLACE_ERROR: &str = "cannot be watched";
const READ_ERROR: &str = "cannot read events";

type Placed<M> = (Box<dyn EventSource<M>>, Vec<RootSeen>, String);

/// fanotify, or what the host has instead with the reason why not fanotify.
fn place<H: Host>(parts: &mut SlotParts<H>) -> Result<Placed<H::Memory>, PlaceError> {
    let SlotParts { host, roots, own, keep, .. } = parts;
    match Fanotify::place(host, roots, own, keep) {
        Ok((source, seen)) => Ok((Box::new(source), seen, String::new())),
        Err(PlaceError::Refused { reason }) => {
            let (source, seen) = host.place_instead(roots, own)?;
            Ok((source, seen, reason))
        }
        Err(e) => Err(e),
    }
}

fn look_at(host: &impl Host, roots: &[TrackedRoot]) -> Vec<RootSeen> {
    let seen = |(root, tracked): (usize, &TrackedRoot)| match tracked.look(host) {
        Found::Ok(_) => RootSeen { root, state: RootState::Ok, why: String::new() },
        Found::Not { state, why } => RootSeen { root, state, why },
    };
    roots.iter().enumerate().map(seen).collect()
}

#[cfg(test)]
mod tests;
