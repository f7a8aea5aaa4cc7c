//! Runs of a `dir` leg at the edges: changes in the middle of a run, links that were broken, objects of others, deletes
//! that wait, and configurations that changed.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::fs;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use shared::clock::{Clock as _, SystemClock};
use shared::entry::{Mask, Scope};
use shared::exit::Exit;
use shared::journal::{Class, Deferred, Journal, RootState};
use shared::limits::INTENT_GRACE;
use syncer::catalog::{Catalog, CatalogRoot, Key, NewIntent};
use syncer::live;
use syncer::report::Report;
use tests::dir_leg::{LEG, age, fill, mirrored, same, same_at, world, world_with};
use tests::played::{Bent, CutOff, Later, PlayedTracker};
use tests::tmpfs::Tmpfs;
use tests::world::{MADE, ROOT, WRITTEN, World, note};

const SECOND_ROOT: &str = "[[root]]\nname = \"two\"\npath = \"{dir}/two\"\n";
const ONE: &str = r#"[{ root = "space", prefix = "s" }]"#;
const BOTH: &str = r#"[{ root = "space", prefix = "s" }, { root = "two", prefix = "t" }]"#;

/// Two roots, of which the leg mirrors these.
fn mirror_of(world: &mut World, roots: &str) {
    world.configure(&format!("{ROOT}{SECOND_ROOT}{}", LEG.replace("[\"space\"]", roots)));
}

/// A world whose second root has these files, and whose leg mirrors these roots.
fn two_roots(files: &[&str], roots: &str) -> World {
    let mut world = world();
    fill(&world);
    fs::create_dir(world.path("two")).unwrap();
    for file in files {
        fs::write(world.path("two").join(file), "old").unwrap();
    }
    mirror_of(&mut world, roots);
    assert_eq!(world.run("copy").exit, Exit::Ok);
    world
}

/// A mirrored world with files `many-0` and so on.
fn many(count: usize) -> World {
    let mut world = mirrored();
    for i in 0..count {
        fs::write(world.source().join(format!("many-{i}")), "x").unwrap();
    }
    world.saw_gap();
    assert_eq!(world.run("copy").exit, Exit::Ok);
    world
}

fn remove_many(world: &mut World, range: std::ops::Range<usize>) {
    for i in range {
        fs::remove_file(world.source().join(format!("many-{i}"))).unwrap();
    }
    world.saw_gap();
}

fn allowing(world: &World, deletes: u64) -> Report {
    world.run_as("copy", |parts| parts.wish.allow_deletes = Some(deletes))
}

fn full(world: &World) -> Report {
    world.run_as("copy", |parts| parts.wish.full = true)
}

#[test]
fn a_root_added_to_a_leg_is_mirrored() {
    let mut world = two_roots(&["file"], ONE);
    assert!(!world.path("copy/t").exists());
    mirror_of(&mut world, BOTH);
    let report = world.run("copy");
    assert_eq!((report.exit, report.files_sent), (Exit::Ok, 1), "{}", report.text());
    assert_eq!(fs::read_to_string(world.path("copy/t/file")).unwrap(), "old");
}

#[test]
fn a_root_that_comes_back_to_a_leg_is_caught_up() {
    let mut world = two_roots(&["file"], BOTH);
    mirror_of(&mut world, ONE);
    fs::write(world.path("two/file"), "changed").unwrap();
    let two = world.root_named("two");
    note(&mut world.journal, two, "file", Scope::SelfOnly, WRITTEN);
    assert_eq!(world.run("copy").exit, Exit::Ok);
    mirror_of(&mut world, BOTH);
    let report = world.run("copy");
    assert_eq!(report.exit, Exit::Ok, "{}", report.text());
    assert_eq!(fs::read_to_string(world.path("copy/t/file")).unwrap(), "changed");
}

