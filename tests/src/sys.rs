//! A live mapping of a file, which needs unsafe code.
#![allow(unsafe_code)]

use std::fs::File;

use memmap2::MmapMut;

/// Maps a file, for reading and writing.
pub fn map(file: &File) -> MmapMut {
    // SAFETY: the test that maps the file is the only one that uses it, and does not cut it off.
    unsafe { MmapMut::map_mut(file).unwrap() }
}
