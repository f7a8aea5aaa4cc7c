//! Fanotify groups: marks on whole filesystems, and what is read of them.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use shared::entry::Handle;

use super::{Machine, Queue, Spot};
use crate::disk::{Errno, Event, FsKind};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupId(pub u64);

#[derive(Debug, Clone)]
pub struct Group {
    pub queue: Queue,
    /// Superblocks.
    marks: BTreeSet<u64>,
    /// Processes that have it open; it ends with the last of them that does not keep it elsewhere.
    pub(super) owner: Option<u32>,
    /// What the next read fails with.
    fails: Option<Errno>,
}

impl Group {
    pub(super) fn is_on(&self, superblock: u64) -> bool {
        self.marks.contains(&superblock)
    }

    pub(super) fn unmark(&mut self, superblock: u64) {
        self.marks.remove(&superblock);
    }
}

impl Machine {
    /// fanotify_init(2): overflows beyond `queue_max` events.
    pub fn new_group(&mut self, pid: u32, queue_max: u64) -> GroupId {
        let id = GroupId(self.number());
        let group =
            Group { queue: Queue::new(queue_max), marks: BTreeSet::new(), owner: Some(pid), fails: None };
        self.groups.insert(id, group);
        id
    }

    /// A process gives it up: it is gone unless the service manager keeps it.
    pub fn close_group(&mut self, group: GroupId) {
        if let Some(group) = self.groups.get_mut(&group) {
            group.owner = None;
        }
        self.end_groups();
    }

    pub(super) fn end_groups_of(&mut self, pid: u32) {
        self.groups.values_mut().filter(|g| g.owner == Some(pid)).for_each(|g| g.owner = None);
        self.end_groups();
    }

    pub(super) fn end_groups(&mut self) {
        let kept: BTreeSet<GroupId> = self.store.values().filter_map(super::Kept::group).collect();
        self.groups.retain(|id, group| group.owner.is_some() || kept.contains(id));
    }

    /// Marks the whole filesystem. It must be mounted.
    pub fn mark(&mut self, group: GroupId, dev: u64) -> Result<(), Errno> {
        let device = self.devices.get(&dev).ok_or(Errno::NODEV)?;
        let superblock = device.superblock.ok_or(Errno::NODEV)?;
        if device.disk.dead && device.disk.kind != FsKind::Ext4 {
            return Err(Errno::IO);
        }
        self.groups.get_mut(&group).ok_or(Errno::BADF)?.marks.insert(superblock);
        Ok(())
    }

    pub fn unmark(&mut self, group: GroupId, dev: u64) {
        let superblock = self.devices.get(&dev).and_then(|device| device.superblock);
        if let (Some(group), Some(superblock)) = (self.groups.get_mut(&group), superblock) {
            group.unmark(superblock);
        }
    }

    pub fn is_marked(&self, group: GroupId, dev: u64) -> bool {
        let superblock = self.devices.get(&dev).and_then(|device| device.superblock);
        let group = self.groups.get(&group);
        group.zip(superblock).is_some_and(|(group, superblock)| group.is_on(superblock))
    }

    /// What /proc says of a group: one line for itself and one for each filesystem it marked.
    pub fn fdinfo(&self, group: GroupId) -> Result<String, Errno> {
        let group = self.groups.get(&group).ok_or(Errno::BADF)?;
        let flags = tracker::intake::fanotify::GROUP_FLAGS;
        let mut text = format!("pos:\t0\nflags:\t02004000\nfanotify flags:{flags:x} event-flags:88000\n");
        for (dev, device) in &self.devices {
            if device.superblock.is_some_and(|superblock| group.is_on(superblock)) {
                let (major, minor) = (rustix::fs::major(*dev), rustix::fs::minor(*dev));
                let (dev, mask) = ((major << 20) | minor, tracker::intake::fanotify::MARK_MASK);
                let _ = writeln!(text, "fanotify sdev:{dev:x} mflags:0 mask:{mask:x} ignored_mask:0");
            }
        }
        Ok(text)
    }

    pub fn queue(&self, group: GroupId) -> Option<&Queue> {
        self.groups.get(&group).map(|group| &group.queue)
    }

    pub fn any_queued(&self) -> bool {
        self.groups.values().any(|group| !group.queue.is_empty())
    }

    /// read(2): as many whole events as fit; EAGAIN if there are none.
    pub fn read(&mut self, group: GroupId, max_bytes: usize) -> Result<Vec<u8>, Errno> {
        let group = self.groups.get_mut(&group).ok_or(Errno::BADF)?;
        match group.fails.take() {
            Some(Errno::FAULT) => {
                group.queue.lose_one();
                Err(Errno::FAULT)
            }
            Some(e) => Err(e),
            None => group.queue.read(max_bytes),
        }
    }

    /// The next read fails; with EFAULT an event is lost, which the kernel had taken out already.
    pub fn fail_read(&mut self, group: GroupId, error: Errno) {
        if let Some(group) = self.groups.get_mut(&group) {
            group.fails = Some(error);
        }
    }

    /// Opens a directory under a mark of its own, which the group tells. Within a subvolume the top of the filesystem
    /// stands for it, because a mark there is refused. Gives the handle that is told.
    pub fn ring(&mut self, pid: u32, group: GroupId, spot: Spot) -> Result<Handle, Errno> {
        let disk = &self.devices.get(&spot.dev).ok_or(Errno::NODEV)?.disk;
        if disk.dead {
            return Err(Errno::IO);
        }
        let id = if spot.id.root == disk.top().root { spot.id } else { disk.top() };
        let (handle, kind) = (disk.handle_of(id), disk.kind);
        let group = self.groups.get_mut(&group).ok_or(Errno::BADF)?;
        group.queue.push(Event::of(id, libc::FAN_OPEN | libc::FAN_ONDIR), pid, kind);
        Ok(handle)
    }
}
