//! The canary: proof that what happens at the roots comes to this group. Each root is opened under a mark of its own
//! for just that, which the group must tell. Nothing is written.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use shared::entry::Handle;
use shared::limits;

use super::Fanotify;
use super::place::open_roots;
use crate::intake::records::{Record, Records};
use crate::intake::{PlaceError, sys};
use crate::mounts;
use crate::resolve::OpenMount;

const MASK: u64 = libc::FAN_OPEN | libc::FAN_ONDIR;

/// What is known of one root's canary.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) enum Canary {
    /// Not asked for, or it cannot be.
    #[default]
    None,
    /// This directory was opened.
    Awaited(Handle),
    Heard,
}

impl Canary {
    pub(super) fn heard(&self) -> Option<bool> {
        match self {
            Canary::None => None,
            Canary::Awaited(_) => Some(false),
            Canary::Heard => Some(true),
        }
    }
}

/// Takes away all marks on single directories, and no event: a tracker that was killed under its canary left one.
pub(super) fn unmark_dirs(group: BorrowedFd<'_>, any: BorrowedFd<'_>) -> io::Result<()> {
    sys::fanotify_mark(group, libc::FAN_MARK_FLUSH, 0, any)
}

impl Fanotify {
    /// Opens every root that is there. What is told of it is read like any event.
    pub(super) fn ring_roots(&mut self) {
        let all = mounts::read().unwrap_or_default();
        let (open, _) = open_roots(&self.roots, &all);
        let ring = |open: crate::roots::OpenRoot| match self.open_marked(open.fd.as_fd()) {
            Ok(handle) => Canary::Awaited(handle),
            Err(e) => {
                tracing::debug!("no canary at {}: {e}", self.fs);
                Canary::None
            }
        };
        self.canaries = open.into_iter().map(|open| open.map_or(Canary::None, ring)).collect();
    }

    fn open_marked(&self, root: BorrowedFd<'_>) -> io::Result<Handle> {
        let opened = self.open_under_mark(root);
        match &opened {
            // In a subvolume of btrfs only the whole filesystem can have marks: then the top stands for the root.
            Err(e) if Errno::from_io_error(e) == Some(Errno::XDEV) => {
                let whole = OpenMount::open(self.dev).map_err(io::Error::other)?;
                self.open_under_mark(whole.fd())
            }
            _ => opened,
        }
    }

    fn open_under_mark(&self, dir: BorrowedFd<'_>) -> io::Result<Handle> {
        let handle = sys::name_to_handle(dir, c"")?;
        sys::fanotify_mark(self.group.as_fd(), libc::FAN_MARK_ADD, MASK, dir)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = rustix::fs::openat(dir, c".", flags, Mode::empty());
        unmark_dirs(self.group.as_fd(), dir)?;
        opened?;
        Ok(handle)
    }

    /// True if nothing but a canary is in the event.
    pub(super) fn hear(&mut self, record: &Record<'_>) -> bool {
        if record.mask & libc::FAN_OPEN == 0 {
            return false;
        }
        if let Some(at) = record.at {
            let dir = at.dir.to_handle();
            let told = |canary: &Canary| matches!(canary, Canary::Awaited(handle) if *handle == dir);
            self.canaries.iter_mut().filter(|c| told(c)).for_each(|c| *c = Canary::Heard);
        }
        record.mask & !MASK == 0
    }

    /// For a group that was just made: what it tells meanwhile is covered by the gap that follows, and dropped.
    pub(super) fn prove(&mut self) -> Result<(), PlaceError> {
        self.ring_roots();
        let mut scratch = vec![0; limits::INTAKE_READ_BYTES];
        while let Some(silent) = self.canaries.iter().position(|c| c.heard() == Some(false)) {
            let bytes = match rustix::io::read(&self.group, &mut scratch) {
                Ok(bytes) => bytes,
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => {
                    return Err(PlaceError::Silent { root: self.roots[silent].name.clone() });
                }
                Err(e) => return Err(PlaceError::Io { op: "read events", source: e.into() }),
            };
            for record in Records::new(&scratch[..bytes]).flatten() {
                if record.is_overflow() {
                    // Its event may be among the lost ones.
                    return Ok(());
                }
                self.hear(&record);
            }
        }
        Ok(())
    }
}