#[test]
fn a_root_taken_from_a_leg_owes_nothing_any_more() {
    let mut world = two_roots(&[], BOTH);
    fs::write(world.path("two/doubtful"), "x").unwrap();
    let two = world.root_named("two");
    note(&mut world.journal, two, "doubtful", Scope::SelfOnly, MADE);
    let bent = Bent { unknown: Some("doubtful"), ..Bent::default() };
    let owing = world.run_as("copy", |parts| bent.over(parts));
    assert_eq!((owing.exit, owing.deferred), (Exit::Partial, 1), "{}", owing.text());
    mirror_of(&mut world, ONE);
    let report = world.run("copy");
    assert_eq!((report.exit, report.deferred), (Exit::Ok, 0), "{}", report.text());
}

#[test]
fn a_root_goes_below_a_prefix_of_several_components() {
    let mut world = world();
    fill(&world);
    let leg = LEG.replace("[\"space\"]", "[{ root = \"space\", prefix = \"x/y/z\" }]");
    world.configure(&format!("{ROOT}{leg}"));
    let report = world.run("copy");
    assert_eq!(report.exit, Exit::Ok, "{}", report.text());
    same_at(&world, "copy/x/y/z");
}

#[test]
fn content_written_through_a_name_that_was_then_replaced_reaches_the_other_names() {
    let mut world = mirrored();
    let file = world.source().join("a/file");
    let temporary = world.source().join("a/file.tmp");
    fs::write(&file, "written in place").unwrap();
    fs::write(&temporary, "a new inode").unwrap();
    fs::rename(&temporary, &file).unwrap();
    world.saw("a/file", Scope::SelfOnly, WRITTEN | Mask::RENAME);
    world.saw("a/file.tmp", Scope::SelfOnly, MADE | Mask::RENAME);
    let report = world.run("copy");
    assert_eq!(report.exit, Exit::Ok, "{}", report.text());
    assert_eq!(fs::read_to_string(world.path("copy/z-other-name")).unwrap(), "written in place");
    same(&world);
}

#[test]
fn a_name_that_left_its_links_with_equal_content_is_linked_no_more() {
    let mut world = mirrored();
    world.saw_gap();
    world.run("copy"); // reads all names, so that each has its hash
    let file = world.source().join("a/file");
    let temporary = world.source().join("a/file.tmp");
    fs::copy(&file, &temporary).unwrap();
    let time = fs::metadata(&file).unwrap().modified().unwrap();
    fs::File::options().write(true).open(&temporary).unwrap().set_modified(time).unwrap();
    fs::set_permissions(&temporary, fs::Permissions::from_mode(0o600)).unwrap();
    fs::rename(&temporary, &file).unwrap();
    world.saw("a/file", Scope::SelfOnly, Mask::RENAME);
    world.saw("a/file.tmp", Scope::SelfOnly, MADE | Mask::RENAME);
    let report = world.run("copy");
    assert_eq!(report.exit, Exit::Ok, "{}", report.text());
    same(&world);
}

#[test]
fn a_directory_swapped_between_two_rounds_is_looked_at_by_its_new_name() {
    let world = world();
    let top = world.source();
    fs::create_dir_all(top.join("a/sub")).unwrap();
    fs::write(top.join("a/sub/file"), "old").unwrap();
    fs::write(top.join("kind"), "a file").unwrap();
    // Settled rows: an equal stat proves sameness, so only the right directory shows the change.
    world.run_as("copy", |parts| Bent::ahead().over(parts));
    // What changes its kind makes a second round, and what is new opens `a/sub` in the first.
    let mut world = world;
    fs::write(top.join("a/sub/new"), "n").unwrap();
    fs::remove_file(top.join("kind")).unwrap();
    fs::create_dir(top.join("kind")).unwrap();
    world.saw("a/sub/new", Scope::SelfOnly, MADE);
    world.saw("kind", Scope::SelfOnly, Mask::CREATE | Mask::DELETE | Mask::ONDIR);
    let (journal, root) = (world.config.journal_path(), world.root);
    let rounds = Arc::new(AtomicU64::new(0));
    let seen = rounds.clone();
    let swap = move |round| {
        seen.store(round, Ordering::Relaxed);
        if round != 2 {
            return;
        }
        fs::rename(top.join("a"), top.join("b")).unwrap();
        fs::create_dir_all(top.join("a/sub")).unwrap();
        fs::write(top.join("a/sub/file"), "new content").unwrap();
        let mut journal = Journal::open(&journal).unwrap();
        for path in ["a", "b"] {
            note(&mut journal, root, path, Scope::Subtree, Mask::RENAME | Mask::ONDIR);
        }
        note(&mut journal, root, "a/sub", Scope::SelfOnly, Mask::CREATE | Mask::ONDIR);
        note(&mut journal, root, "a/sub/file", Scope::SelfOnly, MADE);
    };
    let report = world.run_as("copy", |parts| {
        parts.tracker = Box::new(PlayedTracker::at_flush(swap));
        Bent::ahead().over(parts);
    });
    assert!(rounds.load(Ordering::Relaxed) >= 2, "there was no second round: {}", report.text());
    assert_eq!(report.exit, Exit::Ok, "{}", report.text());
    same(&world);
}

