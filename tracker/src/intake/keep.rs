//! What of a filesystem's source outlives the process, in the service manager's keeping: the group and the buffer
//! (sd_pid_notify_with_fds(3)). Without a service manager nothing is kept, and each start is a gap.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use sd_notify::NotifyState;
use shared::entry::Cause;
use shared::journal::JournalId;
use shared::kill;

use super::buffer::{Buffer, Lasting, RootMark, Unfit};

/// How long the service manager may take to say that it has the descriptors. Without its word they may be lost with
/// a process that dies at once: a gap at the next start.
const BARRIER_TIMEOUT: Timespec = Timespec { tv_sec: 5, tv_nsec: 0 };
/// Longest name that the service manager takes (FDNAME_MAX).
const NAME_BYTES_MAX: usize = 255;
const GROUP: &str = "group.";
const BUFFER: &str = "buffer.";

/// True for a name that only a tracker gives.
pub fn is_ours(name: &str) -> bool {
    name.starts_with(GROUP) || name.starts_with(BUFFER)
}

/// What one filesystem has in the store.
pub struct Keep {
    fs: String,
    boot_id: String,
    journal_id: JournalId,
    /// What an earlier instance left, until it is looked at.
    group: Option<OwnedFd>,
    left: Option<OwnedFd>,
    /// Of a source that is no more, for the next one.
    buffer: Option<Buffer>,
    /// Something may be in the store under our name.
    group_stored: bool,
    buffer_stored: bool,
}

impl Keep {
    /// `find` looks for what the service manager passed under a name.
    pub fn new(
        fs: &str,
        boot_id: &str,
        journal_id: JournalId,
        mut find: impl FnMut(&str) -> Option<OwnedFd>,
    ) -> Keep {
        let fs = printable(fs);
        let (group, left) = (find(&format!("{GROUP}{fs}")), find(&format!("{BUFFER}{fs}")));
        Keep {
            group_stored: group.is_some(),
            buffer_stored: left.is_some(),
            fs,
            boot_id: boot_id.to_owned(),
            journal_id,
            group,
            left,
            buffer: None,
        }
    }

    /// True if an earlier instance left something that may be adopted.
    pub fn has_group(&self) -> bool {
        self.group.is_some()
    }

    pub fn take_group(&mut self) -> Option<OwnedFd> {
        self.group.take()
    }

    /// The buffer that an earlier instance left, if it is of this boot and this journal.
    pub fn take_left(&mut self) -> Result<Buffer, Unfit> {
        let fd = self.left.take().ok_or(Unfit::File("it is not there".to_owned()))?;
        let buffer = Buffer::open(fd)?;
        if buffer.lasting().boot_id != self.boot_id {
            return Err(Unfit::Boot);
        }
        if buffer.lasting().journal_id != self.journal_id.0 {
            return Err(Unfit::Journal);
        }
        if buffer.is_anew() {
            self.store_buffer(&buffer);
            barrier();
        }
        Ok(buffer)
    }

    /// A buffer for a new group that has not been marked yet, and both into the store.
    pub fn keep(&mut self, group: BorrowedFd<'_>, roots: &[RootMark]) -> io::Result<Buffer> {
        self.left = None;
        let buffer = match self.buffer.take() {
            Some(mut buffer) => {
                buffer.begin_anew(roots.to_vec(), Cause::Start);
                buffer
            }
            None => {
                let lasting = Lasting {
                    buffer_id: rand::random(),
                    boot_id: self.boot_id.clone(),
                    journal_id: self.journal_id.0,
                    roots: roots.to_vec(),
                };
                let buffer = Buffer::create(lasting, Cause::Start)?;
                self.store_buffer(&buffer);
                buffer
            }
        };
        self.forget_group();
        kill::point("placing");
        store(&format!("{GROUP}{}", self.fs), group);
        self.group_stored = true;
        kill::point("placing");
        barrier();
        Ok(buffer)
    }

    /// In the place of the one before.
    fn store_buffer(&mut self, buffer: &Buffer) {
        let name = format!("{BUFFER}{}", self.fs);
        remove(&name);
        kill::point("placing");
        self.buffer_stored = true;
        store(&name, buffer.fd());
        kill::point("placing");
    }

    pub fn give_buffer(&mut self, buffer: Buffer) {
        self.buffer = Some(buffer);
    }

    pub fn take_buffer(&mut self) -> Option<Buffer> {
        self.buffer.take()
    }

    /// A source ended: its group goes out of the store, where nobody would read it, and its buffer is for the next.
    pub fn give_back(&mut self, buffer: Option<Buffer>) {
        self.buffer = buffer.or(self.buffer.take());
        self.forget_group();
    }

    /// The filesystem is served by a source of which nothing can be kept.
    pub fn forget(&mut self) {
        self.forget_group();
        self.left = None;
        if std::mem::take(&mut self.buffer_stored) {
            self.buffer = None;
            remove(&format!("{BUFFER}{}", self.fs));
        }
    }

    fn forget_group(&mut self) {
        self.group = None;
        if std::mem::take(&mut self.group_stored) {
            remove(&format!("{GROUP}{}", self.fs));
        }
    }
}

/// A name may hold no colon and nothing that is not printable ASCII.
fn printable(fs: &str) -> String {
    let mut name: String =
        fs.chars().map(|c| if c.is_ascii_graphic() && c != ':' { c } else { '_' }).collect();
    let room = NAME_BYTES_MAX - BUFFER.len();
    if name != fs || name.len() > room {
        // What was changed could be the name of two.
        let sum = format!("~{:016x}", xxhash_rust::xxh3::xxh3_64(fs.as_bytes()));
        name.truncate(room - sum.len());
        name += &sum;
    }
    name
}

fn store(name: &str, fd: BorrowedFd<'_>) {
    told(sd_notify::notify_with_fds(&[NotifyState::FdStore, NotifyState::FdName(name)], &[fd]));
}

/// Takes what stands under this name out of the store.
pub fn remove(name: &str) {
    told(sd_notify::notify(&[NotifyState::FdStoreRemove, NotifyState::FdName(name)]));
}

/// Waits until the service manager has done all it was told before.
fn barrier() {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_in_the_store_is_one_that_the_service_manager_takes_and_stays_the_filesystems_own() {
        let uuid = "ext4-7f5e508d-6f4c-4f36-9d5c-0d6c6c6c2f11";
        assert_eq!(printable(uuid), uuid);
        let names = ["ext4 a", "ext4_a", "ext4:a", "ext4\na", "ext4\u{e9}a"].map(printable);
        for (i, name) in names.iter().enumerate() {
            assert!(name.bytes().all(|b| b.is_ascii_graphic() && b != b':'), "{name}");
            assert!(!names[..i].contains(name), "{name}");
        }
        assert!(printable(&"x".repeat(4096)).len() + BUFFER.len() <= NAME_BYTES_MAX);
        assert_ne!(printable(&"x".repeat(4096)), printable(&"x".repeat(4097)));
    }
}
