//! Which database belongs to which: journals and catalogs that were lost, restored, copied or begun anew, and legs and
//! roots that came, went or were renamed. Each ends with an equal mirror, and with the reason in the history.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use shared::entry::Scope;
use shared::exit::Exit;
use shared::journal::{Class, Journal};
use syncer::report::Report;
use tests::dir_leg::{LEG, fill, mirrored, same, same_at, world};
use tests::mount::{LoopFs, available};
use tests::played::{Bent, PlayedTracker};
use tests::programs::{Daemon, call, text};
use tests::tmpfs::Tmpfs;
use tests::world::{MADE, ROOT, WRITTEN, World};

/// A further leg that mirrors the root to a directory of the leg's name.
fn leg(name: &str) -> String {
    LEG.replace("\"copy\"", &format!("\"{name}\"")).replace("{dir}/copy", &format!("{{dir}}/{name}"))
}

fn configure(world: &mut World, legs: &[&str]) {
    let legs: String = legs.iter().map(|name| leg(name)).collect();
    world.configure(&format!("{ROOT}{legs}"));
}

/// A world whose legs `copy` and `other` have mirrored everything.
fn two_legs() -> World {
    let mut world = mirrored();
    fs::create_dir(world.path("other")).unwrap();
    configure(&mut world, &["copy", "other"]);
    assert_eq!(world.run("other").exit, Exit::Ok);
    world
}

/// Something changes that no event of the journal tells of.
fn change(world: &World, content: &str) {
    fs::write(world.source().join("a/file"), content).unwrap();
    fs::write(world.source().join(format!("new-{content}")), content).unwrap();
}

/// Without its catalog a leg to a directory cannot know that a file which differs is its own: it holds it. So here
/// nothing that was mirrored changes.
fn add(world: &World) {
    fs::write(world.source().join("new"), "unseen").unwrap();
}

fn changed_and_seen(world: &mut World, content: &str) {
    change(world, content);
    world.saw("a/file", Scope::SelfOnly, WRITTEN);
    world.saw(&format!("new-{content}"), Scope::SelfOnly, MADE);
}

fn catalog(world: &World, leg: &str) -> PathBuf {
    world.path("state").join(format!("catalog-{leg}.db"))
}

/// The run did all there was to do, by a full pass for this reason, which stands in the history.
fn healed(world: &World, report: &Report, reason: &str) {
    assert_eq!((report.exit, report.deferred), (Exit::Ok, 0), "{}", report.text());
    assert_eq!(report.full_pass.as_deref(), Some(reason));
    let history = Journal::open(&world.config.journal_path()).unwrap().history(1_000).unwrap();
    assert!(history.iter().any(|h| h.kind == "full-pass" && h.text.contains(reason)), "{history:?}");
    same_at(world, &report.leg);
    // And it is over.
    let next = world.run(&report.leg);
    assert_eq!(
        (next.exit, next.full_pass.as_deref(), next.files_sent),
        (Exit::Ok, None, 0),
        "{}",
        next.text()
    );
}

/// Puts this journal in the place of the one in use; the tracker begins with it.
fn restore_journal(world: &mut World, from: &Path) {
    let path = world.config.journal_path();
    for suffix in ["", "-wal", "-shm"] {
        let _ = fs::remove_file(format!("{}{suffix}", path.display()));
    }
    fs::copy(from, &path).unwrap();
    world.journal = Journal::create_or_open(&path).unwrap();
}

#[test]
fn a_lost_journal() {
    let mut world = mirrored();
    change(&world, "unseen");
    world.lose_journal();
    healed(&world, &world.run("copy"), "the leg is new to this journal");
}

#[test]
fn a_journal_restored_from_a_backup() {
    let mut world = mirrored();
    let backup = world.path("backup.db");
    world.journal.copy_to(&backup).unwrap();
    changed_and_seen(&mut world, "seen");
    assert_eq!(world.run("copy").exit, Exit::Ok);
    change(&world, "unseen");
    restore_journal(&mut world, &backup);
    healed(&world, &world.run("copy"), "the journal is older than the catalog");
}

