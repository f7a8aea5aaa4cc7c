//! From a change on disk to a row in the journal, with fanotify on the machine's own disk.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use common::{Mounted, World, is_root};
use rustix::fs::{Mode, OFlags};
use rustix::process::Signal;
use shared::control::{Answer, Request, connect};

fn name(bytes: &[u8]) -> &OsStr {
    OsStr::from_bytes(bytes)
}

/// With a root on a disk on which nobody else makes links or removes directories.
fn world_on(disk: &Mounted) -> (World, PathBuf) {
    (World::new(&[("a", &disk.point)]), disk.point.clone())
}

#[test]
fn what_happens_before_a_flush_is_pending_after_it() {
    if !is_root() {
        return;
    }
    let (mut world, root) = World::with_root();
    std::fs::write(root.join("old"), "1").unwrap();
    world.start();
    assert_eq!(world.stats()["status"]["roots"][0]["source"], "fanotify");
    assert_eq!(world.root_state(), "ok");
    assert_eq!(world.cause_count("start"), 1);
    std::fs::create_dir(root.join("d")).unwrap();
    std::fs::write(root.join("d/new"), "x").unwrap();
    std::fs::write(root.join("old"), "2").unwrap();
    std::fs::rename(root.join("d"), root.join("e")).unwrap();
    std::fs::remove_file(root.join("old")).unwrap();
    std::os::unix::fs::symlink("nowhere", root.join("link")).unwrap();
    world.flush();
    for (scope, path) in
        [("self", "d"), ("subtree", "d"), ("subtree", "e"), ("self", "old"), ("self", "link")]
    {
        assert!(world.has(scope, path.as_bytes()), "{scope} {path}: {:?}", world.changes());
    }
    // Resolved before or after the rename; both names are covered by it.
    assert!(world.has("self", b"d/new") || world.has("self", b"e/new"));
    assert_eq!(world.stop(), 0);
}

#[test]
fn a_directory_that_is_known_is_followed_when_it_is_renamed() {
    if !is_root() {
        return;
    }
    let (mut world, root) = World::with_root();
    std::fs::create_dir_all(root.join("d/sub")).unwrap();
    world.start();
    std::fs::write(root.join("d/sub/f"), "x").unwrap();
    world.flush();
    std::fs::rename(root.join("d"), root.join("e")).unwrap();
    std::fs::write(root.join("e/sub/g"), "x").unwrap();
    world.flush();
    assert!(world.has("self", b"d/sub/f") && world.has("self", b"e/sub/g"), "{:?}", world.changes());
}

#[test]
fn names_are_bytes() {
    if !is_root() {
        return;
    }
    let (mut world, root) = World::with_root();
    let long = [b'x'; 255];
    let names: [&[u8]; 8] =
        [b"new\nline", b"bad\xff\xfe", b"#hash", b"#12345", b"back\\slash", b" (deleted)", b"tab\t", &long];
    let before = root.join("dir (deleted)");
    std::fs::create_dir(&before).unwrap();
    world.start();
    for n in names {
        std::fs::write(root.join(name(n)), "x").unwrap();
        std::fs::create_dir(before.join(name(n))).unwrap();
        std::fs::write(before.join(name(n)).join("f"), "x").unwrap();
    }
    world.flush();
    for n in names {
        assert!(world.has("self", n), "{:?}", String::from_utf8_lossy(n));
        let deep = [b"dir (deleted)/", n, b"/f"].concat();
        assert!(world.has("self", &deep), "{:?}", String::from_utf8_lossy(&deep));
    }
}

