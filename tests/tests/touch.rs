//! Runs of a `dir` leg that could not set the attributes of a directory, or ended before they were set: a later run
//! sets them.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;

use shared::config::Deletes;
use shared::entry::{Mask, Scope};
use shared::exit::Exit;
use shared::limits::{BACKOFF_MAX, INTENT_GRACE};
use syncer::catalog::{Catalog, CatalogRoot};
use syncer::live;
use tests::dir_leg::{age, mirrored, same};
use tests::played::{Bent, Later};
use tests::struck::Struck;
use tests::world::{MADE, WRITTEN, World};

const ALL: [Struck; 3] = [Struck::Fails, Struck::EndsBeforeAck, Struck::EndsBeforeReceipts];

fn intents(world: &World) -> usize {
    let path = live::catalog_path(&world.config, world.config.leg("copy").unwrap());
    Catalog::open(&path).unwrap().intents(CatalogRoot(1)).unwrap().len()
}

/// One run is struck; what it owes comes due, and is done for good.
fn heals(world: &World, struck: Struck) {
    let report = world.run_as("copy", |parts| struck.over(parts));
    assert_ne!(report.exit, Exit::Ok, "{struck:?}: {}", report.text());
    for _ in 0..2 {
        let report = world.run_as("copy", |parts| parts.clock = Arc::new(Later(INTENT_GRACE + BACKOFF_MAX)));
        assert_eq!((report.exit, report.deferred), (Exit::Ok, 0), "{struck:?}: {}", report.text());
        same(world);
    }
    assert_eq!(intents(world), 0, "{struck:?}");
    let report = world.run("copy");
    assert_eq!((report.tally.examined, report.others_sent), (0, 0), "{struck:?}: {}", report.text());
}

#[test]
fn a_directory_that_was_made_gets_the_attributes_that_could_not_be_set_at_first() {
    for struck in ALL {
        let mut world = mirrored();
        let dir = world.source().join("a/new");
        fs::create_dir(&dir).unwrap();
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o2750)).unwrap();
        age(&dir);
        age(&world.source().join("a"));
        world.saw("a/new", Scope::Subtree, Mask::CREATE | Mask::ONDIR);
        heals(&world, struck);
    }
}

#[test]
fn a_directory_of_which_only_the_mirror_changed_gets_its_time_back_later() {
    for struck in ALL {
        let mut world = mirrored();
        // In place: the time of its directory stays.
        fs::write(world.source().join("a/b/secret"), "written in place").unwrap();
        world.saw("a/b/secret", Scope::SelfOnly, WRITTEN);
        heals(&world, struck);
    }
}

#[test]
fn a_directory_from_which_something_was_removed_gets_its_time_back_later() {
    for struck in ALL {
        let mut world = mirrored();
        fs::remove_file(world.source().join("a/b/secret")).unwrap();
        age(&world.source().join("a/b"));
        world.saw("a/b/secret", Scope::SelfOnly, Mask::DELETE);
        let before = world.run_as("copy", |parts| parts.leg.deletes = Deletes::Never);
        assert_eq!(before.exit, Exit::Ok, "{}", before.text());
        assert!(world.path("copy/a/b/secret").exists());
        heals(&world, struck);
        assert!(!world.path("copy/a/b/secret").exists());
    }
}

#[test]
fn a_directory_that_cannot_be_looked_at_once_its_file_was_sent_gets_its_time_back_later() {
    let mut world = mirrored();
    fs::write(world.source().join("a/b/secret"), "written in place").unwrap();
    world.saw("a/b/secret", Scope::SelfOnly, WRITTEN);
    let bent = Bent { unknown: Some("a/b"), ..Bent::default() };
    let report = world.run_as("copy", |parts| bent.over(parts));
    assert_eq!((report.exit, report.files_sent), (Exit::Partial, 1), "{}", report.text());
    let report = world.run_as("copy", |parts| parts.clock = Arc::new(Later(BACKOFF_MAX)));
    assert_eq!(report.exit, Exit::Ok, "{}", report.text());
    same(&world);
    assert_eq!(intents(&world), 0);
}

#[test]
fn a_directory_that_may_have_been_made_and_is_gone_by_the_next_run_is_not_left_behind() {
    let mut world = mirrored();
    let mask = Mask::CREATE | Mask::ONDIR;
    fs::create_dir(world.source().join("a/new")).unwrap();
    world.saw("a/new", Scope::Subtree, mask);
    let report = world.run_as("copy", |parts| Struck::MadeUnanswered.over(parts));
    assert_eq!((report.exit, intents(&world)), (Exit::Partial, 1), "{}", report.text());
    assert!(world.path("copy/a/new").exists());
    fs::remove_dir(world.source().join("a/new")).unwrap();
    world.saw("a/new", Scope::Subtree, mask | Mask::DELETE);
    let report = world.run("copy");
    assert_eq!(report.exit, Exit::Ok, "{}", report.text());
    assert!(!world.path("copy/a/new").exists());
}

#[test]
fn what_was_read_and_found_the_same_leaves_no_doubt_of_its_directory() {
    let mut world = mirrored();
    world.saw("a/b/secret", Scope::SelfOnly, WRITTEN);
    let report = world.run("copy");
    assert_eq!((report.exit, report.files_sent), (Exit::Ok, 0), "{}", report.text());
    assert_eq!(intents(&world), 0);
    world.saw("a/b", Scope::SelfOnly, Mask::CREATE | Mask::ONDIR);
    let report = world.run("copy");
    assert_eq!((report.exit, report.tally.same), (Exit::Ok, 1), "{}", report.text());
}

#[test]
fn a_directory_is_touched_once_for_many_files_and_no_run_after_that_looks_at_it() {
    let mut world = mirrored();
    for i in 0..50 {
        fs::write(world.source().join(format!("a/b/{i}")), "x").unwrap();
        world.saw(&format!("a/b/{i}"), Scope::SelfOnly, MADE);
    }
    let report = world.run("copy");
    assert_eq!((report.files_sent, report.others_sent), (50, 1), "{}", report.text());
    same(&world);
    let report = world.run("copy");
    assert_eq!((report.tally.examined, report.others_sent), (0, 0), "{}", report.text());
}
