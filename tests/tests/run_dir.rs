//! Runs of a `dir` leg: what reaches the destination, what is deleted there, and what never is.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::fs;
use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use shared::clock::{Clock as _, SystemClock};
use shared::entry::{Mask, Scope};
use shared::exit::Exit;
use shared::journal::{Class, Deferred, NewDeferred};
use shared::limits::{BACKOFF_FIRST, BACKOFF_MAX};
use shared::path::RelPath;
use tests::dir_leg::{fill, mirrored, same, world, world_with};
use tests::played::{Bent, Later, PlayedTracker};
use tests::world::{MADE, WRITTEN, World};

#[test]
fn a_first_run_makes_the_destination_equal_and_a_second_does_nothing() {
    let world = world();
    fill(&world);
    let first = world.run("copy");
    assert_eq!(first.exit, Exit::Ok, "{}", first.text());
    same(&world);
    let second = world.run("copy");
    assert_eq!(
        (second.exit, second.files_sent, second.others_sent, second.listed),
        (Exit::Ok, 0, 0, 0),
        "{}",
        second.text()
    );
}

#[test]
fn a_changed_file_is_replaced_and_the_old_version_is_in_the_trash() {
    let mut world = mirrored();
    fs::write(world.source().join("a/b/secret"), "new").unwrap();
    world.saw("a/b/secret", Scope::SelfOnly, Mask::MODIFY | Mask::CLOSE_WRITE);
    let report = world.run("copy");
    assert_eq!((report.exit, report.files_sent), (Exit::Ok, 1), "{}", report.text());
    same(&world);
    let runs: Vec<_> = fs::read_dir(world.path("copy/.longshore/trash")).unwrap().collect();
    let old = runs[0].as_ref().unwrap().path().join("a/b/secret");
    assert_eq!(fs::read(old).unwrap().len(), 100_000);
}

#[test]
fn a_gap_finds_every_change() {
    let mut world = mirrored();
    let top = world.source();
    fs::write(top.join("a/file"), "changed").unwrap();
    fs::rename(top.join("a/b"), top.join("c")).unwrap();
    fs::remove_file(top.join("a/link")).unwrap();
    fs::create_dir(top.join("a/link")).unwrap();
    fs::write(top.join("a/link/below"), "kind changed").unwrap();
    world.saw_gap();
    let report = world.run("copy");
    assert_eq!(report.exit, Exit::Ok, "{}", report.text());
    same(&world);
}

#[test]
fn a_directory_that_became_a_file_is_replaced_once_its_content_is_released() {
    let mut world = mirrored();
    fs::remove_dir_all(world.source().join("a/b")).unwrap();
    fs::write(world.source().join("a/b"), "a file now").unwrap();
    world.saw("a/b", Scope::Subtree, Mask::DELETE | Mask::CREATE | Mask::ONDIR);
    let report = world.run("copy");
    assert_eq!(report.exit, Exit::Ok, "{}", report.text());
    same(&world);
}

#[test]
fn the_guard_holds_deletes_back_and_lets_everything_else_pass() {
    let mut world = world();
    fill(&world);
    for i in 0..20 {
        fs::write(world.source().join(format!("many-{i}")), "x").unwrap();
    }
    world.run("copy");
    for i in 0..6 {
        fs::remove_file(world.source().join(format!("many-{i}"))).unwrap();
    }
    fs::write(world.source().join("new"), "n").unwrap();
    world.saw_gap();
    for night in 0..4 {
        let report = world.run("copy");
        assert_eq!((report.exit, report.removed), (Exit::Guard, 0), "night {night}: {}", report.text());
    }
    assert!(world.path("copy/new").exists());
    assert!((0..20).all(|i| world.path("copy").join(format!("many-{i}")).exists()));
    fs::write(world.source().join("many-0"), "x").unwrap();
    fs::write(world.source().join("many-1"), "x").unwrap();
    world.saw_gap();
    let report = world.run("copy");
    assert_eq!((report.exit, report.removed), (Exit::Ok, 4), "{}", report.text());
    same(&world);
}

#[test]
fn a_root_that_shows_another_directory_is_not_proven_and_deletes_nothing() {
    let mut world = mirrored();
    let before = tests::compare::facts(&world.path("copy"));
    fs::rename(world.source(), world.path("elsewhere")).unwrap();
    fs::create_dir(world.source()).unwrap();
    world.saw_gap();
    let report = world.run("copy");
    assert_eq!((report.exit, report.removed, report.files_sent), (Exit::Unproven, 0, 0), "{}", report.text());
    assert_eq!(tests::compare::facts(&world.path("copy")), before);
    fs::remove_dir(world.source()).unwrap();
    fs::rename(world.path("elsewhere"), world.source()).unwrap();
    fs::write(world.source().join("a/file"), "changed meanwhile").unwrap();
    let report = world.run("copy");
    assert_eq!(report.exit, Exit::Ok, "{}", report.text());
    same(&world);
}

