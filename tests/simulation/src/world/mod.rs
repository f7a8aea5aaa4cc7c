//! One world, from its beginning to its end: drawn from a seed, or played again from a script.

mod breaks;
mod end;
mod legs;
mod settings;

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Once};

use shared::config::Config;
use tempfile::TempDir;

use crate::database::{self, Attached};
use crate::disks::Disks;
use crate::faults::Faults;
use crate::hand::Shared;
use crate::oracle::{Invariant, Violation};
use crate::plan::Plan;
use crate::random::Random;
use crate::script::{Line, Script, Step, Within};
use crate::seat::Tracker;
use crate::shape::Shape;
use crate::store::lock;
use crate::users;
use legs::Leg;

/// What became of a world.
pub struct Lived {
    pub script: Script,
    pub violation: Option<Violation>,
    pub steps: u64,
    pub trace: u64,
    /// How often each fault struck.
    pub faults: BTreeMap<String, u64>,
    /// What was met of what the programs can decide.
    pub met: BTreeMap<String, u64>,
}

/// A wait in which requests that were cut off cannot come true any more.
const LONG_MS: u64 = 1_000_000;

pub struct World {
    shared: Arc<Shared>,
    disks: Disks,
    /// What the programs go by now, and the one that the tracker began with.
    config: Config,
    in_force: Config,
    legs: Vec<Leg>,
    /// Copies of databases that were put aside, by their file's name.
    saved: BTreeMap<String, Vec<u8>>,
    /// Somebody else changed the databases or the destinations since they were last compared with everything.
    compare_all: bool,
    met: BTreeMap<String, u64>,
    says: bool,
    // Last: they go after what uses them.
    _attached: Attached,
    _dir: TempDir,
}

/// Draws a world from a seed and lives it; with `says`, prints what happens.
pub fn live(seed: u64, says: bool) -> Lived {
    let mut random = Random::new(seed);
    let shape = Shape::drawn(&mut random);
    let beginning = users::beginning(&shape, &mut random);
    let mut plan = Plan::drawn(&mut random);
    let mut first: VecDeque<Line> = beginning
        .into_iter()
        .map(|op| Line { seed: 0, step: Step::Do { op }, within: Vec::new() })
        .chain([Line { seed: 0, step: Step::StartTracker, within: Vec::new() }])
        .collect();
    let mut left = plan.lines;
    let mut draw = |world: &World| {
        if let Some(line) = first.pop_front() {
            return Some((line, Faults::none()));
        }
        left = left.checked_sub(1)?;
        Some((plan.next(&world.shared.shape, world.tracker_runs()), plan.faults))
    };
    go_through(seed, shape, says, &mut |world| draw(world).map(|(line, faults)| (line, faults, None)))
}

/// Plays a world again.
pub fn replay(script: &Script, says: bool) -> Lived {
    let mut lines = script.lines.iter();
    go_through(0, script.shape.clone(), says, &mut |_| {
        let line = lines.next()?.clone();
        let within = line.within.clone();
        Some((line, Faults::none(), Some(within)))
    })
}

type Next<'a> = dyn FnMut(&World) -> Option<(Line, Faults, Option<Vec<Within>>)> + 'a;

fn go_through(seed: u64, shape: Shape, says: bool, next: &mut Next<'_>) -> Lived {
    let mut world = World::new(shape.clone(), seed, says);
    let mut lines = Vec::new();
    let mut violation = None;
    while violation.is_none()
        && let Some((mut line, faults, written)) = next(&world)
    {
        world.shared.chance().begin(line.seed, faults, written);
        violation = caught(|| world.step(&line.step)).err();
        line.within = world.shared.chance().end();
        lines.push(line);
    }
    if violation.is_none() {
        world.shared.chance().begin(0, Faults::none(), None);
        violation = caught(|| world.end()).err();
    }
    world.close();
    let chance = world.shared.chance();
    let faults = chance.struck().iter().map(|(fault, count)| (fault.to_string(), *count)).collect();
    let (steps, trace) = (chance.steps(), chance.trace());
    drop(chance);
    let met = std::mem::take(&mut world.met);
    Lived { script: Script { shape, lines }, violation, steps, trace, faults, met }
}

thread_local! {
    /// What a panic said, and where, until somebody asks.
    static PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Panics in worlds are told as violations; those elsewhere are printed as always.
fn listen_to_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if database::is_attached() {
                PANIC.set(Some(info.to_string()));
            } else {
                before(info);
            }
        }));
    });
}

