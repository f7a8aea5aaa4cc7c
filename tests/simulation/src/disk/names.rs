//! Operations on names: making, linking and removing.

use std::sync::Arc;

use syncer::tree::Kind;

use super::event::ondir;
use super::inode::{BTRFS_FIRST, Inode};
use super::metadata::SETGID;
use super::{Content, Disk, Errno, Event, Fd, FsKind, Id, Link, Listing, NAME_BYTES_MAX, Name, Result};

impl Disk {
    pub fn create(&mut self, path: &[u8], mode: u32) -> Result<Id> {
        self.make(path, Kind::File, mode)
    }

    pub fn mkdir(&mut self, path: &[u8], mode: u32) -> Result<Id> {
        self.make(path, Kind::Dir, mode)
    }

    /// Every directory of a path that is not there yet.
    pub fn mkdir_all(&mut self, path: &[u8], mode: u32) -> Result<()> {
        let ends = path.iter().enumerate().filter(|(_, b)| **b == b'/').map(|(at, _)| at);
        for end in ends.chain([path.len()]) {
            match self.mkdir(&path[..end], mode) {
                Ok(_) | Err(Errno::EXIST) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    pub fn symlink(&mut self, path: &[u8], to: &[u8]) -> Result<Id> {
        let id = self.make(path, Kind::Symlink, 0o777)?;
        if let Some(inode) = self.state.get_mut(id) {
            inode.content = Content::of(to);
        }
        Ok(id)
    }

    /// A fifo, a socket or a device node.
    pub fn mknod(&mut self, path: &[u8], kind: Kind, mode: u32, rdev: u64) -> Result<Id> {
        let id = self.make(path, kind, mode)?;
        if let Some(inode) = self.state.get_mut(id) {
            inode.rdev = rdev;
        }
        Ok(id)
    }

    fn make(&mut self, path: &[u8], kind: Kind, mode: u32) -> Result<Id> {
        let (dir, name) = self.vacant(path)?;
        let id = self.fresh(dir, kind, mode);
        self.enter(dir, &name, id);
        let mask = libc::FAN_CREATE | ondir(kind.is_dir());
        self.tell(Event::named(dir, &name, id, mask));
        Ok(id)
    }

    /// An inode without a name.
    pub(super) fn fresh(&mut self, dir: Id, kind: Kind, mode: u32) -> Id {
        self.count += 1;
        let id = self.state.new_id(self.kind, dir.root, self.count);
        let mut inode = Inode::new(id, kind, mode, self.time());
        let parent = self.state.get(dir).filter(|parent| parent.mode & SETGID != 0);
        if let Some(parent) = parent {
            inode.gid = parent.gid;
            inode.mode |= if kind.is_dir() { SETGID } else { 0 };
        }
        self.state.put(inode);
        id
    }

    /// One more name for a file.
    pub fn link(&mut self, old: &[u8], new: &[u8]) -> Result<()> {
        let id = self.lookup(old)?;
        self.link_inode(id, new, false)
    }

    /// linkat(2) of an open file: the first name of an O_TMPFILE, and no name for what was unlinked.
    pub fn link_open(&mut self, fd: Fd, new: &[u8]) -> Result<()> {
        let open = self.open_file(fd)?;
        self.link_inode(open.id, new, open.unnamed)?;
        if let Some(open) = self.open.get_mut(&fd) {
            open.unnamed = false;
        }
        Ok(())
    }

    fn link_inode(&mut self, id: Id, new: &[u8], never_named: bool) -> Result<()> {
        let (dir, name) = self.vacant(new)?;
        let inode = self.inode(id)?;
        if inode.is_dir() {
            return Err(Errno::PERM);
        }
        if inode.links.is_empty() && !never_named {
            return Err(Errno::NOENT);
        }
        if id.root != dir.root {
            return Err(Errno::XDEV);
        }
        self.enter(dir, &name, id);
        self.tell(Event::of(id, libc::FAN_ATTRIB));
        self.tell(Event::named(dir, &name, id, libc::FAN_CREATE));
        Ok(())
    }

    pub fn unlink(&mut self, path: &[u8]) -> Result<()> {
        let (dir, name) = self.parent_of(path)?;
        let id = self.child(dir, name)?;
        self.writable()?;
        if self.inode(id)?.is_dir() {
            return Err(Errno::ISDIR);
        }
        let name = self.leave(dir, name)?;
        self.tell(Event::of(id, libc::FAN_ATTRIB));
        self.tell(Event::named(dir, &name, id, libc::FAN_DELETE));
        self.drop_unused(id);
        Ok(())
    }

    /// On btrfs also an empty subvolume.
    pub fn rmdir(&mut self, path: &[u8]) -> Result<()> {
        let (dir, name) = self.parent_of(path)?;
        let id = self.child(dir, name)?;
        self.writable()?;
        let inode = self.inode(id)?;
        if !inode.is_dir() {
            return Err(Errno::NOTDIR);
        }
        if !inode.entries.is_empty() {
            return Err(Errno::NOTEMPTY);
        }
        self.remove_dir(dir, name, id)
    }

    /// Takes away the name of a directory, and all of a subvolume with its top.
    pub(super) fn remove_dir(&mut self, dir: Id, name: &[u8], id: Id) -> Result<()> {
        let name = self.leave(dir, name)?;
        self.tell(Event::named(dir, &name, id, libc::FAN_DELETE | libc::FAN_ONDIR));
        if !self.is_subvolume(id) {
            self.drop_unused(id);
            return Ok(());
        }
        let inside = self.all().filter(|inode| inode.id.root == id.root);
        for id in inside.map(|inode| inode.id).collect::<Vec<Id>>() {
            if let Some(inode) = self.state.get_mut(id) {
                inode.links.clear();
                inode.entries.clear();
            }
            self.drop_unused(id);
        }
        Ok(())
    }

    /// What rm -r does, one by one in the order of the names. Ends at the first error.
    pub fn remove_all(&mut self, path: &[u8]) -> Result<()> {
        let id = self.lookup(path)?;
        if !self.inode(id)?.is_dir() {
            return self.unlink(path);
        }
        let (names, listed) = self.list(id, Listing::Whole);
        listed?;
        for (name, ..) in names {
            self.remove_all(&join(path, &name))?;
        }
        self.rmdir(path)
    }

    /// True for the top of a subvolume other than that of the whole filesystem.
    pub fn is_subvolume(&self, id: Id) -> bool {
        self.kind == FsKind::Btrfs && id.ino == BTRFS_FIRST && id != self.top()
    }

    /// The directory of a path, and the name in it.
    pub(super) fn parent_of<'a>(&self, path: &'a [u8]) -> Result<(Id, &'a [u8])> {
        let at = path.iter().rposition(|&b| b == b'/');
        let (dir, name) = at.map_or((&path[..0], path), |at| (&path[..at], &path[at + 1..]));
        if name.is_empty() {
            return Err(Errno::BUSY);
        }
        let dir = self.lookup(dir)?;
        if self.inode(dir)?.is_dir() { Ok((dir, name)) } else { Err(Errno::NOTDIR) }
    }

    /// The directory of a path, and the name in it, which is not there yet and can be made.
    pub(super) fn vacant(&self, path: &[u8]) -> Result<(Id, Name)> {
        if path.is_empty() {
            return Err(Errno::EXIST);
        }
        let (dir, name) = self.parent_of(path)?;
        if name.len() > NAME_BYTES_MAX {
            return Err(Errno::NAMETOOLONG);
        }
        if self.inode(dir)?.entries.contains_key(name) {
            return Err(Errno::EXIST);
        }
        self.room()?;
        Ok((dir, Name::from(name)))
    }

    /// Gives an inode a name that is vacant.
    pub(super) fn enter(&mut self, dir: Id, name: &Name, id: Id) {
        let now = self.time();
        let mut is_dir = false;
        if let Some(inode) = self.state.get_mut(id) {
            inode.links.push(Link { dir, name: name.clone() });
            inode.ctime_ns = now;
            is_dir = inode.is_dir();
        }
        if let Some(parent) = self.state.get_mut(dir) {
            parent.entries.insert(name.clone(), id);
            parent.subdirs += u64::from(is_dir);
            parent.changed(now);
        }
    }

    /// Takes a name away from what has it.
    pub(super) fn leave(&mut self, dir: Id, name: &[u8]) -> Result<Name> {
        let now = self.time();
        let id = self.child(dir, name)?;
        let is_dir = self.inode(id)?.is_dir();
        let parent = self.state.get_mut(dir).ok_or(Errno::STALE)?;
        let (name, _) = parent.entries.remove_entry(name).ok_or(Errno::NOENT)?;
        parent.subdirs -= u64::from(is_dir);
        parent.changed(now);
        if let Some(inode) = self.state.get_mut(id) {
            inode.links.retain(|link| (link.dir, &*link.name) != (dir, &*name));
            inode.ctime_ns = now;
        }
        // Whoever has it open by this name goes on to report it, but follows it no more.
        self.open_as(dir, &name).for_each(|open| open.named = false);
        Ok(name)
    }

    /// What has no name and is not open is no more.
    pub(super) fn drop_unused(&mut self, id: Id) {
        let is_open = self.open.values().any(|open| open.id == id);
        if !is_open && self.inode(id).is_ok_and(|inode| inode.links.is_empty()) {
            self.state.remove(id);
        }
    }
}

/// A name below a path.
pub fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    if dir.is_empty() { name.to_vec() } else { [dir, b"/", name].concat() }
}

/// A name as the directories keep it.
pub fn name(bytes: &[u8]) -> Name {
    Arc::from(bytes)
}
