//! A filesystem in memory, as plain data: what stands in it, and the fanotify events that each operation makes. What
//! it does is held against the real kernel by the test `kernel`.
//!
//! Paths are bytes below the top, with `/` between names and none at the ends; the empty path is the top. Links are
//! never followed. An operation that fails changes nothing and makes no event.

mod content;
mod event;
mod files;
mod inode;
mod metadata;
mod names;
mod questions;
mod rename;
mod subvolume;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

pub use content::{Content, PAGE_BYTES};
pub use event::{At, Event};
pub use files::{Fd, How};
pub use inode::{FsKind, Id, Inode, Link};
pub use names::join;
pub use questions::Listing;
pub use rustix::io::Errno;
pub use syncer::tree::{Kind, Stat};

use files::Open;
use inode::State;

/// A name in a directory: bytes, shared by all that mention it.
pub type Name = Arc<[u8]>;

pub type Result<T> = std::result::Result<T, Errno>;

/// Longest name, of all filesystems that are modelled.
const NAME_BYTES_MAX: usize = 255;

/// One filesystem.
#[derive(Debug, Clone)]
pub struct Disk {
    pub kind: FsKind,
    pub uuid: String,
    /// The clock that times are taken from: set it before an operation.
    pub now_ns: i64,
    /// Times are multiples of this: 1 (multigrain), a tick of 4 ms, 1 s, 2 s.
    pub grain_ns: i64,
    pub read_only: bool,
    /// Nothing can be made, and no file can grow.
    pub full: bool,
    /// The device is gone.
    pub dead: bool,
    /// Somebody wants the events; otherwise none are made.
    pub watched: bool,
    /// What the operations made, until somebody takes it.
    pub events: Vec<Event>,
    state: State,
    /// What a power cut leaves.
    durable: State,
    open: BTreeMap<Fd, Open>,
    /// Never goes back, so that no two open files and no two generations are alike.
    count: u64,
}

impl Disk {
    pub fn new(kind: FsKind, uuid: &str, now_ns: i64) -> Disk {
        let state = State::new(kind, now_ns);
        Disk {
            kind,
            uuid: uuid.to_owned(),
            now_ns,
            grain_ns: 1,
            read_only: false,
            full: false,
            dead: false,
            watched: false,
            events: Vec::new(),
            durable: state.clone(),
            state,
            open: BTreeMap::new(),
            count: 0,
        }
    }

    pub fn take_events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }

    /// All there is now survives a power cut.
    pub fn sync(&mut self) {
        if self.kind == FsKind::Btrfs {
            self.state.transaction += 1;
        }
        self.durable = self.state.clone();
    }

    /// Goes back to the last `sync`, an earlier state as a whole, as a filesystem with a journal does. Nothing is open
    /// any more.
    pub fn power_cut(&mut self) {
        self.state = self.durable.clone();
        self.forget_open();
    }

    /// An orderly end of all programs: nothing is open any more, and all is durable.
    pub fn settle(&mut self) {
        self.forget_open();
        self.sync();
    }

    fn forget_open(&mut self) {
        self.open.clear();
        self.events.clear();
        self.state.drop_nameless();
    }

    /// The time that an operation leaves on what it changes.
    fn time(&self) -> i64 {
        self.now_ns - self.now_ns.rem_euclid(self.grain_ns)
    }

    /// Whether anything can be changed at all.
    fn writable(&self) -> Result<()> {
        if self.dead {
            return Err(Errno::IO);
        }
        if self.read_only { Err(Errno::ROFS) } else { Ok(()) }
    }

    /// Whether anything can be made.
    fn room(&self) -> Result<()> {
        self.writable()?;
        if self.full { Err(Errno::NOSPC) } else { Ok(()) }
    }

    fn tell(&mut self, event: Event) {
        if self.watched {
            self.events.push(event);
        }
    }
}
