//! The machine itself.

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::event::EventfdFlags;
use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags};
use rustix::io::Errno;
use shared::clock::{self, Clock, SystemClock};
use shared::entry::Handle;
use shared::identity::Identity;
use shared::journal::{Change, Generation};

use super::stored::{self, Stored};
use super::{Host, Placed};
use crate::generation::{Whole, search};
use crate::intake::buffer::{Memfd, Unfit};
use crate::intake::fanotify::{GROUP_FLAGS, MARK_MASK, RING_MASK, refused};
use crate::intake::inotify::Inotify;
use crate::intake::{PlaceError, sys};
use crate::mounts::{self, Mount};
use crate::resolve::{MountError, OpenMount};
use crate::roots::{self, OpenRoot, OwnDir, Standing, TrackedRoot};

const QUEUE_MAX_FILE: &str = "/proc/sys/fs/fanotify/max_queued_events";
const GROUPS_MAX_FILE: &str = "/proc/sys/fs/fanotify/max_user_groups";
const QUEUE_MAX_DEFAULT: u64 = 16_384;
/// FIONREAD counts this many bytes for each event, whatever its length (measured on 6.18).
const FIONREAD_BYTES_PER_EVENT: u64 = 24;
/// STATX_MNT_ID_UNIQUE of statx(2), since Linux 6.8.
const MNT_ID_UNIQUE: StatxFlags = StatxFlags::from_bits_retain(0x4000);

/// Without what the service manager kept by default.
#[derive(Clone, Default)]
pub struct Linux {
    stored: Arc<Mutex<Stored>>,
}

impl Linux {
    /// Takes what the service manager passed; to be called once.
    pub fn listen() -> Linux {
        Linux { stored: Arc::new(Mutex::new(Stored::listen())) }
    }

    fn stored(&self) -> MutexGuard<'_, Stored> {
        self.stored.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Host for Linux {
    type Dir = OwnedFd;
    type Group = OwnedFd;
    type Memory = Memfd;
    type View = OpenMount;
    type Kept = OwnedFd;

    fn clock(&self) -> Arc<dyn Clock> {
        Arc::new(SystemClock)
    }

    fn boot_id(&self) -> io::Result<String> {
        clock::boot_id()
    }

    fn is_dir(&self, path: &Path) -> io::Result<bool> {
        Ok(std::fs::metadata(path)?.is_dir())
    }

    fn open_dir(&self, path: &Path) -> io::Result<OwnedFd> {
        roots::open_dir(path)
    }

    fn identify(&self, fd: OwnedFd) -> Result<OpenRoot, String> {
        let (identity, attachment) = Identity::of(&fd).map_err(|e| e.to_string())?;
        let handle = sys::name_to_handle(fd.as_fd(), c"").ok();
        Ok(OpenRoot { fd, attachment, identity, handle })
    }

    /// Without asking a far server, either.
    fn standing(&self, path: &Path) -> Option<Standing> {
        let wanted = StatxFlags::INO | MNT_ID_UNIQUE;
        let stat = rustix::fs::statx(rustix::fs::CWD, path, AtFlags::STATX_DONT_SYNC, wanted).ok()?;
        let told = stat.stx_mask & MNT_ID_UNIQUE.bits() != 0;
        let dev = (stat.stx_dev_major, stat.stx_dev_minor);
        told.then_some(Standing { mount: stat.stx_mnt_id, dev, inode: stat.stx_ino })
    }

    fn is_mount_point(&self, path: &Path) -> bool {
        let real = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        mounts::read().unwrap_or_default().iter().any(|m: &Mount| m.point == real)
    }

    fn mounts(&self) -> io::Result<Vec<Mount>> {
        mounts::read()
    }

    fn own_dir(&self, path: &Path) -> io::Result<OwnDir> {
        OwnDir::of(path)
    }

    fn view(&self, dev: u64) -> Result<OpenMount, MountError> {
        OpenMount::open(dev)
    }

    fn new_group(&self) -> Result<OwnedFd, PlaceError> {
        sys::fanotify_init(GROUP_FLAGS).map_err(no_group)
    }

    fn mark(&self, group: &OwnedFd, on: &OpenMount) -> io::Result<()> {
        let flags = libc::FAN_MARK_ADD | libc::FAN_MARK_FILESYSTEM;
        let with_errors = MARK_MASK | libc::FAN_FS_ERROR;
        sys::fanotify_mark(group.as_fd(), flags, with_errors, on.fd())
            .or_else(|_| sys::fanotify_mark(group.as_fd(), flags, MARK_MASK, on.fd()))
    }

    fn fdinfo(&self, group: &OwnedFd) -> io::Result<String> {
        std::fs::read_to_string(format!("/proc/self/fdinfo/{}", group.as_raw_fd()))
    }

    fn queue_max(&self) -> u64 {
        let told = std::fs::read_to_string(QUEUE_MAX_FILE).ok().and_then(|t| t.trim().parse().ok());
        told.unwrap_or(QUEUE_MAX_DEFAULT)
    }

    fn queued(&self, group: &OwnedFd) -> io::Result<u64> {
        Ok(rustix::io::ioctl_fionread(group)?.div_ceil(FIONREAD_BYTES_PER_EVENT))
    }

    fn read(&self, group: &OwnedFd, memory: &mut Memfd, range: Range<usize>) -> io::Result<usize> {
        memory.read_from(group.as_fd(), range)
    }

    fn read_aside(&self, group: &OwnedFd, into: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::io::read(group, into)?)
    }

