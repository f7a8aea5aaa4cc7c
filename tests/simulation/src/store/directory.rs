//! A destination's filesystem as plain data: names, inodes, what was synced and what a power cut takes away.
//!
//! It journals as ext4 does: a power cut keeps the first operations since the last sync and loses the others, each as a
//! whole. Content is written later than names are: a file that was made since may hold zeros, with the size and the
//! times it was given. Inode numbers are used again at once, the lowest first.

use std::collections::{BTreeMap, BTreeSet};

use shared::identity::Identity;
use shared::path::RelPath;
use syncer::tree::{Kind, Stat, Xattrs};

use super::Content;

pub type Errno = libc::c_int;

const ROOT: u64 = 2;
const FIRST_INODE: u64 = 12;
const NAME_BYTES_MAX: usize = 255;
/// What ext4 says of a small directory.
const DIR_BYTES: u64 = 4096;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    pub kind: Kind,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime_ns: i64,
    pub rdev: u64,
    pub xattrs: Xattrs,
    /// Of a regular file.
    pub content: Option<Content>,
    /// Of a symlink.
    pub target: Vec<u8>,
    pub nlink: u64,
}

impl Node {
    pub fn new(kind: Kind, mode: u32, now_ns: i64) -> Node {
        Node {
            kind,
            mode,
            uid: 0,
            gid: 0,
            mtime_ns: now_ns,
            rdev: 0,
            xattrs: Xattrs::new(),
            content: (kind == Kind::File).then(|| Content::of("")),
            target: Vec::new(),
            nlink: 0,
        }
    }

    pub fn file(content: Content, mtime_ns: i64) -> Node {
        Node { content: Some(content), ..Node::new(Kind::File, 0o644, mtime_ns) }
    }

    fn stat(&self, ino: u64) -> Stat {
        let size = match (&self.content, self.kind) {
            (Some(content), _) => content.size,
            (None, Kind::Dir) => DIR_BYTES,
            (None, _) => self.target.len() as u64,
        };
        Stat {
            kind: self.kind,
            size,
            mtime_ns: self.mtime_ns,
            ctime_ns: self.mtime_ns,
            btime_ns: None,
            ino,
            mode: self.mode,
            uid: self.uid,
            gid: self.gid,
            nlink: self.nlink,
            rdev: self.rdev,
        }
    }
}

/// Why nothing stands at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Miss {
    Absent {
        at: RelPath,
    },
    NotDir {
        at: RelPath,
    },
    /// It has a name that no filesystem takes.
    TooLong {
        at: RelPath,
    },
}

impl Miss {
    pub fn errno(&self) -> Errno {
        match self {
            Miss::Absent { .. } => libc::ENOENT,
            Miss::NotDir { .. } => libc::ENOTDIR,
            Miss::TooLong { .. } => libc::ENAMETOOLONG,
        }
    }
}

/// What an operation changed, as it was before.
#[derive(Debug)]
enum Undo {
    /// An operation begins.
    Begin,
    Name(Vec<u8>, Option<u64>),
    Node(u64, Option<Node>),
}

#[derive(Debug)]
pub struct Directory {
    pub identity: Identity,
    /// Whether there is a directory at the destination's path at all.
    pub present: bool,
    /// The disk is nearly full: nothing larger than a name is written.
    pub full: bool,
    /// Names that are served in one page; the real one has 1,000.
    pub page_objects: usize,
    /// By path, directories with a `/` at the end, so that byte order is walk order.
    names: BTreeMap<Vec<u8>, u64>,
    nodes: BTreeMap<u64, Node>,
    free: BTreeSet<u64>,
    next_ino: u64,
    undo: Vec<Undo>,
    /// Files whose content may not be on the disk yet.
    unwritten: BTreeSet<u64>,
    /// Counts power cuts: who has it open from before one sees it no more.
    pub(super) mounted: u64,
    /// Held as long as the run that took it lives.
    pub(super) locked: std::sync::Weak<()>,
}

