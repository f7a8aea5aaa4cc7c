//! Real filesystems: mounted, unmounted, overflowing, and those that fanotify refuses.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use common::{Bind, Mounted, World, is_root};
use rustix::process::Signal;
use shared::entry::Handle;
use shared::journal::{Coalesce, Commit, Doubt, Journal};

fn world_on(mounted: &Mounted) -> World {
    let world = World::new(&[]);
    world.configure(&world.dir.path().join("state"), &[("a", &mounted.point)], "");
    world
}

fn source(world: &World) -> (String, String) {
    let root = &world.stats()["status"]["roots"][0];
    let text = |key: &str| root[key].as_str().unwrap().to_owned();
    (text("source"), text("source_reason"))
}

/// Changes that every source must see.
fn churn(root: &Path) {
    std::fs::create_dir_all(root.join("d/deep")).unwrap();
    std::fs::write(root.join("d/deep/f"), "x").unwrap();
    std::fs::write(root.join("g"), "x").unwrap();
    std::fs::rename(root.join("d"), root.join("e")).unwrap();
    std::fs::remove_file(root.join("g")).unwrap();
}

fn assert_churn(world: &World) {
    let rows = world.changes();
    let covered = |path: &str| {
        rows.iter().any(|(scope, p)| {
            p == path
                || (scope == "subtree" && path.strip_prefix(p.as_str()).is_some_and(|r| r.starts_with('/')))
        })
    };
    for path in ["d", "e", "e/deep/f", "g"] {
        assert!(covered(path), "{path}: {rows:?}");
    }
}

#[test]
fn ext4_xfs_and_btrfs_are_tracked_with_fanotify_and_can_be_unmounted_meanwhile() {
    if !is_root() {
        return;
    }
    for fs in ["ext4", "xfs", "btrfs"] {
        let disk = Mounted::image(fs);
        let mut world = world_on(&disk);
        world.start();
        assert_eq!(source(&world), ("fanotify".to_owned(), String::new()), "{fs}");
        churn(&disk.point);
        world.flush();
        assert_churn(&world);
        world.claim();
        disk.umount();
        world.flush();
        assert_eq!(world.root_state(), "missing", "{fs}");
        disk.mount();
        std::fs::write(disk.point.join("unseen"), "x").unwrap();
        world.flush();
        assert_eq!(world.root_state(), "ok", "{fs}");
        assert_eq!(world.cause_count("remount"), 1, "{fs}: {:?}", world.causes());
        std::fs::write(disk.point.join("seen"), "x").unwrap();
        world.flush();
        assert!(world.has("self", b"seen"), "{fs}");
        assert_eq!(world.stop(), 0);
    }
}

#[test]
fn a_mark_that_died_in_a_quick_remount_is_noticed_by_the_flush() {
    if !is_root() {
        return;
    }
    let disk = Mounted::image("ext4");
    let mut world = world_on(&disk);
    world.start();
    world.claim();
    // Everything but the mark is as before when the tracker looks again.
    world.signal(Signal::STOP);
    disk.umount();
    assert!(disk.is_free(), "something keeps the filesystem in use, and then the mark rightly lives on");
    disk.mount();
    std::fs::write(disk.point.join("f"), "x").unwrap();
    world.signal(Signal::CONT);
    world.flush();
    assert_eq!(world.cause_count("remount"), 1, "{:?}", world.causes());
    assert_eq!(world.root_state(), "ok");
}

#[test]
fn another_disk_at_the_path_is_replaced_and_its_changes_are_not_ours() {
    if !is_root() {
        return;
    }
    let disk = Mounted::image("ext4");
    let mut world = world_on(&disk);
    world.start();
    let other = Mounted::image("ext4");
    let _bind = Bind::new(&other.point, &disk.point);
    world.flush();
    assert_eq!(world.root_state(), "replaced");
    std::fs::write(other.point.join("foreign"), "x").unwrap();
    world.flush();
    assert!(!world.has("self", b"foreign"));
}

