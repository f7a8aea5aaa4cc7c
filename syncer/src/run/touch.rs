//! Directories that a batch disturbs: what is put into them or taken away changes their times. An intent names each
//! before the first request, and only the receipt of its attributes, set once all below it is in place, closes that.

use std::collections::BTreeSet;

use shared::database::DatabaseError;
use shared::entry::{Mask, Scope};
use shared::journal::Class;
use shared::path::RelPath;

use super::batch::{Action, Op, Owed};
use super::send::Outcome;
use super::{Run, RunError};
use crate::catalog::{CatalogRoot, Change, Intent, Key, NewIntent, Row};
use crate::leg::Listed;
use crate::tree::{Kind, Look};

type Dirs = BTreeSet<(usize, RelPath)>;

/// Where the directories of a batch stand.
#[derive(Default)]
pub(super) struct Touch {
    /// Named by intents, and not disturbed.
    named: Dirs,
    /// Disturbed: without the receipt of their attributes they stay as they are.
    disturbed: Dirs,
    /// Disturbed, and no longer there to be set right: when they come back, an equal stat must prove nothing.
    gone: Dirs,
    /// Disturbed, and their attributes could not be set.
    failed: Vec<Owed>,
    /// Of those that failed in any batch: they go once the journal has what is owed.
    intents: Vec<(CatalogRoot, Key)>,
}

/// The directories that an operation may disturb: the one it is in, and the one it makes.
pub(super) fn around(op: &Op) -> impl Iterator<Item = (usize, RelPath)> {
    let disturbs = op.action != Action::Attributes;
    let itself = (op.action == Action::MakeDir).then(|| op.path.clone());
    let dirs = op.path.parent().into_iter().chain(itself);
    dirs.filter(move |_| disturbs).map(|dir| (op.root, dir))
}

/// True for the one that sets the attributes of a disturbed directory.
pub(super) fn is_touch(op: &Op) -> bool {
    op.action == Action::Attributes && op.stat.kind.is_dir()
}

/// What the operations did disturb: also one that failed may have.
pub(super) fn disturbed(outcomes: &[Outcome]) -> Dirs {
    let of_outcome = |o: &Outcome| {
        let (itself, was_made) = (o.op.path.clone(), o.result.is_ok());
        let may_have = o.result.as_ref().map_or_else(|failure| failure.asked, |done| done.sent);
        let dirs = around(&o.op).filter(move |(_, dir)| may_have && (was_made || *dir != itself));
        dirs.collect::<Vec<_>>()
    };
    outcomes.iter().flat_map(of_outcome).collect()
}

/// The row of a directory that stands as the catalog knows it, but may have been disturbed: for good, because nothing
/// of that comes true later.
pub(super) fn settle(intent: &Intent, found: Option<&Listed>, known: Option<&Row>) -> Option<Change> {
    let stands = found.zip(known).is_some_and(|(found, row)| {
        found.kind.is_dir() && row.stat.kind.is_dir() && found.object == row.object
    });
    stands.then(|| Change::DoubtAttributes { root: intent.root, key: intent.key.clone() })
}

