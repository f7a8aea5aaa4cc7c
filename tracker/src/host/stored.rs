//! The service manager's store of descriptors (sd_pid_notify_with_fds(3)): what it kept for this start, by names, as their
//! order says nothing (measured on systemd 252), and what it is to keep.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use sd_notify::NotifyState;

use crate::intake::{keep, sys};

/// How long the service manager may take to say that it has the descriptors. Without its word they may be lost with
/// a process that dies at once: a gap at the next start.
const BARRIER_TIMEOUT: Timespec = Timespec { tv_sec: 5, tv_nsec: 0 };

#[derive(Default)]
pub(super) struct Stored(BTreeMap<String, Vec<OwnedFd>>);

impl Stored {
    /// Takes what was passed; to be called once. They are closed in children from here on.
    pub fn listen() -> Stored {
        let mut stored = Stored::default();
        match sd_notify::listen_fds_with_names() {
            Ok(passed) => {
                for (fd, name) in passed {
                    stored.0.entry(name).or_default().push(sys::inherited(fd));
                }
            }
            Err(e) => tracing::warn!("What the service manager passes cannot be used: {e}"),
        }
        stored
    }

    /// What stands under a name; of two it cannot be said which is the right one.
    pub fn take(&mut self, name: &str) -> Option<OwnedFd> {
        let mut found = self.0.remove(name)?;
        let one = found.pop();
        if found.is_empty() {
            return one;
        }
        remove(name);
        None
    }

    /// Closes what no filesystem of the configuration has and takes it out of the store: an event would be kept there
    /// for each change, for ever. Returns the names.
    pub fn discard_rest(&mut self) -> Vec<String> {
        let ours = std::mem::take(&mut self.0).into_keys().filter(|name| keep::is_ours(name));
        ours.inspect(|name| remove(name)).collect()
    }
}

pub(super) fn store(name: &str, fd: BorrowedFd<'_>) {
    told(sd_notify::notify_with_fds(&[NotifyState::FdStore, NotifyState::FdName(name)], &[fd]));
}

/// Takes what stands under this name out of the store.
pub(super) fn remove(name: &str) {
    told(sd_notify::notify(&[NotifyState::FdStoreRemove, NotifyState::FdName(name)]));
}

/// Waits until the service manager has done all it was told before.
pub(super) fn barrier() {
    if std::env::var_os("NOTIFY_SOCKET").is_none() {
        return;
    }
    let wait = || -> io::Result<bool> {
        let (ours, theirs) = UnixStream::pair()?;
        sd_notify::notify_with_fds(&[NotifyState::Custom("BARRIER=1")], &[theirs.as_fd()])?;
        drop(theirs);
        // It closes its end.
        Ok(poll(&mut [PollFd::new(&ours, PollFlags::IN)], Some(&BARRIER_TIMEOUT))? > 0)
    };
    match wait() {
        Ok(true) => {}
        Ok(false) => tracing::debug!("The service manager does not say whether it keeps the descriptors"),
        Err(e) => told(Err(e)),
    }
}

fn told(done: io::Result<()>) {
    if let Err(e) = done {
        tracing::warn!("The service manager cannot be told what to keep: {e}");
    }
}
