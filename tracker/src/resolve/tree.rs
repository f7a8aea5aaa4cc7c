//! The cache of directories: handle → (parent, name), as a tree, so that renaming a directory changes one node.
//!
//! Only the kernel says where a directory lies, never an event: the kernel merges renames of one process and object
//! into the earliest place in the queue, and in a stream that broke one rename may be there and the next not. An
//! event only takes a place away. That is sound for an unbroken stream: a rename after the kernel was asked is in
//! an event not yet read, by itself or merged, and takes the place away again. Whoever drops an event clears all.

//!
//! It is bounded in bytes. Full, it forgets what nobody asked for since it was half full.

use std::collections::HashMap;
use std::hash::BuildHasher as _;
use std::sync::Arc;

use hashbrown::{DefaultHashBuilder, HashTable};
use shared::entry::Handle;
use shared::limits;
use shared::path::RelPath;

use crate::intake::records::HandleRef;

/// A path in one of the roots; `root` is its index among the tracked roots of the filesystem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spot {
    pub root: usize,
    pub path: RelPath,
}

/// Where a directory lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// In these roots; none if it lies outside all of them.
    In(Vec<Spot>),
    /// In a directory of our own.
    Own,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Special {
    None,
    Own,
    /// At least one root has this directory.
    Root,
}

/// Parent of the filesystem's top, and of a node whose parent is not known.
const TOP: u32 = u32::MAX;
const DETACHED: u32 = u32::MAX - 1;
/// Directories whose place is kept ready: events come in bursts from a few.
const READY: usize = 64;

/// A million of them are met in one walk of a disk: no field without need.
struct Node {
    /// The handle's bytes, then the name.
    text: Box<[u8]>,
    parent: u32,
    /// Nodes whose parent this is.
    children: u32,
    handle_kind: i32,
    handle_bytes: u8,
    special: Special,
    /// Its directory is gone. Its number is given to another only when no node calls it parent any more.
    gone: bool,
    /// Asked for, or put, since the tree was half full; so was what lies above it.
    used: bool,
}

impl Node {
    fn handle(&self) -> HandleRef<'_> {
        HandleRef { kind: self.handle_kind, bytes: &self.text[..usize::from(self.handle_bytes)] }
    }

    fn name(&self) -> &[u8] {
        &self.text[usize::from(self.handle_bytes)..]
    }
}

struct Ready {
    node: u32,
    place: Arc<Place>,
}

fn text_of(handle: HandleRef<'_>, name: &[u8]) -> Box<[u8]> {
    [handle.bytes, name].concat().into()
}

/// What malloc(3) takes for a block: its head, and multiples of 16 (glibc on 64 bits).
fn block_bytes(len: usize) -> usize {
    if len == 0 { 0 } else { (len + 8).next_multiple_of(16).max(32) }
}

/// What stays when the tree is cleared.
#[derive(Debug, Clone, Default)]
pub struct Anchors {
    pub top: Option<Handle>,
    /// Directory handle of each root, by index; several roots may share one.
    pub roots: Vec<Option<Handle>>,
    /// Directories whose content is ours and never reported.
    pub own: Vec<Handle>,
}

pub struct Tree {
    anchors: Anchors,
    index: HashTable<u32>,
    hasher: DefaultHashBuilder,
    nodes: Vec<Node>,
    /// Numbers that no directory has.
    free: Vec<u32>,
    /// Of the blocks behind `Node::text`.
    text_bytes: usize,
    max_bytes: usize,
    /// It was half full since room was made.
    half_full: bool,
    /// Node → indices of the roots at it.
    roots_at: HashMap<u32, Vec<usize>>,
    /// Places made before, by node; void as soon as a node moves.
    ready: Box<[Option<Ready>; READY]>,
}

impl Default for Tree {
    fn default() -> Tree {
        Tree::with_limit(limits::HANDLE_CACHE_BYTES_MAX)
    }
}

impl Tree {
    pub fn with_limit(max_bytes: usize) -> Tree {
        Tree {
            anchors: Anchors::default(),
            index: HashTable::new(),
            hasher: DefaultHashBuilder::default(),
            nodes: Vec::new(),
            free: Vec::new(),
            text_bytes: 0,
            max_bytes,
            half_full: false,
            roots_at: HashMap::new(),
            ready: Box::new([const { None }; READY]),
        }
    }

    /// Starts anew with other anchors.
    pub fn reset(&mut self, anchors: Anchors) {
        self.anchors = anchors;
        self.clear();
    }

    /// Forgets everything but the anchors.
    pub fn clear(&mut self) {
        self.index.clear();
        self.nodes.clear();
        self.free.clear();
        self.text_bytes = 0;
        self.half_full = false;
        self.roots_at.clear();
        self.ready.fill_with(|| None);
        if let Some(top) = self.anchors.top.clone() {
            self.add((&top).into(), TOP, b"");
        }
    }

