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
mod tests {
    use super::*;

    fn h(n: u8) -> Handle {
        Handle { kind: 1, bytes: vec![n] }
    }

    fn spot(root: usize, path: &str) -> Spot {
        Spot { root, path: RelPath::parse(path.as_bytes()).unwrap() }
    }

    fn within(spots: &[Spot]) -> Option<Arc<Place>> {
        Some(Arc::new(Place::In(spots.to_vec())))
    }

    /// top(0) / space(1, root 0) / a(2) / b(3)
    fn tree() -> Tree {
        let mut tree = Tree::default();
        tree.reset(Anchors { top: Some(h(0)), roots: vec![Some(h(1))], own: vec![h(9)] });
        assert!(tree.put(&h(1), &h(0), b"space"));
        assert!(tree.put(&h(2), &h(1), b"a"));
        assert!(tree.put(&h(3), &h(2), b"b"));
        tree
    }

    #[test]
    fn a_directory_is_named_from_its_root() {
        assert_eq!(tree().locate((&h(3)).into()), within(&[spot(0, "a/b")]));
        assert_eq!(tree().locate((&h(1)).into()), within(&[spot(0, "")]));
        assert_eq!(tree().locate((&h(0)).into()), within(&[]), "above the root");
        assert_eq!(tree().locate((&h(7)).into()), None);
    }

    #[test]
    fn renaming_a_directory_renames_all_below_it() {
        let mut tree = tree();
        tree.put(&h(2), &h(1), b"z");
        assert_eq!(tree.locate((&h(3)).into()), within(&[spot(0, "z/b")]));
        tree.put(&h(2), &h(0), b"outside");
        assert_eq!(tree.locate((&h(3)).into()), within(&[]));
    }

    #[test]
    fn nested_roots_both_see_a_directory() {
        let mut tree = Tree::default();
        tree.reset(Anchors { top: Some(h(0)), roots: vec![Some(h(1)), Some(h(2)), Some(h(2))], own: vec![] });
        tree.put(&h(1), &h(0), b"space");
        tree.put(&h(2), &h(1), b"a");
        tree.put(&h(3), &h(2), b"b");
        assert_eq!(tree.locate((&h(3)).into()), within(&[spot(1, "b"), spot(2, "b"), spot(0, "a/b")]));
    }

    #[test]
    fn our_own_directories_are_never_reported() {
        let mut tree = tree();
        tree.put(&h(9), &h(2), b"state");
        tree.put(&h(10), &h(9), b"deep");
        assert_eq!(tree.locate((&h(10)).into()), Some(Arc::new(Place::Own)));
    }

    #[test]
    fn a_move_to_an_unknown_place_makes_all_below_unknown_until_it_is_learned() {
        let mut tree = tree();
        assert!(!tree.put(&h(2), &h(77), b"x"));
        assert_eq!(tree.locate((&h(3)).into()), None);
        tree.put(&h(2), &h(1), b"back");
        assert_eq!(tree.locate((&h(3)).into()), within(&[spot(0, "back/b")]));
    }

    #[test]
    fn a_directory_that_moved_is_unknown_with_all_below_it_and_one_answer_brings_all_back() {
        let mut tree = tree();
        tree.detach((&h(2)).into());
        assert_eq!((tree.locate((&h(2)).into()), tree.locate((&h(3)).into())), (None, None));
        assert!(!tree.knows((&h(3)).into()));
        assert!(tree.put(&h(2), &h(1), b"z"));
        assert_eq!(tree.locate((&h(3)).into()), within(&[spot(0, "z/b")]));
        tree.detach((&h(0)).into());
        assert_eq!(tree.locate((&h(3)).into()), within(&[spot(0, "z/b")]), "the top does not move");
    }

    #[test]
    fn a_directory_that_is_gone_gives_its_room_to_another() {
        let mut tree = tree();
        for n in 100..200 {
            assert!(tree.put(&h(n), &h(2), b"d"));
            tree.remove((&h(n)).into());
            assert_eq!(tree.locate((&h(n)).into()), None);
        }
        assert_eq!(tree.nodes.len(), 5);
        assert_eq!(tree.locate((&h(3)).into()), within(&[spot(0, "a/b")]));
    }

