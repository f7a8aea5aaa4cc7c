//! The queue of a fanotify group: what is merged, where, and what a full one does; and the bytes that read(2) gives.

use std::collections::VecDeque;

use crate::disk::{At, Errno, Event, FsKind, Id};

/// FANOTIFY_HTABLE_BITS: events are looked for in one of so many buckets.
const BUCKETS: u64 = 128;
/// FANOTIFY_MAX_MERGE_EVENTS: so many of the newest in the bucket are looked at.
const MERGE_DEPTH: usize = 128;

const METADATA_BYTES: usize = 24;
const METADATA_VERSION: u8 = 3;
const INFO_FID: u8 = 1;
const INFO_DFID_NAME: u8 = 2;
const INFO_OLD_DFID_NAME: u8 = 10;
const INFO_NEW_DFID_NAME: u8 = 12;
/// Head of an info record, fsid, and head of a handle.
const INFO_BYTES: usize = 4 + 8 + 8;
/// What FIONREAD counts for each event.
const FIONREAD_BYTES: u64 = 24;

/// An event in the queue.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Queued {
    event: Event,
    pid: u32,
    /// Which kind of handles it has. An overflow names nothing.
    kind: FsKind,
    hash: u64,
}

#[derive(Debug, Clone)]
pub struct Queue {
    /// Further events are dropped, for one overflow.
    max: u64,
    events: VecDeque<Queued>,
    /// Number of the first event in `events`.
    first: u64,
    /// By their numbers, those that may be merged with, the newest last.
    buckets: Vec<VecDeque<u64>>,
    overflowed: bool,
}

impl Queue {
    pub fn new(max: u64) -> Queue {
        Queue {
            max,
            events: VecDeque::new(),
            first: 0,
            buckets: vec![VecDeque::new(); BUCKETS as usize],
            overflowed: false,
        }
    }

    pub fn len(&self) -> u64 {
        self.events.len() as u64
    }

    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    /// What FIONREAD answers.
    pub fn fionread(&self) -> u64 {
        self.len() * FIONREAD_BYTES
    }

    pub fn push(&mut self, event: Event, pid: u32, kind: FsKind) {
        if self.len() >= self.max {
            // Not even merged. The next overflow comes when this one was read.
            if !self.overflowed {
                self.overflowed = true;
                let overflow = Event { mask: libc::FAN_Q_OVERFLOW, at: None, to: None, target: None };
                self.events.push_back(Queued { event: overflow, pid: 0, kind, hash: 0 });
            }
            return;
        }
        let hash = hash(&event, pid);
        let bucket = &mut self.buckets[(hash % BUCKETS) as usize];
        for number in bucket.iter().rev().take(MERGE_DEPTH) {
            let old = &mut self.events[(number - self.first) as usize];
            if old.hash == hash && old.pid == pid && merges(&old.event, &event) {
                old.event.mask |= event.mask;
                return;
            }
        }
        bucket.push_back(self.first + self.events.len() as u64);
        self.events.push_back(Queued { event, pid, kind, hash });
    }

    fn pop(&mut self) -> Option<Queued> {
        let queued = self.events.pop_front()?;
        if queued.event.mask == libc::FAN_Q_OVERFLOW {
            self.overflowed = false;
        } else {
            self.buckets[(queued.hash % BUCKETS) as usize].pop_front();
        }
        self.first += 1;
        Some(queued)
    }

    /// As many whole events as fit. EAGAIN if there is none, EINVAL if the first does not fit.
    pub fn read(&mut self, max_bytes: usize) -> Result<Vec<u8>, Errno> {
        let mut bytes = Vec::new();
        while let Some(queued) = self.events.front() {
            let start = bytes.len();
            encode(queued, &mut bytes);
            if bytes.len() > max_bytes {
                bytes.truncate(start);
                break;
            }
            self.pop();
        }
        match (bytes.is_empty(), self.is_empty()) {
            (false, _) => Ok(bytes),
            (true, true) => Err(Errno::AGAIN),
            (true, false) => Err(Errno::INVAL),
        }
    }

    /// A read into memory that is not there: the kernel takes an event out and loses it.
    pub fn lose_one(&mut self) {
        self.pop();
    }
}

