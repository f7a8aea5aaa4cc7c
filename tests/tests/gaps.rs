//! Gaps that bring much: tonight's changes come first, whatever is owed.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use b2_emulator::calls::Call;
use shared::clock::{Clock, SystemClock};
use shared::entry::{Mask, Scope};
use shared::exit::Exit;
use shared::journal::{Class, Journal};
use shared::limits;
use tests::b2_leg::b2_world;
use tests::dir_leg::{same, world};
use tests::played::{Bent, PlayedTracker};
use tests::world::{MADE, note};

fn plant(top: &Path, files: usize) {
    for n in 0..files {
        let dir = top.join(format!("d{}", n / 1_000));
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join(n.to_string()), "").unwrap();
    }
}

#[test]
fn a_gap_that_brings_too_much_is_acked_and_its_rest_comes_after_newer_changes() {
    let mut world = world();
    world.run("copy");
    plant(&world.source(), limits::GAP_PLAN_PATHS + 1_000);
    // The last in the order of keys: the gap before it must not hold it up.
    fs::write(world.source().join("zz-tonight"), "tonight").unwrap();
    world.saw("zz-tonight", Scope::SelfOnly, MADE);
    world.saw_gap();
    let (journal, copy) = (world.config.journal_path(), world.path("copy"));
    let count = move |path: &Path| fs::read_dir(path).unwrap().count();
    let seen = Arc::new(AtomicBool::new(false));
    let looked = seen.clone();
    let report = world.run_as("copy", |parts| {
        // The first reading of the clock with something owed is when that begins to be worked off.
        parts.clock = Arc::new(AtDue(Box::new(move || {
            let journal = Journal::open(&journal).unwrap();
            let owed = journal.deferred("copy", 10).unwrap();
            if let [rest] = &owed[..]
                && !looked.swap(true, Ordering::Relaxed)
            {
                assert_eq!((rest.class, rest.key.scope, rest.attempts), (Class::Gap, Scope::Subtree, 0));
                assert_eq!(journal.leg("copy").unwrap().unwrap().acked, journal.head_and_floor().unwrap().0);
                assert!(copy.join("zz-tonight").exists());
                assert!(count(&copy.join("d0")) == 1_000 && !copy.join("d9").exists());
            }
        })));
    });
    assert_eq!((report.exit, report.files_sent), (Exit::Ok, 11_001), "{}", report.text());
    assert_eq!(report.deferred, 0);
    assert!(seen.load(Ordering::Relaxed));
    same(&world);
}

/// Looks at what is owed each time when what is due begins.
struct AtDue(Box<dyn Fn() + Send + Sync>);

impl Clock for AtDue {
    fn wall_ns(&self) -> i64 {
        SystemClock.wall_ns()
    }

    fn boot_ns(&self) -> i64 {
        (self.0)();
        SystemClock.boot_ns()
    }
}

/// The first batch of what is due takes more than half of its time, and so does the second; later ones take little.
struct Hasty(AtomicI64);

impl Clock for Hasty {
    fn wall_ns(&self) -> i64 {
        SystemClock.wall_ns()
    }

    fn boot_ns(&self) -> i64 {
        let calls = self.0.fetch_add(1, Ordering::Relaxed);
        limits::DUE_TIME.as_nanos() as i64 / 20 * (12 * calls.min(2) + calls)
    }
}

#[test]
fn what_is_owed_is_left_in_time_for_new_changes_and_lists_the_destination_once() {
    let b = b2_world();
    let files = limits::BATCH_PATHS + 500;
    plant(&b.world.source(), files);
    let (journal, source, root) = (b.world.config.journal_path(), b.world.source(), b.world.root);
    let sent_before_tonight = Arc::new(AtomicI64::new(-1));
    let report = b.world.run_as("b2", |parts| {
        parts.clock = Arc::new(Hasty(AtomicI64::new(0)));
        // What one round has sent is the same for the next.
        Bent::ahead().over(parts);
        let (progress, sent) = (parts.progress.clone(), sent_before_tonight.clone());
        parts.tracker = Box::new(PlayedTracker::at_flush(move |round| {
            let mut journal = Journal::open(&journal).unwrap();
            let owed = journal.deferred("b2", 10).unwrap();
            match round {
                1 => {}
                2 => {
                    assert_eq!(
                        owed.iter().map(|d| (d.class, d.key.scope)).collect::<Vec<_>>(),
                        [(Class::Gap, Scope::Subtree)]
                    );
                    sent.store(progress.files.load(Ordering::Relaxed) as i64, Ordering::Relaxed);
                    fs::write(source.join("zz-tonight"), "tonight").unwrap();
                    note(&mut journal, root, "zz-tonight", Scope::SelfOnly, MADE);
                }
                _ => assert!(journal.leg("b2").unwrap().unwrap().acked > 0),
            }
        }));
    });
    assert_eq!(report.exit, Exit::Ok, "{}", report.text());
    let before = sent_before_tonight.load(Ordering::Relaxed);
    assert!(0 < before && before < files as i64, "{before}");
    assert_eq!(report.files_sent, files as u64 + 1, "{}", report.text());
    // A page holds 1,000 objects; the bucket was empty.
    assert_eq!(b.b2.counters().calls(Call::ListFileNames), 1);
}