#[test]
fn a_root_that_is_a_part_of_a_disk_or_a_bind_mount_gets_its_own_paths() {
    if !is_root() {
        return;
    }
    let disk = Mounted::image("ext4");
    let part = disk.point.join("part");
    std::fs::create_dir_all(part.join("inner")).unwrap();
    let world_dir = tempfile::tempdir().unwrap();
    let bind = Bind::new(&part.join("inner"), world_dir.path());
    let mut world = World::new(&[]);
    let state = world.dir.path().join("state");
    world.configure(&state, &[("a", &part), ("b", &bind.0)], "");
    world.start();
    std::fs::write(bind.0.join("f"), "x").unwrap();
    std::fs::write(disk.point.join("outside"), "x").unwrap();
    world.flush();
    let mut rows: Vec<(String, PathBuf)> = world
        .pending()
        .into_iter()
        .filter(|p| !p.path.is_empty())
        .map(|p| (p.root, String::from_utf8(p.path).unwrap().into()))
        .collect();
    rows.sort();
    assert_eq!(rows, [("a".to_owned(), "inner/f".into()), ("b".to_owned(), "f".into())]);
}

#[test]
fn a_root_on_a_disk_mounted_inside_another_root_is_its_own() {
    if !is_root() {
        return;
    }
    let (outer, inner) = (Mounted::image("ext4"), Mounted::image("xfs"));
    let inside = outer.point.join("d/inside");
    std::fs::create_dir_all(&inside).unwrap();
    let device = inner.device.clone().unwrap();
    inner.umount();
    let there = Bind::with(&[], &device, &inside);
    let mut world = World::new(&[("a", &outer.point), ("b", &inside)]);
    world.start();
    world.claim();
    assert_eq!(world.stats()["status"]["filesystems"].as_array().unwrap().len(), 2, "a group for each");
    let rows = |world: &World| {
        let own = world.pending().into_iter().filter(|p| !p.path.is_empty());
        let mut rows: Vec<_> = own.map(|p| (p.root, String::from_utf8(p.path).unwrap())).collect();
        rows.sort();
        rows
    };
    let row = |root: &str, path: &str| (root.to_owned(), path.to_owned());
    std::fs::write(inside.join("f"), "x").unwrap();
    std::fs::write(outer.point.join("d/g"), "x").unwrap();
    world.flush();
    assert_eq!(rows(&world), [row("a", "d/g"), row("b", "f")]);
    drop(there);
    // The directory under it is the outer root's.
    std::fs::write(inside.join("under"), "x").unwrap();
    world.flush();
    assert_eq!(rows(&world), [row("a", "d/g"), row("a", "d/inside/under"), row("b", "f")]);
    let states = world.stats()["journal"]["roots"].clone();
    assert_eq!((&states[0]["state"], &states[1]["state"]), (&"ok".into(), &"missing".into()), "{states}");
    let _there = Bind::with(&[], &device, &inside);
    std::fs::write(inside.join("unseen"), "x").unwrap();
    world.claim();
    world.flush();
    let gaps: Vec<_> = world.pending().into_iter().filter(|p| p.path.is_empty()).map(|p| p.root).collect();
    assert!(gaps.contains(&"b".to_owned()), "{:?}", world.causes());
    assert_eq!(world.cause_count("remount"), 1, "of the inner root alone: {:?}", world.causes());
    assert_eq!(world.stop(), 0);
}

#[test]
fn a_snapshot_of_btrfs_is_one_entry_for_all_of_it() {
    if !is_root() {
        return;
    }
    let disk = Mounted::image("btrfs");
    std::fs::write(disk.point.join("f"), "x").unwrap();
    let mut world = world_on(&disk);
    world.start();
    let snapshot = disk.point.join("snap");
    let made =
        Command::new("btrfs").args(["-q", "subvolume", "snapshot"]).arg(&disk.point).arg(&snapshot).output();
    assert!(made.is_ok_and(|o| o.status.success()));
    world.flush();
    assert!(world.has("subtree", b"snap"), "{:?}", world.changes());
    std::fs::write(snapshot.join("new"), "x").unwrap();
    world.flush();
    assert!(world.has("self", b"snap/new"), "{:?}", world.changes());
}

