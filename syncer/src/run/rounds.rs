//! A round: what the tracker saw, then what is owed, in batches of examine, intents, send and receipts.

use std::collections::HashSet;

use shared::database::DatabaseError;
use shared::entry::{Handle, Mask, Scope};
use shared::exit::Exit;
use shared::journal::{Class, Deferred, DeferredKey, Entry, Leg, NewDeferred, RootId};
use shared::limits;
use shared::path::RelPath;

use super::batch::{self, Action, Op, Owed, Plan, Planner};
use super::machine::Event;
use super::send::{Outcome, sort_links, without_directory};
use super::source::{Eyes, Source, Work};
use super::{Run, RunError, touch};
use crate::catalog::{Change, Key, NewIntent};
use crate::report::Trouble;

impl Run<'_> {
    /// A tracker that does not answer: what the journal has is synced, nothing is deleted, and the run says so.
    pub(super) fn flush(&mut self) -> bool {
        match self.parts.tracker.flush() {
            Ok(()) => {
                self.report.tracker = None;
                true
            }
            Err(reason) => {
                self.exits.push(Exit::TryLater);
                self.report.tracker = Some(reason);
                false
            }
        }
    }

    pub(super) fn claim(&mut self) -> Result<(), RunError> {
        let leg = self.parts.leg.name.to_string();
        self.head = self.parts.journal.claim(&leg)?;
        if self.parts.journal.is_overtaken(&leg)? {
            return Err(RunError::Overtaken(leg));
        }
        // Whatever was renamed since has an entry above the claim only if nothing older is remembered.
        self.grounds.iter().flatten().for_each(|ground| ground.tree.release());
        self.check_rules()?;
        let cursor = self.leg_row.as_ref().map_or(0, Leg::cursor);
        let mut works = Vec::new();
        // Everything in them is compared with the destination's listing right after: before that, what stands there
        // would be taken for missing and sent again.
        let compared = self.parts.journal.full_passes_due(&leg, self.parts.clock.wall_ns())?;
        let mut after = cursor;
        loop {
            let entries = self.parts.journal.read(after, self.head, limits::READ_ROWS_MAX)?;
            let Some(last) = entries.last() else { break };
            after = last.seq;
            self.report.entries += entries.len() as u64;
            for entry in entries.iter().filter(|e| !compared.contains(&e.root)) {
                self.add_entry(entry, &mut works)?;
            }
        }
        self.wake_changed(&mut works)?;
        self.add_silent(&mut works)?;
        self.publish_before(&works)?;
        self.source = Source::of_entries(works);
        self.due_until_ns = None;
        self.owed.clear();
        self.due.clear();
        self.owe_unproven_roots(cursor);
        Ok(())
    }

    /// What waits for another attempt does not wait any longer once it, or a tree that it lies in, changed.
    fn wake_changed(&mut self, works: &mut Vec<Work>) -> Result<(), RunError> {
        let leg = self.parts.leg.name.to_string();
        let mut waiting = self.parts.journal.deferred_waiting(&leg, self.parts.clock.wall_ns())?;
        if waiting.is_empty() {
            return Ok(());
        }
        self.renew_busy(&leg, &waiting, works)?;
        let changed: HashSet<(RootId, &RelPath, bool)> =
            works.iter().map(|work| (self.roots[work.root].id, &work.path, work.is_tree())).collect();
        waiting.retain(|Deferred { key: DeferredKey { root, path, .. }, .. }| {
            let mut around = std::iter::successors(Some(path.clone()), RelPath::parent);
            changed.contains(&(*root, path, false))
                || around.any(|path| changed.contains(&(*root, &path, true)))
        });
        if !waiting.is_empty() {
            let keys: Vec<DeferredKey> = waiting.into_iter().map(|row| row.key).collect();
            self.parts.journal.wake_changed(&leg, &keys)?;
        }
        Ok(())
    }

    /// A file that changed while it was read would be read for each of its events: what only tells of writes to it is
    /// left to its row, which keeps its time.
    fn renew_busy(&mut self, leg: &str, waiting: &[Deferred], works: &mut Vec<Work>) -> Result<(), RunError> {
        let busy = waiting.iter().filter(|row| row.class == Class::Busy).map(|row| &row.key);
        let busy: HashSet<&DeferredKey> = busy.collect();
        let written = Mask::MODIFY | Mask::CLOSE_WRITE | Mask::ATTRIB;
        let mut renewed = Vec::new();
        works.retain(|Work { root, path, scope, mask, seq }| {
            let (root, scope) = (self.roots[*root].id, *scope);
            let may_wait = scope == Scope::SelfOnly && written.contains(*mask) && !busy.is_empty();
            let key = may_wait.then(|| DeferredKey { root, path: path.clone(), scope, handle: None });
            let key = key.filter(|key| busy.contains(key));
            let stays = key.is_none();
            renewed.extend(key.map(|key| (key, *seq, *mask)));
            stays
        });
        if !renewed.is_empty() {
            self.parts.journal.renew_deferred(leg, &renewed)?;
        }
        Ok(())
    }

    /// A gap that stands for changed rules must not be worked off by the old ones.
    fn check_rules(&self) -> Result<(), RunError> {
        let in_force = self.parts.journal.roots()?;
        for root in &self.roots {
            if in_force.iter().all(|row| row.id != root.id || row.epoch != root.epoch) {
                return Err(RunError::Changed(root.name.clone()));
            }
        }
        Ok(())
    }

    fn add_entry(&self, entry: &Entry, works: &mut Vec<Work>) -> Result<(), RunError> {
        let Some(root) = self.root_index(entry.root) else { return Ok(()) };
        // Everything up to the head is looked at after the claim, so the head is every path's newest cause.
        let work =
            Work { root, path: entry.path.clone(), scope: entry.scope, mask: entry.mask, seq: self.head };
        self.add_work(work, entry.handle.as_ref(), works)
    }

    /// Of a file without a usable name: the names that the catalog has of it. Any other name is new to the catalog, so
    /// that something leads to the name itself, and whoever follows that looks later than now.
    fn add_work(&self, work: Work, handle: Option<&Handle>, works: &mut Vec<Work>) -> Result<(), RunError> {
        if work.scope != Scope::Handle {
            works.push(work);
            return Ok(());
        }
        let (Some(catalog), Some(handle)) = (self.roots[work.root].catalog, handle) else { return Ok(()) };
        let names = self.parts.catalog.names_of_handle(catalog, handle)?;
        let named = |key: Key| Work { path: key.path(), scope: Scope::SelfOnly, ..work.clone() };
        works.extend(names.into_iter().map(named));
        Ok(())
    }

    /// All that a root owes while it is not proven is one row.
    fn owe_unproven_roots(&mut self, cursor: u64) {
        if self.head == cursor {
            return;
        }
        for (root, r) in self.roots.iter().enumerate() {
            if let Err(reason) = &r.proof {
                self.owed.push(Owed {
                    root,
                    path: RelPath::root(),
                    scope: Scope::Subtree,
                    mask: Mask::UNKNOWN,
                    seq: self.head,
                    class: Class::Root,
                    reason: reason.clone(),
                    wait: None,
                });
            }
        }
    }

    /// Rows of proven roots only: the others cannot be worked off now.
    fn due_rows(&self, limit: usize) -> Result<Vec<Deferred>, RunError> {
        let now = self.parts.clock.wall_ns();
        let proven: Vec<RootId> = self.roots.iter().filter(|r| r.proof.is_ok()).map(|r| r.id).collect();
        let mut rows = Vec::new();
        for root in proven {
            rows.extend(self.parts.journal.deferred_due(self.parts.leg.name.as_str(), root, now, limit)?);
        }
        Ok(rows)
    }

    pub(super) async fn load_due(&mut self) -> Result<(), RunError> {
        let rows = self.due_rows(limits::READ_ROWS_MAX)?;
        self.owed.clear();
        self.due = rows.into_iter().map(|row| (row.key.clone(), row)).collect();
        // In the order of the keys, so that a run can be repeated.
        let rows = self.due.clone();
        let mut works = Vec::new();
        for (key, row) in rows {
            let Some(root) = self.root_index(key.root) else { continue };
            let mut work =
                Work { root, path: key.path, scope: key.scope, mask: row.mask | Mask::UNKNOWN, seq: row.seq };
            if work.scope == Scope::Full {
                self.begin_full_pass(root).await?;
                work.scope = Scope::Subtree;
            }
            self.add_work(work, key.handle.as_ref(), &mut works)?;
        }
        self.publish_before(&works)?;
        self.source = Source::of_due(works);
        let end = self.parts.clock.boot_ns().saturating_add(limits::DUE_TIME.as_nanos() as i64);
        self.due_until_ns = Some(end);
        Ok(())
    }

    pub(super) fn examine(&mut self) -> Result<Event, RunError> {
        if self.due_until_ns.is_some_and(|end| self.parts.clock.boot_ns() >= end) {
            self.leave_due();
        }
        let holds = self.store()?.holds();
        let (catalog, threads) = (&self.parts.catalog, self.parts.threads);
        let eyes = Eyes { grounds: &self.grounds, catalog, holds, threads };
        let taken = self.source.next_batch(eyes)?;
        self.report.tally.examined += taken.same;
        self.report.tally.same += taken.same;
        for work in self.source.take_put_off() {
            self.owed.push(rest_of_gap(work));
        }
        if taken.ended {
            return Ok(Event::Batch { empty: true });
        }
        let items = taken.items;
        let planner = Planner {
            grounds: &self.grounds,
            catalog: &self.parts.catalog,
            holds,
            now_ns: self.parts.clock.wall_ns(),
            run: self.report.run,
        };
        self.plan = planner.plan(items)?;
        self.report.tally.add(&self.plan.tally);
        self.owed.append(&mut self.plan.owed);
        self.source.look_again(std::mem::take(&mut self.plan.rest));
        Ok(Event::Batch { empty: false })
    }

    /// Tonight's changes come before the rest of what is owed, which stays due.
    fn leave_due(&mut self) {
        for work in self.source.stop() {
            let (root, id) = (work.root, self.roots[work.root].id);
            // A listing is not compared twice: what is left of a full pass is to examine the tree.
            let full = DeferredKey { root: id, path: work.path.clone(), scope: Scope::Full, handle: None };
            let was_full = self.due.contains_key(&full);
            // What is left may be a name of any handle.
            let left = |key: &DeferredKey| key.scope == Scope::Handle || key.path.is_within(&work.path);
            self.due.retain(|key, _| *key == full || key.root != id || !left(key));
            if was_full {
                self.full_passes.retain(|pass| *pass != root);
                self.owed.push(rest_of_gap(work));
            }
        }
    }

    pub(super) fn write_intents(&mut self) -> Result<(), RunError> {
        let plan = &self.plan;
        let ops = || plan.dirs.iter().chain(&plan.nodes).chain(&plan.links);
        let makes = |op: &&Op| op.action != Action::Attributes;
        let dirs: Vec<(usize, RelPath)> = ops().flat_map(touch::around).collect();
        let made: Vec<NewIntent> = ops()
            .filter(makes)
            .filter_map(|op| {
                let (root, key) = self.key_in_catalog(op.root, &op.path, op.stat.kind)?;
                let handle = self.grounds[op.root].as_ref().and_then(|g| g.tree.handle(&op.path));
                Some(NewIntent { root, key, handle })
            })
            .collect();
        let intents = [self.name_dirs(dirs.into_iter()), made].concat();
        if !intents.is_empty() {
            self.parts.catalog.add_intents(&intents, self.report.run, self.parts.clock.wall_ns())?;
        }
        Ok(())
    }

    pub(super) async fn send(&mut self) -> Result<(), RunError> {
        let Plan { dirs, nodes, links, .. } = &mut self.plan;
        let (dirs, nodes, links) = (std::mem::take(dirs), std::mem::take(nodes), std::mem::take(links));
        let Some(sender) = &self.sender else { return Ok(()) };
        let mut outcomes = sender.send_in_order(dirs, &self.grounds).await;
        let (nodes, lost) = without_directory(nodes, &outcomes);
        let (links, lost_links) = without_directory(links, &outcomes);
        outcomes.extend(sender.send_all(nodes, &self.grounds).await);
        outcomes.extend(lost.into_iter().chain(lost_links));
        let links = sort_links(links, &outcomes);
        outcomes.extend(links.stand);
        outcomes.extend(links.orphans.into_iter().map(Outcome::orphaned));
        outcomes.extend(sender.send_all(links.make, &self.grounds).await);
        outcomes.extend(self.touch_dirs(touch::disturbed(&outcomes), false).await?);
        self.outcomes = outcomes;
        Ok(())
    }

    /// What is confirmed must be durable before the catalog says so.
    pub(super) async fn confirm(&mut self) -> Result<(), RunError> {
        if !self.outcomes.is_empty() || self.removal.has_news() {
            self.store()?.sync().await?;
        }
        Ok(())
    }

    pub(super) fn write_receipts(&mut self) -> Result<(), RunError> {
        let mut changes = std::mem::take(&mut self.plan.changes);
        let mut fulfilled = std::mem::take(&mut self.removal.intents);
        let (mut touched, mut unknown) = (Vec::new(), Vec::new());
        for Outcome { op, result } in std::mem::take(&mut self.outcomes) {
            let Some((root, key)) = self.key_in_catalog(op.root, &op.path, op.stat.kind) else { continue };
            match result {
                Ok(done) => {
                    changes.push(Change::Put { root, key: key.clone(), row: done.row });
                    let closed = if touch::is_touch(&op) { &mut touched } else { &mut fulfilled };
                    closed.push((root, key));
                }
                Err(failure) => {
                    if !failure.outcome_unknown {
                        fulfilled.push((root, key.clone()));
                    }
                    if let (Some(exit), None) = (failure.stop, self.stop) {
                        self.stop = Some(exit);
                        self.report.troubles.push(Trouble::of_run(failure.reason.clone()));
                    }
                    if failure.outcome_unknown {
                        unknown.push((root, key));
                    }
                    let owed = batch::owed(&op, failure.class, failure.reason);
                    self.owe(&op, Owed { wait: failure.wait, ..owed });
                }
            }
        }
        self.close_dirs(&mut fulfilled, touched, &mut changes);
        if !changes.is_empty() || !fulfilled.is_empty() {
            self.parts.catalog.apply(&changes, &fulfilled)?;
        }
        if !unknown.is_empty() {
            self.parts.catalog.keep_intents(&unknown, self.parts.clock.wall_ns())?;
        }
        self.publish_linked()
    }

    pub(super) fn ack(&mut self) -> Result<(), RunError> {
        let deferred = self.deferrals()?;
        let known = self.leg_row.as_ref().map(|leg| (leg.acked, leg.revision));
        let revision = self.revision_to_note()?;
        if known == Some((self.head, revision)) && deferred.is_empty() {
            return Ok(()); // a night without changes writes nothing
        }
        let now = self.parts.clock.wall_ns();
        self.store_cursor(self.head)?;
        self.parts.journal.ack(self.parts.leg.name.as_str(), self.head, revision, &deferred, now)?;
        if let Some(leg) = &mut self.leg_row {
            leg.acked = self.head;
        }
        Ok(self.forget_failed_dirs()?)
    }

    pub(super) fn deferrals(&self) -> Result<Vec<NewDeferred>, DatabaseError> {
        self.owed.iter().map(|owed| self.deferral(owed)).collect()
    }

    /// Rows that are owed again stay, renewed; the others go, unless somebody renewed them meanwhile.
    pub(super) fn settle_due(&mut self) -> Result<(), RunError> {
        self.end_full_passes()?;
        let owed = self.deferrals()?;
        let again: HashSet<DeferredKey> = owed.iter().map(NewDeferred::key).collect();
        let done: Vec<(DeferredKey, u64)> = self
            .due
            .values()
            .filter(|row| !again.contains(&row.key))
            .map(|row| (row.key.clone(), row.seq))
            .collect();
        let leg = self.parts.leg.name.to_string();
        if !owed.is_empty() {
            self.parts.journal.defer(&leg, &owed)?;
        }
        if !done.is_empty() {
            let revision = self.revision_to_note()?;
            self.parts.journal.settle_deferred(&leg, revision, &done)?;
        }
        self.owed.clear();
        self.due.clear();
        Ok(self.forget_failed_dirs()?)
    }

    pub(super) fn review(&mut self) -> Result<Event, RunError> {
        self.recount_linked()?;
        Ok(Event::Reviewed { more: self.stop.is_none() && !self.due_rows(1_000)?.is_empty() })
    }
}

/// What is left of a subtree that is worked off in pieces.
fn rest_of_gap(work: Work) -> Owed {
    Owed {
        root: work.root,
        path: work.path,
        scope: Scope::Subtree,
        mask: work.mask | Mask::UNKNOWN,
        seq: work.seq,
        class: Class::Gap,
        reason: "it is worked off after newer changes".into(),
        wait: None,
    }
}
