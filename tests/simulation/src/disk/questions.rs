//! What can be asked of a disk without changing it.

use shared::entry::Handle;
use syncer::tree::{Kind, Stat};

use super::{Disk, Errno, FsKind, Id, Inode, Link, Name, Result};

/// How a directory is listed: a fault of the disk, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listing {
    Whole,
    /// Without the n-th name, and without an error.
    Lacking(usize),
    /// EIO instead of the n-th name.
    FailingAt(usize),
}

/// Size that is told of a directory.
const DIR_BYTES: u64 = 4096;

impl Disk {
    pub fn top(&self) -> Id {
        self.state.top
    }

    /// The inode at a path, which may be a symlink.
    pub fn lookup(&self, path: &[u8]) -> Result<Id> {
        if self.dead && self.kind != FsKind::Ext4 {
            return Err(Errno::IO);
        }
        let mut at = self.top();
        for name in path.split(|&b| b == b'/').filter(|name| !name.is_empty()) {
            at = self.child(at, name)?;
        }
        Ok(at)
    }

    /// What a directory has under a name.
    pub fn child(&self, dir: Id, name: &[u8]) -> Result<Id> {
        let inode = self.inode(dir)?;
        if !inode.is_dir() {
            return Err(Errno::NOTDIR);
        }
        if name.len() > super::NAME_BYTES_MAX {
            return Err(Errno::NAMETOOLONG);
        }
        inode.entries.get(name).copied().ok_or(Errno::NOENT)
    }

    /// ESTALE if it is deleted and nobody holds it open.
    pub fn inode(&self, id: Id) -> Result<&Inode> {
        self.state.get(id).ok_or(Errno::STALE)
    }

    pub fn stat(&self, id: Id) -> Result<Stat> {
        let inode = self.inode(id)?;
        Ok(Stat {
            kind: inode.kind,
            size: if inode.is_dir() { DIR_BYTES } else { inode.content.size() },
            mtime_ns: inode.mtime_ns,
            ctime_ns: inode.ctime_ns,
            btime_ns: Some(inode.btime_ns),
            ino: inode.id.ino,
            mode: inode.mode,
            uid: inode.uid,
            gid: inode.gid,
            nlink: self.nlink(inode),
            rdev: inode.rdev,
        })
    }

    pub(super) fn nlink(&self, inode: &Inode) -> u64 {
        match (inode.is_dir(), inode.links.is_empty() && inode.id != self.top()) {
            (true, true) => 0,
            (true, false) if self.kind == FsKind::Btrfs => 1,
            (true, false) => 2 + inode.subdirs,
            (false, _) => inode.links.len() as u64,
        }
    }

    pub fn stat_at(&self, path: &[u8]) -> Result<Stat> {
        self.stat(self.lookup(path)?)
    }

    /// The names of a directory, in byte order, and what stands at each. With an error, those that came before it.
    pub fn list(&self, dir: Id, listing: Listing) -> (Vec<(Name, Id, Kind)>, Result<()>) {
        if self.dead {
            return (Vec::new(), Err(Errno::IO));
        }
        let inode = match self.inode(dir) {
            Ok(inode) if inode.is_dir() => inode,
            Ok(_) => return (Vec::new(), Err(Errno::NOTDIR)),
            Err(e) => return (Vec::new(), Err(e)),
        };
        let kind = |id: Id| self.inode(id).map_or(Kind::File, |inode| inode.kind);
        let mut names: Vec<(Name, Id, Kind)> =
            inode.entries.iter().map(|(name, &id)| (name.clone(), id, kind(id))).collect();
        match listing {
            Listing::Whole => {}
            Listing::Lacking(at) if at < names.len() => drop(names.remove(at)),
            Listing::Lacking(_) => {}
            Listing::FailingAt(at) => {
                names.truncate(at);
                return (names, Err(Errno::IO));
            }
        }
        (names, Ok(()))
    }

    /// All names of an inode; none once it is deleted.
    pub fn names(&self, id: Id) -> Result<&[Link]> {
        self.inode(id).map(|inode| inode.links.as_slice())
    }

    /// The directory that a directory lies in; `None` of a top and of what is deleted.
    pub fn parent(&self, dir: Id) -> Result<Option<Id>> {
        self.inode(dir).map(|inode| inode.links.first().map(|link| link.dir))
    }

    /// The path of a directory, or that of a file's first name.
    pub fn path_of(&self, id: Id) -> Result<Vec<u8>> {
        let mut names = Vec::new();
        let mut at = self.inode(id)?;
        while at.id != self.top() {
            let link = at.links.first().ok_or(Errno::NOENT)?;
            names.push(&*link.name);
            at = self.inode(link.dir)?;
        }
        names.reverse();
        Ok(names.join(&b'/'))
    }

    /// True of `id` itself and all below.
    pub fn is_below(&self, id: Id, dir: Id) -> bool {
        let mut at = Some(id);
        while let Some(here) = at {
            if here == dir {
                return true;
            }
            at = self.parent(here).ok().flatten();
        }
        false
    }

    pub fn read_link(&self, path: &[u8]) -> Result<Vec<u8>> {
        let inode = self.inode(self.lookup(path)?)?;
        if inode.kind == Kind::Symlink { Ok(inode.content.bytes()) } else { Err(Errno::INVAL) }
    }

    pub fn handle_of(&self, id: Id) -> Handle {
        id.handle(self.kind)
    }

    /// ESTALE when it is deleted, or its number belongs to something else now. What is deleted and open is found, and
    /// has no name; unless its subvolume went with it.
    pub fn open_by_handle(&self, handle: &Handle) -> Result<Id> {
        let id = Id::of_handle(self.kind, handle).ok_or(Errno::STALE)?;
        if self.state.has_root(id.root) { self.inode(id).map(|inode| inode.id) } else { Err(Errno::STALE) }
    }

    /// Every inode, in the order of subvolumes and numbers.
    pub fn all(&self) -> impl Iterator<Item = &Inode> {
        self.state.all()
    }
}
