//! Opens what lies below one directory, a component at a time, and never anything that lies elsewhere: no symlink,
//! no mount, no other subvolume is followed (openat2(2), statx(2)).

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, RawDir, ResolveFlags, SeekFrom, Statx, StatxAttributes, StatxFlags,
    StatxTimestamp,
};
use rustix::io::Errno;
use rustix::path::Arg;
use shared::path::RelPath;

use crate::tree::{Kind, Stat};

/// Directory fds remembered at most: the parents of the last path. Deeper ones are walked each time.
const DIRS_KEPT_MAX: usize = 64;
/// STATX_SUBVOL of linux/stat.h (Linux 6.10).
const STATX_SUBVOL: StatxFlags = StatxFlags::from_bits_retain(0x8000);
const RESOLVE: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);
const READ_DIR: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
const GETDENTS_BYTES: usize = 32 * 1024;

/// A directory and what was last walked below it. An fd of a directory stays good when the directory is renamed,
/// so an answer reached through a remembered one may be as old as the last `forget`.
pub(crate) struct Beneath {
    root: Arc<OwnedFd>,
    place: Place,
    kept: Mutex<Kept>,
}

/// The components of the path last walked, each with its fd.
type Kept = Vec<(Box<[u8]>, Arc<OwnedFd>)>;

/// What must be equal for two files to be on the same part of one filesystem.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    dev: (u32, u32),
    subvolume: Option<u64>,
}

/// An O_PATH fd of anything, itself if it is a symlink, with its stat.
pub(crate) struct Pinned {
    pub fd: OwnedFd,
    pub stat: Stat,
}

/// Why a path cannot be pinned.
#[derive(Debug)]
pub(crate) enum Miss {
    /// The kernel said ENOENT for `at` on its pinned parent.
    Absent { at: RelPath },
    /// `at` is there and no directory, while the path goes on.
    NotDir { at: RelPath },
    /// Anything else.
    Failed { at: RelPath, source: io::Error },
}

impl Miss {
    pub fn into_error(self) -> (RelPath, io::Error) {
        match self {
            Miss::Absent { at } => (at, Errno::NOENT.into()),
            Miss::NotDir { at } => (at, Errno::NOTDIR.into()),
            Miss::Failed { at, source } => (at, source),
        }
    }
}

impl Beneath {
    /// The last component of `path` must be a directory itself; symlinks before it are the owner's choice.
    pub fn open(path: &Path) -> io::Result<Beneath> {
        let fd = rustix::fs::open(path, READ_DIR | OFlags::NOFOLLOW, Mode::empty())?;
        Beneath::at(Arc::new(fd))
    }

    /// What lies below an open directory.
    pub fn at(root: Arc<OwnedFd>) -> io::Result<Beneath> {
        let place = Place::of(&statx(root.as_fd())?);
        Ok(Beneath { root, place, kept: Mutex::new(Vec::new()) })
    }

    pub fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Pins what stands at `path`. A remembered directory may lead to it, but never to a miss.
    pub fn pin(&self, path: &RelPath) -> Result<Pinned, Miss> {
        self.pin_through(path, true).or_else(|_| self.pin_anew(path))
    }

    /// Walks from the root fd, whatever is remembered.
    pub fn pin_anew(&self, path: &RelPath) -> Result<Pinned, Miss> {
        self.pin_through(path, false)
    }

    /// The directory at `path`, as an O_PATH fd; missing ones are made, readable by nobody else, if `make`.
    pub fn dir(&self, path: &RelPath, make: bool) -> Result<Arc<OwnedFd>, Miss> {
        self.walk(path, true, make).or_else(|_| self.walk(path, false, make))
    }

