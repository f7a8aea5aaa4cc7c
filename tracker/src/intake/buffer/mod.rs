//! The intake buffer of one filesystem: events go from the kernel straight into memory that the service manager keeps,
//! and stay there until the journal has them. So a kill at any moment loses nothing.

mod layout;
mod memfd;
#[cfg(feature = "kill-points")]
mod switched_off;
mod sys;

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use shared::entry::Cause;
use shared::journal::IntakeMark;
use shared::{kill, limits};

use super::records;
use crate::host::Memory;
use layout::{Hot, LAYOUT, MAGIC, NONE, PAGE, Recovery, Word};

pub use layout::{Lasting, RootMark, TOTAL_BYTES, Unfit};
pub use memfd::Memfd;
pub use sys::{HEAD_BYTES, WORDS};

pub struct Buffer<M = Memfd> {
    memory: M,
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

impl<M: Memory> Buffer<M> {
    /// A new one, in memory that is all zero. It owes a gap over all roots.
    pub fn create(memory: M, lasting: Lasting, cause: Cause) -> Buffer<M> {
        let mut buffer = Buffer::make(memory, lasting);
        buffer.owe(cause);
        buffer.fix_pages();
        buffer
    }

    fn make(memory: M, lasting: Lasting) -> Buffer<M> {
        let roots = lasting.roots.clone();
        let mut buffer = Buffer::of(memory, lasting, false);
        buffer.set(Word::Magic, MAGIC);
        buffer.set(Word::Layout, LAYOUT);
        buffer.set(Word::At, NONE);
        buffer.set(Word::PoisonAt, NONE);
        buffer.set_roots(roots);
        buffer
    }

    /// One that an earlier instance left. If that was of another layout and ended cleanly, a new one in its place, in
    /// `new` memory: it is in no store yet.
    pub fn open(memory: M, new: impl FnOnce() -> io::Result<M>) -> Result<Buffer<M>, Unfit> {
        let nobody =
            Lasting { buffer_id: [0; 16], boot_id: String::new(), journal_id: [0; 16], roots: Vec::new() };
        let mut buffer = Buffer::of(memory, nobody, true);
        if buffer.word(Word::Magic) != MAGIC {
            return Err(Unfit::Damaged("its head is no head"));
        }
        buffer.lasting = layout::decode(buffer.memory.behind(buffer.word(Word::Lasting)))?;
        let is_ours = buffer.word(Word::Layout) == LAYOUT && buffer.memory.size() == TOTAL_BYTES;
        match (is_ours, buffer.word(Word::Clean)) {
            (true, _) => Ok(buffer),
            (false, 1) => {
                let new = new().map_err(|e| Unfit::File(e.to_string()))?;
                Ok(buffer.laid_out_anew(new))
            }
            (false, _) => Err(Unfit::Layout),
        }
    }

    /// For the journal and for whoever opens it, this is the buffer that was left.
    fn laid_out_anew(self, memory: M) -> Buffer<M> {
        let mut new = Buffer::make(memory, self.lasting.clone());
        new.set(Word::Epoch, self.word(Word::Epoch));
        new.is_anew = true;
        new
    }

    fn of(memory: M, lasting: Lasting, used: bool) -> Buffer<M> {
        Buffer {
            memory,
            lasting,
            used: vec![used; limits::INTAKE_BATCH_BYTES / PAGE],
            part: limits::INTAKE_BATCH_BYTES,
            is_anew: false,
        }
    }

    /// It takes the place of one that another version left.
    pub fn is_anew(&self) -> bool {
        self.is_anew
    }

    pub fn memory(&self) -> &M {
        &self.memory
    }

    pub fn lasting(&self) -> &Lasting {
        &self.lasting
    }

    fn word(&self, word: Word) -> u64 {
        self.memory.word(word as usize)
    }

    fn set(&self, word: Word, value: u64) {
        self.memory.set_word(word as usize, value);
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
        self.memory.store(at, &bytes);
        self.set(Word::Lasting, at as u64);
    }

    fn fix_pages(&mut self) {
        let locked = self.memory.lock();
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
        let Recovery { stores, left, torn, taken, damaged } = layout::recover(
            &self.hot(),
            self.memory.bytes(layout::data(0..limits::INTAKE_BATCH_BYTES)),
            epoch,
        )?;
        for (word, value) in stores {
            self.set(word, value);
            kill::point("recovering");
        }
        self.fix_pages();
        self.part = limits::INTAKE_RECOVERY_BYTES;
        #[cfg(feature = "kill-points")]
        let left = switched_off::buffer(self, left);
        let bytes = left.len();
        let events = records::count(self.memory.bytes(layout::data(left)));
        Ok(Recovered { events, bytes, torn, taken, damaged, is_anew: self.is_anew })
    }

    /// Reads into the next slot, by what writes nothing behind what it reports.
    pub fn read(&mut self, read: impl FnOnce(&mut M, Range<usize>) -> io::Result<usize>) -> io::Result<Slot> {
        let at = self.word(Word::Published) as usize;
        let end = limits::INTAKE_BATCH_BYTES.min(at + limits::INTAKE_READ_BYTES);
        self.clear(at..end);
        self.set(Word::SlotAt, at as u64);
        self.set(Word::SlotBytes, (end - at) as u64);
        self.set(Word::Reading, 1);
        kill::point("marked");
        match read(&mut self.memory, layout::data(at..end)) {
            Ok(bytes) => {
                kill::point("read");
                self.set(Word::Published, (at + bytes) as u64);
                kill::point("published");
                self.set(Word::Reading, 0);
                let events = records::count(self.memory.bytes(layout::data(at..at + bytes)));
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
        self.memory.store(layout::data(at..at).start, bytes);
        self.set(Word::Published, (at + bytes.len()) as u64);
    }

    /// Makes the bytes ahead of the published ones zero.
    fn clear(&mut self, range: Range<usize>) {
        for page in range.start / PAGE..range.end.div_ceil(PAGE) {
            if std::mem::take(&mut self.used[page]) {
                let dirty = range.start.max(page * PAGE)..(page + 1) * PAGE;
                self.memory.clear(layout::data(dirty));
            }
        }
    }

    /// Begins the next batch; says how much it is.
    pub fn begin_batch(&mut self) -> Range<usize> {
        let (from, to) = (self.word(Word::Consumed) as usize, self.word(Word::Published) as usize);
        let mut end = to;
        if end - from > self.part {
            end = from + records::prefix(self.memory.bytes(layout::data(from..to)), self.part);
        }
        self.set(Word::NextEnd, end as u64);
        from..end
    }

    pub fn bytes(&self, batch: Range<usize>) -> &[u8] {
        self.memory.bytes(layout::data(batch))
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
        self.memory.store(layout::gone(number).start, &trace.to_ne_bytes());
        self.set(Word::Gone, number + 1);
    }

    /// The traces that it remembers.
    pub fn gone(&self) -> Vec<u64> {
        let count = self.word(Word::Gone);
        let first = count.saturating_sub(limits::INTAKE_GONE_MAX as u64);
        let trace = |n| self.memory.bytes(layout::gone(n)).first_chunk().map(|b| u64::from_ne_bytes(*b));
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

#[cfg(test)]
mod tests;
