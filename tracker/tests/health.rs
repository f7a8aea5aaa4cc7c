//! `tracker health` against real trackers and disks: what it says, and with which exit code.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use std::path::Path;

use common::{Mounted, World, is_root};
use rustix::process::Signal;
use serde_json::Value;

/// The exit code and what `--json` says.
fn health(world: &World) -> (i32, Value) {
    let out = world.run(&["health", "--json"]);
    let health: Value = serde_json::from_slice(&out.stdout).unwrap_or_else(|e| panic!("{e}: {out:?}"));
    let code = out.status.code().unwrap();
    assert_eq!(health["exit"], code);
    assert_eq!(health["healthy"], code == 0);
    assert_eq!(health["schema"], 1);
    (code, health)
}

/// Its words; a long line is wrapped.
fn said(world: &World) -> String {
    let text = String::from_utf8(world.run(&["health"]).stdout).unwrap();
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn a_tracked_disk_is_healthy_and_its_canary_is_no_change() {
    if !is_root() {
        return;
    }
    let disk = Mounted::image("ext4");
    let mut world = World::new(&[("a", &disk.point)]);
    world.start();
    world.claim();
    let before = world.pending();
    for _ in 0..3 {
        let (code, health) = health(&world);
        assert_eq!(code, 0, "{health}");
        let root = &health["roots"][0];
        assert_eq!(
            (&root["state"], &root["source"], &root["canary"]),
            (&"ok".into(), &"fanotify".into(), &"heard".into())
        );
        assert_eq!(root["open_gaps"], 2, "of the new root and of the start");
        assert!(root["blind_spots"].to_string().contains("AIO"));
        assert!(health["probe_age_ns"].as_i64().unwrap() >= 0);
    }
    world.flush();
    assert_eq!(world.pending(), before, "it writes nothing");
    let said = said(&world);
    assert!(said.contains("heard") && said.contains("not seen: ") && said.ends_with("and watched"), "{said}");
}

#[test]
fn a_disk_that_is_gone_is_not_proven_and_comes_back() {
    if !is_root() {
        return;
    }
    let disk = Mounted::image("xfs");
    let good = tempfile::tempdir().unwrap();
    let mut world = World::new(&[("a", &disk.point), ("b", good.path())]);
    world.start();
    disk.umount();
    world.flush();
    let (code, health) = health(&world);
    assert_eq!(code, 5, "{health}");
    assert_eq!(
        (&health["roots"][0]["state"], &health["roots"][0]["healthy"]),
        (&"missing".into(), &false.into())
    );
    assert_eq!(
        (&health["roots"][1]["canary"], &health["roots"][1]["healthy"]),
        (&"heard".into(), &true.into())
    );
    let said = said(&world);
    assert!(said.contains("not healthy: a: missing: nothing is mounted at"), "{said}");
    disk.mount();
    world.flush();
    assert_eq!(world.run(&["health"]).status.code(), Some(0));
}

#[test]
fn a_subvolume_has_its_canary_at_the_top_of_its_btrfs() {
    if !is_root() {
        return;
    }
    let disk = Mounted::image("btrfs");
    let home = disk.point.join("home");
    common::call("btrfs", &["-q", "subvolume", "create", home.to_str().unwrap()]);
    disk.umount();
    let disk = disk.with_options("subvol=home");
    let mut world = World::new(&[("a", &disk.point)]);
    world.start();
    let (code, health) = health(&world);
    assert_eq!((code, &health["roots"][0]["canary"]), (0, &"heard".into()), "{health}");
    disk.umount();
    assert!(disk.is_free());
}

#[test]
fn inotify_has_no_canary_and_is_healthy_all_the_same() {
    if !is_root() {
        return;
    }
    let (mut world, _) = World::with_root();
    world.unshared(&["--user", "--map-root-user"], "");
    world.start();
    let (code, health) = health(&world);
    let root = &health["roots"][0];
    assert_eq!((code, &root["source"], &root["canary"]), (0, &"inotify".into(), &"none".into()), "{health}");
    assert!(root["source_reason"].as_str().unwrap().contains("EPERM"));
}

#[test]
fn a_tracker_that_hangs_or_is_gone_is_for_later() {
    let (mut world, _) = World::with_root();
    let (code, health_before) = health(&world);
    assert_eq!((code, &health_before["tracker"]), (75, &"not-running".into()));
    assert_eq!(health_before["roots"][0]["state"], "unknown");
    world.start();
    // Nothing is written while it stands still: its last probe is as old as this says.
    world.signal(Signal::STOP);
    let file = world.dir.path().join("run/tracker.json");
    let mut status: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    status["probed_boot_ns"] = (status["probed_boot_ns"].as_i64().unwrap() - 61_000_000_000).into();
    std::fs::write(&file, status.to_string()).unwrap();
    let (code, hanging) = health(&world);
    assert_eq!((code, &hanging["tracker"]), (75, &"hangs".into()), "{hanging}");
    assert_eq!(hanging["roots"][0]["state"], "ok", "what it said last");
    assert!(said(&world).contains("not healthy: the tracker hangs"), "{}", said(&world));
    world.kill();
    let (code, gone) = health(&world);
    assert_eq!((code, &gone["tracker"]), (75, &"not-running".into()));
    assert_eq!(gone["roots"][0]["state"], "unknown");
}

#[test]
fn bad_input_is_told_and_is_never_healthy() {
    let (mut world, root) = World::with_root();
    world.start();
    assert_eq!(world.run(&["health", "--fast"]).status.code(), Some(2));
    assert_eq!(world.run(&["health", "a"]).status.code(), Some(2));
    // A root that the running tracker has not heard of.
    let state = world.dir.path().join("state");
    world.configure(&state, &[("a", &root), ("new", Path::new("/"))], "");
    let (code, changed) = health(&world);
    assert_eq!(code, 5, "{changed}");
    assert!(changed["roots"][1]["reason"].as_str().unwrap().contains("restart the tracker"), "{changed}");
    world.configure(&state, &[("a", &root)], "");
    assert_eq!(world.run(&["health"]).status.code(), Some(0));
    world.signal(Signal::STOP);
    std::fs::write(world.dir.path().join("run/tracker.json"), "{").unwrap();
    std::fs::remove_file(world.dir.path().join("run/tracker.sock")).unwrap();
    let out = world.run(&["health"]);
    assert_eq!(out.status.code(), Some(75));
    assert!(String::from_utf8_lossy(&out.stderr).contains("tracker.json"), "{out:?}");
    std::fs::write(&world.config, "[[root]]\n").unwrap();
    assert_eq!(world.run(&["health", "--json"]).status.code(), Some(78));
    world.kill();
}
