//! Gaps on real btrfs: what changed while the tracker was away comes out of the filesystem's own generations.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::process::Command;

use common::{Mounted, World, is_root};
use rustix::fs::{CWD, RenameFlags};

fn world_on(root: &Path, more: &str) -> World {
    let world = World::new(&[]);
    world.configure(&world.dir.path().join("state"), &[("a", root)], more);
    world
}

/// Scope and path of what stands in the place of gaps.
fn found(world: &World) -> BTreeSet<(String, String)> {
    let out = String::from_utf8(world.ok(&["pending", "--json"])).unwrap();
    let rows = out.lines().map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap());
    let text = |row: &serde_json::Value, key: &str| row[key].as_str().unwrap_or_default().to_owned();
    let rows = rows.filter(|row| row["cause"] == "generation" && row["path"] != "tick");
    rows.map(|row| (text(&row, "scope"), text(&row, "path"))).collect()
}

fn gaps(world: &World) -> usize {
    world.causes().iter().filter(|(cause, path)| cause == "start" && path.is_empty()).count()
}

/// What `stats` says of the newest gap.
fn history(world: &World) -> String {
    let journal = shared::journal::Journal::open(&world.dir.path().join("state/journal.db")).unwrap();
    journal.history(50).unwrap().into_iter().find(|row| row.kind == "gap").unwrap().text
}

fn set(expected: &[(&str, &str)]) -> BTreeSet<(String, String)> {
    expected.iter().map(|(scope, path)| (scope.to_string(), path.to_string())).collect()
}

/// Starts, so that a generation is recorded, ends, and does `edit` meanwhile. What was there before is of an older
/// generation, but for one file.
fn away(world: &mut World, disk: &Mounted, edit: impl FnOnce()) {
    let tick = disk.point.join("tick");
    fs::write(&tick, "").unwrap();
    rustix::fs::syncfs(fs::File::open(&disk.point).unwrap()).unwrap();
    fs::write(&tick, "tick").unwrap();
    world.start();
    assert_eq!(world.stop(), 0);
    edit();
    world.start();
    world.flush();
}

fn subvolume(args: &[&str], paths: &[&Path]) {
    let out = Command::new("btrfs").args(["-q", "subvolume"]).args(args).args(paths).output().unwrap();
    assert!(out.status.success(), "{out:?}");
}

#[test]
fn every_kind_of_change_is_found_and_nothing_that_did_not_change() {
    if !is_root() {
        return;
    }
    let disk = Mounted::image("btrfs");
    let top = disk.point.clone();
    let at = |path: &str| top.join(path);
    for dir in [
        "write", "mode", "xattr", "cut", "new", "unlink", "rename", "swap", "mkdir", "from/dir", "to",
        "link", "sym", "rm/dir", "own", "quiet", "over", "out",
    ] {
        fs::create_dir_all(at(dir)).unwrap();
        for name in ["f", "g"] {
            fs::write(at(dir).join(name), "content").unwrap();
        }
    }
    let mut world = world_on(&top, "exclude = [\"*.tmp\", \"/out\"]\n");
    away(&mut world, &disk, || {
        fs::write(at("write/f"), "other").unwrap();
        fs::set_permissions(at("mode/f"), fs::Permissions::from_mode(0o600)).unwrap();
        xattr_set(&at("xattr/f"));
        fs::File::options().write(true).open(at("cut/f")).unwrap().set_len(0).unwrap();
        fs::write(at("new/empty"), "").unwrap();
        fs::write(at("new/left-out.tmp"), "").unwrap();
        fs::remove_file(at("unlink/f")).unwrap();
        fs::rename(at("rename/f"), at("rename/h")).unwrap();
        rustix::fs::renameat_with(CWD, at("swap/f"), CWD, at("swap/g"), RenameFlags::EXCHANGE).unwrap();
        fs::create_dir(at("mkdir/d")).unwrap();
        fs::rename(at("from/dir"), at("to/dir")).unwrap();
        fs::hard_link(at("link/f"), at("link/h")).unwrap();
        symlink("f", at("sym/l")).unwrap();
        fs::remove_dir_all(at("rm/dir")).unwrap();
        fs::set_permissions(at("own"), fs::Permissions::from_mode(0o700)).unwrap();
        fs::rename(at("over/f"), at("over/g")).unwrap();
        fs::write(at("out/f"), "other").unwrap();
    });
    let expected = set(&[
        ("self", "write/f"),
        ("self", "mode/f"),
        ("self", "xattr/f"),
        ("self", "cut/f"),
        ("names", "new"),
        ("self", "new/empty"),
        ("names", "unlink"),
        ("names", "rename"),
        ("self", "rename/h"),
        ("names", "swap"),
        ("self", "swap/f"),
        ("self", "swap/g"),
        ("names", "mkdir"),
        ("names", "mkdir/d"),
        ("names", "from"),
        ("names", "to"),
        ("names", "to/dir"),
        ("names", "link"),
        ("self", "link/f"),
        ("self", "link/h"),
        ("names", "sym"),
        ("self", "sym/l"),
        ("names", "rm"),
        ("names", "own"),
        ("names", "over"),
        ("self", "over/g"),
    ]);
    assert_eq!(found(&world), expected);
    assert_eq!(gaps(&world), 1, "that of the first start");
    assert!(history(&world).contains("a: 27 paths changed since generation"), "{}", history(&world));
}

