//! A life of the tracker: its real threads' work, a turn at a time, and what its loop does beside them.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender, TryRecvError, unbounded};
use shared::config::Config;
use shared::journal::Journal;
use shared::limits;
use tracker::shell::room::{Reserve, Room};
use tracker::shell::slot::{Common, Slot, SlotHandle, Turn};
use tracker::shell::{Report, RunError, begin};

use crate::fate::{Fate as _, Fault, Killed};
use crate::hand::{Hand, Shared};
use crate::host::{SimClock, SimHost};
use crate::store::lock;

/// How often rows that every leg has acked are dropped, in nanoseconds.
const PRUNE_NS: i64 = 60_000_000_000;

pub struct Tracker {
    hand: Hand,
    slots: Vec<Seat>,
    common: Common,
    journal: Journal,
    session: i64,
    reports: Receiver<Report>,
    probes_due: BTreeSet<usize>,
    next_tick_ns: i64,
    pruned_ns: i64,
    /// The mounts that its threads were told of.
    mounts_seen: u64,
}

struct Seat {
    slot: Slot<SimHost>,
    handle: SlotHandle,
    state: State,
    /// It was sent a message.
    poked: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Goes,
    Waits { until_ns: Option<i64>, listen: bool },
    Ended(bool),
}

impl Tracker {
    /// As `tracker run` begins, but for what only a process has.
    pub fn start(shared: &Arc<Shared>, config: &Config) -> Result<Result<Tracker, RunError>, Killed> {
        let hand = shared.begin_life();
        hand.clone().live(|| Tracker::begin(hand, config))
    }

    fn begin(hand: Hand, config: &Config) -> Result<Tracker, RunError> {
        let host = SimHost::new(hand.clone());
        let tracked = begin::tracked_roots(config, &host)?;
        let no_room = |_| RunError::NoRoom { dir: config.state_dir.clone() };
        let room = Room::make(SimReserve(hand.clone())).map_err(no_room)?;
        let mut journal = Journal::create_or_open(&config.journal_path()).map_err(RunError::Journal)?;
        let common = Common::new(config, Arc::new(SimClock(hand.clone())), room);
        let (sender, reports): (Sender<Report>, _) = unbounded();
        let begun = begin::begin(config, &host, tracked, &mut journal, &common, &sender)?;
        hand.shared.forget_probe();
        let seat = |parts| {
            let (slot, handle) = Slot::new(parts, None);
            Seat { slot, handle, state: State::Goes, poked: false }
        };
        let now = hand.shared.machine().boot_ns;
        let mounts_seen = hand.shared.machine().mounts_changed();
        Ok(Tracker {
            slots: begun.parts.into_iter().map(seat).collect(),
            session: begun.session,
            common,
            journal,
            reports,
            probes_due: BTreeSet::new(),
            next_tick_ns: now,
            pruned_ns: now,
            mounts_seen,
            hand,
        })
    }

    pub fn is_dead(&self) -> bool {
        self.hand.is_dead()
    }

    /// Dies at once.
    pub fn kill(self) {
        crate::database::kill(self.hand.program);
    }

    /// One turn of each thread that has something to do; false if none had.
    pub fn turn_all(&mut self) -> bool {
        let hand = self.hand.clone();
        hand.live(|| self.turn()).unwrap_or(false)
    }

    fn turn(&mut self) -> bool {
        self.on_time();
        let mut went = false;
        for at in 0..self.slots.len() {
            went |= self.turn_one(at);
        }
        self.take_reports();
        went
    }

    fn turn_one(&mut self, at: usize) -> bool {
        let (now, any_queued) = {
            let machine = self.hand.shared.machine();
            (machine.boot_ns, machine.any_queued())
        };
        let seat = &mut self.slots[at];
        let readable = match seat.state {
            State::Goes => None,
            State::Ended(_) => return false,
            State::Waits { until_ns, listen } => {
                let readable = listen && any_queued;
                if !readable && !seat.poked && until_ns.is_none_or(|until| now < until) {
                    return false;
                }
                Some(readable)
            }
        };
        self.hand.pass("a turn of the tracker");
        if let Some(readable) = readable {
            seat.poked = false;
            seat.slot.woken(readable);
        }
        seat.state = match seat.slot.turn() {
            Turn::Went => State::Goes,
            Turn::Naps(time) => State::Waits { until_ns: Some(now + time.as_nanos() as i64), listen: false },
            Turn::Waits { until_ns, listen } => State::Waits { until_ns, listen },
            Turn::Ended { clean } => State::Ended(clean),
        };
        true
    }

    fn take_reports(&mut self) {
        while let Ok(report) = self.reports.try_recv() {
            if let Report::Probed(number) = report
                && self.probes_due.remove(&number)
                && self.probes_due.is_empty()
            {
                self.hand.shared.probed();
            }
        }
    }

