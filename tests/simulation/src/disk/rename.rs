//! Renaming: also over what exists, also an exchange, also directories.

use super::event::{At, ondir};
use super::{Disk, Errno, Event, Fd, FsKind, Id, Link, Name, Open, Result};

/// One side of a rename.
struct Side<'a> {
    dir: Id,
    name: &'a [u8],
    id: Option<Id>,
}

impl Disk {
    /// Over what exists, if that is of the same sort and, a directory, empty. Over another name of the same file it
    /// does nothing.
    pub fn rename(&mut self, old: &[u8], new: &[u8]) -> Result<()> {
        let (old, id, new) = self.sides(old, new)?;
        if self.is_below(new.dir, id) {
            return Err(Errno::INVAL);
        }
        self.writable()?;
        let Some(victim) = new.id else {
            let name = super::names::name(new.name);
            if name.len() > super::NAME_BYTES_MAX {
                return Err(Errno::NAMETOOLONG);
            }
            self.same_subvolume(id, new.dir)?;
            return self.move_to(&old, new.dir, name);
        };
        if victim == id {
            return Ok(());
        }
        if self.is_below(old.dir, victim) {
            return Err(Errno::NOTEMPTY);
        }
        let (of_dir, victim_inode) = (self.inode(id)?.is_dir(), self.inode(victim)?);
        let victim_is_dir = victim_inode.is_dir();
        match (of_dir, victim_is_dir) {
            (true, false) => return Err(Errno::NOTDIR),
            (false, true) => return Err(Errno::ISDIR),
            _ => self.same_subvolume(id, new.dir)?,
        }
        // Nothing is renamed over a subvolume, not even over an empty one.
        if !victim_inode.entries.is_empty() || self.is_subvolume(victim) {
            return Err(if self.kind == FsKind::Xfs { Errno::EXIST } else { Errno::NOTEMPTY });
        }
        let name = self.leave(new.dir, new.name)?;
        self.move_to(&old, new.dir, name)?;
        self.tell(Event::of(victim, libc::FAN_ATTRIB | ondir(victim_is_dir)));
        self.drop_unused(victim);
        Ok(())
    }

    /// RENAME_EXCHANGE: both must exist, of whatever sort.
    pub fn exchange(&mut self, one: &[u8], other: &[u8]) -> Result<()> {
        let (one, id, other) = self.sides(one, other)?;
        let other_id = other.id.ok_or(Errno::NOENT)?;
        if id == other_id {
            return self.writable();
        }
        if self.is_below(other.dir, id) || self.is_below(one.dir, other_id) {
            return Err(Errno::INVAL);
        }
        self.writable()?;
        self.same_subvolume(id, other.dir)?;
        self.same_subvolume(other_id, one.dir)?;
        let (with_one, with_other) = (self.open_by(&one), self.open_by(&other));
        let times = [id, other_id].map(|id| self.inode(id).map(|inode| (id, inode.mtime_ns, inode.ctime_ns)));
        let (one_name, other_name) = (self.leave(one.dir, one.name)?, self.leave(other.dir, other.name)?);
        self.enter(other.dir, &other_name, id);
        self.enter(one.dir, &one_name, other_id);
        for (fds, dir, name) in [(with_one, other.dir, &other_name), (with_other, one.dir, &one_name)] {
            for fd in fds {
                if let Some(open) = self.open.get_mut(&fd) {
                    (open.dir, open.name, open.named) = (dir, name.clone(), true);
                }
            }
        }
        if self.kind == FsKind::Xfs {
            let crosses = one.dir != other.dir;
            let dirs = [id, other_id].map(|id| crosses && self.inode(id).is_ok_and(|inode| inode.is_dir()));
            for (times, is_dir) in times.into_iter().zip(dirs) {
                let ((id, mtime_ns, ctime_ns), now) = (times?, self.time());
                let Some(inode) = self.state.get_mut(id) else { continue };
                inode.mtime_ns = if is_dir { now } else { mtime_ns };
                inode.ctime_ns = if dirs.contains(&true) { now } else { ctime_ns };
            }
        }
        self.tell_rename(id, (one.dir, &one_name), (other.dir, &other_name));
        self.tell_rename(other_id, (other.dir, &other_name), (one.dir, &one_name));
        Ok(())
    }

    fn open_by(&self, side: &Side<'_>) -> Vec<Fd> {
        let by_name = |open: &Open| open.named && open.dir == side.dir && *open.name == *side.name;
        self.open.iter().filter(|(_, open)| by_name(open)).map(|(fd, _)| *fd).collect()
    }

    fn sides<'a>(&self, old: &'a [u8], new: &'a [u8]) -> Result<(Side<'a>, Id, Side<'a>)> {
        let side = |path: &'a [u8]| self.parent_of(path).map(|(dir, name)| Side { dir, name, id: None });
        let (old, new) = (side(old)?, side(new)?);
        let id = self.child(old.dir, old.name)?;
        let target = match self.child(new.dir, new.name) {
            Ok(id) => Some(id),
            Err(Errno::NOENT | Errno::NAMETOOLONG) => None,
            Err(e) => return Err(e),
        };
        Ok((old, id, Side { id: target, ..new }))
    }

    /// Only a subvolume itself can be moved into another one.
    fn same_subvolume(&self, id: Id, dir: Id) -> Result<()> {
        if id.root == dir.root || self.is_subvolume(id) { Ok(()) } else { Err(Errno::XDEV) }
    }

    /// To a name that is vacant by now.
    fn move_to(&mut self, old: &Side<'_>, dir: Id, name: Name) -> Result<()> {
        let now = self.time();
        let parent = self.state.get_mut(old.dir).ok_or(Errno::STALE)?;
        let (old_name, id) = parent.entries.remove_entry(old.name).ok_or(Errno::NOENT)?;
        parent.changed(now);
        let mut is_dir = false;
        if let Some(inode) = self.state.get_mut(id) {
            let link = inode.links.iter_mut().find(|link| (link.dir, &*link.name) == (old.dir, old.name));
            if let Some(link) = link {
                *link = Link { dir, name: name.clone() };
            }
            inode.ctime_ns = now;
            is_dir = inode.is_dir();
        }
        if let Some(parent) = self.state.get_mut(old.dir) {
            parent.subdirs -= u64::from(is_dir);
        }
        if let Some(parent) = self.state.get_mut(dir) {
            parent.entries.insert(name.clone(), id);
            parent.subdirs += u64::from(is_dir);
            parent.changed(now);
        }
        for open in self.open_as(old.dir, &old_name) {
            (open.dir, open.name) = (dir, name.clone());
        }
        self.tell_rename(id, (old.dir, &old_name), (dir, &name));
        Ok(())
    }

    fn tell_rename(&mut self, id: Id, (old_dir, old): (Id, &Name), (new_dir, new): (Id, &Name)) {
        let is_dir = self.inode(id).is_ok_and(|inode| inode.is_dir());
        let to = At { dir: new_dir, name: new.clone() };
        let event = Event::named(old_dir, old, id, libc::FAN_RENAME | ondir(is_dir));
        self.tell(Event { to: Some(to), ..event });
    }
}
