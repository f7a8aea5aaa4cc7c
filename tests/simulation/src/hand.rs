//! What all that is simulated has in common, and the hand that each life of a program feels it by: others go on between
//! two of its steps, and it may die at any of them.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use shared::limits;

use crate::chance::Chance;
use crate::database::{self, Act, Answer, Op as Written, Program};
use crate::deeds::Hands;
use crate::disk::Id;
use crate::disks::{Disks, PROGRAMS};
use crate::fate::{Fate, Fault, Killed, die};
use crate::machine::Machine;
use crate::random::Random;
use crate::script::{Op, What};
use crate::seat::Tracker;
use crate::shape::Shape;
use crate::store::lock;
use crate::users;

/// Time that a step takes at most, in nanoseconds.
const STEP_NS: u64 = 40_000;
/// No probe of the roots is known.
const NEVER: i64 = i64::MIN;

pub struct Shared {
    pub shape: Shape,
    machine: Mutex<Machine>,
    hands: Mutex<Hands>,
    chance: Mutex<Chance>,
    /// Taken while it takes its turn.
    pub tracker: Mutex<Option<Tracker>>,
    /// What the tracker's status file says of its last probe.
    probed_ns: AtomicI64,
    /// Bytes left on the state disk; negative: as many as anybody wants.
    room: AtomicI64,
    /// The power went, and the machine has not come up again.
    down: AtomicBool,
    lives: AtomicU64,
    /// A listing lacked a name without an error: what no event and no row names is found by nobody.
    lied: AtomicBool,
}

/// One life of a program.
#[derive(Clone)]
pub struct Hand {
    pub shared: Arc<Shared>,
    pub program: Program,
}

impl Shared {
    pub fn new(shape: Shape, machine: Machine, seed: u64) -> Arc<Shared> {
        let roots = (0..shape.roots.len()).map(|root| shape.root_path(root)).collect();
        Arc::new(Shared {
            shape,
            machine: Mutex::new(machine),
            hands: Mutex::new(Hands::new(roots)),
            chance: Mutex::new(Chance::new(seed)),
            tracker: Mutex::new(None),
            probed_ns: AtomicI64::new(NEVER),
            room: AtomicI64::new(-1),
            down: AtomicBool::new(false),
            lives: AtomicU64::new(1),
            lied: AtomicBool::new(false),
        })
    }

