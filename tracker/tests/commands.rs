//! What the commands say, and with which exit code, when they meet a tracker that cannot serve them just then.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use common::{Mounted, World, is_root};
use rustix::process::Signal;
use shared::entry::{Cause, Handle, Mask, Scope};
use shared::journal::{Change, Coalesce, Commit, Journal};
use shared::path::RelPath;

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Exit code of `tracker add` when the tracker answers with this line.
fn added(world: &World, root: &Path, answer: &str) -> (i32, String) {
    let run = world.dir.path().join("run");
    std::fs::create_dir_all(&run).unwrap();
    let socket = run.join("tracker.sock");
    std::fs::remove_file(&socket).ok();
    let listener = UnixListener::bind(&socket).unwrap();
    let line = format!("{answer}\n");
    let serve = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        BufReader::new(&stream).read_line(&mut String::new()).unwrap();
        stream.write_all(line.as_bytes()).unwrap();
    });
    let out = world.run(&["add", root.join("x").to_str().unwrap()]);
    serve.join().unwrap();
    (out.status.code().unwrap(), text(&out.stderr))
}

#[test]
fn what_the_tracker_refuses_may_be_added_later_or_has_failed() {
    let (world, root) = World::with_root();
    let (code, said) =
        added(&world, &root, r#"{"answer":"refused","message":"database is locked","retry":true}"#);
    assert_eq!(code, 75, "{said}");
    assert!(said.contains("database is locked"), "{said}");
    let wrong = r#"{"answer":"refused","message":"there is no root named `z`"}"#;
    assert_eq!(added(&world, &root, wrong).0, 1, "as an older tracker says it");
}

#[test]
fn too_many_connections_at_once_are_a_reason_to_try_later() {
    let (mut world, root) = World::with_root();
    world.start();
    let socket = world.dir.path().join("run/tracker.sock");
    let idle: Vec<UnixStream> = (0..64).map(|_| UnixStream::connect(&socket).unwrap()).collect();
    let out = world.run(&["add", root.join("x").to_str().unwrap()]);
    assert_eq!(out.status.code(), Some(75), "{}", text(&out.stderr));
    assert!(text(&out.stderr).contains("too many connections"), "{}", text(&out.stderr));
    drop(idle);
    assert_eq!(world.stop(), 0);
}

#[test]
fn a_full_journal_disk_is_a_reason_to_try_later() {
    if !is_root() {
        return;
    }
    let disk = Mounted::tmpfs("10m");
    let (mut world, root) = World::with_root();
    world.configure(&disk.point.join("state"), &[("a", &root)], "");
    world.start();
    std::fs::write(disk.point.join("filler"), vec![0; 10 << 20]).unwrap_err();
    let list = world.dir.path().join("list");
    let mut paths = Vec::new();
    (0..5_000).for_each(|n| paths.extend_from_slice(format!("{n}-{}\0", "z".repeat(200)).as_bytes()));
    std::fs::write(&list, paths).unwrap();
    let out = world.run(&["add", "--root", "a", "--from0", list.to_str().unwrap()]);
    assert_eq!(out.status.code(), Some(75), "{}", text(&out.stderr));
    assert!(text(&out.stderr).contains("full"), "{}", text(&out.stderr));
}

fn two_roots_and_a_leg() -> World {
    let (world, root) = World::with_root();
    let (other, mirror) = (world.dir.path().join("other"), world.dir.path().join("mirror"));
    [&other, &mirror].into_iter().for_each(|d| std::fs::create_dir(d).unwrap());
    let leg =
        format!("[[leg]]\nname = \"l\"\nkind = \"dir\"\nroots = [\"a\"]\npath = \"{}\"\n", mirror.display());
    world.configure(&world.dir.path().join("state"), &[("a", &root), ("b", &other)], &leg);
    world
}

#[test]
fn what_is_pending_for_a_leg_is_of_its_own_roots() {
    let mut world = two_roots_and_a_leg();
    world.start();
    for args in [&["pending", "--leg", "l", "-0"][..], &["pending", "--leg", "l", "--json"]] {
        let out = text(&world.ok(args));
        let records: Vec<&str> = out.split_terminator(['\0', '\n']).collect();
        assert!(!records.is_empty());
        for record in records {
            assert!(record.starts_with("a\t") || record.contains("\"root\":\"a\""), "{out:?}");
        }
    }
    assert!(world.pending().iter().any(|p| p.root == "b"), "without --leg it is there");
}

#[test]
fn a_file_without_a_name_is_pending_under_its_handle() {
    let (mut world, _) = World::with_root();
    world.start();
    world.claim();
    let mut journal = Journal::open(&world.dir.path().join("state/journal.db")).unwrap();
    let root = journal.roots().unwrap()[0].id;
    let handle = Handle { kind: 1, bytes: vec![0xab, 0, 7] };
    let change = Change {
        root,
        path: RelPath::root(),
        handle: Some(handle),
        scope: Scope::Handle,
        cause: Cause::Event,
        mask: Mask::MODIFY,
    };
    let commit = Commit { changes: vec![change], ..Commit::default() };
    journal.append(&mut Coalesce::default(), &commit, 0).unwrap();
    assert!(world.has("handle", b"01000000ab0007"), "{:?}", world.pending());
    for args in [&["pending"][..], &["pending", "--json"]] {
        assert!(text(&world.ok(args)).contains("01000000ab0007"), "{args:?}");
    }
}

#[test]
fn a_directory_on_the_filesystem_of_its_parent_is_identified_only_if_that_is_meant() {
    let (world, root) = World::with_root();
    let root = std::fs::canonicalize(root).unwrap();
    let shown = root.to_str().unwrap();
    let out = world.run(&["identify", shown]);
    let said = text(&out.stderr);
    assert_eq!((out.status.code(), out.stdout.len()), (Some(2), 0), "{said}");
    assert!(said.contains(shown) && said.contains("--subdir") && said.contains("mount"), "{said}");
    assert!(text(&world.ok(&["identify", "--subdir", shown])).contains("[[root]]"));
    assert!(text(&world.ok(&["identify", "/"])).contains("path = \"/\""));
}

#[test]
fn a_mount_point_is_identified_also_where_its_filesystem_is_that_of_its_parent() {
    if !is_root() {
        return;
    }
    let (world, root) = World::with_root();
    let from = world.dir.path().join("from");
    std::fs::create_dir(&from).unwrap();
    let bind = common::Bind::new(&from, &root);
    world.ok(&["identify", bind.0.to_str().unwrap()]);
}

fn change_status(path: &PathBuf, key: &str, value: &str) {
    let mut status: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    status[key] = value.into();
    std::fs::write(path, status.to_string()).unwrap();
}

#[test]
fn a_tracker_of_which_only_the_lock_is_seen_runs() {
    let (mut world, _) = World::with_root();
    world.start();
    // Nothing is written while it stands still.
    world.signal(Signal::STOP);
    let status = world.dir.path().join("run/tracker.json");
    change_status(&status, "boot_id", "covered in this container");
    assert_eq!(world.stats()["tracker"], "running");
    assert!(world.run(&["stats"]).status.success());
    std::fs::remove_file(&status).unwrap();
    assert_eq!(world.stats()["tracker"], "running", "it has not told its status yet");
    assert!(text(&world.ok(&["stats"])).starts_with("tracker   running"));
    // Where the lock cannot be seen, the socket still answers.
    let lock = world.dir.path().join("state/tracker.lock");
    std::fs::rename(&lock, lock.with_extension("away")).unwrap();
    assert_eq!(world.stats()["tracker"], "running");
    world.kill();
    assert_eq!(world.stats()["tracker"], "not-running");
    std::fs::rename(lock.with_extension("away"), &lock).unwrap();
    assert_eq!(world.stats()["tracker"], "not-running");
}

#[test]
fn a_tracker_that_has_not_told_its_status_is_not_shown_with_the_one_before() {
    let (mut world, _) = World::with_root();
    world.start();
    world.kill();
    let status = world.dir.path().join("run/tracker.json");
    assert!(status.exists());
    // It fails after it took the lock: the socket's place is taken.
    let socket = world.dir.path().join("run/tracker.sock");
    std::fs::remove_file(&socket).ok();
    std::fs::create_dir_all(socket.join("x")).unwrap();
    assert_eq!(world.run(&["run"]).status.code(), Some(1));
    assert!(!status.exists());
}
