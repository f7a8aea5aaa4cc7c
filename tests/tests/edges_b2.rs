//! Runs of a `b2` leg at the edges: requests that come true late, names that B2 does not take as they are, objects of
//! others, another bucket, and a run that goes on.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use b2_emulator::calls::Call;
use b2_emulator::faults::{Fault, FaultKind};
use shared::clock::{Clock, SystemClock};
use shared::entry::{Mask, Scope};
use shared::exit::Exit;
use shared::journal::Journal;
use shared::limits;
use syncer::run::Parts;
use tests::b2_leg::{B2World, BUCKET, b2_world, fill, leg, leg_on};
use tests::played::CutOff;
use tests::world::{MADE, ROOT, WRITTEN, World, note};

/// A mirrored world with these files.
fn mirrored(files: &[&str]) -> B2World {
    let w = b2_world();
    for file in files {
        let path = w.world.source().join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "old").unwrap();
    }
    let report = w.world.run("b2");
    assert_eq!(report.exit, Exit::Ok, "{}", report.text());
    w
}

#[test]
fn an_upload_that_comes_true_late_does_not_win_over_a_newer_one() {
    let mut w = mirrored(&["keep"]);
    let file = w.world.source().join("file");
    fs::write(&file, "first").unwrap();
    w.world.saw("file", Scope::SelfOnly, MADE);
    w.b2.inject(Fault { times: 20, ..Fault::next(Call::UploadFile, FaultKind::LateCompletion) });
    assert_ne!(w.world.run("b2").exit, Exit::Ok);
    w.b2.clear_faults();
    fs::write(&file, "second, newer").unwrap();
    w.world.saw("file", Scope::SelfOnly, WRITTEN);
    let report = w.world.run("b2");
    assert_eq!(report.exit, Exit::Ok, "{}", report.text());
    assert_eq!(w.content("file").unwrap(), "second, newer");
    assert!(w.b2.complete_late() > 0);
    assert_eq!(w.content("file").unwrap(), "first");
    let report = w.world.run("b2");
    assert_eq!((report.exit, report.files_sent), (Exit::Ok, 1), "{}", report.text());
    w.assert_mirrored();
}

/// Takes a file out of the root, as it is.
fn take_away(world: &mut World, file: &str) {
    fs::rename(world.source().join(file), world.path("away")).unwrap();
    world.saw(file, Scope::SelfOnly, Mask::RENAME);
}

/// Puts it back, the same in content and time.
fn bring_back(world: &mut World, file: &str) {
    fs::rename(world.path("away"), world.source().join(file)).unwrap();
    world.saw(file, Scope::SelfOnly, Mask::RENAME);
}

#[test]
fn a_file_that_comes_back_after_a_removal_without_an_answer_is_sent_again() {
    let mut w = mirrored(&["file", "keep"]);
    take_away(&mut w.world, "file");
    w.b2.inject(Fault::next(Call::HideFile, FaultKind::DropAfterEffect));
    let report = w.world.run("b2");
    assert_eq!((report.exit, report.removed), (Exit::Partial, 0), "{}", report.text());
    assert_eq!(w.content("file"), None);
    bring_back(&mut w.world, "file");
    let report = w.world.run("b2");
    assert_eq!((report.exit, report.files_sent), (Exit::Ok, 1), "{}", report.text());
    w.assert_mirrored();
}

#[test]
fn a_file_that_comes_back_after_a_run_was_killed_in_its_removal_is_sent_again() {
    let mut w = mirrored(&["file", "keep"]);
    take_away(&mut w.world, "file");
    assert_eq!(w.world.run_as("b2", CutOff::over).exit, Exit::Failed);
    assert_eq!(w.content("file"), None);
    bring_back(&mut w.world, "file");
    let report = w.world.run("b2");
    assert_eq!((report.exit, report.files_sent), (Exit::Ok, 1), "{}", report.text());
    w.assert_mirrored();
}

#[test]
fn a_removal_that_comes_true_late_does_not_win_over_a_newer_file() {
    let mut w = mirrored(&["file", "keep"]);
    take_away(&mut w.world, "file");
    w.b2.inject(Fault::next(Call::HideFile, FaultKind::LateCompletion));
    assert_eq!(w.world.run("b2").removed, 0);
    bring_back(&mut w.world, "file");
    fs::write(w.world.source().join("file"), "newer").unwrap();
    let report = w.world.run("b2");
    assert_eq!((report.exit, report.files_sent), (Exit::Ok, 1), "{}", report.text());
    assert_eq!((w.b2.complete_late(), w.content("file")), (1, None));
    let report = w.world.run("b2");
    assert_eq!((report.exit, report.files_sent), (Exit::Ok, 1), "{}", report.text());
    w.assert_mirrored();
}

