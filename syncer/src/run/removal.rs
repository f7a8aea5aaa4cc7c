//! The end of a round: the guard judges everything absent, and what it releases is looked at again, one path at a
//! time, at the moment its object is removed. Intents come before the requests here, too: a file that comes back after
//! a removal whose outcome nobody knows must not be taken for what its row says.

use std::collections::{BTreeSet, HashSet};
use std::sync::atomic::Ordering;

use futures_util::StreamExt as _;
use shared::config::Deletes;
use shared::entry::{Mask, Scope};
use shared::exit::Exit;
use shared::journal::{Class, RootState};
use shared::limits;
use shared::path::RelPath;

use super::batch::Owed;
use super::machine::Event;
use super::{Run, RunError};
use crate::catalog::{CatalogRoot, Change, Key, NewIntent, Origin, Row, RowState};
use crate::guard::{self, Judgement, Load};
use crate::leg::{Holds, Problem, Remove, StoreError};
use crate::report::Trouble;
use crate::tree::Look;

const DAY_NS: i64 = 24 * 3600 * 1_000_000_000;

/// Where the removal of released rows stands.
#[derive(Default)]
pub struct Removal {
    /// Roots whose rows may go, in the order they are worked off.
    roots: Vec<usize>,
    /// The last key that was done, in falling order.
    before: Option<Key>,
    /// The owner allowed this many for this run.
    approved: bool,
    /// Of the rows under way.
    pub(super) intents: Vec<(CatalogRoot, Key)>,
    changes: Vec<Change>,
    disturbed: BTreeSet<(usize, RelPath)>,
    owed: Vec<Owed>,
    removed: u64,
    bytes: u64,
}

impl Removal {
    pub fn has_news(&self) -> bool {
        self.removed > 0
    }
}

/// What the second look says of a row that the guard released.
enum Second {
    Remove,
    /// It is there again: nothing is removed, and it is examined anew.
    Back,
    Unknown(Class, String),
}

/// What keeps a directory at the destination from being removed.
enum Occupants {
    Ours,
    /// What the rules leave out, and nothing else of ours.
    Kept,
    Others,
}

