//! What the events of a real directory become, in an order that the test chooses.

use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use shared::entry::Scope;
use shared::journal::{Journal, JournalId, RootId};
use shared::limits;

use super::super::records::tests::{event, handle_bytes, info};
use super::place::{marks, refused};
use super::*;
use crate::host::Linux;
use crate::intake::keep::Keep;
use crate::intake::{PlaceError, sys};
use crate::linked::Linked;
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
    source: Fanotify<Linux>,
    root: PathBuf,
    dir: tempfile::TempDir,
}

impl Scene {
    /// `None` without the rights for it.
    fn new(dirs: &[&str]) -> Option<Scene> {
        if !crate::testing::is_root() {
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("root");
        std::fs::create_dir(&path).unwrap();
        for sub in dirs {
            std::fs::create_dir_all(path.join(sub)).unwrap();
        }
        let host = Linux::default();
        let mut keep = Keep::new(host.clone(), "fs", "boot", JournalId([1; 16]));
        let (mut source, _) = Fanotify::place(&host, &[root(1, &path, &[])], &[], &mut keep).unwrap();
        // The gap row of the start.
        source.finish(true);
        Some(Scene { source, root: path, dir })
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
        self.play_with(Linked::default(), events)
    }

    fn play_with(&mut self, linked: Linked, events: &[Vec<u8>]) -> Vec<(String, Scope, Cause)> {
        self.source.buffer.as_mut().unwrap().fill(&events.concat());
        let mut batch = Batch::default();
        batch.linked = linked;
        self.source.translate(&mut batch, 0, 0);
        assert_eq!(self.source.finish(true), 0, "all of it was one batch");
        let commit = batch.into_commit("fs", Turn::default());
        let shown = |c: shared::journal::Change| {
            (String::from_utf8(c.path.as_bytes().to_vec()).unwrap(), c.scope, c.cause)
        };
        commit.changes.into_iter().map(shown).collect()
    }

    /// So many batches in which nothing happens that matters.
    fn pass(&mut self, batches: usize) {
        for _ in 0..batches {
            let top = self.handle("");
            self.play(&[modified(&top, "else")]);
        }
    }

    /// A file in the root, with another name outside.
    fn linked_file(&self) -> Handle {
        let file = self.root.join("f");
        std::fs::write(&file, "").unwrap();
        std::fs::hard_link(&file, self.dir.path().join("outside")).unwrap();
        handle(&file)
    }

    fn file_created(&self, target: &Handle, name: &str) -> Vec<u8> {
        event(libc::FAN_CREATE, &[named(DFID_NAME, &self.handle(""), name), fid(FID, target)])
    }

    /// Written through its name outside the root.
    fn written_outside(&self, target: &Handle) -> Vec<u8> {
        let dir = handle(self.dir.path());
        event(libc::FAN_MODIFY, &[named(DFID_NAME, &dir, "outside"), fid(FID, target)])
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
    let of_a_directory = "fanotify ino:2 sdev:700001 mflags:0 mask:40000020 ignored_mask:0 fhandle-bytes:8\n";
    assert!(!marks(of_a_directory, rustix::fs::makedev(7, 1)));
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
}

#[test]
fn a_canary_is_heard_once_is_no_change_and_leaves_no_mark_behind() {
    let Some(mut scene) = Scene::new(&[]) else { return };
    assert_eq!(scene.source.heard(), [Some(true)], "at the start");
    let path = format!("/proc/self/fdinfo/{}", scene.source.group.as_raw_fd());
    let fdinfo = || std::fs::read_to_string(&path);
    let before = fdinfo().unwrap();
    scene.source.ring();
    assert_eq!(scene.source.heard(), [Some(false)]);
    assert_eq!(fdinfo().unwrap(), before);
    let top = scene.handle("");
    let opened = event(libc::FAN_OPEN | libc::FAN_ONDIR, &[named(DFID_NAME, &top, ".")]);
    assert_eq!(scene.play(&[opened]), []);
    assert_eq!(scene.source.heard(), [Some(true)]);
}

#[test]
fn a_change_that_the_kernel_merged_with_a_canary_is_kept() {
    let Some(mut scene) = Scene::new(&[]) else { return };
    scene.source.ring();
    let mask = libc::FAN_OPEN | libc::FAN_ATTRIB | libc::FAN_ONDIR;
    let merged = event(mask, &[named(DFID_NAME, &scene.handle(""), ".")]);
    assert_eq!(scene.play(&[merged]), [(String::new(), Scope::SelfOnly, Cause::Event)]);
    assert_eq!(scene.source.heard(), [Some(true)]);
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

/// The link count of a file changed.
fn relinked(target: &Handle) -> Vec<u8> {
    event(libc::FAN_ATTRIB, &[fid(FID, target)])
}

/// What some leg has published of the root.
fn published(file: Option<&Handle>) -> Linked {
    published_of(RootId(1), file)
}

fn published_of(root: RootId, file: Option<&Handle>) -> Linked {
    let dir = tempfile::tempdir().unwrap();
    let mut journal = Journal::create_or_open(&dir.path().join("journal.db")).unwrap();
    let many = 0..=limits::LINKED_FILES_MAX as u64;
    let files = match file {
        Some(file) => [file.clone()].into(),
        // Too many, and not the one that matters.
        None => many.map(|n| Handle { kind: 1, bytes: n.to_le_bytes().to_vec() }).collect(),
    };
    journal.publish_linked("l", root, &files, &[].into()).unwrap();
    let mut linked = Linked::default();
    linked.refresh(&journal, &[RootId(1), RootId(2)]).unwrap();
    linked
}

fn by_handle() -> (String, Scope, Cause) {
    (String::new(), Scope::Handle, Cause::Event)
}

#[test]
fn a_write_outside_all_roots_is_an_entry_by_handle_if_the_file_is_published_and_nothing_else() {
    let Some(mut scene) = Scene::new(&[]) else { return };
    let file = scene.linked_file();
    let written = [scene.written_outside(&file)];
    assert_eq!(scene.play(&written), []);
    assert_eq!(scene.play_with(published(Some(&scene.handle(""))), &written), [], "another one");
    assert_eq!(scene.play_with(published(Some(&file)), &written), [by_handle()]);
}

#[test]
fn where_too_many_are_published_every_file_with_more_than_one_name_counts() {
    let Some(mut scene) = Scene::new(&[]) else { return };
    let file = scene.linked_file();
    let written = [scene.written_outside(&file), scene.written_outside(&file)];
    assert_eq!(scene.play_with(published(None), &written), [by_handle()]);
    std::fs::remove_file(scene.root.join("f")).unwrap();
    assert_eq!(scene.play_with(published(None), &written), [], "it has one name left, which is not ours");
    std::fs::remove_file(scene.dir.path().join("outside")).unwrap();
    assert_eq!(scene.play_with(published(None), &written), [], "it is gone");
}

#[test]
fn a_root_is_asked_for_a_written_file_only_if_a_leg_has_published_it_for_that_root() {
    let Some(mut scene) = Scene::new(&[]) else { return };
    let file = scene.linked_file();
    let written = [scene.written_outside(&file)];
    for linked in [Some(&file), None] {
        assert_eq!(scene.play_with(published_of(RootId(2), linked), &written), [], "{linked:?}");
        assert_eq!(scene.play_with(published_of(RootId(1), linked), &written), [by_handle()], "{linked:?}");
    }
}

#[test]
fn a_changed_link_count_leads_to_the_file_whatever_name_of_it_is_found() {
    let Some(mut scene) = Scene::new(&[]) else { return };
    let file = scene.linked_file();
    let made = scene.play(&[relinked(&file)]);
    let found = (String::from("f"), Scope::SelfOnly, Cause::Event);
    assert!(made == [by_handle()] || made == [found.clone()], "{made:?}");
    std::fs::remove_file(scene.dir.path().join("outside")).unwrap();
    assert_eq!(scene.play(&[relinked(&file)]), [found]);
    std::fs::remove_file(scene.root.join("f")).unwrap();
    assert_eq!(scene.play(&[relinked(&file)]), []);
}

#[test]
fn of_a_file_made_in_the_same_batch_its_names_are_entries_enough() {
    let Some(mut scene) = Scene::new(&[]) else { return };
    scene.pass(2);
    let file = scene.linked_file();
    let made = scene.play(&[scene.file_created(&file, "f"), relinked(&file)]);
    assert_eq!(made, [("f".to_owned(), Scope::SelfOnly, Cause::Event)]);
}

/// The kernel tells of a link first as a change of its file, and then as a name that was made.
#[test]
fn a_link_whose_two_events_come_in_two_batches_is_not_taken_for_a_file_that_is_made() {
    let Some(mut scene) = Scene::new(&[]) else { return };
    scene.pass(2);
    let file = scene.linked_file();
    scene.play(&[relinked(&file)]);
    scene.pass(3);
    // The new name was removed again: its file is to be looked at.
    let made = scene.play(&[scene.file_created(&file, "f2"), relinked(&file)]);
    assert!(made.iter().any(|(path, ..)| path != "f2"), "{made:?}");
    // The first of the two was lost.
    let again = [event(libc::FAN_Q_OVERFLOW, &[])];
    scene.play(&again);
    let made = scene.play(&[scene.file_created(&file, "f2"), relinked(&file)]);
    assert!(made.iter().any(|(path, ..)| path != "f2"), "{made:?}");
}

#[test]
fn a_directory_in_doubt_stays_so_and_a_rename_answers_it() {
    let Some(mut scene) = Scene::new(&["d"]) else { return };
    let d = scene.handle("d");
    std::fs::remove_dir(scene.root.join("d")).unwrap();
    scene.play(&[modified(&d, "f")]);
    assert_eq!(scene.play(&[modified(&d, "g"), modified(&d, "h")]), []);
    assert_eq!(scene.source.doubt_count(), 1);
    scene.play(&[scene.renamed(&d, "d", "e")]);
    assert_eq!(scene.source.doubt_count(), 0);
}

#[test]
fn an_event_that_is_not_understood_is_a_gap() {
    let Some(mut scene) = Scene::new(&[]) else { return };
    let made = scene.play(&[event(libc::FAN_MODIFY, &[info(99, b"what the next kernel tells")])]);
    assert_eq!(made, [(String::new(), Scope::Subtree, Cause::Damaged)]);
}