    pub fn chance(&self) -> MutexGuard<'_, Chance> {
        lock(&self.chance)
    }

    pub fn machine(&self) -> MutexGuard<'_, Machine> {
        lock(&self.machine)
    }

    pub fn note(&self, what: &str, value: u64) {
        self.chance().note(what, value);
    }

    /// A program begins.
    pub fn begin_life(self: &Arc<Shared>) -> Hand {
        Hand { shared: Arc::clone(self), program: self.lives.fetch_add(1, Ordering::Relaxed) }
    }

    /// Somebody does something to files.
    pub fn carry_out(&self, op: &Op) {
        let done = lock(&self.hands).carry_out(&mut self.machine(), op);
        self.note("op", done.err().map_or(0, |e| e.raw_os_error() as u64));
    }

    pub fn lied(&self) {
        self.lied.store(true, Ordering::Relaxed);
    }

    /// Whether a listing lacked a name without an error.
    pub fn has_lied(&self) -> bool {
        self.lied.load(Ordering::Relaxed)
    }

    /// Whether a file changed in a way of which nothing has told yet.
    pub fn is_silent(&self, dev: u64, file: Id) -> bool {
        lock(&self.hands).is_silent(dev, file)
    }

    pub fn close_files(&self) {
        lock(&self.hands).close_all(&mut self.machine());
    }

    /// Something happens while a program is between two of its steps.
    fn go_on(&self, what: &What) {
        match what {
            What::Do(op) => self.carry_out(op),
            What::Turns(count) => {
                // It may be the one whose step this is.
                if let Ok(mut tracker) = self.tracker.try_lock() {
                    for _ in 0..*count {
                        tracker.as_mut().map(Tracker::turn_all);
                    }
                    tracker.take_if(|tracker| tracker.is_dead());
                }
            }
            What::Fault(_) => {}
        }
    }

    // The tracker's own.

    /// The tracker has looked at all its roots.
    pub fn probed(&self) {
        self.probed_ns.store(self.machine().boot_ns, Ordering::Relaxed);
    }

    pub fn forget_probe(&self) {
        self.probed_ns.store(NEVER, Ordering::Relaxed);
    }

    pub fn probed_ns(&self) -> Option<i64> {
        Some(self.probed_ns.load(Ordering::Relaxed)).filter(|ns| *ns != NEVER)
    }

    // The state disk.

    pub fn fill_state_disk(&self, full: bool) {
        self.room.store(if full { 0 } else { -1 }, Ordering::Relaxed);
    }

    pub fn free_bytes(&self) -> u64 {
        u64::try_from(self.room.load(Ordering::Relaxed)).unwrap_or(u64::MAX)
    }

    pub fn free_reserve(&self) {
        if self.room.load(Ordering::Relaxed) >= 0 {
            self.room.fetch_add(limits::RESERVE_BYTES as i64, Ordering::Relaxed);
        }
    }

    /// Whether so many bytes find room.
    fn takes(&self, bytes: usize) -> bool {
        let left = self.room.load(Ordering::Relaxed);
        if left < 0 {
            return true;
        }
        let fits = left >= bytes as i64;
        self.room.store(if fits { left - bytes as i64 } else { left }, Ordering::Relaxed);
        fits
    }

    /// What becomes of each act of SQLite.
    pub fn database_hook(self: &Arc<Shared>) -> impl FnMut(&Written<'_>) -> Answer + 'static {
        let shared = Arc::clone(self);
        move |written| {
            if written.program == 0 {
                return Answer::Go;
            }
            let mut chance = shared.chance();
            chance.step();
            let (kill, cut) = (chance.strikes(Fault::KillInWrite), chance.strikes(Fault::PowerCutInWrite));
            let full = matches!(written.act, Act::Write { .. }) && chance.strikes(Fault::StateDiskFull);
            drop(chance);
            match written.act {
                _ if cut => {
                    shared.cut_power();
                    Answer::Die
                }
                _ if kill => Answer::Die,
                Act::Write { len, .. } if full || !shared.takes(len) => Answer::Full,
                _ => Answer::Go,
            }
        }
    }

    // Down and up.

    pub fn is_down(&self) -> bool {
        self.down.load(Ordering::Relaxed)
    }

    pub fn cut_power(&self) {
        self.down.store(true, Ordering::Relaxed);
        database::halt();
    }

    /// After a power cut, with every program gone.
    pub fn lose_power(&self, disks: &mut Disks) {
        let mut keep = || self.chance().pick(2) == 0;
        database::power_cut(&mut keep);
        disks.boot(&mut self.machine(), false);
        self.forget_boot();
        self.down.store(false, Ordering::Relaxed);
    }

    /// In order, with every program gone.
    pub fn reboot(&self, disks: &mut Disks) {
        self.close_files();
        disks.boot(&mut self.machine(), true);
        self.forget_boot();
    }

    fn forget_boot(&self) {
        lock(&self.hands).forget();
        self.forget_probe();
    }
}

impl Hand {
    /// The process of this life.
    pub fn pid(&self) -> u32 {
        PROGRAMS + self.program as u32
    }

    pub fn is_dead(&self) -> bool {
        database::is_dead(self.program)
    }

    /// Runs a part of this program's life. `Err`: it was killed within.
    pub fn live<T>(&self, work: impl FnOnce() -> T) -> Result<T, Killed> {
        let before = database::enter(self.program);
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        database::enter(before);
        match done {
            Ok(_) if self.is_dead() => Err(Killed),
            Ok(done) => Ok(done),
            Err(thrown) if thrown.is::<Killed>() => {
                database::kill(self.program);
                Err(Killed)
            }
            // It was dead already, and fell over what the dead are told.
            Err(_) if self.is_dead() => Err(Killed),
            Err(thrown) => std::panic::resume_unwind(thrown),
        }
    }

    /// A step at which it may only die.
    pub fn mortal(&self, point: &'static str) {
        let (kill, cut) = {
            let mut chance = self.shared.chance();
            chance.step();
            chance.note(point, 0);
            (chance.strikes(Fault::Kill), chance.strikes(Fault::PowerCut))
        };
        if cut {
            self.shared.cut_power();
        }
        if kill || self.is_dead() {
            database::kill(self.program);
            die();
        }
    }
}

impl Fate for Hand {
    fn pass(&self, point: &'static str) {
        self.mortal(point);
        let shared = &self.shared;
        let draw = |random: &mut Random| match random.below(4) {
            0 => What::Turns(1 + random.below(8) as u32),
            _ => What::Do(users::draw(&shared.shape, random)),
        };
        let (due, step_ns) = {
            let mut chance = shared.chance();
            (chance.pass(draw), chance.pick(STEP_NS))
        };
        shared.machine().pass_time(step_ns as i64);
        due.iter().for_each(|what| shared.go_on(what));
        if self.is_dead() {
            die();
        }
    }

    fn strikes(&self, fault: Fault) -> bool {
        self.shared.chance().strikes(fault)
    }

    fn pick(&self, n: u64) -> u64 {
        self.shared.chance().pick(n)
    }
}
