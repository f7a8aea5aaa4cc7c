//! What a start of the tracker takes over from the one before, and for which roots it may not.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::fs;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use shared::entry::{Cause, Handle};
use shared::journal::{Coalesce, Commit, Doubt, Journal};
use tempfile::TempDir;
use tests::mount::{LoopFs, available};
use tests::programs::{killable, program};
use tests::supervisor::Supervisor;
use tracker::intake::buffer::Buffer;
use tracker::intake::sys::fanotify_mark;

/// A tracker under supervision with the roots `a` and `b` on one filesystem.
struct World {
    tracker: Supervisor,
    fs: LoopFs,
    dir: TempDir,
    /// Rows up to here were there before.
    seen: u64,
}

impl World {
    /// `None` where nothing can be mounted.
    fn new(program: &Path) -> Option<World> {
        if !available("ext4") {
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let fs = LoopFs::new("ext4").unwrap();
        let tracker = Supervisor::new(program, &dir.path().join("longshore.toml"));
        let world = World { tracker, fs, dir, seen: 0 };
        for name in ["a", "b"] {
            fs::create_dir(world.root(name)).unwrap();
        }
        world.configure(&[("a", world.root("a"), ""), ("b", world.root("b"), "")]);
        Some(world)
    }

    /// One that has started, and whose first gaps are not counted.
    fn started() -> Option<World> {
        let mut world = World::new(&program("tracker"))?;
        world.tracker.start();
        world.write("a/first");
        world.tracker.flush();
        world.seen = world.journal().head_and_floor().unwrap().0;
        Some(world)
    }

    fn root(&self, name: &str) -> PathBuf {
        self.fs.path().join(name)
    }

    fn configure(&self, roots: &[(&str, PathBuf, &str)]) {
        let base = self.dir.path().display();
        let mut text = format!("state_dir = \"{base}/state\"\nruntime_dir = \"{base}/run\"\n");
        for (name, path, more) in roots {
            text += &format!("[[root]]\nname = \"{name}\"\npath = \"{}\"\n{more}\n", path.display());
        }
        fs::write(self.dir.path().join("longshore.toml"), text).unwrap();
    }

    fn write(&self, path: &str) {
        fs::write(self.fs.path().join(path), path).unwrap();
    }

    fn journal_path(&self) -> PathBuf {
        self.dir.path().join("state/journal.db")
    }

    fn journal(&self) -> Journal {
        Journal::open(&self.journal_path()).unwrap()
    }

    /// (root, cause) of the gaps since the first start, in order.
    fn gaps(&self) -> Vec<(String, Cause)> {
        let journal = self.journal();
        let roots = journal.roots().unwrap();
        let name = |id| roots.iter().find(|r| r.id == id).unwrap().name.clone();
        let rows = journal.read(self.seen, i64::MAX as u64, 100_000).unwrap();
        rows.into_iter().filter(|r| r.cause.is_gap()).map(|r| (name(r.root), r.cause)).collect()
    }

    fn both(&self, cause: Cause) -> Vec<(String, Cause)> {
        vec![("a".into(), cause), ("b".into(), cause)]
    }

    fn has(&self, path: &str) -> bool {
        let rows = self.journal().read(0, i64::MAX as u64, 100_000).unwrap();
        rows.iter().any(|r| r.path.as_bytes() == path.as_bytes())
    }

    /// What the newest start said of itself.
    fn how_it_began(&self) -> String {
        let history = self.journal().history(1_000).unwrap();
        history.into_iter().find(|row| row.kind == "start").unwrap().text
    }

    /// Starts it and says how it began.
    fn start(&mut self) -> String {
        self.tracker.start();
        self.tracker.flush();
        self.how_it_began()
    }

    /// The file `name` is in the journal, in spite of all that happened.
    fn assert_recorded(&self, names: &[&str]) {
        for name in names {
            assert!(self.has(name), "{name}");
        }
    }
}

#[test]
fn a_tracker_that_was_stopped_or_killed_goes_on_without_a_gap() {
    let Some(mut world) = World::started() else { return };
    world.write("a/before-stop");
    assert!(world.tracker.stop().success());
    let buffer = Buffer::open(world.tracker.stored("buffer.")).unwrap();
    assert_eq!(buffer.left(), 0, "SIGTERM commits all that was read");
    drop(buffer);
    world.write("a/while-stopped");
    let said = world.start();
    assert!(said.contains("after a clean stop: adopted") && said.ends_with("no gap"), "{said}");
    world.write("b/before-kill");
    world.tracker.kill();
    world.write("b/while-dead");
    let said = world.start();
    assert!(said.contains("after the tracker was killed: adopted") && said.ends_with("no gap"), "{said}");
    assert_eq!(world.gaps(), []);
    world.assert_recorded(&["before-stop", "while-stopped", "before-kill", "while-dead"]);
}

#[test]
fn without_what_the_service_manager_kept_a_start_is_a_gap() {
    let Some(mut world) = World::started() else { return };
    world.tracker.stop();
    world.tracker.empty_the_store();
    let said = world.start();
    assert!(said.contains("after a clean stop: the service manager had kept nothing"), "{said}");
    assert_eq!(world.gaps(), world.both(Cause::Start));
}

#[test]
fn a_root_with_other_rules_gets_a_gap_and_the_one_beside_it_none() {
    let Some(mut world) = World::started() else { return };
    world.tracker.kill();
    world.write("a/while-dead");
    world.configure(&[("a", world.root("a"), ""), ("b", world.root("b"), "exclude = [\"*.tmp\"]")]);
    world.start();
    assert_eq!(world.gaps(), [("b".into(), Cause::Rules)]);
    world.assert_recorded(&["while-dead"]);
    world.tracker.kill();
    world.start();
    assert_eq!(world.gaps().len(), 1, "the new rules are in force");
}

#[test]
fn a_root_that_was_left_out_for_a_while_gets_a_gap_and_the_one_beside_it_none() {
    let Some(mut world) = World::started() else { return };
    let both = [("a", world.root("a"), ""), ("b", world.root("b"), "")];
    world.tracker.stop();
    world.configure(&both[..1]);
    world.start();
    assert_eq!(world.gaps(), []);
    world.write("b/unseen");
    world.tracker.flush();
    world.tracker.stop();
    world.configure(&both);
    world.start();
    assert_eq!(world.gaps(), [("b".into(), Cause::Rules)]);
}

#[test]
fn another_directory_at_the_path_of_a_root_is_a_gap_for_that_root() {
    let Some(mut world) = World::started() else { return };
    world.tracker.kill();
    fs::rename(world.root("b"), world.root("away")).unwrap();
    fs::create_dir(world.root("b")).unwrap();
    world.start();
    assert_eq!(world.gaps(), [("b".into(), Cause::Identity)]);
}

#[test]
fn a_new_journal_is_a_gap() {
    let Some(mut world) = World::started() else { return };
    world.tracker.kill();
    for suffix in ["", "-wal", "-shm"] {
        let _ = fs::remove_file(world.dir.path().join(format!("state/journal.db{suffix}")));
    }
    world.seen = 0;
    let said = world.start();
    assert!(said.contains("another journal"), "{said}");
    assert!(world.gaps().ends_with(&world.both(Cause::Adoption)), "{:?}", world.gaps());
}

#[test]
fn a_journal_that_was_restored_from_an_older_copy_is_a_gap() {
    let Some(mut world) = World::started() else { return };
    let copy = world.dir.path().join("copy.db");
    world.journal().copy_to(&copy).unwrap();
    world.write("a/after-the-copy");
    world.tracker.flush();
    world.tracker.kill();
    for suffix in ["-wal", "-shm"] {
        let _ = fs::remove_file(world.dir.path().join(format!("state/journal.db{suffix}")));
    }
    fs::rename(&copy, world.journal_path()).unwrap();
    let said = world.start();
    assert!(said.contains("older copy"), "{said}");
    assert_eq!(world.gaps(), world.both(Cause::Adoption));
    world.write("a/and-on-it-goes");
    world.tracker.kill();
    world.start();
    assert_eq!(world.gaps().len(), 2, "the new buffer belongs to it");
    world.assert_recorded(&["and-on-it-goes"]);
}

#[test]
fn what_was_kept_for_a_filesystem_that_left_the_configuration_leaves_the_store() {
    let Some(mut world) = World::new(&program("tracker")) else { return };
    let other = LoopFs::new("ext4").unwrap();
    let elsewhere = other.path().join("c");
    fs::create_dir(&elsewhere).unwrap();
    let (a, b) = (world.root("a"), world.root("b"));
    world.configure(&[("a", a.clone(), ""), ("b", b.clone(), ""), ("c", elsewhere, "")]);
    world.start();
    assert_eq!(world.tracker.names().len(), 4, "{:?}", world.tracker.names());
    world.tracker.stop();
    world.seen = world.journal().head_and_floor().unwrap().0;
    world.configure(&[("a", a, ""), ("b", b, "")]);
    world.tracker.start();
    assert_eq!(world.gaps(), []);
    assert_eq!(world.tracker.names().len(), 2, "{:?}", world.tracker.names());
    let history = world.journal().history(100).unwrap();
    let said = history.iter().filter(|row| row.text.contains("is kept no more")).count();
    assert_eq!(said, 2, "{history:?}");
    assert!(world.tracker.log().contains("is kept no more"));
}

#[test]
fn a_mark_that_an_unmount_took_away_is_a_gap() {
    let Some(mut world) = World::started() else { return };
    world.tracker.kill();
    world.fs.unmount().unwrap();
    world.fs.mount().unwrap();
    world.write("a/unseen");
    let said = world.start();
    assert!(said.contains("the mark on the filesystem is gone"), "{said}");
    assert_eq!(world.gaps(), world.both(Cause::Remount));
    assert_eq!(world.tracker.names().len(), 2, "the new group has taken the old one's place");
    world.tracker.kill();
    world.write("a/while-dead");
    world.start();
    assert_eq!(world.gaps().len(), 2);
    world.assert_recorded(&["while-dead"]);
}

#[test]
fn a_group_that_was_placed_anew_while_the_tracker_ran_is_the_one_that_is_adopted() {
    let Some(mut world) = World::started() else { return };
    world.fs.unmount().unwrap();
    world.tracker.flush();
    world.fs.mount().unwrap();
    world.tracker.flush();
    // The row itself is covered by that of the first start, which no leg has claimed yet.
    let history = world.journal().history(100).unwrap();
    assert!(history.iter().any(|row| row.kind == "gap" && row.text.ends_with("remount")), "{history:?}");
    assert_eq!(world.tracker.names().len(), 2, "{:?}", world.tracker.names());
    world.tracker.kill();
    world.write("b/while-dead");
    let said = world.start();
    assert!(said.ends_with("no gap"), "{said}");
    assert_eq!(world.gaps(), []);
    world.assert_recorded(&["while-dead"]);
}

#[test]
fn a_group_with_the_mask_of_another_version_is_a_gap() {
    let Some(mut world) = World::started() else { return };
    world.tracker.kill();
    let group = world.tracker.stored("group.");
    let on = fs::File::open(world.fs.path()).unwrap();
    let flags = libc::FAN_MARK_REMOVE | libc::FAN_MARK_FILESYSTEM;
    fanotify_mark(group.as_fd(), flags, libc::FAN_ATTRIB, on.as_fd()).unwrap();
    let said = world.start();
    assert!(said.contains("not what this version asks for"), "{said}");
    assert_eq!(world.gaps(), world.both(Cause::Adoption));
    world.tracker.kill();
    world.start();
    assert_eq!(world.gaps().len(), 2, "the new group has the right one");
}

#[test]
fn a_damaged_buffer_is_a_gap_and_no_crash() {
    // A page of words, then two copies of what lasts.
    for (place, bytes) in [(4096, vec![0x5a; 40_000]), (0, vec![0xff; 512]), (0, vec![0x11; 512])] {
        let Some(mut world) = World::started() else { return };
        world.tracker.kill();
        let buffer = world.tracker.stored("buffer.");
        rustix::io::pwrite(&buffer, &bytes, place).unwrap();
        world.start();
        let gaps = world.gaps();
        let causes = [Cause::Damaged, Cause::Adoption];
        assert!(gaps.len() == 2 && gaps.iter().all(|(_, cause)| causes.contains(cause)), "{gaps:?}");
        world.write("a/and-on-it-goes");
        world.tracker.kill();
        world.start();
        assert_eq!(world.gaps().len(), 2);
        world.assert_recorded(&["and-on-it-goes"]);
    }
}

#[test]
fn a_record_that_kills_the_tracker_three_times_is_skipped_with_a_gap() {
    let Some(mut world) = World::new(&killable()) else { return };
    world.start();
    world.seen = world.journal().head_and_floor().unwrap().0;
    world.tracker.kill();
    world.write("a/poison");
    world.write("b/behind-it");
    for deaths in 1..=3 {
        world.tracker.env = vec![("LONGSHORE_KILL", "translating:1".to_owned())];
        world.tracker.spawn();
        world.tracker.wait();
        if deaths == 2 {
            // A death that is not the record's, after the second was counted.
            world.tracker.env = vec![("LONGSHORE_KILL", "recovering:3".to_owned())];
            world.tracker.spawn();
            world.tracker.wait();
        }
        assert_eq!(world.gaps(), [], "after {deaths} deaths");
    }
    world.tracker.env.clear();
    world.start();
    assert_eq!(world.gaps(), world.both(Cause::Poison));
    world.assert_recorded(&["behind-it"]);
    world.write("a/later");
    world.tracker.kill();
    world.start();
    assert_eq!(world.gaps().len(), 2);
    world.assert_recorded(&["later"]);
}

#[test]
fn a_first_start_that_was_killed_before_its_gap_row_is_made_up_for() {
    for (point, gap) in [("transaction:1", true), ("committed:1", false)] {
        let Some(mut world) = World::new(&killable()) else { return };
        world.tracker.env = vec![("LONGSHORE_KILL", point.to_owned())];
        world.tracker.spawn();
        world.tracker.wait();
        world.tracker.env.clear();
        world.write("a/while-dead");
        let said = world.start();
        assert_eq!(said.ends_with("no gap"), !gap, "{point}: {said}");
        let starts = world.gaps().into_iter().filter(|(_, cause)| *cause == Cause::Start).count();
        assert_eq!(starts, 2, "{point}: {:?}", world.gaps());
        world.assert_recorded(&["while-dead"]);
    }
}

impl World {
    /// Leaves a doubt in the journal, while no tracker runs; returns the name of its filesystem.
    fn leave_a_doubt(&self) -> String {
        let status = fs::read(self.dir.path().join("run/tracker.json")).unwrap();
        let status: serde_json::Value = serde_json::from_slice(&status).unwrap();
        let fs = status["filesystems"][0]["name"].as_str().unwrap().to_owned();
        let doubt = Doubt { fs: fs.clone(), handle: Handle { kind: 1, bytes: vec![9; 8] }, epoch: 77 };
        let commit = Commit { doubts: vec![doubt], ..Commit::default() };
        self.journal().append(&mut Coalesce::default(), &commit, 0).unwrap();
        fs
    }
}

#[test]
fn a_doubt_of_an_earlier_instance_is_decided_by_the_next() {
    let Some(mut world) = World::started() else { return };
    world.tracker.kill();
    let fs = world.leave_a_doubt();
    world.start();
    assert_eq!(world.gaps(), world.both(Cause::Unresolved), "nothing told of its end");
    assert_eq!(world.journal().doubts(&fs).unwrap(), []);
}

#[test]
fn a_gap_that_an_earlier_instance_owed_answers_its_doubts_too() {
    let Some(mut world) = World::started() else { return };
    world.tracker.kill();
    let fs = world.leave_a_doubt();
    let buffer = world.tracker.stored("buffer.");
    let mut epoch = [0; 8];
    rustix::io::pread(&buffer, &mut epoch, WORD * 4).unwrap();
    let owed = u64::from_ne_bytes(epoch) + 1;
    rustix::io::pwrite(&buffer, &owed.to_ne_bytes(), WORD * 7).unwrap();
    rustix::io::pwrite(&buffer, &(Cause::Damaged as u64).to_ne_bytes(), WORD * 8).unwrap();
    drop(buffer);
    world.start();
    assert_eq!(world.gaps(), world.both(Cause::Damaged));
    // A second one would be covered by the row of the first.
    let history = world.journal().history(100).unwrap();
    let last = history.iter().find(|row| row.kind == "gap").unwrap();
    assert!(last.text.ends_with("damaged"), "{history:?}");
    assert_eq!(world.journal().doubts(&fs).unwrap(), []);
}

/// Bytes of a word in the head of a buffer: the fifth is the epoch, the eighth that of an owed gap, then its cause.
const WORD: u64 = 8;