fn xattr_set(path: &Path) {
    rustix::fs::setxattr(path, "user.note", b"x", rustix::fs::XattrFlags::empty()).unwrap();
}

#[test]
fn a_root_that_is_a_directory_of_a_subvolume_has_only_its_part() {
    if !is_root() {
        return;
    }
    let disk = Mounted::image("btrfs");
    let root = disk.point.join("deep/root");
    fs::create_dir_all(root.join("d")).unwrap();
    fs::write(root.join("d/f"), "").unwrap();
    let mut world = world_on(&root, "");
    let outside = disk.point.join("deep/f");
    away(&mut world, &disk, || {
        fs::write(&outside, "").unwrap();
        fs::hard_link(root.join("d/f"), disk.point.join("other-name")).unwrap();
        fs::write(root.join("new"), "").unwrap();
    });
    assert_eq!(found(&world), set(&[("self", "d/f"), ("names", ""), ("self", "new")]));
}

#[test]
fn a_change_that_was_read_and_committed_is_not_searched_for_again_for_ever() {
    if !is_root() {
        return;
    }
    let disk = Mounted::image("btrfs");
    let mut world = world_on(&disk.point, "");
    away(&mut world, &disk, || fs::write(disk.point.join("first"), "").unwrap());
    assert!(found(&world).contains(&("self".into(), "first".into())));
    let seen = found(&world).len();
    assert_eq!(world.stop(), 0);
    // A leg has read what stands there: what is found again is a new row.
    world.claim();
    away(&mut world, &disk, || fs::write(disk.point.join("second"), "").unwrap());
    let again = found(&world);
    assert!(again.contains(&("self".into(), "second".into())));
    assert_eq!(again.len(), seen + 1, "{again:?}");
}

#[test]
fn a_rolled_back_subvolume_is_looked_at_as_a_whole() {
    if !is_root() {
        return;
    }
    let disk = Mounted::image("btrfs");
    let (root, good) = (disk.point.join("@"), disk.point.join("good"));
    subvolume(&["create"], &[&root]);
    fs::write(root.join("f"), "good").unwrap();
    subvolume(&["snapshot"], &[&root, &good]);
    fs::write(root.join("f"), "bad").unwrap();
    let mut world = world_on(&root, "");
    away(&mut world, &disk, || {
        fs::rename(&root, disk.point.join("@old")).unwrap();
        subvolume(&["snapshot"], &[&good, &root]);
    });
    assert_eq!(found(&world), set(&[]));
    assert!(history(&world).contains("a: all of it, it is another subvolume"), "{}", history(&world));
}

#[test]
fn a_subvolume_within_is_named_by_its_directory_and_not_entered() {
    if !is_root() {
        return;
    }
    let disk = Mounted::image("btrfs");
    fs::create_dir(disk.point.join("d")).unwrap();
    subvolume(&["create"], &[&disk.point.join("within")]);
    let mut world = world_on(&disk.point, "");
    away(&mut world, &disk, || {
        fs::write(disk.point.join("within/f"), "").unwrap();
        subvolume(&["snapshot"], &[&disk.point.join("within"), &disk.point.join("d/snap")]);
    });
    assert_eq!(found(&world), set(&[("names", "d")]));
}

#[test]
fn a_disk_that_was_away_is_looked_at_as_a_whole_when_it_comes_back() {
    if !is_root() {
        return;
    }
    let disk = Mounted::image("btrfs");
    let mut world = world_on(&disk.point, "");
    world.start();
    world.claim();
    disk.umount();
    world.wait_for_line("missing");
    disk.mount();
    // Mounted, and not yet marked: nobody sees this.
    fs::write(disk.point.join("unseen"), "").unwrap();
    world.flush();
    world.wait_for_line("remount");
    world.flush();
    // Pulled out while it was written to, it may have gone back, and its generations would not tell.
    assert_eq!((found(&world), world.cause_count("remount")), (BTreeSet::new(), 1));
}

#[test]
fn a_gap_in_which_nothing_changed_is_done_with_and_comes_once() {
    if !is_root() {
        return;
    }
    let disk = Mounted::image("btrfs");
    let (quiet, busy) = (disk.point.join("quiet"), disk.point.join("busy"));
    subvolume(&["create"], &[&quiet]);
    subvolume(&["create"], &[&busy]);
    // The root itself is older than the first generation that is recorded.
    rustix::fs::syncfs(fs::File::open(&disk.point).unwrap()).unwrap();
    fs::write(busy.join("x"), "").unwrap();
    rustix::fs::syncfs(fs::File::open(&disk.point).unwrap()).unwrap();
    let mut world = world_on(&quiet, "");
    world.start();
    assert_eq!(world.stop(), 0);
    world.start();
    assert!(found(&world).is_empty() && history(&world).contains("0 paths changed"), "{}", history(&world));
    world.flush();
    let before = history_rows(&world);
    for n in 0..3 {
        fs::write(busy.join(n.to_string()), "not ours").unwrap();
        world.flush();
    }
    assert_eq!(history_rows(&world), before, "each batch is a gap");
}

fn history_rows(world: &World) -> usize {
    let journal = shared::journal::Journal::open(&world.dir.path().join("state/journal.db")).unwrap();
    journal.history(1_000).unwrap().iter().filter(|row| row.kind == "gap").count()
}
