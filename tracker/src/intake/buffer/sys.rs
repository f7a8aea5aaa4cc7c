//! The mapping of a buffer's memfd: words of its head, bytes of its parts, and read(2) straight into it.
#![allow(unsafe_code)]

use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use memmap2::{MmapOptions, MmapRaw};

/// Words at the beginning of the mapping. They are never given out as bytes.
pub const WORDS: usize = 64;
const WORD_BYTES: usize = size_of::<u64>();
pub const HEAD_BYTES: usize = WORDS * WORD_BYTES;

/// A shared mapping, written by one process at a time. No reference to its memory outlives a call that writes there.
pub struct Map {
    raw: MmapRaw,
}

impl Map {
    /// `file` must be sealed against shrinking: a mapping beyond its end would be fatal to touch.
    pub fn new(file: BorrowedFd<'_>, len: usize) -> io::Result<Map> {
        assert!(len >= HEAD_BYTES, "a mapping holds at least its words");
        let raw = MmapOptions::new().len(len).populate().map_raw(file.as_raw_fd())?;
        Ok(Map { raw })
    }

    /// mlock(2): a page fault that fails inside read(2) would destroy the event in hand (measured on 6.18).
    pub fn lock(&self) -> io::Result<()> {
        self.raw.lock()
    }

    fn atomic(&self, word: usize) -> &AtomicU64 {
        assert!(word < WORDS, "the head has no such word");
        // SAFETY: within the mapping, which begins at a page and lives as long as `self`; bytes of the head are
        // reached in no other way.
        unsafe { AtomicU64::from_ptr(self.raw.as_mut_ptr().cast::<u64>().add(word)) }
    }

    pub fn word(&self, word: usize) -> u64 {
        self.atomic(word).load(Ordering::Acquire)
    }

    /// What was written before this call is in the mapping when the word is.
    pub fn set_word(&self, word: usize, value: u64) {
        self.atomic(word).store(value, Ordering::Release);
    }

    fn check(&self, range: &Range<usize>) {
        assert!(
            HEAD_BYTES <= range.start && range.start <= range.end && range.end <= self.raw.len(),
            "{range:?} lies outside of the mapping"
        );
    }

    pub fn bytes(&self, range: Range<usize>) -> &[u8] {
        self.check(&range);
        // SAFETY: within the mapping, and not in its head; whatever writes there takes `&mut self`, and no other
        // process writes: the tracker holds a lock on the file.
        unsafe { std::slice::from_raw_parts(self.raw.as_ptr().add(range.start), range.len()) }
    }

    /// All from a place on that somebody else wrote down; nothing if that is none.
    pub fn behind(&self, at: u64) -> &[u8] {
        let at = usize::try_from(at).ok().filter(|at| (HEAD_BYTES..=self.raw.len()).contains(at));
        self.bytes(at.unwrap_or(self.raw.len())..self.raw.len())
    }

    pub fn bytes_mut(&mut self, range: Range<usize>) -> &mut [u8] {
        self.check(&range);
        // SAFETY: as in `bytes`; `&mut self` makes it the only reference.
        unsafe { std::slice::from_raw_parts_mut(self.raw.as_mut_ptr().add(range.start), range.len()) }
    }

    /// read(2) into the mapping. Through a raw pointer: if the process is killed meanwhile, the kernel still writes.
    pub fn read_from(&mut self, fd: BorrowedFd<'_>, range: Range<usize>) -> io::Result<usize> {
        self.check(&range);
        // SAFETY: the range lies in the mapping, is not in its head, and `&mut self` excludes other references.
        let n =
            unsafe { libc::read(fd.as_raw_fd(), self.raw.as_mut_ptr().add(range.start).cast(), range.len()) };
        if n < 0 { Err(io::Error::last_os_error()) } else { Ok(n as usize) }
    }
}