    /// Drops every fd but the root's.
    pub fn forget(&self) {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    fn pin_through(&self, path: &RelPath, remembered: bool) -> Result<Pinned, Miss> {
        let (parent, name) = match (path.parent(), path.name()) {
            (Some(parent), Some(name)) => (self.walk(&parent, remembered, false)?, name),
            _ => (Arc::clone(&self.root), b".".as_slice()),
        };
        self.pin_name(parent.as_fd(), name).map_err(|source| miss(path.clone(), source))
    }

    fn walk(&self, dir: &RelPath, remembered: bool, make: bool) -> Result<Arc<OwnedFd>, Miss> {
        let names: Vec<&[u8]> = dir.components().collect();
        let known = if remembered { self.longest_known(&names) } else { Vec::new() };
        let mut fd = known.last().map_or_else(|| Arc::clone(&self.root), Arc::clone);
        let mut fresh = Kept::new();
        for (depth, name) in names.iter().enumerate().skip(known.len()) {
            let at = || prefix(&names[..=depth]);
            let mut step = self.pin_name(fd.as_fd(), name);
            if make && matches!(&step, Err(e) if e.kind() == io::ErrorKind::NotFound) {
                match rustix::fs::mkdirat(&fd, *name, Mode::RWXU) {
                    Ok(()) | Err(Errno::EXIST) => step = self.pin_name(fd.as_fd(), name),
                    Err(e) => return Err(miss(at(), e.into())),
                }
            }
            let pinned = step.map_err(|source| miss(at(), source))?;
            if !pinned.stat.kind.is_dir() {
                return Err(Miss::NotDir { at: at() });
            }
            fd = Arc::new(pinned.fd);
            if depth < DIRS_KEPT_MAX {
                fresh.push((Box::from(*name), Arc::clone(&fd)));
            }
        }
        self.remember(&known, fresh);
        Ok(fd)
    }

    /// The remembered fds of the leading components of `names`.
    fn longest_known(&self, names: &[&[u8]]) -> Vec<Arc<OwnedFd>> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let same = kept.iter().zip(names).take_while(|((kept, _), name)| kept.as_ref() == **name);
        same.map(|((_, fd), _)| Arc::clone(fd)).collect()
    }

    /// Another thread may have walked elsewhere meanwhile: then its parents stay.
    fn remember(&self, known: &[Arc<OwnedFd>], fresh: Kept) {
        if fresh.is_empty() {
            return;
        }
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if known.last().is_none_or(|fd| kept.get(known.len() - 1).is_some_and(|(_, k)| Arc::ptr_eq(k, fd))) {
            kept.truncate(known.len());
            kept.extend(fresh);
        }
    }

    /// Pins one name of an open directory.
    pub fn pin_name(&self, parent: BorrowedFd<'_>, name: &[u8]) -> io::Result<Pinned> {
        self.place.pin_name(parent, name)
    }

    pub fn place(&self) -> Place {
        self.place
    }

    /// What stands at the names of an open directory; names that lead out of this part of the filesystem are errors.
    pub fn stat_name(&self, dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<Stat> {
        self.place.stat_name(dir, name)
    }
}

impl Pinned {
    /// A way to name the pinned thing to calls that take only paths. It ends at a pinned symlink itself.
    pub fn proc_path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.fd.as_raw_fd()))
    }

    /// Opens a pinned directory for reading.
    pub fn read_dir(&self) -> io::Result<OwnedFd> {
        Ok(rustix::fs::openat2(&self.fd, ".", READ_DIR, Mode::empty(), RESOLVE)?)
    }

    /// Opens a pinned regular file for reading. A file under a lease answers EWOULDBLOCK (fcntl(2)).
    pub fn read(&self) -> io::Result<File> {
        if self.stat.kind != Kind::File {
            let message = format!("a regular file is expected, a {} is there", self.stat.kind);
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        Ok(rustix::fs::open(self.proc_path(), flags, Mode::empty())?.into())
    }
}

/// All names of an open directory but `.` and `..`, with their kind where the filesystem keeps it beside them.
pub(crate) fn names(dir: BorrowedFd<'_>) -> io::Result<Vec<(Vec<u8>, FileType)>> {
    let mut out = Vec::new();
    each_name(dir, |name, kind| out.push((name.to_bytes().to_vec(), kind)))?;
    Ok(out)
}

/// The same, one at a time, from the directory's beginning.
pub(crate) fn each_name(dir: BorrowedFd<'_>, mut each: impl FnMut(&CStr, FileType)) -> io::Result<()> {
    rustix::fs::seek(dir, SeekFrom::Start(0))?;
    let mut buffer = vec![MaybeUninit::uninit(); GETDENTS_BYTES];
    let mut entries = RawDir::new(dir, &mut buffer);
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            each(name, entry.file_type());
        }
    }
    Ok(())
}

