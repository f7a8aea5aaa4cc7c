//! What an object holds, and reading it from a source in pieces, so that others go on in between.

use std::fmt::Display;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use sha1::Digest as _;
use syncer::leg::{Problem, Sha1};
use syncer::tree::SourceFile;

use crate::fate::Fate;

/// More is kept as size and hash only.
const KEPT_BYTES_MAX: u64 = 1 << 20;
const PIECE_BYTES: u64 = 256 * 1024;

/// Of small content the bytes, of all the hash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Content {
    pub size: u64,
    pub sha1: Sha1,
    pub bytes: Option<Bytes>,
}

impl Content {
    pub fn of(bytes: impl Into<Bytes>) -> Content {
        let bytes = bytes.into();
        let sha1 = sha1::Sha1::digest(&bytes).into();
        Content::hashed(bytes, sha1)
    }

    /// Takes the hash for what it is said to be, as a store does that is handed both.
    pub fn hashed(bytes: Bytes, sha1: Sha1) -> Content {
        let size = bytes.len() as u64;
        Content { size, sha1, bytes: (size <= KEPT_BYTES_MAX).then_some(bytes) }
    }

    /// As much of nothing: what a power cut leaves of content that had not reached the disk.
    pub fn zeros(size: u64) -> Content {
        if size <= KEPT_BYTES_MAX {
            return Content::of(vec![0; size as usize]);
        }
        let mut collected = Collected::default();
        let mut left = size;
        while left > 0 {
            let now = left.min(PIECE_BYTES);
            collected.add(&vec![0; now as usize]);
            left -= now;
        }
        collected.into_content()
    }
}

/// Why a source could not be sent.
pub(super) type Unsent = (Problem, String);

/// Content as it comes in.
#[derive(Default)]
struct Collected {
    hash: sha1::Sha1,
    size: u64,
    kept: Vec<u8>,
}

impl Collected {
    fn add(&mut self, bytes: &[u8]) {
        self.hash.update(bytes);
        self.size += bytes.len() as u64;
        if self.size <= KEPT_BYTES_MAX {
            self.kept.extend_from_slice(bytes);
        }
    }

    fn into_content(self) -> Content {
        let bytes = (self.size <= KEPT_BYTES_MAX).then(|| self.kept.into());
        Content { size: self.size, sha1: self.hash.finalize().into(), bytes }
    }
}

/// Twice, as the client of B2 does it: for the hash, then for the body, which B2 compares with it.
pub(super) async fn read_for_b2(fate: &dyn Fate, file: &Arc<dyn SourceFile>) -> Result<Content, Unsent> {
    let hashed = read(fate, &**file, file.stat().size, busy_b2).await?;
    check_unchanged(&**file, busy_b2)?;
    let sent = read(fate, &**file, file.stat().size, busy_b2).await?;
    if sent.size > 0 {
        check_unchanged(&**file, busy_b2)?;
    }
    if sent == hashed { Ok(sent) } else { Err(busy_b2()) }
}

/// Once, as a directory copies it; whether it changed meanwhile is asked when its attributes are set.
pub(super) async fn read_for_dir(
    fate: &dyn Fate,
    file: &Arc<dyn SourceFile>,
    size: u64,
) -> Result<Content, Unsent> {
    read(fate, &**file, size, || (Problem::Busy, "it shrank while it was read".into())).await
}

pub(super) fn check_unchanged(file: &dyn SourceFile, busy: impl Fn() -> Unsent) -> Result<(), Unsent> {
    match file.unchanged() {
        Ok(true) => Ok(()),
        Ok(false) => Err(busy()),
        Err(error) => Err(unreadable(error)),
    }
}

async fn read(
    fate: &dyn Fate,
    file: &dyn SourceFile,
    size: u64,
    busy: impl Fn() -> Unsent,
) -> Result<Content, Unsent> {
    let mut collected = Collected::default();
    while collected.size < size {
        fate.pass("read of a body");
        tokio::task::yield_now().await;
        let mut piece = vec![0; (size - collected.size).min(PIECE_BYTES) as usize];
        match file.read_at(&mut piece, collected.size) {
            Ok(0) => return Err(busy()),
            Ok(count) => collected.add(&piece[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(unreadable(error)),
        }
    }
    Ok(collected.into_content())
}

fn busy_b2() -> Unsent {
    (Problem::Busy, "the file changed while it was read".into())
}

fn unreadable(error: impl Display) -> Unsent {
    (Problem::Unreadable, format!("the file cannot be read: {error}"))
}