/// fanotify_should_merge of the kernel: only what names the same, by the same process, both of a directory or neither,
/// both a rename or neither.
fn merges(old: &Event, new: &Event) -> bool {
    let kept_apart = libc::FAN_ONDIR | libc::FAN_RENAME;
    old.mask & kept_apart == new.mask & kept_apart
        && (&old.at, &old.to, &old.target) == (&new.at, &new.to, &new.target)
}

fn hash(event: &Event, pid: u32) -> u64 {
    const PRIME: u64 = 0x0000_0100_0000_01b3;
    let mut hash = 0xcbf2_9ce4_8422_2325 ^ u64::from(pid) ^ (event.mask & libc::FAN_ONDIR);
    let mut mix = |word: u64| hash = (hash ^ word).wrapping_mul(PRIME).rotate_left(23);
    for At { dir, name } in [&event.at, &event.to].into_iter().flatten() {
        mix(dir.ino ^ (dir.root << 40));
        name.iter().for_each(|byte| mix(u64::from(*byte)));
    }
    if let Some(id) = event.target {
        mix(id.ino ^ (id.root << 40));
    }
    hash ^ (hash >> 32)
}

fn encode(queued: &Queued, bytes: &mut Vec<u8>) {
    let Queued { event, pid, kind, .. } = queued;
    let start = bytes.len();
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&[METADATA_VERSION, 0]);
    bytes.extend_from_slice(&(METADATA_BYTES as u16).to_ne_bytes());
    bytes.extend_from_slice(&event.mask.to_ne_bytes());
    bytes.extend_from_slice(&libc::FAN_NOFD.to_ne_bytes());
    bytes.extend_from_slice(&pid.to_ne_bytes());
    let is_rename = event.mask & libc::FAN_RENAME != 0;
    if let Some(at) = &event.at {
        let record = if is_rename { INFO_OLD_DFID_NAME } else { INFO_DFID_NAME };
        info(record, *kind, at.dir, Some(&at.name), bytes);
    }
    if let Some(to) = &event.to {
        info(INFO_NEW_DFID_NAME, *kind, to.dir, Some(&to.name), bytes);
    }
    match event.target {
        Some(dir) if event.at.is_none() && event.mask & libc::FAN_ONDIR != 0 => {
            info(INFO_DFID_NAME, *kind, dir, Some(b"."), bytes);
        }
        Some(target) => info(INFO_FID, *kind, target, None, bytes),
        None => {}
    }
    let len = (bytes.len() - start) as u32;
    bytes[start..start + 4].copy_from_slice(&len.to_ne_bytes());
}

