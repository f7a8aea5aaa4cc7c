//! From handles to paths on real filesystems: what is gone, what the disk does not give any more, names that are
//! none, and directories that wander.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use std::io::{Read as _, Seek as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;

use common::{Mounted, World, is_root};
use rustix::process::Signal;
use shared::entry::Scope;
use shared::journal::{Entry, Journal};
use tracker::intake::sys;

const KINDS: [&str; 3] = ["ext4", "xfs", "btrfs"];

/// A world with a root on the mounted filesystem.
fn world_on(disk: &Mounted) -> World {
    let world = World::new(&[]);
    world.configure(&world.dir.path().join("state"), &[("a", &disk.point)], "");
    world
}

/// No gap was opened. Nothing is in doubt either: a flush is answered only then.
fn assert_no_gap(world: &World, what: &str) {
    assert_eq!(world.cause_count("unresolved"), 0, "{what}: {:?}", world.causes());
}

#[test]
fn a_large_tree_that_is_removed_opens_no_gap() {
    if !is_root() {
        return;
    }
    for kind in KINDS {
        let disk = Mounted::image_of(kind, 400 << 20);
        // 20 trees of 1,000 directories, so that the queue is never full: the tracker is to be asked, not the queue.
        for tree in 0..20 {
            for dir in 0..100 {
                std::fs::create_dir_all(disk.point.join(format!("top/{tree}/{dir}/1/2/3/4/5/6/7/8")))
                    .unwrap();
                std::fs::create_dir(disk.point.join(format!("top/{tree}/{dir}/9"))).unwrap();
                std::fs::write(disk.point.join(format!("top/{tree}/{dir}/1/2/3/f")), "x").unwrap();
            }
        }
        let mut world = world_on(&disk);
        world.start();
        world.claim();
        for tree in 0..20 {
            // Every other one is gone altogether before the first of its events is read.
            let behind = tree % 2 == 0;
            if behind {
                world.signal(Signal::STOP);
            }
            std::fs::remove_dir_all(disk.point.join(format!("top/{tree}"))).unwrap();
            if behind {
                world.signal(Signal::CONT);
            }
            world.flush();
            assert!(world.has("subtree", format!("top/{tree}").as_bytes()), "{kind}");
        }
        assert_no_gap(&world, kind);
        assert_eq!(world.stop(), 0);
    }
}