/// The stat of an open file.
pub(crate) fn stat(fd: BorrowedFd<'_>) -> io::Result<Stat> {
    stat_of(&statx(fd)?)
}

fn wanted() -> StatxFlags {
    StatxFlags::BASIC_STATS | StatxFlags::BTIME | STATX_SUBVOL
}

fn statx(fd: BorrowedFd<'_>) -> io::Result<Statx> {
    Ok(rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH, wanted())?)
}

impl Place {
    pub fn pin_name(&self, parent: BorrowedFd<'_>, name: impl Arg) -> io::Result<Pinned> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat2(parent, name, flags, Mode::empty(), RESOLVE).map_err(|e| match e {
            Errno::XDEV => elsewhere("another filesystem is mounted here"),
            e => e.into(),
        })?;
        let statx = statx(fd.as_fd())?;
        self.check(&statx)?;
        Ok(Pinned { stat: stat_of(&statx)?, fd })
    }

    pub fn stat_name(&self, dir: BorrowedFd<'_>, name: impl Arg) -> io::Result<Stat> {
        let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
        let statx = rustix::fs::statx(dir, name, flags, wanted())?;
        if statx.stx_attributes.contains(StatxAttributes::MOUNT_ROOT) {
            return Err(elsewhere("another filesystem is mounted here"));
        }
        self.check(&statx)?;
        stat_of(&statx)
    }

    fn of(statx: &Statx) -> Place {
        let known = statx.stx_mask & STATX_SUBVOL.bits() != 0;
        Place {
            dev: (statx.stx_dev_major, statx.stx_dev_minor),
            subvolume: known.then_some(statx.stx_subvol),
        }
    }

    fn check(&self, statx: &Statx) -> io::Result<()> {
        let seen = Place::of(statx);
        let same_subvolume = self.subvolume.zip(seen.subvolume).is_none_or(|(a, b)| a == b);
        if seen.dev == self.dev && same_subvolume {
            return Ok(());
        }
        let text = |p: &Place| match p.subvolume {
            Some(subvolume) => format!("device {}:{} subvolume {subvolume}", p.dev.0, p.dev.1),
            None => format!("device {}:{}", p.dev.0, p.dev.1),
        };
        Err(elsewhere(&format!(
            "another filesystem or subvolume: {} expected, {} seen",
            text(self),
            text(&seen)
        )))
    }
}

fn elsewhere(message: &str) -> io::Error {
    io::Error::new(io::ErrorKind::CrossesDevices, message)
}

fn miss(at: RelPath, source: io::Error) -> Miss {
    match source.raw_os_error() {
        Some(code) if code == Errno::NOENT.raw_os_error() => Miss::Absent { at },
        _ => Miss::Failed { at, source },
    }
}

fn prefix(names: &[&[u8]]) -> RelPath {
    RelPath::parse(&names.join(&b'/')).expect("components of a path make a path")
}

fn stat_of(statx: &Statx) -> io::Result<Stat> {
    let mode = u32::from(statx.stx_mode);
    let kind = match FileType::from_raw_mode(mode) {
        FileType::RegularFile => Kind::File,
        FileType::Directory => Kind::Dir,
        FileType::Symlink => Kind::Symlink,
        FileType::Fifo => Kind::Fifo,
        FileType::Socket => Kind::Socket,
        FileType::CharacterDevice => Kind::CharDevice,
        FileType::BlockDevice => Kind::BlockDevice,
        FileType::Unknown => return Err(io::Error::other(format!("unknown file type in mode {mode:o}"))),
    };
    let ns = |t: &StatxTimestamp| t.tv_sec.saturating_mul(1_000_000_000).saturating_add(i64::from(t.tv_nsec));
    let born = statx.stx_mask & StatxFlags::BTIME.bits() != 0;
    Ok(Stat {
        kind,
        size: statx.stx_size,
        mtime_ns: ns(&statx.stx_mtime),
        ctime_ns: ns(&statx.stx_ctime),
        btime_ns: born.then(|| ns(&statx.stx_btime)),
        ino: statx.stx_ino,
        mode: mode & 0o7777,
        uid: statx.stx_uid,
        gid: statx.stx_gid,
        nlink: u64::from(statx.stx_nlink),
        rdev: rustix::fs::makedev(statx.stx_rdev_major, statx.stx_rdev_minor),
    })
}
