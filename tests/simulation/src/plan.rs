//! What happens next in a world that is drawn: people work, time goes by, legs run, and now and then something breaks.

use crate::faults::Faults;
use crate::random::Random;
use crate::script::{DatabaseChange, DiskChange, ForeignChange, Line, Step};
use crate::shape::Shape;
use crate::users;

/// Lines after the beginning.
const LINES: (u64, u64) = (150, 500);

/// How a world goes.
pub struct Plan {
    random: Random,
    pub faults: Faults,
    pub lines: u64,
    /// Once in so many lines; 0 is never.
    breaks: Breaks,
}

struct Breaks {
    disks: u64,
    databases: u64,
    tracker: u64,
    power: u64,
    foreign: u64,
    clock: u64,
    rules: u64,
    state_disk: u64,
}

impl Plan {
    pub fn drawn(random: &mut Random) -> Plan {
        let mut often = |list: [u64; 4]| list[random.below(4) as usize];
        let breaks = Breaks {
            disks: often([0, 0, 20, 60]),
            databases: often([0, 0, 0, 60]),
            tracker: often([0, 20, 60, 200]),
            power: often([0, 0, 60, 200]),
            foreign: often([0, 0, 0, 40]),
            clock: often([0, 0, 0, 60]),
            rules: often([0, 0, 0, 80]),
            state_disk: often([0, 0, 0, 60]),
        };
        let faults = Faults::drawn(random);
        let lines = LINES.0 + random.below(LINES.1 - LINES.0);
        Plan { random: random.fork(), faults, lines, breaks }
    }

    /// The next line. `tracker_runs` is whether one does.
    pub fn next(&mut self, shape: &Shape, tracker_runs: bool) -> Line {
        let seed = self.random.number();
        let step = self.break_something(shape).unwrap_or_else(|| self.ordinary(shape, tracker_runs));
        Line { seed, step, within: Vec::new() }
    }

    fn ordinary(&mut self, shape: &Shape, tracker_runs: bool) -> Step {
        let random = &mut self.random;
        match random.below(100) {
            0..65 => Step::Do { op: users::draw(shape, random) },
            65..78 => Step::Turns { count: 1 + random.below(12) as u32 },
            78..90 => {
                let ms = [20, 300, 1_500, 40_000, 90_000, 4_000_000, 90_000_000][random.below(7) as usize];
                Step::Wait { ms }
            }
            90..96 => self.run(shape),
            96 => Step::Check,
            _ if tracker_runs => Step::Turns { count: 3 },
            _ => Step::StartTracker,
        }
    }

    fn run(&mut self, shape: &Shape) -> Step {
        let random = &mut self.random;
        let runs = |random: &mut Random, at: usize| {
            if shape.legs[at].lags { random.one_in(12) } else { random.below(3) > 0 }
        };
        let mut legs: Vec<usize> = (0..shape.legs.len()).filter(|at| runs(random, *at)).collect();
        if legs.is_empty() {
            legs.push(random.below(shape.legs.len() as u64) as usize);
        }
        let allow = random.one_in(4).then(|| random.below(60));
        Step::Run { legs, full: random.one_in(30), allow }
    }

    fn break_something(&mut self, shape: &Shape) -> Option<Step> {
        let Plan { random, breaks, .. } = self;
        let mut due = |one_in: u64| one_in > 0 && random.one_in(one_in);
        if due(breaks.tracker) {
            let all = [Step::KillTracker, Step::KillTracker, Step::StopTracker, Step::StartTracker];
            return random.of(&all).cloned();
        }
        if due(breaks.disks) {
            use DiskChange as C;
            let disk = random.below(shape.disks.len() as u64) as usize;
            let all = [
                C::Umount,
                C::LazyUmount,
                C::Mount,
                C::Mount,
                C::Vanish,
                C::Return,
                C::Return,
                C::Swap,
                C::Clone,
                C::ReadOnly,
                C::ReadWrite,
                C::Sync,
                C::Sync,
                C::Sync,
            ];
            return random.of(&all).map(|change| Step::Disk { disk, change: *change });
        }
        if due(breaks.power) {
            return random.of(&[Step::PowerCut, Step::Reboot]).cloned();
        }
        if due(breaks.databases) {
            let which = random.below(shape.legs.len() as u64 + 1) as usize;
            let all =
                [DatabaseChange::Lose, DatabaseChange::Save, DatabaseChange::Save, DatabaseChange::Restore];
            return random.of(&all).map(|change| Step::Database { which, change: *change });
        }
        if due(breaks.foreign) {
            let leg = random.below(shape.legs.len() as u64) as usize;
            if random.one_in(3) {
                return Some(Step::LateCompletions { leg });
            }
            let all = [ForeignChange::Put, ForeignChange::Remove, ForeignChange::Copy];
            let (change, path) = (*random.of(&all)?, users::name(random));
            return Some(Step::Foreign { leg, path, change });
        }
        if due(breaks.clock) {
            let s = [-7_200, -60, 60, 7_200, 300_000_000][random.below(5) as usize];
            return Some(Step::ClockJump { s });
        }
        if due(breaks.rules) {
            let root = random.below(shape.roots.len() as u64) as usize;
            let all: [&[&str]; 4] = [&[], &["*.tmp"], &["g"], &["d/"]];
            let exclude = random.of(&all)?.iter().map(|rule| (*rule).to_owned()).collect();
            return Some(Step::Rules { root, exclude, reload: random.below(4) > 0 });
        }
        due(breaks.state_disk).then(|| Step::StateDisk { full: random.one_in(2) })
    }
}
