//! What the service manager gives back is not always what a start expects: another version's, twice, in another order,
//! for a root that is not there.

use std::fs;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::PathBuf;

use shared::entry::Cause;
use tests::mount::LoopFs;
use tests::programs::program;
use tests::tmpfs::Tmpfs;
use tracker::intake::sys::fanotify_mark;

use crate::world::World;

#[test]
fn a_clean_restart_into_a_version_with_another_layout_of_the_buffer_goes_on_without_a_gap() {
    let Some(mut world) = World::started() else { return };
    world.write("a/before-stop");
    assert!(world.tracker.stop().success());
    world.change_the_layout();
    world.write("a/while-stopped");
    let said = world.start();
    assert!(said.contains("is made anew") && said.ends_with("no gap"), "{said}");
    world.write("b/before-kill");
    world.tracker.kill();
    world.write("b/while-dead");
    let said = world.start();
    assert!(!said.contains("is made anew") && said.ends_with("no gap"), "{said}");
    assert_eq!(world.gaps(), []);
    world.assert_recorded(&["before-stop", "while-stopped", "before-kill", "while-dead"]);
}

#[test]
fn a_buffer_of_another_layout_whose_tracker_was_killed_is_a_gap() {
    let Some(mut world) = World::started() else { return };
    // That it was left cleanly once says nothing any more.
    world.tracker.stop();
    world.start();
    world.write("a/before-kill");
    world.tracker.kill();
    world.change_the_layout();
    let said = world.start();
    assert!(said.contains("laid out by another version"), "{said}");
    assert_eq!(world.gaps(), world.both(Cause::Adoption));
}

#[test]
fn a_root_with_other_rules_gets_its_gap_from_a_version_with_another_layout_too() {
    let Some(mut world) = World::started() else { return };
    world.tracker.stop();
    world.change_the_layout();
    fs::rename(world.root("b"), world.root("away")).unwrap();
    fs::create_dir(world.root("b")).unwrap();
    let said = world.start();
    assert!(said.contains("is made anew"), "{said}");
    assert_eq!(world.gaps(), [("b".into(), Cause::Identity)]);
}

#[test]
fn a_journal_that_went_back_is_a_gap_in_a_version_with_another_layout_too() {
    let Some(mut world) = World::started() else { return };
    let copy = world.dir.path().join("copy.db");
    world.journal().copy_to(&copy).unwrap();
    world.write("a/after-the-copy");
    world.tracker.flush();
    world.tracker.stop();
    fs::rename(&copy, world.journal_path()).unwrap();
    world.change_the_layout();
    let said = world.start();
    assert!(said.contains("older copy"), "{said}");
    assert_eq!(world.gaps(), world.both(Cause::Adoption));
}

#[test]
fn the_order_in_which_descriptors_are_passed_says_nothing() {
    let Some(mut world) = World::started() else { return };
    let order = world.tracker.names();
    world.tracker.kill();
    for name in ["once", "twice"] {
        world.tracker.reverse_the_store();
        world.write(&format!("a/{name}"));
        let said = world.start();
        assert!(said.ends_with("no gap"), "{said}");
        world.tracker.kill();
    }
    assert_eq!((world.gaps(), world.tracker.names()), (vec![], order));
    world.assert_recorded(&["once", "twice"]);
}

#[test]
fn of_two_descriptors_with_one_name_none_is_believed() {
    for (what, first) in [("group.", true), ("group.", false), ("buffer.", true), ("buffer.", false)] {
        let Some(mut world) = World::started() else { return };
        let stale = world.tracker.stored(what);
        // Those in the store from here on are others.
        world.tracker.stop();
        world.tracker.empty_the_store();
        world.start();
        let gaps = world.gaps().len();
        world.tracker.kill();
        world.tracker.add_twin(what, stale, first);
        world.write("a/while-dead");
        let said = world.start();
        assert!(!said.contains("no gap"), "{what} {first}: {said}");
        assert_eq!(world.gaps().len(), gaps + 2, "{what} {first}: {:?}", world.gaps());
        assert_eq!(world.tracker.names().len(), 2, "{:?}", world.tracker.names());
        world.write("a/later");
        world.tracker.kill();
        let said = world.start();
        assert!(said.ends_with("no gap"), "{what} {first}: {said}");
        world.assert_recorded(&["later"]);
    }
}

#[test]
fn a_root_whose_disk_is_away_at_the_start_gets_its_gap_when_it_is_back_and_the_others_none() {
    for first in [true, false] {
        let Some(mut world) = World::started() else { return };
        let mut other = LoopFs::new("ext4").unwrap();
        let c = other.path().join("c");
        fs::create_dir(&c).unwrap();
        let identity = World::identity(&c);
        let mut roots = vec![("a", world.root("a"), ""), ("b", world.root("b"), "")];
        roots.insert(if first { 0 } else { 2 }, ("c", c.clone(), &identity));
        world.tracker.stop();
        world.configure(&roots);
        world.start();
        world.seen = world.journal().head_and_floor().unwrap().0;
        world.tracker.kill();
        other.unmount().unwrap();
        world.write("a/while-dead");
        world.tracker.start();
        world.tracker.flush();
        assert_eq!(world.gaps(), [], "nothing can be compared yet");
        other.mount().unwrap();
        fs::write(c.join("unseen"), "").unwrap();
        world.tracker.flush();
        assert_eq!(world.gaps(), [("c".into(), Cause::Adoption)]);
        world.assert_recorded(&["while-dead"]);
        world.tracker.kill();
        fs::write(c.join("while-dead-again"), "").unwrap();
        world.start();
        assert_eq!(world.gaps().len(), 1);
        world.assert_recorded(&["while-dead-again"]);
    }
}