    fn fd<'g>(&self, group: &'g OwnedFd) -> Option<BorrowedFd<'g>> {
        Some(group.as_fd())
    }

    fn ring(&self, group: &OwnedFd, dir: &OwnedFd, dev: u64) -> io::Result<Handle> {
        let opened = open_under_mark(group, dir.as_fd());
        match &opened {
            // In a subvolume of btrfs only the whole filesystem can have marks: then the top stands for the root.
            Err(e) if Errno::from_io_error(e) == Some(Errno::XDEV) => {
                let whole = OpenMount::open(dev).map_err(io::Error::other)?;
                open_under_mark(group, whole.fd())
            }
            _ => opened,
        }
    }

    fn unmark_dirs(&self, group: &OwnedFd, any: &OpenMount) -> io::Result<()> {
        unmark_dirs(group, any.fd())
    }

    fn place_instead(&self, roots: &[TrackedRoot], own: &[OwnDir]) -> Result<Placed<Memfd>, PlaceError> {
        let (source, seen) = Inotify::place(roots, own)?;
        Ok((Box::new(source), seen))
    }

    fn new_memory(&self) -> io::Result<Memfd> {
        Memfd::create()
    }

    fn take_kept(&self, name: &str) -> Option<OwnedFd> {
        self.stored().take(name)
    }

    fn group_of(&self, kept: OwnedFd) -> OwnedFd {
        kept
    }

    fn memory_of(&self, kept: OwnedFd) -> Result<Memfd, Unfit> {
        Memfd::open(kept)
    }

    fn discard_rest(&self) -> Vec<String> {
        self.stored().discard_rest()
    }

    fn keep_group(&self, name: &str, group: &OwnedFd) {
        stored::store(name, group.as_fd());
    }

    fn keep_memory(&self, name: &str, memory: &Memfd) {
        stored::store(name, memory.fd());
    }

    fn let_go(&self, name: &str) {
        stored::remove(name);
    }

    fn barrier(&self) {
        stored::barrier();
    }

    fn generation(&self, root: &OpenRoot) -> Result<Generation, Whole> {
        search::now(root)
    }

    fn mount_number(&self, root: &OpenRoot) -> Option<u64> {
        search::mount(root)
    }

    fn changes_since(
        &self,
        root: &TrackedRoot,
        open: &OpenRoot,
        own: &[OwnDir],
        since: u64,
    ) -> Result<Vec<Change>, Whole> {
        search::changes_since(root, open, own, since)
    }

    fn sync(&self, dir: &OwnedFd) -> io::Result<()> {
        Ok(rustix::fs::syncfs(dir)?)
    }
}

fn no_group(e: io::Error) -> PlaceError {
    let flags = EventfdFlags::CLOEXEC;
    // The same error tells of too many open files.
    if Errno::from_io_error(&e) != Some(Errno::MFILE) || rustix::event::eventfd(0, flags).is_err() {
        return refused(e);
    }
    let max = std::fs::read_to_string(GROUPS_MAX_FILE).unwrap_or_default();
    PlaceError::NoGroup { max: max.trim().to_owned() }
}

fn unmark_dirs(group: &OwnedFd, any: BorrowedFd<'_>) -> io::Result<()> {
    sys::fanotify_mark(group.as_fd(), libc::FAN_MARK_FLUSH, 0, any)
}

fn open_under_mark(group: &OwnedFd, dir: BorrowedFd<'_>) -> io::Result<Handle> {
    let handle = sys::name_to_handle(dir, c"")?;
    sys::fanotify_mark(group.as_fd(), libc::FAN_MARK_ADD, RING_MASK, dir)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened = rustix::fs::openat(dir, c".", flags, Mode::empty());
    unmark_dirs(group, dir)?;
    opened?;
    Ok(handle)
}