    pub fn dir_count(&self) -> usize {
        self.index.len()
    }

    /// Of what it holds, with what the allocator adds.
    pub fn bytes(&self) -> usize {
        self.nodes.capacity() * size_of::<Node>()
            + self.text_bytes
            + self.index.allocation_size()
            + self.free.capacity() * size_of::<u32>()
    }

    pub fn is_top(&self, dir: HandleRef<'_>) -> bool {
        self.anchors.top.as_ref().is_some_and(|top| HandleRef::from(top) == dir)
    }

    /// True if the directory and all above it are known.
    pub fn knows(&self, dir: HandleRef<'_>) -> bool {
        self.find(dir).is_some_and(|id| self.chain(id).is_some())
    }

    fn find(&self, dir: HandleRef<'_>) -> Option<u32> {
        let hash = self.hasher.hash_one(dir);
        self.index.find(hash, |&id| self.nodes[id as usize].handle() == dir).copied()
    }

    /// Where a directory lies; `None` if the tree does not know.
    pub fn locate(&mut self, dir: HandleRef<'_>) -> Option<Arc<Place>> {
        let id = self.find(dir)?;
        let slot = id as usize % READY;
        if let Some(ready) = &self.ready[slot]
            && ready.node == id
        {
            return Some(Arc::clone(&ready.place));
        }
        let chain = self.chain(id)?;
        chain.iter().for_each(|&id| self.nodes[id as usize].used = true);
        let place = Arc::new(self.place_of(&chain));
        self.ready[slot] = Some(Ready { node: id, place: Arc::clone(&place) });
        Some(place)
    }

    fn place_of(&self, chain: &[u32]) -> Place {
        let mut spots = Vec::new();
        for (depth, &id) in chain.iter().enumerate() {
            match self.nodes[id as usize].special {
                Special::None => {}
                Special::Own => return Place::Own,
                Special::Root => {
                    let path = self.path_below(&chain[..depth]);
                    let at = self.roots_at.get(&id).into_iter().flatten();
                    spots.extend(at.map(|&root| Spot { root, path: path.clone() }));
                }
            }
        }
        Place::In(spots)
    }

    /// Puts a directory at a name that the kernel gave. False if its parent is not known, or not any more because
    /// the tree was full.
    pub fn put(&mut self, dir: &Handle, parent: &Handle, name: &[u8]) -> bool {
        let (dir, parent) = (HandleRef::from(dir), HandleRef::from(parent));
        if self.find(dir).is_none() {
            self.keep_to_bound(dir, name);
        }
        let Some(parent_id) = self.find(parent) else {
            self.detach(dir);
            return false;
        };
        self.nodes[parent_id as usize].used = true;
        match self.find(dir) {
            Some(id) if self.nodes[id as usize].parent == TOP => {}
            Some(id) => {
                self.ready.fill_with(|| None);
                self.hang(id, parent_id);
                let text = text_of(dir, name);
                self.set_text(id, text);
                self.nodes[id as usize].used = true;
            }
            // The kernel's longest has 128.
            None if usize::from(u8::MAX) < dir.bytes.len() => return false,
            None => self.add(dir, parent_id, name),
        }
        true
    }

    /// It moved: where to, and all below it, is not known until the kernel is asked.
    pub fn detach(&mut self, dir: HandleRef<'_>) {
        if let Some(id) = self.find(dir)
            && self.nodes[id as usize].parent != TOP
        {
            self.ready.fill_with(|| None);
            self.hang(id, DETACHED);
        }
    }

    /// Its directory is gone.
    pub fn remove(&mut self, dir: HandleRef<'_>) {
        if let Some(id) = self.find(dir)
            && self.nodes[id as usize].parent != TOP
        {
            self.remove_node(id);
        }
    }

    fn remove_node(&mut self, id: u32) {
        let hash = self.hasher.hash_one(self.nodes[id as usize].handle());
        if let Ok(entry) = self.index.find_entry(hash, |&at| at == id) {
            entry.remove();
        }
        self.roots_at.remove(&id);
        self.ready[id as usize % READY] = None;
        if self.nodes[id as usize].children > 0 {
            self.ready.fill_with(|| None);
        }
        self.hang(id, DETACHED);
        self.set_text(id, Box::default());
        let node = &mut self.nodes[id as usize];
        node.handle_bytes = 0;
        node.gone = true;
        self.reuse_if_idle(id);
    }

    /// Makes room for one more directory, if there is none.
    fn keep_to_bound(&mut self, dir: HandleRef<'_>, name: &[u8]) {
        let filled = self.index.len() * size_of::<Node>() + self.text_bytes + self.index.allocation_size();
        if !self.half_full && filled * 2 > self.max_bytes {
            self.half_full = true;
            self.nodes.iter_mut().for_each(|node| node.used = false);
            // A place that stays ready does not mark its way as used.
            self.ready.fill_with(|| None);
        }
        if self.bytes() + self.growth(dir, name) > self.max_bytes {
            self.make_room();
        }
    }

