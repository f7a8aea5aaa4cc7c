//! A world goes the same way again: from its seed, and from what was written down of it.

use simulation::world::{self, Lived};

const SEEDS: std::ops::Range<u64> = 0..10;

#[derive(Debug, PartialEq)]
struct Gone {
    violation: Option<String>,
    steps: u64,
    trace: u64,
}

fn gone(lived: &Lived) -> Gone {
    let violation = lived.violation.as_ref().map(ToString::to_string);
    Gone { violation, steps: lived.steps, trace: lived.trace }
}

#[test]
fn a_seed_goes_the_same_way_again() {
    for seed in SEEDS {
        let first = gone(&world::live(seed, false));
        assert_eq!(gone(&world::live(seed, false)), first, "seed {seed}");
    }
}

#[test]
fn a_script_goes_the_way_of_the_world_that_it_was_written_of() {
    for seed in SEEDS {
        let lived = world::live(seed, false);
        let again = world::replay(&lived.script, false);
        assert_eq!(gone(&again), gone(&lived), "seed {seed}");
        assert_eq!(again.script, lived.script, "seed {seed}");
    }
}