#[test]
fn rules_that_the_tracker_changes_during_a_run_are_not_worked_off_by_the_old_ones() {
    let mut world = world_with("exclude = [\"vm/\"]");
    fill(&world);
    fs::create_dir(world.source().join("vm")).unwrap();
    fs::write(world.source().join("vm/disk"), "image").unwrap();
    assert_eq!(world.run("copy").exit, Exit::Ok);
    let new = world.parse(&format!("{ROOT}{LEG}"));
    let (journal, roots) = (world.config.journal_path(), new.roots.clone());
    let restart = move |_| drop(Journal::open(&journal).unwrap().put_roots(&roots, 0).unwrap());
    let during = world.run_as("copy", |parts| parts.tracker = Box::new(PlayedTracker::at_flush(restart)));
    assert_eq!(during.exit, Exit::TryLater, "{}", during.text());
    world.config = new;
    let report = world.run("copy");
    assert_eq!(report.exit, Exit::Ok, "{}", report.text());
    same(&world);
}

#[test]
fn a_run_that_is_asked_to_stop_finishes_what_it_began_and_starts_nothing_more() {
    const FILES: u64 = 300;
    const BEFORE: u64 = 20;
    let world = world();
    for i in 0..FILES {
        fs::write(world.source().join(format!("file-{i}")), "content").unwrap();
    }
    let first = world.run_as("copy", |parts| {
        let (stop, opened) = (parts.stop.clone(), AtomicU64::new(0));
        let at_open = move || {
            if opened.fetch_add(1, Ordering::Relaxed) + 1 == BEFORE {
                stop.store(true, Ordering::Relaxed);
            }
        };
        Bent { at_open: Some(Arc::new(at_open)), ..Bent::default() }.over(parts);
    });
    let under_way = world.config.leg("copy").unwrap().transfers as u64;
    assert!((BEFORE..=BEFORE + under_way).contains(&first.files_sent), "{}", first.text());
    assert_eq!((first.exit, first.aborted), (Exit::TryLater, true), "{}", first.text());
    let second = world.run("copy");
    assert_eq!((second.exit, second.files_sent), (Exit::Ok, FILES - first.files_sent), "{}", second.text());
    same(&world);
}

#[test]
fn what_came_and_went_leaves_the_time_of_its_directory() {
    let mut world = mirrored();
    fs::write(world.source().join("a/b/.swp"), "x").unwrap();
    fs::remove_file(world.source().join("a/b/.swp")).unwrap();
    age(&world.source().join("a/b")); // surely another time than the mirror has
    world.saw("a/b/.swp", Scope::SelfOnly, MADE | Mask::DELETE);
    let report = world.run("copy");
    assert_eq!((report.exit, report.files_sent), (Exit::Ok, 0), "{}", report.text());
    same(&world);
}