#[test]
fn without_rights_inotify_serves_and_says_so() {
    if !is_root() {
        return;
    }
    let (world, root) = World::with_root();
    std::fs::create_dir_all(root.join("before/sub")).unwrap();
    let mut world = world.unprivileged();
    world.start();
    let (source, reason) = source(&world);
    assert_eq!(source, "inotify");
    assert!(reason.contains("EPERM") && reason.contains("CAP_SYS_ADMIN"), "{reason}");
    let human = String::from_utf8(world.ok(&["stats"])).unwrap();
    assert!(human.contains("inotify because") && human.contains("hard-link names"), "{human}");
    churn(&root);
    std::fs::rename(root.join("before"), root.join("after")).unwrap();
    world.flush();
    assert_churn(&world);
    assert!(world.has("subtree", b"before") && world.has("subtree", b"after"));
    std::fs::write(root.join("after/sub/f"), "x").unwrap();
    world.flush();
    assert!(world.has("self", b"after/sub/f"), "the watch below went along: {:?}", world.changes());
    let outside = world.dir.path().join("outside");
    std::fs::rename(root.join("after"), &outside).unwrap();
    world.flush();
    std::fs::write(outside.join("sub/gone"), "x").unwrap();
    world.flush();
    assert!(!world.changes().iter().any(|(_, p)| p.ends_with("gone")));
    assert_eq!(world.stop(), 0);
}

