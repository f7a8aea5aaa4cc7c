//! Where a buffer lies: a memfd, which the service manager keeps, sealed, locked for one process and mapped.

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::fs::{FlockOperation, MemfdFlags, SealFlags};

use super::layout::{TOTAL_BYTES, Unfit};
use super::sys::{HEAD_BYTES, Map};
use crate::host::Memory;

/// Not FUTURE_WRITE: the next instance could not map it for writing (measured on 6.18).
pub(super) const SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::SEAL);
/// A killed tracker that is still in a long read holds its lock until that has run to its end.
const LOCK_TRIES: u32 = 100;
const LOCK_PAUSE: Duration = Duration::from_millis(10);

pub struct Memfd {
    fd: OwnedFd,
    size: usize,
    map: Map,
}

impl Memfd {
    pub fn create() -> io::Result<Memfd> {
        let fd =
            rustix::fs::memfd_create(c"longshore-intake", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        rustix::fs::ftruncate(&fd, TOTAL_BYTES as u64)?;
        rustix::fs::fcntl_add_seals(&fd, SEALS)?;
        Memfd::map(fd, TOTAL_BYTES)
    }

    /// One that an earlier instance left.
    pub fn open(fd: OwnedFd) -> Result<Memfd, Unfit> {
        let file = |e: io::Error| Unfit::File(e.to_string());
        let stat = rustix::fs::fstat(&fd).map_err(|e| file(e.into()))?;
        let seals = rustix::fs::fcntl_get_seals(&fd).map_err(|e| file(e.into()))?;
        let bytes = usize::try_from(stat.st_size).unwrap_or(0);
        if bytes < HEAD_BYTES || !seals.contains(SEALS) {
            return Err(Unfit::Layout);
        }
        Memfd::map(fd, bytes).map_err(file)
    }

    fn map(fd: OwnedFd, size: usize) -> io::Result<Memfd> {
        lock(fd.as_fd())?;
        let map = Map::new(fd.as_fd(), size.min(TOTAL_BYTES))?;
        Ok(Memfd { fd, size, map })
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// read(2). The kernel writes nothing behind what it reports.
    pub fn read_from(&mut self, fd: BorrowedFd<'_>, range: Range<usize>) -> io::Result<usize> {
        self.map.read_from(fd, range)
    }
}

impl Memory for Memfd {
    fn size(&self) -> usize {
        self.size
    }

    #[inline]
    fn word(&self, word: usize) -> u64 {
        self.map.word(word)
    }

    #[inline]
    fn set_word(&self, word: usize, value: u64) {
        self.map.set_word(word, value);
    }

    fn bytes(&self, range: Range<usize>) -> &[u8] {
        self.map.bytes(range)
    }

    fn behind(&self, at: u64) -> &[u8] {
        self.map.behind(at)
    }

    fn store(&mut self, at: usize, bytes: &[u8]) {
        self.map.bytes_mut(at..at + bytes.len()).copy_from_slice(bytes);
    }

    fn clear(&mut self, range: Range<usize>) {
        self.map.bytes_mut(range).fill(0);
    }

    fn lock(&self) -> io::Result<()> {
        self.map.lock()
    }
}

/// The lock is the process's: it goes with it, although the service manager holds the same open file.
fn lock(fd: BorrowedFd<'_>) -> io::Result<()> {
    for _ in 0..LOCK_TRIES {
        match rustix::fs::fcntl_lock(fd, FlockOperation::NonBlockingLockExclusive) {
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::ACCESS) => std::thread::sleep(LOCK_PAUSE),
            done => return Ok(done?),
        }
    }
    Err(io::Error::other("another process uses it"))
}
