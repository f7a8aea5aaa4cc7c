//! What one filesystem's thread says of its troubles, and that it stops saying it.

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;

use super::*;
use crate::host::Linux;
use crate::intake::{Checked, Kind, Taken};
use crate::roots::tests::root;
use crate::shell::room::ReserveFile;

/// A source whose reads are played.
struct Played {
    reads: VecDeque<io::Result<Option<Taken>>>,
    /// What is left after each commit.
    left: VecDeque<usize>,
}

impl EventSource for Played {
    fn kind(&self) -> Kind {
        Kind::Fanotify
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn queued(&self) -> u64 {
        0
    }

    fn read(&mut self) -> io::Result<Option<Taken>> {
        self.reads.pop_front().unwrap_or(Ok(None))
    }

    fn cached_dirs(&self) -> usize {
        0
    }

    fn translate(&mut self, _batch: &mut Batch, _read: u64, _now_ns: i64) {}

    fn finish(&mut self, _counted: bool) -> usize {
        self.left.pop_front().unwrap_or(0)
    }

    fn check(&mut self) -> Checked {
        Checked { intact: true, roots: Vec::new() }
    }
}

struct World {
    slot: Slot<Linux>,
    flusher: Flusher,
    _reports: Receiver<Report>,
    dir: tempfile::TempDir,
}

fn world() -> World {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("root");
    std::fs::create_dir(&path).unwrap();
    let (reports, receiver) = crossbeam_channel::unbounded();
    let journal = Journal::create_or_open(&dir.path().join("journal.db")).unwrap();
    let host = Linux::default();
    let room = Room::make(ReserveFile::in_dir(dir.path())).unwrap();
    let parts = SlotParts {
        number: 0,
        host: host.clone(),
        before: "the first start",
        keep: Keep::new(host.clone(), "fs", "boot", journal.id()),
        name: "fs".into(),
        fs_key: "fs".into(),
        roots: vec![root(1, &path, &[])],
        own: Vec::new(),
        journal,
        cause: Cause::Start,
        common: Common::new(&Config::parse(Path::new("test.toml"), "").unwrap(), host.clock(), room),
        reports,
    };
    let (slot, handle) = Slot::new(parts, None);
    World { slot, flusher: handle.flusher(), _reports: receiver, dir }
}

impl World {
    fn last_error(&self) -> String {
        self.slot.shared.status(0).filesystem.last_error
    }

    fn set_error(&self, error: &str) {
        self.slot.shared.lock().filesystem.last_error = error.to_owned();
    }

    fn play(&mut self, reads: Vec<io::Result<Option<Taken>>>) {
        self.slot.source = Some(Box::new(Played { reads: reads.into(), left: [40, 0].into() }));
    }
}

#[test]
fn an_error_of_reading_ends_with_the_first_read_that_succeeds() {
    let mut world = world();
    world.play(vec![Err(io::Error::from_raw_os_error(libc::EIO)), Ok(None)]);
    assert_eq!(world.slot.read(), Event::ReadFailed);
    assert!(world.last_error().starts_with("cannot read events"), "{}", world.last_error());
    assert_eq!(world.slot.read(), Event::Empty);
    assert_eq!(world.last_error(), "");
}

#[test]
fn an_error_of_placing_ends_when_placed_and_others_stay() {
    let mut world = world();
    world.set_error("cannot be watched: something passing");
    assert_eq!(world.slot.place(), Event::Placed);
    assert_eq!(world.last_error(), "");
    world.set_error("the filesystem reports an error of its own");
    assert_eq!(world.slot.place(), Event::Placed);
    // Others use this filesystem, too.
    assert_ne!(world.slot.read(), Event::ReadFailed);
    assert!(world.last_error().starts_with("the filesystem"), "{}", world.last_error());
}

#[test]
fn flushes_that_nobody_waits_for_any_more_do_not_pile_up_while_a_disk_hangs() {
    let mut world = world();
    for read_by_the_thread in [false, true] {
        for _ in 0..3 * limits::WAITING_MAX {
            world.flusher.flush();
            if read_by_the_thread {
                world.slot.receive();
            }
        }
        let cut_off = world.flusher.flush();
        if read_by_the_thread {
            world.slot.receive();
        }
        assert!(world.flusher.inbox.len() <= limits::WAITING_MAX);
        assert!(world.slot.flushes.len() <= limits::WAITING_MAX);
        assert_eq!(cut_off.try_recv(), Err(crossbeam_channel::TryRecvError::Disconnected), "told at once");
    }
}

#[test]
fn a_gap_that_was_not_stored_has_its_search_before_it_and_may_search_again() {
    let mut world = world();
    std::fs::remove_file(world.dir.path().join("journal.db")).unwrap();
    assert_eq!(world.slot.commit_gap(Cause::Start), Event::NotCommitted);
    assert_eq!(world.slot.pace, Pace::default());
}

#[test]
fn what_was_read_counts_as_buffered_until_its_own_part_is_committed() {
    let mut world = world();
    let taken = |bytes| Ok(Some(Taken { events: 1, bytes, drained: true }));
    world.play(vec![taken(100), taken(50), taken(7)]);
    let buffered = |world: &World| world.slot.shared.status(0).filesystem.buffer.bytes;
    world.slot.read();
    world.slot.read();
    assert_eq!(buffered(&world), 150);
    assert_eq!(world.slot.commit(2), Event::CommittedPart);
    assert_eq!(buffered(&world), 40, "the other part waits");
    assert_eq!(world.slot.commit(2), Event::Committed);
    assert_eq!(buffered(&world), 0);
    world.slot.read();
    world.slot.end_source();
    let buffer = world.slot.shared.status(0).filesystem.buffer;
    assert_eq!((buffer.bytes, buffer.bytes_peak), (0, 150), "a gap stands for it");
}