#[test]
fn without_a_tracker_what_is_known_is_synced_and_nothing_is_deleted() {
    let mut world = mirrored();
    fs::remove_file(world.source().join("a-sibling")).unwrap();
    fs::write(world.source().join("new"), "n").unwrap();
    world.saw_gap();
    let report = world.run_as("copy", |parts| parts.tracker = Box::new(PlayedTracker::down()));
    assert_eq!((report.exit, report.removed, report.files_sent), (Exit::TryLater, 0, 1), "{}", report.text());
    assert!(world.path("copy/a-sibling").exists() && world.path("copy/new").exists());
}

#[test]
fn a_lost_catalog_costs_a_full_pass_and_sends_nothing_again() {
    let world = mirrored();
    world.lose_catalog("copy");
    fs::write(world.source().join("a/new"), "n").unwrap();
    let report = world.run("copy");
    assert!(report.full_pass.is_some());
    assert_eq!((report.exit, report.files_sent), (Exit::Ok, 1), "{}", report.text());
    same(&world);
}

#[test]
fn a_destination_that_is_not_empty_keeps_what_is_not_ours() {
    let world = world();
    fill(&world);
    let copy = world.path("copy");
    fs::create_dir(copy.join("a")).unwrap();
    fs::write(copy.join("a/file"), "somebody else's").unwrap();
    fs::write(copy.join("foreign"), "unrelated").unwrap();
    let report = world.run("copy");
    assert_eq!((report.exit, report.held), (Exit::Partial, 1), "{}", report.text());
    assert_eq!(fs::read_to_string(copy.join("a/file")).unwrap(), "somebody else's");
    assert_eq!(fs::read_to_string(copy.join("foreign")).unwrap(), "unrelated");
    assert_eq!(fs::read_to_string(copy.join("a/b/secret")).unwrap().len(), 100_000);
    let again = world.run("copy");
    assert_eq!((again.exit, again.files_sent, again.removed), (Exit::Partial, 0, 0), "{}", again.text());
}

#[test]
fn a_file_that_cannot_be_looked_at_is_owed_and_the_rest_is_done() {
    let mut world = mirrored();
    fs::write(world.source().join("a-sibling"), "not to be read").unwrap();
    fs::write(world.source().join("new"), "n").unwrap();
    world.saw_gap();
    let bent = Bent { unknown: Some("a-sibling"), ..Bent::default() };
    let report = world.run_as("copy", |parts| bent.over(parts));
    assert_eq!((report.exit, report.files_sent, report.removed), (Exit::Partial, 1, 0), "{}", report.text());
    assert!(report.troubles.iter().any(|t| t.path.as_bytes() == b"a-sibling"), "{}", report.text());
    assert_eq!(fs::read_to_string(world.path("copy/a-sibling")).unwrap(), "");
}

#[test]
fn content_written_through_one_name_reaches_the_others_as_links() {
    let mut world = mirrored();
    fs::write(world.source().join("z-other-name"), "through the other name").unwrap();
    world.saw("z-other-name", Scope::SelfOnly, Mask::MODIFY | Mask::CLOSE_WRITE);
    let report = world.run("copy");
    assert_eq!((report.exit, report.files_sent), (Exit::Ok, 1), "{}", report.text());
    same(&world);
    fs::remove_file(world.source().join("z-other-name")).unwrap();
    world.saw("z-other-name", Scope::SelfOnly, Mask::DELETE);
    world.run("copy");
    same(&world);
}

#[test]
fn what_is_owed_is_done_with_once_it_changed_again_and_the_rest_of_it_waits() {
    let mut world = mirrored();
    let root = world.root;
    let owed = |path: &str| NewDeferred {
        root,
        path: RelPath::parse(path.as_bytes()).unwrap(),
        scope: Scope::SelfOnly,
        handle: None,
        seq: 1,
        mask: Mask::MODIFY,
        since_ns: 0,
        attempts: 1,
        not_before_ns: SystemClock.wall_ns() + 600_000_000_000,
        class: Class::Error,
        last_error: "it could not be read".into(),
    };
    world.journal.defer("copy", &[owed("a/file"), owed("a/b/secret")]).unwrap();
    fs::write(world.source().join("a/file"), "can be read now").unwrap();
    world.saw("a/file", Scope::SelfOnly, Mask::MODIFY);
    assert_eq!(world.run("copy").exit, Exit::Partial);
    same(&world);
    let left: Vec<_> = world.journal.deferred("copy", 10).unwrap().into_iter().map(|d| d.key.path).collect();
    assert_eq!(left, [RelPath::parse(b"a/b/secret").unwrap()]);
}

