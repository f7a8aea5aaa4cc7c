//! Worlds that failed once, shortened: each must go well now. And worlds that nobody has seen yet.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::path::Path;

use simulation::script::Script;
use simulation::world;

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
fn worlds_keep_what_was_promised() {
    let from: u64 = 0;
    let failed: Vec<String> = (from..from + 100)
        .filter_map(|seed| Some(format!("seed {seed}: {}", world::live(seed, false).violation?)))
        .collect();
    assert!(failed.is_empty(), "\n{}", failed.join("\n"));
}
