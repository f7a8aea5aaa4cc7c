//! What may be asked of a running tracker, by whom and how often; and that a flush is a barrier in a storm.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use std::collections::BTreeSet;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use common::{NOBODY, World, is_root};
use shared::control::{self, Request};
use shared::journal::Journal;

fn text(out: &Output) -> String {
    String::from_utf8_lossy(&out.stderr).into_owned()
}

/// `tracker` with this on its standard input.
fn fed(world: &World, args: &[&str], input: &[u8]) -> Output {
    let mut command = world.command(args);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    child.wait_with_output().unwrap()
}

#[test]
fn thousands_of_paths_are_added_at_once_and_all_are_there_when_it_is_done() {
    let (mut world, root) = World::with_root();
    world.start();
    let mut input = Vec::new();
    for n in 0..5_000 {
        input.extend_from_slice(root.join(format!("dir/{n}\nbad")).as_os_str().as_encoded_bytes());
        input.extend_from_slice(b"\xff\0");
    }
    let out = fed(&world, &["add", "--from0", "-"], &input);
    assert!(out.status.success(), "{}", text(&out));
    let added: BTreeSet<Vec<u8>> = world.pending().into_iter().map(|p| p.path).collect();
    assert!(
        (0..5_000).all(|n| added.contains([format!("dir/{n}\nbad").as_bytes(), b"\xff"].concat().as_slice()))
    );
    // Said once more before anybody has read it, it is the same entries.
    let before = world.cause_count("external");
    assert!(fed(&world, &["add", "--from0", "-"], &input).status.success());
    assert_eq!(world.cause_count("external"), before);
}

#[test]
fn one_bad_path_among_thousands_adds_nothing() {
    let (mut world, root) = World::with_root();
    world.start();
    for bad in [&b"../outside"[..], b"/elsewhere/x"] {
        let mut input: Vec<u8> =
            (0..1_000).flat_map(|n| format!("{}/{n}\0", root.display()).into_bytes()).collect();
        input.extend_from_slice(bad);
        let out = fed(&world, &["add", "--root", "a", "--from0", "-"], &input);
        assert_eq!(out.status.code(), Some(2), "{}", text(&out));
        assert!(text(&out).contains("Nothing was added"), "{}", text(&out));
        assert_eq!(world.cause_count("external"), 0);
    }
}

#[test]
fn who_adds_too_much_hears_when_to_come_back() {
    let (mut world, _) = World::with_root();
    world.start();
    let input: Vec<u8> = (0..100_000).flat_map(|n| format!("{n}\0").into_bytes()).collect();
    let add = || fed(&world, &["add", "--root", "a", "--from0", "-"], &input);
    assert!(add().status.success());
    let out = add();
    assert_eq!(out.status.code(), Some(75), "{}", text(&out));
    assert!(text(&out).contains("try again in"), "{}", text(&out));
}

#[test]
fn a_user_who_may_not_ask_is_refused_by_the_modes_and_by_the_tracker() {
    if !is_root() {
        return;
    }
    let (mut world, _) = World::with_root();
    world.start();
    let program = world.dir.path().join("tracker");
    assert!(Command::new("cp").arg(env!("CARGO_BIN_EXE_tracker")).arg(&program).status().unwrap().success());
    let open = |path: &Path| std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777)).unwrap();
    let run = world.dir.path().join("run");
    [world.dir.path(), &world.config].into_iter().for_each(open);
    let ask = |gid: u32, args: &[&str]| {
        let mut command = Command::new(&program);
        command.args(args).env("LONGSHORE_CONFIG", &world.config).current_dir("/");
        command.uid(NOBODY).gid(gid).output().unwrap()
    };
    let refused = |args: &[&str]| {
        let out = ask(NOBODY, args);
        let said = text(&out) + &String::from_utf8_lossy(&out.stdout).replace('\n', " ");
        assert_eq!(out.status.code(), Some(1), "{args:?}: {said}");
        assert!(said.contains("the group of its state directory"), "{args:?}: {said}");
    };
    // Neither later, nor by another command line.
    refused(&["flush"]);
    refused(&["add", "--root", "a", "x"]);
    [&run, &run.join("tracker.sock")].into_iter().for_each(|path| open(path));
    refused(&["flush"]);
    refused(&["add", "--root", "a", "x"]);
    refused(&["health"]);
    assert_eq!(world.cause_count("external"), 0);
    // The group of the state directory is root's here.
    assert!(ask(0, &["flush"]).status.success());
}

/// Threads that write for as long as it lives, and what they have finished.
struct Storm {
    stop: AtomicBool,
    written: AtomicU64,
}

impl Storm {
    fn write(&self, dir: &Path) {
        std::fs::create_dir(dir).unwrap();
        for n in 0.. {
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            let path = dir.join((n % 5_000).to_string());
            std::fs::write(&path, n.to_string()).unwrap();
            std::fs::rename(&path, dir.join(format!("{}-moved", n % 5_000))).unwrap();
            self.written.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[test]
fn a_flush_answers_in_a_storm_that_never_ends_and_what_came_before_is_there() {
    let (mut world, root) = World::with_root();
    world.start();
    let storm = Storm { stop: AtomicBool::new(false), written: AtomicU64::new(0) };
    let socket = world.dir.path().join("run/tracker.sock");
    std::thread::scope(|scope| {
        for n in 0..2 {
            let (storm, dir) = (&storm, root.join(format!("storm{n}")));
            scope.spawn(move || storm.write(&dir));
        }
        let journal = Journal::open_to_read(&world.dir.path().join("state/journal.db")).unwrap();
        let mut seen = 0;
        let flushes = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for round in 0..20 {
                let marker = format!("marker{round}");
                std::fs::write(root.join(&marker), "x").unwrap();
                let before = storm.written.load(Ordering::Relaxed);
                let head = control::ask(&socket, &Request::Flush, Duration::from_secs(60)).unwrap();
                let rows = journal.read(seen, head, usize::MAX >> 1).unwrap();
                let root_gap = rows.iter().any(|e| e.path.is_root() && e.cause.is_gap());
                let found = rows.iter().any(|e| e.path.as_bytes() == marker.as_bytes());
                assert!(found || root_gap, "{marker} is not among {} entries up to {head}", rows.len());
                seen = head;
                // The storm goes on before the next round: it is never over when a flush answers.
                while storm.written.load(Ordering::Relaxed) < before + 200 {
                    std::thread::yield_now();
                }
            }
        }));
        storm.stop.store(true, Ordering::Relaxed);
        flushes.unwrap();
    });
    assert_eq!(world.stop(), 0);
}

#[test]
fn a_storm_of_flushes_is_refused_for_a_moment_only() {
    let (mut world, _) = World::with_root();
    world.start();
    let socket = world.dir.path().join("run/tracker.sock");
    let ask = || control::ask(&socket, &Request::Flush, Duration::from_secs(60));
    let refused = std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..4).map(|_| scope.spawn(|| (0..2_000).filter_map(|_| ask().err()).next())).collect();
        threads.into_iter().filter_map(|t| t.join().unwrap()).next()
    });
    let refused = refused.expect("thousands of flushes in a moment").to_string();
    assert!(refused.contains("try again in 1 s"), "{refused}");
    while ask().is_err() {}
    assert_eq!(world.stop(), 0);
}
