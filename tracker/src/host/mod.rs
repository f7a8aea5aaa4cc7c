//! What the tracker asks of the machine: the kernel's groups and handles, what is mounted, the clock, and what the service
//! manager keeps. A simulation gives another one, and all that decides runs in it as it is.

mod linux;
mod stored;

use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::Arc;

use shared::clock::Clock;
use shared::entry::Handle;
use shared::journal::{Change, Generation};

use crate::generation::Whole;
use crate::intake::buffer::Unfit;
use crate::intake::records::HandleRef;
use crate::intake::{EventSource, PlaceError, RootSeen};
use crate::mounts::Mount;
use crate::resolve::{Link, Lost, MountError, NameOf};
use crate::roots::{OpenRoot, OwnDir, Standing, TrackedRoot};

pub use linux::Linux;

/// A source that sees less, and what was seen of the roots.
pub type Placed<M> = (Box<dyn EventSource<M>>, Vec<RootSeen>);

/// One machine. Clones are the same one.
pub trait Host: Clone + Send + 'static {
    /// An open directory.
    type Dir;
    /// A queue of events in the kernel, as fanotify_init(2) makes it.
    type Group: Send;
    /// What an intake buffer lies in.
    type Memory: Memory;
    /// A view of a whole filesystem.
    type View: View;
    /// What the service manager kept under one name.
    type Kept: Send;

    fn clock(&self) -> Arc<dyn Clock>;

    fn boot_id(&self) -> io::Result<String>;

    /// Whether what stands at the path is a directory. Links are followed.
    fn is_dir(&self, path: &Path) -> io::Result<bool>;

    fn open_dir(&self, path: &Path) -> io::Result<Self::Dir>;

    /// What an open directory is and where it stands; for people, why that cannot be told.
    fn identify(&self, dir: Self::Dir) -> Result<OpenRoot<Self::Dir>, String>;

    /// Where the root at the path stands, without opening it, which would make an unmount fail. `None` if that cannot be
    /// told.
    fn standing(&self, path: &Path) -> Option<Standing>;

    fn is_mount_point(&self, path: &Path) -> bool;

    fn mounts(&self) -> io::Result<Vec<Mount>>;

    fn own_dir(&self, path: &Path) -> io::Result<OwnDir>;

    /// Opens a view of the filesystem with this superblock. It is given up when it is dropped.
    fn view(&self, dev: u64) -> Result<Self::View, MountError>;

    /// A group with `fanotify::GROUP_FLAGS`, without a mark.
    fn new_group(&self) -> Result<Self::Group, PlaceError>;

    /// Marks the whole filesystem with `fanotify::MARK_MASK`.
    fn mark(&self, group: &Self::Group, on: &Self::View) -> io::Result<()>;

    /// Flags and marks of the group, as in proc_pid_fdinfo(5).
    fn fdinfo(&self, group: &Self::Group) -> io::Result<String>;

    /// How many events a group holds before it overflows.
    fn queue_max(&self) -> u64;

    /// How many events are queued.
    fn queued(&self, group: &Self::Group) -> io::Result<u64>;

    /// Reads events into these bytes of a buffer; `WouldBlock` if none is queued.
    fn read(&self, group: &Self::Group, memory: &mut Self::Memory, range: Range<usize>) -> io::Result<usize>;

    /// Reads events into memory that is lost with the process.
    fn read_aside(&self, group: &Self::Group, into: &mut [u8]) -> io::Result<usize>;

    /// To be polled for reading, where there is such a thing.
    fn fd<'g>(&self, group: &'g Self::Group) -> Option<BorrowedFd<'g>>;

    /// Opens the directory under a mark of its own, which the group must tell. Returns what it will name.
    fn ring(&self, group: &Self::Group, dir: &Self::Dir, dev: u64) -> io::Result<Handle>;

    /// Takes away all marks on single directories, and no event: a tracker that was killed under its canary left one.
    fn unmark_dirs(&self, group: &Self::Group, any: &Self::View) -> io::Result<()>;

    /// The source for a filesystem that is refused to fanotify.
    fn place_instead(
        &self,
        roots: &[TrackedRoot],
        own: &[OwnDir],
    ) -> Result<Placed<Self::Memory>, PlaceError>;

    /// New memory of `buffer::TOTAL_BYTES`, all zero.
    fn new_memory(&self) -> io::Result<Self::Memory>;

    /// Takes what the service manager passed under a name.
    fn take_kept(&self, name: &str) -> Option<Self::Kept>;

    fn group_of(&self, kept: Self::Kept) -> Self::Group;

    fn memory_of(&self, kept: Self::Kept) -> Result<Self::Memory, Unfit>;

    /// Has everything of ours forgotten that was passed and not taken. Returns the names.
    fn discard_rest(&self) -> Vec<String>;

    fn keep_group(&self, name: &str, group: &Self::Group);

    fn keep_memory(&self, name: &str, memory: &Self::Memory);

    /// What stands under this name is kept no more.
    fn let_go(&self, name: &str);

    /// Waits until the service manager has done all it was told before.
    fn barrier(&self);

    /// The subvolume, its root directory, and the transaction that the filesystem is in. Asked on btrfs only, as all
    /// that follows.
    fn generation(&self, root: &OpenRoot<Self::Dir>) -> Result<Generation, Whole>;

    /// Which mount of the filesystem this is; another number for each, until the next boot.
    fn mount_number(&self, root: &OpenRoot<Self::Dir>) -> Option<u64>;

    /// What changed below a root since a generation.
    fn changes_since(
        &self,
        root: &TrackedRoot,
        open: &OpenRoot<Self::Dir>,
        own: &[OwnDir],
        since: u64,
    ) -> Result<Vec<Change>, Whole>;

    /// Puts the filesystem on its disk.
    fn sync(&self, dir: &Self::Dir) -> io::Result<()>;
}

/// The bytes of an intake buffer. What was stored stays when the process is killed, in the order of the stores.
pub trait Memory: Send {
    /// Bytes of all of it, also of what lies beyond `buffer::TOTAL_BYTES` and cannot be reached.
    fn size(&self) -> usize;

    /// One of the first `buffer::WORDS` words. They are never asked for as bytes.
    fn word(&self, word: usize) -> u64;

    /// What was stored before is there when the word is.
    fn set_word(&self, word: usize, value: u64);

    fn bytes(&self, range: Range<usize>) -> &[u8];

    /// All from a place on that somebody else wrote down; nothing if that is none.
    fn behind(&self, at: u64) -> &[u8];

    fn store(&mut self, at: usize, bytes: &[u8]);

    /// Makes these bytes zero.
    fn clear(&mut self, range: Range<usize>);

    /// From here on no read fails because the memory was taken away.
    fn lock(&self) -> io::Result<()>;
}

/// A view of a whole filesystem, open while a batch is resolved. It answers by handles.
pub trait View: Send {
    /// The handle of the top directory, which was opened by it.
    fn top(&self) -> io::Result<Handle>;

    /// The links from a directory up to the first one that is known; none if it is known itself.
    fn links(&mut self, dir: &Handle, is_known: impl Fn(HandleRef<'_>) -> bool) -> Result<Vec<Link>, Lost>;

    /// The directory and a name that a file has now.
    fn name_of(&mut self, file: &Handle) -> NameOf;

    /// True unless it is certain that a file has no more than one name.
    fn may_have_names(&mut self, file: &Handle) -> bool;

    /// Whether the directory has this name and it is this object.
    fn has(&mut self, dir: HandleRef<'_>, name: &[u8], file: HandleRef<'_>) -> bool;
}
