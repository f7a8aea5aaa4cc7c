//! What the events of a real directory become, in an order that the test chooses.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use shared::entry::Scope;
use shared::journal::JournalId;

use super::super::records::tests::{event, handle_bytes, info};
use super::place::{marks, refused};
use super::*;
use crate::intake::keep::Keep;
use crate::intake::{PlaceError, sys};
use crate::roots::tests::root;

const DFID_NAME: u8 = 2;
const DFID: u8 = 3;
const OLD_DFID_NAME: u8 = 10;
const NEW_DFID_NAME: u8 = 12;
const FID: u8 = 1;

fn named(kind: u8, dir: &Handle, name: &str) -> Vec<u8> {
    let mut body = handle_bytes(dir.kind, &dir.bytes);
    body.extend(name.as_bytes());
    body.push(0);
    info(kind, &body)
}

fn fid(kind: u8, handle: &Handle) -> Vec<u8> {
    info(kind, &handle_bytes(handle.kind, &handle.bytes))
}

fn handle(path: &Path) -> Handle {
    sys::name_to_handle(std::fs::File::open(path).unwrap().as_fd(), c"").unwrap()
}

/// A marked filesystem with one root. What its queue holds is never read: the tests play events of their own.
struct Scene {
    source: Fanotify,
    root: PathBuf,
    _dir: tempfile::TempDir,
}