#[test]
fn paths_longer_than_the_kernel_names_are_recorded() {
    if !is_root() {
        return;
    }
    let (mut world, root) = World::with_root();
    let deep = |top: &str| -> Vec<u8> {
        let long = "y".repeat(200);
        let mut at = rustix::fs::open(&root, OFlags::DIRECTORY, Mode::empty()).unwrap();
        let mut path = Vec::new();
        for part in std::iter::once(top).chain(std::iter::repeat_n(long.as_str(), 25)) {
            rustix::fs::mkdirat(&at, part, Mode::RWXU).unwrap();
            at = rustix::fs::openat(&at, part, OFlags::DIRECTORY, Mode::empty()).unwrap();
            path.extend_from_slice(part.as_bytes());
            path.push(b'/');
        }
        path
    };
    let touch = |path: &[u8]| {
        let mut at = rustix::fs::open(&root, OFlags::DIRECTORY, Mode::empty()).unwrap();
        for part in path.split(|&b| b == b'/').filter(|p| !p.is_empty()) {
            at = rustix::fs::openat(&at, part, OFlags::DIRECTORY, Mode::empty()).unwrap();
        }
        let flags = OFlags::CREATE | OFlags::WRONLY;
        rustix::fs::openat(&at, "f", flags, Mode::RWXU).unwrap();
    };
    let before = deep("before");
    world.start();
    let after = deep("after");
    touch(&before);
    touch(&after);
    world.flush();
    for path in [before, after] {
        assert!(path.len() > 4096);
        assert!(world.has("self", &[&path[..], b"f"].concat()));
    }
    assert_eq!(world.cause_count("unresolved"), 0);
}

#[test]
fn a_file_made_without_a_name_is_recorded_under_the_name_it_gets() {
    if !is_root() {
        return;
    }
    let disk = Mounted::image("ext4");
    let (mut world, root) = world_on(&disk);
    world.start();
    let file = rustix::fs::open(&root, OFlags::TMPFILE | OFlags::WRONLY, Mode::RWXU).unwrap();
    rustix::io::write(&file, b"x").unwrap();
    world.flush();
    assert!(world.changes().is_empty(), "without a name there is nothing to look at: {:?}", world.changes());
    use std::os::fd::AsRawFd as _;
    let link = format!("/proc/self/fd/{}", file.as_raw_fd());
    let follow = rustix::fs::AtFlags::SYMLINK_FOLLOW;
    rustix::fs::linkat(rustix::fs::CWD, link.as_str(), rustix::fs::CWD, root.join("named"), follow).unwrap();
    rustix::io::write(&file, b"y").unwrap();
    drop(file);
    world.flush();
    assert_eq!(world.changes(), [("self".to_owned(), "named".to_owned())]);
}

#[test]
fn a_tree_that_is_removed_leaves_no_doubt_and_no_gap() {
    if !is_root() {
        return;
    }
    let disk = Mounted::image("ext4");
    let (mut world, root) = world_on(&disk);
    for dir in 0..40 {
        let dir = root.join(format!("top/{dir}/deep/er"));
        std::fs::create_dir_all(&dir).unwrap();
        (0..20).for_each(|f| std::fs::write(dir.join(f.to_string()), "x").unwrap());
    }
    world.start();
    std::fs::remove_dir_all(root.join("top")).unwrap();
    world.flush();
    assert!(world.has("subtree", b"top"));
    assert_eq!(world.cause_count("unresolved"), 0, "{:?}", world.causes());
    assert_eq!(world.stats()["status"]["filesystems"][0]["doubts"], 0);
}

#[test]
fn what_is_excluded_or_ours_is_not_recorded_but_a_move_out_of_it_is() {
    if !is_root() {
        return;
    }
    let (mut world, root) = World::with_root();
    let state = root.join("state");
    world.configure(&state, &[("a", &root)], "exclude = [\"*.tmp\", \"/cache/\"]\n");
    std::fs::create_dir(root.join("cache")).unwrap();
    world.start();
    for excluded in ["x.tmp", "cache/f"] {
        std::fs::write(root.join(excluded), "x").unwrap();
    }
    world.ok(&["flush"]);
    let ours = |world: &World| world.changes().iter().filter(|(_, p)| p.starts_with("state/")).count();
    assert_eq!(ours(&world), 0);
    std::fs::rename(root.join("x.tmp"), root.join("kept")).unwrap();
    std::fs::create_dir(root.join("d")).unwrap();
    std::fs::rename(root.join("d"), root.join("cache/d")).unwrap();
    world.flush();
    let changes = world.changes();
    let kept: Vec<_> = changes.iter().filter(|(_, p)| p.as_str() != "state").cloned().collect();
    let row = |scope: &str, path: &str| (scope.to_owned(), path.to_owned());
    assert_eq!(kept, [row("self", "kept"), row("self", "d"), row("subtree", "d")]);
    assert_eq!(ours(&world), 0, "{changes:?}");
}

