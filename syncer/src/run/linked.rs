//! Files with more names than the catalog has of them: their handles are published in the journal, so that the tracker
//! tells of what is written through the other names.
//!
//! The order matters. The catalog has the file as it was read; then it is published, which owes it another look; then
//! that look is made. What is written before it shows in it, and what is written later is told.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use shared::entry::{Handle, Mask, Scope};
use shared::journal::{Class, NewDeferred, RootId};
use shared::limits;
use shared::path::RelPath;

use super::source::{Ground, Work};
use super::{Run, RunError};
use crate::catalog::{Key, Row, RowState};
use crate::tree::{Kind, Look};

/// Files of a batch that have other names, or had: by root and handle, with the link count where it was seen.
#[derive(Debug, Default)]
pub struct LinkedFiles(BTreeMap<(usize, Handle), Option<u64>>);

impl LinkedFiles {
    pub fn has(&self, root: usize, handle: &Handle) -> bool {
        self.0.contains_key(&(root, handle.clone()))
    }

    /// True the first time.
    pub fn add(&mut self, root: usize, handle: Handle, links: Option<u64>) -> bool {
        match self.0.entry((root, handle)) {
            Entry::Vacant(free) => {
                free.insert(links);
                true
            }
            Entry::Occupied(mut known) => {
                known.insert(links.max(*known.get()));
                false
            }
        }
    }
}

/// Roots of which files with other names were seen since they were counted, and when each root was.
#[derive(Default)]
pub(super) struct Recount {
    seen: BTreeSet<usize>,
    counted_ns: BTreeMap<usize, i64>,
}

/// What is to be said of one file in the journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Say {
    Publish,
    Withdraw,
    /// Leave it as it is.
    Nothing,
}

/// `rows` are the names that the catalog has, all of which bring events of their own.
fn say(rows: &[(Key, Row)], links: Option<u64>) -> Say {
    // A file without a row is owed, and will be looked at.
    let Some(in_rows) = rows.iter().map(|(_, row)| row.stat.nlink).max() else { return Say::Withdraw };
    if links.unwrap_or(in_rows) > rows.len() as u64 {
        Say::Publish
    } else if rows.iter().all(|(_, row)| row.settled) {
        Say::Withdraw
    } else {
        // A write through a name that is gone may still be on its way, and only its event would show it.
        Say::Nothing
    }
}

/// What a publication owes.
fn another_look(root: RootId, handle: &Handle, seq: u64, now_ns: i64) -> NewDeferred {
    NewDeferred {
        root,
        path: RelPath::root(),
        scope: Scope::Handle,
        handle: Some(handle.clone()),
        seq,
        mask: Mask::UNKNOWN,
        since_ns: now_ns,
        attempts: 0,
        not_before_ns: now_ns.saturating_add(limits::backoff(0).as_nanos() as i64),
        class: Class::InFlight,
        last_error: "it may have been written through another name while it was read".into(),
    }
}

