//! The intake buffer of one filesystem: events go from the kernel straight into a memfd, which the service manager
//! keeps, and stay there until the journal has them. So a kill at any moment loses nothing.

mod layout;
#[cfg(feature = "kill-points")]
mod switched_off;
mod sys;

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::fs::{FlockOperation, MemfdFlags, SealFlags};
use shared::entry::Cause;
use shared::journal::IntakeMark;
use shared::{kill, limits};

use super::records;
use layout::{Hot, LAYOUT, MAGIC, NONE, PAGE, Recovery, TOTAL_BYTES, Word};
use sys::{HEAD_BYTES, Map};

pub use layout::{Lasting, RootMark, Unfit};

/// Not FUTURE_WRITE: the next instance could not map it for writing (measured on 6.18).
const SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::SEAL);
/// A killed tracker that is still in a long read holds its lock until that has run to its end.
const LOCK_TRIES: u32 = 100;
const LOCK_PAUSE: Duration = Duration::from_millis(10);

pub struct Buffer {
    fd: OwnedFd,
    map: Map,
    lasting: Lasting,
    /// Pages of the data in which not all bytes behind the published ones are known to be zero.
    used: Vec<bool>,
    /// Bytes of the next batch at most.
    part: usize,
    is_anew: bool,
}

/// What a recovery found, for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recovered {
    pub events: u64,
    pub bytes: usize,
    /// Bytes of a read that was cut short.
    pub torn: Option<usize>,
    /// The journal had taken a batch that the buffer still held.
    pub taken: bool,
    pub damaged: Option<&'static str>,
    /// Another version laid the buffer out, which was empty.
    pub is_anew: bool,
}

impl Buffer {
    /// A new one, which owes a gap over all roots.
    pub fn create(lasting: Lasting, cause: Cause) -> io::Result<Buffer> {
        let mut buffer = Buffer::make(lasting)?;
        buffer.owe(cause);
        buffer.fix_pages();
        Ok(buffer)
    }

