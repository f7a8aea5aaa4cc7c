//! btrfs with subvolumes: marked and resolved through a mount of the whole filesystem that nobody else sees.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::process::Command;

use common::{Bind, Mounted, World, call, is_root};
use rustix::process::Signal;
use tracker::mounts::Mount;

/// With these subvolumes, unmounted.
fn btrfs(subvolumes: &[&str]) -> Mounted {
    let disk = Mounted::image("btrfs");
    subvolumes.iter().for_each(|name| subvolume("create", &[&disk.point.join(name)]));
    disk.umount();
    disk
}

fn subvolume(what: &str, paths: &[&Path]) {
    let mut args = vec![Path::new("-q"), Path::new("subvolume"), Path::new(what)];
    args.extend(paths);
    call("btrfs", &args);
}

fn world_on(roots: &[(&str, &Path)]) -> World {
    let world = World::new(&[]);
    world.configure(&world.dir.path().join("state"), roots, "");
    world
}

fn sources(world: &World) -> Vec<String> {
    let stats = world.stats();
    let roots = stats["status"]["roots"].as_array().unwrap().iter();
    roots
        .map(|r| format!("{} {}", r["source"].as_str().unwrap(), r["source_reason"].as_str().unwrap()))
        .collect()
}

/// (root, scope, path) of all but the gaps.
fn changes(world: &World) -> Vec<(String, String, String)> {
    let shown = |p: common::Pending| (p.root, p.scope, String::from_utf8(p.path).unwrap());
    world.pending().into_iter().map(shown).filter(|(.., path)| !path.is_empty()).collect()
}

fn has(world: &World, root: &str, scope: &str, path: &str) -> bool {
    changes(world).contains(&(root.to_owned(), scope.to_owned(), path.to_owned()))
}

/// No mount that shows the whole filesystem is there: each of these is one of its parts.
#[test]
fn roots_on_subvolumes_alone_are_tracked_with_fanotify() {
    if !is_root() {
        return;
    }
    let disk = btrfs(&["s1", "s2"]).with_options("subvol=s1");
    let second = tempfile::tempdir().unwrap();
    let device = disk.device.clone().unwrap();
    let s2 = Bind::with(&["-o", "subvol=s2"], &device, second.path());
    std::fs::create_dir_all(disk.point.join("d/deep")).unwrap();
    let mut world = world_on(&[("a", &disk.point), ("b", &s2.0)]);
    world.start();
    assert_eq!(sources(&world), ["fanotify ", "fanotify "]);
    std::fs::write(disk.point.join("d/deep/f"), "x").unwrap();
    std::fs::write(s2.0.join("g"), "x").unwrap();
    world.flush();
    assert!(has(&world, "a", "self", "d/deep/f") && has(&world, "b", "self", "g"), "{:?}", changes(&world));
    assert!(!has(&world, "b", "self", "d/deep/f") && !has(&world, "a", "self", "g"));
    // What lies in a subvolume below is told by its own events, what a snapshot brought by none.
    let (nested, snapshot) = (disk.point.join("nested"), disk.point.join("d/snap"));
    subvolume("create", &[&nested]);
    subvolume("snapshot", &[&s2.0, &snapshot]);
    std::fs::create_dir(nested.join("in")).unwrap();
    std::fs::write(nested.join("in/f"), "x").unwrap();
    std::fs::write(snapshot.join("new"), "x").unwrap();
    world.flush();
    assert!(has(&world, "a", "subtree", "nested") && has(&world, "a", "subtree", "d/snap"));
    assert!(has(&world, "a", "self", "nested/in/f") && has(&world, "a", "self", "d/snap/new"));
    world.claim();
    // Gone before anybody could ask where it was.
    world.signal(Signal::STOP);
    std::fs::create_dir(nested.join("in/deep")).unwrap();
    std::fs::write(nested.join("in/deep/f"), "x").unwrap();
    subvolume("delete", &[&nested]);
    world.signal(Signal::CONT);
    world.flush();
    assert!(has(&world, "a", "subtree", "nested"), "{:?}", changes(&world));
    assert_eq!(world.cause_count("unresolved"), 0, "{:?}", world.causes());
    assert_eq!(world.stop(), 0);
}

#[test]
fn a_root_in_a_subvolume_below_the_mounted_top_level_has_its_own_paths() {
    if !is_root() {
        return;
    }
    let disk = Mounted::image("btrfs");
    let home = disk.point.join("home");
    subvolume("create", &[&home]);
    std::fs::create_dir(home.join("me")).unwrap();
    let mut world = world_on(&[("all", &disk.point), ("home", &home), ("me", &home.join("me"))]);
    world.start();
    assert!(sources(&world).iter().all(|s| s == "fanotify "), "{:?}", sources(&world));
    std::fs::write(home.join("me/f"), "x").unwrap();
    std::fs::write(disk.point.join("g"), "x").unwrap();
    world.flush();
    let mut rows = changes(&world);
    rows.sort();
    let row = |root: &str, path: &str| (root.to_owned(), "self".to_owned(), path.to_owned());
    assert_eq!(rows, [row("all", "g"), row("all", "home/me/f"), row("home", "me/f"), row("me", "f")]);
}

