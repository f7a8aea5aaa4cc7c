//! The changes of one batch of events, joined: a path is one change with the union of its bits, however many events
//! it had. Pure.

use std::collections::HashMap;

use shared::entry::{Cause, Handle};
use shared::journal::{self, Change, Commit, Doubt};

use crate::resolve::doubts::Turn;
use crate::roots::TrackedRoot;

#[derive(Debug)]
pub struct Batch {
    seed: u64,
    changes: Vec<Change>,
    index: HashMap<u128, usize>,
    /// Events of paths that are not ours, or left out by rule.
    pub dropped: u64,
    pub overflows: u64,
    /// Why every root is looked at again; once for each time.
    pub gaps: Vec<Cause>,
    pub error: Option<String>,
}

impl Default for Batch {
    fn default() -> Batch {
        Batch {
            seed: journal::random_seed(),
            changes: Vec::new(),
            index: HashMap::new(),
            dropped: 0,
            overflows: 0,
            gaps: Vec::new(),
            error: None,
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
            generations: Vec::new(),
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
