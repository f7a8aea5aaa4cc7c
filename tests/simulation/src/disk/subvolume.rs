//! Subvolumes of btrfs: each has numbers of its own from 256 on, and comes and goes with one event.

use syncer::tree::Kind;

use super::inode::{BTRFS_FIRST, Inode};
use super::{Disk, Errno, Event, FsKind, Id, Name, Result};

impl Disk {
    pub fn make_subvolume(&mut self, path: &[u8]) -> Result<Id> {
        let (dir, name) = self.vacant_subvolume(path)?;
        let top = self.new_root();
        self.state.put(Inode::new(top, Kind::Dir, 0o755, self.time()));
        self.enter_root(dir, &name, top);
        Ok(top)
    }

    /// A copy of a subvolume, without the subvolumes in it. Its content is told by no event.
    pub fn snapshot(&mut self, of: &[u8], path: &[u8]) -> Result<Id> {
        let of = self.lookup(of)?;
        if of.ino != BTRFS_FIRST {
            return Err(Errno::INVAL);
        }
        let (dir, name) = self.vacant_subvolume(path)?;
        let top = self.new_root();
        let there = |id: Id| Id { root: top.root, ..id };
        let mut copies: Vec<Inode> = self.all().filter(|inode| inode.id.root == of.root).cloned().collect();
        for copy in &mut copies {
            copy.id = if copy.id == of { top } else { there(copy.id) };
            copy.entries.retain(|_, id| id.root == of.root);
            copy.entries.values_mut().for_each(|id| *id = there(*id));
            copy.links.retain(|link| link.dir.root == of.root);
            for link in &mut copy.links {
                link.dir = if link.dir == of { top } else { there(link.dir) };
            }
        }
        // What is deleted and open is not copied.
        let copies = copies.into_iter().filter(|copy| copy.id == top || !copy.links.is_empty());
        copies.for_each(|copy| self.state.put(copy));
        self.state.numbers_of(of.root, top.root);
        self.enter_root(dir, &name, top);
        Ok(top)
    }

    /// With all that is in it, which no event tells. ENOTEMPTY if that is a subvolume. What is open in it loses its
    /// names, where the kernel goes on to count them.
    pub fn delete_subvolume(&mut self, path: &[u8]) -> Result<()> {
        let (dir, name) = self.parent_of(path)?;
        let id = self.child(dir, name)?;
        if !self.is_subvolume(id) {
            return Err(Errno::INVAL);
        }
        self.writable()?;
        let is_outside = |inode: &Inode| inode.entries.values().any(|child| child.root != id.root);
        if self.all().any(|inode| inode.id.root == id.root && is_outside(inode)) {
            return Err(Errno::NOTEMPTY);
        }
        self.remove_dir(dir, name, id)
    }

    fn vacant_subvolume(&self, path: &[u8]) -> Result<(Id, Name)> {
        if self.kind == FsKind::Btrfs { self.vacant(path) } else { Err(Errno::NOTTY) }
    }

    fn new_root(&mut self) -> Id {
        self.state.next_root += 1;
        let generation = self.state.transaction as u32;
        Id { root: self.state.next_root - 1, ino: BTRFS_FIRST, generation }
    }

    fn enter_root(&mut self, dir: Id, name: &Name, top: Id) {
        self.enter(dir, name, top);
        self.tell(Event::named(dir, name, top, libc::FAN_CREATE | libc::FAN_ONDIR));
    }
}