/// A panic of a program is a violation, too.
fn caught(work: impl FnOnce() -> Result<(), Violation>) -> Result<(), Violation> {
    listen_to_panics();
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)) {
        Ok(done) => done,
        Err(_) => {
            let text = PANIC.take().unwrap_or_else(|| "a panic without words".to_owned());
            Err(Violation::new(Invariant::NoPanic, text))
        }
    }
}

impl World {
    fn new(shape: Shape, seed: u64, says: bool) -> World {
        let dir = database::scratch();
        let attached = database::attach(dir.path());
        let (disks, machine) = settings::machine(&shape);
        let config = settings::config(&shape, dir.path(), &machine);
        let legs = (0..shape.legs.len()).map(|at| Leg::new(&shape, at, &config)).collect();
        let shared = Shared::new(shape, machine, seed);
        database::ask(shared.database_hook());
        World {
            shared,
            disks,
            in_force: config.clone(),
            config,
            legs,
            saved: BTreeMap::new(),
            compare_all: false,
            met: BTreeMap::new(),
            says,
            _attached: attached,
            _dir: dir,
        }
    }

    fn tracker_runs(&self) -> bool {
        lock(&self.shared.tracker).is_some()
    }

    fn step(&mut self, step: &Step) -> Result<(), Violation> {
        self.shared.chance().step();
        self.say(|| format!("{step:?}"));
        match step {
            Step::Do { op } => self.shared.carry_out(op),
            Step::Turns { count } => self.with_tracker(|tracker| {
                (0..*count).for_each(|_| _ = tracker.turn_all());
            }),
            Step::Wait { ms } => self.wait(*ms),
            Step::Run { legs, full, allow } => self.run(legs, *full, *allow)?,
            Step::StartTracker => self.start_tracker()?,
            Step::StopTracker => {
                if let Some(tracker) = self.take_tracker() {
                    tracker.stop();
                }
            }
            Step::KillTracker => {
                if let Some(tracker) = self.take_tracker() {
                    tracker.kill();
                }
            }
            Step::Check => self.check()?,
            _ => self.break_something(step)?,
        }
        self.come_up_again()?;
        self.legs.iter().find_map(Leg::violation).map_or(Ok(()), Err)
    }

    fn take_tracker(&mut self) -> Option<Tracker> {
        lock(&self.shared.tracker).take()
    }

    fn with_tracker(&self, work: impl FnOnce(&mut Tracker)) {
        let mut tracker = lock(&self.shared.tracker);
        if let Some(tracker) = tracker.as_mut() {
            work(tracker);
        }
        tracker.take_if(|tracker| tracker.is_dead());
    }

    /// Time goes by; the tracker does what is due meanwhile.
    fn wait(&mut self, ms: u64) {
        if ms >= LONG_MS {
            // Whatever was cut off comes true within an hour, or never.
            (0..self.legs.len()).for_each(|leg| self.end_late(leg));
        }
        let until_ns = self.shared.machine().boot_ns + ms as i64 * 1_000_000;
        self.with_tracker(|tracker| {
            tracker.settle();
            // What is due often does not happen a million times in a long wait.
            for _ in 0..40 {
                if tracker.is_dead() || !tracker.wait_for_next(until_ns) {
                    break;
                }
                tracker.settle();
            }
        });
        self.shared.machine().wait_until(until_ns);
    }

    fn start_tracker(&mut self) -> Result<(), Violation> {
        if self.tracker_runs() || self.shared.is_down() {
            return Ok(());
        }
        self.in_force = self.config.clone();
        match Tracker::start(&self.shared, &self.config) {
            Ok(Ok(tracker)) => *lock(&self.shared.tracker) = Some(tracker),
            Ok(Err(e)) => {
                self.say(|| format!("the tracker does not start: {e}"));
                self.meet("tracker does not start", &e.exit());
            }
            Err(_) => {}
        }
        Ok(())
    }

    /// After a power cut the machine boots, and starts what it always starts.
    fn come_up_again(&mut self) -> Result<(), Violation> {
        if !self.shared.is_down() {
            return Ok(());
        }
        drop(self.take_tracker());
        self.shared.lose_power(&mut self.disks);
        self.start_tracker()
    }

    /// Everything that uses the databases goes before their disk does.
    fn close(&mut self) {
        if let Some(tracker) = self.take_tracker() {
            tracker.kill();
        }
        self.legs.iter_mut().for_each(Leg::close);
    }

    fn meet(&mut self, what: &str, which: &impl std::fmt::Debug) {
        *self.met.entry(format!("{what}: {which:?}")).or_default() += 1;
    }

    fn say(&self, what: impl FnOnce() -> String) {
        if self.says {
            let ns = self.shared.machine().boot_ns;
            println!("{:>12}.{:03} {}", ns / 1_000_000_000, ns / 1_000_000 % 1_000, what());
        }
    }
}
