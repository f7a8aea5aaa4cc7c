//! What one filesystem's thread does next: a step machine from events to commands, without threads, clock or I/O.
//! The order of effects lives here: mark before gap row, batch read before its commit, check of the mark before the
//! answer to a flush, answer only after the commit.

use shared::entry::Cause;
use shared::limits;

use crate::resolve::doubts::DoubtState;

/// What somebody asks for, at any time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// Answer once everything that happened before is committed.
    Flush(u64),
    /// Look whether the roots are still what they were, and marked.
    Probe,
    /// Commit everything, then end.
    Stop,
}

/// What a command led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    Begin,
    /// What an earlier instance left is taken over, with these uncommitted events. A gap is still to be committed
    /// for some roots, or all.
    Adopted {
        events: u64,
        bytes: usize,
        gap: Option<Cause>,
    },
    /// Something may have been missed since.
    NotAdopted(Cause),
    Placed,
    /// None of the roots is there: a probe will see them.
    NotPlaced,
    /// The roots are there, and their filesystem cannot be watched now.
    PlaceFailed,
    Committed,
    /// A part of what was read is committed, the rest waits.
    CommittedPart,
    /// The journal did not take it; what was to be committed is kept.
    NotCommitted,
    /// The wait or the nap is over.
    Woken {
        readable: bool,
    },
    Read {
        events: u64,
        bytes: usize,
        drained: bool,
    },
    /// Nothing was queued.
    Empty,
    ReadFailed,
    /// How many events are queued at most.
    Queued(u64),
    Checked(Verdict),
    /// A command without a result was carried out.
    Done,
}

/// What a check of the roots and the mark found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Intact,
    /// The roots are there but not (all) watched.
    Unwatched,
    /// No root is there: nothing can be watched.
    Absent,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Take over what an earlier instance left.
    Adopt,
    /// Mark the filesystem, or set the watches.
    Place,
    /// Commit a gap over all roots, or those that an adoption named. What was remembered of the stream is void.
    CommitGap(Cause),
    /// Marks are placed and gap rows committed.
    Announce,
    Wait {
        until_ns: Option<i64>,
        listen: bool,
    },
    /// Let the kernel merge events.
    Nap,
    Read,
    CountQueued,
    /// Translate what was read and commit it.
    Commit,
    /// Check the roots and the mark. For a flush, commit what the source knows it cannot see.
    Check {
        flush: bool,
    },
    Answer(u64),
    End,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Aim {
    Flush(u64),
    Stop,
}

/// Somebody who waits until `target` events are committed.
#[derive(Debug, Clone, Copy)]
struct Waiter {
    aim: Aim,
    /// Unknown until the queue was counted.
    target: Option<u64>,
    /// Doubts of events up to here must be settled; known once the target is committed.
    settled_to: Option<u64>,
    /// The mark was there after the commit.
    verified: bool,
}

pub struct Machine {
    /// A gap that must follow the next placing.
    broken: Option<Cause>,
    /// Something of an earlier instance is there to be looked at.
    may_adopt: bool,
    /// Some of what was read is to be committed before anything else.
    part: bool,
    /// Whether placing may be tried now.
    may_place: bool,
    /// Placed, gap not committed yet.
    gap_due: Option<Cause>,
    placed: bool,
    announced: bool,
    /// Events read, and committed, since the start.
    read: u64,
    committed: u64,
    read_at_placing: u64,
    batch_events: usize,
    batch_bytes: usize,
    batch_since_ns: Option<i64>,
    /// The queue may hold more.
    more: bool,
    check_wanted: bool,
    retry_ns: Option<i64>,
    failures: u32,
    /// When placing is tried again without being asked.
    place_retry_ns: Option<i64>,
    place_failures: u32,
    waiters: Vec<Waiter>,
}

/// First and longest wait before a failed commit or placing is tried again.
const RETRY_FIRST_NS: i64 = 500_000_000;
const RETRY_MAX_NS: i64 = 30_000_000_000;

fn backoff(failures: u32) -> i64 {
    RETRY_FIRST_NS.saturating_mul(1 << failures.min(16)).min(RETRY_MAX_NS)
}

/// Failed commits after which a stopping thread gives up: the next start finds what was read in the buffer, or
/// writes a gap.
const STOP_FAILURES_MAX: u32 = 3;

impl Machine {
    /// `cause` is that of the gap a start begins with, unless it can adopt what an earlier instance `left`.
    pub fn new(cause: Cause, left: bool) -> Machine {
        Machine {
            broken: Some(cause),
            may_adopt: left,
            part: false,
            may_place: true,
            gap_due: None,
            placed: false,
            announced: false,
            read: 0,
            committed: 0,
            read_at_placing: 0,
            batch_events: 0,
            batch_bytes: 0,
            batch_since_ns: None,
            more: false,
            check_wanted: false,
            retry_ns: None,
            failures: 0,
            place_retry_ns: None,
            place_failures: 0,
            waiters: Vec::new(),
        }
    }