impl Directory {
    /// An empty one, on a disk of that UUID.
    pub fn new(uuid: &str, now_ns: i64) -> Directory {
        let identity = Identity {
            fs: "ext4".into(),
            uuid: Some(uuid.to_owned()),
            subvolume: None,
            inode: ROOT,
            btime_ns: Some(now_ns),
        };
        let root = Node { nlink: 2, ..Node::new(Kind::Dir, 0o755, now_ns) };
        Directory {
            identity,
            present: true,
            full: false,
            page_objects: 1_000,
            names: BTreeMap::from([(Vec::new(), ROOT)]),
            nodes: BTreeMap::from([(ROOT, root)]),
            free: BTreeSet::new(),
            next_ino: FIRST_INODE,
            undo: Vec::new(),
            unwritten: BTreeSet::new(),
            mounted: 0,
            locked: std::sync::Weak::new(),
        }
    }

    /// What stands at a path.
    pub fn look(&self, path: &RelPath) -> Result<(Stat, &Node), Miss> {
        if let Some((ino, node)) = self.find(path) {
            return Ok((node.stat(ino), node));
        }
        let mut at = RelPath::root();
        for name in path.components() {
            at = at.child(name).unwrap();
            match self.find(&at) {
                None if name.len() > NAME_BYTES_MAX => return Err(Miss::TooLong { at }),
                None => return Err(Miss::Absent { at }),
                Some((_, node)) if !node.kind.is_dir() => return Err(Miss::NotDir { at }),
                Some(_) => {}
            }
        }
        Err(Miss::Absent { at })
    }

    fn find(&self, path: &RelPath) -> Option<(u64, &Node)> {
        let ino = self.names.get(path.as_bytes()).or_else(|| self.names.get(&path.dir_key()))?;
        Some((*ino, &self.nodes[ino]))
    }

    /// The keys in a directory, in order: directories with a `/` at the end.
    pub(super) fn children(&self, dir: &RelPath) -> Vec<Vec<u8>> {
        let top = dir.dir_key();
        let mut found = Vec::new();
        let mut from = [top.as_slice(), b"\x01"].concat();
        while let Some((key, _)) = self.names.range(from..).next().filter(|(key, _)| key.starts_with(&top)) {
            let name = &key[top.len()..];
            found.push(name.to_vec());
            from = key.clone();
            match name.ends_with(b"/") {
                true => *from.last_mut().unwrap() += 1,
                false => from.push(0),
            }
        }
        found
    }

    /// Everything but the mirror's own directory, in the order of a walk, its top included.
    pub fn tree(&self) -> impl Iterator<Item = (RelPath, Stat, &Node)> {
        self.everything().filter(|(path, ..)| path.components().next() != Some(b".longshore"))
    }

    /// What lies in the trash: the name of its run, the path, and what it is.
    pub fn trash(&self) -> impl Iterator<Item = (String, RelPath, &Node)> {
        let top = RelPath::parse(b".longshore/trash").unwrap();
        self.everything().filter(|(.., node)| !node.kind.is_dir()).filter_map(move |(path, _, node)| {
            let below = path.strip(&top)?;
            let run = RelPath::parse(below.components().next()?).unwrap();
            Some((run.to_string(), below.strip(&run)?, node))
        })
    }

    /// Our own directory with it.
    pub fn everything(&self) -> impl Iterator<Item = (RelPath, Stat, &Node)> {
        self.names.iter().map(|(key, ino)| {
            let path = RelPath::parse(key.strip_suffix(b"/").unwrap_or(key)).unwrap();
            let node = &self.nodes[ino];
            (path, node.stat(*ino), node)
        })
    }

    /// Makes something new; its parent must be there.
    pub fn make(&mut self, path: &RelPath, node: Node, now_ns: i64) -> Result<Stat, Errno> {
        let parent = self.parent(path)?;
        if self.find(path).is_some() {
            return Err(libc::EEXIST);
        }
        self.undo.push(Undo::Begin);
        let ino = self.free.pop_first().unwrap_or_else(|| {
            self.next_ino += 1;
            self.next_ino - 1
        });
        let dir = node.kind.is_dir();
        if node.content.as_ref().is_some_and(|content| content.size > 0) {
            self.unwritten.insert(ino);
        }
        let node = Node { nlink: if dir { 2 } else { 1 }, ..node };
        let stat = node.stat(ino);
        self.put_node(ino, Some(node));
        self.put_name(key(path, dir), Some(ino));
        self.change(parent, |node| {
            node.mtime_ns = now_ns;
            node.nlink += u64::from(dir);
        });
        Ok(stat)
    }

