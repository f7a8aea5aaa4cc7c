//! Parts of a recovery that a test switches off, to see that it finds the loss. Not in any program that is shipped.

use std::ops::Range;

use shared::kill;

use super::Buffer;
use super::layout::Word;
use crate::host::Memory;

/// Reads that were cut short are not looked at.
pub fn recovery(buffer: &Buffer<impl Memory>) {
    if kill::without("recovery") {
        buffer.set(Word::Reading, 0);
    }
}

/// As if what was read had been memory of the process that died.
pub fn buffer(buffer: &Buffer<impl Memory>, left: Range<usize>) -> Range<usize> {
    if !kill::without("buffer") {
        return left;
    }
    for word in [Word::Published, Word::Consumed, Word::NextEnd] {
        buffer.set(word, 0);
    }
    0..0
}