impl Run<'_> {
    /// After the receipts of a batch are in the catalog, and before anything is acked.
    pub(super) fn publish_linked(&mut self) -> Result<(), RunError> {
        let mut by_root: BTreeMap<usize, [BTreeSet<Handle>; 2]> = BTreeMap::new();
        for ((root, handle), links) in std::mem::take(&mut self.plan.linked).0 {
            let Some(ground) = &self.grounds[root] else { continue };
            let rows = self.names(ground, &handle)?;
            let sets = by_root.entry(root).or_default();
            match say(&rows, links) {
                Say::Publish => _ = sets[0].insert(handle),
                Say::Withdraw => _ = sets[1].insert(handle),
                Say::Nothing => {}
            }
        }
        let leg = self.parts.leg.name.to_string();
        let (seq, now_ns) = (self.head, self.parts.clock.wall_ns());
        for (root, [publish, withdraw]) in by_root {
            let id = self.roots[root].id;
            let owed = |handle: &Handle| another_look(id, handle, seq, now_ns);
            let news = self
                .parts
                .journal
                .publish_owing(&leg, id, &publish, &withdraw, |handle| Some(owed(handle)))?;
            let mut done = Vec::new();
            for handle in news {
                let key = owed(&handle).key();
                // Whatever was being worked off by its handle, this is newer.
                self.due.remove(&key);
                if self.is_as_read(root, &handle)? {
                    done.push((key, seq));
                }
            }
            if !done.is_empty() {
                let revision = self.revision_to_note()?;
                self.parts.journal.settle_deferred(&leg, revision, &done)?;
            }
            self.recount.seen.insert(root);
        }
        Ok(())
    }

    /// The catalogued names of a file that count: not what is gone, nor what the tracker leaves out by rule.
    fn names(&self, ground: &Ground, handle: &Handle) -> Result<Vec<(Key, Row)>, RunError> {
        let mut rows = self.parts.catalog.rows_of_handle(ground.catalog, handle)?;
        rows.retain(|(key, row)| row.state != RowState::Absent && !ground.rules.excludes(&key.path(), false));
        Ok(rows)
    }

    /// One look serves all names of the file. False where it is not what a row says, or where an equal stat would not
    /// show it.
    fn is_as_read(&self, root: usize, handle: &Handle) -> Result<bool, RunError> {
        let Some(ground) = &self.grounds[root] else { return Ok(false) };
        let rows = self.names(ground, handle)?;
        let mut looks = rows.iter().map(|(key, row)| (row, ground.tree.look(&key.path())));
        let is_it = |row: &Row, look: &Look| match look {
            Look::Found(stat) => (stat.kind, stat.ino) == (row.stat.kind, row.stat.ino),
            Look::Gone { .. } => false,
            Look::Elsewhere(_) | Look::Unknown(_) => true,
        };
        // Names that are gone meanwhile have events of their own.
        let Some((_, look)) = looks.find(|(row, look)| is_it(row, look)) else { return Ok(true) };
        let proven = |row: &Row| match &look {
            Look::Found(stat) => *stat == row.stat && (row.settled || row.stat.kind != Kind::File),
            _ => false,
        };
        Ok(rows.iter().all(|(_, row)| proven(row)))
    }

    /// A rescan of a whole root only counts what is unchanged, linked or not. What the catalog asks for is published before
    /// it, so that the walk is the look after the publication: after a full pass nothing is published, and what follows
    /// from other rules, or from a batch whose run was cut off, was not yet.
    pub(super) fn publish_before(&mut self, works: &[Work]) -> Result<(), RunError> {
        let whole = works.iter().filter(|work| work.is_tree() && work.path.is_root());
        for root in whole.map(|work| work.root).collect::<BTreeSet<_>>() {
            let Some(ground) = &self.grounds[root] else { continue };
            let wanted = self.wanted(ground)?;
            let (leg, id) = (self.parts.leg.name.as_str(), self.roots[root].id);
            self.parts.journal.publish_linked(leg, id, &wanted, &BTreeSet::new())?;
            self.recount.seen.insert(root);
        }
        Ok(())
    }

    /// Where there were too many for the journal, and by now there may not be.
    pub(super) fn recount_linked(&mut self) -> Result<(), RunError> {
        let leg = self.parts.leg.name.to_string();
        for root in std::mem::take(&mut self.recount.seen) {
            let (id, Some(ground)) = (self.roots[root].id, &self.grounds[root]) else { continue };
            if !self.parts.journal.has_too_many_linked(&leg, id)? {
                continue;
            }
            let counted_ns = self.recount.counted_ns.get(&root).copied();
            if self.was_done_of_late(counted_ns, limits::LINKED_COUNT_INTERVAL) {
                self.recount.seen.insert(root);
                continue;
            }
            self.recount.counted_ns.insert(root, self.parts.clock.boot_ns());
            let wanted = self.wanted(ground)?;
            if wanted.len() <= limits::LINKED_FILES_MAX {
                self.parts.journal.replace_linked(&leg, id, &wanted)?;
            }
        }
        Ok(())
    }

    /// The files that have more names than the catalog; one more than can be published stands for any more.
    fn wanted(&self, ground: &Ground) -> Result<BTreeSet<Handle>, RunError> {
        let mut wanted = BTreeSet::new();
        let mut last: Option<(Handle, u64, u64)> = None;
        let mut close = |file: Option<(Handle, u64, u64)>| {
            if let Some((handle, links, names)) = file
                && links > names
                && wanted.len() <= limits::LINKED_FILES_MAX
            {
                wanted.insert(handle);
            }
        };
        self.parts.catalog.each_linked(ground.catalog, |handle, key, links| {
            let name = u64::from(!ground.rules.excludes(&key.path(), false));
            match &mut last {
                Some((of, most, names)) if *of == handle => {
                    *most = links.max(*most);
                    *names += name;
                }
                _ => close(last.replace((handle, links, name))),
            }
        })?;
        close(last.take());
        Ok(wanted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::examine::made_row;
    use crate::tree::Stat;

    fn row(name: &str, nlink: u64, settled: bool) -> (Key, Row) {
        let stat = Stat {
            kind: Kind::File,
            size: 1,
            mtime_ns: 0,
            ctime_ns: 0,
            btime_ns: None,
            ino: 1,
            mode: 0o644,
            uid: 0,
            gid: 0,
            nlink,
            rdev: 0,
        };
        (Key(name.as_bytes().to_vec()), Row { settled, ..made_row(&stat, None, "o".into(), None, 0) })
    }

    #[test]
    fn a_file_is_published_while_it_has_more_names_than_rows() {
        assert_eq!(say(&[row("a", 2, true)], Some(2)), Say::Publish);
        assert_eq!(say(&[row("a", 2, true), row("b", 2, true)], Some(2)), Say::Withdraw);
        assert_eq!(say(&[row("a", 1, true)], Some(3)), Say::Publish, "what was seen last counts");
        assert_eq!(say(&[row("a", 2, true)], None), Say::Publish);
        assert_eq!(say(&[row("a", 1, true)], None), Say::Withdraw);
        assert_eq!(say(&[], Some(2)), Say::Withdraw, "nothing is at the destination yet");
    }

    #[test]
    fn a_file_is_not_withdrawn_while_an_equal_stat_proves_nothing() {
        assert_eq!(say(&[row("a", 1, false)], None), Say::Nothing);
        assert_eq!(say(&[row("a", 2, true), row("b", 2, false)], Some(2)), Say::Nothing);
        assert_eq!(say(&[row("a", 2, false)], Some(2)), Say::Publish);
    }

    #[test]
    fn a_file_is_new_once_and_the_highest_link_count_that_was_seen_counts() {
        let handle = Handle { kind: 1, bytes: vec![1] };
        let mut files = LinkedFiles::default();
        assert!(files.add(0, handle.clone(), Some(2)));
        assert!(!files.add(0, handle.clone(), None));
        assert_eq!(files.0[&(0, handle)], Some(2));
    }
}
