//! A disk can be unmounted while the tracker runs, and what happened while nothing was marked is a gap before anybody
//! is told that all is well.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use std::path::Path;
use std::process::Command;

use common::{Mounted, World, call, is_root};

/// `btrfs/s` is a subvolume, mounted alone.
fn disk(kind: &str) -> Mounted {
    match kind {
        "tmpfs" => Mounted::tmpfs("64m"),
        "btrfs/s" => {
            let disk = Mounted::image("btrfs");
            call("btrfs", &["-q", "subvolume", "create", disk.point.join("s").to_str().unwrap()]);
            disk.umount();
            disk.with_options("subvol=s")
        }
        fs => Mounted::image(fs),
    }
}

/// Makes, fills, renames and removes directories and files, and leaves nothing open.
fn storm(top: &Path) {
    for n in 0..200 {
        let (dir, renamed) = (top.join(format!("{n}")), top.join(format!("renamed {n}")));
        std::fs::create_dir_all(dir.join("deep")).unwrap();
        (0..5).for_each(|f| std::fs::write(dir.join(format!("deep/{f}")), "x").unwrap());
        std::fs::rename(&dir, &renamed).unwrap();
        if n % 2 == 0 {
            std::fs::remove_dir_all(renamed).unwrap();
        }
    }
}

/// Where events are just being resolved an unmount finds the disk busy, and is to be called again.
fn umount_soon(disk: &Mounted) {
    let tries =
        (1..=10_000).find(|_| Command::new("umount").arg(&disk.point).output().unwrap().status.success());
    eprintln!("umounted {} at the {}. try", disk.point.display(), tries.unwrap());
}

#[test]
fn a_disk_can_be_unmounted_right_after_a_storm_and_comes_back_with_a_gap() {
    if !is_root() {
        return;
    }
    for kind in ["ext4", "xfs", "btrfs", "btrfs/s", "tmpfs"] {
        let disk = disk(kind);
        let mut world = World::new(&[("a", &disk.point)]);
        world.start();
        for round in 1..=2 {
            world.claim();
            storm(&disk.point);
            umount_soon(&disk);
            assert!(disk.device.is_none() || disk.is_free(), "{kind}");
            disk.mount();
            std::fs::remove_dir_all(disk.point.join("renamed 1")).ok();
            world.flush();
            let causes = world.causes();
            // An unmount before all was resolved is a gap too, and covers that of the remount if nobody claimed it.
            let is_gap =
                |(c, path): &(String, String)| path.is_empty() && (c == "remount" || c == "unresolved");
            // What is new at a tmpfs is another root.
            let expected = if kind == "tmpfs" { "replaced" } else { "ok" };
            assert_eq!(world.root_state(), expected, "{kind}");
            assert!(kind == "tmpfs" || causes.iter().any(is_gap), "{kind} {round}: {causes:?}");
            world.claim();
            // At rest nothing is held.
            disk.umount();
            assert!(disk.device.is_none() || disk.is_free(), "{kind}");
            world.flush();
            assert_eq!(world.root_state(), "missing", "{kind}");
            disk.mount();
            world.flush();
            world.claim();
            for entry in std::fs::read_dir(&disk.point).unwrap().map(Result::unwrap) {
                if entry.file_name().to_string_lossy().starts_with("renamed") {
                    std::fs::remove_dir_all(entry.path()).unwrap();
                }
            }
            world.flush();
        }
        assert_eq!(world.stop(), 0);
    }
}

/// Neither the tracker nor the kernel's notices of mounts need to be slow for that: whoever is told that all is
/// committed finds the gap.
#[test]
fn a_flush_right_after_a_remount_and_a_change_finds_the_gap_committed() {
    if !is_root() {
        return;
    }
    for kind in ["ext4", "xfs", "btrfs", "btrfs/s"] {
        let disk = disk(kind);
        let mut world = World::new(&[("a", &disk.point)]);
        world.start();
        for stopped in [false, true, false, true] {
            world.claim();
            let before = world.cause_count("remount");
            if stopped {
                // Both happen between two looks.
                world.signal(rustix::process::Signal::STOP);
            }
            umount_soon(&disk);
            disk.mount();
            std::fs::write(disk.point.join("f"), "x").unwrap();
            if stopped {
                world.signal(rustix::process::Signal::CONT);
            }
            world.flush();
            // A quick tracker sees both, and writes a gap for each.
            assert!(world.cause_count("remount") > before, "{kind} {stopped}: {:?}", world.causes());
            assert_eq!(world.root_state(), "ok", "{kind} {stopped}");
        }
        assert_eq!(world.stop(), 0);
    }
}

#[test]
fn a_disk_that_inotify_watches_can_be_unmounted_and_comes_back_with_a_gap() {
    if !is_root() {
        return;
    }
    for kind in ["ext4", "xfs", "btrfs", "btrfs/s"] {
        let disk = disk(kind);
        let mut world = World::new(&[("a", &disk.point)]);
        world.unshared(&["--user", "--map-root-user"], "");
        world.start();
        storm(&disk.point);
        umount_soon(&disk);
        assert!(disk.is_free(), "{kind}");
        world.flush();
        assert_eq!(world.root_state(), "missing", "{kind}");
        world.claim();
        disk.mount();
        std::fs::write(disk.point.join("unseen"), "x").unwrap();
        world.flush();
        assert_eq!(world.cause_count("remount"), 1, "{kind}: {:?}", world.causes());
        std::fs::write(disk.point.join("seen"), "x").unwrap();
        world.flush();
        assert!(world.has("self", b"seen"), "{kind}: {:?}", world.causes());
        assert_eq!(world.stop(), 0);
    }
}

/// An open root makes its unmount fail, and the unmount of one disk is often followed by that of the next.
#[test]
fn a_notice_of_other_mounts_opens_no_root_that_stands_where_it_stood() {
    if !is_root() {
        return;
    }
    for inotify in [false, true] {
        let (still, other, churned) = (disk("ext4"), disk("tmpfs"), tempfile::tempdir().unwrap());
        let mut world = World::new(&[("a", &still.point), ("b", &other.point)]);
        if inotify {
            world.unshared(&["--user", "--map-root-user"], "");
        }
        world.start();
        world.flush();
        let mut opens = inotify::Inotify::init().unwrap();
        let mask = inotify::WatchMask::OPEN | inotify::WatchMask::ONLYDIR;
        opens.watches().add(&still.point, mask).unwrap();
        for _ in 0..20 {
            drop(common::Bind::with(&["-t", "tmpfs"], Path::new("none"), churned.path()));
        }
        other.umount();
        world.wait_for_line("root b: missing");
        let mut buffer = [0; 4096];
        let seen = opens.read_events(&mut buffer).map(|events| events.map(|e| e.mask).collect::<Vec<_>>());
        assert!(seen.as_ref().is_err_and(|e| e.kind() == std::io::ErrorKind::WouldBlock), "{seen:?}");
        // It would have been seen.
        world.flush();
        assert!(opens.read_events(&mut buffer).unwrap().count() > 0);
        assert_eq!(world.stop(), 0);
    }
}
