//! Which directory an inotify watch stands for: a tree of watches, so that a renamed directory is one change. Pure.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;

use shared::path::RelPath;

use crate::resolve::tree::Spot;

struct Dir<W> {
    parent: Option<W>,
    name: Vec<u8>,
    children: BTreeMap<Vec<u8>, W>,
    /// Roots at this directory.
    roots: Vec<usize>,
}

pub struct Watches<W> {
    dirs: HashMap<W, Dir<W>>,
}

impl<W> Default for Watches<W> {
    fn default() -> Self {
        Watches { dirs: HashMap::new() }
    }
}

impl<W: Clone + Eq + Hash> Watches<W> {
    pub fn len(&self) -> usize {
        self.dirs.len()
    }

    pub fn contains(&self, wd: &W) -> bool {
        self.dirs.contains_key(wd)
    }

    fn entry(&mut self, wd: W) -> &mut Dir<W> {
        self.dirs.entry(wd).or_insert_with(|| Dir {
            parent: None,
            name: Vec::new(),
            children: BTreeMap::new(),
            roots: Vec::new(),
        })
    }

    pub fn put_root(&mut self, wd: W, root: usize) {
        let dir = self.entry(wd);
        if !dir.roots.contains(&root) {
            dir.roots.push(root);
        }
    }

    /// The directory lies at this name now, wherever it was before.
    pub fn put(&mut self, wd: W, parent: W, name: &[u8]) {
        if wd == parent {
            return;
        }
        self.cut(&wd);
        if let Some(other) = self.entry(parent.clone()).children.insert(name.to_vec(), wd.clone())
            && let Some(dir) = self.dirs.get_mut(&other)
        {
            dir.parent = None;
        }
        let dir = self.entry(wd);
        dir.parent = Some(parent);
        dir.name = name.to_vec();
    }

    /// Takes the directory at this name out of its parent; it stays known until it is put or removed.
    pub fn detach(&mut self, parent: &W, name: &[u8]) -> Option<W> {
        let child = self.dirs.get_mut(parent)?.children.remove(name)?;
        if let Some(dir) = self.dirs.get_mut(&child) {
            dir.parent = None;
        }
        Some(child)
    }

    /// True if it hangs below nothing and is no root.
    pub fn is_loose(&self, wd: &W) -> bool {
        self.dirs.get(wd).is_some_and(|d| d.parent.is_none() && d.roots.is_empty())
    }

    /// The watch is gone.
    pub fn remove(&mut self, wd: &W) {
        self.cut(wd);
        if let Some(dir) = self.dirs.remove(wd) {
            for child in dir.children.values() {
                if let Some(child) = self.dirs.get_mut(child) {
                    child.parent = None;
                }
            }
        }
    }

    /// Forgets a directory and all below it, but no root; returns the watches that are of no more use.
    pub fn remove_tree(&mut self, wd: &W) -> Vec<W> {
        let mut removed = Vec::new();
        let mut todo = vec![wd.clone()];
        while let Some(wd) = todo.pop() {
            if self.dirs.get(&wd).is_some_and(|d| d.roots.is_empty()) {
                todo.extend(self.dirs.get(&wd).into_iter().flat_map(|d| d.children.values().cloned()));
                self.remove(&wd);
                removed.push(wd);
            }
        }
        removed
    }

    /// The watch of the directory at this path below another.
    pub fn find(&self, top: &W, path: &RelPath) -> Option<W> {
        let below = |at: W, name: &[u8]| self.dirs.get(&at)?.children.get(name).cloned();
        path.components().try_fold(top.clone(), below)
    }

    /// Where the directory lies, in every root that holds it.
    pub fn spots(&self, wd: &W) -> Vec<Spot> {
        let mut spots = Vec::new();
        let mut names: Vec<&[u8]> = Vec::new();
        let mut at = self.dirs.get(wd);
        while let Some(dir) = at {
            if !dir.roots.is_empty() {
                let bytes = names.iter().rev().copied().collect::<Vec<_>>().join(&b'/');
                if let Ok(path) = RelPath::parse(&bytes) {
                    spots.extend(dir.roots.iter().map(|&root| Spot { root, path: path.clone() }));
                }
            }
            names.push(&dir.name);
            // A ring cannot be: `put` takes a directory out before it puts it in. A bound costs nothing.
            at =
                dir.parent.as_ref().filter(|_| names.len() <= self.dirs.len()).and_then(|p| self.dirs.get(p));
        }
        spots
    }

    fn cut(&mut self, wd: &W) {
        let Some(dir) = self.dirs.get_mut(wd) else { return };
        let name = std::mem::take(&mut dir.name);
        if let Some(parent) = dir.parent.take()
            && let Some(parent) = self.dirs.get_mut(&parent)
            && parent.children.get(&name) == Some(wd)
        {
            parent.children.remove(&name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(watches: &Watches<i32>, wd: i32) -> Vec<(usize, String)> {
        watches.spots(&wd).into_iter().map(|s| (s.root, s.path.to_string())).collect()
    }

    /// 1 (root 0) / a = 2 / b = 3
    fn tree() -> Watches<i32> {
        let mut watches = Watches::default();
        watches.put_root(1, 0);
        watches.put(2, 1, b"a");
        watches.put(3, 2, b"b");
        watches
    }

    #[test]
    fn a_renamed_directory_takes_all_below_it_along() {
        let mut watches = tree();
        assert_eq!(watches.detach(&1, b"a"), Some(2));
        assert!(watches.is_loose(&2));
        assert_eq!(paths(&watches, 3), []);
        watches.put(2, 1, b"z");
        assert_eq!(paths(&watches, 3), [(0, "z/b".to_owned())]);
        assert_eq!(watches.detach(&1, b"a"), None);
    }

    #[test]
    fn a_watch_is_found_by_its_path() {
        let watches = tree();
        let find = |path: &[u8]| watches.find(&1, &RelPath::parse(path).unwrap());
        assert_eq!((find(b""), find(b"a/b"), find(b"a/c")), (Some(1), Some(3), None));
    }

    #[test]
    fn a_directory_that_moved_away_is_forgotten_with_all_below_it() {
        let mut watches = tree();
        watches.detach(&1, b"a");
        let mut removed = watches.remove_tree(&2);
        removed.sort();
        assert_eq!(removed, [2, 3]);
        assert_eq!(watches.len(), 1);
    }

    #[test]
    fn another_directory_at_the_same_name_makes_the_first_one_loose() {
        let mut watches = tree();
        watches.put(9, 1, b"a");
        assert!(watches.is_loose(&2));
        assert_eq!(paths(&watches, 9), [(0, "a".to_owned())]);
        watches.put(2, 1, b"old");
        assert_eq!(
            paths(&watches, 9),
            [(0, "a".to_owned())],
            "putting it elsewhere takes nothing from the new one"
        );
    }

    #[test]
    fn a_removed_watch_leaves_those_below_loose() {
        let mut watches = tree();
        watches.remove(&2);
        assert!(watches.is_loose(&3) && !watches.contains(&2));
        assert_eq!(watches.detach(&1, b"a"), None);
    }

    #[test]
    fn nested_roots_see_a_directory_both() {
        let mut watches = tree();
        watches.put_root(2, 1);
        assert_eq!(paths(&watches, 3), [(1, "b".to_owned()), (0, "a/b".to_owned())]);
        watches.detach(&1, b"a");
        assert!(!watches.is_loose(&2), "a root is never given up");
    }
}
