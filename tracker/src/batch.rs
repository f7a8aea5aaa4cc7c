//! The changes of one batch of events, joined: a path is one change with the union of its bits, however many events
//! it had. Pure.

use hashbrown::HashMap;
use shared::entry::{Cause, Handle, Mask, Scope};
use shared::journal::{self, Change, Commit, Doubt};
use shared::path::RelPath;

use crate::event_to_entry as entry;
use crate::linked::Linked;
use crate::resolve::doubts::Turn;
use crate::roots::TrackedRoot;

#[derive(Debug)]
pub struct Batch {
    seed: u64,
    changes: Vec<Change>,
    index: HashMap<u128, usize>,
    scratch: Vec<u8>,
    /// Events of paths that are not ours, or left out by rule.
    pub dropped: u64,
    pub overflows: u64,
    /// Why every root is looked at again; once for each time.
    pub gaps: Vec<Cause>,
    pub error: Option<String>,
    /// Lent by the thread, which keeps it up to date.
    pub linked: Linked,
}

impl Default for Batch {
    fn default() -> Batch {
        Batch {
            seed: journal::random_seed(),
            changes: Vec::new(),
            index: HashMap::new(),
            scratch: Vec::new(),
            dropped: 0,
            overflows: 0,
            gaps: Vec::new(),
            error: None,
            linked: Linked::default(),
        }
    }
}

impl Batch {
    pub fn push(&mut self, change: Change) {
        let key = journal::key(&change, self.seed);
        match self.index.get(&key) {
            Some(&at) => self.changes[at].mask |= change.mask,
            None => {
                self.index.insert(key, self.changes.len());
                self.changes.push(change);
            }
        }
    }

    /// A change at a name of a directory, where `.` is the directory itself, unless a rule of the root leaves it out.
    /// Whether it is one. Most names are here already, so that nothing is made before it is needed.
    pub fn push_name(
        &mut self,
        root: &TrackedRoot,
        dir: &RelPath,
        name: &[u8],
        mask: Mask,
        scope: Scope,
    ) -> bool {
        let path: [&[u8]; 3] = match name {
            b"." => [dir.as_bytes(), b"", b""],
            _ if dir.is_root() => [name, b"", b""],
            _ => [dir.as_bytes(), b"/", name],
        };
        let key = journal::key_of(root.id, scope, &path, None, self.seed, &mut self.scratch);
        if let Some(&at) = self.index.get(&key) {
            self.changes[at].mask |= mask;
            return true;
        }
        let path = if name == b"." { Ok(dir.clone()) } else { dir.child(name) };
        // A name with `/` or NUL cannot come out of the parser.
        let Some(change) = path.ok().and_then(|path| entry::change(root, path, mask, scope)) else {
            return false;
        };
        self.index.insert(key, self.changes.len());
        self.changes.push(change);
        true
    }

    pub fn len(&self) -> usize {
        self.changes.len()
    }

    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// Events nobody saw or kept: every root of the filesystem is looked at again.
    pub fn gap(&mut self, roots: &[TrackedRoot], cause: Cause) {
        self.gaps.push(cause);
        for root in roots {
            self.push(Change::gap(root.id, cause));
        }
    }

    /// What the journal takes, with the doubts of `fs`.
    pub fn into_commit(self, fs: &str, doubts: Turn) -> Commit {
        let doubt = |(handle, epoch): (Handle, u64)| Doubt { fs: fs.to_owned(), handle, epoch };
        Commit {
            changes: self.changes,
            doubts: doubts.raised.into_iter().map(doubt).collect(),
            settled: doubts.settled.into_iter().map(|h| (fs.to_owned(), h)).collect(),
        }
    }
}

/// True if there is nothing to write.
pub fn is_empty(commit: &Commit) -> bool {
    commit.changes.is_empty() && commit.doubts.is_empty() && commit.settled.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;
    use shared::entry::{Mask, Scope};
    use shared::journal::RootId;
    use shared::path::RelPath;

    fn change(path: &str, mask: Mask) -> Change {
        Change {
            root: RootId(1),
            path: RelPath::parse(path.as_bytes()).unwrap(),
            handle: None,
            scope: Scope::SelfOnly,
            cause: Cause::Event,
            mask,
        }
    }

    #[test]
    fn many_events_of_a_path_are_one_change() {
        let mut batch = Batch::default();
        batch.push(change("a", Mask::CREATE));
        batch.push(change("b", Mask::CREATE));
        batch.push(change("a", Mask::MODIFY));
        let commit = batch.into_commit("fs", Turn::default());
        assert_eq!(commit.changes.len(), 2);
        assert_eq!(commit.changes[0].mask, Mask::CREATE | Mask::MODIFY);
    }

    #[test]
    fn nobody_can_foretell_how_names_are_told_apart() {
        let mut batches = [Batch::default(), Batch::default()];
        batches.iter_mut().for_each(|batch| batch.push(change("a", Mask::CREATE)));
        assert_ne!(batches[0].index, batches[1].index);
    }
}
