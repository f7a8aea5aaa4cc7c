//! The local side: what a leg asks of a tracked tree. `proven` is the real one, over openat2(2).

pub(crate) mod beneath;
pub mod proven;
mod sys;
#[cfg(test)]
pub(crate) mod testing;

use std::ffi::CStr;
use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use shared::entry::{Handle, stored_enum};
use shared::path::RelPath;

stored_enum! {
    /// What kind of thing stands at a name.
    Kind {
        File = 0 => "file",
        Dir = 1 => "dir",
        Symlink = 2 => "symlink",
        Fifo = 3 => "fifo",
        Socket = 4 => "socket",
        CharDevice = 5 => "char-device",
        BlockDevice = 6 => "block-device",
    }
}

/// What lstat(2) and statx(2) say of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    pub kind: Kind,
    pub size: u64,
    pub mtime_ns: i64,
    pub ctime_ns: i64,
    pub btime_ns: Option<i64>,
    pub ino: u64,
    /// Permission bits, with setuid, setgid and sticky (07777).
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub nlink: u64,
    /// Of a device node.
    pub rdev: u64,
}

/// The answer to "is it there". Only `Gone` may ever lead to a delete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Look {
    Found(Stat),
    /// Witnessed: walking one component at a time from the proven root, the kernel said ENOENT for `at` on its
    /// pinned parent, or `at` is no directory while the path goes on. Everything at and below `at` is gone.
    Gone {
        at: RelPath,
    },
    /// Another filesystem or subvolume lies over it: not ours to mirror, and nothing may be concluded.
    Elsewhere(String),
    /// Anything else: nothing may be concluded.
    Unknown(String),
}

#[derive(Debug, thiserror::Error)]
#[error("Cannot {op} {path}: {source}")]
pub struct TreeError {
    pub op: &'static str,
    pub path: RelPath,
    pub source: io::Error,
}

/// Extended attributes, sorted by name; ACLs are among them as the kernel stores them.
pub type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// A root whose disk was proven. All calls block; directory fds are kept for speed until `release`.
pub trait Tree: Send + Sync {
    /// Looks at one path. A `Gone` is always witnessed anew, never from a remembered directory.
    fn look(&self, path: &RelPath) -> Look;
    /// Opens a directory to be listed.
    fn dir(&self, path: &RelPath) -> Result<Arc<dyn Dir>, TreeError>;
    /// Opens a regular file for reading.
    fn open(&self, path: &RelPath) -> Result<Arc<dyn SourceFile>, TreeError>;
    fn read_link(&self, path: &RelPath) -> Result<Vec<u8>, TreeError>;
    fn xattrs(&self, path: &RelPath) -> Result<Xattrs, TreeError>;
    /// The file handle, where the filesystem has them.
    fn handle(&self, path: &RelPath) -> Option<Handle>;
    /// The filesystem's own idea of now, against which times of files are compared.
    fn now_ns(&self) -> i64;
    /// True if inode numbers and ctime say something on this filesystem (not on exFAT, FUSE, NFS).
    fn stable_inodes(&self) -> bool;
    /// Checks again, on the open fd, that this is the disk that was proven; the reason if it is not.
    fn check(&self) -> Result<(), String>;
    /// Drops every fd but the root's.
    fn release(&self);
}

/// An open directory. It stays the one that was opened, wherever it is moved meanwhile.
pub trait Dir: Send + Sync {
    /// Gives every name but `.` and `..`, in no order, with whether it is a directory where the filesystem keeps that
    /// beside the name.
    fn names(&self, each: &mut dyn FnMut(&CStr, Option<bool>)) -> io::Result<()>;
    /// What stands at a name. One that is a mount point or another subvolume is an error: not ours to mirror.
    fn stat(&self, name: &CStr) -> io::Result<Stat>;
    /// Opens a directory in this one.
    fn dir(&self, name: &CStr) -> io::Result<Arc<dyn Dir>>;
}

/// An open regular file. Live: it may change while it is read, which `unchanged` tells afterwards.
pub trait SourceFile: Send + Sync {
    /// From the open fd, before the first read.
    fn stat(&self) -> &Stat;
    /// Reads at an offset; 0 at the end.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
    /// The next range that holds data at or after `from`, for sparse files; `None` when only a hole is left.
    fn next_data(&self, from: u64) -> io::Result<Option<Range<u64>>>;
    /// True if size, mtime and ctime are what they were before the first read.
    fn unchanged(&self) -> io::Result<bool>;
}

impl Kind {
    pub fn is_dir(self) -> bool {
        self == Kind::Dir
    }
}

impl fmt::Display for Stat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} bytes", self.kind, self.size)
    }
}