    #[test]
    fn what_was_in_a_directory_that_is_gone_is_never_in_the_one_that_takes_its_room() {
        let mut tree = tree();
        tree.remove((&h(2)).into());
        assert!(tree.put(&h(4), &h(1), b"other"));
        assert_eq!(tree.locate((&h(3)).into()), None);
        tree.detach((&h(3)).into());
        let nodes = tree.nodes.len();
        assert!(tree.put(&h(5), &h(1), b"third"));
        assert_eq!(tree.nodes.len(), nodes, "now its room is free");
        assert_eq!(tree.locate((&h(5)).into()), within(&[spot(0, "third")]));
        tree.remove((&h(0)).into());
        assert_eq!(tree.locate((&h(0)).into()), within(&[]), "the top stays");
    }

    #[test]
    fn a_root_that_is_gone_is_none_in_the_directory_that_takes_its_room() {
        let mut tree = tree();
        tree.remove((&h(1)).into());
        tree.detach((&h(2)).into());
        assert!(tree.put(&h(6), &h(0), b"elsewhere"));
        assert_eq!(tree.locate((&h(6)).into()), within(&[]));
    }

    /// A root, and directories put into it one after the other until `count` were.
    fn crowd(tree: &mut Tree, count: u32, mut after: impl FnMut(&mut Tree, u32)) {
        let dir = |n: u32| Handle { kind: 1, bytes: [&n.to_le_bytes()[..], b"generation"].concat() };
        tree.reset(Anchors { top: Some(h(0)), roots: vec![Some(h(1))], own: vec![] });
        for n in 0..count {
            // As one learns a place: once more from the top if the tree was emptied meanwhile.
            while !tree.put(&dir(n), &h(1), format!("name-{n}").as_bytes()) {
                assert!(tree.put(&h(1), &h(0), b"space"));
            }
            assert!(tree.bytes() <= tree.max_bytes, "{} bytes", tree.bytes());
            after(tree, n);
        }
    }

    #[test]
    fn a_full_tree_forgets_only_what_nobody_asked_for() {
        let mut tree = Tree::with_limit(16_384);
        let first = Handle { kind: 1, bytes: [&0u32.to_le_bytes()[..], b"generation"].concat() };
        let mut most = 0;
        crowd(&mut tree, 5_000, |tree, _| {
            most = most.max(tree.index.len());
            assert_eq!(tree.locate((&first).into()), within(&[spot(0, "name-0")]));
        });
        assert!(tree.index.len() > 50 && most < 300, "{} of {most}", tree.index.len());
    }

    #[test]
    fn a_full_tree_of_which_everything_is_in_use_begins_anew() {
        let mut tree = Tree::with_limit(16_384);
        let mut cleared = 0;
        let mut before = 0;
        crowd(&mut tree, 1_000, |tree, n| {
            let last = Handle { kind: 1, bytes: [&n.to_le_bytes()[..], b"generation"].concat() };
            assert_eq!(tree.locate((&last).into()), within(&[spot(0, &format!("name-{n}"))]));
            cleared += u32::from(tree.index.len() < before);
            before = tree.index.len();
        });
        assert!((2..50).contains(&cleared), "{cleared} times");
    }

    #[test]
    fn a_place_that_was_ready_is_void_when_anything_above_it_moves() {
        let mut tree = tree();
        assert_eq!(tree.locate((&h(3)).into()), within(&[spot(0, "a/b")]));
        tree.put(&h(2), &h(1), b"z");
        assert_eq!(tree.locate((&h(3)).into()), within(&[spot(0, "z/b")]));
        tree.detach((&h(2)).into());
        assert_eq!(tree.locate((&h(3)).into()), None);
        tree.put(&h(2), &h(1), b"y");
        assert_eq!(tree.locate((&h(3)).into()), within(&[spot(0, "y/b")]));
        tree.remove((&h(2)).into());
        assert_eq!(tree.locate((&h(3)).into()), None);
    }

    #[test]
    fn a_ring_is_unknown_and_does_not_hang() {
        let mut tree = tree();
        tree.put(&h(2), &h(3), b"x");
        assert_eq!(tree.locate((&h(3)).into()), None);
    }

    #[test]
    fn the_top_is_never_moved() {
        let mut tree = tree();
        tree.put(&h(0), &h(3), b"x");
        assert_eq!(tree.locate((&h(3)).into()), within(&[spot(0, "a/b")]));
    }

    #[test]
    fn a_cleared_tree_knows_only_its_anchors() {
        let mut tree = tree();
        tree.clear();
        assert_eq!(tree.locate((&h(3)).into()), None);
        assert_eq!(tree.locate((&h(0)).into()), within(&[]));
        tree.put(&h(1), &h(0), b"space");
        assert_eq!(tree.locate((&h(1)).into()), within(&[spot(0, "")]));
    }
}