#[test]
fn a_directory_nobody_may_watch_is_looked_at_anew_for_each_flush() {
    if !is_root() {
        return;
    }
    let (world, root) = World::with_root();
    let mut world = world.unprivileged();
    let secret = root.join("secret");
    std::fs::create_dir(&secret).unwrap();
    std::fs::set_permissions(&secret, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    world.start();
    world.claim();
    world.flush();
    assert!(world.has("subtree", b"secret"), "{:?}", world.causes());
    world.wait_for_line("cannot be watched, the first in a: secret");
}

#[test]
fn without_watches_left_the_whole_root_is_looked_at_for_each_flush() {
    if !is_root() {
        return;
    }
    let (mut world, root) = World::with_root();
    for n in 0..10 {
        std::fs::create_dir(root.join(n.to_string())).unwrap();
    }
    world.unshared(&["--user", "--map-root-user"], "echo 4 > /proc/sys/user/max_inotify_watches;");
    world.start();
    assert_eq!(source(&world).0, "inotify");
    world.claim();
    world.flush();
    assert_eq!(world.cause_count("unresolved"), 1);
    world.wait_for_line("fs.inotify.max_user_watches");
}

/// Renames one directory back and forth while nobody reads: the kernel merges the third rename into the first.
#[test]
fn a_directory_renamed_to_and_fro_keeps_its_paths_right() {
    if !is_root() {
        return;
    }
    let disk = Mounted::image("ext4");
    let (a, b) = (disk.point.join("a"), disk.point.join("b"));
    std::fs::create_dir_all(a.join("sub")).unwrap();
    std::fs::create_dir(disk.point.join("other")).unwrap();
    let mut world = world_on(&disk);
    world.start();
    std::fs::write(a.join("sub/before"), "x").unwrap();
    world.flush();
    world.signal(Signal::STOP);
    for (from, to) in [(&a, &b), (&b, &a), (&a, &b)] {
        std::fs::rename(from, to).unwrap();
    }
    world.signal(Signal::CONT);
    world.flush();
    std::fs::write(b.join("new"), "x").unwrap();
    std::fs::write(b.join("sub/new"), "x").unwrap();
    world.flush();
    assert!(world.has("self", b"b/new") && world.has("self", b"b/sub/new"), "{:?}", world.changes());
    let other = disk.point.join("other");
    world.signal(Signal::STOP);
    for _ in 0..3 {
        let here = rustix::fs::CWD;
        rustix::fs::renameat_with(here, &b, here, &other, rustix::fs::RenameFlags::EXCHANGE).unwrap();
    }
    world.signal(Signal::CONT);
    world.flush();
    std::fs::write(other.join("sub/later"), "x").unwrap();
    std::fs::write(b.join("later"), "x").unwrap();
    world.flush();
    assert!(world.has("self", b"other/sub/later") && world.has("self", b"b/later"), "{:?}", world.changes());
}

#[test]
fn a_rename_over_an_empty_directory_is_no_gap() {
    if !is_root() {
        return;
    }
    let disk = Mounted::image("ext4");
    let (root, outside) = (disk.point.join("root"), disk.point.join("outside"));
    for dir in [&root, &outside] {
        std::fs::create_dir_all(dir.join("victim")).unwrap();
        std::fs::create_dir(dir.join("heir")).unwrap();
    }
    let mut world = World::new(&[]);
    world.configure(&world.dir.path().join("state"), &[("a", &root)], "");
    world.start();
    world.claim();
    world.signal(Signal::STOP);
    for dir in [&root, &outside] {
        std::fs::write(dir.join("victim/f"), "x").unwrap();
        std::fs::remove_file(dir.join("victim/f")).unwrap();
        std::fs::rename(dir.join("heir"), dir.join("victim")).unwrap();
    }
    world.signal(Signal::CONT);
    world.flush();
    assert!(world.has("subtree", b"heir") && world.has("subtree", b"victim"), "{:?}", world.changes());
    assert_eq!(world.cause_count("unresolved"), 0, "{:?}", world.causes());
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
    world.claim();
    std::fs::set_permissions(root.join("victim"), mode).unwrap();
    world.flush();
    assert!(world.has("self", b"victim"), "{:?}", world.changes());
}

/// What is written below a mount is seen through another one of the same filesystem.
#[test]
fn a_directory_that_a_mount_covers_keeps_its_path() {
    if !is_root() {
        return;
    }
    let disk = Mounted::image("ext4");
    std::fs::create_dir_all(disk.point.join("covered/sub/deep")).unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let _open = Bind::new(&disk.point, elsewhere.path());
    let over = tempfile::tempdir().unwrap();
    let _cover = Bind::new(over.path(), &disk.point.join("covered"));
    let mut world = world_on(&disk);
    world.start();
    world.claim();
    std::fs::write(elsewhere.path().join("covered/sub/deep/f"), "x").unwrap();
    std::fs::write(elsewhere.path().join("covered/f"), "x").unwrap();
    world.flush();
    assert!(world.has("self", b"covered/f"), "{:?}", world.changes());
    assert!(world.has("self", b"covered/sub/deep/f"), "{:?}", world.changes());
    assert_eq!(world.cause_count("unresolved"), 0, "{:?}", world.causes());
}

#[test]
fn the_journal_in_another_subvolume_of_a_tracked_btrfs_is_not_reported() {
    if !is_root() {
        return;
    }
    let disk = Mounted::image("btrfs");
    let var = disk.point.join("var");
    let made = Command::new("btrfs").args(["-q", "subvolume", "create"]).arg(&var).output();
    assert!(made.is_ok_and(|o| o.status.success()));
    let mut world = World::new(&[]);
    world.configure(&var.join("state"), &[("a", &disk.point)], "");
    world.start();
    world.flush();
    std::fs::write(disk.point.join("f"), "x").unwrap();
    world.flush();
    world.flush();
    assert!(world.has("self", b"f"));
    let own = |p: &String| p.starts_with("var/state/");
    let rows = world.changes();
    assert!(!rows.iter().any(|(_, p)| own(p)), "{rows:?}");
    assert_eq!(world.stop(), 0);
}

#[test]
fn a_group_that_no_root_needs_is_closed() {
    if !is_root() {
        return;
    }
    let disk = Mounted::image("ext4");
    let mut world = world_on(&disk);
    world.start();
    let groups = |world: &World| {
        let fds = std::fs::read_dir(format!("/proc/{}/fd", world.pid())).unwrap();
        let links = fds.filter_map(|fd| std::fs::read_link(fd.unwrap().path()).ok());
        links.filter(|link| link.to_string_lossy().contains("[fanotify]")).count()
    };
    assert_eq!(groups(&world), 1);
    let other = Mounted::image("ext4");
    let bind = Bind::new(&other.point, &disk.point);
    world.flush();
    assert_eq!(world.root_state(), "replaced");
    assert_eq!(groups(&world), 0);
    drop(bind);
    world.flush();
    assert_eq!(world.root_state(), "ok");
    assert_eq!(groups(&world), 1);
}

#[test]
fn an_overflowing_queue_is_a_gap() {
    if !is_root() {
        return;
    }
    let limit: usize =
        std::fs::read_to_string("/proc/sys/fs/fanotify/max_queued_events").unwrap().trim().parse().unwrap();
    if limit > 200_000 {
        eprintln!("skipped: the queue holds {limit} events");
        return;
    }
    let disk = Mounted::tmpfs("400m");
    let mut world = world_on(&disk);
    world.start();
    world.claim();
    world.signal(Signal::STOP);
    // Creation and writing are two events of one name, merged or not.
    for n in 0..limit + 1000 {
        std::fs::write(disk.point.join(n.to_string()), "").unwrap();
    }
    world.signal(Signal::CONT);
    world.flush();
    assert_eq!(world.cause_count("overflow"), 1);
    std::fs::write(disk.point.join("later"), "x").unwrap();
    world.flush();
    assert!(world.has("self", b"later"));
}

#[test]
fn identify_prints_what_run_accepts_and_a_wrong_identity_is_not_tracked() {
    if !is_root() {
        return;
    }
    let disk = Mounted::image("ext4");
    let mut world = world_on(&disk);
    let stanza = String::from_utf8(world.ok(&["identify", disk.point.to_str().unwrap()])).unwrap();
    assert!(
        stanza.contains("fs = \"ext4\"") && stanza.contains("uuid = \"") && stanza.contains("btime_ns"),
        "{stanza}"
    );
    let state = world.dir.path().join("state");
    world.configure(&state, &[], &stanza);
    world.ok(&["config", "check"]);
    world.start();
    assert_eq!(world.root_state(), "ok");
    assert_eq!(world.stop(), 0);
    world.configure(&state, &[], &stanza.replace("inode = 2", "inode = 3"));
    world.start();
    assert_eq!(world.root_state(), "replaced");
    world.flush();
    assert_eq!(world.stop(), 0);
}

#[test]
fn what_is_known_of_a_disk_stays_while_it_is_unplugged_and_goes_when_it_leaves_the_configuration() {
    if !is_root() {
        return;
    }
    let disk = Mounted::image("ext4");
    let (mut world, always) = World::with_root();
    let state = world.dir.path().join("state");
    let stanza = |args: &[&str]| String::from_utf8(world.ok(args)).unwrap();
    let always = std::fs::canonicalize(always).unwrap();
    let always = stanza(&["identify", "--subdir", always.to_str().unwrap()]);
    let on_disk = stanza(&["identify", disk.point.to_str().unwrap()]);
    let both = format!("{always}\n{on_disk}");
    let uuid = on_disk.split("uuid = \"").nth(1).unwrap().split('"').next().unwrap();
    let key = format!("ext4 {uuid}");
    let mut once = |stanzas: &str| {
        world.configure(&state, &[], stanzas);
        world.start();
        let gaps = world.cause_count("start");
        assert_eq!(world.stop(), 0);
        gaps
    };
    once(&both);
    let mut journal = Journal::open(&state.join("journal.db")).unwrap();
    let handle = Handle { kind: 1, bytes: vec![1; 8] };
    let doubts = [key.as_str(), "ext4 of a disk that left"].map(|fs| Doubt {
        fs: fs.to_owned(),
        handle: handle.clone(),
        epoch: 1,
    });
    let commit = Commit { doubts: doubts.to_vec(), ..Commit::default() };
    journal.append(&mut Coalesce::default(), &commit, 0).unwrap();
    let known = || doubts.each_ref().map(|d| journal.doubts(&d.fs).unwrap().len());
    disk.umount();
    once(&both);
    assert_eq!((known(), journal.intake(&key).unwrap().is_some()), ([1, 0], true));
    let gaps = once(&always);
    assert_eq!((known(), journal.intake(&key).unwrap().is_some()), ([0, 0], false));
    disk.mount();
    // A gap for each of the two roots.
    assert_eq!(once(&both), gaps + 2, "what changed meanwhile is compared");
}
