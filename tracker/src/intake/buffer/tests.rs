//! A buffer in a real memfd: what is zero, what is refused, what a later instance sees.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::fs::MemfdFlags;

use super::memfd::SEALS;
use super::*;
use crate::intake::records::tests::{event, named};

fn lasting() -> Lasting {
    Lasting { buffer_id: [1; 16], boot_id: "b".into(), journal_id: [2; 16], roots: Vec::new() }
}

fn buffer() -> Buffer {
    let mut buffer = Buffer::create(Memfd::create().unwrap(), lasting(), Cause::Start);
    // The gap row.
    buffer.finish(true);
    buffer
}

fn record(name: &[u8]) -> Vec<u8> {
    event(libc::FAN_CREATE, &[named(2, b"dirhandl", name)])
}

/// The next instance, after this one was killed.
fn next(buffer: &Buffer) -> Buffer {
    opened(buffer).unwrap()
}

fn of_file(fd: OwnedFd) -> Result<Buffer, Unfit> {
    Buffer::open(Memfd::open(fd)?, Memfd::create)
}

fn mark(epoch: u64) -> IntakeMark {
    IntakeMark { fs: "fs".into(), buffer_id: [1; 16], epoch }
}

/// One end gives what the other end is told to.
fn source() -> (UnixStream, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    theirs.set_nonblocking(true).unwrap();
    (ours, theirs)
}

fn read_from(buffer: &mut Buffer, from: &impl AsFd) -> io::Result<Slot> {
    buffer.read(|memory, range| memory.read_from(from.as_fd(), range))
}

fn read(buffer: &mut Buffer, bytes: &[u8]) -> Slot {
    let (mut give, take) = source();
    std::io::Write::write_all(&mut give, bytes).unwrap();
    read_from(buffer, &take).unwrap()
}

#[test]
fn what_was_read_is_there_for_the_next_instance_until_it_is_finished() {
    let mut old = buffer();
    let both = [record(b"a"), record(b"b")].concat();
    assert_eq!(read(&mut old, &both).events, 2);
    let mut new = next(&old);
    let found = new.recover(Some(&mark(1))).unwrap();
    assert_eq!((found.events, found.bytes, found.taken), (2, both.len(), false));
    let batch = new.begin_batch();
    assert_eq!(new.bytes(batch), both);
    assert_eq!(next(&new).recover(Some(&mark(2))).unwrap().events, 0, "the journal has it");
}

#[test]
fn a_first_start_that_was_cut_short_owes_its_gap_and_a_finished_one_does_not() {
    let first = Buffer::create(Memfd::create().unwrap(), lasting(), Cause::Start);
    assert_eq!(next(&first).owed(), Some(Cause::Start));
    let mut cut = next(&first);
    cut.recover(None).unwrap();
    assert_eq!(cut.owed(), Some(Cause::Start));
    let mut committed = next(&first);
    committed.recover(Some(&mark(1))).unwrap();
    assert_eq!(committed.owed(), None, "the row was committed, only the buffer did not hear of it");
}

#[test]
fn a_read_that_fails_owes_a_gap_and_one_that_finds_nothing_does_not() {
    let mut buffer = buffer();
    let (_give, take) = source();
    assert!(read_from(&mut buffer, &take).is_err());
    assert_eq!(buffer.owed(), None);
    let dir = std::fs::File::open("/").unwrap();
    assert!(read_from(&mut buffer, &dir).is_err());
    assert_eq!(buffer.owed(), Some(Cause::Damaged));
}

#[test]
fn the_slot_ahead_is_zero_whatever_was_there_before() {
    let mut buffer = buffer();
    for size in [limits::INTAKE_READ_BYTES, 100, 5_000, 1, 70_000, limits::INTAKE_READ_BYTES] {
        let (mut give, take) = source();
        let writer = std::thread::spawn(move || {
            std::io::Write::write_all(&mut give, &vec![0xff; size]).unwrap();
        });
        let mut got = 0;
        while got < size {
            match read_from(&mut buffer, &take) {
                Ok(slot) => got += slot.bytes,
                Err(e) => assert_eq!(e.kind(), io::ErrorKind::WouldBlock),
            }
            let at = buffer.word(Word::Published) as usize;
            let ahead = at..(at + limits::INTAKE_READ_BYTES).min(limits::INTAKE_BATCH_BYTES);
            buffer.clear(ahead.clone());
            assert!(buffer.bytes(ahead).iter().all(|&b| b == 0), "after {got} of {size} bytes");
        }
        writer.join().unwrap();
        buffer.begin_batch();
        buffer.finish(true);
        assert_eq!(buffer.left(), 0);
    }
}

#[test]
fn a_recovered_batch_is_committed_in_parts_that_grow() {
    let mut old = buffer();
    let one = record(b"some name");
    old.fill(&one.repeat(5_000));
    let mut new = next(&old);
    new.recover(Some(&mark(1))).unwrap();
    let mut sizes = Vec::new();
    while new.left() > 0 {
        sizes.push(new.begin_batch().len());
        new.finish(true);
    }
    assert_eq!(sizes.iter().sum::<usize>(), 5_000 * one.len());
    assert!(sizes[0] <= limits::INTAKE_RECOVERY_BYTES && sizes[1] > sizes[0], "{sizes:?}");
    assert!(sizes.iter().all(|size| size % one.len() == 0), "{sizes:?}");
}

#[test]
fn a_batch_of_which_nothing_was_ours_needs_no_word_in_the_journal() {
    let mut buffer = buffer();
    buffer.fill(&record(b"a"));
    buffer.begin_batch();
    buffer.finish(false);
    assert_eq!(next(&buffer).recover(Some(&mark(1))).unwrap().events, 0);
}

