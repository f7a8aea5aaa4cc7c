//! Inodes: their numbers, generations and handles, and the table of all of them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use shared::entry::Handle;
use syncer::tree::Kind;

use super::{Content, Name};

/// Which filesystem is played.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FsKind {
    Ext4,
    Xfs,
    Btrfs,
}

/// BTRFS_FS_TREE_OBJECTID: the subvolume that holds all others.
pub const BTRFS_TOP: u64 = 5;
/// BTRFS_FIRST_FREE_OBJECTID: the top of each subvolume, and the first of their numbers.
pub const BTRFS_FIRST: u64 = 256;

impl FsKind {
    /// As in /proc/filesystems.
    pub fn name(self) -> &'static str {
        match self {
            FsKind::Ext4 => "ext4",
            FsKind::Xfs => "xfs",
            FsKind::Btrfs => "btrfs",
        }
    }

    /// Number of the top directory, and the first that is given to anything else.
    fn numbers(self) -> (u64, u64) {
        match self {
            FsKind::Ext4 => (2, 12),
            FsKind::Xfs => (128, 131),
            FsKind::Btrfs => (BTRFS_FIRST, BTRFS_FIRST + 1),
        }
    }

    /// The number of what is deleted goes to the next that is made; on xfs a little later, which is not played.
    fn reuses_numbers(self) -> bool {
        self != FsKind::Btrfs
    }

    pub(super) fn top_root(self) -> u64 {
        if self == FsKind::Btrfs { BTRFS_TOP } else { 0 }
    }
}

/// One inode in one generation, which is what a file handle says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id {
    /// The subvolume, on btrfs; else 0.
    pub root: u64,
    pub ino: u64,
    pub generation: u32,
}

impl Id {
    pub fn handle(self, kind: FsKind) -> Handle {
        let generation = self.generation.to_le_bytes();
        let (kind, bytes) = match kind {
            FsKind::Ext4 => (1, [&(self.ino as u32).to_le_bytes()[..], &generation].concat()),
            FsKind::Xfs => (0x81, [&self.ino.to_le_bytes()[..], &generation].concat()),
            FsKind::Btrfs => {
                (0x4d, [&self.ino.to_le_bytes()[..], &self.root.to_le_bytes(), &generation].concat())
            }
        };
        Handle { kind, bytes }
    }

    /// `None` if no filesystem of this kind makes such a handle.
    pub fn of_handle(kind: FsKind, handle: &Handle) -> Option<Id> {
        let long = |at: usize| handle.bytes.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes);
        let short = |at: usize| handle.bytes.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes);
        match (kind, handle.kind, handle.bytes.len()) {
            (FsKind::Ext4, 1, 8) => Some(Id { root: 0, ino: u64::from(short(0)?), generation: short(4)? }),
            (FsKind::Xfs, 0x81, 12) => Some(Id { root: 0, ino: long(0)?, generation: short(8)? }),
            (FsKind::Btrfs, 0x4d, 20) => Some(Id { root: long(8)?, ino: long(0)?, generation: short(16)? }),
            _ => None,
        }
    }
}

/// A name that an inode has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    pub dir: Id,
    pub name: Name,
}

#[derive(Debug, Clone)]
pub struct Inode {
    pub id: Id,
    pub kind: Kind,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub rdev: u64,
    pub mtime_ns: i64,
    pub ctime_ns: i64,
    pub btime_ns: i64,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Of a file; of a symlink, where it leads.
    pub content: Content,
    /// Of a directory.
    pub entries: BTreeMap<Name, Id>,
    /// Directories among the entries.
    pub subdirs: u64,
    /// All its names, in the order in which it got them. The tops have none.
    pub links: Vec<Link>,
}

impl Inode {
    pub fn new(id: Id, kind: Kind, mode: u32, now_ns: i64) -> Inode {
        Inode {
            id,
            kind,
            mode,
            uid: 0,
            gid: 0,
            rdev: 0,
            mtime_ns: now_ns,
            ctime_ns: now_ns,
            btime_ns: now_ns,
            xattrs: BTreeMap::new(),
            content: Content::default(),
            entries: BTreeMap::new(),
            subdirs: 0,
            links: Vec::new(),
        }
    }

