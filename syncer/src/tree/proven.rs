//! A tracked tree as the kernel shows it: everything is reached from the open root directory, nothing by a path from
//! outside.

use std::ffi::{CStr, OsString};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, FileType, SeekFrom, StatxFlags};
use rustix::io::Errno;
use rustix::time::ClockId;
use shared::entry::Handle;
use shared::identity::{Attachment, Identity};
use shared::path::RelPath;

use crate::tree::beneath::{self, Beneath, Miss, Pinned, Place};
use crate::tree::{Dir, Look, SourceFile, Stat, Tree, TreeError, Xattrs, sys};

pub struct ProvenTree {
    path: PathBuf,
    identity: Identity,
    attachment: Attachment,
    below: Beneath,
}

#[derive(Debug, thiserror::Error)]
#[error("Cannot open the root {}: {source}", path.display())]
pub struct OpenError {
    pub path: PathBuf,
    pub source: io::Error,
}

impl ProvenTree {
    /// Opens the root directory and reads who it is. That it is the one meant, the caller proves by `identity`.
    pub fn open(path: &Path) -> Result<ProvenTree, OpenError> {
        let error = |source| OpenError { path: path.to_owned(), source };
        let below = Beneath::open(path).map_err(error)?;
        let (identity, attachment) = Identity::of(below.root()).map_err(|e| error(io::Error::other(e)))?;
        Ok(ProvenTree { path: path.to_owned(), identity, attachment, below })
    }

    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    fn pin(&self, op: &'static str, path: &RelPath) -> Result<Pinned, TreeError> {
        self.below.pin(path).map_err(|miss| {
            let (path, source) = miss.into_error();
            TreeError { op, path, source }
        })
    }

    /// False once the root directory itself was removed: then it answers ENOENT for whatever it is asked.
    fn root_is_linked(&self) -> io::Result<bool> {
        Ok(beneath::stat(self.below.root())?.nlink > 0)
    }
}

impl Tree for ProvenTree {
    fn look(&self, path: &RelPath) -> Look {
        let at = match self.below.pin(path) {
            Ok(pinned) => return Look::Found(pinned.stat),
            Err(Miss::Failed { at, source }) if source.kind() == io::ErrorKind::CrossesDevices => {
                return Look::Elsewhere(format!("{at}: {source}"));
            }
            Err(Miss::Failed { at, source }) => return Look::Unknown(format!("{at}: {source}")),
            Err(Miss::Absent { at } | Miss::NotDir { at }) => at,
        };
        match self.root_is_linked() {
            Ok(true) => Look::Gone { at },
            Ok(false) => Look::Unknown(format!("{} was removed", self.path.display())),
            Err(e) => Look::Unknown(format!("{}: {e}", self.path.display())),
        }
    }

    fn dir(&self, path: &RelPath) -> Result<Arc<dyn Dir>, TreeError> {
        let op = "list";
        let fd = self.pin(op, path)?.read_dir();
        let fd = fd.map_err(|source| TreeError { op, path: path.clone(), source })?;
        Ok(Arc::new(OpenDir { fd, place: self.below.place() }))
    }

    fn open(&self, path: &RelPath) -> Result<Arc<dyn SourceFile>, TreeError> {
        let op = "open";
        let pinned = self.pin(op, path)?;
        let open = || {
            let file = pinned.read()?;
            let stat = beneath::stat(file.as_fd())?;
            io::Result::Ok(OpenFile { file, stat })
        };
        let file = open().map_err(|source| TreeError { op, path: path.clone(), source })?;
        Ok(Arc::new(file))
    }

    fn read_link(&self, path: &RelPath) -> Result<Vec<u8>, TreeError> {
        let op = "read the link";
        let pinned = self.pin(op, path)?;
        let target = rustix::fs::readlinkat(&pinned.fd, "", Vec::new());
        Ok(target.map_err(|e| TreeError { op, path: path.clone(), source: e.into() })?.into_bytes())
    }

    fn xattrs(&self, path: &RelPath) -> Result<Xattrs, TreeError> {
        let op = "read the extended attributes of";
        let pinned = self.pin(op, path)?;
        read_xattrs(&pinned.proc_path()).map_err(|source| TreeError { op, path: path.clone(), source })
    }

