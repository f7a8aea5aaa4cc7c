//! Open files and their content. An open file outlives its name, and reports the name by which it was opened, wherever
//! that is moved to.

use syncer::tree::Kind;

use super::{Disk, Errno, Event, FsKind, Id, Name, Result};

/// An open file; never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fd(u64);

/// How a file is opened. The default is for reading, which a directory can be, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct How {
    pub write: bool,
    pub create: bool,
    /// With `create`: only if nothing is there.
    pub exclusive: bool,
    pub truncate: bool,
}

impl How {
    pub const READ: How = How { write: false, create: false, exclusive: false, truncate: false };
    pub const WRITE: How = How { write: true, ..How::READ };
    /// Made if it is not there.
    pub const CREATE: How = How { create: true, ..How::WRITE };
    /// Made or emptied.
    pub const ANEW: How = How { truncate: true, ..How::CREATE };
}

/// An open file, as the kernel keeps it: by a name.
#[derive(Debug, Clone)]
pub(super) struct Open {
    pub id: Id,
    pub dir: Id,
    pub name: Name,
    /// The name is still there: it follows a rename.
    pub named: bool,
    /// It was made without a name.
    pub unnamed: bool,
    pub write: bool,
}

/// Mode of what is made by opening.
const MODE: u32 = 0o644;

impl Disk {
    pub fn open(&mut self, path: &[u8], how: How) -> Result<Fd> {
        let (id, made) = match self.lookup(path) {
            Ok(_) if how.create && how.exclusive => return Err(Errno::EXIST),
            Ok(id) => (id, false),
            Err(Errno::NOENT) if how.create => (self.create(path, MODE)?, true),
            Err(e) => return Err(e),
        };
        let kind = self.inode(id)?.kind;
        if kind == Kind::Symlink {
            return Err(Errno::LOOP);
        }
        if how.write || how.truncate {
            if kind.is_dir() {
                return Err(Errno::ISDIR);
            }
            self.writable()?;
        }
        // The top has no name.
        let (dir, name) = self.parent_of(path).unwrap_or((id, b"."));
        let entry = self.inode(dir)?.entries.get_key_value(name);
        let name = entry.map_or_else(|| Name::from(name), |(name, _)| name.clone());
        if how.truncate && !made {
            self.cut(id, 0, true)?;
            self.tell(Event::named(dir, &name, id, libc::FAN_MODIFY));
        }
        Ok(self.opened(Open { id, dir, name, named: true, unnamed: false, write: how.write }))
    }

    fn opened(&mut self, open: Open) -> Fd {
        self.count += 1;
        let fd = Fd(self.count);
        self.open.insert(fd, open);
        fd
    }

    /// O_TMPFILE: a file that has no name until `link_open` gives it one, and tells of itself as `#` and its number.
    pub fn tmpfile(&mut self, dir: &[u8]) -> Result<Fd> {
        let dir = self.lookup(dir)?;
        if !self.inode(dir)?.is_dir() {
            return Err(Errno::NOTDIR);
        }
        self.room()?;
        let id = self.fresh(dir, Kind::File, MODE);
        let name = Name::from(format!("#{}", id.ino).into_bytes());
        Ok(self.opened(Open { id, dir, name, named: false, unnamed: true, write: true }))
    }

    /// The end of the last descriptor and the last mapping.
    pub fn close(&mut self, fd: Fd) -> Result<()> {
        let open = self.open.remove(&fd).ok_or(Errno::BADF)?;
        if open.write {
            self.tell(Event::named(open.dir, &open.name, open.id, libc::FAN_CLOSE_WRITE));
        }
        self.drop_unused(open.id);
        Ok(())
    }

    pub fn is_open(&self, fd: Fd) -> bool {
        self.open.contains_key(&fd)
    }

    /// Something is open: an unmount finds the filesystem busy.
    pub fn is_held(&self) -> bool {
        !self.open.is_empty()
    }

    /// What an open file is.
    pub fn opened_id(&self, fd: Fd) -> Result<Id> {
        self.open_file(fd).map(|open| open.id)
    }

    pub fn read(&self, fd: Fd, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        let id = self.opened_id(fd)?;
        if self.dead {
            return Err(Errno::IO);
        }
        let inode = self.inode(id)?;
        if inode.is_dir() { Err(Errno::ISDIR) } else { Ok(inode.content.read(offset, buffer)) }
    }

