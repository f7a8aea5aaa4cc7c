//! Worlds that failed once, shortened: each must go well now. And a first 500 worlds, as they are drawn.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::path::Path;

use simulation::campaign::{self, Budget};
use simulation::script::Script;
use simulation::world;

/// Worlds that show what is not mended yet. An entry goes with what mends it.
/// 159, 205: two names of one file that a run sent one after the other, because they became one in between, stay two files
/// at a `dir` leg: nothing compares their objects with each other.
const OPEN: [u64; 2] = [159, 205];

#[test]
fn what_went_wrong_once_goes_well() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
    let mut count = 0;
    for file in std::fs::read_dir(dir).unwrap().map(Result::unwrap) {
        let script = Script::parse(&std::fs::read_to_string(file.path()).unwrap()).unwrap();
        let lived = world::replay(&script, false);
        assert!(lived.violation.is_none(), "{}: {}", file.path().display(), lived.violation.unwrap());
        count += 1;
    }
    assert!(count > 0);
}

#[test]
fn five_hundred_worlds_keep_what_is_promised() {
    let budget = Budget { seeds: 0..500, until: None, stop_at_first: false, trace: false, jobs: 2 };
    let summary = campaign::run(&budget, |_| {});
    assert_eq!(summary.worlds, 500);
    assert!(summary.steps > 200 * summary.worlds, "{} steps", summary.steps);
    let failed = summary.failures.iter().filter(|failure| !OPEN.contains(&failure.seed));
    let failed: Vec<String> =
        failed.map(|f| format!("seed {}: {}: {}", f.seed, f.invariant, f.message)).collect();
    assert!(failed.is_empty(), "\n{}", failed.join("\n"));
}
