//! The bytes of a file: only pages that were written are kept, all else is a hole of zeros, so big files cost little.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

pub const PAGE_BYTES: u64 = 4096;

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Content {
    size: u64,
    /// By their number; each ends with its last byte that was written.
    pages: BTreeMap<u64, Arc<Vec<u8>>>,
}

impl Content {
    pub fn of(bytes: &[u8]) -> Content {
        let mut content = Content::default();
        content.write(0, bytes);
        content
    }

    pub fn size(&self) -> u64 {
        self.size
    }

    pub fn write(&mut self, mut offset: u64, mut bytes: &[u8]) {
        self.size = self.size.max(if bytes.is_empty() { 0 } else { offset + bytes.len() as u64 });
        while !bytes.is_empty() {
            let at = (offset % PAGE_BYTES) as usize;
            let len = bytes.len().min(PAGE_BYTES as usize - at);
            let page = Arc::make_mut(self.pages.entry(offset / PAGE_BYTES).or_default());
            if page.len() < at + len {
                page.resize(at + len, 0);
            }
            page[at..at + len].copy_from_slice(&bytes[..len]);
            offset += len as u64;
            bytes = &bytes[len..];
        }
    }

    pub fn truncate(&mut self, size: u64) {
        self.size = size;
        self.pages.split_off(&size.div_ceil(PAGE_BYTES));
        if let Some(page) = self.pages.get_mut(&(size / PAGE_BYTES)) {
            Arc::make_mut(page).truncate((size % PAGE_BYTES) as usize);
        }
    }

    /// Fills as much of the buffer as there is; 0 at the end.
    pub fn read(&self, offset: u64, buffer: &mut [u8]) -> usize {
        let len = (buffer.len() as u64).min(self.size.saturating_sub(offset)) as usize;
        let buffer = &mut buffer[..len];
        buffer.fill(0);
        let end = offset + len as u64;
        for (number, page) in self.pages.range(offset / PAGE_BYTES..end.div_ceil(PAGE_BYTES)) {
            let start = number * PAGE_BYTES;
            let from = offset.max(start);
            let to = end.min(start + page.len() as u64);
            if from < to {
                let piece = &page[(from - start) as usize..(to - start) as usize];
                buffer[(from - offset) as usize..(to - offset) as usize].copy_from_slice(piece);
            }
        }
        len
    }

    /// All of it; not for big files.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.size as usize];
        self.read(0, &mut bytes);
        bytes
    }

    /// The next pages with data at or behind `from`; `None` when only a hole is left.
    pub fn next_data(&self, from: u64) -> Option<Range<u64>> {
        let (first, _) = self.pages.range(from / PAGE_BYTES..).next()?;
        let mut end = first + 1;
        while self.pages.contains_key(&end) {
            end += 1;
        }
        let start = from.max(first * PAGE_BYTES);
        (start < self.size).then(|| start..(end * PAGE_BYTES).min(self.size))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_big_file_keeps_only_what_was_written() {
        let mut content = Content::of(b"begin");
        content.truncate(16 << 20);
        content.write((8 << 20) - 2, b"middle");
        let mut buffer = [9; 8];
        assert_eq!(content.read((8 << 20) - 4, &mut buffer), 8);
        assert_eq!(&buffer, b"\0\0middle");
        assert_eq!(content.pages.len(), 3);
        assert_eq!(content.next_data(4096), Some((8 << 20) - 4096..(8 << 20) + 4096));
        assert_eq!(content.next_data(9 << 20), None);
        assert_eq!(content.read(16 << 20, &mut buffer), 0);
    }

    #[test]
    fn what_was_cut_off_is_zero_when_the_file_grows_again() {
        let mut content = Content::of(b"abcdef");
        content.truncate(3);
        content.truncate(5);
        assert_eq!(content.bytes(), b"abc\0\0");
        content.write(7, b"");
        assert_eq!(content.size(), 5);
    }
}
