//! From inode numbers of a subvolume to paths below a root, by the names that each inode has in its parents.

use std::collections::{HashMap, HashSet};

use shared::path::RelPath;

use super::Whole;
use super::items::{FIRST_INODE, Name};

pub struct Paths<F> {
    /// Directories whose content is never reported.
    own: HashSet<u64>,
    names_of: F,
    /// Of directories; `None` for those that do not lie below the root.
    known: HashMap<u64, Option<RelPath>>,
}

impl<F: FnMut(u64) -> Result<Vec<Name>, Whole>> Paths<F> {
    pub fn new(root: u64, own: HashSet<u64>, names_of: F) -> Paths<F> {
        Paths { own, names_of, known: HashMap::from([(root, Some(RelPath::root()))]) }
    }

    /// All paths of a file.
    pub fn names(&mut self, inode: u64) -> Result<Vec<RelPath>, Whole> {
        let mut out = Vec::new();
        for (parent, name) in (self.names_of)(inode)? {
            out.extend(self.dir(parent)?.and_then(|dir| dir.child(&name).ok()));
        }
        Ok(out)
    }

    /// `None` for what lies outside, is ours, or lost its name just now: of that there is an event.
    pub fn dir(&mut self, inode: u64) -> Result<Option<RelPath>, Whole> {
        let mut below: Vec<(u64, Vec<u8>)> = Vec::new();
        let mut at = inode;
        let mut path = loop {
            if let Some(path) = self.known.get(&at) {
                break path.clone();
            }
            // A tree that changes while it is climbed could lead in a circle.
            if at == FIRST_INODE || self.own.contains(&at) || below.iter().any(|(b, _)| *b == at) {
                break None;
            }
            let Some((parent, name)) = (self.names_of)(at)?.pop() else { break None };
            below.push((at, name));
            at = parent;
        };
        for (dir, name) in below.into_iter().rev() {
            path = path.and_then(|path| path.child(&name).ok());
            self.known.insert(dir, path.clone());
        }
        Ok(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A subvolume: 256 has 300 `a`, which has 301 `b`; 400 has two names; 500 has none; 600 and 601 go in a circle.
    fn names(inode: u64) -> Result<Vec<Name>, Whole> {
        let list: &[(u64, &[u8])] = match inode {
            300 => &[(256, b"a")],
            301 => &[(300, b"b")],
            400 => &[(301, b"file"), (256, b"other")],
            600 => &[(601, b"x")],
            601 => &[(600, b"y")],
            _ => &[],
        };
        Ok(list.iter().map(|(parent, name)| (*parent, name.to_vec())).collect())
    }

    fn shown(paths: Vec<RelPath>) -> Vec<String> {
        paths.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn every_name_of_a_file_is_a_path() {
        let mut paths = Paths::new(256, HashSet::new(), names);
        assert_eq!(shown(paths.names(400).unwrap()), ["a/b/file", "other"]);
        assert_eq!(paths.dir(256).unwrap(), Some(RelPath::root()));
    }

    #[test]
    fn a_root_that_is_a_directory_of_the_subvolume_has_only_what_lies_below_it() {
        let mut paths = Paths::new(301, HashSet::new(), names);
        assert_eq!(shown(paths.names(400).unwrap()), ["file"]);
        assert_eq!(paths.dir(300).unwrap(), None);
        assert_eq!(paths.dir(256).unwrap(), None);
    }

    #[test]
    fn what_is_ours_or_has_no_name_or_goes_in_a_circle_has_no_path() {
        let mut paths = Paths::new(256, HashSet::from([301]), names);
        assert_eq!(shown(paths.names(400).unwrap()), ["other"]);
        assert_eq!(paths.dir(500).unwrap(), None);
        assert_eq!(paths.dir(600).unwrap(), None);
        assert_eq!(shown(paths.names(500).unwrap()), [] as [&str; 0]);
    }
}
