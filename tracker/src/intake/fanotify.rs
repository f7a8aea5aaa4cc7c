//! The fanotify source: one group and one filesystem mark for all roots of a filesystem.

mod canary;
mod event;
mod place;

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use shared::entry::{Cause, Handle};
use shared::limits;

use super::records::{self, Records};
use super::{Checked, EventSource, Kind, Taken};
use crate::batch::Batch;
use crate::resolve::Resolver;
use crate::resolve::doubts::{DoubtState, Doubts, Turn};
use crate::roots::TrackedRoot;
use canary::Canary;

pub use place::superblock;

/// More than the longest event: less room than this at the end of a read says nothing about the queue.
const EVENT_BYTES_MAX: usize = 4096;
/// FIONREAD counts this many bytes for each event, whatever its length (measured on 6.18).
const FIONREAD_BYTES_PER_EVENT: u64 = 24;

pub struct Fanotify {
    group: OwnedFd,
    roots: Vec<TrackedRoot>,
    /// Device number of the superblock; that of files differs from it on btrfs.
    dev: u64,
    fs: String,
    anchors: Vec<Option<Handle>>,
    resolver: Resolver,
    doubts: Doubts,
    buffer: Vec<u8>,
    filled: usize,
    queue_max: u64,
    last_error: Option<(i32, u32)>,
    /// By root.
    canaries: Vec<Canary>,
}

impl Fanotify {
    /// Everything remembered came from a stream that broke.
    fn forget(&mut self) {
        self.resolver.tree.clear();
        self.doubts.forget();
    }
}

impl EventSource for Fanotify {
    fn kind(&self) -> Kind {
        Kind::Fanotify
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.group.as_fd()
    }

    fn queued(&self) -> u64 {
        // An error would make a flush wait for nothing: the queue read to its end answers it too.
        rustix::io::ioctl_fionread(&self.group).map_or(u64::MAX, |n| n.div_ceil(FIONREAD_BYTES_PER_EVENT))
    }

    fn read(&mut self) -> io::Result<Option<Taken>> {
        let end = self.buffer.len().min(self.filled + limits::INTAKE_READ_BYTES);
        let room = &mut self.buffer[self.filled..end];
        let size = room.len();
        match rustix::io::read(&self.group, &mut *room) {
            Ok(0) | Err(Errno::AGAIN | Errno::INTR) => Ok(None),
            Ok(bytes) => {
                let events = records::count(&room[..bytes]);
                self.filled += bytes;
                Ok(Some(Taken { events, bytes, drained: size - bytes >= EVENT_BYTES_MAX }))
            }
            Err(e) => Err(e.into()),
        }
    }

    fn translate(&mut self, batch: &mut Batch, read: u64, now_ns: i64) {
        let buffer = std::mem::take(&mut self.buffer);
        for record in Records::new(&buffer[..self.filled]) {
            let lost = match &record {
                // Before any lookup: nothing else is known of this event.
                Ok(record) if record.is_overflow() => {
                    batch.overflows += 1;
                    Some(Cause::Overflow)
                }
                Ok(record) => self.event(record, batch, read).is_err().then_some(Cause::Unresolved),
                Err(damaged) => {
                    tracing::error!("{damaged}");
                    Some(Cause::Damaged)
                }
            };
            if let Some(cause) = lost {
                self.forget();
                batch.gap(&self.roots, cause);
            }
            if lost == Some(Cause::Unresolved) {
                // Nothing of this batch resolves, and the gap covers all of it.
                break;
            }
        }
        self.buffer = buffer;
        self.filled = 0;
        self.resolver.release();
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

    fn doubt_turn(&mut self, now_ns: i64) -> Turn {
        self.doubts.turn(now_ns)
    }
}

#[cfg(test)]
mod tests;
