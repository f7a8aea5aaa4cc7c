//! overlayfs and FUSE: what each can be watched with, and that watching makes no events of its own.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use common::{Bind, Mounted, World, call, is_root};

/// An overlay whose layers lie on a filesystem of its own.
struct Overlay {
    mounted: Bind,
    _point: tempfile::TempDir,
    _layers: Mounted,
}

impl Overlay {
    fn new(options: &str) -> Overlay {
        let layers = Mounted::image("ext4");
        for dir in ["lower/old/deep", "upper", "work"] {
            std::fs::create_dir_all(layers.point.join(dir)).unwrap();
        }
        std::fs::write(layers.point.join("lower/old/deep/f"), "x").unwrap();
        let point = tempfile::tempdir().unwrap();
        let at = layers.point.display();
        let options = format!("lowerdir={at}/lower,upperdir={at}/upper,workdir={at}/work{options}");
        let mounted = Bind::with(&["-t", "overlay", "-o", &options], Path::new("none"), point.path());
        Overlay { mounted, _point: point, _layers: layers }
    }

    fn point(&self) -> &Path {
        &self.mounted.0
    }
}

fn root_status(world: &World) -> serde_json::Value {
    world.stats()["status"]["roots"][0].clone()
}

fn events_read(world: &World) -> u64 {
    world.stats()["status"]["filesystems"][0]["events_read"].as_u64().unwrap()
}

/// Changes, deletions above all, each of something that may have to be copied up first.
fn workload(top: &Path) {
    for n in 0..20 {
        let dir = top.join(format!("d{n}"));
        std::fs::create_dir(&dir).unwrap();
        std::fs::write(dir.join("f"), "x").unwrap();
        std::fs::remove_file(dir.join("f")).unwrap();
        std::fs::remove_dir(&dir).unwrap();
    }
    std::fs::write(top.join("old/deep/f"), "changed").unwrap();
    std::fs::create_dir(top.join("new")).unwrap();
    std::fs::rename(top.join("old/deep/f"), top.join("new/g")).unwrap();
}

fn assert_seen(world: &World) {
    let rows = world.changes();
    for path in ["old/deep/f", "new", "new/g"] {
        let covered = rows.iter().any(|(scope, p)| {
            p == path
                || (scope == "subtree" && path.strip_prefix(p.as_str()).is_some_and(|r| r.starts_with('/')))
        });
        assert!(covered, "{path}: {rows:?}");
    }
}

/// A look-up of what is deleted could be an event of its own there: then one event would breed the next.
#[test]
fn an_overlay_with_file_handles_is_tracked_with_fanotify_and_falls_quiet() {
    if !is_root() {
        return;
    }
    let overlay = Overlay::new(",index=on,nfs_export=on");
    let mut world = World::new(&[("a", overlay.point())]);
    world.start();
    world.claim();
    let root = root_status(&world);
    assert_eq!((&root["source"], &root["source_reason"]), (&"fanotify".into(), &"".into()));
    workload(overlay.point());
    world.flush();
    assert_seen(&world);
    assert_eq!(world.cause_count("unresolved"), 0, "{:?}", world.causes());
    // Each looks at the roots, and would look again at what an earlier look had made.
    (0..20).for_each(|_| world.flush());
    let health = world.run(&["health", "--json"]);
    assert_eq!(health.status.code(), Some(0), "{health:?}");
    std::fs::write(overlay._layers.point.join("upper/unseen"), "x").unwrap();
    world.flush();
    assert!(!world.changes().iter().any(|(_, path)| path == "unseen"), "a blind spot less to tell of");
    for command in ["stats", "health"] {
        let said = String::from_utf8(world.ok(&[command])).unwrap();
        let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(said.contains("AIO") && said.contains("changes made below the mount"), "{command}: {said}");
    }
    call("umount", &[overlay.point()]);
    // The last status is written at the end.
    assert_eq!(world.stop(), 0);
    let events = events_read(&world);
    // Creation, writing, attributes, deletion of 20 files and directories, and some for the rest. A single look-up
    // that made an event would make one of each of those, and so on.
    assert!((20..=200).contains(&events), "{events}");
}

/// The blind spots of inotify, as people and programs are told them.
fn assert_inotify(world: &World, needles: &[&str]) {
    let root = root_status(world);
    assert_eq!(root["source"], "inotify");
    let reason = root["source_reason"].as_str().unwrap();
    needles.iter().for_each(|n| assert!(reason.contains(n), "{n}: {reason}"));
    for command in ["stats", "health"] {
        let said = String::from_utf8(world.ok(&[command])).unwrap();
        let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
        for needle in [
            "inotify because",
            "not seen: ",
            "changes made below the mount",
            "hard-link names",
            "remote clients",
        ] {
            assert!(said.contains(needle), "{command}: {needle}: {said}");
        }
    }
}

fn assert_new_directories_are_subtrees(world: &mut World, top: &Path) {
    std::fs::create_dir_all(top.join("made/below")).unwrap();
    std::fs::write(top.join("made/below/f"), "x").unwrap();
    world.flush();
    assert!(world.has("subtree", b"made"), "{:?}", world.changes());
    std::fs::write(top.join("made/below/later"), "x").unwrap();
    world.flush();
    assert!(world.has("self", b"made/below/later"), "{:?}", world.changes());
    assert_eq!(world.stop(), 0);
    world.claim();
    world.start();
    assert_eq!(world.cause_count("start"), 2, "each start is a gap: {:?}", world.causes());
}

#[test]
fn an_overlay_as_it_is_by_default_is_tracked_with_inotify() {
    if !is_root() {
        return;
    }
    let overlay = Overlay::new("");
    let mut world = World::new(&[("a", overlay.point())]);
    world.start();
    assert_inotify(&world, &["overlayfs", "EOPNOTSUPP"]);
    workload(overlay.point());
    world.flush();
    assert_seen(&world);
    assert_new_directories_are_subtrees(&mut world, overlay.point());
}

/// A FUSE mount, as sshfs and rclone make them too.
struct Fuse {
    point: PathBuf,
    dir: tempfile::TempDir,
}

impl Fuse {
    fn new() -> Fuse {
        let dir = tempfile::tempdir().unwrap();
        let (behind, point) = (dir.path().join("behind"), dir.path().join("mnt"));
        std::fs::create_dir_all(behind.join("old/deep")).unwrap();
        std::fs::write(behind.join("old/deep/f"), "x").unwrap();
        std::fs::create_dir(&point).unwrap();
        call("bindfs", &[&behind, &point]);
        Fuse { point, dir }
    }
}

impl Drop for Fuse {
    fn drop(&mut self) {
        Command::new("umount").arg("-l").arg(&self.point).output().ok();
    }
}

#[test]
fn a_fuse_mount_is_tracked_with_inotify_which_does_not_see_what_happens_behind_it() {
    if !is_root() {
        return;
    }
    let fuse = Fuse::new();
    let mut world = World::new(&[("a", &fuse.point)]);
    world.start();
    assert_inotify(&world, &["FUSE", "ENODEV"]);
    workload(&fuse.point);
    world.flush();
    assert_seen(&world);
    std::fs::write(fuse.dir.path().join("behind/unseen"), "x").unwrap();
    world.flush();
    assert!(!world.changes().iter().any(|(_, path)| path == "unseen"), "a blind spot less to tell of");
    assert_new_directories_are_subtrees(&mut world, &fuse.point);
    call("umount", &[&fuse.point]);
    world.flush();
    assert_eq!(world.run(&["health"]).status.code(), Some(5));
}