#[test]
fn a_directory_made_and_removed_between_two_runs_opens_no_gap_night_after_night() {
    if !is_root() {
        return;
    }
    for kind in KINDS {
        let disk = Mounted::image(kind);
        let mut world = world_on(&disk);
        world.start();
        let dir = disk.point.join("work");
        for night in 0..4 {
            world.claim();
            world.signal(Signal::STOP);
            std::fs::create_dir_all(dir.join("sub")).unwrap();
            std::fs::write(dir.join("sub/f"), "x").unwrap();
            std::fs::set_permissions(&dir, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
            std::fs::remove_dir_all(&dir).unwrap();
            world.signal(Signal::CONT);
            world.flush();
            assert!(world.has("subtree", b"work"), "{kind}, night {night}");
        }
        assert_no_gap(&world, kind);
    }
}

/// Where an inode lies in an image of ext4, in bytes.
fn inode_at(image: &Path, inode: u64) -> u64 {
    let run = |args: &[&str]| {
        let out = Command::new("debugfs").args(args).arg(image).output().unwrap();
        String::from_utf8(out.stdout).unwrap()
    };
    // "located at block 37, offset 0x0b00"
    let place = run(&["-R", &format!("imap <{inode}>")]);
    let (_, place) = place.split_once("located at block ").unwrap_or_else(|| panic!("{place}"));
    let (block, offset) = place.trim().split_once(", offset 0x").unwrap();
    let sizes = run(&["-R", "stats -h"]);
    let line = sizes.lines().find(|l| l.starts_with("Block size:")).unwrap();
    let size: u64 = line.rsplit(' ').next().unwrap().parse().unwrap();
    block.parse::<u64>().unwrap() * size + u64::from_str_radix(offset, 16).unwrap()
}

/// The loop device that a mounted image is on.
fn device_of(disk: &Mounted) -> std::path::PathBuf {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    let point = disk.point.to_str().unwrap();
    let line = mounts.lines().find(|l| l.split(' ').nth(1) == Some(point)).unwrap();
    line.split(' ').next().unwrap().into()
}

#[test]
fn a_directory_that_the_disk_does_not_give_any_more_is_a_gap() {
    if !is_root() {
        return;
    }
    let disk = Mounted::image("ext4");
    let dir = disk.point.join("d");
    std::fs::create_dir(&dir).unwrap();
    let mut world = world_on(&disk);
    world.start();
    world.claim();
    let inode = std::fs::metadata(&dir).unwrap().ino();
    let handle = sys::name_to_handle(std::fs::File::open(&dir).unwrap().as_fd(), c"").unwrap();
    world.signal(Signal::STOP);
    std::fs::write(dir.join("f"), "x").unwrap();
    let top = std::fs::File::open(&disk.point).unwrap();
    rustix::fs::syncfs(&top).unwrap();
    // The sector goes bad, and nobody remembers what it held.
    let at = inode_at(&disk.image_file(), inode);
    let mut device = std::fs::OpenOptions::new().read(true).write(true).open(device_of(&disk)).unwrap();
    device.seek(std::io::SeekFrom::Start(at)).unwrap();
    let mut before = [0; 128];
    device.read_exact(&mut before).unwrap();
    assert_eq!(u16::from_le_bytes([before[0], before[1]]) & 0xf000, 0x4000, "this is a directory's inode");
    device.seek(std::io::SeekFrom::Start(at)).unwrap();
    device.write_all(&[0xa5; 128]).unwrap();
    device.sync_all().unwrap();
    let gone = (0..100).any(|_| {
        std::fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
        let opened = sys::open_by_handle(top.as_fd(), &handle, libc::O_PATH);
        opened.is_err_and(|e| e.raw_os_error() == Some(libc::ESTALE))
    });
    assert!(gone, "the kernel still has the inode");
    drop(top);
    world.signal(Signal::CONT);
    world.flush();
    assert_eq!(world.cause_count("unresolved"), 1, "{:?}", world.causes());
    assert!(world.has("subtree", b""), "the whole root is looked at again");
}

#[test]
fn a_file_that_was_opened_by_its_handle_is_an_entry_though_nobody_knows_its_name() {
    if !is_root() {
        return;
    }
    for kind in KINDS {
        let disk = Mounted::image(kind);
        std::fs::create_dir(disk.point.join("d")).unwrap();
        std::fs::write(disk.point.join("d/f"), "x").unwrap();
        let file = std::fs::File::open(disk.point.join("d/f")).unwrap();
        let handle = sys::name_to_handle(file.as_fd(), c"").unwrap();
        drop(file);
        // As after a reboot of an NFS server: the kernel knows no way from the top to it.
        disk.umount();
        disk.mount();
        let mut world = world_on(&disk);
        world.start();
        world.claim();
        let top = std::fs::File::open(&disk.point).unwrap();
        let file = sys::open_by_handle(top.as_fd(), &handle, libc::O_WRONLY).unwrap();
        rustix::io::write(&file, b"changed").unwrap();
        drop((file, top));
        world.flush();
        let found = world.pending().iter().any(|p| p.scope == "handle") || world.has("self", b"d/f");
        assert!(found, "{kind}: {:?}", world.pending());
        assert_no_gap(&world, kind);
    }
}

#[test]
fn a_directory_that_wanders_through_two_roots_and_out_of_both_is_found_where_it_is() {
    if !is_root() {
        return;
    }
    for kind in KINDS {
        let disk = Mounted::image(kind);
        let at = |name: &str| disk.point.join(name);
        for dir in ["a", "b", "outside", "a/d/sub"] {
            std::fs::create_dir_all(at(dir)).unwrap();
        }
        let mut world = World::new(&[]);
        world.configure(&world.dir.path().join("state"), &[("a", &at("a")), ("b", &at("b"))], "");
        world.start();
        let stations = ["a/d", "b/e", "outside/d", "a/back", "outside/d2", "b/e"];
        let mut before: Option<&str> = None;
        for (step, station) in stations.into_iter().enumerate() {
            world.claim();
            if let Some(before) = before {
                std::fs::rename(at(before), at(station)).unwrap();
            }
            std::fs::write(at(station).join(format!("sub/f{step}")), "x").unwrap();
            world.flush();
            let rows = world.pending();
            let has = |scope: &str, path: &str| {
                let (root, path) = path.split_once('/').unwrap();
                rows.iter().any(|p| {
                    (p.root.as_str(), p.scope.as_str(), &p.path[..]) == (root, scope, path.as_bytes())
                })
            };
            let ours = |station: &str| !station.starts_with("outside");
            let written = format!("{station}/sub/f{step}");
            assert_eq!(has("self", &written), ours(station), "{kind}, step {step}: {rows:?}");
            if let Some(before) = before {
                assert_eq!(has("subtree", before), ours(before), "{kind}, step {step}: {rows:?}");
                assert_eq!(has("subtree", station), ours(station), "{kind}, step {step}: {rows:?}");
            }
            assert!(rows.iter().all(|p| p.root != "outside"));
            before = Some(station);
        }
        assert_no_gap(&world, kind);
    }
}

#[test]
fn what_is_written_to_files_that_are_gone_is_covered_by_the_end_of_their_names() {
    if !is_root() {
        return;
    }
    for kind in KINDS {
        let disk = Mounted::image(kind);
        std::fs::create_dir(disk.point.join("d")).unwrap();
        let mut world = world_on(&disk);
        world.start();
        world.claim();
        let [mut alone, mut within] =
            ["f", "d/g"].map(|name| std::fs::File::create(disk.point.join(name)).unwrap());
        std::fs::remove_file(disk.point.join("f")).unwrap();
        std::fs::remove_dir_all(disk.point.join("d")).unwrap();
        world.flush();
        for file in [&mut alone, &mut within] {
            file.write_all(b"for nobody").unwrap();
        }
        drop((alone, within));
        world.flush();
        assert!(world.has("self", b"f") && world.has("subtree", b"d"), "{kind}: {:?}", world.changes());
        assert_no_gap(&world, kind);
    }
}

#[test]
fn a_file_that_is_written_long_after_its_directory_was_removed_opens_no_gap() {
    if !is_root() {
        return;
    }
    for kind in KINDS {
        let disk = Mounted::image(kind);
        let mut world = world_on(&disk);
        let dir = disk.point.join("dir");
        std::fs::create_dir(&dir).unwrap();
        let mut files = [0, 1].map(|n| std::fs::File::create(dir.join(n.to_string())).unwrap());
        // One of them lives on elsewhere.
        std::fs::rename(dir.join("1"), disk.point.join("moved")).unwrap();
        std::fs::remove_dir_all(&dir).unwrap();
        world.start();
        world.claim();
        for _ in 0..2 {
            files.iter_mut().for_each(|file| file.write_all(b"x").unwrap());
            world.flush();
        }
        drop(files);
        world.flush();
        assert_no_gap(&world, kind);
        assert!(world.has("self", b"moved"), "{kind}");
    }
}

/// Files with a name of their own and one more, through which they are open and which they lose.
#[test]
fn what_is_written_through_a_name_that_is_gone_reaches_the_name_that_is_left() {
    if !is_root() {
        return;
    }
    for kind in KINDS {
        let disk = Mounted::image(kind);
        let at = |name: &str| disk.point.join(name);
        for dir in ["root/dir", "root/stays", "outside"] {
            std::fs::create_dir_all(at(dir)).unwrap();
        }
        std::fs::write(at("root/other"), "").unwrap();
        let ways = [
            ("unlinked", "root/stays/unlinked"),
            ("with-its-directory", "root/dir/name"),
            ("replaced", "root/stays/replaced"),
            ("outside", "outside/name"),
        ];
        let mut files = ways.map(|(own, open)| {
            std::fs::write(at("root").join(own), "").unwrap();
            std::fs::hard_link(at("root").join(own), at(open)).unwrap();
            std::fs::File::options().append(true).open(at(open)).unwrap()
        });
        let mut world = World::new(&[("a", &at("root"))]);
        world.start();
        std::fs::remove_file(at("root/stays/unlinked")).unwrap();
        std::fs::remove_dir_all(at("root/dir")).unwrap();
        std::fs::rename(at("root/other"), at("root/stays/replaced")).unwrap();
        std::fs::remove_file(at("outside/name")).unwrap();
        for _ in 0..2 {
            world.flush();
            world.claim();
            let journal = Journal::open_to_read(&world.dir.path().join("state/journal.db")).unwrap();
            let (before, _) = journal.head_and_floor().unwrap();
            files.iter_mut().for_each(|file| file.write_all(b"more").unwrap());
            world.flush();
            let changes = journal.read(before, i64::MAX as u64, 100).unwrap();
            for (own, _) in ways {
                let file = std::fs::File::open(at("root").join(own)).unwrap();
                let handle = sys::name_to_handle(file.as_fd(), c"").unwrap();
                let leads = |e: &Entry| match e.scope {
                    Scope::Handle => e.handle.as_ref() == Some(&handle),
                    _ => e.path.as_bytes() == own.as_bytes(),
                };
                assert!(changes.iter().any(leads), "{kind}, {own}: {changes:?}");
            }
        }
        assert_no_gap(&world, kind);
    }
}

#[test]
fn a_file_made_without_a_name_and_named_elsewhere_later_is_found_by_every_name() {
    if !is_root() {
        return;
    }
    for kind in KINDS {
        let disk = Mounted::image(kind);
        let at = |name: &str| disk.point.join(name);
        for dir in ["a", "outside"] {
            std::fs::create_dir(at(dir)).unwrap();
        }
        let mut world = World::new(&[]);
        world.configure(&world.dir.path().join("state"), &[("a", &at("a"))], "");
        world.start();
        world.claim();
        use rustix::fs::{AtFlags, CWD, Mode, OFlags};
        let flags = OFlags::TMPFILE | OFlags::WRONLY;
        let file = rustix::fs::open(at("outside"), flags, Mode::RWXU).unwrap();
        rustix::io::write(&file, b"x").unwrap();
        let link = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
        rustix::fs::linkat(CWD, link.as_str(), CWD, at("a/named"), AtFlags::SYMLINK_FOLLOW).unwrap();
        world.flush();
        assert!(world.has("self", b"named"), "{kind}: {:?}", world.pending());
        world.claim();
        // Its events go on under the name it never had, in the directory where it was made.
        rustix::io::write(&file, b"y").unwrap();
        world.flush();
        let written = |p: &common::Pending| p.scope == "handle" || p.path == b"named";
        let rows = world.pending();
        assert!(rows.iter().filter(|p| written(p)).count() > 1, "{kind}: {rows:?}");
        assert_no_gap(&world, kind);
    }
}
