//! The store against the emulator: what arrives there, what is called and billed, and what each fault leads to.

mod large;
mod listing;
mod rclone;
mod rights;
mod single;

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use b2_emulator::Emulator;
use b2_emulator::calls::Call;
use b2_emulator::faults::{Fault, FaultAnswer, FaultKind};
use b2_emulator::options::{Limits, Options};
use bytes::Bytes;
use sha1::{Digest, Sha1 as Hasher};
use shared::config::B2Leg;
use shared::path::RelPath;

use super::client::Tuning;
use super::failure::Patience;
use super::store::B2Store;
use crate::credentials::Credentials;
use crate::leg::{Body, Put, Receipt, Remove, Store, StoreError, What};
use crate::tree::{Kind, SourceFile, Stat};

const BUCKET: &str = "bucket-1";
const MTIME_NS: i64 = 1_700_000_000_123_456_789;
const PART_BYTES: u64 = 1000;

/// An emulator with one bucket, and a leg in it.
struct Fixture {
    emulator: Emulator,
    store: B2Store,
}

impl Fixture {
    async fn new() -> Self {
        Self::tuned("", tuning()).await
    }

    async fn tuned(prefix: &str, tuning: Tuning) -> Self {
        let emulator = emulator();
        let store = store(&emulator, prefix, emulator.key(), tuning);
        store.open().await.unwrap();
        Fixture { emulator, store }
    }

    async fn put(&self, dest: &str, body: Body) -> Result<Receipt, StoreError> {
        self.store.put(put(path(dest.as_bytes()), body)).await
    }

    async fn hide(&self, dest: &str) -> Result<(), StoreError> {
        let dest = path(dest.as_bytes());
        self.store.remove(Remove { dest, kind: Kind::File, object: String::new() }).await
    }

    fn fault(&self, call: Call, kind: FaultKind) {
        self.emulator.inject(Fault::next(call, kind));
    }

    /// One fault for each of the next calls.
    fn faults(&self, call: Call, kinds: &[FaultKind]) {
        for (skip, kind) in (0..).zip(kinds) {
            self.emulator.inject(Fault { skip, ..Fault::next(call, kind.clone()) });
        }
    }

    fn called(&self, call: Call) -> u64 {
        self.emulator.counters().calls(call)
    }

    /// The visible names.
    fn names(&self) -> Vec<String> {
        self.emulator.files(BUCKET).iter().map(|file| file.name.clone()).collect()
    }

    /// Nothing was done that a correct client does not do, and the bill is what we think it is.
    fn check(&self) {
        assert_eq!(self.emulator.violations(), [""; 0]);
        let (ours, theirs) = (self.store.calls(), self.emulator.counters());
        let by_name = theirs.calls.iter().map(|(call, count)| (call.name().to_owned(), *count));
        assert_eq!(ours.by_name, by_name.collect());
        assert_eq!(
            (ours.class_a, ours.class_b, ours.class_c),
            (theirs.class_a, theirs.class_b, theirs.class_c)
        );
    }
}

fn emulator() -> Emulator {
    let limits =
        Limits { absolute_minimum_part_size: 100, recommended_part_size: PART_BYTES, ..Limits::default() };
    let emulator = Emulator::start(Options { limits, ..Options::default() }).unwrap();
    emulator.create_bucket(BUCKET).unwrap();
    emulator
}

/// With waits too short to be noticed, and time-outs too long to be met.
fn tuning() -> Tuning {
    let patience = Patience { first_wait: Duration::from_millis(1), ..Patience::default() };
    Tuning { patience, page_files: 10, ..Tuning::default() }
}

fn leg(emulator: &Emulator, prefix: &str) -> B2Leg {
    let prefix = path(prefix.as_bytes());
    B2Leg { bucket: BUCKET.into(), prefix, endpoint: emulator.endpoint(), key_files: None }
}

fn credentials((key_id, key): (String, String)) -> Credentials {
    Credentials { key_id, key: key.into(), source: "the test".into() }
}

fn store(emulator: &Emulator, prefix: &str, key: (String, String), tuning: Tuning) -> B2Store {
    B2Store::tuned(&leg(emulator, prefix), credentials(key), "writer-1", 4, tuning).unwrap()
}

fn path(bytes: &[u8]) -> RelPath {
    RelPath::parse(bytes).unwrap()
}

fn put(dest: RelPath, body: Body) -> Put {
    let stat = *body.file.stat();
    Put { dest, what: What::File(body), stat, xattrs: Vec::new() }
}

fn sha1(bytes: &[u8]) -> [u8; 20] {
    Hasher::digest(bytes).into()
}

fn answer(status: u16, code: &str, retry_after_s: Option<u64>) -> FaultAnswer {
    FaultAnswer { status, code: code.into(), retry_after_s }
}

/// Read whole by the run.
fn small(content: &[u8]) -> Body {
    let small = Some((Bytes::copy_from_slice(content), sha1(content)));
    Body { small, ..TestFile::new(content).body() }
}

/// Bytes that differ from part to part.
fn content(size: u64) -> Vec<u8> {
    (0..size).map(|n| (n / 7 % 251) as u8).collect()
}

/// A source that may change once so many bytes were read.
struct TestFile {
    stat: Stat,
    content: Vec<u8>,
    read_bytes: AtomicU64,
    /// From then on other bytes are read.
    rewritten_after: u64,
    /// From then on it says that it changed.
    moved_after: u64,
    /// From then on reads fail.
    broken_after: u64,
    checks: AtomicU64,
    /// So many times it says that it did not change.
    moved_after_checks: u64,
}

impl TestFile {
    fn new(content: &[u8]) -> Self {
        let stat = Stat {
            kind: Kind::File,
            size: content.len() as u64,
            mtime_ns: MTIME_NS,
            ctime_ns: MTIME_NS,
            btime_ns: None,
            ino: 1,
            mode: 0o644,
            uid: 0,
            gid: 0,
            nlink: 1,
            rdev: 0,
        };
        TestFile {
            stat,
            content: content.to_vec(),
            read_bytes: AtomicU64::new(0),
            rewritten_after: u64::MAX,
            moved_after: u64::MAX,
            broken_after: u64::MAX,
            checks: AtomicU64::new(0),
            moved_after_checks: u64::MAX,
        }
    }

    fn body(self) -> Body {
        Body { file: Arc::new(self), small: None }
    }
}

impl SourceFile for TestFile {
    fn stat(&self) -> &Stat {
        &self.stat
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let rest = &self.content[(offset as usize).min(self.content.len())..];
        // Short reads happen.
        let count = rest.len().min(buffer.len()).min(700);
        buffer[..count].copy_from_slice(&rest[..count]);
        let before = self.read_bytes.fetch_add(count as u64, Ordering::SeqCst);
        if before >= self.broken_after {
            return Err(io::Error::other("bad sector"));
        }
        if before >= self.rewritten_after {
            buffer[..count].fill(b'!');
        }
        Ok(count)
    }

    fn next_data(&self, from: u64) -> io::Result<Option<Range<u64>>> {
        Ok((from < self.stat.size).then_some(from..self.stat.size))
    }

    fn unchanged(&self) -> io::Result<bool> {
        let checks = self.checks.fetch_add(1, Ordering::SeqCst);
        Ok(checks < self.moved_after_checks && self.read_bytes.load(Ordering::SeqCst) < self.moved_after)
    }
}
