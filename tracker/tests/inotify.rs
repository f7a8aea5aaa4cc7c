//! The program with inotify, as it runs where fanotify is refused.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use common::{World, is_root};
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
