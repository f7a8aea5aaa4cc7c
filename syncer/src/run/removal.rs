//! The end of a round: the guard judges everything absent, and what it releases is looked at again, one path at a
//! time, at the moment its object is removed.

use std::collections::BTreeSet;

use shared::config::Deletes;
use shared::entry::{Mask, Scope};
use shared::exit::Exit;
use shared::journal::{Class, RootState};
use shared::limits;
use shared::path::RelPath;

use super::batch::{self, Owed};
use super::machine::Event;
use super::{Run, RunError};
use crate::catalog::{Change, Key, Row, RowState};
use crate::guard::{self, Judgement, Load};
use crate::leg::{Holds, Problem, Remove};
use crate::tree::Look;

const DAY_NS: i64 = 24 * 3600 * 1_000_000_000;

/// Where the removal of released rows stands.
#[derive(Default)]
pub struct Removal {
    /// Roots whose rows may go, in the order they are worked off.
    roots: Vec<usize>,
    /// The last key that was done, in falling order.
    before: Option<Key>,
    changes: Vec<Change>,
    touched: BTreeSet<(usize, RelPath)>,
    owed: Vec<Owed>,
    removed: u64,
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
    Unknown(String),
}

impl Run {
    pub(super) fn guard(&mut self) -> Result<Event, RunError> {
        let held_back = Ok(Event::Judged { released: false });
        if self.parts.leg.deletes == Deletes::Never || self.parts.catalog.nothing_absent()? {
            return held_back;
        }
        let load = self.load()?;
        self.report.absent = load.count;
        if !self.flushed {
            return held_back; // said in the report already
        }
        match guard::judge(&load, &self.parts.leg.guard) {
            Judgement::Clear => held_back,
            Judgement::Trip(reason) => {
                self.exits.push(Exit::Guard);
                self.report.guard = Some(reason);
                held_back
            }
            Judgement::Release => {
                self.removal = Removal { roots: self.deletable_roots()?, ..Removal::default() };
                let released = !self.removal.roots.is_empty();
                if released {
                    let now = self.parts.clock.wall_ns();
                    let oldest = now - 31 * DAY_NS;
                    self.parts.catalog.add_release(now, self.report.run, load.count, load.bytes, oldest)?;
                }
                Ok(Event::Judged { released })
            }
        }
    }

    /// The absent rows of all roots, measured against everything the leg holds.
    fn load(&self) -> Result<Load, RunError> {
        let now = self.parts.clock.wall_ns();
        let mut load = Load {
            day: self.parts.catalog.released_since(now - DAY_NS)?,
            month: self.parts.catalog.released_since(now - 30 * DAY_NS)?,
            ..Load::default()
        };
        for root in self.roots.iter().filter_map(|r| r.catalog) {
            let totals = self.parts.catalog.totals(root)?;
            load.count += totals.absent;
            load.bytes += totals.absent_bytes;
            load.catalog += totals.objects;
            load.empties_a_root |=
                totals.absent > 0 && totals.absent_files == totals.files && totals.files > 0;
        }
        Ok(load)
    }

    /// Roots that this run proved, that the tracker holds for `ok`, and whose probe is fresh.
    fn deletable_roots(&mut self) -> Result<Vec<usize>, RunError> {
        let stale_after = 2 * limits::PROBE_INTERVAL.as_nanos() as i64;
        let now = self.parts.clock.boot_ns();
        let fresh =
            self.parts.tracker.probed_boot_ns().is_some_and(|at| now.saturating_sub(at) <= stale_after);
        let states = self.parts.journal.roots()?;
        let mut out = Vec::new();
        for (index, root) in self.roots.iter().enumerate() {
            let ok = states.iter().any(|s| s.id == root.id && s.state == RootState::Ok);
            let proven = root.proof.as_ref().is_ok_and(|tree| tree.check().is_ok());
            if ok && fresh && proven {
                out.push(index);
            } else {
                self.exits.push(Exit::Unproven);
                self.report.guard = Some(format!(
                    "nothing is deleted from the root `{}`: its disk is not proven now",
                    root.name
                ));
            }
        }
        Ok(out)
    }

    /// The next rows, the last keys first, so that a directory is empty before it goes.
    pub(super) async fn remove(&mut self) -> Result<Event, RunError> {
        let Some(&root) = self.removal.roots.first() else { return Ok(Event::Removed { empty: true }) };
        let Some(catalog) = self.roots[root].catalog else { return Ok(Event::Removed { empty: true }) };
        let rows =
            self.parts.catalog.absent_before(catalog, self.removal.before.as_ref(), limits::BATCH_PATHS)?;
        let Some((last, _)) = rows.last() else {
            self.removal.roots.remove(0);
            self.removal.before = None;
            return Ok(Event::Removed { empty: self.removal.roots.is_empty() });
        };
        self.removal.before = Some(last.clone());
        if let Ok(tree) = &self.roots[root].proof
            && let Err(reason) = tree.check()
        {
            tracing::error!(root = %self.roots[root].name, "{reason}");
            self.stop = Some(Exit::Unproven);
            return Ok(Event::Removed { empty: true });
        }
        let (dirs, others): (Vec<_>, Vec<_>) = rows.into_iter().partition(|(_, row)| row.stat.kind.is_dir());
        self.remove_rows(root, others).await?;
        for dir in dirs {
            self.remove_rows(root, vec![dir]).await?;
        }
        self.touch_parents().await?;
        Ok(Event::Removed { empty: false })
    }

