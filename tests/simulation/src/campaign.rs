//! Many worlds, on several threads; each world has a thread of its own for as long as it lasts.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use serde::Serialize;

use crate::oracle::Invariant;
use crate::shrink;
use crate::store::lock;
use crate::world::{self, Lived};

/// Scripts tried to make one shorter.
const SHRINK_TRIES: usize = 2_000;

/// How much is to be done.
pub struct Budget {
    pub seeds: Range<u64>,
    /// Goes on behind the seeds until then.
    pub until: Option<Instant>,
    pub stop_at_first: bool,
    pub trace: bool,
    pub jobs: usize,
}

/// A world that failed.
#[derive(Debug, Clone, Serialize)]
pub struct Failure {
    pub seed: u64,
    pub invariant: Invariant,
    pub message: String,
}

#[derive(Debug, Default, Serialize)]
pub struct Summary {
    pub worlds: u64,
    pub steps: u64,
    /// Of processor time, on one core.
    pub steps_per_second: u64,
    pub failures: Vec<Failure>,
    /// How often each fault struck.
    pub faults: BTreeMap<String, u64>,
    /// What was met of what the programs can decide, and how often.
    pub met: BTreeMap<String, u64>,
}

/// Runs worlds until the budget is used up.
pub fn run(budget: &Budget, at_failure: impl Fn(&Failure) + Sync) -> Summary {
    let next = AtomicU64::new(budget.seeds.start);
    let enough = AtomicBool::new(false);
    let summary = Mutex::new((Summary::default(), 0.0));
    let work = || {
        while !enough.load(Ordering::Relaxed) {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            let in_time = budget.until.map_or(seed < budget.seeds.end, |until| Instant::now() < until);
            if !in_time {
                break;
            }
            let begun = Instant::now();
            let lived = world::live(seed, budget.trace);
            let seconds = begun.elapsed().as_secs_f64();
            let failure = lived.violation.as_ref().map(|violation| Failure {
                seed,
                invariant: violation.invariant,
                message: violation.message.clone(),
            });
            failure.iter().for_each(&at_failure);
            enough.fetch_or(budget.stop_at_first && failure.is_some(), Ordering::Relaxed);
            let mut summary = lock(&summary);
            summary.1 += seconds;
            summary.0.add(&lived, failure);
        }
    };
    std::thread::scope(|scope| {
        (0..budget.jobs).for_each(|_| drop(scope.spawn(work)));
    });
    let (mut summary, seconds) = summary.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    summary.failures.sort_by_key(|failure| failure.seed);
    summary.steps_per_second = (summary.steps as f64 / f64::max(seconds, 1e-9)) as u64;
    summary
}

/// The script of a world that failed, as short as it could be made, with a word for people.
pub fn shortened(failure: &Failure) -> String {
    let lived = world::live(failure.seed, false);
    let (whole, sort) = (lived.script, lived.violation.map(|violation| violation.sort()));
    let fails = |script: &_| world::replay(script, false).violation.map(|violation| violation.sort()) == sort;
    let script = if fails(&whole) { shrink::shrink(&whole, SHRINK_TRIES, fails) } else { whole };
    let message = failure.message.replace('\n', "\n# ");
    format!("# {}: {message}\n# Found by the seed {}.\n{}", failure.invariant, failure.seed, script.to_text())
}

impl Summary {
    fn add(&mut self, lived: &Lived, failure: Option<Failure>) {
        self.worlds += 1;
        self.steps += lived.steps;
        self.failures.extend(failure);
        for (name, count) in &lived.faults {
            *self.faults.entry(name.clone()).or_default() += count;
        }
        for (name, count) in &lived.met {
            *self.met.entry(name.clone()).or_default() += count;
        }
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut out = format!(
            "{} worlds, {} steps, {} steps a second on one core, {} failed",
            self.worlds,
            self.steps,
            self.steps_per_second,
            self.failures.len()
        );
        let mut table = |head: &str, counts: &BTreeMap<String, u64>| {
            let _ = write!(out, "\n{head}:");
            for (name, count) in counts {
                let _ = write!(out, "\n  {count:>10}  {name}");
            }
        };
        table("faults that struck", &self.faults);
        table("met", &self.met);
        out
    }
}
