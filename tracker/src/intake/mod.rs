//! Where events come from: fanotify for a whole filesystem, inotify where that is refused.

pub mod buffer;
pub mod fanotify;
pub mod inotify;
pub mod keep;
pub mod records;
pub mod sys;
mod watches;

use std::io;
use std::os::fd::BorrowedFd;

use shared::entry::Handle;
use shared::journal::{IntakeMark, RootState};

use crate::batch::Batch;
use crate::resolve::doubts::{DoubtState, Turn};
use buffer::{Buffer, Memfd};

/// Which kernel interface serves a filesystem.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Fanotify,
    Inotify,
}

impl Kind {
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Fanotify => "fanotify",
            Kind::Inotify => "inotify",
        }
    }

    /// What no event tells of on a filesystem of this type, as an identity names it.
    pub fn blind_spots(self, fs: &str) -> Vec<String> {
        let all = ["Linux native AIO", "stores through a live mmap", "loop-device backing files"];
        let (below, remote) = ("changes made below the mount", "remote clients");
        let more: &[&str] = match (self, fs) {
            (Kind::Inotify, _) => &[below, "other hard-link names of a watched file", remote],
            (Kind::Fanotify, "overlay") => &[below],
            (Kind::Fanotify, "ext4" | "xfs" | "btrfs" | "tmpfs" | "zfs" | "exfat" | "vfat" | "f2fs") => &[],
            // One that other machines may use, too.
            (Kind::Fanotify, _) => &[remote],
        };
        all.iter().chain(more).map(|s| (*s).to_owned()).collect()
    }
}

/// One read of the kernel's queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taken {
    pub events: u64,
    pub bytes: usize,
    /// The queue was empty at the end of it.
    pub drained: bool,
}

/// What was seen of one root, by its index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootSeen {
    pub root: usize,
    pub state: RootState,
    pub why: String,
}

/// What a check of the source found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checked {
    /// Every root that is there is being watched.
    pub intact: bool,
    pub roots: Vec<RootSeen>,
}

/// Why a source cannot serve these roots.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// The kernel will not do it for this filesystem or this user: another source may.
    #[error("{reason}")]
    Refused { reason: String },
    /// None of the roots is there.
    #[error("None of the roots is there")]
    Absent(Vec<RootSeen>),
    #[error(
        "fanotify_init: EMFILE, this user has all {max} fanotify groups that fs.fanotify.max_user_groups allows, and each tracked filesystem needs one. End other programs of this user that hold some, or raise it: sysctl fs.fanotify.max_user_groups=N"
    )]
    NoGroup { max: String },
    /// Marked, and yet nothing comes.
    #[error("The kernel took the mark, but did not tell of the opening of the root `{root}`")]
    Silent { root: String },
    #[error("Cannot {op}: {source}")]
    Io { op: &'static str, source: io::Error },
}

/// A queue of events in the kernel and the way from them to changes. One thread uses it; it commits nothing.
pub trait EventSource<M = Memfd>: Send {
    fn kind(&self) -> Kind;

    /// To be polled for reading, where there is such a thing.
    fn fd(&self) -> Option<BorrowedFd<'_>>;

    /// How many events are queued, or more. Walks the queue under the lock that writers wait for: not for pacing.
    fn queued(&self) -> u64;

    /// Takes over what is queued, within bounds. `None`: nothing is.
    fn read(&mut self) -> io::Result<Option<Taken>>;

    /// Turns what was read since the last time into changes; `read` counts the events so far.
    fn translate(&mut self, batch: &mut Batch, read: u64, now_ns: i64);

    /// Whether every root is still what it was and watched. May touch the roots' disk.
    fn check(&mut self) -> Checked;

    /// True if it surely watches what it did at the last check, told without touching the roots.
    fn is_steady(&self) -> bool {
        false
    }

    /// Does something harmless at each root that the kernel must tell of, where there is such a thing.
    fn ring(&mut self) {}

    /// By root, whether the kernel has told of it; `None` if it was not asked to.
    fn heard(&self) -> Vec<Option<bool>> {
        Vec::new()
    }

    /// The queue was empty at this time.
    fn drained(&mut self, _now_ns: i64) {}

    fn doubt_state(&self) -> DoubtState {
        DoubtState::default()
    }

    fn doubt_count(&self) -> usize {
        0
    }

    /// Directories whose place it remembers.
    fn cached_dirs(&self) -> usize;

    /// What the doubts add to a commit.
    fn doubt_turn(&mut self, _now_ns: i64) -> Turn {
        Turn::default()
    }

    /// Changes to commit before a flush is answered: what this source knows it cannot see.
    fn unseen(&mut self, _batch: &mut Batch) {}

    /// What the next commit says of the buffer that its changes were read into.
    fn mark(&self, _fs: &str) -> Option<IntakeMark> {
        None
    }

    /// What was translated last is done with; `counted` if the journal holds its mark. So many bytes of what was read
    /// are still to be translated.
    fn finish(&mut self, _counted: bool) -> usize {
        0
    }

    /// The gap rows of all roots are committed: from here on the stream is complete.
    fn in_force(&mut self) {}

    /// Everything is committed, and nothing more will be read by this process.
    fn leave(&mut self) {}

    /// The buffer, for the source after this one.
    fn take_buffer(&mut self) -> Option<Buffer<M>> {
        None
    }
}

/// Doubts of an earlier session, for the gap that covers them.
pub fn settled_by_gap(doubts: Vec<shared::journal::Doubt>) -> Vec<Handle> {
    doubts.into_iter().map(|d| d.handle).collect()
}
