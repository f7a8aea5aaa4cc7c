//! The cache of directories: handle → (parent, name), as a tree, so that renaming a directory changes one node.
//!
//! Only the kernel says where a directory lies, never an event: the kernel merges renames of one process and object
//! into the earliest place in the queue, and in a stream that broke one rename may be there and the next not. An
//! event only takes a place away. That is sound for an unbroken stream: a rename after the kernel was asked is in
//! an event not yet read, by itself or merged, and takes the place away again. Whoever drops an event clears all.

use std::collections::HashMap;

use shared::entry::Handle;
use shared::limits;
use shared::path::RelPath;

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
    /// The tree does not know.
    Unknown,
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

struct Node {
    parent: u32,
    name: Box<[u8]>,
    special: Special,
    /// Nodes whose parent this is.
    children: u32,
    /// Its directory is gone. Its number is given to another only when no node calls it parent any more.
    gone: bool,
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
    index: HashMap<Handle, u32>,
    nodes: Vec<Node>,
    /// Numbers that no directory has.
    free: Vec<u32>,
    /// Directories remembered at most.
    max: usize,
    /// Node → indices of the roots at it.
    roots_at: HashMap<u32, Vec<usize>>,
}

impl Default for Tree {
    fn default() -> Tree {
        Tree::with_limit(limits::HANDLE_CACHE_DIRS_MAX)
    }
}