    /// Events read since the start.
    pub fn events_read(&self) -> u64 {
        self.read
    }

    /// False if it ended because the journal took no more.
    pub fn all_committed(&self) -> bool {
        self.failures == 0
    }

    pub fn request(&mut self, request: Request) {
        let aim = match request {
            Request::Probe => {
                self.check_wanted = true;
                return;
            }
            Request::Flush(id) => Aim::Flush(id),
            Request::Stop => Aim::Stop,
        };
        self.waiters.push(Waiter { aim, target: None, settled_to: None, verified: false });
    }

    /// Takes in what the last command led to and says what to do next.
    pub fn step(&mut self, now_ns: i64, event: Event, doubts: DoubtState) -> Command {
        self.take(now_ns, event);
        self.next(now_ns, event, doubts)
    }

    fn take(&mut self, now_ns: i64, event: Event) {
        match event {
            Event::Begin | Event::Done => {}
            Event::Adopted { events, bytes, gap } => {
                self.broken = None;
                self.placed = true;
                self.more = true;
                self.gap_due = gap;
                self.part = bytes > 0;
                if bytes > 0 {
                    self.add_to_batch(now_ns, events, bytes);
                }
                self.read_at_placing = self.read;
            }
            Event::NotAdopted(cause) => self.broken = Some(cause),
            Event::Placed => {
                self.placed = true;
                self.read_at_placing = self.read;
                self.more = true;
                self.gap_due = self.broken.take();
                self.place_retry_ns = None;
                self.place_failures = 0;
            }
            Event::NotPlaced => {
                self.place_retry_ns = None;
                self.not_placed();
            }
            Event::PlaceFailed => {
                self.place_retry_ns = Some(now_ns.saturating_add(backoff(self.place_failures)));
                self.place_failures += 1;
                self.not_placed();
            }
            Event::Committed => self.take_commit(),
            Event::CommittedPart => {
                self.failures = 0;
                self.retry_ns = None;
                self.part = true;
            }
            Event::NotCommitted => {
                self.retry_ns = Some(now_ns.saturating_add(backoff(self.failures)));
                self.failures += 1;
            }
            Event::Woken { readable } => self.more |= readable,
            Event::Read { events, bytes, drained } => {
                self.add_to_batch(now_ns, events, bytes);
                self.more = !drained;
                if drained {
                    self.reached_the_end();
                }
            }
            Event::Empty => {
                self.more = false;
                self.reached_the_end();
            }
            Event::ReadFailed => self.read_failed(),
            Event::Queued(n) => {
                let target = self.read.saturating_add(n);
                self.waiters.iter_mut().for_each(|w| _ = w.target.get_or_insert(target));
                self.more |= n > 0;
            }
            Event::Checked(verdict) => self.take_verdict(verdict),
        }
    }

    fn add_to_batch(&mut self, now_ns: i64, events: u64, bytes: usize) {
        self.read += events;
        self.batch_events += events as usize;
        self.batch_bytes += bytes;
        self.batch_since_ns.get_or_insert(now_ns);
    }

    fn read_failed(&mut self) {
        self.placed = false;
        self.more = false;
        // A source that never gave anything is tried again at the next probe only.
        self.may_place = self.read > self.read_at_placing;
        self.broken = Some(Cause::Damaged);
        // What was queued is covered by the gap.
        self.reached_the_end();
    }

    fn not_placed(&mut self) {
        self.placed = false;
        self.may_place = false;
        self.more = false;
        self.broken.get_or_insert(Cause::Remount);
        // The roots' states say that nothing is watched: a flush has no more to wait for.
        self.reached_the_end();
        self.verify();
    }

    fn take_commit(&mut self) {
        self.failures = 0;
        self.retry_ns = None;
        if self.gap_due.take().is_some() {
            // What the gap covers needs no other proof.
            self.verify();
            return;
        }
        self.committed = self.read;
        self.part = false;
        self.batch_events = 0;
        self.batch_bytes = 0;
        self.batch_since_ns = None;
        self.mark_committed();
    }

    fn take_verdict(&mut self, verdict: Verdict) {
        match verdict {
            Verdict::Intact if self.placed => self.verify(),
            Verdict::Intact | Verdict::Unwatched => {
                self.placed = false;
                self.may_place = true;
                self.broken.get_or_insert(Cause::Remount);
            }
            Verdict::Absent => {
                self.placed = false;
                self.may_place = false;
                self.place_retry_ns = None;
                self.broken.get_or_insert(Cause::Remount);
                self.verify();
            }
        }
    }

