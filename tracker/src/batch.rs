//! The changes of one batch of events, joined: a path is one change with the union of its bits, however many events
//! it had. Pure.

use hashbrown::HashMap;
use shared::entry::{Cause, Handle, Mask, Scope};
use shared::journal::{self, Change, Commit, Doubt};
use shared::path::RelPath;
use shared::status::Kinds;

use crate::event_to_entry as entry;
use crate::linked::Linked;
use crate::resolve::doubts::Turn;
use crate::roots::TrackedRoot;

/// Processes told apart in one batch; the events of more are not counted by process.
const WRITERS_MAX: usize = 32;

#[derive(Debug)]
pub struct Batch {
    seed: u64,
    changes: Vec<Change>,
    index: HashMap<u128, usize>,
    scratch: Vec<u8>,
    /// Of all events read.
    pub kinds: Kinds,
    /// How many events of ours these processes made, roughly the most frequent ones first.
    writers: Vec<(u32, u64)>,
    /// Changes that another of the same path and kind took in.
    pub merged: u64,
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
            kinds: Kinds::default(),
            writers: Vec::new(),
            merged: 0,
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
            Some(&at) => {
                self.changes[at].mask |= change.mask;
                self.merged += 1;
            }
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
            self.merged += 1;
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

    /// An event of ours was made by this process; 0 is one that cannot be seen from here.
    pub fn written_by(&mut self, pid: u32) {
        match self.writers.iter().position(|(known, _)| *known == pid) {
            Some(at) => {
                self.writers[at].1 += 1;
                // The next look for it is shorter.
                if at > 0 {
                    self.writers.swap(at, at - 1);
                }
            }
            None if self.writers.len() < WRITERS_MAX && pid != 0 => self.writers.push((pid, 1)),
            None => {}
        }
    }

    pub fn writers(&self) -> &[(u32, u64)] {
        &self.writers
    }

    pub fn changes(&self) -> &[Change] {
        &self.changes
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
            intake: None,
        }
    }
}

/// True if there is nothing to write.
pub fn is_empty(commit: &Commit) -> bool {
    commit.changes.is_empty()
        && commit.doubts.is_empty()
        && commit.settled.is_empty()
        && commit.generations.is_empty()
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
        assert_eq!(batch.merged, 1);
        let commit = batch.into_commit("fs", Turn::default());
        assert_eq!(commit.changes.len(), 2);
        assert_eq!(commit.changes[0].mask, Mask::CREATE | Mask::MODIFY);
    }

    #[test]
    fn those_who_write_most_are_known_by_name_and_very_many_others_cost_no_memory() {
        let mut batch = Batch::default();
        for pid in 1..1_000 {
            batch.written_by(5);
            batch.written_by(pid);
            batch.written_by(0);
        }
        assert_eq!(batch.writers().len(), WRITERS_MAX);
        assert_eq!(batch.writers()[0], (5, 1_000));
        assert!(batch.writers().iter().all(|(pid, _)| *pid != 0));
    }

    #[test]
    fn nobody_can_foretell_how_names_are_told_apart() {
        let mut batches = [Batch::default(), Batch::default()];
        batches.iter_mut().for_each(|batch| batch.push(change("a", Mask::CREATE)));
        assert_ne!(batches[0].index, batches[1].index);
    }
}