impl Tree {
    pub fn with_limit(max: usize) -> Tree {
        Tree {
            anchors: Anchors::default(),
            index: HashMap::new(),
            nodes: Vec::new(),
            free: Vec::new(),
            max,
            roots_at: HashMap::new(),
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
        self.roots_at.clear();
        if let Some(top) = self.anchors.top.clone() {
            self.add(&top, TOP, b"");
        }
    }

    pub fn dir_count(&self) -> usize {
        self.index.len()
    }

    pub fn is_top(&self, handle: &Handle) -> bool {
        self.anchors.top.as_ref() == Some(handle)
    }

    /// True if the directory and all above it are known.
    pub fn knows(&self, handle: &Handle) -> bool {
        self.index.get(handle).is_some_and(|&id| self.chain(id).is_some())
    }

    pub fn locate(&self, handle: &Handle) -> Place {
        let Some(chain) = self.index.get(handle).and_then(|&id| self.chain(id)) else {
            return Place::Unknown;
        };
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

    /// Puts a directory at a name that the kernel gave. False if its parent is not known, or if the tree was full and
    /// is empty now.
    pub fn put(&mut self, handle: &Handle, parent: &Handle, name: &[u8]) -> bool {
        let Some(&parent_id) = self.index.get(parent) else {
            self.detach(handle);
            return false;
        };
        match self.index.get(handle) {
            Some(&id) if self.nodes[id as usize].parent == TOP => {}
            Some(&id) => {
                self.hang(id, parent_id);
                self.nodes[id as usize].name = name.into();
            }
            None => {
                if self.index.len() >= self.max {
                    self.clear();
                    return false;
                }
                self.add(handle, parent_id, name);
            }
        }
        true
    }

    /// It moved: where to, and all below it, is not known until the kernel is asked.
    pub fn detach(&mut self, handle: &Handle) {
        if let Some(&id) = self.index.get(handle)
            && self.nodes[id as usize].parent != TOP
        {
            self.hang(id, DETACHED);
        }
    }

    /// Its directory is gone.
    pub fn remove(&mut self, handle: &Handle) {
        if self.is_top(handle) {
            return;
        }
        let Some(id) = self.index.remove(handle) else { return };
        self.roots_at.remove(&id);
        self.hang(id, DETACHED);
        let node = &mut self.nodes[id as usize];
        node.name = Box::default();
        node.gone = true;
        self.reuse_if_idle(id);
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

    fn reuse_if_idle(&mut self, id: u32) {
        let node = &self.nodes[id as usize];
        if node.gone && node.children == 0 {
            self.free.push(id);
        }
    }

    fn add(&mut self, handle: &Handle, parent: u32, name: &[u8]) {
        let node =
            Node { parent: DETACHED, name: name.into(), special: Special::None, children: 0, gone: false };
        let id = match self.free.pop() {
            Some(id) => {
                self.nodes[id as usize] = node;
                id
            }
            None => {
                self.nodes.push(node);
                self.nodes.len() as u32 - 1
            }
        };
        let is_here = |(_, root): &(usize, &Option<Handle>)| root.as_ref() == Some(handle);
        let roots: Vec<usize> =
            self.anchors.roots.iter().enumerate().filter(is_here).map(|(i, _)| i).collect();
        if self.anchors.own.contains(handle) {
            self.nodes[id as usize].special = Special::Own;
        } else if !roots.is_empty() {
            self.roots_at.insert(id, roots);
            self.nodes[id as usize].special = Special::Root;
        }
        self.hang(id, parent);
        self.index.insert(handle.clone(), id);
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
            bytes.extend_from_slice(&self.nodes[id as usize].name);
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
        assert_eq!(tree().locate(&h(3)), Place::In(vec![spot(0, "a/b")]));
        assert_eq!(tree().locate(&h(1)), Place::In(vec![spot(0, "")]));
        assert_eq!(tree().locate(&h(0)), Place::In(vec![]), "above the root");
        assert_eq!(tree().locate(&h(7)), Place::Unknown);
    }

    #[test]
    fn renaming_a_directory_renames_all_below_it() {
        let mut tree = tree();
        tree.put(&h(2), &h(1), b"z");
        assert_eq!(tree.locate(&h(3)), Place::In(vec![spot(0, "z/b")]));
        tree.put(&h(2), &h(0), b"outside");
        assert_eq!(tree.locate(&h(3)), Place::In(vec![]));
    }

    #[test]
    fn nested_roots_both_see_a_directory() {
        let mut tree = Tree::default();
        tree.reset(Anchors { top: Some(h(0)), roots: vec![Some(h(1)), Some(h(2)), Some(h(2))], own: vec![] });
        tree.put(&h(1), &h(0), b"space");
        tree.put(&h(2), &h(1), b"a");
        tree.put(&h(3), &h(2), b"b");
        assert_eq!(tree.locate(&h(3)), Place::In(vec![spot(1, "b"), spot(2, "b"), spot(0, "a/b")]));
    }

    #[test]
    fn our_own_directories_are_never_reported() {
        let mut tree = tree();
        tree.put(&h(9), &h(2), b"state");
        tree.put(&h(10), &h(9), b"deep");
        assert_eq!(tree.locate(&h(10)), Place::Own);
    }

    #[test]
    fn a_move_to_an_unknown_place_makes_all_below_unknown_until_it_is_learned() {
        let mut tree = tree();
        assert!(!tree.put(&h(2), &h(77), b"x"));
        assert_eq!(tree.locate(&h(3)), Place::Unknown);
        tree.put(&h(2), &h(1), b"back");
        assert_eq!(tree.locate(&h(3)), Place::In(vec![spot(0, "back/b")]));
    }

    #[test]
    fn a_directory_that_moved_is_unknown_with_all_below_it_and_one_answer_brings_all_back() {
        let mut tree = tree();
        tree.detach(&h(2));
        assert_eq!((tree.locate(&h(2)), tree.locate(&h(3))), (Place::Unknown, Place::Unknown));
        assert!(!tree.knows(&h(3)));
        assert!(tree.put(&h(2), &h(1), b"z"));
        assert_eq!(tree.locate(&h(3)), Place::In(vec![spot(0, "z/b")]));
        tree.detach(&h(0));
        assert_eq!(tree.locate(&h(3)), Place::In(vec![spot(0, "z/b")]), "the top does not move");
    }

    #[test]
    fn a_directory_that_is_gone_gives_its_room_to_another() {
        let mut tree = tree();
        for n in 100..200 {
            assert!(tree.put(&h(n), &h(2), b"d"));
            tree.remove(&h(n));
            assert_eq!(tree.locate(&h(n)), Place::Unknown);
        }
        assert_eq!(tree.nodes.len(), 5);
        assert_eq!(tree.locate(&h(3)), Place::In(vec![spot(0, "a/b")]));
    }

    #[test]
    fn what_was_in_a_directory_that_is_gone_is_never_in_the_one_that_takes_its_room() {
        let mut tree = tree();
        tree.remove(&h(2));
        assert!(tree.put(&h(4), &h(1), b"other"));
        assert_eq!(tree.locate(&h(3)), Place::Unknown);
        tree.detach(&h(3));
        let nodes = tree.nodes.len();
        assert!(tree.put(&h(5), &h(1), b"third"));
        assert_eq!(tree.nodes.len(), nodes, "now its room is free");
        assert_eq!(tree.locate(&h(5)), Place::In(vec![spot(0, "third")]));
        tree.remove(&h(0));
        assert_eq!(tree.locate(&h(0)), Place::In(vec![]), "the top stays");
    }

    #[test]
    fn a_root_that_is_gone_is_none_in_the_directory_that_takes_its_room() {
        let mut tree = tree();
        tree.remove(&h(1));
        tree.detach(&h(2));
        assert!(tree.put(&h(6), &h(0), b"elsewhere"));
        assert_eq!(tree.locate(&h(6)), Place::In(vec![]));
    }

    #[test]
    fn a_full_tree_is_emptied_and_says_so() {
        let mut tree = Tree::with_limit(3);
        tree.reset(Anchors { top: Some(h(0)), roots: vec![Some(h(1))], own: vec![] });
        assert!(tree.put(&h(1), &h(0), b"space") && tree.put(&h(2), &h(1), b"a"));
        assert!(!tree.put(&h(3), &h(1), b"b"));
        assert_eq!(tree.locate(&h(2)), Place::Unknown);
        assert!(tree.put(&h(1), &h(0), b"space") && tree.put(&h(3), &h(1), b"b"));
        assert_eq!(tree.locate(&h(3)), Place::In(vec![spot(0, "b")]));
    }

    #[test]
    fn a_ring_is_unknown_and_does_not_hang() {
        let mut tree = tree();
        tree.put(&h(2), &h(3), b"x");
        assert_eq!(tree.locate(&h(3)), Place::Unknown);
    }

    #[test]
    fn the_top_is_never_moved() {
        let mut tree = tree();
        tree.put(&h(0), &h(3), b"x");
        assert_eq!(tree.locate(&h(3)), Place::In(vec![spot(0, "a/b")]));
    }

    #[test]
    fn a_cleared_tree_knows_only_its_anchors() {
        let mut tree = tree();
        tree.clear();
        assert_eq!(tree.locate(&h(3)), Place::Unknown);
        assert_eq!(tree.locate(&h(0)), Place::In(vec![]));
        tree.put(&h(1), &h(0), b"space");
        assert_eq!(tree.locate(&h(1)), Place::In(vec![spot(0, "")]));
    }
}