impl Run<'_> {
    pub(super) fn guard(&mut self) -> Result<Event, RunError> {
        self.removal = Removal::default();
        let held_back = Ok(Event::Judged { released: false });
        let never = self.parts.leg.deletes == Deletes::Never;
        if never || !self.flushed || self.parts.catalog.nothing_absent()? {
            return held_back;
        }
        let roots = self.deletable_roots()?;
        let load = self.load(&roots)?;
        self.report.absent = load.count;
        let verdict = guard::judge(&load, &self.parts.leg.guard);
        let allowed = self.parts.wish.allow_deletes.is_some_and(|n| load.count <= n);
        match verdict {
            Judgement::Clear => return held_back,
            Judgement::Trip(reason) if !allowed => {
                self.exits.push(Exit::Guard);
                self.report.guard = Some(reason);
                return held_back;
            }
            Judgement::Trip(_) => self.removal.approved = true,
            Judgement::Release => {}
        }
        self.removal.roots = roots;
        Ok(Event::Judged { released: true })
    }

    /// The absent rows of these roots, measured against everything the leg holds. Rows that the rules now leave out
    /// are kept: they wait no longer.
    fn load(&mut self, roots: &[usize]) -> Result<Load, RunError> {
        let now = self.parts.clock.wall_ns();
        let mut load = Load {
            day: self.parts.catalog.released_since(now - DAY_NS)?,
            month: self.parts.catalog.released_since(now - 30 * DAY_NS)?,
            ..Load::default()
        };
        for &index in roots {
            let Some(ground) = self.grounds[index].clone() else { continue };
            let mut before = None;
            loop {
                let rows =
                    self.parts.catalog.absent_before(ground.catalog, before.as_ref(), limits::BATCH_PATHS)?;
                let Some((last, _)) = rows.last() else { break };
                before = Some(last.clone());
                let (kept, waiting): (Vec<_>, Vec<_>) = rows
                    .into_iter()
                    .partition(|(key, row)| ground.rules.excludes(&key.path(), row.stat.kind.is_dir()));
                load.count += waiting.len() as u64;
                let files = waiting.iter().filter(|(_, row)| !row.stat.kind.is_dir());
                load.bytes += files.map(|(_, row)| row.stat.size).sum::<u64>();
                let run = self.report.run;
                let state = RowState::Present;
                let changes = kept.into_iter().map(|(key, _)| Change::State {
                    root: ground.catalog,
                    key,
                    state,
                    now_ns: now,
                    run,
                });
                let changes: Vec<_> = changes.collect();
                if !changes.is_empty() {
                    self.parts.catalog.apply(&changes, &[])?;
                }
            }
            let totals = self.parts.catalog.totals(ground.catalog)?;
            load.catalog += totals.objects;
            load.empties_a_root |=
                totals.absent > 0 && totals.absent_files == totals.files && totals.files > 0;
        }
        Ok(load)
    }

    /// Roots that this run proved, that the tracker holds for `ok`, and whose probe is fresh. Of others nothing is
    /// deleted, which is said if anything waits there.
    fn deletable_roots(&mut self) -> Result<Vec<usize>, RunError> {
        let stale_after = 2 * limits::PROBE_INTERVAL.as_nanos() as i64;
        let now = self.parts.clock.boot_ns();
        let fresh =
            self.parts.tracker.probed_boot_ns().is_some_and(|at| now.saturating_sub(at) <= stale_after);
        let states = self.parts.journal.roots()?;
        let mut out = Vec::new();
        for (index, root) in self.roots.iter().enumerate() {
            let (Ok(tree), Some(catalog)) = (&root.proof, root.catalog) else { continue };
            let state = states.iter().find(|s| s.id == root.id).map_or(RootState::Missing, |s| s.state);
            let doubt = match (state, fresh, tree.check()) {
                (RootState::Ok, true, Ok(())) => None,
                (RootState::Ok, true, Err(reason)) => Some(reason),
                (RootState::Ok, false, _) => Some("the tracker has not looked at it for too long".into()),
                (state, ..) => Some(format!("the tracker holds it for {state}")),
            };
            match doubt {
                None => out.push(index),
                Some(doubt) if !self.parts.catalog.absent_before(catalog, None, 1)?.is_empty() => {
                    self.exits.push(Exit::Unproven);
                    let text = format!("Nothing is deleted from the root `{}`: {doubt}", root.name);
                    self.report.troubles.push(Trouble::of_run(text));
                }
                Some(_) => {}
            }
        }
        Ok(out)
    }

    /// The next rows, the last keys first, so that a directory is empty before it goes.
    pub(super) async fn remove(&mut self) -> Result<Event, RunError> {
        let done = Ok(Event::Removed { empty: true });
        let Some(&root) = self.removal.roots.first() else { return done };
        let (Some(catalog), Ok(tree)) = (self.roots[root].catalog, &self.roots[root].proof) else {
            return done;
        };
        if let Err(reason) = tree.check() {
            self.report.troubles.push(Trouble::of_run(reason));
            self.stop = Some(Exit::Unproven);
            return done;
        }
        let before = self.removal.before.take();
        let rows = self.parts.catalog.absent_before(catalog, before.as_ref(), limits::BATCH_PATHS)?;
        let Some((last, _)) = rows.last() else {
            self.removal.roots.remove(0);
            return Ok(Event::Removed { empty: self.removal.roots.is_empty() });
        };
        self.removal.before = Some(last.clone());
        self.intend_removal(root, catalog, &rows)?;
        let (dirs, others): (Vec<_>, Vec<_>) = rows.into_iter().partition(|(_, row)| row.stat.kind.is_dir());
        self.remove_rows(root, others).await?;
        for dir in dirs {
            self.remove_rows(root, vec![dir]).await?;
        }
        let disturbed = std::mem::take(&mut self.removal.disturbed);
        self.outcomes = self.touch_dirs(disturbed, true).await?;
        Ok(Event::Removed { empty: false })
    }

    fn intend_removal(
        &mut self,
        index: usize,
        root: CatalogRoot,
        rows: &[(Key, Row)],
    ) -> Result<(), RunError> {
        let intent = |(key, _): &(Key, Row)| NewIntent { root, key: key.clone(), handle: None };
        let mut intents: Vec<NewIntent> = rows.iter().map(intent).collect();
        self.removal.intents = rows.iter().map(|(key, _)| (root, key.clone())).collect();
        let parents = rows.iter().filter_map(|(key, _)| key.path().parent());
        intents.extend(self.name_dirs(parents.map(|dir| (index, dir))));
        Ok(self.parts.catalog.add_intents(&intents, self.report.run, self.parts.clock.wall_ns())?)
    }

    async fn remove_rows(&mut self, root: usize, rows: Vec<(Key, Row)>) -> Result<(), RunError> {
        let Some(catalog) = self.roots[root].catalog else { return Ok(()) };
        let store = self.store()?;
        let (now_ns, run) = (self.parts.clock.wall_ns(), self.report.run);
        let mut requests = Vec::new();
        for (key, row) in rows {
            match self.second_look(root, &key, &row, store.holds()) {
                Second::Remove => {
                    let dest = self.roots[root].prefix.join(&key.path());
                    let remove = Remove { dest, kind: row.stat.kind, object: row.object.clone() };
                    let (store, stop) = (store.clone(), self.parts.stop.clone());
                    requests.push(async move {
                        let answer = match stop.load(Ordering::Relaxed) {
                            true => None,
                            false => Some(store.remove(remove).await),
                        };
                        (key, row, answer)
                    });
                }
                Second::Back => {
                    self.owe_removal(root, &key, Class::InFlight, "it is there again".into());
                    let state = RowState::Present;
                    self.removal.changes.push(Change::State { root: catalog, key, state, now_ns, run });
                }
                Second::Unknown(class, reason) => self.owe_removal(root, &key, class, reason),
            }
        }
        let mut unknown = Vec::new();
        let mut answers = futures_util::stream::iter(requests).buffer_unordered(self.parts.leg.transfers);
        while let Some((key, row, answer)) = answers.next().await {
            let may_have = |answer: &Result<(), StoreError>| match answer {
                Ok(()) => true,
                Err(e) => e.outcome_unknown,
            };
            if answer.as_ref().is_some_and(may_have) {
                self.removal.disturbed.extend(key.path().parent().map(|dir| (root, dir)));
            }
            match answer {
                // Asked to stop: the row stays absent, and the next run sees to it.
                None => {}
                Some(Ok(())) => {
                    self.parts.progress.removed.fetch_add(1, Ordering::Relaxed);
                    self.removal.removed += 1;
                    self.removal.bytes += row.stat.size;
                    self.removal.changes.push(Change::Remove { root: catalog, key });
                }
                Some(Err(e)) if e.problem == Problem::Occupied => {
                    self.leave_occupied(root, key)?;
                }
                Some(Err(e)) => {
                    if let (Problem::Stop(exit), None) = (&e.problem, self.stop) {
                        self.stop = Some(*exit);
                        self.report.troubles.push(Trouble::of_run(e.to_string()));
                    }
                    self.owe_removal(root, &key, Class::Error, e.to_string());
                    if e.outcome_unknown {
                        unknown.push((catalog, key.clone()));
                        self.removal.changes.push(Change::Put { root: catalog, key, row: row.doubted() });
                    }
                }
            }
        }
        if !unknown.is_empty() {
            self.parts.catalog.keep_intents(&unknown, self.parts.clock.wall_ns())?;
        }
        Ok(())
    }

    /// What is ours in a directory goes first, another time. With what the rules keep it stays, until other rules look at
    /// it again. Else it holds what is not ours, and is ours no longer.
    fn leave_occupied(&mut self, root: usize, key: Key) -> Result<(), RunError> {
        let Some(catalog) = self.roots[root].catalog else { return Ok(()) };
        let (now_ns, run, state) = (self.parts.clock.wall_ns(), self.report.run, RowState::Present);
        match self.occupants(root, catalog, &key.path())? {
            Occupants::Ours => {}
            Occupants::Kept => {
                self.removal.changes.push(Change::State { root: catalog, key, state, now_ns, run });
            }
            Occupants::Others => self.removal.changes.push(Change::Remove { root: catalog, key }),
        }
        Ok(())
    }

    /// What the destination has below a directory, but for what was removed just now.
    fn occupants(&self, root: usize, catalog: CatalogRoot, dir: &RelPath) -> Result<Occupants, RunError> {
        let Some(ground) = &self.grounds[root] else { return Ok(Occupants::Ours) };
        let (mut removed, mut kept) = (HashSet::new(), HashSet::new());
        for change in &self.removal.changes {
            match change {
                Change::Remove { root, key } if *root == catalog => _ = removed.insert(key),
                Change::State { root, key, .. } if *root == catalog => _ = kept.insert(key),
                _ => {}
            }
        }
        let (mut from, end) = ([dir.dir_key(), vec![0]].concat(), dir.dir_key_end());
        let mut found = Occupants::Others;
        loop {
            let rows = self.parts.catalog.range(catalog, &from, end.as_deref(), limits::BATCH_PATHS)?;
            let Some((last, _)) = rows.last() else { return Ok(found) };
            from = [last.0.as_slice(), &[0]].concat();
            for (key, row) in rows {
                if !row.has_object() || row.origin == Origin::ListedForeign || removed.contains(&key) {
                    continue;
                }
                // A directory that stays holds what the rules keep.
                let is_dir = row.stat.kind.is_dir();
                let stays = kept.contains(&key) || (is_dir && row.state == RowState::Present);
                if !stays && !ground.rules.excludes(&key.path(), is_dir) {
                    return Ok(Occupants::Ours);
                }
                found = Occupants::Kept;
            }
        }
    }

    fn second_look(&self, root: usize, key: &Key, row: &Row, holds: Holds) -> Second {
        let Ok(tree) = &self.roots[root].proof else {
            return Second::Unknown(Class::Root, "the root is not proven".into());
        };
        match tree.look(&key.path()) {
            Look::Gone { .. } => Second::Remove,
            Look::Found(stat) if Key::new(&key.path(), stat.kind) != *key => Second::Remove,
            Look::Found(stat) if stat.kind != row.stat.kind && !holds.holds(stat.kind) => Second::Remove,
            Look::Found(_) => Second::Back,
            Look::Elsewhere(reason) => Second::Unknown(Class::Elsewhere, reason),
            Look::Unknown(reason) => Second::Unknown(Class::Unknown, reason),
        }
    }

    fn owe_removal(&mut self, root: usize, key: &Key, class: Class, reason: String) {
        let (path, scope, mask, seq) = (key.path(), Scope::SelfOnly, Mask::UNKNOWN, self.head);
        self.removal.owed.push(Owed { root, path, scope, mask, seq, class, reason, wait: None });
    }

    pub(super) fn write_removed(&mut self) -> Result<(), RunError> {
        self.plan.changes = std::mem::take(&mut self.removal.changes);
        let (count, bytes) =
            (std::mem::take(&mut self.removal.removed), std::mem::take(&mut self.removal.bytes));
        if count > 0 {
            let (at_ns, run, approved) = (self.parts.clock.wall_ns(), self.report.run, self.removal.approved);
            self.plan.changes.push(Change::Released { at_ns, run, count, bytes, approved });
        }
        self.owed = std::mem::take(&mut self.removal.owed);
        self.write_receipts()?;
        let rows = self.deferrals()?;
        self.owed.clear();
        let leg = self.parts.leg.name.to_string();
        if !rows.is_empty() {
            self.parts.journal.defer(&leg, &rows)?;
        }
        self.forget_failed_dirs()?;
        if count > 0 {
            let revision = self.revision_to_note()?;
            self.parts.journal.expect_revision(&leg, revision)?;
            // What waited for a name to become free may go now.
            self.parts.journal.wake_deferred(&leg, Class::Kind)?;
        }
        Ok(())
    }
}
