//! The look at files that may change without an event, after the other work of a run. What it finds is examined in
//! one more round: whatever has an entry by then was not silent.

use std::collections::HashSet;

use shared::entry::{Mask, Scope};
use shared::limits;

use super::machine::Event;
use super::source::Work;
use super::{Run, RunError};
use crate::catalog::Key;
use crate::tree::{Look, Stat};

/// What the look found, and when it was.
#[derive(Default)]
pub(super) struct Silent {
    looked_ns: Option<i64>,
    /// By root of the run.
    found: Vec<(usize, Key)>,
}

impl Run<'_> {
    /// Once in a run, and in one that goes on once in an hour. Without the tracker nobody could tell whether there are
    /// events.
    pub(super) fn look_silent(&mut self) -> Result<Event, RunError> {
        let of_late = self.was_done_of_late(self.silent.looked_ns, limits::SILENT_INTERVAL);
        if !self.flushed || self.stop.is_some() || of_late {
            return Ok(Event::Looked { found: false });
        }
        self.silent.looked_ns = Some(self.parts.clock.boot_ns());
        let mut left = limits::SILENT_PATHS_MAX;
        for (root, ground) in self.grounds.iter().enumerate() {
            let Some(ground) = ground else { continue };
            let files = self.parts.catalog.silent_files(ground.catalog, left)?;
            left -= files.len();
            for (key, known) in files {
                let path = key.path();
                let changed = matches!(ground.tree.look(&path), Look::Found(now) if differs(&known, &now));
                // What is owed differs because it is owed.
                if changed
                    && !ground.rules.excludes(&path, false)
                    && !self.parts.journal.owes(self.parts.leg.name.as_str(), self.roots[root].id, &path)?
                {
                    self.silent.found.push((root, key));
                }
            }
        }
        Ok(Event::Looked { found: !self.silent.found.is_empty() })
    }

    /// Adds what was found to the entries of a round that began with a flush after the look.
    pub(super) fn add_silent(&mut self, works: &mut Vec<Work>) -> Result<(), RunError> {
        let found = std::mem::take(&mut self.silent.found);
        if found.is_empty() || !self.flushed {
            return Ok(());
        }
        let trees: Vec<&Work> = works.iter().filter(|w| w.scope == Scope::Subtree).collect();
        let named: HashSet<_> = works.iter().map(|w| (w.root, &w.path)).collect();
        let has_entry = |root: usize, key: &Key| {
            let path = key.path();
            named.contains(&(root, &path)) || trees.iter().any(|w| w.root == root && path.is_within(&w.path))
        };
        let silent: Vec<_> = found.into_iter().filter(|(root, key)| !has_entry(*root, key)).collect();
        let rows: Vec<_> =
            silent.iter().filter_map(|(root, key)| Some((self.roots[*root].catalog?, key.clone()))).collect();
        if !rows.is_empty() {
            self.parts.catalog.add_silent(&rows, self.parts.clock.wall_ns())?;
        }
        self.report.found_without_event += silent.len() as u64;
        for (root, key) in silent {
            tracing::info!(root = %self.roots[root].name, path = %key.path(), "found changed without an event");
            let (path, scope, mask) = (key.path(), Scope::SelfOnly, Mask::UNKNOWN);
            works.push(Work { root, path, scope, mask, seq: self.head });
        }
        Ok(())
    }
}

/// The number of names is told by events of the other names.
fn differs(known: &Stat, now: &Stat) -> bool {
    *now != Stat { nlink: now.nlink, ..*known }
}