    /// Gives what stands at `from` another name.
    pub fn link(&mut self, from: &RelPath, to: &RelPath, now_ns: i64) -> Result<(), Errno> {
        let (stat, _) = self.look(from).map_err(|miss| miss.errno())?;
        let parent = self.parent(to)?;
        if stat.kind.is_dir() {
            return Err(libc::EPERM);
        }
        if self.find(to).is_some() {
            return Err(libc::EEXIST);
        }
        self.undo.push(Undo::Begin);
        self.put_name(key(to, false), Some(stat.ino));
        self.change(stat.ino, |node| node.nlink += 1);
        self.change(parent, |node| node.mtime_ns = now_ns);
        Ok(())
    }

    /// Over what is no directory. Renaming one name of an inode over another of it does nothing (rename(2)).
    pub fn rename(&mut self, from: &RelPath, to: &RelPath, now_ns: i64) -> Result<(), Errno> {
        let (stat, _) = self.look(from).map_err(|miss| miss.errno())?;
        let (old_parent, new_parent) = (self.parent(from)?, self.parent(to)?);
        let standing = self.find(to).map(|(ino, node)| (ino, node.kind.is_dir()));
        match standing {
            Some((ino, _)) if ino == stat.ino => return Ok(()),
            Some((_, true)) => return Err(libc::EISDIR),
            Some((_, false)) if stat.kind.is_dir() => return Err(libc::ENOTDIR),
            _ if stat.kind.is_dir() && to.is_within(from) => return Err(libc::EINVAL),
            _ => {}
        }
        self.undo.push(Undo::Begin);
        if let Some((ino, _)) = standing {
            self.drop_link(ino);
            // Content goes first when a name is replaced (auto_da_alloc, ext4(5)).
            self.unwritten.remove(&stat.ino);
        }
        let (old, new) = (key(from, stat.kind.is_dir()), key(to, stat.kind.is_dir()));
        let moved: Vec<(Vec<u8>, u64)> = match stat.kind.is_dir() {
            true => self.within(&old).collect(),
            false => vec![(old.clone(), stat.ino)],
        };
        for (name, ino) in moved {
            let renamed = [&new, &name[old.len()..]].concat();
            self.put_name(name, None);
            self.put_name(renamed, Some(ino));
        }
        let dir = u64::from(stat.kind.is_dir());
        self.change(old_parent, |node| {
            node.mtime_ns = now_ns;
            node.nlink -= dir;
        });
        self.change(new_parent, |node| {
            node.mtime_ns = now_ns;
            node.nlink += dir;
        });
        Ok(())
    }

    fn within(&self, dir_key: &[u8]) -> impl Iterator<Item = (Vec<u8>, u64)> {
        let names = self.names.range(dir_key.to_vec()..).take_while(move |(key, _)| key.starts_with(dir_key));
        names.map(|(key, ino)| (key.clone(), *ino))
    }

    /// Takes a name away, that of an empty directory too.
    pub fn remove(&mut self, path: &RelPath, now_ns: i64) -> Result<(), Errno> {
        let (stat, _) = self.look(path).map_err(|miss| miss.errno())?;
        let parent = self.parent(path)?;
        let dir = stat.kind.is_dir();
        if dir && self.within(&path.dir_key()).nth(1).is_some() {
            return Err(libc::ENOTEMPTY);
        }
        self.undo.push(Undo::Begin);
        self.put_name(key(path, dir), None);
        self.drop_link(stat.ino);
        self.change(parent, |node| {
            node.mtime_ns = now_ns;
            node.nlink -= u64::from(dir);
        });
        Ok(())
    }

    /// Takes away all that lies at and below a path, in one operation after the other.
    pub fn remove_all(&mut self, path: &RelPath, now_ns: i64) {
        let all: Vec<RelPath> = self.everything().map(|(p, ..)| p).filter(|p| p.is_within(path)).collect();
        for path in all.into_iter().rev().filter(|p| !p.is_root()) {
            self.remove(&path, now_ns).unwrap();
        }
    }

    /// Gives a file its content, which reaches the disk later than its size.
    pub(super) fn write(&mut self, path: &RelPath, content: Content, now_ns: i64) -> Result<Stat, Errno> {
        let size = content.size;
        let stat = self.set(path, |node| {
            node.content = Some(content);
            node.mtime_ns = now_ns;
        })?;
        if size > 0 {
            self.unwritten.insert(stat.ino);
        }
        Ok(stat)
    }