#[test]
fn a_restored_journal_that_a_leg_cannot_tell_from_its_own_has_the_gap_of_the_trackers_start() {
    let mut world = mirrored();
    let backup = world.path("backup.db");
    world.journal.copy_to(&backup).unwrap();
    changed_and_seen(&mut world, "seen");
    restore_journal(&mut world, &backup);
    world.saw_gap();
    let report = world.run("copy");
    assert_eq!((report.exit, report.full_pass.as_deref()), (Exit::Ok, None), "{}", report.text());
    same(&world);
}

#[test]
fn a_journal_of_another_machine() {
    let mut world = mirrored();
    let other = mirrored();
    let backup = world.path("backup.db");
    other.journal.copy_to(&backup).unwrap();
    add(&world);
    restore_journal(&mut world, &backup);
    configure(&mut world, &["copy"]);
    // Its leg of the same name has a catalog of its own: ours is set aside, and an equal mirror is taken over.
    let report = world.run("copy");
    assert_eq!(report.files_sent, 1, "{}", report.text());
    healed(&world, &report, "the catalog is not the one this journal knows");
}

#[test]
fn a_lost_catalog() {
    let world = mirrored();
    add(&world);
    world.lose_catalog("copy");
    healed(&world, &world.run("copy"), "the catalog is not the one this journal knows");
}

#[test]
fn a_lost_catalog_of_a_root_that_has_a_gap_sends_nothing_again() {
    let mut world = mirrored();
    world.lose_catalog("copy");
    world.saw_gap();
    world.saw("a/file", Scope::SelfOnly, WRITTEN);
    let report = world.run("copy");
    assert_eq!((report.exit, report.files_sent), (Exit::Ok, 0), "{}", report.text());
    same(&world);
}

#[test]
fn a_catalog_restored_from_an_older_copy() {
    let mut world = mirrored();
    let copy = world.path("copy.db");
    fs::copy(catalog(&world, "copy"), &copy).unwrap();
    changed_and_seen(&mut world, "seen");
    fs::remove_file(world.source().join("a-sibling")).unwrap();
    world.saw("a-sibling", Scope::SelfOnly, shared::entry::Mask::DELETE);
    assert_eq!(world.run("copy").exit, Exit::Ok);
    fs::copy(&copy, catalog(&world, "copy")).unwrap();
    healed(&world, &world.run("copy"), "the catalog is older than the journal");
}

/// A world whose leg owes one file, which is due. Its root is compared with the catalog no more.
fn owing() -> World {
    let mut world = mirrored();
    fs::write(world.source().join("doubtful"), "x").unwrap();
    world.saw("doubtful", Scope::SelfOnly, MADE);
    let bent = Bent { unknown: Some("doubtful"), ..Bent::default() };
    assert_eq!(world.run_as("copy", |parts| bent.over(parts)).deferred, 1);
    world.journal.wake_deferred("copy", Class::Unknown).unwrap();
    world
}

fn acked(world: &World) -> u64 {
    world.journal.leg("copy").unwrap().unwrap().acked
}

#[test]
fn a_catalog_restored_from_before_something_owed_was_done_although_the_cursor_did_not_move() {
    let world = owing();
    let (copy, before) = (world.path("copy.db"), acked(&world));
    fs::copy(catalog(&world, "copy"), &copy).unwrap();
    let report = world.run("copy");
    assert_eq!((report.files_sent, report.deferred, acked(&world)), (1, 0, before), "{}", report.text());
    let newer = world.path("newer.db");
    fs::copy(catalog(&world, "copy"), &newer).unwrap();
    fs::copy(&copy, catalog(&world, "copy")).unwrap();
    healed(&world, &world.run("copy"), "the catalog is older than the journal");
    // Nor does the other one fit any more.
    fs::copy(&newer, catalog(&world, "copy")).unwrap();
    healed(&world, &world.run("copy"), "the catalog is older than the journal");
}

#[test]
fn a_catalog_restored_from_before_a_removal() {
    let mut world = mirrored();
    fs::remove_file(world.source().join("a-sibling")).unwrap();
    world.saw("a-sibling", Scope::SelfOnly, shared::entry::Mask::DELETE);
    world.run_as("copy", |parts| parts.tracker = Box::new(PlayedTracker::down()));
    let (copy, before) = (world.path("copy.db"), acked(&world));
    fs::copy(catalog(&world, "copy"), &copy).unwrap();
    let report = world.run("copy");
    assert_eq!((report.removed, acked(&world)), (1, before), "{}", report.text());
    fs::copy(&copy, catalog(&world, "copy")).unwrap();
    healed(&world, &world.run("copy"), "the catalog is older than the journal");
}

