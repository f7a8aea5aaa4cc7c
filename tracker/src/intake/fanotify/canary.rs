//! The canary: proof that what happens at the roots comes to this group. Each root is opened under a mark of its own
//! for just that, which the group must tell. Nothing is written.

use std::io;

use shared::entry::Handle;
use shared::limits;

use super::Fanotify;
use super::place::open_roots;
use crate::host::Host;
use crate::intake::PlaceError;
use crate::intake::records::{Record, Records};
use crate::roots::OpenRoot;

/// What the mark of a canary tells of.
pub const RING_MASK: u64 = libc::FAN_OPEN | libc::FAN_ONDIR;

/// What is known of one root's canary.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) enum Canary {
    /// Not asked for, or it cannot be.
    #[default]
    None,
    /// This directory was opened.
    Awaited(Handle),
    Heard,
}

impl Canary {
    pub(super) fn heard(&self) -> Option<bool> {
        match self {
            Canary::None => None,
            Canary::Awaited(_) => Some(false),
            Canary::Heard => Some(true),
        }
    }
}

impl<H: Host> Fanotify<H> {
    /// Opens every root that is there. What is told of it is read like any event.
    pub(super) fn ring_roots(&mut self) {
        let all = self.host.mounts().unwrap_or_default();
        let (open, _) = open_roots(&self.host, &self.roots, &all);
        let ring = |open: OpenRoot<H::Dir>| match self.host.ring(&self.group, &open.fd, self.dev) {
            Ok(handle) => Canary::Awaited(handle),
            Err(e) => {
                tracing::debug!("no canary at {}: {e}", self.fs);
                Canary::None
            }
        };
        self.canaries = open.into_iter().map(|open| open.map_or(Canary::None, ring)).collect();
    }

    /// True if nothing but a canary is in the event.
    pub(super) fn hear(&mut self, record: &Record<'_>) -> bool {
        if record.mask & libc::FAN_OPEN == 0 {
            return false;
        }
        if let Some(at) = record.at {
            let dir = at.dir.to_handle();
            let told = |canary: &Canary| matches!(canary, Canary::Awaited(handle) if *handle == dir);
            self.canaries.iter_mut().filter(|c| told(c)).for_each(|c| *c = Canary::Heard);
        }
        record.mask & !RING_MASK == 0
    }

    /// For a group that was just made: what it tells meanwhile is covered by the gap that follows, and dropped.
    pub(super) fn prove(&mut self) -> Result<(), PlaceError> {
        self.ring_roots();
        let mut scratch = vec![0; limits::INTAKE_READ_BYTES];
        while let Some(silent) = self.canaries.iter().position(|c| c.heard() == Some(false)) {
            let bytes = match self.host.read_aside(&self.group, &mut scratch) {
                Ok(bytes) => bytes,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    return Err(PlaceError::Silent { root: self.roots[silent].name.clone() });
                }
                Err(source) => return Err(PlaceError::Io { op: "read events", source }),
            };
            for record in Records::new(&scratch[..bytes]).flatten() {
                if record.is_overflow() {
                    // Its event may be among the lost ones.
                    return Ok(());
                }
                self.hear(&record);
            }
        }
        Ok(())
    }
}