    /// Sets attributes of what stands at a path.
    pub fn set(&mut self, path: &RelPath, set: impl FnOnce(&mut Node)) -> Result<Stat, Errno> {
        let (stat, _) = self.look(path).map_err(|miss| miss.errno())?;
        self.undo.push(Undo::Begin);
        self.change(stat.ino, set);
        Ok(self.nodes[&stat.ino].stat(stat.ino))
    }

    /// Somebody puts a file there, with the directories it needs, in place of what stands at its name.
    pub fn put_by_hand(&mut self, path: &RelPath, bytes: &[u8], mtime_ns: i64, now_ns: i64) {
        let mut dirs: Vec<RelPath> = std::iter::successors(path.parent(), RelPath::parent).collect();
        dirs.reverse();
        for dir in dirs.into_iter().filter(|dir| !dir.is_root()) {
            match self.look(&dir).map(|(stat, _)| stat.kind) {
                Ok(Kind::Dir) => continue,
                Ok(_) => self.remove(&dir, now_ns).unwrap(),
                Err(_) => {}
            }
            self.make(&dir, Node::new(Kind::Dir, 0o755, now_ns), now_ns).unwrap();
        }
        self.remove_all(path, now_ns);
        self.make(path, Node::file(Content::of(bytes.to_vec()), mtime_ns), now_ns).unwrap();
    }

    /// All of it survives a power cut from now on.
    pub fn sync(&mut self) {
        self.undo.clear();
        self.unwritten.clear();
    }

    /// Operations that a power cut may undo.
    pub fn unsynced_count(&self) -> usize {
        self.undo.iter().filter(|undo| matches!(undo, Undo::Begin)).count()
    }

    /// Loses the last operations, as many as `pick` says, and content that was not written yet. Who has it open sees
    /// nothing of it any more.
    pub fn power_cut(&mut self, mut pick: impl FnMut(u64) -> u64) {
        let mut lost = pick(self.unsynced_count() as u64 + 1);
        while lost > 0 {
            match self.undo.pop().expect("there are as many as were counted") {
                Undo::Begin => lost -= 1,
                Undo::Name(key, Some(ino)) => drop(self.names.insert(key, ino)),
                Undo::Name(key, None) => drop(self.names.remove(&key)),
                Undo::Node(ino, Some(node)) => drop(self.nodes.insert(ino, node)),
                Undo::Node(ino, None) => drop(self.nodes.remove(&ino)),
            }
        }
        for ino in std::mem::take(&mut self.unwritten) {
            let content = self.nodes.get_mut(&ino).and_then(|node| node.content.as_mut());
            if let Some(content) = content.filter(|_| pick(2) == 1) {
                *content = Content::zeros(content.size);
            }
        }
        self.free = (FIRST_INODE..self.next_ino).filter(|ino| !self.nodes.contains_key(ino)).collect();
        self.undo.clear();
        self.mounted += 1;
    }

    fn parent(&self, path: &RelPath) -> Result<u64, Errno> {
        let parent = path.parent().ok_or(libc::EBUSY)?;
        match self.look(&parent).map_err(|miss| miss.errno())? {
            (stat, node) if node.kind.is_dir() => Ok(stat.ino),
            _ => Err(libc::ENOTDIR),
        }
    }

    fn drop_link(&mut self, ino: u64) {
        let node = &self.nodes[&ino];
        if node.kind.is_dir() || node.nlink == 1 {
            self.put_node(ino, None);
            self.free.insert(ino);
            self.unwritten.remove(&ino);
        } else {
            self.change(ino, |node| node.nlink -= 1);
        }
    }

    fn change(&mut self, ino: u64, change: impl FnOnce(&mut Node)) {
        let mut node = self.nodes[&ino].clone();
        change(&mut node);
        self.put_node(ino, Some(node));
    }

    fn put_node(&mut self, ino: u64, node: Option<Node>) {
        let before = match node {
            Some(node) => self.nodes.insert(ino, node),
            None => self.nodes.remove(&ino),
        };
        self.undo.push(Undo::Node(ino, before));
    }

    fn put_name(&mut self, key: Vec<u8>, ino: Option<u64>) {
        let before = match ino {
            Some(ino) => self.names.insert(key.clone(), ino),
            None => self.names.remove(&key),
        };
        self.undo.push(Undo::Name(key, before));
    }
}

fn key(path: &RelPath, dir: bool) -> Vec<u8> {
    if dir { path.dir_key() } else { path.as_bytes().to_vec() }
}