#[test]
fn the_traces_of_deleted_directories_stay_the_newest_of_them() {
    let mut old = buffer();
    let max = limits::INTAKE_GONE_MAX as u64;
    (0..max + 3).for_each(|trace| old.bury(trace));
    let gone = next(&old).gone();
    assert_eq!((gone.len(), gone[0], gone[gone.len() - 1]), (limits::INTAKE_GONE_MAX, 3, max + 2));
}

#[test]
fn roots_are_replaced_as_a_whole() {
    let mut old = buffer();
    for id in 1..5 {
        old.set_roots(vec![RootMark { id, rules: 1, identity: 1 }]);
        assert_eq!(next(&old).lasting().roots, old.lasting.roots);
    }
}

#[test]
fn another_file_is_no_buffer() {
    let plain = rustix::fs::memfd_create(c"x", MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&plain, TOTAL_BYTES as u64).unwrap();
    assert_eq!(of_file(plain).err(), Some(Unfit::Layout), "it could shrink under the mapping");
    let other = IntakeMark { buffer_id: [9; 16], ..mark(1) };
    assert_eq!(next(&buffer()).recover(Some(&other)).err(), Some(Unfit::Epoch));
    assert_eq!(next(&buffer()).recover(None).err(), Some(Unfit::Epoch));
}

/// As if another version had laid it out.
fn of_another_version(buffer: &Buffer) -> Buffer {
    buffer.set(Word::Layout, LAYOUT + 1);
    next(buffer)
}

fn opened(buffer: &Buffer) -> Result<Buffer, Unfit> {
    of_file(buffer.memory.fd().try_clone_to_owned().unwrap())
}

#[test]
fn a_buffer_of_another_version_that_was_left_empty_is_made_anew_with_all_that_tells_of_continuity() {
    let mut old = buffer();
    let roots = vec![RootMark { id: 3, rules: 4, identity: 5 }];
    old.set_roots(roots.clone());
    old.fill(&record(b"a"));
    old.begin_batch();
    old.finish(true);
    old.bury(1);
    old.leave();
    let mut new = of_another_version(&old);
    assert!(new.is_anew());
    assert_eq!(new.lasting(), &Lasting { roots, ..lasting() });
    assert_eq!((new.owed(), new.left()), (None, 0));
    assert_eq!(new.recover(Some(&mark(1))).err(), Some(Unfit::Epoch), "the journal went back");
    let found = new.recover(Some(&mark(2))).unwrap();
    assert_eq!((found.events, found.is_anew, found.taken), (0, true, false));
    assert!(!next(&new).is_anew(), "it is of this version");
}

#[test]
fn a_buffer_of_another_version_is_no_good_if_anything_may_be_in_it() {
    type Case = (&'static str, fn(&mut Buffer));
    let cases: [Case; 5] = [
        ("killed", |_| {}),
        ("not committed", |b| {
            b.fill(&record(b"a"));
            b.leave();
        }),
        ("a gap is owed", |b| {
            b.owe(Cause::Damaged);
            b.leave();
        }),
        ("taken over again", |b| {
            b.leave();
            next(b).recover(Some(&mark(1))).unwrap();
        }),
        ("begun anew", |b| {
            b.leave();
            b.begin_anew(Vec::new(), Cause::Start);
        }),
    ];
    for (what, then) in cases {
        let mut old = buffer();
        then(&mut old);
        old.set(Word::Layout, LAYOUT + 1);
        assert_eq!(opened(&old).err(), Some(Unfit::Layout), "{what}");
    }
}

/// Written down here once for all: a version that cannot read this has every tree compared again at its first start.
#[test]
fn what_another_version_leaves_is_read_from_places_and_in_a_form_that_never_change() {
    let json = br#"{"buffer_id":[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1],"boot_id":"b","journal_id":[2,2,2,2,2,2,2,2,2,2,2,2,2,2,2,2],"roots":[{"id":3,"rules":4,"identity":5}],"of_some_later_version":true}"#;
    let at = 600;
    let magic = u64::from_ne_bytes(*b"lngshore");
    let words = [magic, 999, 1, 7, at].map(u64::to_ne_bytes).concat();
    let head = [json.len() as u64, xxhash_rust::xxh3::xxh3_64(json)].map(u64::to_ne_bytes).concat();
    for bytes in [4096, TOTAL_BYTES as u64 + 4096] {
        let fd = rustix::fs::memfd_create(c"x", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
        rustix::fs::ftruncate(&fd, bytes).unwrap();
        rustix::io::pwrite(&fd, &words, 0).unwrap();
        rustix::io::pwrite(&fd, &[head.as_slice(), json].concat(), at).unwrap();
        rustix::fs::fcntl_add_seals(&fd, SEALS).unwrap();
        let mut new = of_file(fd).unwrap();
        assert_eq!(
            new.lasting(),
            &Lasting { roots: vec![RootMark { id: 3, rules: 4, identity: 5 }], ..lasting() }
        );
        assert_eq!(new.recover(Some(&mark(7))).map(|found| found.is_anew), Ok(true));
    }
}

#[test]
fn a_head_that_leads_nowhere_is_damaged() {
    let buffer = buffer();
    buffer.leave();
    for at in [0, 8, TOTAL_BYTES as u64 - 3, TOTAL_BYTES as u64, u64::MAX] {
        for layout in [LAYOUT, LAYOUT + 1] {
            buffer.set(Word::Layout, layout);
            buffer.set(Word::Lasting, at);
            assert!(matches!(opened(&buffer), Err(Unfit::Damaged(_))), "{at}");
        }
    }
}