    /// Forgets what nobody asked for since it was half full; everything, if that is too little.
    fn make_room(&mut self) {
        let before = self.index.len();
        for id in 0..self.nodes.len() as u32 {
            let node = &self.nodes[id as usize];
            if !node.used && !node.gone && node.parent != TOP {
                self.remove_node(id);
            }
        }
        self.half_full = false;
        if before - self.index.len() < before / 16 {
            self.clear();
        }
    }

    /// Gives a node another parent.
    fn hang(&mut self, id: u32, parent: u32) {
        // First, so that a parent of one child only is not idle in between when it stays the same.
        if let Some(new) = self.nodes.get_mut(parent as usize) {
            new.children += 1;
        }
        let old = std::mem::replace(&mut self.nodes[id as usize].parent, parent);
        if let Some(node) = self.nodes.get_mut(old as usize) {
            node.children -= 1;
            self.reuse_if_idle(old);
        }
    }

    fn set_text(&mut self, id: u32, text: Box<[u8]>) {
        self.text_bytes += block_bytes(text.len());
        let old = std::mem::replace(&mut self.nodes[id as usize].text, text);
        self.text_bytes -= block_bytes(old.len());
    }

    fn reuse_if_idle(&mut self, id: u32) {
        let node = &self.nodes[id as usize];
        if node.gone && node.children == 0 {
            self.free.push(id);
        }
    }

    /// Nodes by which the room for them grows: not by doubling, so that the bound is kept.
    fn step(&self) -> usize {
        (self.nodes.len() / 8).max(16)
    }

    /// Bytes that one more directory will take.
    fn growth(&self, dir: HandleRef<'_>, name: &[u8]) -> usize {
        let full = self.free.is_empty() && self.nodes.len() == self.nodes.capacity();
        let nodes = if full { self.step() * size_of::<Node>() } else { 0 };
        let index = if self.index.len() == self.index.capacity() { self.index.allocation_size() } else { 0 };
        nodes + index + block_bytes(dir.bytes.len() + name.len())
    }

    fn add(&mut self, dir: HandleRef<'_>, parent: u32, name: &[u8]) {
        let node = Node {
            text: text_of(dir, name),
            parent: DETACHED,
            children: 0,
            handle_kind: dir.kind,
            handle_bytes: dir.bytes.len() as u8,
            special: Special::None,
            gone: false,
            used: true,
        };
        self.text_bytes += block_bytes(node.text.len());
        let id = match self.free.pop() {
            Some(id) => {
                self.nodes[id as usize] = node;
                id
            }
            None => {
                if self.nodes.len() == self.nodes.capacity() {
                    self.nodes.reserve_exact(self.step());
                }
                self.nodes.push(node);
                self.nodes.len() as u32 - 1
            }
        };
        let is_here = |root: &Option<Handle>| root.as_ref().is_some_and(|r| HandleRef::from(r) == dir);
        let roots: Vec<usize> =
            (0..self.anchors.roots.len()).filter(|&i| is_here(&self.anchors.roots[i])).collect();
        if self.anchors.own.iter().any(|own| HandleRef::from(own) == dir) {
            self.nodes[id as usize].special = Special::Own;
        } else if !roots.is_empty() {
            self.roots_at.insert(id, roots);
            self.nodes[id as usize].special = Special::Root;
        }
        self.hang(id, parent);
        let (nodes, hasher) = (&self.nodes, &self.hasher);
        let hash = |id: &u32| hasher.hash_one(nodes[*id as usize].handle());
        self.index.insert_unique(hash(&id), id, hash);
    }

    /// The node and all above it. `None` if that does not end at the top: a node was detached, or nodes learned
    /// before and after renames that are still queued form a ring.
    fn chain(&self, id: u32) -> Option<Vec<u32>> {
        let mut chain = vec![id];
        let mut at = self.nodes[id as usize].parent;
        while at != TOP {
            if at == DETACHED || chain.len() > self.nodes.len() {
                return None;
            }
            chain.push(at);
            at = self.nodes[at as usize].parent;
        }
        Some(chain)
    }

    /// The names of a chain from its last node down to its first.
    fn path_below(&self, chain: &[u32]) -> RelPath {
        let mut bytes = Vec::new();
        for &id in chain.iter().rev() {
            if !bytes.is_empty() {
                bytes.push(b'/');
            }
            bytes.extend_from_slice(self.nodes[id as usize].name());
        }
        RelPath::parse(&bytes).expect("names were components when they were put into the tree")
    }
}

#[cfg(test)]
mod tests;