#[test]
fn what_is_owed_by_handle_stays_owed_when_the_time_for_it_is_over() {
    let mut world = world();
    let top = world.source();
    fs::write(top.join("f"), "old").unwrap();
    world.run("copy");
    fs::write(top.join("f"), "changed through a name that nobody saw").unwrap();
    world.saw_by_handle("f", Mask::MODIFY);
    world.collapse("copy");
    // Newer, and more than one batch.
    plant(&top.join("d"), limits::BATCH_PATHS + 500);
    world.saw("d", Scope::Subtree, MADE);
    world.collapse("copy");
    let (journal, seen) = (world.config.journal_path(), Arc::new(AtomicBool::new(false)));
    let looked = seen.clone();
    let report = world.run_as("copy", |parts| {
        parts.clock = Arc::new(Hasty(AtomicI64::new(0)));
        parts.tracker = Box::new(PlayedTracker::at_flush(move |round| {
            let owed = Journal::open(&journal).unwrap().deferred("copy", 10).unwrap();
            if round == 2 {
                let scopes: Vec<Scope> = owed.iter().map(|d| d.key.scope).collect();
                assert_eq!(scopes, [Scope::Subtree, Scope::Handle], "{owed:?}");
                looked.store(true, Ordering::Relaxed);
            }
        }));
    });
    assert_eq!((report.exit, report.deferred), (Exit::Ok, 0), "{}", report.text());
    assert!(seen.load(Ordering::Relaxed));
    same(&world);
}

#[test]
fn lists_of_names_beside_events_of_what_is_new_in_them_leave_nothing_out() {
    let mut world = world();
    let top = world.source();
    fs::create_dir_all(top.join("photos/2024/deep")).unwrap();
    for n in 0..5 {
        fs::write(top.join(format!("photos/2024/{n}")), "x").unwrap();
    }
    fs::write(top.join("photos/2024/deep/f"), "x").unwrap();
    world.run("copy");
    fs::rename(top.join("photos/2024"), top.join("photos/moved")).unwrap();
    fs::write(top.join("photos/moved/0"), "other").unwrap();
    for (path, scope) in [
        ("photos/2024", Scope::Subtree),
        ("photos/moved", Scope::Subtree),
        ("photos/moved/0", Scope::SelfOnly),
        ("photos", Scope::Names),
        ("photos/moved", Scope::Names),
        ("photos/moved/0", Scope::SelfOnly),
    ] {
        world.saw(path, scope, MADE);
    }
    let report = world.run_as("copy", |parts| parts.wish.allow_deletes = Some(20));
    assert_eq!(report.exit, Exit::Ok, "{}", report.text());
    same(&world);
}

#[test]
fn a_directory_that_a_torn_list_of_names_lacks_is_compared_with_all_below_it() {
    let mut world = world();
    let top = world.source();
    fs::create_dir_all(top.join("d/sub/kept")).unwrap();
    for name in ["d/sub/changed", "d/sub/gone", "d/sub/kept/same", "d/suburb"] {
        fs::write(top.join(name), "old").unwrap();
    }
    world.run("copy");
    fs::write(top.join("d/sub/changed"), "changed").unwrap();
    fs::remove_file(top.join("d/sub/gone")).unwrap();
    fs::create_dir(top.join("d/sub/new")).unwrap();
    fs::write(top.join("d/sub/new/file"), "nobody told of it").unwrap();
    world.saw_gap();
    let report = world.run_as("copy", |parts| Bent { unlisted: Some("d/sub"), ..Bent::ahead() }.over(parts));
    assert_eq!((report.exit, report.deferred, report.removed), (Exit::Ok, 0, 1), "{}", report.text());
    same(&world);
}

#[test]
fn a_directory_that_a_torn_list_lacks_and_that_cannot_be_looked_at_is_owed_with_all_below_it() {
    let mut world = world();
    let top = world.source();
    fs::create_dir_all(top.join("d/sub")).unwrap();
    fs::write(top.join("d/sub/same"), "old").unwrap();
    world.run("copy");
    fs::write(top.join("d/sub/new"), "nobody told of it").unwrap();
    world.saw_gap();
    let bent = Bent { unlisted: Some("d/sub"), unknown: Some("d/sub"), ..Bent::ahead() };
    let report = world.run_as("copy", |parts| bent.over(parts));
    assert_eq!((report.exit, report.deferred), (Exit::Partial, 1), "{}", report.text());
    world.journal.wake_deferred("copy", Class::Unknown).unwrap();
    let report = world.run("copy");
    assert_eq!((report.exit, report.deferred), (Exit::Ok, 0), "{}", report.text());
    same(&world);
}