#[test]
fn an_adopted_mirror_is_not_sent_at_the_next_gap() {
    let mut world = world();
    fill(&world);
    for file in ["a/file", "a/b/secret", "a-sibling"] {
        age(&world.source().join(file));
    }
    world.run("copy");
    world.lose_catalog("copy");
    let adopting = world.run("copy");
    assert_eq!((adopting.exit, adopting.files_sent), (Exit::Ok, 0), "{}", adopting.text());
    world.saw_gap();
    let report = world.run("copy");
    assert_eq!((report.exit, report.files_sent), (Exit::Ok, 0), "{}", report.text());
    same(&world);
}

#[test]
fn a_directory_that_holds_somebody_elses_file_stays_and_costs_no_delete() {
    let mut world = many(10);
    fs::write(world.path("copy/a/b/empty/foreign"), "foreign").unwrap();
    fs::remove_dir(world.source().join("a/b/empty")).unwrap();
    world.saw("a/b/empty", Scope::Subtree, Mask::DELETE | Mask::ONDIR);
    for night in 0..7 {
        let report = world.run("copy");
        assert_eq!((report.exit, report.removed), (Exit::Ok, 0), "night {night}: {}", report.text());
    }
    assert_eq!(fs::read_to_string(world.path("copy/a/b/empty/foreign")).unwrap(), "foreign");
    remove_many(&mut world, 0..5);
    let report = world.run("copy");
    assert_eq!((report.exit, report.removed), (Exit::Ok, 5), "{}", report.text());
}

#[test]
fn a_directory_waits_for_what_could_not_be_removed_from_it() {
    if !tests::is_root() {
        return tests::skip("mounting needs root");
    }
    let mut world = mirrored();
    fs::create_dir_all(world.source().join("gone/below")).unwrap();
    world.saw_gap();
    assert_eq!(world.run("copy").exit, Exit::Ok);
    fs::remove_dir_all(world.source().join("gone")).unwrap();
    world.saw_gap();
    let hindrance = Tmpfs::over(&world.path("copy/gone/below"));
    let report = world.run("copy");
    assert_eq!((report.exit, report.removed), (Exit::Partial, 0), "{}", report.text());
    drop(hindrance);
    assert_eq!(world.run("copy").exit, Exit::Ok);
    assert!(!world.path("copy/gone").exists(), "it was forgotten with what was in it");
}