    /// All bytes of a file that is not big.
    pub fn read_at(&self, path: &[u8]) -> Result<Vec<u8>> {
        let inode = self.inode(self.lookup(path)?)?;
        if inode.is_dir() { Err(Errno::ISDIR) } else { Ok(inode.content.bytes()) }
    }

    pub fn write(&mut self, fd: Fd, offset: u64, bytes: &[u8]) -> Result<()> {
        self.aio_write(fd, offset, bytes)?;
        if !bytes.is_empty() {
            self.modified(fd)?;
        }
        Ok(())
    }

    pub fn append(&mut self, fd: Fd, bytes: &[u8]) -> Result<()> {
        let end = self.inode(self.opened_id(fd)?)?.content.size();
        self.write(fd, end, bytes)
    }

    pub fn ftruncate(&mut self, fd: Fd, size: u64) -> Result<()> {
        let id = self.writing(fd)?;
        self.cut(id, size, false)?;
        self.modified(fd)
    }

    /// Content and times change, and no event tells of it: native AIO, and a loop device over its file.
    pub fn aio_write(&mut self, fd: Fd, offset: u64, bytes: &[u8]) -> Result<()> {
        let id = self.writing(fd)?;
        let now = self.time();
        let full = self.full;
        let inode = self.state.get_mut(id).ok_or(Errno::STALE)?;
        if full && offset + bytes.len() as u64 > inode.content.size() {
            return Err(Errno::NOSPC);
        }
        if !bytes.is_empty() {
            inode.content.write(offset, bytes);
            inode.changed(now);
        }
        Ok(())
    }

    /// A store into a mapping: no event. The times change with the first store to a page since that was written out
    /// (`touches`), not with those after it. What lies behind the end is lost.
    pub fn map_store(&mut self, fd: Fd, offset: u64, bytes: &[u8], touches: bool) -> Result<()> {
        let id = self.writing(fd)?;
        let now = self.time();
        let inode = self.state.get_mut(id).ok_or(Errno::STALE)?;
        let room = inode.content.size().saturating_sub(offset).min(bytes.len() as u64);
        inode.content.write(offset, &bytes[..room as usize]);
        if touches {
            inode.changed(now);
        }
        Ok(())
    }

    pub fn truncate(&mut self, path: &[u8], size: u64) -> Result<()> {
        let id = self.lookup(path)?;
        match self.inode(id)?.kind {
            Kind::Dir => return Err(Errno::ISDIR),
            Kind::File => {}
            _ => return Err(Errno::INVAL),
        }
        self.writable()?;
        self.cut(id, size, false)?;
        self.tell_at(path, id, libc::FAN_MODIFY)
    }

    /// Makes a file or replaces its content in place: opened, written, closed.
    pub fn put(&mut self, path: &[u8], bytes: &[u8]) -> Result<()> {
        let fd = self.open(path, How::ANEW)?;
        let written = self.write(fd, 0, bytes);
        self.close(fd)?;
        written
    }

    pub(super) fn open_file(&self, fd: Fd) -> Result<&Open> {
        self.open.get(&fd).ok_or(Errno::BADF)
    }

    /// Everything that is open by a name which is still there.
    pub(super) fn open_as<'a>(&'a mut self, dir: Id, name: &'a [u8]) -> impl Iterator<Item = &'a mut Open> {
        let by_name = move |open: &&mut Open| open.named && open.dir == dir && *open.name == *name;
        self.open.values_mut().filter(by_name)
    }

    /// The file behind a descriptor that may write.
    fn writing(&self, fd: Fd) -> Result<Id> {
        let open = self.open_file(fd)?;
        if !open.write {
            return Err(Errno::BADF);
        }
        self.writable()?;
        Ok(open.id)
    }

    fn modified(&mut self, fd: Fd) -> Result<()> {
        let open = self.open_file(fd)?;
        let event = Event::named(open.dir, &open.name, open.id, libc::FAN_MODIFY);
        self.tell(event);
        Ok(())
    }

    /// Sets a size. `by_open`: O_TRUNC, which sets the times in any case.
    fn cut(&mut self, id: Id, size: u64, by_open: bool) -> Result<()> {
        let now = self.time();
        let (kind, full) = (self.kind, self.full);
        let inode = self.state.get_mut(id).ok_or(Errno::STALE)?;
        let was = inode.content.size();
        if full && size > was {
            return Err(Errno::NOSPC);
        }
        inode.content.truncate(size);
        // To the size it had, truncate(2) leaves the times on xfs and btrfs.
        if by_open || size != was || kind == FsKind::Ext4 {
            inode.changed(now);
        }
        Ok(())
    }
}
