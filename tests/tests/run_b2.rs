//! Runs of a `b2` leg against the emulator: which calls are made, what the bucket holds, and what is never sent twice.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::fs;
use std::os::unix::fs::symlink;

use b2_emulator::calls::Call;
use b2_emulator::faults::{Fault, FaultKind};
use shared::entry::{Mask, Scope};
use shared::exit::Exit;
use tests::b2_leg::{BUCKET, b2_world, fill, leg_on};

#[test]
fn a_first_run_mirrors_every_file_and_a_quiet_one_makes_two_calls() {
    let w = b2_world();
    fill(&w.world);
    let first = w.world.run("b2");
    assert_eq!((first.exit, first.files_sent, first.tally.unheld), (Exit::Ok, 4, 1), "{}", first.text());
    w.assert_mirrored();
    w.b2.reset();
    let second = w.world.run("b2");
    assert_eq!(second.exit, Exit::Ok, "{}", second.text());
    let counters = w.b2.counters();
    assert_eq!((counters.calls(Call::AuthorizeAccount), counters.calls(Call::ListBuckets)), (1, 1));
    assert_eq!(counters.calls.values().sum::<u64>(), 2, "{counters:?}");
}

#[test]
fn changes_renames_and_deletes_reach_the_bucket_without_a_listing() {
    let mut w = b2_world();
    fill(&w.world);
    w.world.run("b2");
    let top = w.world.source();
    fs::write(top.join("a/file"), "changed").unwrap();
    fs::rename(top.join("a/b"), top.join("c")).unwrap();
    fs::remove_file(top.join("zero")).unwrap();
    w.world.saw("a/file", Scope::SelfOnly, Mask::MODIFY);
    w.world.saw("a/b", Scope::Subtree, Mask::RENAME | Mask::ONDIR);
    w.world.saw("c", Scope::Subtree, Mask::RENAME | Mask::ONDIR);
    w.world.saw("zero", Scope::SelfOnly, Mask::DELETE);
    w.b2.reset();
    let report = w.world.run("b2");
    assert_eq!((report.exit, report.files_sent, report.removed), (Exit::Ok, 2, 2), "{}", report.text());
    w.assert_mirrored();
    let counters = w.b2.counters();
    assert_eq!((counters.calls(Call::ListFileNames), counters.calls(Call::HideFile)), (0, 2));
}

#[test]
fn a_lost_catalog_costs_a_listing_and_sends_nothing_again() {
    let w = b2_world();
    fill(&w.world);
    w.world.run("b2");
    let before = w.uploads();
    w.world.lose_catalog("b2");
    fs::remove_file(w.world.source().join("zero")).unwrap();
    let report = w.world.run("b2");
    assert_eq!(
        (report.exit, report.files_sent, report.tally.adopted, report.removed),
        (Exit::Ok, 0, 3, 1),
        "{}",
        report.text()
    );
    assert_eq!(w.uploads(), before);
    w.assert_mirrored();
}

#[test]
fn an_answer_that_was_lost_leaves_one_object_and_no_doubt() {
    let w = b2_world();
    fill(&w.world);
    let fault = Fault {
        times: 6,
        name_prefix: Some("a/file".into()),
        ..Fault::next(Call::UploadFile, FaultKind::DropAfterEffect)
    };
    w.b2.inject(fault);
    let first = w.world.run("b2");
    w.b2.clear_faults();
    assert_ne!(first.exit, Exit::Ok, "{}", first.text());
    fs::remove_file(w.world.source().join("a/file")).unwrap();
    let second = w.world.run("b2");
    assert_eq!((second.exit, second.removed), (Exit::Ok, 1), "{}", second.text());
    w.assert_mirrored();
}

#[test]
fn a_full_pod_costs_a_new_url_and_nothing_else() {
    let w = b2_world();
    fill(&w.world);
    w.b2.inject(Fault {
        times: 3,
        ..Fault::next(Call::UploadFile, FaultKind::answer(503, "service_unavailable"))
    });
    let report = w.world.run("b2");
    assert_eq!((report.exit, report.files_sent), (Exit::Ok, 4), "{}", report.text());
    w.assert_mirrored();
}

#[test]
fn a_reached_cap_stops_the_run_and_says_so() {
    let w = b2_world();
    fill(&w.world);
    w.b2.inject(Fault {
        times: 100,
        ..Fault::next(Call::UploadFile, FaultKind::answer(403, "storage_cap_exceeded"))
    });
    let report = w.world.run("b2");
    assert_eq!(report.exit, Exit::Refused, "{}", report.text());
    assert!(report.text().contains("cap"), "{}", report.text());
    w.b2.clear_faults();
    assert_eq!(w.world.run("b2").exit, Exit::Ok);
    w.assert_mirrored();
}

#[test]
fn a_wrong_key_or_a_missing_bucket_is_named_and_changes_nothing() {
    let w = b2_world();
    let world = leg_on(&w.b2, "nobody", "wrong", BUCKET);
    fs::write(world.source().join("file"), "x").unwrap();
    let report = world.run("b2");
    assert_eq!(report.exit, Exit::Refused, "{}", report.text());
    assert!(report.text().contains("nobody") && !report.text().contains("wrong"), "{}", report.text());
    let (id, key) = w.b2.key();
    let world = leg_on(&w.b2, &id, &key, "no-such-bucket");
    let report = world.run("b2");
    assert_eq!(report.exit, Exit::Config, "{}", report.text());
    assert!(report.text().contains("no-such-bucket"), "{}", report.text());
    assert_eq!(w.b2.files(BUCKET).len(), 0);
}

#[test]
fn a_file_that_became_a_link_or_a_directory_leaves_no_object_in_the_way() {
    let mut w = b2_world();
    fill(&w.world);
    w.world.run("b2");
    let top = w.world.source();
    fs::remove_file(top.join("zero")).unwrap();
    fs::create_dir(top.join("zero")).unwrap();
    fs::write(top.join("zero/below"), "kind changed").unwrap();
    fs::remove_file(top.join("a/file")).unwrap();
    symlink("elsewhere", top.join("a/file")).unwrap();
    w.world.saw_gap();
    let report = w.world.run("b2");
    assert_eq!(report.exit, Exit::Ok, "{}", report.text());
    w.assert_mirrored();
}
