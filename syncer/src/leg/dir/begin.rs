//! What must be true of a destination before the first write.

use std::fmt::Display;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags, StatxFlags};
use rustix::io::Errno;
use rustix::thread::CapabilitySet;
use shared::exit::Exit;
use shared::identity::Identity;
use shared::path::RelPath;

use super::{Inner, Place, STATE, Writing, failed, missed, state, trash};
use crate::leg::{Problem, StoreError};
use crate::tree::beneath::{self, Beneath, Miss};

const OP: &str = "use";

/// What the process may do to files at the destination.
#[derive(Debug, Clone, Copy)]
pub struct Rights {
    pub owners: bool,
    pub devices: bool,
    /// Enters and fills directories whatever their mode says.
    pub any_directory: bool,
}

impl Rights {
    fn held() -> Rights {
        let held = rustix::thread::capabilities(None).map_or(CapabilitySet::empty(), |sets| sets.effective);
        Rights {
            owners: held.contains(CapabilitySet::CHOWN | CapabilitySet::FOWNER),
            devices: held.contains(CapabilitySet::MKNOD),
            any_directory: held.contains(CapabilitySet::DAC_OVERRIDE),
        }
    }
}

impl Inner {
    /// Changes nothing, so it takes no lock and asks for no room.
    pub fn open(&self) -> Result<(), StoreError> {
        let destination = self.setup.destination.display();
        let below = Beneath::open(&self.setup.destination).map_err(|e| {
            self.refuse(format!("{e}; it must be a directory: make it, or mount the disk it is on"))
        })?;
        self.refuse_nesting(&below)?;
        let (identity, _) =
            Identity::of(below.root()).map_err(|e| failed(OP, &destination, io::Error::other(e)))?;
        let disk = identity.to_string();
        let identity =
            serde_json::to_string(&identity).map_err(|e| failed(OP, &destination, io::Error::other(e)))?;
        let first = self.place.set(Place { below, identity, disk }).is_ok();
        assert!(first, "`open` is called once");
        Ok(())
    }

    pub fn prepare(&self) -> Result<(), StoreError> {
        let destination = self.setup.destination.display();
        let Place { below, disk, .. } = self.place();
        self.check_room(below.root(), disk)?;
        let newest_ns = newest_trace(below).map_err(|e| failed("look at", state("trash"), e))?;

        let tmp = self.state_dir(below, "tmp")?;
        lock(tmp.as_fd()).map_err(|problem| match problem {
            Errno::WOULDBLOCK => {
                let message = "another run is writing to it";
                StoreError::new(OP, &destination, Problem::Stop(Exit::TryLater), message)
            }
            e => failed("lock", state("tmp"), e),
        })?;
        let trash = trash::Trash::new(self.state_dir(below, "trash")?, self.setup.run)
            .map_err(|e| failed("open", state("trash"), e))?;
        let now_ns = self.setup.clock.wall_ns();
        let due = trash
            .due(self.setup.trash_days, now_ns, newest_ns)
            .map_err(|e| failed("list", state("trash"), e))?;
        for name in due {
            trash
                .give_up(&name, tmp.as_fd(), &self.temp_name())
                .map_err(|e| failed("empty", state("trash"), e))?;
        }
        trash::clean(tmp.as_fd(), || self.temp_name()).map_err(|e| failed("clean", state("tmp"), e))?;
        self.refuse_merging_names(tmp.as_fd())?;

        let rights = Rights::held();
        if !(rights.owners && rights.devices) {
            tracing::info!(%destination, ?rights, "Owners or devices cannot be set here; the catalog keeps them");
        }
        let first = self.writing.set(Writing { tmp, trash, rights }).is_ok();
        assert!(first, "`prepare` is called once");
        Ok(())
    }

    /// A name in `.longshore/tmp` that no other run and no other thread takes.
    pub fn temp_name(&self) -> String {
        let count = self.temp_count.fetch_add(1, Ordering::Relaxed);
        format!("{}-{:x}-{count}", self.setup.run, self.setup.clock.boot_ns())
    }

    fn refuse(&self, message: impl Display) -> StoreError {
        StoreError::new(OP, self.setup.destination.display(), Problem::Stop(Exit::Config), message)
    }

    /// One of our own directories, made if it is missing, open for reading.
    fn state_dir(&self, below: &Beneath, name: &str) -> Result<Arc<OwnedFd>, StoreError> {
        let path = state(name);
        let refused = |miss| match miss {
            Miss::NotDir { at } => self.refuse(format!("{at} in it is no directory; take it away")),
            miss => missed(OP, miss),
        };
        below.dir(&path, true).map_err(refused)?;
        let pinned = below.pin(&path).map_err(refused)?;
        Ok(Arc::new(pinned.read_dir().map_err(|e| failed(OP, path, e))?))
    }