    fn handle(&self, path: &RelPath) -> Option<Handle> {
        sys::handle(self.below.pin(path).ok()?.fd.as_fd()).ok()
    }

    /// What filesystems stamp with: the time of the last tick.
    fn now_ns(&self) -> i64 {
        let t = rustix::time::clock_gettime(ClockId::RealtimeCoarse);
        t.tv_sec * 1_000_000_000 + t.tv_nsec
    }

    /// A filesystem that is known by its number alone is not trusted either.
    fn stable_inodes(&self) -> bool {
        let fs = self.identity.fs.as_str();
        !matches!(fs, "exfat" | "vfat" | "fuse" | "nfs") && !fs.starts_with("0x")
    }

    fn check(&self) -> Result<(), String> {
        let (seen, _) = Identity::of(self.below.root()).map_err(|e| e.to_string())?;
        if let Some(difference) = self.identity.differences(&seen).first() {
            return Err(difference.to_string());
        }
        let path = self.path.display();
        let there = rustix::fs::statx(CWD, &self.path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::BASIC_STATS)
            .map_err(|e| format!("{path}: {}", io::Error::from(e)))?;
        let (dev, ino) = (rustix::fs::makedev(there.stx_dev_major, there.stx_dev_minor), there.stx_ino);
        if (dev, ino) != (self.attachment.dev, self.identity.inode) {
            let text =
                |dev, ino| format!("inode {ino} on {}:{}", rustix::fs::major(dev), rustix::fs::minor(dev));
            let expected = text(self.attachment.dev, self.identity.inode);
            return Err(format!(
                "{path} leads to another directory: {expected} expected, {} seen",
                text(dev, ino)
            ));
        }
        Ok(())
    }

    fn release(&self) {
        self.below.forget();
    }
}

/// Sorted; empty where the filesystem has none.
fn read_xattrs(path: &Path) -> io::Result<Xattrs> {
    let names: Vec<OsString> = match xattr::list_deref(path) {
        Ok(names) => names.collect(),
        Err(e) if e.kind() == io::ErrorKind::Unsupported => return Ok(Xattrs::new()),
        Err(e) => return Err(e),
    };
    let mut out = Xattrs::new();
    for name in names {
        // Gone between the two calls: then it is not there.
        if let Some(value) = xattr::get_deref(path, &name)? {
            out.push((name.into_vec(), value));
        }
    }
    out.sort();
    Ok(out)
}

struct OpenDir {
    fd: OwnedFd,
    place: Place,
}

impl Dir for OpenDir {
    fn names(&self, each: &mut dyn FnMut(&CStr, Option<bool>)) -> io::Result<()> {
        beneath::each_name(self.fd.as_fd(), |name, kind| {
            each(name, (kind != FileType::Unknown).then_some(kind == FileType::Directory));
        })
    }

    fn stat(&self, name: &CStr) -> io::Result<Stat> {
        self.place.stat_name(self.fd.as_fd(), name)
    }

    fn dir(&self, name: &CStr) -> io::Result<Arc<dyn Dir>> {
        let fd = self.place.pin_name(self.fd.as_fd(), name)?.read_dir()?;
        Ok(Arc::new(OpenDir { fd, place: self.place }))
    }
}

struct OpenFile {
    file: File,
    stat: Stat,
}

impl SourceFile for OpenFile {
    fn stat(&self) -> &Stat {
        &self.stat
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(buffer, offset)
    }

    fn next_data(&self, from: u64) -> io::Result<Option<Range<u64>>> {
        let start = match rustix::fs::seek(&self.file, SeekFrom::Data(from)) {
            Ok(start) => start,
            Err(Errno::NXIO) => return Ok(None),
            // The filesystem knows of no holes.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => {
                let size = beneath::stat(self.file.as_fd())?.size;
                return Ok((from < size).then_some(from..size));
            }
            Err(e) => return Err(e.into()),
        };
        match rustix::fs::seek(&self.file, SeekFrom::Hole(start)) {
            Ok(end) => Ok(Some(start..end)),
            // Cut off since the line above.
            Err(Errno::NXIO) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    fn unchanged(&self) -> io::Result<bool> {
        let now = beneath::stat(self.file.as_fd())?;
        let key = |s: &Stat| (s.size, s.mtime_ns, s.ctime_ns);
        Ok(key(&now) == key(&self.stat))
    }
}

#[cfg(test)]
mod tests;
