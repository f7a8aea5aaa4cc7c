//! Stored bytes: shared pieces in order, so that finishing, copying and ranges move no data.
use std::ops::Range;

use bytes::{Bytes, BytesMut};
use sha1::{Digest, Sha1};

#[derive(Debug, Clone, Default)]
pub struct Content {
    pieces: Vec<Bytes>,
}

impl Content {
    pub fn len(&self) -> u64 {
        self.pieces.iter().map(|piece| piece.len() as u64).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The range must lie within the content.
    pub(crate) fn slice(&self, range: Range<u64>) -> Self {
        let mut pieces = Vec::new();
        let mut start = 0;
        for piece in &self.pieces {
            let end = start + piece.len() as u64;
            let (from, to) = (range.start.max(start), range.end.min(end));
            if from < to {
                pieces.push(piece.slice((from - start) as usize..(to - start) as usize));
            }
            start = end;
        }
        Self { pieces }
    }

    pub(crate) fn append(&mut self, other: &Content) {
        self.pieces.extend(other.pieces.iter().cloned());
    }

    pub(crate) fn into_pieces(self) -> Vec<Bytes> {
        self.pieces
    }

    pub fn to_bytes(&self) -> Bytes {
        match self.pieces.as_slice() {
            [only] => only.clone(),
            pieces => {
                let mut all = BytesMut::with_capacity(self.len() as usize);
                pieces.iter().for_each(|piece| all.extend_from_slice(piece));
                all.freeze()
            }
        }
    }

    pub fn sha1(&self) -> String {
        let mut hash = Sha1::new();
        self.pieces.iter().for_each(|piece| hash.update(piece));
        hex(&hash.finalize())
    }
}

impl From<Bytes> for Content {
    fn from(bytes: Bytes) -> Self {
        Self { pieces: vec![bytes] }
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        text.push(DIGITS[usize::from(byte >> 4)].into());
        text.push(DIGITS[usize::from(byte & 15)].into());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slice_may_cross_pieces_and_the_hash_is_that_of_the_whole() {
        let mut content = Content::from(Bytes::from_static(b"abc"));
        content.append(&Content::from(Bytes::from_static(b"defg")));
        assert_eq!(content.len(), 7);
        assert_eq!(content.slice(2..5).to_bytes(), "cde");
        assert_eq!(content.slice(3..7).to_bytes(), "defg");
        assert!(content.slice(3..3).is_empty());
        assert_eq!(content.slice(0..3).sha1(), "a9993e364706816aba3e25717850c26c9cd0d89d");
    }
}