#[test]
fn a_move_into_or_out_of_a_root_is_recorded_inside() {
    if !is_root() {
        return;
    }
    let (mut world, root) = World::with_root();
    let outside = world.dir.path().join("outside");
    std::fs::create_dir_all(outside.join("in/sub")).unwrap();
    std::fs::create_dir_all(root.join("out/sub")).unwrap();
    world.start();
    std::fs::rename(outside.join("in"), root.join("in")).unwrap();
    std::fs::rename(root.join("out"), outside.join("out")).unwrap();
    std::fs::write(outside.join("out/sub/f"), "not ours any more").unwrap();
    std::fs::write(root.join("in/sub/f"), "ours now").unwrap();
    world.flush();
    assert!(world.has("subtree", b"in") && world.has("subtree", b"out") && world.has("self", b"in/sub/f"));
    assert!(!world.has("self", b"out/sub/f"));
}

#[test]
fn nested_roots_get_an_entry_each() {
    if !is_root() {
        return;
    }
    let (mut world, root) = World::with_root();
    let inner = root.join("inner");
    std::fs::create_dir(&inner).unwrap();
    world.configure(&world.dir.path().join("state"), &[("a", &root), ("b", &inner)], "");
    world.start();
    assert_eq!(world.stats()["status"]["filesystems"].as_array().unwrap().len(), 1, "one group serves both");
    std::fs::write(inner.join("f"), "x").unwrap();
    world.flush();
    let mut rows: Vec<_> = world.pending().into_iter().filter(|p| !p.path.is_empty()).collect();
    rows.sort();
    let shown: Vec<_> = rows.iter().map(|p| (p.root.as_str(), p.path.as_slice())).collect();
    assert_eq!(shown, [("a", &b"inner/f"[..]), ("b", b"f")]);
}

#[test]
fn sigterm_commits_what_was_never_flushed() {
    let (mut world, root) = World::with_root();
    world.start();
    for n in 0..3000 {
        std::fs::write(root.join(format!("f{n}")), "x").unwrap();
    }
    assert_eq!(world.stop(), 0);
    let rows = world.changes();
    for n in 0..3000 {
        assert!(rows.iter().any(|(_, p)| *p == format!("f{n}")), "f{n}");
    }
    assert_eq!(world.stats()["tracker"], "not-running");
}

#[test]
fn a_log_that_nobody_reads_stops_nothing() {
    let (mut world, root) = World::with_root();
    world.deaf = true;
    world.start();
    std::fs::write(root.join("f"), "x").unwrap();
    std::fs::rename(&root, world.dir.path().join("away")).unwrap();
    // This is said on stderr, by the thread that commits.
    world.flush();
    assert_eq!(world.root_state(), "missing");
    assert_eq!(world.stop(), 0);
}

#[test]
fn after_a_kill_the_next_start_is_a_gap() {
    let (mut world, root) = World::with_root();
    world.start();
    world.kill();
    std::fs::write(root.join("unseen"), "x").unwrap();
    let gaps = world.cause_count("start");
    world.start();
    assert_eq!(world.cause_count("start"), gaps + 1);
    assert_eq!(world.root_state(), "ok");
    assert_eq!(world.stop(), 0);
}

#[test]
fn a_root_taken_away_is_missing_and_another_in_its_place_is_replaced() {
    let (mut world, root) = World::with_root();
    world.start();
    world.claim();
    let away = world.dir.path().join("away");
    std::fs::rename(&root, &away).unwrap();
    world.flush();
    assert_eq!(world.root_state(), "missing");
    std::fs::create_dir(&root).unwrap();
    world.flush();
    assert_eq!(world.root_state(), "replaced");
    std::fs::remove_dir(&root).unwrap();
    std::fs::rename(&away, &root).unwrap();
    world.flush();
    assert_eq!(world.root_state(), "ok");
    assert_eq!(world.cause_count("remount"), 1, "nobody watched meanwhile: {:?}", world.causes());
    std::fs::write(root.join("f"), "x").unwrap();
    world.flush();
    assert!(world.has("self", b"f"));
}

