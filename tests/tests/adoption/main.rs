//! What a start of the tracker takes over from the one before, and for which roots it may not.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::fs;
use std::os::fd::AsFd as _;

use shared::entry::{Cause, Handle};
use shared::journal::{Coalesce, Commit, Doubt};
use tests::mount::LoopFs;
use tests::programs::program;
use tracker::intake::buffer::{Buffer, Memfd};
use tracker::intake::sys::fanotify_mark;
use world::{WORD, World};

mod kept;
mod killed;
mod world;

#[test]
fn a_tracker_that_was_stopped_or_killed_goes_on_without_a_gap() {
    let Some(mut world) = World::started() else { return };
    world.write("a/before-stop");
    assert!(world.tracker.stop().success());
    let memory = Memfd::open(world.tracker.stored("buffer.")).unwrap();
    let buffer = Buffer::open(memory, Memfd::create).unwrap();
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
    rustix::io::pread(&buffer, &mut epoch, WORD * 3).unwrap();
    drop(buffer);
    world.set_word(11, u64::from_ne_bytes(epoch) + 1);
    world.set_word(12, Cause::Damaged as u64);
    world.start();
    assert_eq!(world.gaps(), world.both(Cause::Damaged));
    // A second one would be covered by the row of the first.
    let history = world.journal().history(100).unwrap();
    let last = history.iter().find(|row| row.kind == "gap").unwrap();
    assert!(last.text.ends_with("damaged"), "{history:?}");
    assert_eq!(world.journal().doubts(&fs).unwrap(), []);
}
