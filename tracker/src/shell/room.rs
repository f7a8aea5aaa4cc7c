//! Room on the state disk: a reserve that is given up when the disk is full, so that one gap for each root can still be
//! committed; and what becomes of a batch meanwhile. The decisions are pure.

use std::fmt;
use std::fs::{File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::FallocateFlags;
use shared::entry::Cause;
use shared::journal::{Change, Commit};
use shared::limits;

use crate::roots::TrackedRoot;

/// How a batch is offered to the journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offer {
    Whole,
    /// Its changes are let go: a gap over each root stands for them.
    AsGap,
}

/// While the reserve is spent nothing but gaps is written. A gap that no leg has claimed yet covers the next one, so
/// that this takes no room at all.
pub fn first_offer(spent: bool) -> Offer {
    if spent { Offer::AsGap } else { Offer::Whole }
}

/// After the disk was found full: give up the reserve and offer less, or keep it for a later try.
pub fn next_offer(refused: Offer) -> Option<Offer> {
    (refused == Offer::Whole).then_some(Offer::AsGap)
}

/// What is left of a batch when its changes are let go. What it answers of older doubts, the gap answers too.
pub fn as_gap(batch: Commit, roots: &[TrackedRoot]) -> Commit {
    let changes = roots.iter().map(|root| Change::gap(root.id, Cause::DiskFull)).collect();
    Commit { changes, doubts: Vec::new(), ..batch }
}

/// There is more free than the reserve takes: what was given up a moment ago must not be taken again at once.
fn is_enough(free_bytes: u64) -> bool {
    free_bytes >= 2 * limits::RESERVE_BYTES
}

/// What holds the room. It is shown to people as its name.
pub trait Reserve: fmt::Display + Send + Sync {
    /// Takes `RESERVE_BYTES` of the disk, as far as they are not taken.
    fn fill(&self) -> io::Result<()>;

    /// Gives them back: when this returns they are free.
    fn empty(&self) -> io::Result<()>;

    /// What is free besides.
    fn free_bytes(&self) -> io::Result<u64>;
}

/// The reserve, shared by the threads of all filesystems.
pub struct Room {
    reserve: Box<dyn Reserve>,
    spent: AtomicBool,
}

impl Room {
    /// Makes the reserve, if it is not there from before.
    pub fn make(reserve: impl Reserve + 'static) -> io::Result<Room> {
        reserve.fill()?;
        Ok(Room { reserve: Box::new(reserve), spent: AtomicBool::new(false) })
    }

    pub fn is_spent(&self) -> bool {
        self.spent.load(Ordering::Acquire)
    }

    /// Gives the reserve up; true for the first who asks.
    pub fn spend(&self) -> bool {
        if self.spent.swap(true, Ordering::AcqRel) {
            return false;
        }
        if let Err(e) = self.reserve.empty() {
            tracing::warn!("The reserve {} cannot be given up: {e}", self.reserve);
        }
        true
    }

    /// Makes the reserve anew if it is spent and there is room; true if that is so.
    pub fn regain(&self) -> bool {
        if !self.is_spent() || !self.reserve.free_bytes().is_ok_and(is_enough) {
            return false;
        }
        match self.reserve.fill() {
            Ok(()) => self.spent.store(false, Ordering::Release),
            Err(e) => tracing::debug!("{}: {e}", self.reserve),
        }
        !self.is_spent()
    }
}

/// A file beside the journal.
pub struct ReserveFile {
    path: PathBuf,
}

impl ReserveFile {
    pub fn in_dir(state_dir: &Path) -> ReserveFile {
        ReserveFile { path: state_dir.join("journal.reserve") }
    }
}

impl fmt::Display for ReserveFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.path.display().fmt(f)
    }
}

impl Reserve for ReserveFile {
    /// Only what is known to be gone is free on every filesystem.
    fn empty(&self) -> io::Result<()> {
        let file = OpenOptions::new().write(true).open(&self.path)?;
        file.set_len(0)?;
        file.sync_all()
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let seen = rustix::fs::statvfs(self.path.parent().unwrap_or(Path::new("/")))?;
        Ok(seen.f_bavail.saturating_mul(seen.f_frsize))
    }

    fn fill(&self) -> io::Result<()> {
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&self.path)?;
        file.set_permissions(Permissions::from_mode(0o600))?;
        match rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, limits::RESERVE_BYTES) {
            Err(rustix::io::Errno::OPNOTSUPP) => write_zeros(file),
            done => Ok(done?),
        }
    }
}

fn write_zeros(mut file: File) -> io::Result<()> {
    io::copy(&mut io::Read::take(io::repeat(0), limits::RESERVE_BYTES), &mut file)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::roots::tests::root;
    use shared::entry::{Handle, Scope};
    use shared::journal::Doubt;

    #[test]
    fn a_batch_is_offered_whole_then_as_a_gap_then_kept() {
        assert_eq!(first_offer(false), Offer::Whole);
        assert_eq!(next_offer(Offer::Whole), Some(Offer::AsGap));
        assert_eq!(next_offer(Offer::AsGap), None);
        assert_eq!(first_offer(true), Offer::AsGap, "what was given up is not for the next batch");
    }

    #[test]
    fn a_batch_that_is_let_go_leaves_a_gap_for_each_root_and_its_place_in_the_stream() {
        let handle = Handle { kind: 1, bytes: vec![1] };
        let mark = shared::journal::IntakeMark { fs: "fs".into(), buffer_id: [1; 16], epoch: 7 };
        let batch = Commit {
            changes: vec![Change::gap(shared::journal::RootId(9), Cause::Overflow)],
            doubts: vec![Doubt { fs: "fs".into(), handle: handle.clone(), epoch: 1 }],
            settled: vec![("fs".into(), handle)],
            intake: Some(mark.clone()),
            ..Commit::default()
        };
        let roots = [root(1, Path::new("/a"), &[]), root(2, Path::new("/b"), &[])];
        let left = as_gap(batch, &roots);
        let gaps: Vec<_> = left.changes.iter().map(|c| (c.root.0, c.scope, c.cause)).collect();
        assert_eq!(gaps, [(1, Scope::Subtree, Cause::DiskFull), (2, Scope::Subtree, Cause::DiskFull)]);
        assert_eq!((left.doubts.len(), left.settled.len(), left.intake), (0, 1, Some(mark)));
    }

    #[test]
    fn the_reserve_takes_room_until_it_is_spent_and_comes_back() {
        use std::os::unix::fs::MetadataExt as _;
        let dir = tempfile::tempdir().unwrap();
        let room = Room::make(ReserveFile::in_dir(dir.path())).unwrap();
        let takes = || std::fs::metadata(dir.path().join("journal.reserve")).unwrap().blocks() * 512;
        assert!(takes() >= limits::RESERVE_BYTES);
        assert!(!room.is_spent() && !room.regain());
        assert!(room.spend() && !room.spend());
        assert_eq!((takes(), room.is_spent()), (0, true));
        assert!(room.regain() && !room.is_spent() && takes() >= limits::RESERVE_BYTES);
        assert!(
            Room::make(ReserveFile::in_dir(dir.path())).is_ok(),
            "the one of an earlier start is taken over"
        );
    }

    #[test]
    fn room_that_is_just_large_enough_is_not_taken_again() {
        assert!(!is_enough(limits::RESERVE_BYTES) && is_enough(2 * limits::RESERVE_BYTES));
    }
}
