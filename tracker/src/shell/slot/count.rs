//! What a filesystem's thread counts for the status file: per read, batch and commit, never per event.

use shared::journal::Appended;
use shared::limits;
use shared::status::{Buffer, Queue};

use super::Slot;
use crate::batch::Batch;
use crate::host::Host;
use crate::intake::Taken;

impl<H: Host> Slot<H> {
    pub(super) fn count_read(&self, taken: &Taken, now_ns: i64) {
        let mut status = self.shared.lock();
        let fs = &mut status.filesystem;
        fs.events_read += taken.events;
        fs.bytes_read += taken.bytes as u64;
        fs.rates.add(taken.events, now_ns);
        fs.buffer = buffered(fs.buffer, fs.buffer.bytes + taken.bytes as u64);
    }

    /// So much was read and is not committed.
    pub(super) fn count_buffered(&self, bytes: usize) {
        let buffer = &mut self.shared.lock().filesystem.buffer;
        *buffer = buffered(*buffer, bytes as u64);
    }

    /// Before the batch is committed.
    pub(super) fn count_batch(&self, batch: &Batch, doubts: u64, now_ns: i64) {
        let mut meter = self.shared.meter();
        meter.changes(now_ns, batch.changes());
        meter.writers(now_ns, batch.writers());
        drop(meter);
        let cached = self.source.as_ref().map_or(0, |s| s.cached_dirs());
        let mut status = self.shared.lock();
        let fs = &mut status.filesystem;
        fs.kinds.add(&batch.kinds);
        fs.merged += batch.merged;
        fs.dropped += batch.dropped;
        fs.overflows += batch.overflows;
        fs.gaps += batch.gaps.len() as u64;
        fs.doubts = doubts;
        fs.cached_dirs = cached as u64;
        if let Some(error) = &batch.error {
            fs.last_error.clone_from(error);
        }
    }

    pub(super) fn count_commit(&self, done: &Appended, at_ns: i64, took_ns: i64) {
        self.shared.meter().commit(took_ns);
        self.note(|s| {
            s.filesystem.entries += done.rows;
            s.filesystem.coalesced += done.coalesced;
            s.filesystem.commits += 1;
            s.filesystem.last_commit_ns = at_ns;
        });
    }

    /// How many events are queued at most. The look holds up those who write: at a probe and for a flush only.
    pub(super) fn count_queued(&self) -> u64 {
        let events = self.source.as_ref().map_or(0, |s| s.queued());
        // A source that cannot tell says the most there can be.
        let queue = (events != u64::MAX).then(|| Queue { events, at_ns: self.clock.wall_ns() });
        self.shared.lock().filesystem.queue = queue;
        events
    }
}

fn buffered(before: Buffer, bytes: u64) -> Buffer {
    let bytes_peak = before.bytes_peak.max(bytes);
    Buffer { bytes, bytes_max: limits::INTAKE_BATCH_BYTES as u64, bytes_peak }
}
