//! The bytes of an upload: from memory or from a range of the source, hashed or sent in bounded pieces.

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use sha1::{Digest, Sha1 as Hasher};
use tokio::sync::Notify;

use super::super::{Problem, Sha1};
use super::failure::Cause;
use crate::tree::SourceFile;

/// Of one read and one piece of a body; two are in memory per upload.
const PIECE_BYTES: u64 = 256 * 1024;
const HASH_STEP_BYTES: u64 = 1024 * 1024;

/// Can be sent again.
#[derive(Clone)]
pub(super) enum Content {
    Memory(Bytes),
    Range(Arc<dyn SourceFile>, Range<u64>),
}

impl Content {
    pub fn len(&self) -> u64 {
        match self {
            Content::Memory(bytes) => bytes.len() as u64,
            Content::Range(_, range) => range.end - range.start,
        }
    }

    /// The body of a request. The last piece of a range is given out only if the source is unchanged until then: a
    /// request that was cut before that has no effect.
    pub fn body(&self, progress: Arc<Progress>) -> reqwest::Body {
        let length = self.len();
        if length == 0 {
            progress.whole.store(true, Ordering::Release);
            return reqwest::Body::from(Bytes::new());
        }
        let noted = move |piece: Result<Bytes, Cause>| progress.note(piece, length);
        match self.clone() {
            Content::Memory(bytes) => {
                let pieces =
                    pieces(0..length).map(move |r| Ok(bytes.slice(r.start as usize..r.end as usize)));
                reqwest::Body::wrap_stream(stream::iter(pieces).map(noted))
            }
            Content::Range(file, range) => reqwest::Body::wrap_stream(read(file, range).map(noted)),
        }
    }
}

/// How far the body of a request has gone.
#[derive(Default)]
pub(super) struct Progress {
    handed_bytes: AtomicU64,
    whole: AtomicBool,
    moved: Notify,
    fault: Mutex<Option<Cause>>,
}

impl Progress {
    /// The last byte was handed to the connection.
    pub fn is_whole(&self) -> bool {
        self.whole.load(Ordering::Acquire)
    }

    /// Why the source could not be sent.
    pub fn fault(&self) -> Option<Cause> {
        self.fault.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Returns when nothing was handed on for the time `stall`, or, after the last byte, for the time `answer`.
    pub async fn stalled(&self, stall: Duration, answer: Duration) {
        let limit = || if self.is_whole() { answer } else { stall };
        while tokio::time::timeout(limit(), self.moved.notified()).await.is_ok() {}
    }

    fn note(&self, piece: Result<Bytes, Cause>, length: u64) -> io::Result<Bytes> {
        match piece {
            Ok(piece) => {
                let count = piece.len() as u64;
                if self.handed_bytes.fetch_add(count, Ordering::AcqRel) + count == length {
                    self.whole.store(true, Ordering::Release);
                }
                self.moved.notify_one();
                Ok(piece)
            }
            Err(cause) => {
                *self.fault.lock().unwrap_or_else(PoisonError::into_inner) = Some(cause);
                Err(io::Error::other("the source could not be sent"))
            }
        }
    }
}

fn pieces(range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let end = range.end;
    range.step_by(PIECE_BYTES as usize).map(move |start| start..(start + PIECE_BYTES).min(end))
}

fn read(file: Arc<dyn SourceFile>, range: Range<u64>) -> impl Stream<Item = Result<Bytes, Cause>> {
    let end = range.end;
    let reads = pieces(range).map(move |piece| {
        let file = file.clone();
        blocking(move || {
            let bytes = read_range(&*file, piece.clone())?;
            if piece.end == end { check_unchanged(&*file).map(|()| bytes) } else { Ok(bytes) }
        })
    });
    stream::iter(reads).buffered(2)
}

pub(super) struct Hashes {
    pub whole: Sha1,
    /// Of the ranges of `part_bytes`; empty if one holds all.
    pub parts: Vec<Sha1>,
}

/// Reads the file once.
pub(super) async fn hash(file: &Arc<dyn SourceFile>, part_bytes: u64) -> Result<Hashes, Cause> {
    let size = file.stat().size;
    let in_parts = part_bytes < size;
    let (mut whole, mut part) = (Hasher::new(), Hasher::new());
    let mut parts = Vec::new();
    let mut start = 0;
    while start < size {
        let part_end = (start - start % part_bytes).saturating_add(part_bytes).min(size);
        let step = start..(start + HASH_STEP_BYTES).min(part_end);
        start = step.end;
        let file = file.clone();
        (whole, part) = blocking(move || {
            let bytes = read_range(&*file, step)?;
            whole.update(&bytes);
            if in_parts {
                part.update(&bytes);
            }
            Ok((whole, part))
        })
        .await?;
        if in_parts && start == part_end {
            parts.push(std::mem::take(&mut part).finalize().into());
        }
    }
    unchanged(file).await?;
    Ok(Hashes { whole: whole.finalize().into(), parts })
}

/// `Busy` if the source has moved.
pub(super) async fn unchanged(file: &Arc<dyn SourceFile>) -> Result<(), Cause> {
    let file = file.clone();
    blocking(move || check_unchanged(&*file)).await
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Cause> + Send + 'static,
) -> Result<T, Cause> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(ended) => Err(unreadable(ended)),
    }
}

fn check_unchanged(file: &dyn SourceFile) -> Result<(), Cause> {
    match file.unchanged() {
        Ok(true) => Ok(()),
        Ok(false) => Err(busy()),
        Err(error) => Err(unreadable(error)),
    }
}

fn read_range(file: &dyn SourceFile, range: Range<u64>) -> Result<Bytes, Cause> {
    let mut bytes = vec![0; (range.end - range.start) as usize];
    let mut filled = 0;
    while filled < bytes.len() {
        match file.read_at(&mut bytes[filled..], range.start + filled as u64) {
            Ok(0) => return Err(busy()),
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(unreadable(error)),
        }
    }
    Ok(bytes.into())
}

pub(super) fn busy() -> Cause {
    Cause::Source(Problem::Busy, "the file changed while it was read".into())
}

fn unreadable(error: impl std::fmt::Display) -> Cause {
    Cause::Source(Problem::Unreadable, format!("the file cannot be read: {error}"))
}