#[test]
fn a_run_that_was_killed_after_its_catalog_and_before_the_journal_is_repeated_without_a_full_pass() {
    // What is owed alone does not move the cursor.
    for more in [true, false] {
        let mut world = owing();
        if more {
            changed_and_seen(&mut world, "seen");
        }
        let before = world.path("before.db");
        world.journal.copy_to(&before).unwrap();
        assert_eq!(world.run("copy").exit, Exit::Ok);
        restore_journal(&mut world, &before);
        let report = world.run("copy");
        assert_eq!((report.exit, report.full_pass.as_deref(), report.deferred), (Exit::Ok, None, 0));
        same(&world);
    }
}

#[test]
fn a_catalog_replaced_by_that_of_another_leg() {
    let world = two_legs();
    fs::copy(catalog(&world, "other"), catalog(&world, "copy")).unwrap();
    add(&world);
    healed(&world, &world.run("copy"), "the catalog is not the one this journal knows");
    let state = catalog(&world, "copy").parent().unwrap().to_owned();
    let names = fs::read_dir(state).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let aside: Vec<_> =
        names.filter(|name| name.starts_with("catalog-copy.db.") && name.ends_with(".aside")).collect();
    assert_eq!(aside.len(), 1, "what it was is kept");
}

#[test]
fn a_catalog_copied_for_a_new_leg() {
    let mut world = mirrored();
    fs::create_dir(world.path("new")).unwrap();
    configure(&mut world, &["copy", "new"]);
    fs::copy(catalog(&world, "copy"), catalog(&world, "new")).unwrap();
    healed(&world, &world.run("new"), "the leg is new to this journal");
    change(&world, "unseen");
    world.saw_gap();
    for leg in ["copy", "new"] {
        assert_eq!(world.run(leg).exit, Exit::Ok);
        same_at(&world, leg);
    }
}

#[test]
fn a_new_leg_beside_one_that_has_done_everything() {
    let mut world = mirrored();
    world.journal.prune(&["copy".into()]).unwrap();
    fs::create_dir(world.path("new")).unwrap();
    configure(&mut world, &["copy", "new"]);
    healed(&world, &world.run("new"), "the leg is new to this journal");
}

#[test]
fn a_renamed_leg_takes_its_mirror_over_with_and_without_its_catalog() {
    for with_catalog in [false, true] {
        let mut world = mirrored();
        let renamed = LEG.replace("name = \"copy\"", "name = \"renamed\"");
        if with_catalog {
            fs::rename(catalog(&world, "copy"), catalog(&world, "renamed")).unwrap();
        }
        world.configure(&format!("{ROOT}{renamed}"));
        let report = world.run("renamed");
        assert_eq!((report.exit, report.files_sent), (Exit::Ok, 0), "{}", report.text());
        assert_eq!(report.full_pass.as_deref(), Some("the leg is new to this journal"));
        same(&world);
    }
}

#[test]
fn a_leg_that_was_away_while_entries_were_pruned() {
    let mut world = two_legs();
    configure(&mut world, &["other"]);
    changed_and_seen(&mut world, "seen");
    assert_eq!(world.run("other").exit, Exit::Ok);
    assert!(world.journal.prune(&["other".into()]).unwrap() > 0, "a leg that was removed holds nothing back");
    configure(&mut world, &["copy", "other"]);
    healed(&world, &world.run("copy"), "entries that this leg had not read were pruned");
}