impl Run<'_> {
    /// The intents of what may be disturbed; none for a leg that holds no attributes.
    pub(super) fn name_dirs(&mut self, dirs: impl Iterator<Item = (usize, RelPath)>) -> Vec<NewIntent> {
        let holds = self.sender.as_ref().is_some_and(|sender| sender.store.holds().attributes);
        self.touch.named = dirs.filter(|_| holds).collect();
        let keys = self.touch.named.iter().filter_map(|(root, dir)| self.key_of_dir(*root, dir));
        keys.map(|(root, key)| NewIntent { root, key, handle: None }).collect()
    }

    /// Sets the attributes of what was disturbed. `known_only`: what the catalog does not know is not looked at.
    pub(super) async fn touch_dirs(
        &mut self,
        dirs: Dirs,
        known_only: bool,
    ) -> Result<Vec<Outcome>, RunError> {
        let mut ops = Vec::new();
        for (root, dir) in dirs {
            if self.touch.named.contains(&(root, dir.clone())) {
                ops.extend(self.touch_op(root, &dir, known_only)?);
            }
        }
        let Some(sender) = &self.sender else { return Ok(Vec::new()) };
        Ok(sender.send_all(ops, &self.grounds).await)
    }

    /// `None` where there is nothing to be done, or nothing can be: then it is owed.
    fn touch_op(
        &mut self,
        root: usize,
        dir: &RelPath,
        known_only: bool,
    ) -> Result<Option<Op>, DatabaseError> {
        let Some(ground) = &self.grounds[root] else { return Ok(None) };
        let key = Key::new(dir, Kind::Dir);
        let row = self.parts.catalog.get(ground.catalog, &key)?;
        let (class, reason) = match ground.tree.look(dir) {
            _ if known_only && row.is_none() => return Ok(None),
            Look::Found(stat) if stat.kind.is_dir() && !ground.rules.excludes(dir, true) => {
                self.touch.disturbed.insert((root, dir.clone()));
                let (path, action, mask, seq) = (dir.clone(), Action::Attributes, Mask::ATTRIB, self.head);
                return Ok(Some(Op { root, path, stat, row, action, mask, seq }));
            }
            // Should it come back, an event leads to it.
            Look::Found(_) | Look::Gone { .. } => {
                self.touch.gone.insert((root, dir.clone()));
                return Ok(None);
            }
            Look::Elsewhere(reason) => (Class::Elsewhere, reason),
            Look::Unknown(reason) => (Class::Unknown, reason),
        };
        self.touch.disturbed.insert((root, dir.clone()));
        let (path, scope, mask, seq) = (dir.clone(), Scope::SelfOnly, Mask::UNKNOWN, self.head);
        self.touch.failed.push(Owed { root, path, scope, mask, seq, class, reason, wait: None });
        Ok(None)
    }

    /// What could not be done is owed; of a disturbed directory also the doubt is written down.
    pub(super) fn owe(&mut self, op: &Op, owed: Owed) {
        if is_touch(op) { self.touch.failed.push(owed) } else { self.owed.push(owed) }
    }

    /// Leaves of the intents that a batch would close those that it may, and doubts what was not set right. A directory
    /// that was not disturbed is as it was, unless that failed before.
    pub(super) fn close_dirs(
        &mut self,
        closed: &mut Vec<(CatalogRoot, Key)>,
        touched: Vec<(CatalogRoot, Key)>,
        changes: &mut Vec<Change>,
    ) {
        let Touch { named, disturbed, gone, failed, intents } = std::mem::take(&mut self.touch);
        let keys = |dirs: Dirs| dirs.into_iter().filter_map(|(root, dir)| self.key_of_dir(root, &dir));
        closed.extend(keys(named));
        let open: BTreeSet<_> = keys(disturbed).chain(intents.iter().cloned()).collect();
        closed.retain(|key| !open.contains(key));
        closed.extend(touched);
        let not_set: Vec<_> = failed.iter().filter_map(|o| self.key_of_dir(o.root, &o.path)).collect();
        let doubted = keys(gone).chain(not_set.clone());
        changes.extend(doubted.map(|(root, key)| Change::DoubtAttributes { root, key }));
        self.touch.intents = intents.into_iter().chain(not_set).collect();
        self.owed.extend(failed);
    }

    /// The journal has what failed: nothing else needs to lead there.
    pub(super) fn forget_failed_dirs(&mut self) -> Result<(), DatabaseError> {
        let intents = std::mem::take(&mut self.touch.intents);
        if intents.is_empty() { Ok(()) } else { self.parts.catalog.apply(&[], &intents) }
    }

    fn key_of_dir(&self, root: usize, dir: &RelPath) -> Option<(CatalogRoot, Key)> {
        self.key_in_catalog(root, dir, Kind::Dir)
    }
}