#[test]
fn added_paths_are_pending_with_all_their_bytes() {
    let (mut world, root) = World::with_root();
    world.start();
    world.ok(&["add", "--root", "a", "rel/path"]);
    let absolute = root.join(name(b"abs\xff"));
    let out = world.output(world.command(&[Path::new("add"), Path::new("--subtree"), &absolute]));
    assert!(out.status.success(), "{out:?}");
    let list = world.dir.path().join("list");
    std::fs::write(&list, b"one\0two\nlines\0").unwrap();
    world.ok(&["add", "--root", "a", "--from0", list.to_str().unwrap()]);
    for (scope, path) in
        [("self", &b"rel/path"[..]), ("subtree", b"abs\xff"), ("self", b"one"), ("self", b"two\nlines")]
    {
        assert!(world.has(scope, path), "{path:?}");
    }
    assert_eq!(world.cause_count("external"), 4);
}

#[test]
fn a_watcher_hears_of_new_entries() {
    let (mut world, root) = World::with_root();
    world.start();
    let socket = world.dir.path().join("run/tracker.sock");
    let patience = Some(std::time::Duration::from_secs(60));
    let mut watch = connect(&socket, &Request::Watch, patience).unwrap();
    // The server has begun to watch before it can hear of this: it compares heads.
    world.flush();
    std::fs::write(root.join("f"), "x").unwrap();
    world.flush();
    std::fs::write(root.join("g"), "x").unwrap();
    world.flush();
    assert!(matches!(watch.answer(), Ok(Answer::Changed { head }) if head > 0));
}

#[test]
fn while_the_state_disk_is_full_gaps_stand_for_what_changes() {
    if !is_root() {
        return;
    }
    let disk = common::Mounted::tmpfs("12m");
    let (mut world, root) = World::with_root();
    world.configure(&disk.point.join("state"), &[("a", &root)], "");
    // The reserve is made anew at a tick.
    world.env = vec![("WATCHDOG_USEC", "400000")];
    world.start();
    world.claim_in(&disk.point.join("state"));
    let filler = disk.point.join("filler");
    assert!(std::fs::write(&filler, vec![0; 12 << 20]).is_err(), "it is full now");
    let change = |from: usize| {
        for n in from..from + 500 {
            std::fs::write(root.join(format!("{n}-{}", "z".repeat(100))), "x").unwrap();
        }
    };
    change(0);
    world.flush();
    assert_eq!((world.cause_count("disk-full"), world.changes()), (1, Vec::new()));
    change(500);
    world.flush();
    assert_eq!(world.cause_count("disk-full"), 1, "nobody has claimed the gap: it covers these too");
    world.claim_in(&disk.point.join("state"));
    change(1000);
    world.flush();
    assert_eq!(world.cause_count("disk-full"), 2, "what changed after the claim has a gap above it");
    std::fs::remove_file(&filler).unwrap();
    world.wait_for_line("there is room on the disk");
    change(1500);
    world.flush();
    let named = world.changes();
    let of = |n| ("self".to_owned(), format!("{n}-{}", "z".repeat(100)));
    assert!((1500..2000).all(|n| named.contains(&of(n))), "from here on every change has an entry again");
    let reserve = std::fs::metadata(disk.point.join("state/journal.reserve")).unwrap();
    assert_eq!(reserve.len(), 4 << 20);
    // The status is written once a second.
    let begun = std::time::Instant::now();
    while world.stats()["status"]["filesystems"][0]["last_error"] != "" {
        assert!(begun.elapsed().as_secs() < 60, "{}", world.stats());
    }
    assert_eq!(world.stop(), 0);
}

#[test]
fn the_service_manager_hears_of_progress_and_of_the_end() {
    let (mut world, _) = World::with_root();
    world.env = vec![("WATCHDOG_USEC", "400000")];
    world.start();
    world.wait_for_notice("WATCHDOG=1");
    world.wait_for_notice("WATCHDOG=1");
    world.signal(Signal::TERM);
    world.wait_for_notice("STOPPING=1");
}

#[test]
fn idle_means_idle() {
    if !is_root() {
        return;
    }
    let disk = Mounted::image("ext4");
    let (mut world, root) = world_on(&disk);
    world.start();
    std::fs::write(root.join("f"), "x").unwrap();
    world.flush();
    let journal = world.dir.path().join("state/journal.db-wal");
    let before = std::fs::metadata(&journal).unwrap().modified().unwrap();
    world.flush();
    world.flush();
    assert_eq!(
        std::fs::metadata(&journal).unwrap().modified().unwrap(),
        before,
        "a flush without events writes nothing"
    );
    world.signal(Signal::TERM);
}