#[test]
fn a_leg_that_lagged_behind_and_was_collapsed_is_no_lost_database() {
    let mut world = two_legs();
    fs::create_dir(world.source().join("deep")).unwrap();
    world.saw("deep", Scope::SelfOnly, MADE);
    for n in 0..30 {
        fs::write(world.source().join(format!("deep/{n}")), "x").unwrap();
        world.saw(&format!("deep/{n}"), Scope::SelfOnly, MADE);
    }
    assert_eq!(world.run("other").exit, Exit::Ok);
    let legs = ["copy".to_owned(), "other".to_owned()];
    let done = world.journal.bound(&legs, 20, 0).unwrap();
    assert!(done.collapses == 1 && done.dropped >= 31, "{done:?}");
    let history = world.journal.history(10).unwrap();
    assert!(history.iter().any(|h| h.kind == "collapse" && h.text.contains("leg copy")), "{history:?}");
    // The tracker begins anew meanwhile, and one thing more changes.
    world.journal = Journal::create_or_open(&world.config.journal_path()).unwrap();
    changed_and_seen(&mut world, "after");
    for leg in ["copy", "other"] {
        let report = world.run(leg);
        assert_eq!((report.exit, report.full_pass.as_deref()), (Exit::Ok, None), "{}", report.text());
        assert_eq!((report.listed, report.deferred), (0, 0), "{}", report.text());
        same_at(&world, leg);
    }
}

