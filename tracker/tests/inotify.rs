//! The program with inotify, as it runs where fanotify is refused.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use common::{Bind, World, is_root};
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
use shared::control::{Answer, Request, connect};

#[test]
fn a_directory_that_came_when_no_descriptor_was_left_is_watched_later() {
    if !is_root() {
        return;
    }
    let (mut world, root) = World::with_root();
    // In a user namespace fanotify is refused, and yet the tracker is this user's.
    world.unshared(&["--user", "--map-root-user"], "");
    world.start();
    assert_eq!(world.stats()["status"]["roots"][0]["source"], "inotify");
    world.claim();
    let socket = world.dir.path().join("run/tracker.sock");
    let mut watch = connect(&socket, &Request::Watch, Some(std::time::Duration::from_secs(60))).unwrap();
    // The server has begun to watch before it can hear of what follows: it compares heads.
    world.flush();
    let pid = Pid::from_raw(world.pid() as i32);
    let before = getrlimit(Resource::Nofile);
    prlimit(pid, Resource::Nofile, Rlimit { current: Some(3), ..before }).unwrap();
    std::fs::create_dir(root.join("new")).unwrap();
    assert!(matches!(watch.answer(), Ok(Answer::Changed { .. })));
    prlimit(pid, Resource::Nofile, before).unwrap();
    world.flush();
    assert_eq!(world.cause_count("remount"), 1, "{:?}", world.causes());
    world.claim();
    std::fs::write(root.join("new/f"), "x").unwrap();
    world.flush();
    assert!(world.has("self", b"new/f"), "{:?}", world.changes());
    assert_eq!(world.stop(), 0);
}

#[test]
fn what_a_mount_covered_is_watched_and_looked_at_once_the_mount_is_gone() {
    if !is_root() {
        return;
    }
    let (mut world, root) = World::with_root();
    for name in ["before", "later"] {
        std::fs::create_dir_all(root.join(format!("{name}/covered/sub"))).unwrap();
    }
    let over = tempfile::tempdir().unwrap();
    let before = Bind::new(over.path(), &root.join("before/covered"));
    world.unshared(&["--user", "--map-root-user"], "");
    world.start();
    world.claim();
    world.flush();
    assert_eq!(world.changes(), []);
    // One that is covered when it comes to its name.
    std::fs::rename(root.join("later"), root.join("away")).unwrap();
    let outside = world.dir.path().join("outside");
    std::fs::rename(root.join("away"), &outside).unwrap();
    world.flush();
    let later = Bind::new(over.path(), &outside.join("covered"));
    std::fs::rename(&outside, root.join("later")).unwrap();
    world.flush();
    world.claim();
    drop((before, Bind(root.join("later/covered")), later));
    world.flush();
    let covered = |name: &str| world.has("subtree", format!("{name}/covered").as_bytes());
    assert!(covered("before") && covered("later"), "{:?}", world.changes());
    world.claim();
    for name in ["before", "later"] {
        std::fs::write(root.join(format!("{name}/covered/sub/f")), "x").unwrap();
    }
    world.flush();
    for name in ["before", "later"] {
        let path = format!("{name}/covered/sub/f");
        assert!(world.has("self", path.as_bytes()), "{:?}", world.changes());
    }
    assert_eq!(world.stop(), 0);
}