#[test]
fn deletes_of_a_root_that_is_not_ok_wait_and_do_not_count() {
    let names: Vec<String> = (0..10).map(|i| format!("file-{i}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut world = two_roots(&names, BOTH);
    let two = world.root_named("two");
    world.journal.set_root_state(two, RootState::Failing, "test", 0).unwrap();
    for name in &names[..5] {
        fs::remove_file(world.path("two").join(name)).unwrap();
        note(&mut world.journal, two, name, Scope::SelfOnly, Mask::DELETE);
    }
    for night in 0..4 {
        let report = world.run("copy");
        assert_eq!((report.exit, report.removed), (Exit::Unproven, 0), "night {night}: {}", report.text());
        assert!(report.text().contains("`two`"), "{}", report.text());
    }
    let allowed = allowing(&world, 100);
    assert_eq!((allowed.exit, allowed.removed), (Exit::Unproven, 0), "{}", allowed.text());
    world.journal.set_root_state(two, RootState::Ok, "test", 0).unwrap();
    let report = world.run("copy");
    assert_eq!((report.exit, report.removed), (Exit::Ok, 5), "{}", report.text());
}

#[test]
fn a_file_that_came_later_does_not_replace_somebody_elses() {
    let mut world = world();
    fill(&world);
    fs::write(world.path("copy/foreign"), "somebody else's").unwrap();
    assert_eq!(world.run("copy").foreign, 1);
    fs::write(world.source().join("foreign"), "ours").unwrap();
    world.saw("foreign", Scope::SelfOnly, MADE);
    let report = world.run("copy");
    assert_eq!((report.exit, report.held), (Exit::Partial, 1), "{}", report.text());
    assert_eq!(fs::read_to_string(world.path("copy/foreign")).unwrap(), "somebody else's");
}

#[test]
fn a_held_path_whose_file_is_gone_is_held_no_more() {
    let mut world = world();
    fill(&world);
    fs::write(world.path("copy/a-sibling"), "somebody else's").unwrap();
    assert_eq!(world.run("copy").exit, Exit::Partial);
    fs::remove_file(world.source().join("a-sibling")).unwrap();
    world.saw("a-sibling", Scope::SelfOnly, Mask::DELETE);
    let report = world.run("copy");
    assert_eq!((report.exit, report.held, report.removed), (Exit::Ok, 0, 0), "{}", report.text());
    assert_eq!(fs::read_to_string(world.path("copy/a-sibling")).unwrap(), "somebody else's");
}

#[test]
fn somebody_elses_file_where_a_directory_must_go_is_named_until_it_is_away() {
    let world = world();
    fill(&world);
    fs::write(world.path("copy/a"), "somebody else's").unwrap();
    for _ in 0..2 {
        let report = world.run("copy");
        assert_eq!(report.exit, Exit::Partial, "{}", report.text());
        let named = |t: &syncer::report::Trouble| t.reason.contains("at a;") && t.path.as_bytes() == b"a";
        assert!(report.troubles.iter().any(named), "{}", report.text());
    }
    assert_eq!(fs::read_to_string(world.path("copy/a")).unwrap(), "somebody else's");
}

#[test]
fn what_waits_for_approval_and_is_then_excluded_is_kept() {
    let mut world = many(10);
    remove_many(&mut world, 0..10);
    assert_eq!(world.run("copy").exit, Exit::Guard);
    let root = format!("{ROOT}exclude = [\"many-*\"]\n");
    world.configure(&format!("{root}{LEG}"));
    let report = world.run("copy");
    assert_eq!((report.exit, report.removed, report.absent), (Exit::Ok, 0, 0), "{}", report.text());
    world.configure(&format!("{root}{}", LEG.replace("= 5", "= 50")));
    let report = world.run("copy");
    assert_eq!((report.exit, report.removed), (Exit::Ok, 0), "{}", report.text());
    assert!((0..10).all(|i| world.path("copy").join(format!("many-{i}")).exists()));
}

#[test]
fn allowed_deletes_pass_the_guard_once_if_the_number_covers_all_that_wait() {
    let mut world = many(20);
    remove_many(&mut world, 0..8);
    let tripped = world.run("copy");
    assert_eq!((tripped.exit, tripped.absent), (Exit::Guard, 8), "{}", tripped.text());
    assert!(tripped.text().contains("--allow-deletes 8"), "{}", tripped.text());
    let smaller = allowing(&world, 7);
    assert_eq!((smaller.exit, smaller.removed), (Exit::Guard, 0), "{}", smaller.text());
    let covered = allowing(&world, 8);
    assert_eq!((covered.exit, covered.removed), (Exit::Ok, 8), "{}", covered.text());
    same(&world);
    // What was approved leaves the day's allowance as it was.
    remove_many(&mut world, 8..13);
    let unasked = world.run("copy");
    assert_eq!((unasked.exit, unasked.removed), (Exit::Ok, 5), "{}", unasked.text());
    remove_many(&mut world, 13..14);
    let tripped = world.run("copy");
    assert_eq!((tripped.exit, tripped.removed), (Exit::Guard, 0), "{}", tripped.text());
}

#[test]
fn a_parent_taken_away_at_the_destination_is_named_and_a_full_run_brings_it_back() {
    let mut world = mirrored();
    fs::remove_dir_all(world.path("copy/a/b")).unwrap();
    fs::write(world.source().join("a/b/secret"), "changed").unwrap();
    world.saw("a/b/secret", Scope::SelfOnly, WRITTEN);
    for _ in 0..2 {
        let report = world.run("copy");
        assert_eq!((report.exit, report.files_sent), (Exit::Partial, 0), "{}", report.text());
        let named = report.troubles.iter().find(|t| t.path.as_bytes() == b"a/b/secret");
        assert!(named.unwrap().reason.contains("`syncer run --full`"), "{}", report.text());
    }
    let healed = full(&world);
    assert_eq!((healed.exit, healed.deferred), (Exit::Ok, 0), "{}", healed.text());
    same(&world);
}

#[test]
fn what_lies_below_a_nested_mount_is_elsewhere_and_its_mirror_is_kept() {
    if !tests::is_root() {
        return tests::skip("mounting needs root");
    }
    let mut world = world();
    fill(&world);
    let over = world.source().join("nested");
    fs::create_dir(&over).unwrap();
    fs::write(over.join("kept"), "below the mount").unwrap();
    world.run("copy");
    let mounted = Tmpfs::over(&over);
    fs::write(over.join("not-ours"), "of another filesystem").unwrap();
    fs::write(world.source().join("new"), "n").unwrap();
    world.saw_gap();
    for _ in 0..2 {
        let report = world.run("copy");
        assert_eq!((report.exit, report.removed, report.deferred), (Exit::Ok, 0, 1), "{}", report.text());
        let trouble = &report.troubles[0];
        assert_eq!((trouble.path.as_bytes(), &*trouble.class), (&b"nested"[..], "elsewhere"));
        assert!(report.text().contains("nested"), "{}", report.text());
    }
    assert_eq!(fs::read_to_string(world.path("copy/nested/kept")).unwrap(), "below the mount");
    assert!(world.path("copy/new").exists() && !world.path("copy/nested/not-ours").exists());
    drop(mounted);
    same(&world);
}

#[test]
fn the_json_of_a_report_names_each_field_once() {
    let mut world = many(10);
    fs::write(world.path("copy/held"), "somebody else's").unwrap();
    full(&world);
    fs::write(world.source().join("held"), "ours").unwrap();
    remove_many(&mut world, 0..6);
    let report = world.run("copy");
    assert!(report.held == 1 && report.guard.is_some(), "{}", report.text());
    let marked = report.marker("host", "from", "to").to_string();
    let json = serde_json::to_string(&report).unwrap();
    // A value keeps one of two equal keys, so a text that has such does not come back in full.
    for text in [&json, &marked] {
        let value: serde_json::Value = serde_json::from_str(text).unwrap();
        assert_eq!(value.to_string().len(), text.len(), "{text}\n{value}");
    }
}

#[test]
fn a_tree_that_comes_back_after_a_run_was_killed_in_its_removal_is_made_again() {
    let mut world = world();
    fill(&world);
    world.run("copy");
    fs::rename(world.source().join("a"), world.path("away")).unwrap();
    world.saw("a", Scope::Subtree, Mask::RENAME | Mask::ONDIR);
    let report = world.run_as("copy", |parts| {
        parts.wish.allow_deletes = Some(10);
        CutOff::over(parts);
    });
    assert_eq!(report.exit, Exit::Failed, "{}", report.text());
    assert!(!world.path("copy/a").exists());
    fs::rename(world.path("away"), world.source().join("a")).unwrap();
    world.saw("a", Scope::Subtree, Mask::RENAME | Mask::ONDIR);
    let report = world.run("copy");
    assert_eq!(report.exit, Exit::Ok, "{}", report.text());
    same(&world);
}

#[test]
fn what_a_run_removed_when_it_was_killed_counts_for_the_guard() {
    let mut world = many(10);
    remove_many(&mut world, 0..5);
    assert_eq!(world.run_as("copy", CutOff::over).exit, Exit::Failed);
    assert!(!world.path("copy/many-0").exists());
    let report = world.run("copy");
    assert_eq!((report.exit, report.absent), (Exit::Ok, 5), "{}", report.text());
    remove_many(&mut world, 5..6);
    let report = world.run("copy");
    assert_eq!((report.exit, report.removed), (Exit::Guard, 0), "{}", report.text());
}

/// The catalog of the leg, and its only root.
fn catalog(world: &World) -> (Catalog, CatalogRoot) {
    let path = live::catalog_path(&world.config, world.config.leg("copy").unwrap());
    (Catalog::open(&path).unwrap(), CatalogRoot(1))
}

fn open_intents(world: &World) -> usize {
    let (catalog, root) = catalog(world);
    catalog.intents(root).unwrap().len()
}

#[test]
fn a_name_that_something_is_in_the_way_of_holds_up_no_other_name_of_its_file() {
    let mut world = world();
    fs::create_dir(world.source().join("d")).unwrap();
    for i in 0..6 {
        fs::write(world.source().join(format!("d/{i}")), "more than may go at once").unwrap();
    }
    assert_eq!(world.run("copy").exit, Exit::Ok);
    fs::remove_dir_all(world.source().join("d")).unwrap();
    fs::write(world.source().join("d"), "a file now").unwrap();
    fs::hard_link(world.source().join("d"), world.source().join("e")).unwrap();
    world.saw_gap();
    let report = world.run("copy");
    assert_eq!((report.exit, report.files_sent), (Exit::Guard, 1), "{}", report.text());
    assert_eq!(fs::read_to_string(world.path("copy/e")).unwrap(), "a file now");
    let owed = world.journal.deferred("copy", 10).unwrap();
    let waits = |row: &&Deferred| row.class == Class::Kind && row.key.path.as_bytes() == b"d";
    assert_eq!(owed.iter().filter(waits).count(), 1, "{owed:?}");
    assert!(owed.iter().all(|row| row.class != Class::Error), "{owed:?}");
    assert_eq!(allowing(&world, 7).exit, Exit::Ok);
    same(&world);
}

#[test]
fn a_name_of_a_file_that_was_not_sent_leaves_no_question_to_the_destination() {
    let mut world = mirrored();
    let file = world.source().join("a/file");
    fs::write(&file, "changed").unwrap();
    world.saw("a/file", Scope::SelfOnly, WRITTEN);
    let report = world.run_as("copy", |parts| {
        let at_read = move || fs::write(&file, "changed again, and longer").unwrap();
        Bent { at_read: Some(Arc::new(at_read)), ..Bent::default() }.over(parts);
    });
    assert_eq!((report.deferred, report.files_sent), (2, 0), "{}", report.text());
    assert_eq!(open_intents(&world), 0);
}

#[test]
fn an_intent_from_the_future_is_asked_about_for_an_hour_and_no_longer() {
    let world = world();
    fill(&world);
    world.run_as("copy", |parts| Bent::ahead().over(parts));
    let (mut catalog, root) = catalog(&world);
    let intent = NewIntent { root, key: Key(b"a-sibling".to_vec()), handle: None };
    let in_a_year = SystemClock.wall_ns() + 365 * 24 * 3600 * 1_000_000_000;
    catalog.add_intents(&[intent], 1, in_a_year).unwrap();
    drop(catalog);
    assert_eq!((world.run("copy").exit, open_intents(&world)), (Exit::Ok, 1), "it may still come true");
    world.run_as("copy", |parts| parts.clock = Arc::new(Later(INTENT_GRACE * 2)));
    assert_eq!(open_intents(&world), 0);
}

#[test]
fn what_was_not_confirmed_before_a_power_cut_is_sent_again_whatever_its_size_and_time_say() {
    let mut world = mirrored();
    fs::write(world.source().join("new"), "content").unwrap();
    world.saw("new", Scope::SelfOnly, MADE);
    assert_eq!(world.run_as("copy", CutOff::unconfirmed).exit, Exit::Failed);
    let copy = fs::File::options().write(true).open(world.path("copy/new")).unwrap();
    let modified = copy.metadata().unwrap().modified().unwrap();
    copy.write_all_at(&[0; 7], 0).unwrap();
    copy.set_modified(modified).unwrap();
    let report = world.run("copy");
    assert_eq!(report.exit, Exit::Ok, "{}", report.text());
    same(&world);
}