/// A file that is written whenever it is read.
struct Hot {
    world: World,
    reads: Arc<AtomicU64>,
}

impl Hot {
    fn new() -> Hot {
        Hot { world: mirrored(), reads: Arc::default() }
    }

    /// Somebody wrote, and a run comes so much later; what it owes then, if anything.
    fn run(&mut self, later: Duration) -> Option<Deferred> {
        let (file, reads) = (self.world.source().join("a/b/secret"), self.reads.clone());
        self.world.saw("a/b/secret", Scope::SelfOnly, WRITTEN);
        self.world.run_as("copy", |parts| {
            parts.clock = Arc::new(Later(later));
            let at_read = move || {
                reads.fetch_add(1, Ordering::Relaxed);
                fs::File::options().append(true).open(&file).unwrap().write_all(b"x").unwrap();
            };
            Bent { at_read: Some(Arc::new(at_read)), ..Bent::default() }.over(parts);
        });
        self.world.journal.deferred("copy", 10).unwrap().pop()
    }

    fn reads(&self) -> u64 {
        self.reads.load(Ordering::Relaxed)
    }
}

#[test]
fn a_file_that_changes_whenever_it_is_read_is_read_less_and_less_often_whatever_its_events() {
    let mut hot = Hot::new();
    let (mut later, mut wait) = (Duration::ZERO, BACKOFF_FIRST);
    for read in 1..=12 {
        let begun_ns = SystemClock.wall_ns() + later.as_nanos() as i64;
        let owed = hot.run(later).unwrap();
        assert_eq!((owed.class, owed.attempts, hot.reads()), (Class::Busy, read, u64::from(read)));
        let waits = Duration::from_nanos((owed.not_before_ns - begun_ns) as u64);
        assert!(wait <= waits && waits < wait + BACKOFF_FIRST, "{waits:?} in the place of {wait:?}");
        // Before its time it is not read, and its newest event is not lost.
        let renewed = hot.run(later).unwrap();
        assert_eq!((renewed.not_before_ns, renewed.attempts), (owed.not_before_ns, read));
        assert_eq!((hot.reads(), renewed.seq > owed.seq), (u64::from(read), true));
        later += wait + BACKOFF_FIRST;
        wait = (wait * 2).min(BACKOFF_MAX);
    }
    assert_eq!(wait, BACKOFF_MAX);
    let report = hot.world.run_as("copy", |parts| parts.clock = Arc::new(Later(later + BACKOFF_MAX)));
    assert_eq!((report.exit, report.deferred), (Exit::Ok, 0), "{}", report.text());
    same(&hot.world);
}

#[test]
fn a_file_that_changed_while_it_was_read_and_is_gone_now_waits_for_nothing() {
    let mut hot = Hot::new();
    assert_eq!(hot.run(Duration::ZERO).unwrap().class, Class::Busy);
    fs::remove_file(hot.world.source().join("a/b/secret")).unwrap();
    hot.world.saw("a/b/secret", Scope::SelfOnly, Mask::DELETE);
    let report = hot.world.run("copy");
    assert_eq!((report.removed, report.deferred), (1, 0), "{}", report.text());
    same(&hot.world);
}

#[test]
fn a_directory_that_could_not_be_looked_at_is_walked_once_it_changed() {
    let mut world = mirrored();
    fs::write(world.source().join("a/b/new"), "nobody told of it").unwrap();
    world.saw_gap();
    let bent = Bent { unknown: Some("a/b"), ..Bent::default() };
    let report = world.run_as("copy", |parts| bent.over(parts));
    assert_eq!((report.exit, report.deferred), (Exit::Partial, 1), "{}", report.text());
    world.saw("a/b", Scope::SelfOnly, Mask::ATTRIB | Mask::ONDIR);
    let report = world.run("copy");
    assert_eq!((report.exit, report.deferred), (Exit::Ok, 0), "{}", report.text());
    same(&world);
}