/// Tells a time so much later.
struct Leaps(Arc<AtomicI64>);

impl Clock for Leaps {
    fn wall_ns(&self) -> i64 {
        SystemClock.wall_ns() + self.0.load(Ordering::Relaxed)
    }

    fn boot_ns(&self) -> i64 {
        SystemClock.boot_ns() + self.0.load(Ordering::Relaxed)
    }
}

#[test]
fn a_run_that_goes_on_asks_once_an_hour_what_came_of_a_request_without_an_answer() {
    let w = mirrored(&["file", "keep"]);
    let (file, away, root) = (w.world.source().join("file"), w.world.path("away"), w.world.root);
    let mut journal = Journal::open(&w.world.config.journal_path()).unwrap();
    let mut saw = |path: &str, mask: Mask| note(&mut journal, root, path, Scope::SelfOnly, mask);
    let leap = Arc::new(AtomicI64::new(0));
    let clock = Arc::new(Leaps(leap.clone()));
    let listed = || w.b2.counters().calls(Call::ListFileNames);
    let (mut rests, mut asked) = (0, 0);
    let change = |parts: &mut Parts| parts.clock = clock;
    w.world.watch_as("b2", change, |report, _| {
        rests += 1;
        match rests {
            1 => {
                fs::rename(&file, &away).unwrap();
                saw("file", Mask::RENAME);
                w.b2.inject(Fault::next(Call::HideFile, FaultKind::LateCompletion));
            }
            2 => {
                assert_eq!(report.removed, 0, "{}", report.text());
                fs::write(&file, "newer").unwrap();
                saw("file", MADE);
                asked = listed();
            }
            3 => {
                assert_eq!((report.files_sent, listed()), (1, asked + 1), "{}", report.text());
                assert_eq!((w.b2.complete_late(), w.content("file")), (1, None));
                leap.store(limits::INTENT_GRACE.as_nanos() as i64, Ordering::Relaxed);
            }
            4 => assert_eq!((report.files_sent, listed()), (1, asked + 2), "{}", report.text()),
            _ => assert_eq!((report.files_sent, listed()), (0, asked + 2), "{}", report.text()),
        }
        rests < 5
    });
    w.assert_mirrored();
}

#[test]
fn a_removal_without_an_answer_or_effect_is_made_again_and_one_with_an_answer_asks_for_nothing_later() {
    let mut w = mirrored(&["file", "keep"]);
    take_away(&mut w.world, "file");
    w.b2.inject(Fault::next(Call::HideFile, FaultKind::LateCompletion));
    assert_eq!(w.world.run("b2").removed, 0);
    assert_eq!(w.content("file").unwrap(), "old");
    let report = w.world.run("b2");
    assert_eq!((report.exit, report.removed), (Exit::Ok, 1), "{}", report.text());
    w.assert_mirrored();
    let mut w = mirrored(&["file", "keep"]);
    take_away(&mut w.world, "file");
    assert_eq!(w.world.run("b2").removed, 1);
    let listed = |w: &B2World| w.b2.counters().calls(Call::ListFileNames);
    let before = listed(&w);
    assert_eq!(w.world.run("b2").exit, Exit::Ok);
    assert_eq!(listed(&w), before);
}

#[test]
fn a_file_under_a_name_of_our_own_is_not_sent_again_by_a_full_pass_and_goes_with_its_source() {
    let mut w = mirrored(&[".longshore/file", "keep"]);
    let objects = w.b2.files(BUCKET).len();
    assert_eq!(objects, 2);
    let before = w.uploads();
    let full = w.world.run_as("b2", |parts| parts.wish.full = true);
    assert_eq!((full.exit, full.files_sent, full.lost), (Exit::Ok, 0, 0), "{}", full.text());
    assert_eq!(w.uploads(), before);
    fs::remove_file(w.world.source().join(".longshore/file")).unwrap();
    w.world.saw(".longshore/file", Scope::SelfOnly, Mask::DELETE);
    let report = w.world.run_as("b2", |parts| parts.wish.full = true);
    assert_eq!((report.exit, report.removed), (Exit::Ok, 1), "{}", report.text());
    assert_eq!(w.b2.files(BUCKET).len(), 1);
}

