//! Operations on what an inode says of itself.

use syncer::tree::Kind;

use super::event::ondir;
use super::inode::Inode;
use super::{Disk, Errno, Event, FsKind, Id, Result};

/// Cleared by a change of the owner.
const SETUID: u32 = 0o4000;
/// Of a directory: what is made in it gets its group. Of a file it is cleared like SETUID.
pub(super) const SETGID: u32 = 0o2000;
const GROUP_MAY_RUN: u32 = 0o010;

impl Disk {
    pub fn chmod(&mut self, path: &[u8], mode: u32) -> Result<()> {
        let id = self.lookup(path)?;
        if self.inode(id)?.kind == Kind::Symlink {
            return Err(Errno::OPNOTSUPP);
        }
        self.set(path, id, |inode| inode.mode = mode & 0o7777)
    }

    pub fn chown(&mut self, path: &[u8], uid: u32, gid: u32) -> Result<()> {
        let id = self.lookup(path)?;
        self.set(path, id, |inode| {
            (inode.uid, inode.gid) = (uid, gid);
            if !inode.is_dir() {
                inode.mode &= !SETUID;
                if inode.mode & GROUP_MAY_RUN != 0 {
                    inode.mode &= !SETGID;
                }
            }
        })
    }

    /// utimensat(2) of both times. One that leaves the access time alone would be told as MODIFY.
    pub fn set_mtime(&mut self, path: &[u8], mtime_ns: i64) -> Result<()> {
        let id = self.lookup(path)?;
        self.set(path, id, |inode| inode.mtime_ns = mtime_ns)
    }

    pub fn set_xattr(&mut self, path: &[u8], name: &[u8], value: &[u8]) -> Result<()> {
        let id = self.with_xattrs(path)?;
        let had = self.inode(id)?.xattrs.get(name);
        if self.kind == FsKind::Ext4 && had.is_some_and(|had| had == value) {
            // It is told, and leaves no trace.
            self.writable()?;
            return self.tell_at(path, id, libc::FAN_ATTRIB);
        }
        self.set(path, id, |inode| drop(inode.xattrs.insert(name.to_vec(), value.to_vec())))
    }

    pub fn remove_xattr(&mut self, path: &[u8], name: &[u8]) -> Result<()> {
        let id = self.with_xattrs(path)?;
        if !self.inode(id)?.xattrs.contains_key(name) {
            return Err(Errno::NODATA);
        }
        self.set(path, id, |inode| drop(inode.xattrs.remove(name)))
    }

    /// What may have attributes of users.
    fn with_xattrs(&self, path: &[u8]) -> Result<Id> {
        let id = self.lookup(path)?;
        if matches!(self.inode(id)?.kind, Kind::File | Kind::Dir) { Ok(id) } else { Err(Errno::PERM) }
    }

    fn set(&mut self, path: &[u8], id: Id, change: impl FnOnce(&mut Inode)) -> Result<()> {
        self.writable()?;
        let now = self.time();
        let inode = self.state.get_mut(id).ok_or(Errno::STALE)?;
        change(inode);
        inode.ctime_ns = now;
        self.tell_at(path, id, libc::FAN_ATTRIB)
    }

    /// An event of what stands at a path. That of a directory names the directory and nothing else.
    pub(super) fn tell_at(&mut self, path: &[u8], id: Id, mask: u64) -> Result<()> {
        if !self.watched {
            return Ok(());
        }
        let is_dir = self.inode(id)?.is_dir();
        let event = if is_dir {
            Event::of(id, mask | ondir(is_dir))
        } else {
            let (dir, name) = self.parent_of(path)?;
            let entry = self.inode(dir)?.entries.get_key_value(name);
            let (name, _) = entry.ok_or(Errno::NOENT)?;
            Event::named(dir, name, id, mask)
        };
        self.tell(event);
        Ok(())
    }
}
