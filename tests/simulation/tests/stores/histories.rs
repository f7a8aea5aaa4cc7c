//! Long histories by chance, played to a simulated store and to the real one: every answer, and all that is left in
//! the end, must be equal.

use shared::path::RelPath;
use simulation::random::Random;
use syncer::leg::What;
use syncer::tree::Kind;

use crate::subject::{MTIME_NS, Manner, Subject, buckets, directories, of, p, small, streamed};

const PATHS: [&str; 10] = ["a", "b", "a-b", "d", "d/x", "d/y", "d/e", "d/e/z", "d-e", "b/q"];
const KINDS: [Kind; 4] = [Kind::File, Kind::Dir, Kind::Symlink, Kind::Fifo];

/// One step, the same for the same numbers.
fn step(subject: &mut Subject, random: &mut Random, number: i64) -> String {
    let path = *random.of(&PATHS).unwrap();
    let kind = *random.of(&KINDS).unwrap();
    // Each version has a time of its own, so that a used inode number never makes two versions look like one.
    let time = MTIME_NS + number * 1_000_000;
    let content = [number as u8 + 1; 5];
    match random.below(16) {
        0..4 => subject.put(small(path, &content, time)),
        4 => {
            let manner = *random.of(&[Manner::Still, Manner::Moves, Manner::Shrinks]).unwrap();
            subject.put(streamed(path, &content, time, manner))
        }
        5..8 => subject.put(of(path, Kind::Dir, time, What::Dir)),
        8 => subject.put(of(path, Kind::Symlink, time, What::Symlink { target: content.to_vec() })),
        9 => subject.put(of(path, Kind::Fifo, time, What::Special)),
        10 => {
            let to = p(random.of(&PATHS).unwrap());
            subject.put(of(path, Kind::File, time, What::HardLink { to }))
        }
        11 => subject.put(of(path, kind, time, What::Attributes)),
        12 | 13 => subject.remove(path, kind),
        14 => subject.newest(&p(path)),
        _ if random.one_in(4) => {
            subject.next_run();
            "another run".into()
        }
        _ => subject.list(if random.one_in(2) { "" } else { path }),
    }
}

fn play([mut simulated, mut real]: [Subject; 2], seed: u64, steps: i64) {
    let (mut ours, mut theirs) = (Random::new(seed), Random::new(seed));
    let mut story = String::new();
    for number in 0..steps {
        let (one, other) = (step(&mut simulated, &mut ours, number), step(&mut real, &mut theirs, number));
        assert_eq!(one, other, "at step {number} of seed {seed}, after:\n{story}");
        story += &format!("{number}: {one}\n");
    }
    assert_eq!(simulated.newest(&RelPath::root()), real.newest(&RelPath::root()));
    assert_eq!(simulated.remains(), real.remains(), "seed {seed}, after:\n{story}");
    assert_eq!(simulated.store.calls(), real.store.calls(), "seed {seed}");
}

#[test]
fn a_simulated_directory_lives_through_any_history_as_a_real_one() {
    (0..40).for_each(|seed| play(directories(), seed, 120));
}

#[test]
fn a_simulated_bucket_lives_through_any_history_as_a_real_one() {
    (0..12).for_each(|seed| play(buckets(if seed % 2 == 0 { "" } else { "m/n" }), seed, 100));
}