    async fn remove_rows(&mut self, root: usize, rows: Vec<(Key, Row)>) -> Result<(), RunError> {
        use futures_util::StreamExt as _;
        let Some(catalog) = self.roots[root].catalog else { return Ok(()) };
        let store = self.store()?;
        let now_ns = self.parts.clock.wall_ns();
        let run = self.report.run;
        let mut requests = Vec::new();
        for (key, row) in rows {
            match self.second_look(root, &key, &row, store.holds()) {
                Second::Remove => {
                    let dest = self.roots[root].prefix.join(&key.path());
                    let remove = Remove { dest, kind: row.stat.kind, object: row.object };
                    let store = store.clone();
                    requests.push(async move { (key, store.remove(remove).await) });
                }
                Second::Back => {
                    self.owe_removal(root, &key, Class::InFlight, "it is there again".into());
                    self.removal.changes.push(Change::State {
                        root: catalog,
                        key,
                        state: RowState::Present,
                        now_ns,
                        run,
                    });
                }
                Second::Unknown(reason) => self.owe_removal(root, &key, Class::Unknown, reason),
            }
        }
        let mut answers = futures_util::stream::iter(requests).buffer_unordered(self.parts.leg.transfers);
        while let Some((key, answer)) = answers.next().await {
            match answer {
                Ok(()) => {
                    self.parts.progress.removed.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    self.removal.removed += 1;
                    self.removal.touched.extend(key.path().parent().map(|p| (root, p)));
                    self.removal.changes.push(Change::Remove { root: catalog, key });
                }
                Err(e) => {
                    if let Problem::Stop(exit) = e.problem {
                        self.stop = Some(exit);
                    }
                    self.owe_removal(root, &key, Class::Error, e.to_string());
                }
            }
        }
        Ok(())
    }

    fn second_look(&self, root: usize, key: &Key, row: &Row, holds: Holds) -> Second {
        let Ok(tree) = &self.roots[root].proof else {
            return Second::Unknown("the root is not proven".into());
        };
        match tree.look(&key.path()) {
            Look::Gone { .. } => Second::Remove,
            Look::Found(stat) if Key::new(&key.path(), stat.kind) != *key => Second::Remove,
            Look::Found(stat) if stat.kind != row.stat.kind && !holds.holds(stat.kind) => Second::Remove,
            Look::Found(_) => Second::Back,
            Look::Unknown(reason) => Second::Unknown(reason),
        }
    }

    fn owe_removal(&mut self, root: usize, key: &Key, class: Class, reason: String) {
        let owed = Owed {
            root,
            path: key.path(),
            scope: Scope::SelfOnly,
            mask: Mask::UNKNOWN,
            seq: self.head,
            class,
            reason,
        };
        self.removal.owed.push(owed);
    }

    /// A directory's time changed at the destination with its content.
    async fn touch_parents(&mut self) -> Result<(), RunError> {
        let touched = std::mem::take(&mut self.removal.touched);
        if !self.store()?.holds().attributes {
            return Ok(());
        }
        let mut ops = Vec::new();
        for (root, dir) in touched {
            let Some(ground) = &self.grounds[root] else { continue };
            let op = batch::touch_op(ground, &self.parts.catalog, root, &dir, self.head)?;
            ops.extend(op.filter(|op| op.row.is_some()));
        }
        if let Some(sender) = &self.sender {
            self.outcomes = sender.send_all(ops, &self.grounds).await;
        }
        Ok(())
    }

    pub(super) fn write_removed(&mut self) -> Result<(), RunError> {
        self.plan.changes = std::mem::take(&mut self.removal.changes);
        let owed = std::mem::take(&mut self.removal.owed);
        let rows: Vec<_> = owed.iter().map(|o| self.deferral(o)).collect();
        let leg = self.parts.leg.name.to_string();
        if !rows.is_empty() {
            self.parts.journal.defer(&leg, &rows)?;
        }
        self.write_receipts()?;
        let late = std::mem::take(&mut self.owed);
        let rows: Vec<_> = late.iter().map(|o| self.deferral(o)).collect();
        if !rows.is_empty() {
            self.parts.journal.defer(&leg, &rows)?;
        }
        if std::mem::take(&mut self.removal.removed) > 0 {
            // What waited for a name to become free may go now.
            self.parts.journal.wake_deferred(&leg, Class::Kind)?;
        }
        Ok(())
    }
}