impl Scene {
    /// `None` without the rights for it.
    fn new(dirs: &[&str]) -> Option<Scene> {
        if !rustix::process::geteuid().is_root() {
            assert!(std::env::var_os("CI").is_none(), "this test needs root");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("root");
        std::fs::create_dir(&path).unwrap();
        for sub in dirs {
            std::fs::create_dir_all(path.join(sub)).unwrap();
        }
        let mut keep = Keep::new("fs", "boot", JournalId([1; 16]), |_| None);
        let (mut source, _) = Fanotify::place(&[root(1, &path, &[])], &[], &mut keep).unwrap();
        // The gap row of the start.
        source.finish(true);
        Some(Scene { source, root: path, _dir: dir })
    }

    fn handle(&self, path: &str) -> Handle {
        handle(&self.root.join(path))
    }

    fn rename(&self, from: &str, to: &str) {
        std::fs::rename(self.root.join(from), self.root.join(to)).unwrap();
    }

    fn renamed(&self, target: &Handle, from: &str, to: &str) -> Vec<u8> {
        let top = self.handle("");
        let infos = [named(OLD_DFID_NAME, &top, from), named(NEW_DFID_NAME, &top, to), fid(FID, target)];
        event(libc::FAN_RENAME | libc::FAN_ONDIR, &infos)
    }

    fn created(&self, target: &Handle, name: &str) -> Vec<u8> {
        let infos = [named(DFID_NAME, &self.handle(""), name), fid(FID, target)];
        event(libc::FAN_CREATE | libc::FAN_ONDIR, &infos)
    }

    fn deleted(&self, target: &Handle, name: &str) -> Vec<u8> {
        let infos = [named(DFID_NAME, &self.handle(""), name), fid(FID, target)];
        event(libc::FAN_DELETE | libc::FAN_ONDIR, &infos)
    }

    /// The paths and causes of what these events become.
    fn play(&mut self, events: &[Vec<u8>]) -> Vec<(String, Scope, Cause)> {
        self.source.buffer.as_mut().unwrap().fill(&events.concat());
        let mut batch = Batch::default();
        self.source.translate(&mut batch, 0, 0);
        assert!(!self.source.finish(true), "all of it was one batch");
        let commit = batch.into_commit("fs", Turn::default());
        let shown = |c: shared::journal::Change| {
            (String::from_utf8(c.path.as_bytes().to_vec()).unwrap(), c.scope, c.cause)
        };
        commit.changes.into_iter().map(shown).collect()
    }

    /// Where a file written in this directory is said to lie.
    fn write_in(&mut self, dir: &Handle) -> Vec<String> {
        let made = self.play(&[modified(dir, "new")]);
        made.into_iter().map(|(path, ..)| path).collect()
    }
}

fn modified(dir: &Handle, name: &str) -> Vec<u8> {
    event(libc::FAN_MODIFY, &[named(DFID_NAME, dir, name)])
}

/// An event that names nothing but the directory itself.
fn chmod(dir: &Handle) -> Vec<u8> {
    event(libc::FAN_ATTRIB | libc::FAN_ONDIR, &[fid(DFID, dir)])
}

#[test]
fn the_mark_is_found_by_its_device_in_fdinfo() {
    let text = "pos:\t0\nflags:\t04002\nfanotify flags:200e00 event-flags:8000\nfanotify sdev:700001 mflags:0 mask:4000014e ignored_mask:0\n";
    assert!(marks(text, rustix::fs::makedev(7, 1)));
    assert!(!marks(text, rustix::fs::makedev(7, 0x10)));
    assert!(!marks("fanotify flags:200e00\n", rustix::fs::makedev(7, 1)));
}

#[test]
fn a_refusal_says_why() {
    for (errno, needle) in [
        (libc::EPERM, "CAP_SYS_ADMIN"),
        (libc::ENODEV, "FUSE"),
        (libc::EOPNOTSUPP, "overlayfs"),
        (libc::EXDEV, "btrfs"),
        (libc::EINVAL, "5.17"),
        (libc::ENOSYS, "ENOSYS"),
    ] {
        let error = refused(io::Error::from_raw_os_error(errno));
        assert!(matches!(&error, PlaceError::Refused { reason } if reason.contains(needle)), "{error}");
    }
}

#[test]
fn what_may_pass_is_no_refusal() {
    for errno in [libc::EMFILE, libc::ENFILE, libc::ENOMEM, libc::ENOSPC, libc::EIO, libc::ESTALE] {
        let error = refused(io::Error::from_raw_os_error(errno));
        assert!(matches!(error, PlaceError::Io { .. }), "{error}");
    }
    let text = refused(io::Error::from_raw_os_error(libc::EMFILE)).to_string();
    assert!(text.contains("max_user_groups"), "{text}");
}

/// The kernel merges the third rename into the event of the first, which stays where it is in the queue.
#[test]
fn a_directory_renamed_to_and_fro_is_found_where_it_is_and_not_where_the_last_event_put_it() {
    let Some(mut scene) = Scene::new(&["a/sub"]) else { return };
    let (a, sub) = (scene.handle("a"), scene.handle("a/sub"));
    assert_eq!(scene.write_in(&sub), ["a/sub/new"]);
    scene.rename("a", "b");
    scene.rename("b", "a");
    scene.rename("a", "b");
    scene.play(&[scene.renamed(&a, "a", "b"), scene.renamed(&a, "b", "a")]);
    assert_eq!(scene.write_in(&sub), ["b/sub/new"]);
    assert_eq!(scene.write_in(&a), ["b/new"]);
}

/// Between the overflow and the end of the queue some events were accepted and others were not.
#[test]
fn a_rename_after_an_overflow_is_not_taken_for_the_last_one() {
    let Some(mut scene) = Scene::new(&["a"]) else { return };
    let a = scene.handle("a");
    scene.rename("a", "c");
    let made = scene.play(&[event(libc::FAN_Q_OVERFLOW, &[]), scene.renamed(&a, "a", "b")]);
    assert!(made.iter().any(|(_, _, cause)| *cause == Cause::Overflow), "{made:?}");
    assert_eq!(scene.write_in(&a), ["c/new"]);
}

#[test]
fn a_creation_after_an_overflow_is_not_taken_for_where_the_directory_is() {
    let Some(mut scene) = Scene::new(&["a"]) else { return };
    let a = scene.handle("a");
    scene.rename("a", "c");
    scene.play(&[event(libc::FAN_Q_OVERFLOW, &[]), scene.created(&a, "a")]);
    assert_eq!(scene.write_in(&a), ["c/new"]);
}

#[test]
fn a_change_of_a_directory_itself_is_an_entry_of_its_path() {
    let Some(mut scene) = Scene::new(&["d"]) else { return };
    std::fs::set_permissions(scene.root.join("d"), PermissionsExt::from_mode(0o700)).unwrap();
    let d = scene.handle("d");
    assert_eq!(scene.play(&[chmod(&d)]), [("d".to_owned(), Scope::SelfOnly, Cause::Event)]);
}

#[test]
fn the_last_event_of_a_directory_that_a_rename_replaced_is_no_doubt() {
    let Some(mut scene) = Scene::new(&["v", "h", "w", "i"]) else { return };
    let (v, h) = (scene.handle("v"), scene.handle("h"));
    scene.rename("h", "v");
    scene.play(&[scene.renamed(&h, "h", "v"), chmod(&v)]);
    assert_eq!(scene.source.doubt_count(), 0);
    // The kernel still opens what somebody else holds open.
    let (w, i) = (scene.handle("w"), scene.handle("i"));
    let _held = std::fs::File::open(scene.root.join("w")).unwrap();
    scene.rename("i", "w");
    scene.play(&[scene.renamed(&i, "i", "w"), chmod(&w)]);
    assert_eq!(scene.source.doubt_count(), 0);
}

#[test]
fn what_happened_in_a_directory_before_a_rename_replaced_it_is_answered_too() {
    let Some(mut scene) = Scene::new(&["v", "h"]) else { return };
    let (v, h) = (scene.handle("v"), scene.handle("h"));
    scene.rename("h", "v");
    scene.play(&[modified(&v, "gone"), scene.renamed(&h, "h", "v"), chmod(&v)]);
    assert_eq!(scene.source.doubt_count(), 0);
}

#[test]
fn an_event_in_a_directory_that_is_gone_is_a_doubt_until_its_deletion_is_read() {
    let Some(mut scene) = Scene::new(&["d"]) else { return };
    let d = scene.handle("d");
    std::fs::remove_dir(scene.root.join("d")).unwrap();
    scene.play(&[modified(&d, "f")]);
    assert_eq!(scene.source.doubt_count(), 1);
    scene.play(&[scene.deleted(&d, "d")]);
    assert_eq!(scene.source.doubt_count(), 0);
}

#[test]
fn a_gap_that_is_owed_is_in_the_next_batch_and_in_no_later_one() {
    let Some(mut scene) = Scene::new(&[]) else { return };
    scene.source.buffer.as_ref().unwrap().owe(Cause::Damaged);
    let top = scene.handle("");
    assert!(scene.play(&[modified(&top, "f")]).contains(&(String::new(), Scope::Subtree, Cause::Damaged)));
    assert_eq!(scene.write_in(&top), ["new"]);
}

#[test]
fn a_directory_deleted_before_a_kill_raises_no_doubt_after_it() {
    let Some(mut scene) = Scene::new(&["d"]) else { return };
    let d = scene.handle("d");
    std::fs::remove_dir(scene.root.join("d")).unwrap();
    scene.play(&[scene.deleted(&d, "d")]);
    let gone = scene.source.buffer.as_ref().unwrap().gone();
    scene.source.doubts = Doubts::default();
    scene.source.doubts.restore(Vec::new(), gone);
    scene.play(&[modified(&d, "f")]);
    assert_eq!(scene.source.doubt_count(), 0);
}