    /// A mirror inside what it mirrors would feed itself; one around it would overwrite it.
    fn refuse_nesting(&self, below: &Beneath) -> Result<(), StoreError> {
        let destination = self.setup.destination.display();
        for source in &self.setup.sources {
            let error = |e: io::Error| failed("look at", source.display(), e);
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let root = match rustix::fs::open(source, flags, Mode::empty()) {
                Ok(root) => root,
                // Not there now: nothing of it is read in this run.
                Err(Errno::NOENT | Errno::NOTDIR) => continue,
                Err(e) => return Err(error(e.into())),
            };
            if lies_within(below.root(), root.as_fd()).map_err(error)? {
                let message =
                    format!("it lies in the root {}: the mirror would feed itself", source.display());
                return Err(self.refuse(message));
            }
            if lies_within(root.as_fd(), below.root()).map_err(|e| failed("look at", &destination, e))? {
                let message =
                    format!("the root {} lies in it: the mirror would overwrite it", source.display());
                return Err(self.refuse(message));
            }
        }
        Ok(())
    }

    /// Two names that differ in case must be two files.
    fn refuse_merging_names(&self, tmp: BorrowedFd<'_>) -> Result<(), StoreError> {
        let lower = format!("canary-{}", self.temp_name());
        if are_one(tmp, &lower, &lower.to_uppercase()).map_err(|e| failed("write to", state("tmp"), e))? {
            let message = "its filesystem takes names that differ in case for one, and would merge files; \
                           use another one";
            return Err(self.refuse(message));
        }
        Ok(())
    }
}

/// True if a file made under one name is found under the other.
fn are_one(dir: BorrowedFd<'_>, one: &str, other: &str) -> io::Result<bool> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    drop(rustix::fs::openat(dir, one, flags, Mode::RUSR | Mode::WUSR)?);
    let found = rustix::fs::statat(dir, other, AtFlags::SYMLINK_NOFOLLOW);
    rustix::fs::unlinkat(dir, one, AtFlags::empty())?;
    match found {
        Ok(_) => Ok(true),
        Err(Errno::NOENT) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

/// The lock lasts until the run's last fd of the directory is closed.
fn lock(tmp: BorrowedFd<'_>) -> Result<(), Errno> {
    rustix::fs::flock(tmp, FlockOperation::NonBlockingLockExclusive)
}

/// When an earlier run last changed something in our own directories; `None` if there was none.
fn newest_trace(below: &Beneath) -> io::Result<Option<i64>> {
    let mut newest = None;
    for dir in [RelPath::parse(STATE).expect("a constant name is a path"), state("trash")] {
        let open = match below.pin(&dir) {
            Ok(pinned) if pinned.stat.kind.is_dir() => pinned.read_dir()?,
            Err(Miss::Failed { source, .. }) => return Err(source),
            _ => continue,
        };
        for (name, _) in beneath::names(open.as_fd())? {
            newest = newest.max(Some(below.stat_name(open.as_fd(), &name)?.mtime_ns));
        }
    }
    Ok(newest)
}

/// True if `inner` is `outer` or lies below it, by walking up. It ends where the filesystem does: no tree of ours
/// reaches into another one.
fn lies_within(inner: BorrowedFd<'_>, outer: BorrowedFd<'_>) -> io::Result<bool> {
    let key = |fd: BorrowedFd<'_>| {
        let s = rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS)?;
        io::Result::Ok(((s.stx_dev_major, s.stx_dev_minor), s.stx_ino))
    };
    let outer = key(outer)?;
    let mut at = inner.try_clone_to_owned()?;
    loop {
        let here = key(at.as_fd())?;
        if here == outer {
            return Ok(true);
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let up = rustix::fs::openat(&at, "..", flags, Mode::empty())?;
        let above = key(up.as_fd())?;
        if above == here || above.0 != here.0 {
            return Ok(false);
        }
        at = up;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_lead_to_one_file_are_found_out() {
        let dir = tempfile::tempdir().unwrap();
        let fd = rustix::fs::open(dir.path(), OFlags::RDONLY, Mode::empty()).unwrap();
        assert!(!are_one(fd.as_fd(), "canary", "CANARY").unwrap());
        // A filesystem that ignores case answers as this one does for one spelling.
        assert!(are_one(fd.as_fd(), "canary", "canary").unwrap());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