#[test]
fn a_root_that_comes_back_owing_something_is_compared_even_if_nothing_was_acked_meanwhile() {
    let mut world = world();
    fill(&world);
    fs::create_dir(world.path("two")).unwrap();
    let second = "[[root]]\nname = \"two\"\npath = \"{dir}/two\"\n";
    let both = r#"[{ root = "space", prefix = "s" }, { root = "two", prefix = "t" }]"#;
    let with = |roots: &str| format!("{ROOT}{second}{}", LEG.replace("[\"space\"]", roots));
    world.configure(&with(both));
    assert_eq!(world.run("copy").exit, Exit::Ok);
    fs::write(world.path("two/doubtful"), "x").unwrap();
    let two = world.root_named("two");
    tests::world::note(&mut world.journal, two, "doubtful", Scope::SelfOnly, MADE);
    let bent = Bent { unknown: Some("doubtful"), ..Bent::default() };
    assert_eq!(world.run_as("copy", |parts| bent.over(parts)).exit, Exit::Partial);
    world.configure(&with(r#"[{ root = "space", prefix = "s" }]"#));
    assert_eq!(world.run("copy").deferred, 0);
    world.configure(&with(both));
    let report = world.run("copy");
    assert_eq!(report.exit, Exit::Ok, "{}", report.text());
    assert_eq!(fs::read_to_string(world.path("copy/t/doubtful")).unwrap(), "x");
}

/// The real programs, with a root on a filesystem of its own.
struct Real {
    dir: tempfile::TempDir,
    fs: LoopFs,
}

impl Real {
    fn new() -> Real {
        let real = Real { dir: tempfile::tempdir().unwrap(), fs: LoopFs::new("ext4").unwrap() };
        for dir in [real.fs.path().join("root"), real.fs.path().join("more"), real.dir.path().join("copy")] {
            fs::create_dir(dir).unwrap();
        }
        real.configure("", "");
        real
    }

    fn configure(&self, of_root: &str, more: &str) {
        let (base, disk) = (self.dir.path().display(), self.fs.path().display().to_string());
        let roots = format!("[[root]]\nname = \"space\"\npath = \"{disk}/root\"\n{of_root}\n{more}");
        let legs = LEG.replace("{dir}", &base.to_string());
        let top = format!("state_dir = \"{base}/state\"\nruntime_dir = \"{base}/run\"\n");
        fs::write(self.config(), format!("{top}{roots}{legs}")).unwrap();
    }

    fn config(&self) -> PathBuf {
        self.dir.path().join("longshore.toml")
    }

    fn flush(&self) -> Output {
        call("tracker", &self.config(), &["flush"])
    }

    /// The exit code of a run, and what it said.
    fn sync(&self) -> (Option<i32>, String) {
        let out = call("syncer", &self.config(), &["run"]);
        (out.status.code(), text(&out))
    }

    fn synced(&self) {
        let (code, said) = self.sync();
        assert_eq!(code, Some(0), "{said}");
        let (from, to) = (self.fs.path().join("root"), self.dir.path().join("copy"));
        tests::compare::assert_equal(&from, &to, tests::compare::Depth::All);
    }
}

#[test]
fn a_configuration_that_the_tracker_has_not_read_is_named_and_its_restart_makes_it_good() {
    if !available("ext4") {
        return;
    }
    let real = Real::new();
    fs::write(real.fs.path().join("root/file.tmp"), "x").unwrap();
    real.configure("exclude = [\"*.tmp\"]", "");
    let daemon = Daemon::start(&real.config());
    assert_eq!(real.sync().0, Some(0));
    let more = format!("[[root]]\nname = \"more\"\npath = \"{}/more\"\n", real.fs.path().display());
    let unread = |of_root: &str, more: &str, of_leg: &str| {
        real.configure(of_root, more);
        let text = fs::read_to_string(real.config()).unwrap();
        fs::write(real.config(), text.replace("roots = [\"space\"]", of_leg)).unwrap();
        let (code, said) = real.sync();
        assert!(code == Some(78) && said.contains("restart longshore-tracker"), "{code:?}: {said}");
    };
    unread("", "", "roots = [\"space\"]");
    unread("exclude = [\"*.tmp\"]", &more, "roots = [\"more\"]");
    real.configure("", "");
    assert_eq!(daemon.stop(), Some(0));
    let _daemon = Daemon::start(&real.config());
    // What was left out is in now, without an event of its own.
    real.synced();
}

#[test]
fn a_journal_that_is_lost_or_restored_under_the_real_programs() {
    if !available("ext4") {
        return;
    }
    let real = Real::new();
    let root = real.fs.path().join("root");
    let change = |content: &str| fs::write(root.join("file"), content).unwrap();
    change("first");
    let daemon = Daemon::start(&real.config());
    real.synced();
    let backup = real.dir.path().join("backup.db");
    let out = call("tracker", &real.config(), &["journal", "backup", backup.to_str().unwrap()]);
    assert!(out.status.success(), "{}", text(&out));
    change("second");
    real.synced();
    change("third");
    assert_eq!(daemon.stop(), Some(0));
    let journal = real.dir.path().join("state/journal.db");
    fs::copy(&backup, &journal).unwrap();
    let daemon = Daemon::start(&real.config());
    real.synced();
    change("fourth");
    daemon.kill();
    for suffix in ["", "-wal", "-shm"] {
        let _ = fs::remove_file(format!("{}{suffix}", journal.display()));
    }
    let _daemon = Daemon::start(&real.config());
    real.synced();
    let history = Journal::open_to_read(&journal).unwrap().history(100).unwrap();
    assert!(history.iter().any(|h| h.text.contains("the leg is new to this journal")), "{history:?}");
}

#[test]
fn everything_that_changed_while_the_state_disk_was_full_reaches_the_leg() {
    if !available("ext4") {
        return;
    }
    let real = Real::new();
    let root = real.fs.path().join("root");
    let state = real.dir.path().join("state");
    fs::create_dir(&state).unwrap();
    let _small = Tmpfs::sized(&state, "16m");
    let (old, gone) = (root.join("old"), root.join("gone"));
    [&old, &gone].into_iter().for_each(|file| fs::write(file, "before").unwrap());
    let daemon = Daemon::start(&real.config());
    real.synced();
    let filler = state.join("filler");
    assert!(fs::write(&filler, vec![0; 16 << 20]).is_err(), "it is full now");
    fs::write(&old, "while it was full").unwrap();
    fs::remove_file(&gone).unwrap();
    for n in 0..2_000 {
        fs::write(root.join(format!("new-{n}")), "x").unwrap();
    }
    let out = real.flush();
    assert!(matches!(out.status.code(), Some(0 | 75)), "it answers or says that it cannot: {}", text(&out));
    // A leg may claim what is there meanwhile; what comes after is no less covered.
    real.sync();
    fs::write(&old, "still full").unwrap();
    let out = real.flush();
    assert!(matches!(out.status.code(), Some(0 | 75)), "{}", text(&out));
    let log = || fs::metadata(state.join("journal.db-wal")).unwrap().len();
    let before = log();
    for n in 0..8 {
        fs::write(&old, n.to_string()).unwrap();
        real.flush();
    }
    assert_eq!(log(), before, "what is written again and again takes no room of its own");
    fs::remove_file(&filler).unwrap();
    fs::write(root.join("after"), "there is room").unwrap();
    real.synced();
    let journal = Journal::open_to_read(&state.join("journal.db")).unwrap();
    let history = journal.history(100).unwrap();
    assert!(history.iter().any(|h| h.kind == "gap" && h.text.contains("disk-full")), "{history:?}");
    assert_eq!(daemon.stop(), Some(0));
}
