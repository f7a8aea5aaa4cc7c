//! The kernel's side of fanotify: queues of events that merge while nobody reads them, overflow, and marks that go with
//! their filesystem. As measured on 6.18.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use shared::entry::Handle;

use super::DiskId;
use crate::disk::{At, Errno, Event, FsKind};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupId(pub u64);

/// How far back a new event looks for one to be merged into (FANOTIFY_MAX_MERGE_EVENTS).
const MERGE_MAX: usize = 128;
/// The process that all events are made by.
const PID: i32 = 7;

#[derive(Debug, Clone)]
enum Queued {
    Event(FsKind, Event),
    Overflow,
}

#[derive(Debug, Default)]
struct Group {
    queue: VecDeque<Queued>,
    marks: BTreeSet<DiskId>,
    /// Who holds it open: a process, the service manager.
    holders: u32,
}

#[derive(Debug)]
pub struct Groups {
    all: BTreeMap<GroupId, Group>,
    next: u64,
    pub queue_max: usize,
}

impl Default for Groups {
    fn default() -> Groups {
        Groups { all: BTreeMap::new(), next: 1, queue_max: 16_384 }
    }
}

impl Groups {
    pub fn add(&mut self) -> GroupId {
        let id = GroupId(self.next);
        self.next += 1;
        self.all.insert(id, Group { holders: 1, ..Group::default() });
        id
    }

    /// One more holds it open.
    pub fn hold(&mut self, id: GroupId) {
        self.all.entry(id).and_modify(|group| group.holders += 1);
    }

    /// One less holds it open; with the last one it goes, and all that is queued.
    pub fn close(&mut self, id: GroupId) {
        if let Some(group) = self.all.get_mut(&id) {
            group.holders -= 1;
            if group.holders == 0 {
                self.all.remove(&id);
            }
        }
    }

    pub fn mark(&mut self, id: GroupId, disk: DiskId) {
        self.all.entry(id).and_modify(|group| _ = group.marks.insert(disk));
    }

    /// The filesystem is mounted no more: nobody is told.
    pub fn unmark_disk(&mut self, disk: DiskId) {
        self.all.values_mut().for_each(|group| _ = group.marks.remove(&disk));
    }

    pub fn marked(&self, id: GroupId) -> impl Iterator<Item = DiskId> {
        self.all.get(&id).into_iter().flat_map(|group| group.marks.iter().copied())
    }

    pub fn is_watched(&self, disk: DiskId) -> bool {
        self.all.values().any(|group| group.marks.contains(&disk))
    }

    pub fn queued(&self, id: GroupId) -> usize {
        self.all.get(&id).map_or(0, |group| group.queue.len())
    }

    pub fn any_queued(&self) -> bool {
        self.all.values().any(|group| !group.queue.is_empty())
    }

    pub fn tell(&mut self, disk: DiskId, kind: FsKind, events: Vec<Event>) {
        let max = self.queue_max;
        for group in self.all.values_mut().filter(|group| group.marks.contains(&disk)) {
            events.iter().for_each(|event| group.add(kind, event, max));
        }
    }

    /// As many whole events as fit.
    pub fn read(&mut self, id: GroupId, max_bytes: usize) -> Result<Vec<u8>, Errno> {
        let group = self.all.get_mut(&id).ok_or(Errno::BADF)?;
        let mut bytes = Vec::new();
        while let Some(next) = group.queue.front() {
            let event = encode(next);
            if bytes.len() + event.len() > max_bytes {
                break;
            }
            bytes.extend(event);
            group.queue.pop_front();
        }
        match (bytes.is_empty(), group.queue.is_empty()) {
            (false, _) => Ok(bytes),
            (true, true) => Err(Errno::AGAIN),
            (true, false) => Err(Errno::INVAL),
        }
    }

    /// All of them go, with the machine.
    pub fn clear(&mut self) {
        self.all.clear();
    }
}

impl Group {
    fn add(&mut self, kind: FsKind, event: &Event, max: usize) {
        let same = |queued: &&mut Queued| matches!(queued, Queued::Event(_, old) if merges(old, event));
        if let Some(Queued::Event(_, old)) = self.queue.iter_mut().rev().take(MERGE_MAX).find(same) {
            old.mask |= event.mask;
        } else if self.queue.len() < max {
            self.queue.push_back(Queued::Event(kind, event.clone()));
        } else if !self.queue.iter().any(|queued| matches!(queued, Queued::Overflow)) {
            // There is only one of it, and it stays where it was put first.
            self.queue.push_back(Queued::Overflow);
        }
    }
}

/// Events of one object by the same names. What is a directory does not merge with what is none.
fn merges(old: &Event, new: &Event) -> bool {
    (old.mask ^ new.mask) & libc::FAN_ONDIR == 0
        && (&old.at, &old.to, old.target) == (&new.at, &new.to, new.target)
}

const INFO_FID: u8 = 1;
const INFO_DFID_NAME: u8 = 2;
const INFO_OLD_DFID_NAME: u8 = 10;
const INFO_NEW_DFID_NAME: u8 = 12;

/// One event as read(2) gives it (fanotify(7)).
fn encode(queued: &Queued) -> Vec<u8> {
    let (mask, info) = match queued {
        Queued::Overflow => (libc::FAN_Q_OVERFLOW, Vec::new()),
        Queued::Event(kind, event) => (event.mask, infos(*kind, event)),
    };
    let mut bytes = Vec::with_capacity(24 + info.len());
    bytes.extend((24 + info.len() as u32).to_ne_bytes());
    bytes.extend([3, 0]);
    bytes.extend(24u16.to_ne_bytes());
    bytes.extend(mask.to_ne_bytes());
    bytes.extend(libc::FAN_NOFD.to_ne_bytes());
    bytes.extend(PID.to_ne_bytes());
    bytes.extend(info);
    bytes
}

fn infos(kind: FsKind, event: &Event) -> Vec<u8> {
    let named = |at: &At| (at.dir.handle(kind), at.name.to_vec());
    let mut bytes = Vec::new();
    match (&event.at, &event.to) {
        (Some(from), Some(to)) => {
            add_info(&mut bytes, INFO_OLD_DFID_NAME, named(from));
            add_info(&mut bytes, INFO_NEW_DFID_NAME, named(to));
        }
        (Some(at), None) => add_info(&mut bytes, INFO_DFID_NAME, named(at)),
        // An event of a directory itself has the name `.` in it.
        (None, _) if event.mask & libc::FAN_ONDIR != 0 => {
            let itself = event.target.map(|dir| (dir.handle(kind), b".".to_vec()));
            itself.into_iter().for_each(|itself| add_info(&mut bytes, INFO_DFID_NAME, itself));
        }
        (None, _) => {}
    }
    if let Some(target) = event.target {
        add_info(&mut bytes, INFO_FID, (target.handle(kind), Vec::new()));
    }
    bytes
}

fn add_info(bytes: &mut Vec<u8>, info: u8, (handle, name): (Handle, Vec<u8>)) {
    let text = if name.is_empty() { 0 } else { name.len() + 1 };
    let len = (4 + 8 + 8 + handle.bytes.len() + text).next_multiple_of(4);
    let end = bytes.len() + len;
    bytes.extend([info, 0]);
    bytes.extend((len as u16).to_ne_bytes());
    bytes.extend([0; 8]); // fsid
    bytes.extend((handle.bytes.len() as u32).to_ne_bytes());
    bytes.extend(handle.kind.to_ne_bytes());
    bytes.extend(&handle.bytes);
    bytes.extend(&name);
    bytes.resize(end, 0);
}