#[test]
fn an_unmounted_subvolume_leaves_the_device_free_and_comes_back_with_a_gap() {
    if !is_root() {
        return;
    }
    let disk = btrfs(&["s1"]).with_options("subvol=s1");
    let device = disk.device.clone().unwrap();
    let mut world = world_on(&[("a", &disk.point)]);
    world.start();
    for n in 0..3 {
        std::fs::create_dir_all(disk.point.join(format!("d{n}/deep"))).unwrap();
        std::fs::write(disk.point.join(format!("d{n}/deep/f")), "x").unwrap();
        world.flush();
        assert!(has(&world, "a", "self", &format!("d{n}/deep/f")), "{:?}", changes(&world));
        world.claim();
        disk.umount();
        assert!(disk.is_free());
        call("btrfs", &[Path::new("check"), &device]);
        world.flush();
        assert_eq!(world.root_state(), "missing");
        assert!(disk.is_free(), "looking for it must not bring it back");
        disk.mount();
        std::fs::write(disk.point.join("unseen"), "x").unwrap();
        world.flush();
        assert_eq!(world.root_state(), "ok");
        assert_eq!(world.cause_count("remount"), n + 1, "{:?}", world.causes());
        assert_eq!(sources(&world), ["fanotify "]);
    }
    assert_eq!(world.stop(), 0);
}

/// Else an unmount would seem to succeed, and the filesystem would live on in what only the tracker sees.
#[test]
fn a_look_at_the_whole_filesystem_ends_before_its_part_can_be_unmounted() {
    if !is_root() {
        return;
    }
    let disk = btrfs(&["s1"]).with_options("subvol=s1");
    let mounts = tracker::mounts::read().unwrap();
    let dev = mounts.iter().find(|m| m.point == disk.point).unwrap().dev;
    let look = tracker::resolve::OpenMount::open(dev).unwrap();
    assert!(std::fs::metadata(format!("/proc/self/fd/{}/s1", look.fd().as_raw_fd())).unwrap().is_dir());
    let of_it = |mounts: Vec<Mount>| mounts.into_iter().filter(|m| m.dev == dev).collect::<Vec<_>>();
    assert_eq!(of_it(tracker::mounts::read().unwrap()).len(), 1, "it is seen nowhere");
    assert!(!Command::new("umount").arg(&disk.point).output().unwrap().status.success());
    drop(look);
    disk.umount();
    assert!(disk.is_free());
    assert!(tracker::resolve::OpenMount::open(dev).is_err());
    assert!(disk.is_free());
}

#[test]
fn a_subvolume_whose_device_cannot_be_reached_is_tracked_with_inotify_and_says_why() {
    if !is_root() {
        return;
    }
    let disk = btrfs(&["s1"]).with_options("subvol=s1");
    let mut world = world_on(&[("a", &disk.point)]);
    let _hidden = Bind::new(Path::new("/dev/null"), disk.device.as_ref().unwrap());
    world.start();
    let source = sources(&world).remove(0);
    assert!(source.starts_with("inotify ") && source.contains("PrivateDevices"), "{source}");
    let device = disk.device.as_ref().unwrap().to_str().unwrap();
    assert!(source.contains(device) && source.contains("btrfs"), "{source}");
    std::fs::write(disk.point.join("f"), "x").unwrap();
    world.flush();
    assert!(has(&world, "a", "self", "f"));
}

#[test]
fn a_btrfs_on_two_devices_is_reached_by_either() {
    if !is_root() {
        return;
    }
    let (disk, other) = (Mounted::image("btrfs"), Mounted::image("btrfs"));
    disk.umount();
    other.umount();
    let devices = [disk.device.clone().unwrap(), other.device.clone().unwrap()];
    call("mkfs.btrfs", &[Path::new("-q"), Path::new("-f"), &devices[0], &devices[1]]);
    disk.mount();
    subvolume("create", &[&disk.point.join("s1")]);
    disk.umount();
    let disk = disk.with_options("subvol=s1");
    for hidden in &devices {
        let _hidden = Bind::new(Path::new("/dev/null"), hidden);
        let mut world = world_on(&[("a", &disk.point)]);
        world.start();
        assert_eq!(sources(&world), ["fanotify "]);
        let before = tracker::mounts::read().unwrap();
        std::fs::create_dir_all(disk.point.join("d")).unwrap();
        std::fs::write(disk.point.join("d/f"), "x").unwrap();
        world.flush();
        assert!(has(&world, "a", "self", "d/f"), "{:?}", changes(&world));
        assert_eq!(world.stop(), 0);
        let source = |mounts: Vec<Mount>| mounts.into_iter().find(|m| m.point == disk.point).unwrap().source;
        assert_eq!(
            source(tracker::mounts::read().unwrap()),
            source(before),
            "it keeps the name it is known by"
        );
    }
    disk.umount();
    assert!(disk.is_free() && other.is_free());
}

/// The same for other filesystems of which only a part is mounted.
#[test]
fn a_part_of_a_disk_that_alone_is_mounted_is_tracked_with_fanotify() {
    if !is_root() {
        return;
    }
    for (fs, options) in [("ext4", "rw"), ("xfs", "rw"), ("ext4", "ro"), ("xfs", "ro")] {
        let disk = Mounted::image(fs);
        std::fs::create_dir_all(disk.point.join("part/d")).unwrap();
        disk.umount();
        let disk = disk.with_options(options);
        let elsewhere = tempfile::tempdir().unwrap();
        let part = Bind::new(&disk.point.join("part"), elsewhere.path());
        disk.umount();
        let mut world = world_on(&[("a", &part.0)]);
        world.start();
        assert_eq!(sources(&world), ["fanotify "], "{fs} {options}");
        if options == "rw" {
            std::fs::write(part.0.join("d/f"), "x").unwrap();
            world.flush();
            assert!(has(&world, "a", "self", "d/f"), "{fs}: {:?}", changes(&world));
        }
        call("umount", &[&part.0]);
        assert!(disk.is_free(), "{fs} {options}");
        assert_eq!(world.stop(), 0);
    }
}