    /// Those whose events are committed have their proof.
    fn verify(&mut self) {
        self.waiters.iter_mut().for_each(|w| w.verified |= w.settled_to.is_some());
    }

    /// The queue was empty: whatever a waiter waits for has been read.
    fn reached_the_end(&mut self) {
        let read = self.read;
        for target in self.waiters.iter_mut().filter_map(|w| w.target.as_mut()) {
            *target = (*target).min(read);
        }
        self.mark_committed();
    }

    fn mark_committed(&mut self) {
        let committed = self.committed;
        for waiter in &mut self.waiters {
            if waiter.target.is_some_and(|t| t <= committed) {
                waiter.settled_to.get_or_insert(committed);
            }
        }
    }

    fn next(&mut self, now_ns: i64, event: Event, doubts: DoubtState) -> Command {
        if let Some(retry) = self.retry_ns {
            if self.stopping() && self.failures >= STOP_FAILURES_MAX {
                return Command::End;
            }
            if now_ns < retry {
                return Command::Wait { until_ns: Some(retry), listen: false };
            }
        }
        if let Some(cause) = self.gap_due {
            return Command::CommitGap(cause);
        }
        if self.retry_ns.take().is_some() || self.part {
            return Command::Commit;
        }
        if std::mem::take(&mut self.may_adopt) {
            return Command::Adopt;
        }
        let dirty = self.batch_since_ns.is_some();
        if self.broken.is_some() && dirty {
            return Command::Commit;
        }
        self.may_place |= self.place_retry_ns.take_if(|at| *at <= now_ns).is_some();
        if self.broken.is_some() && self.may_place {
            return Command::Place;
        }
        if !self.announced {
            self.announced = true;
            return Command::Announce;
        }
        if self.waiters.iter().any(|w| w.target.is_none()) {
            if self.placed {
                return Command::CountQueued;
            }
            self.take(now_ns, Event::Queued(0));
            self.mark_committed();
        }
        let doubt_due = doubts.due_ns.is_some_and(|due| due <= now_ns);
        if (dirty && self.batch_due(now_ns)) || doubt_due {
            return Command::Commit;
        }
        if matches!(event, Event::Woken { readable: true }) && self.more && !self.hurried() {
            return Command::Nap;
        }
        // A doubt waits for what was queued: the queue must be seen to be empty.
        let ask_queue = doubts.oldest.is_some() && doubts.due_ns.is_none();
        if self.placed && (self.more || ask_queue) {
            return Command::Read;
        }
        self.mark_committed();
        if let Some(command) = self.serve(doubts) {
            return command;
        }
        let age = limits::INTAKE_BATCH_AGE.as_nanos() as i64;
        let batch_end = self.batch_since_ns.map(|since| since + age);
        let until_ns = [batch_end, doubts.due_ns, self.place_retry_ns].into_iter().flatten().min();
        Command::Wait { until_ns, listen: self.placed }
    }

    /// The checks and answers that are ready.
    fn serve(&mut self, doubts: DoubtState) -> Option<Command> {
        if self.check_wanted && self.batch_since_ns.is_none() {
            return Some(self.check(false));
        }
        let settled = |to: u64| doubts.oldest.is_none_or(|oldest| oldest > to);
        let stop = self.waiters.iter().any(|w| w.aim == Aim::Stop && w.settled_to.is_some());
        let ready = self
            .waiters
            .iter()
            .position(|w| matches!(w.aim, Aim::Flush(_)) && w.settled_to.is_some_and(settled));
        if let Some(at) = ready {
            if !self.waiters[at].verified {
                return Some(self.check(true));
            }
            if let Aim::Flush(id) = self.waiters.remove(at).aim {
                return Some(Command::Answer(id));
            }
        }
        stop.then_some(Command::End)
    }

    /// Answers every probe asked for until now. One that is asked for during the look wants another: the look may have
    /// been before what it is asked for.
    fn check(&mut self, flush: bool) -> Command {
        self.check_wanted = false;
        Command::Check { flush }
    }

    fn batch_due(&self, now_ns: i64) -> bool {
        let age = limits::INTAKE_BATCH_AGE.as_nanos() as i64;
        self.batch_events >= limits::INTAKE_BATCH_EVENTS
            || self.batch_bytes + limits::INTAKE_READ_BYTES > limits::INTAKE_BATCH_BYTES
            || self.batch_since_ns.is_some_and(|since| now_ns - since >= age)
            || self.waiters.iter().any(|w| w.target.is_some_and(|t| t <= self.read))
            || (self.check_wanted && !self.more)
    }

    /// Somebody waits: no nap.
    fn hurried(&self) -> bool {
        !self.waiters.is_empty()
    }

    fn stopping(&self) -> bool {
        self.waiters.iter().any(|w| w.aim == Aim::Stop)
    }
}

#[cfg(test)]
mod tests;
