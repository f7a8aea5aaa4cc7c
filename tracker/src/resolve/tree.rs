//! The cache of directories: handle → (parent, name), as a tree, so that renaming a directory changes one node.
//! Right only for an unbroken stream of events: whoever drops an event clears it.

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

#[derive(Default)]
pub struct Tree {
    anchors: Anchors,
    index: HashMap<Handle, u32>,
    nodes: Vec<Node>,
    /// Node → indices of the roots at it.
    roots_at: HashMap<u32, Vec<usize>>,
}

impl Tree {
    /// Starts anew with other anchors.
    pub fn reset(&mut self, anchors: Anchors) {
        self.anchors = anchors;
        self.clear();
    }

    /// Forgets everything but the anchors.
    pub fn clear(&mut self) {
        self.index.clear();
        self.nodes.clear();
        self.roots_at.clear();
        if let Some(top) = self.anchors.top.clone() {
            self.add(&top, TOP, b"");
        }
    }

    pub fn is_top(&self, handle: &Handle) -> bool {
        self.anchors.top.as_ref() == Some(handle)
    }

    pub fn root_count(&self) -> usize {
        self.anchors.roots.len()
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

    /// Puts a directory at a name; its parent must be known. False if it is not.
    pub fn put(&mut self, handle: &Handle, parent: &Handle, name: &[u8]) -> bool {
        let Some(&parent_id) = self.index.get(parent) else {
            self.detach(handle);
            return false;
        };
        match self.index.get(handle) {
            Some(&id) if self.nodes[id as usize].parent == TOP => {}
            Some(&id) => {
                let node = &mut self.nodes[id as usize];
                node.parent = parent_id;
                node.name = name.into();
            }
            None => {
                if self.nodes.len() >= limits::HANDLE_CACHE_DIRS_MAX {
                    self.clear();
                    return false;
                }
                self.add(handle, parent_id, name);
            }
        }
        true
    }

    /// It moved to a place that is not known.
    fn detach(&mut self, handle: &Handle) {
        if let Some(&id) = self.index.get(handle) {
            let node = &mut self.nodes[id as usize];
            if node.parent != TOP {
                node.parent = DETACHED;
            }
        }
    }

    fn add(&mut self, handle: &Handle, parent: u32, name: &[u8]) {
        let id = self.nodes.len() as u32;
        let roots: Vec<usize> = self
            .anchors
            .roots
            .iter()
            .enumerate()
            .filter(|(_, root)| root.as_ref() == Some(handle))
            .map(|(i, _)| i)
            .collect();
        let special = if self.anchors.own.contains(handle) {
            Special::Own
        } else if roots.is_empty() {
            Special::None
        } else {
            self.roots_at.insert(id, roots);
            Special::Root
        };
        self.nodes.push(Node { parent, name: name.into(), special });
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