#[test]
fn a_root_that_is_away_at_the_start_from_a_disk_that_is_there_costs_the_others_no_gap() {
    for first in [true, false] {
        let Some(mut world) = World::started() else { return };
        let (a, b) = (World::identity(&world.root("a")), World::identity(&world.root("b")));
        let mut roots = [("a", world.root("a"), a.as_str()), ("b", world.root("b"), b.as_str())];
        if first {
            roots.reverse();
        }
        world.tracker.stop();
        world.configure(&roots);
        world.start();
        world.tracker.kill();
        fs::rename(world.root("b"), world.root("away")).unwrap();
        world.write("a/while-dead");
        world.tracker.start();
        world.tracker.flush();
        assert_eq!(world.gaps(), [], "first: {first}");
        world.assert_recorded(&["while-dead"]);
        fs::rename(world.root("away"), world.root("b")).unwrap();
        world.tracker.flush();
        assert_eq!(world.gaps(), [("b".into(), Cause::Start)]);
    }
}

/// A started and killed tracker whose state disk is full, and what fills it.
fn on_a_full_state_disk() -> Option<(World, Tmpfs, PathBuf)> {
    let mut world = World::new(&program("tracker"))?;
    let state = world.dir.path().join("state");
    fs::create_dir(&state).unwrap();
    let small = Tmpfs::sized(&state, "16m");
    world.start();
    world.seen = world.journal().head_and_floor().unwrap().0;
    world.tracker.kill();
    let filler = state.join("filler");
    assert!(fs::write(&filler, vec![0; 16 << 20]).is_err(), "it is full now");
    Some((world, small, filler))
}

#[test]
fn starts_on_a_full_state_disk_fail_until_there_is_room_and_then_nothing_was_missed() {
    let Some((mut world, _small, filler)) = on_a_full_state_disk() else { return };
    for name in ["once", "twice"] {
        world.write(&format!("a/{name}"));
        world.tracker.spawn();
        assert!(!world.tracker.is_ready(), "{}", world.tracker.log());
        assert_eq!(world.tracker.wait().code(), Some(75));
    }
    fs::remove_file(&filler).unwrap();
    let said = world.start();
    assert!(said.ends_with("no gap"), "{said}");
    assert_eq!(world.gaps(), []);
    world.assert_recorded(&["once", "twice"]);
}

#[test]
fn what_an_adoption_cannot_commit_for_want_of_room_is_a_gap_and_no_more_than_that() {
    let Some((mut world, _small, filler)) = on_a_full_state_disk() else { return };
    for n in 0..5_000 {
        world.write(&format!("a/{n}"));
    }
    // As much as the start itself takes, and no more.
    let filler = fs::File::options().write(true).open(filler).unwrap();
    let mut size = filler.metadata().unwrap().len();
    loop {
        world.tracker.spawn();
        if world.tracker.is_ready() {
            break;
        }
        world.tracker.wait();
        size -= 16 << 10;
        filler.set_len(size).unwrap();
    }
    world.tracker.flush();
    assert!(world.how_it_began().ends_with("no gap"), "{}", world.how_it_began());
    assert_eq!(world.gaps(), world.both(Cause::DiskFull));
    filler.set_len(0).unwrap();
    world.tracker.kill();
    world.write("a/later");
    let said = world.start();
    assert!(said.ends_with("no gap"), "{said}");
    assert_eq!(world.gaps().len(), 2);
    world.assert_recorded(&["later"]);
}

#[test]
fn a_mark_that_a_killed_canary_left_goes_at_the_next_start_and_no_event_with_it() {
    let Some(mut world) = World::started() else { return };
    world.tracker.kill();
    let group = world.tracker.stored("group.");
    let marked = || {
        let text = fs::read_to_string(format!("/proc/self/fdinfo/{}", group.as_raw_fd())).unwrap();
        let of = |kind: &str| text.lines().filter(|line| line.starts_with(kind)).count();
        (of("fanotify ino:"), of("fanotify sdev:"))
    };
    for name in ["a", "b"] {
        let dir = fs::File::open(world.root(name)).unwrap();
        let mask = libc::FAN_OPEN | libc::FAN_ONDIR;
        fanotify_mark(group.as_fd(), libc::FAN_MARK_ADD, mask, dir.as_fd()).unwrap();
    }
    world.write("a/while-dead");
    fs::read_dir(world.root("a")).unwrap();
    assert_eq!(marked(), (2, 1));
    let said = world.start();
    assert!(said.ends_with("no gap"), "{said}");
    assert_eq!(marked(), (0, 1));
    assert_eq!(world.gaps(), []);
    world.assert_recorded(&["while-dead"]);
}