fn info(record: u8, kind: FsKind, id: Id, name: Option<&[u8]>, bytes: &mut Vec<u8>) {
    let handle = id.handle(kind);
    let name_bytes = name.map_or(0, |name| name.len() + 1);
    let len = (INFO_BYTES + handle.bytes.len() + name_bytes).next_multiple_of(4);
    let end = bytes.len() + len;
    bytes.extend_from_slice(&[record, 0]);
    bytes.extend_from_slice(&(len as u16).to_ne_bytes());
    bytes.extend_from_slice(&[0; 8]);
    bytes.extend_from_slice(&(handle.bytes.len() as u32).to_ne_bytes());
    bytes.extend_from_slice(&handle.kind.to_ne_bytes());
    bytes.extend_from_slice(&handle.bytes);
    bytes.extend_from_slice(name.unwrap_or_default());
    bytes.resize(end, 0);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::Name;
    use tracker::intake::records::Records;

    fn id(ino: u64) -> Id {
        Id { root: 0, ino, generation: 1 }
    }

    fn named(name: &str, target: u64, mask: u64) -> Event {
        Event::named(id(2), &Name::from(name.as_bytes()), id(target), mask)
    }

    fn push(queue: &mut Queue, event: Event) {
        queue.push(event, 7, FsKind::Ext4);
    }

    /// Masks and names, after reading all.
    fn read(queue: &mut Queue) -> Vec<(u64, String)> {
        let bytes = queue.read(1 << 20).unwrap();
        let text = |name: &[u8]| String::from_utf8_lossy(name).into_owned();
        let one = |record: tracker::intake::records::Record<'_>| {
            let name = record.at.or(record.from).map_or(String::new(), |at| text(at.name));
            (record.mask, name)
        };
        Records::new(&bytes).map(|record| one(record.unwrap())).collect()
    }

    #[test]
    fn events_of_one_name_merge_into_the_earliest_place() {
        let mut queue = Queue::new(100);
        for mask in [libc::FAN_CREATE, libc::FAN_MODIFY] {
            push(&mut queue, named("a", 12, mask));
            push(&mut queue, named("b", 13, mask));
        }
        push(&mut queue, Event::of(id(12), libc::FAN_ATTRIB));
        push(&mut queue, named("a", 12, libc::FAN_DELETE));
        let both = libc::FAN_CREATE | libc::FAN_MODIFY;
        assert_eq!(queue.fionread(), 3 * 24);
        let expected = [(both | libc::FAN_DELETE, "a"), (both, "b"), (libc::FAN_ATTRIB, "")];
        assert_eq!(read(&mut queue), expected.map(|(mask, name)| (mask, name.to_owned())));
        assert_eq!(queue.read(1 << 20), Err(Errno::AGAIN));
        push(&mut queue, named("a", 12, libc::FAN_MODIFY));
        assert_eq!(queue.len(), 1, "what was read is not merged with");
    }

    #[test]
    fn another_object_process_kind_or_rename_does_not_merge() {
        let mut queue = Queue::new(100);
        push(&mut queue, named("a", 12, libc::FAN_CREATE));
        push(&mut queue, named("a", 13, libc::FAN_CREATE));
        push(&mut queue, named("a", 12, libc::FAN_CREATE | libc::FAN_ONDIR));
        queue.push(named("a", 12, libc::FAN_CREATE), 8, FsKind::Ext4);
        let to = |name: &str| {
            let to = Some(At { dir: id(2), name: Name::from(name.as_bytes()) });
            Event { to, ..named("a", 12, libc::FAN_RENAME) }
        };
        push(&mut queue, to("b"));
        push(&mut queue, to("c"));
        push(&mut queue, to("b"));
        assert_eq!(queue.len(), 6);
    }

    #[test]
    fn an_event_too_far_back_in_its_bucket_is_not_merged_with() {
        let mut queue = Queue::new(1 << 20);
        let all = |queue: &mut Queue| {
            (0..40_000).for_each(|n| push(queue, named(&format!("{n}"), 100 + n, libc::FAN_CREATE)));
        };
        all(&mut queue);
        assert_eq!(queue.len(), 40_000);
        push(&mut queue, named("39999", 40_099, libc::FAN_MODIFY));
        assert_eq!(queue.len(), 40_000);
        push(&mut queue, named("0", 100, libc::FAN_MODIFY));
        assert_eq!(queue.len(), 40_001);
    }

    #[test]
    fn a_full_queue_tells_of_it_once_and_takes_events_again_when_there_is_room() {
        let mut queue = Queue::new(2);
        for n in 0..5 {
            push(&mut queue, named(&format!("{n}"), n, libc::FAN_CREATE));
        }
        push(&mut queue, named("0", 0, libc::FAN_MODIFY));
        assert_eq!(queue.len(), 3, "not even merged");
        let one = queue.read(84).unwrap();
        assert_eq!(tracker::intake::records::count(&one), 1);
        push(&mut queue, named("5", 5, libc::FAN_CREATE));
        assert_eq!(queue.len(), 2, "the overflow takes a place too");
        queue.read(84).unwrap();
        push(&mut queue, named("6", 6, libc::FAN_CREATE));
        push(&mut queue, named("7", 7, libc::FAN_CREATE));
        let told = read(&mut queue);
        assert_eq!(told, [(libc::FAN_Q_OVERFLOW, String::new()), (libc::FAN_CREATE, "6".to_owned())]);
    }

    #[test]
    fn a_read_gives_whole_events_and_refuses_what_does_not_hold_one() {
        let mut queue = Queue::new(100);
        push(&mut queue, named("a", 12, libc::FAN_CREATE));
        push(&mut queue, Event::of(id(3), libc::FAN_ATTRIB | libc::FAN_ONDIR));
        assert_eq!(queue.read(30), Err(Errno::INVAL));
        let first = queue.read(100).unwrap();
        assert_eq!(first.len(), 24 + 32 + 28);
        assert_eq!(read(&mut queue), [(libc::FAN_ATTRIB | libc::FAN_ONDIR, ".".to_owned())]);
    }
}