    /// What the loop does when it is time.
    fn on_time(&mut self) {
        let (now, mounts) = {
            let machine = self.hand.shared.machine();
            (machine.boot_ns, machine.mounts_changed())
        };
        if mounts != self.mounts_seen {
            self.mounts_seen = mounts;
            self.slots.iter_mut().for_each(|seat| {
                seat.handle.mounts_changed();
                seat.poked = true;
            });
        }
        if now < self.next_tick_ns {
            return;
        }
        self.next_tick_ns = now + limits::PROBE_INTERVAL.as_nanos() as i64;
        for (number, seat) in self.slots.iter_mut().enumerate() {
            if self.probes_due.insert(number) {
                seat.handle.probe();
                seat.poked = true;
            }
        }
        self.common.room.regain();
        if now >= self.pruned_ns + PRUNE_NS {
            self.pruned_ns = now;
            if let Err(e) = self.common.bound.tidy(&mut self.journal) {
                self.hand.shared.note(&e.to_string(), 0);
            }
        }
    }

    /// Until every thread waits for something that has not happened, without letting time go by.
    pub fn settle(&mut self) {
        while self.turn_all() {}
    }

    /// `tracker flush`: everything that happened before is in the journal when it returns.
    pub fn flush(&mut self) -> Result<(), String> {
        let begun = self.hand.shared.machine().boot_ns;
        let deadline = begun + limits::FLUSH_TIMEOUT.as_nanos() as i64;
        let mut answers = Vec::new();
        for seat in &mut self.slots {
            answers.push(seat.handle.flusher().flush());
            seat.poked = true;
        }
        loop {
            let went = self.turn_all();
            if self.is_dead() {
                return Err("The tracker went away".to_owned());
            }
            answers.retain(|answer| answer.try_recv() == Err(TryRecvError::Empty));
            if answers.is_empty() {
                return Ok(());
            }
            if !went && !self.wait_for_next(deadline) {
                return Err("The tracker does not answer".to_owned());
            }
        }
    }

    /// Lets time go by until a thread has something to do; false if that is later than the deadline.
    pub fn wait_for_next(&mut self, deadline_ns: i64) -> bool {
        let next = self.slots.iter().filter_map(|seat| match seat.state {
            State::Waits { until_ns, .. } => until_ns,
            _ => None,
        });
        let next = next.min().unwrap_or(i64::MAX).min(self.next_tick_ns);
        if next > deadline_ns {
            return false;
        }
        self.hand.shared.machine().wait_until(next);
        true
    }

    /// SIGTERM: everything is committed, and the session ends.
    pub fn stop(mut self) {
        for seat in &mut self.slots {
            seat.handle.stop();
            seat.poked = true;
        }
        let ended = |seat: &Seat| matches!(seat.state, State::Ended(_));
        while !self.is_dead() && !self.slots.iter().all(ended) {
            if !self.turn_all() && !self.wait_for_next(i64::MAX) {
                break;
            }
        }
        if self.slots.iter().all(|seat| seat.state == State::Ended(true)) {
            let hand = self.hand.clone();
            let wall_ns = hand.shared.machine().wall_ns;
            let ended = hand.live(|| self.journal.end_session(self.session, wall_ns));
            hand.shared.note("session ended", u64::from(matches!(ended, Ok(Ok(_)))));
        }
        crate::database::kill(self.hand.program);
    }
}

/// What a run asks of the tracker, wherever that is in its life.
pub struct Client(pub Hand);

impl syncer::run::Tracker for Client {
    fn flush(&self) -> Result<(), String> {
        self.0.pass("ask for a flush");
        if self.0.strikes(Fault::TrackerHangs) {
            return Err("The tracker does not answer".to_owned());
        }
        let mut tracker = lock(&self.0.shared.tracker);
        let answer = tracker.as_mut().map_or_else(|| Err("No tracker runs".to_owned()), Tracker::flush);
        tracker.take_if(|tracker| tracker.is_dead());
        drop(tracker);
        if self.0.is_dead() {
            crate::fate::die();
        }
        answer
    }

    fn probed_boot_ns(&self) -> Option<i64> {
        self.0.shared.probed_ns()
    }
}

/// Room on the state disk that is given up when it is full.
struct SimReserve(Hand);

impl fmt::Display for SimReserve {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the reserve")
    }
}

impl Reserve for SimReserve {
    fn fill(&self) -> std::io::Result<()> {
        self.0.pass("make the reserve");
        if self.0.shared.free_bytes() < limits::RESERVE_BYTES {
            return Err(std::io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }

    fn empty(&self) -> std::io::Result<()> {
        self.0.pass("give the reserve up");
        self.0.shared.free_reserve();
        Ok(())
    }

    fn free_bytes(&self) -> std::io::Result<u64> {
        Ok(self.0.shared.free_bytes())
    }
}