#[test]
fn an_object_that_nothing_says_is_ours_is_not_replaced_by_a_file_that_came_later() {
    let mut w = mirrored(&["file", "keep"]);
    w.world.lose_catalog("b2");
    w.world.lose_journal();
    fs::remove_file(w.world.source().join("file")).unwrap();
    let report = w.world.run("b2");
    assert_eq!((report.exit, report.removed, report.foreign), (Exit::Ok, 0, 1), "{}", report.text());
    fs::write(w.world.source().join("file"), "ours, of another content").unwrap();
    w.world.saw("file", Scope::SelfOnly, MADE);
    for _ in 0..2 {
        let report = w.world.run("b2");
        assert_eq!((report.exit, report.held, report.files_sent), (Exit::Partial, 1, 0), "{}", report.text());
        assert_eq!(w.content("file").unwrap(), "old");
    }
}

#[test]
fn an_object_of_another_client_where_a_request_got_no_answer_is_left_alone() {
    let mut w = mirrored(&["keep"]);
    fs::write(w.world.source().join("file"), "ours").unwrap();
    w.world.saw("file", Scope::SelfOnly, MADE);
    w.b2.inject(Fault { times: 20, ..Fault::next(Call::UploadFile, FaultKind::LateCompletion) });
    assert_ne!(w.world.run("b2").exit, Exit::Ok);
    w.b2.clear_faults();
    let (id, key) = w.b2.key();
    let other = leg_on(&w.b2, &id, &key, BUCKET);
    fs::write(other.source().join("file"), "of another client").unwrap();
    assert_eq!(other.run("b2").files_sent, 1);
    let report = w.world.run("b2");
    assert_eq!((report.exit, report.held, report.files_sent), (Exit::Partial, 1, 0), "{}", report.text());
    fs::remove_file(w.world.source().join("file")).unwrap();
    w.world.saw("file", Scope::SelfOnly, Mask::DELETE);
    assert_eq!(w.world.run("b2").removed, 0);
    assert_eq!(w.content("file").unwrap(), "of another client");
}

#[test]
fn another_bucket_under_a_known_leg_is_named_and_gets_nothing() {
    let mut w = mirrored(&["file", "keep"]);
    w.b2.create_bucket("other-bucket").unwrap();
    w.world.configure(&format!("{ROOT}{}", leg(&w.b2, "other-bucket")));
    fs::write(w.world.source().join("file"), "changed").unwrap();
    w.world.saw("file", Scope::SelfOnly, WRITTEN);
    let report = w.world.run("b2");
    assert_eq!((report.exit, report.files_sent), (Exit::Config, 0), "{}", report.text());
    assert!(report.text().contains("the leg `b2` is not the one"), "{}", report.text());
    assert!(w.b2.versions("other-bucket").is_empty());
    w.world.configure(&format!("{ROOT}{}", leg(&w.b2, BUCKET)));
    assert_eq!(w.world.run("b2").exit, Exit::Ok);
    w.assert_mirrored();
}

#[test]
fn a_run_that_goes_on_does_its_next_round_with_the_store_it_has_and_ends_when_rest_says_so() {
    let w = b2_world();
    fill(&w.world);
    let top = w.world.source();
    let mut journal = Journal::open(&w.world.config.journal_path()).unwrap();
    let mut rests = Vec::new();
    let last = w.world.watch("b2", |report, due_ns| {
        assert_eq!((report.exit, due_ns), (Exit::Ok, None), "{}", report.text());
        rests.push((report.files_sent, report.removed));
        match rests.len() {
            1 => {
                fs::write(top.join("a/file"), "changed").unwrap();
                fs::remove_file(top.join("zero")).unwrap();
                note(&mut journal, w.world.root, "a/file", Scope::SelfOnly, WRITTEN);
                note(&mut journal, w.world.root, "zero", Scope::SelfOnly, Mask::DELETE);
                true
            }
            2 => true, // woken for nothing
            _ => false,
        }
    });
    assert_eq!(rests, [(4, 0), (1, 1), (0, 0)]);
    assert_eq!((last.exit, last.did_something()), (Exit::Ok, false), "{}", last.text());
    w.assert_mirrored();
    let counters = w.b2.counters();
    let opened = (counters.calls(Call::AuthorizeAccount), counters.calls(Call::ListBuckets));
    assert_eq!(opened, (1, 1), "{counters:?}");
}

#[test]
fn a_run_that_goes_on_says_when_what_it_owes_comes_due() {
    let w = b2_world();
    fs::write(w.world.source().join("file"), "x").unwrap();
    w.b2.inject(Fault { times: 20, ..Fault::next(Call::UploadFile, FaultKind::answer(400, "bad_request")) });
    let mut dues = Vec::new();
    w.world.watch("b2", |report, due_ns| {
        dues.push(due_ns.is_some_and(|due| due > report.finished_ns));
        false
    });
    assert_eq!(dues, [true]);
}
