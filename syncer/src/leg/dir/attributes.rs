//! Owner, mode, extended attributes and times. What cannot be set for want of rights or support is counted and said
//! once, and is no error: the catalog keeps it.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::Ordering;

use rustix::fs::{AtFlags, CWD, Gid, Mode, Timespec, Timestamps, UTIME_OMIT, Uid};
use rustix::io::Errno;

use super::{Inner, failed};
use crate::leg::{Put, StoreError};
use crate::tree::beneath::Pinned;
use crate::tree::{Kind, Xattrs};

const OP: &str = "set the attributes of";

impl Inner {
    /// In this order: chown(2) clears setuid, setgid and `security.capability`; an ACL changes the mode it came with
    /// to itself; all of them leave mtime alone.
    pub fn apply(&self, put: &Put, pinned: &Pinned) -> Result<(), StoreError> {
        let want = &put.stat;
        let tolerate = |what: &'static str, result: io::Result<()>| self.tolerate(put, what, result);
        let mut mode = want.mode;
        if (want.uid, want.gid) != (pinned.stat.uid, pinned.stat.gid) {
            let (uid, gid) = (Uid::from_raw(want.uid), Gid::from_raw(want.gid));
            let set = rustix::fs::chownat(&pinned.fd, "", Some(uid), Some(gid), AtFlags::EMPTY_PATH);
            if !tolerate("owner", set.map_err(io::Error::from))? && !want.kind.is_dir() {
                mode &= !0o6000; // setuid of another owner than meant
            }
        }
        if want.kind.is_dir() && !self.writing().rights.any_directory {
            mode |= 0o700; // else the next run could not fill it
        }
        let path = pinned.proc_path();
        if want.kind != Kind::Symlink {
            let set = rustix::fs::chmodat(CWD, &path, Mode::from_raw_mode(mode), AtFlags::empty());
            tolerate("mode", set.map_err(io::Error::from))?;
        }
        tolerate("extended attributes", set_xattrs(&path, &put.xattrs))?;
        let times = Timestamps {
            last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
            last_modification: Timespec {
                tv_sec: want.mtime_ns.div_euclid(1_000_000_000),
                tv_nsec: want.mtime_ns.rem_euclid(1_000_000_000),
            },
        };
        let set = rustix::fs::utimensat(&pinned.fd, "", &times, AtFlags::EMPTY_PATH);
        tolerate("times", set.map_err(io::Error::from))?;
        Ok(())
    }

    /// False if it could not be set and need not be.
    fn tolerate(&self, put: &Put, what: &'static str, result: io::Result<()>) -> Result<bool, StoreError> {
        match result {
            Ok(()) => Ok(true),
            Err(e) if is_tolerable(&e) => {
                let dest = &put.dest;
                if self.unset_count.fetch_add(1, Ordering::Relaxed) == 0 {
                    tracing::warn!(%dest, what, error = %e, "Cannot set it at the destination; more are only counted");
                }
                Ok(false)
            }
            Err(e) => Err(failed(OP, &put.dest, e)),
        }
    }
}

/// ENOSPC is here because ext4 says it of attributes that are too large for their block; a full disk shows elsewhere.
fn is_tolerable(error: &io::Error) -> bool {
    let Some(errno) = error.raw_os_error().map(Errno::from_raw_os_error) else {
        return false;
    };
    let tolerable = [
        Errno::PERM,
        Errno::ACCESS,
        Errno::OPNOTSUPP,
        Errno::INVAL,
        Errno::TOOBIG,
        Errno::RANGE,
        Errno::NOSPC,
    ];
    tolerable.contains(&errno)
}

/// Sets those that are wanted and removes the others. All are tried; the first error is told.
fn set_xattrs(path: &Path, wanted: &Xattrs) -> io::Result<()> {
    let standing = match xattr::list_deref(path) {
        Ok(standing) => standing.collect(),
        Err(e) if e.kind() == io::ErrorKind::Unsupported && wanted.is_empty() => Vec::new(),
        Err(e) => return Err(e),
    };
    let mut result = Ok(());
    for name in &standing {
        // A label is the policy's business, and there is no taking it away.
        if name != "security.selinux" && !wanted.iter().any(|(n, _)| n == name.as_bytes()) {
            result = result.and(xattr::remove_deref(path, name));
        }
    }
    for (name, value) in wanted {
        result = result.and(xattr::set_deref(path, OsStr::from_bytes(name), value));
    }
    result
}