#[test]
fn what_lies_in_a_directory_that_could_not_be_made_waits_for_it_and_is_no_error_of_its_own() {
    let mut world = mirrored();
    fs::create_dir_all(world.source().join("new/sub")).unwrap();
    for file in ["new/f", "new/sub/g"] {
        fs::write(world.source().join(file), file).unwrap();
    }
    world.saw("new", Scope::Subtree, Mask::RENAME | Mask::ONDIR);
    let bent = Bent { gone_later: Some("new"), ..Bent::default() };
    let report = world.run_as("copy", |parts| bent.over(parts));
    assert_eq!((report.exit, report.deferred), (Exit::Ok, 4), "{}", report.text());
    let owed = world.journal.deferred("copy", 10).unwrap();
    assert!(owed.iter().all(|row| row.class == Class::InFlight), "{owed:?}");
    // All of it is told of again: nothing waits until its time is over.
    world.saw("new", Scope::Subtree, Mask::RENAME | Mask::ONDIR);
    let report = world.run("copy");
    assert_eq!((report.exit, report.deferred), (Exit::Ok, 0), "{}", report.text());
    same(&world);
}

#[test]
fn an_excluded_path_is_kept_at_the_destination_even_when_its_parent_goes() {
    let mut world = world_with("exclude = [\"*.tmp\"]");
    fill(&world);
    fs::write(world.source().join("a/b/x.tmp"), "never sent").unwrap();
    let report = world.run("copy");
    assert_eq!(report.exit, Exit::Ok, "{}", report.text());
    assert!(!world.path("copy/a/b/x.tmp").exists());
    world.saw("a/b/x.tmp", Scope::SelfOnly, Mask::MODIFY);
    assert_eq!(world.run("copy").files_sent, 0);
}

#[test]
fn a_destination_that_shows_another_directory_gets_nothing() {
    let mut world = mirrored();
    fs::rename(world.path("copy"), world.path("unplugged")).unwrap();
    fs::create_dir(world.path("copy")).unwrap();
    fs::write(world.source().join("new"), "n").unwrap();
    world.saw_gap();
    let report = world.run("copy");
    assert_eq!((report.exit, report.files_sent), (Exit::Config, 0), "{}", report.text());
    assert_eq!(fs::read_dir(world.path("copy")).unwrap().count(), 0, "not even our own directory is made");
    fs::remove_dir(world.path("copy")).unwrap();
    fs::rename(world.path("unplugged"), world.path("copy")).unwrap();
    assert_eq!(world.run("copy").exit, Exit::Ok);
    same(&world);
}

#[test]
fn files_that_were_just_written_are_read_again_and_nothing_is_sent() {
    let mut world = mirrored();
    world.saw_gap();
    let report = world.run("copy");
    assert_eq!((report.exit, report.files_sent, report.others_sent), (Exit::Ok, 0, 0), "{}", report.text());
}

#[test]
fn an_entry_by_handle_reaches_every_name_and_of_a_file_nobody_knows_none() {
    let mut world = mirrored();
    let top = world.source();
    fs::write(top.join("a/file"), "changed through a name that nobody saw").unwrap();
    fs::write(top.join("unknown"), "its own entry is still to come").unwrap();
    world.saw_by_handle("a/file", Mask::MODIFY);
    world.saw_by_handle("unknown", Mask::MODIFY);
    let report = world.run("copy");
    assert_eq!((report.exit, report.files_sent), (Exit::Ok, 1), "{}", report.text());
    for name in ["a/file", "z-other-name"] {
        let copied = fs::read_to_string(world.path("copy").join(name)).unwrap();
        assert_eq!(copied, "changed through a name that nobody saw", "{name}");
    }
    assert!(!world.path("copy/unknown").exists());
}

#[test]
fn a_file_that_is_owed_by_its_handle_is_looked_at_under_every_name_and_nothing_else_is() {
    let mut world = mirrored();
    let top = world.source();
    fs::write(top.join("a/file"), "changed through a name that nobody saw").unwrap();
    fs::write(top.join("unknown"), "its own entry is still to come").unwrap();
    world.saw_by_handle("a/file", Mask::MODIFY);
    world.saw_by_handle("unknown", Mask::MODIFY);
    world.collapse("copy");
    assert_eq!(world.journal.deferred_count("copy").unwrap(), 2);
    let report = world.run("copy");
    assert_eq!((report.exit, report.files_sent), (Exit::Ok, 1), "{}", report.text());
    assert_eq!(report.deferred, 0);
    for name in ["a/file", "z-other-name"] {
        let copied = fs::read_to_string(world.path("copy").join(name)).unwrap();
        assert_eq!(copied, "changed through a name that nobody saw", "{name}");
    }
    assert!(!world.path("copy/unknown").exists());
    // What leads to the name itself brings it, from before the handle was forgotten or later.
    world.saw("unknown", Scope::SelfOnly, MADE);
    world.saw_by_handle("unknown", Mask::MODIFY);
    world.collapse("copy");
    world.run("copy");
    same(&world);
}