    pub fn is_dir(&self) -> bool {
        self.kind == Kind::Dir
    }

    pub(super) fn changed(&mut self, now_ns: i64) {
        self.mtime_ns = now_ns;
        self.ctime_ns = now_ns;
    }
}

/// Everything that a power cut can take back.
#[derive(Debug, Clone)]
pub(super) struct State {
    inodes: BTreeMap<(u64, u64), Arc<Inode>>,
    /// By subvolume, the number that nothing had yet.
    next: BTreeMap<u64, u64>,
    free: BTreeSet<u64>,
    /// The generation of what btrfs makes. After a power cut the same ones come again, with the same numbers.
    pub transaction: u64,
    pub next_root: u64,
    pub top: Id,
}

impl State {
    pub fn new(kind: FsKind, now_ns: i64) -> State {
        let (number, first) = kind.numbers();
        let top = Id { root: kind.top_root(), ino: number, generation: 0 };
        let inode = Inode::new(top, Kind::Dir, 0o755, now_ns);
        State {
            inodes: BTreeMap::from([((top.root, top.ino), Arc::new(inode))]),
            next: BTreeMap::from([(top.root, first)]),
            free: BTreeSet::new(),
            transaction: 8,
            next_root: BTRFS_FIRST,
            top,
        }
    }

    pub fn get(&self, id: Id) -> Option<&Inode> {
        self.inodes.get(&(id.root, id.ino)).filter(|inode| inode.id == id).map(|inode| &**inode)
    }

    /// Whether this subvolume was not deleted.
    pub fn has_root(&self, root: u64) -> bool {
        let top = self.inodes.get(&(root, BTRFS_FIRST));
        root == self.top.root || top.is_some_and(|top| !top.links.is_empty())
    }

    pub fn get_mut(&mut self, id: Id) -> Option<&mut Inode> {
        self.inodes.get_mut(&(id.root, id.ino)).filter(|inode| inode.id == id).map(Arc::make_mut)
    }

    pub fn all(&self) -> impl Iterator<Item = &Inode> {
        self.inodes.values().map(|inode| &**inode)
    }

    pub fn put(&mut self, inode: Inode) {
        self.inodes.insert((inode.id.root, inode.id.ino), Arc::new(inode));
    }

    /// A number for something new in a subvolume. `draw` makes it one of a kind where the filesystem draws generations.
    pub fn new_id(&mut self, kind: FsKind, root: u64, draw: u64) -> Id {
        let generation = match kind {
            FsKind::Btrfs => self.transaction as u32,
            // Each odd factor makes all 2^32 different before the first comes again.
            FsKind::Ext4 | FsKind::Xfs => (draw as u32).wrapping_mul(0x9e37_79b1),
        };
        let free = if kind.reuses_numbers() { self.free.pop_first() } else { None };
        let ino = free.unwrap_or_else(|| {
            let next = self.next.entry(root).or_insert(BTRFS_FIRST + 1);
            *next += 1;
            *next - 1
        });
        Id { root, ino, generation }
    }

    pub fn remove(&mut self, id: Id) {
        if self.get(id).is_some() {
            self.inodes.remove(&(id.root, id.ino));
            self.free.insert(id.ino);
        }
    }

    /// A subvolume goes on with the numbers of the one that it is a copy of.
    pub fn numbers_of(&mut self, from: u64, to: u64) {
        let next = self.next.get(&from).copied().unwrap_or(BTRFS_FIRST + 1);
        self.next.insert(to, next);
    }

    /// Everything without a name that nobody holds open any more.
    pub fn drop_nameless(&mut self) {
        let top = self.top;
        let nameless = |inode: &&Arc<Inode>| inode.links.is_empty() && inode.id != top;
        let gone: Vec<Id> = self.inodes.values().filter(nameless).map(|inode| inode.id).collect();
        gone.into_iter().for_each(|id| self.remove(id));
    }
}
