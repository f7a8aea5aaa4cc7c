//! The kernel's limit on fanotify groups, met by a user of its own: nobody else loses a group to these tests.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use std::os::fd::OwnedFd;

use common::{Mounted, World, is_root};
use rustix::thread::set_thread_res_uid;
use tracker::intake::sys::fanotify_init;

/// All groups that a user may have.
fn all_groups_of(uid: u32) -> Vec<OwnedFd> {
    // The user of a thread is its own affair; what it opens belongs to the process.
    let hold = std::thread::spawn(move || {
        let uid = rustix::fs::Uid::from_raw(uid);
        set_thread_res_uid(uid, uid, uid).unwrap();
        let flags = libc::FAN_CLASS_NOTIF | libc::FAN_REPORT_FID | libc::FAN_CLOEXEC;
        let mut held = Vec::new();
        while let Ok(group) = fanotify_init(flags) {
            held.push(group);
            assert!(held.len() < 10_000, "there must be a limit");
        }
        held
    });
    hold.join().unwrap()
}

#[test]
fn a_filesystem_for_which_no_group_is_left_says_so_and_is_served_once_there_is_one() {
    if !is_root() {
        return;
    }
    // Of this process alone.
    let uid = 2_000_000_000 + std::process::id();
    let (first, second) = (Mounted::tmpfs("1m"), Mounted::tmpfs("1m"));
    let world = World::new(&[("a", &first.point), ("b", &second.point)]);
    let mut world = world.with_capabilities(uid);
    let mut held = all_groups_of(uid);
    let max = std::fs::read_to_string("/proc/sys/fs/fanotify/max_user_groups").unwrap();
    assert_eq!(held.len().to_string(), max.trim());
    held.pop();
    world.start();
    let out = world.run(&["health", "--json"]);
    assert_eq!(out.status.code(), Some(5), "{out:?}");
    let health: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    let roots = health["roots"].as_array().unwrap();
    let (served, other): (Vec<_>, Vec<_>) = roots.iter().partition(|r| r["healthy"] == true);
    assert_eq!((served.len(), other.len()), (1, 1), "{health}");
    assert_eq!(served[0]["source"], "fanotify");
    let why = other[0]["reason"].as_str().unwrap();
    for needle in ["failing", "EMFILE", "fanotify_init", "fs.fanotify.max_user_groups", max.trim(), "sysctl"]
    {
        assert!(why.contains(needle), "{needle} is missing: {why}");
    }
    held.clear();
    world.flush();
    assert_eq!(world.run(&["health"]).status.code(), Some(0));
    // What happened in the meantime is covered.
    assert!(world.causes().iter().filter(|(cause, _)| cause == "start").count() == 2, "{:?}", world.causes());
    std::fs::write(first.point.join("f"), "x").unwrap();
    std::fs::write(second.point.join("f"), "x").unwrap();
    world.flush();
    assert_eq!(world.pending().iter().filter(|p| p.path == b"f").count(), 2);
    assert_eq!(world.stop(), 0);
}

/// The rights of the unit are enough for a private mount.
#[test]
fn with_the_capabilities_of_the_unit_a_subvolume_is_tracked_with_fanotify() {
    if !is_root() {
        return;
    }
    let disk = Mounted::image("btrfs");
    common::call("btrfs", &["-q", "subvolume", "create", disk.point.join("s1").to_str().unwrap()]);
    disk.umount();
    let disk = disk.with_options("subvol=s1");
    std::fs::create_dir(disk.point.join("d")).unwrap();
    let mut world = World::new(&[("a", &disk.point)]).with_capabilities(2_000_000_000 + std::process::id());
    world.start();
    std::fs::write(disk.point.join("d/f"), "x").unwrap();
    world.flush();
    assert!(world.has("self", b"d/f"), "{:?}", world.causes());
    assert_eq!(world.stats()["status"]["roots"][0]["source"], "fanotify");
    assert_eq!(world.stop(), 0);
}
