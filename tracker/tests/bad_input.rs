//! What can be wrong at start: each is one paragraph that names the thing and what to do, with the right exit code.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use std::path::Path;
use std::process::Output;

use common::{Mounted, World, is_root};

/// One paragraph on stderr with all these words, nothing on stdout.
fn refused(out: &Output, code: i32, needles: &[&str]) {
    let stderr = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(code), "{stderr}");
    assert!(out.stdout.is_empty());
    assert!(stderr.starts_with("tracker: "), "{stderr}");
    for needle in needles {
        assert!(stderr.contains(needle), "{needle} is missing: {stderr}");
    }
    assert!(!stderr.trim_end().contains("\n\n"), "{stderr}");
}

#[test]
fn a_missing_root_is_named() {
    let world = World::new(&[("a", Path::new("/nonexistent/root"))]);
    refused(&world.run(&["run"]), 78, &["`a`", "/nonexistent/root", "Mount its disk"]);
    assert!(!world.dir.path().join("state").exists(), "nothing was made");
}

#[test]
fn a_root_that_is_a_file_is_named() {
    let (world, root) = World::with_root();
    std::fs::remove_dir(&root).unwrap();
    std::fs::write(&root, "").unwrap();
    refused(&world.run(&["run"]), 78, &["`a`", "not a directory", "/root"]);
}

#[test]
fn an_unknown_key_is_named_with_its_line() {
    let (world, _) = World::with_root();
    let text = std::fs::read_to_string(&world.config).unwrap();
    std::fs::write(&world.config, format!("{text}exlude = []\n")).unwrap();
    for command in [&["run"][..], &["config", "check"], &["stats"], &["flush"]] {
        refused(&world.run(command), 78, &["exlude", "line 6", "longshore.toml"]);
    }
}

#[test]
fn a_missing_configuration_is_named_with_the_way_to_name_another() {
    let (world, _) = World::with_root();
    std::fs::remove_file(&world.config).unwrap();
    refused(&world.run(&["run"]), 78, &["longshore.toml", "--config"]);
}

#[test]
fn a_configuration_without_roots_says_how_to_get_one() {
    let world = World::new(&[]);
    refused(&world.run(&["run"]), 78, &["no root", "tracker identify"]);
}

#[test]
fn a_journal_that_is_not_sqlite_is_left_as_it_is() {
    let (world, _) = World::with_root();
    let journal = world.dir.path().join("state/journal.db");
    std::fs::create_dir(journal.parent().unwrap()).unwrap();
    std::fs::write(&journal, "my diary\n".repeat(500)).unwrap();
    refused(&world.run(&["run"]), 78, &["journal.db", "not a SQLite database", "move it away"]);
    assert_eq!(std::fs::read(&journal).unwrap(), "my diary\n".repeat(500).as_bytes());
}

#[test]
fn a_journal_of_a_newer_program_is_left_as_it_is() {
    let (mut world, _) = World::with_root();
    world.start();
    assert_eq!(world.stop(), 0);
    let journal = world.dir.path().join("state/journal.db");
    // The schema version of SQLite's header (bytes 60 to 63).
    let mut bytes = std::fs::read(&journal).unwrap();
    bytes[60..64].copy_from_slice(&9u32.to_be_bytes());
    std::fs::write(&journal, &bytes).unwrap();
    refused(&world.run(&["run"]), 78, &["journal.db", "version 9", "newer program"]);
    assert_eq!(std::fs::read(&journal).unwrap(), bytes);
}

#[test]
fn a_full_state_disk_is_named() {
    if !is_root() {
        return;
    }
    let disk = Mounted::tmpfs("64k");
    let (world, root) = World::with_root();
    world.configure(&disk.point.join("state"), &[("a", &root)], "");
    std::fs::create_dir(disk.point.join("state")).unwrap();
    let filled = std::fs::write(disk.point.join("filler"), vec![0; 1 << 20]);
    assert!(filled.is_err(), "it is full now");
    refused(&world.run(&["run"]), 75, &["full", "mnt/state", "4 MiB", "Make room"]);
}

#[test]
fn a_state_directory_that_cannot_be_made_is_named() {
    let (world, root) = World::with_root();
    std::fs::write(world.dir.path().join("file"), "").unwrap();
    world.configure(&world.dir.path().join("file/state"), &[("a", &root)], "");
    refused(&world.run(&["run"]), 78, &["file/state", "Make it"]);
}

#[test]
fn a_directory_of_ours_that_holds_a_root_is_named_with_it_whatever_links_lead_there() {
    let (world, root) = World::with_root();
    let link = world.dir.path().join("link");
    for target in [&root, world.dir.path()] {
        std::fs::remove_file(&link).ok();
        std::os::unix::fs::symlink(target, &link).unwrap();
        world.configure(&link, &[("a", &root)], "");
        world.ok(&["config", "check"]);
        let needles = ["`a`", link.to_str().unwrap(), root.to_str().unwrap()];
        refused(&world.run(&["run"]), 78, &needles);
        let text = std::fs::read_to_string(&world.config).unwrap();
        let (run, away) = (world.dir.path().join("run"), world.dir.path().join("elsewhere"));
        let swapped = text
            .replace(&format!("runtime_dir = \"{}\"", run.display()), "runtime_dir = \"LINK\"")
            .replace(link.to_str().unwrap(), away.to_str().unwrap())
            .replace("LINK", link.to_str().unwrap());
        std::fs::write(&world.config, swapped).unwrap();
        refused(&world.run(&["run"]), 78, &needles);
        assert_eq!(std::fs::read_dir(&root).unwrap().count(), 0, "nothing was made in the root");
    }
}

#[test]
fn a_second_tracker_is_refused_and_told_who_holds_the_state() {
    let (mut world, _) = World::with_root();
    world.start();
    refused(&world.run(&["run"]), 75, &["/state", "Another tracker"]);
    world.flush();
}

#[test]
fn without_a_tracker_a_flush_says_try_later() {
    let (world, _) = World::with_root();
    refused(&world.run(&["flush"]), 75, &["tracker.sock", "longshore-tracker"]);
    assert_eq!(world.run(&["stats"]).status.code(), Some(75));
    refused(&world.run(&["pending"]), 75, &["journal.db"]);
}

#[test]
fn a_bad_path_adds_nothing() {
    let (mut world, root) = World::with_root();
    world.start();
    let good = root.join("good");
    let before = world.pending();
    let out = world.output(world.command(&[Path::new("add"), &good, Path::new("/elsewhere")]));
    refused(&out, 2, &["/elsewhere", "Nothing was added"]);
    refused(&world.run(&["add", "relative"]), 2, &["relative", "--root"]);
    assert_eq!(world.pending(), before);
}
