//! Who decides what happens within a step: chance, which writes down what it decided, or a script that was written down
//! so. Also the count of steps and the hash of the trace.

use std::collections::BTreeMap;

use xxhash_rust::xxh3::Xxh3;

use crate::fate::Fault;
use crate::faults::Faults;
use crate::random::Random;
use crate::script::{What, Within};

/// Decides and remembers; knows nothing of the world.
pub struct Chance {
    /// Of what happens within a line. What is written is not drawn, and so no number may be taken from here for anything else.
    random: Random,
    /// Of the numbers that follow from the line alone.
    picks: Random,
    faults: Faults,
    source: Source,
    /// What was decided within the line that runs.
    log: Vec<Within>,
    /// Passes in this line, and how often each fault was asked for.
    passes: u32,
    asked: BTreeMap<Fault, u32>,
    /// Of the whole world.
    steps: u64,
    trace: Xxh3,
    /// How often each fault struck, of the whole world.
    struck: BTreeMap<Fault, u64>,
    /// Nothing is decided for now.
    held: bool,
}

enum Source {
    Drawn,
    Written(Vec<Within>),
}

impl Chance {
    pub fn new(seed: u64) -> Chance {
        Chance {
            random: Random::new(seed),
            picks: Random::new(seed),
            faults: Faults::none(),
            source: Source::Drawn,
            log: Vec::new(),
            passes: 0,
            asked: BTreeMap::new(),
            steps: 0,
            trace: Xxh3::new(),
            struck: BTreeMap::new(),
            held: false,
        }
    }

    /// Begins a line. What happens within it is drawn with these faults, or as written.
    pub fn begin(&mut self, seed: u64, faults: Faults, written: Option<Vec<Within>>) {
        self.picks = Random::new(seed);
        self.random = self.picks.fork();
        self.faults = faults;
        self.source = written.map_or(Source::Drawn, Source::Written);
        self.passes = 0;
        self.asked.clear();
        self.log.clear();
        self.note("line", seed);
    }

    /// For as long as somebody looks at the world: nothing happens by chance.
    pub fn hold(&mut self, held: bool) {
        self.held = held;
    }

    /// What was decided within the line that ends.
    pub fn end(&mut self) -> Vec<Within> {
        self.faults = Faults::none();
        self.source = Source::Written(Vec::new());
        std::mem::take(&mut self.log)
    }

    /// A step of a program at which others may go on: what they do now. `draw` makes one up where chance wants one.
    pub fn pass(&mut self, draw: impl FnOnce(&mut Random) -> What) -> Vec<What> {
        if self.held {
            return Vec::new();
        }
        self.passes += 1;
        let at = self.passes;
        let due: Vec<What> = match &self.source {
            Source::Written(list) => {
                let is_due = |w: &&Within| w.at == at && !matches!(w.what, What::Fault(_));
                list.iter().filter(is_due).map(|w| w.what.clone()).collect()
            }
            Source::Drawn if self.faults.between().is_some_and(|n| self.random.one_in(n)) => {
                vec![draw(&mut self.random)]
            }
            Source::Drawn => Vec::new(),
        };
        self.log.extend(due.iter().map(|what| Within { at, what: what.clone() }));
        due
    }

    /// Whether a fault strikes at this question for it.
    pub fn strikes(&mut self, fault: Fault) -> bool {
        if self.held {
            return false;
        }
        let asked = self.asked.entry(fault).or_default();
        *asked += 1;
        let at = *asked;
        let strikes = match &self.source {
            Source::Written(list) => list.iter().any(|w| w.at == at && w.what == What::Fault(fault)),
            Source::Drawn => self.draws(fault),
        };
        if strikes {
            *self.struck.entry(fault).or_default() += 1;
            self.log.push(Within { at, what: What::Fault(fault) });
            self.note("fault", fault as u64);
        }
        strikes
    }

    fn draws(&mut self, fault: Fault) -> bool {
        let one_in = self.faults.one_in(fault);
        one_in > 0 && self.random.one_in(u64::from(one_in))
    }

    /// A number below `n` that follows from the line alone.
    pub fn pick(&mut self, n: u64) -> u64 {
        self.picks.below(n)
    }

    pub fn steps(&self) -> u64 {
        self.steps
    }

    pub fn struck(&self) -> &BTreeMap<Fault, u64> {
        &self.struck
    }

    /// A step that is no pass.
    pub fn step(&mut self) {
        self.steps += 1;
    }

    /// What happened becomes part of the trace: two runs of one world are the same if their hashes are.
    pub fn note(&mut self, what: &str, value: u64) {
        self.trace.update(what.as_bytes());
        self.trace.update(&value.to_le_bytes());
    }

    pub fn trace(&self) -> u64 {
        self.trace.digest()
    }
}