    fn make(lasting: Lasting) -> io::Result<Buffer> {
        let fd =
            rustix::fs::memfd_create(c"longshore-intake", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        rustix::fs::ftruncate(&fd, TOTAL_BYTES as u64)?;
        rustix::fs::fcntl_add_seals(&fd, SEALS)?;
        let roots = lasting.roots.clone();
        let mut buffer = Buffer::map(fd, TOTAL_BYTES, lasting, false)?;
        buffer.set(Word::Magic, MAGIC);
        buffer.set(Word::Layout, LAYOUT);
        buffer.set(Word::At, NONE);
        buffer.set(Word::PoisonAt, NONE);
        buffer.set_roots(roots);
        Ok(buffer)
    }

    /// One that an earlier instance left. If that was of another layout and ended cleanly, a new one in its place: it
    /// is in no store yet.
    pub fn open(fd: OwnedFd) -> Result<Buffer, Unfit> {
        let file = |e: io::Error| Unfit::File(e.to_string());
        let stat = rustix::fs::fstat(&fd).map_err(|e| file(e.into()))?;
        let seals = rustix::fs::fcntl_get_seals(&fd).map_err(|e| file(e.into()))?;
        let bytes = usize::try_from(stat.st_size).unwrap_or(0);
        if bytes < HEAD_BYTES || !seals.contains(SEALS) {
            return Err(Unfit::Layout);
        }
        let nobody =
            Lasting { buffer_id: [0; 16], boot_id: String::new(), journal_id: [0; 16], roots: Vec::new() };
        let mut buffer = Buffer::map(fd, bytes.min(TOTAL_BYTES), nobody, true).map_err(file)?;
        if buffer.word(Word::Magic) != MAGIC {
            return Err(Unfit::Damaged("its head is no head"));
        }
        buffer.lasting = layout::decode(buffer.map.behind(buffer.word(Word::Lasting)))?;
        match (buffer.word(Word::Layout) == LAYOUT && bytes == TOTAL_BYTES, buffer.word(Word::Clean)) {
            (true, _) => Ok(buffer),
            (false, 1) => buffer.laid_out_anew().map_err(file),
            (false, _) => Err(Unfit::Layout),
        }
    }

    /// For the journal and for whoever opens it, this is the buffer that was left.
    fn laid_out_anew(self) -> io::Result<Buffer> {
        let mut new = Buffer::make(self.lasting.clone())?;
        new.set(Word::Epoch, self.word(Word::Epoch));
        new.is_anew = true;
        Ok(new)
    }

    fn map(fd: OwnedFd, bytes: usize, lasting: Lasting, used: bool) -> io::Result<Buffer> {
        lock(fd.as_fd())?;
        let map = Map::new(fd.as_fd(), bytes)?;
        let buffer = Buffer {
            fd,
            map,
            lasting,
            used: vec![used; limits::INTAKE_BATCH_BYTES / PAGE],
            part: limits::INTAKE_BATCH_BYTES,
            is_anew: false,
        };
        Ok(buffer)
    }

    /// It takes the place of one that another version left.
    pub fn is_anew(&self) -> bool {
        self.is_anew
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    pub fn lasting(&self) -> &Lasting {
        &self.lasting
    }

    fn word(&self, word: Word) -> u64 {
        self.map.word(word as usize)
    }

    fn set(&self, word: Word, value: u64) {
        self.map.set_word(word as usize, value);
    }

    fn hot(&self) -> Hot {
        Hot::load(|word| self.word(word))
    }

    /// For a new group: nothing of before counts, and a gap over all roots is owed from here on.
    pub fn begin_anew(&mut self, roots: Vec<RootMark>, cause: Cause) {
        self.set(Word::Clean, 0);
        self.owe(cause);
        kill::point("placing");
        for (word, value) in layout::BEGINNING {
            self.set(word, value);
            kill::point("placing");
        }
        self.used.fill(true);
        self.part = limits::INTAKE_BATCH_BYTES;
        self.set_roots(roots);
        self.fix_pages();
    }

    /// The roots whose events are complete from here on, but for a gap that is owed.
    pub fn set_roots(&mut self, roots: Vec<RootMark>) {
        self.lasting.roots = roots;
        let bytes = layout::encode(&self.lasting);
        // Into the other copy, so that a kill leaves one that is whole.
        let at = layout::other_lasting(self.word(Word::Lasting));
        self.map.bytes_mut(at..at + bytes.len()).copy_from_slice(&bytes);
        self.set(Word::Lasting, at as u64);
    }

    fn fix_pages(&mut self) {
        let locked = self.map.lock();
        self.set(Word::Locked, u64::from(locked.is_ok()));
        if let Err(e) = locked {
            static SAID: AtomicBool = AtomicBool::new(false);
            if !SAID.swap(true, Ordering::Relaxed) {
                tracing::warn!(
                    "An intake buffer cannot be locked in memory: {e}. A kill during a read will be a gap; raise LimitMEMLOCK (ulimit -l)"
                );
            }
        }
    }

    /// The next commit holds a gap over all roots, whoever makes it.
    pub fn owe(&self, cause: Cause) {
        self.set(Word::OwedCause, cause as u64);
        self.set(Word::OwedEpoch, self.word(Word::Epoch) + 1);
    }

    pub fn owed(&self) -> Option<Cause> {
        self.hot().owed()
    }

    /// Takes over what an earlier instance left. `mark` is what the journal says.
    pub fn recover(&mut self, mark: Option<&IntakeMark>) -> Result<Recovered, Unfit> {
        self.set(Word::Clean, 0);
        let mark = mark.filter(|m| m.buffer_id == self.lasting.buffer_id);
        let epoch = match mark {
            Some(mark) => mark.epoch,
            // Killed before its first commit.
            None if self.word(Word::Epoch) == 0 => 0,
            None => return Err(Unfit::Epoch),
        };
        #[cfg(feature = "kill-points")]
        switched_off::recovery(self);
        let Recovery { stores, left, torn, taken, damaged } =
            layout::recover(&self.hot(), self.map.bytes(layout::data(0..limits::INTAKE_BATCH_BYTES)), epoch)?;
        for (word, value) in stores {
            self.set(word, value);
            kill::point("recovering");
        }
        self.fix_pages();
        self.part = limits::INTAKE_RECOVERY_BYTES;
        #[cfg(feature = "kill-points")]
        let left = switched_off::buffer(self, left);
        let bytes = left.len();
        let events = records::count(self.map.bytes(layout::data(left)));
        Ok(Recovered { events, bytes, torn, taken, damaged, is_anew: self.is_anew })
    }

    /// Reads from the group into the next slot. The kernel writes nothing behind what it reports.
    pub fn read(&mut self, group: BorrowedFd<'_>) -> io::Result<Slot> {
        let at = self.word(Word::Published) as usize;
        let end = limits::INTAKE_BATCH_BYTES.min(at + limits::INTAKE_READ_BYTES);
        self.clear(at..end);
        self.set(Word::SlotAt, at as u64);
        self.set(Word::SlotBytes, (end - at) as u64);
        self.set(Word::Reading, 1);
        kill::point("marked");
        match self.map.read_from(group, layout::data(at..end)) {
            Ok(bytes) => {
                kill::point("read");
                self.set(Word::Published, (at + bytes) as u64);
                kill::point("published");
                self.set(Word::Reading, 0);
                let events = records::count(self.map.bytes(layout::data(at..at + bytes)));
                Ok(Slot { events, bytes, room: end - at })
            }
            Err(e) => {
                // EFAULT comes although events were taken from the queue: the gap covers them.
                if !matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) {
                    self.owe(Cause::Damaged);
                }
                self.set(Word::Reading, 0);
                Err(e)
            }
        }
    }

    /// As if this had been read.
    #[cfg(test)]
    pub fn fill(&mut self, bytes: &[u8]) {
        let at = self.word(Word::Published) as usize;
        self.clear(at..at + bytes.len());
        self.map.bytes_mut(layout::data(at..at + bytes.len())).copy_from_slice(bytes);
        self.set(Word::Published, (at + bytes.len()) as u64);
    }

    /// Makes the bytes ahead of the published ones zero.
    fn clear(&mut self, range: Range<usize>) {
        for page in range.start / PAGE..range.end.div_ceil(PAGE) {
            if std::mem::take(&mut self.used[page]) {
                let dirty = range.start.max(page * PAGE)..(page + 1) * PAGE;
                self.map.bytes_mut(layout::data(dirty)).fill(0);
            }
        }
    }

    /// Begins the next batch; says how much it is.
    pub fn begin_batch(&mut self) -> Range<usize> {
        let (from, to) = (self.word(Word::Consumed) as usize, self.word(Word::Published) as usize);
        let mut end = to;
        if end - from > self.part {
            end = from + records::prefix(self.map.bytes(layout::data(from..to)), self.part);
        }
        self.set(Word::NextEnd, end as u64);
        from..end
    }

    pub fn bytes(&self, batch: Range<usize>) -> &[u8] {
        self.map.bytes(layout::data(batch))
    }

    /// The record at this place is being translated. True if it has killed the tracker often enough.
    pub fn translating(&self, at: usize) -> bool {
        self.set(Word::At, at as u64);
        self.word(Word::PoisonAt) == at as u64
            && self.word(Word::PoisonDeaths) >= limits::INTAKE_POISON_DEATHS
    }

    pub fn translated(&self) {
        self.set(Word::At, NONE);
    }

    /// The mark of the next commit.
    pub fn mark(&self, fs: &str) -> IntakeMark {
        IntakeMark { fs: fs.to_owned(), buffer_id: self.lasting.buffer_id, epoch: self.word(Word::Epoch) + 1 }
    }

    /// The batch begun last is done with; `counted` if the journal holds its mark.
    pub fn finish(&mut self, counted: bool) {
        kill::point("committed");
        let hot = self.hot();
        if hot.published == hot.next_end {
            let pages = (hot.published as usize).div_ceil(PAGE);
            self.used[..pages].fill(true);
        }
        self.part = self.part.saturating_mul(2).min(limits::INTAKE_BATCH_BYTES);
        for (word, value) in layout::finish(&hot, counted) {
            self.set(word, value);
        }
    }

    /// Nothing more is read into it. If nothing is in it either, even a version that lays its buffers out in another
    /// way can go on.
    pub fn leave(&self) {
        self.set(Word::Clean, u64::from(self.hot().is_done_with()));
    }

    /// Bytes that no batch has covered yet.
    pub fn left(&self) -> usize {
        (self.word(Word::Published) - self.word(Word::Consumed)) as usize
    }

    /// Remembers a directory whose deletion was read.
    pub fn bury(&mut self, trace: u64) {
        let number = self.word(Word::Gone);
        self.map.bytes_mut(layout::gone(number)).copy_from_slice(&trace.to_ne_bytes());
        self.set(Word::Gone, number + 1);
    }

    /// The traces that it remembers.
    pub fn gone(&self) -> Vec<u64> {
        let count = self.word(Word::Gone);
        let first = count.saturating_sub(limits::INTAKE_GONE_MAX as u64);
        let trace = |n| self.map.bytes(layout::gone(n)).first_chunk().map(|b| u64::from_ne_bytes(*b));
        (first..count).filter_map(trace).collect()
    }
}

/// One read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    pub events: u64,
    pub bytes: usize,
    pub room: usize,
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

#[cfg(test)]
mod tests;
