//! The fanotify source: one group and one filesystem mark for all roots of a filesystem.

mod adopt;
mod canary;
mod event;
mod links;
mod place;

use std::io;
use std::os::fd::BorrowedFd;

use shared::entry::{Cause, Handle};
use shared::journal::IntakeMark;
use shared::kill;

use super::buffer::{Buffer, RootMark, Slot};
use super::records::{Damaged, Record, Records};
use super::{Checked, EventSource, Kind, Taken};
use crate::batch::Batch;
use crate::host::Host;
use crate::resolve::doubts::{DoubtState, Doubts, Turn};
use crate::resolve::{Lost, Resolver};
use crate::roots::TrackedRoot;
use canary::Canary;
use links::Links;

pub use adopt::{Adopted, Known, NotAdopted};
pub use canary::RING_MASK;
pub(crate) use place::refused;
pub use place::{GROUP_FLAGS, MARK_MASK, superblock};

/// More than the longest event: less room than this at the end of a read says nothing about the queue.
pub const EVENT_BYTES_MAX: usize = 4096;

pub struct Fanotify<H: Host> {
    host: H,
    group: H::Group,
    roots: Vec<TrackedRoot>,
    /// Device number of the superblock; that of files differs from it on btrfs.
    dev: u64,
    fs: String,
    anchors: Vec<Option<Handle>>,
    resolver: Resolver<H>,
    doubts: Doubts,
    links: Links,
    /// Taken out only while its content is translated, and at the end.
    buffer: Option<Buffer<H::Memory>>,
    /// What the buffer says of the roots once they are complete.
    marks: Vec<RootMark>,
    queue_max: u64,
    last_error: Option<(i32, u32)>,
    /// By root.
    canaries: Vec<Canary>,
}

impl<H: Host> Fanotify<H> {
    /// Everything remembered came from a stream that broke.
    fn forget(&mut self) {
        self.resolver.tree.clear();
        self.doubts.forget();
        self.links = Links::default();
    }

    fn lose(&mut self, cause: Cause, batch: &mut Batch) {
        self.forget();
        batch.gap(&self.roots, cause);
    }

    fn record(
        &mut self,
        record: Result<Record<'_>, Damaged>,
        batch: &mut Batch,
        read: u64,
    ) -> Result<(), Lost> {
        match record {
            // Before any lookup: nothing else is known of this event.
            Ok(record) if record.is_overflow() => {
                batch.overflows += 1;
                self.lose(Cause::Overflow, batch);
            }
            Ok(record) => {
                if let Err(lost) = self.event(&record, batch, read) {
                    self.lose(Cause::Unresolved, batch);
                    return Err(lost);
                }
            }
            Err(damaged) => {
                tracing::error!("{damaged}");
                self.lose(Cause::Damaged, batch);
            }
        }
        Ok(())
    }
}

impl<H: Host> EventSource<H::Memory> for Fanotify<H> {
    fn kind(&self) -> Kind {
        Kind::Fanotify
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.host.fd(&self.group)
    }

    fn queued(&self) -> u64 {
        // An error would make a flush wait for nothing: the queue read to its end answers it too.
        self.host.queued(&self.group).unwrap_or(u64::MAX)
    }

    fn read(&mut self) -> io::Result<Option<Taken>> {
        let Fanotify { host, group, buffer: Some(buffer), .. } = self else { return Ok(None) };
        match buffer.read(|memory, range| host.read(group, memory, range)) {
            Ok(Slot { bytes: 0, .. }) => Ok(None),
            Ok(Slot { events, bytes, room }) => {
                Ok(Some(Taken { events, bytes, drained: room - bytes >= EVENT_BYTES_MAX }))
            }
            Err(e) => match e.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(None),
                _ => Err(e),
            },
        }
    }

    fn translate(&mut self, batch: &mut Batch, read: u64, now_ns: i64) {
        let Some(mut buffer) = self.buffer.take() else { return };
        if let Some(cause) = buffer.owed() {
            self.lose(cause, batch);
        }
        let span = buffer.begin_batch();
        let mut records = Records::new(buffer.bytes(span.clone()));
        loop {
            let poisoned = buffer.translating(span.end - records.left());
            let Some(record) = records.next() else { break };
            if poisoned {
                tracing::error!("An event that killed the tracker again and again is skipped");
                self.lose(Cause::Poison, batch);
                continue;
            }
            kill::point("translating");
            if self.record(record, batch, read) == Err(Lost::NoMount) {
                // Nothing of this batch resolves, and the gap covers all of it.
                break;
            }
        }
        buffer.translated();
        for trace in self.doubts.buried() {
            buffer.bury(trace);
        }
        self.buffer = Some(buffer);
        self.resolver.release();
        self.links.end_batch();
        self.doubts.passed(read, self.queue_max, now_ns);
    }

    fn check(&mut self) -> Checked {
        self.look()
    }

    fn is_steady(&self) -> bool {
        self.is_marked()
    }

    fn ring(&mut self) {
        self.ring_roots();
    }

    fn heard(&self) -> Vec<Option<bool>> {
        self.canaries.iter().map(Canary::heard).collect()
    }

    fn drained(&mut self, now_ns: i64) {
        self.doubts.drained(now_ns);
    }

    fn doubt_state(&self) -> DoubtState {
        self.doubts.state()
    }

    fn doubt_count(&self) -> usize {
        self.doubts.len()
    }

    fn cached_dirs(&self) -> usize {
        self.resolver.tree.dir_count()
    }

    fn doubt_turn(&mut self, now_ns: i64) -> Turn {
        self.doubts.turn(now_ns)
    }

    fn mark(&self, fs: &str) -> Option<IntakeMark> {
        self.buffer.as_ref().map(|buffer| buffer.mark(fs))
    }

    fn finish(&mut self, counted: bool) -> usize {
        let Some(buffer) = &mut self.buffer else { return 0 };
        buffer.finish(counted);
        buffer.left()
    }

    fn in_force(&mut self) {
        if let Some(buffer) = &mut self.buffer
            && buffer.lasting().roots != self.marks
        {
            buffer.set_roots(self.marks.clone());
        }
    }

    fn leave(&mut self) {
        self.buffer.iter().for_each(Buffer::leave);
    }

    fn take_buffer(&mut self) -> Option<Buffer<H::Memory>> {
        self.buffer.take()
    }
}

#[cfg(test)]
mod tests;
