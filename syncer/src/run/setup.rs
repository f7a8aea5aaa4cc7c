//! The beginning of a run: roots are proven, databases compared, the destination opened, and what a dead run may have
//! left there is settled.

use std::sync::Arc;

use shared::config::Root;
use shared::entry::{Mask, Scope};
use shared::identity::{Difference, Identity};
use shared::journal::{Class, LegRootFacts, NewDeferred, RootRow};
use shared::limits;
use shared::path::RelPath;

use super::send::{Sender, memory_budget};
use super::source::Ground;
use super::{Run, RunError, RunRoot, touch};
use crate::catalog::{Change, Intent, Key, Origin, Row};
use crate::leg::{Listed, Problem, Put, Store, What};
use crate::tree::{Look, Tree, Xattrs};

impl Run<'_> {
    /// Opens every root of the leg and compares it with what the configuration, the tracker and the catalog say.
    pub(super) fn prove(&mut self) -> Result<(), RunError> {
        let in_force = self.parts.journal.roots()?;
        for leg_root in self.parts.leg.roots.clone() {
            let Some(root) = self.parts.config.root(&leg_root.root).cloned() else { continue };
            let row = rules_in_force(&root, &in_force)?;
            let proof = self.proof(&root)?;
            let (proof, catalog) = match proof {
                Ok((tree, identity)) => {
                    let id = self.parts.catalog.put_root(root.name.as_str(), &leg_root.prefix, &identity)?;
                    (Ok(tree), Some(id))
                }
                Err(reason) => (Err(reason), None),
            };
            let rules = Arc::new(root.rules);
            self.grounds.push(match (&proof, catalog) {
                (Ok(tree), Some(catalog)) => Some(Ground { tree: tree.clone(), rules, catalog }),
                _ => None,
            });
            self.roots.push(RunRoot {
                name: root.name.to_string(),
                id: row.id,
                epoch: row.epoch,
                prefix: leg_root.prefix,
                catalog,
                proof,
            });
        }
        Ok(())
    }

    /// The tree, or what was expected and what was seen.
    #[allow(clippy::type_complexity, reason = "a proof is both, or the reason")]
    fn proof(&self, root: &Root) -> Result<Result<(Arc<dyn Tree>, Identity), String>, RunError> {
        let (tree, seen) = match (self.parts.open_tree)(root) {
            Ok(opened) => opened,
            Err(reason) => return Ok(Err(reason)),
        };
        let place = format!("The root `{}` at {}", root.name, root.path.display());
        if let Some(expected) = &root.identity {
            let differences = expected.differences(&seen);
            if !differences.is_empty() {
                return Ok(Err(format!(
                    "{place} is not the disk in the configuration: {}",
                    list(&differences)
                )));
            }
        }
        if let Some(built_from) = self.parts.catalog.root_identity(root.name.as_str())? {
            let differences = built_from.differences(&seen);
            if !differences.is_empty() {
                return Ok(Err(format!(
                    "{place} is not the tree this mirror was built from: {}. Nothing is sent or deleted. Mount the right disk, or, if this is meant to be the new source, give the leg another name",
                    list(&differences)
                )));
            }
        }
        Ok(Ok((tree, seen)))
    }

    pub(super) fn attach(&mut self) -> Result<(), RunError> {
        let names: Vec<&str> = self.roots.iter().map(|r| r.name.as_str()).collect();
        self.parts.catalog.keep_roots(&names)?;
        let facts = self.parts.catalog.facts()?;
        let mut roots = Vec::new();
        for root in &self.roots {
            roots.push(LegRootFacts { id: root.id, attended: self.parts.catalog.attended(&root.name)? });
        }
        let now = self.parts.clock.wall_ns();
        let leg = self.parts.leg.name.as_str();
        let attached = self.parts.journal.attach_leg(leg, &facts, &roots, now)?;
        if let Some(reason) = attached.full_pass {
            tracing::info!("leg {leg}: full pass, {reason}");
        }
        if self.parts.wish.full {
            for root in &self.roots {
                self.parts.journal.request_full_pass(leg, root.id, now, "it was asked for")?;
            }
        }
        let acked = attached.leg.acked;
        self.report.run = attached.leg.last_run;
        self.report.full_pass = attached.full_pass.map(str::to_owned);
        self.leg_row = Some(attached.leg);
        self.store_cursor(acked)
    }

    /// The catalog's copy of the cursor, before the journal's.
    pub(super) fn store_cursor(&mut self, acked: u64) -> Result<(), RunError> {
        let roots: Vec<&str> = self.roots.iter().map(|r| r.name.as_str()).collect();
        let revision = self.leg_row.as_ref().map_or(0, |leg| leg.revision);
        Ok(self.parts.catalog.set_cursor(self.parts.journal.id(), acked, revision, &roots)?)
    }

    /// What the catalog counts now, to be noted in the journal.
    pub(super) fn revision_to_note(&mut self) -> Result<u64, RunError> {
        let revision = self.parts.catalog.facts()?.revision;
        self.leg_row.iter_mut().for_each(|leg| leg.revision = revision);
        Ok(revision)
    }

    pub(super) async fn begin_store(&mut self) -> Result<(), RunError> {
        let Some(leg) = &self.leg_row else { return Ok(()) };
        let store = (self.parts.make_store)(leg)?;
        store.open().await?;
        let destination = store.identity();
        if let Some(known) = self.parts.catalog.destination()?.filter(|known| *known != destination) {
            return Err(RunError::Config(format!(
                "The destination of the leg `{}` is not the one its catalog was built for: {known} expected, {destination} seen. Nothing was sent. A directory: mount the right disk; a bucket: name the right one. If the new place is meant, give the leg another name",
                leg.name
            )));
        }
        store.prepare().await?;
        self.parts.catalog.set_destination(&destination)?;
        self.make_prefixes(&*store).await?;
        self.sender = Some(Sender {
            store,
            prefixes: self.roots.iter().map(|r| r.prefix.clone()).collect(),
            transfers: self.parts.leg.transfers,
            threads: self.parts.threads,
            progress: self.parts.progress.clone(),
            memory: memory_budget(),
            stop: self.parts.stop.clone(),
        });
        Ok(())
    }

    /// The directories above a root's own place.
    pub(super) async fn make_prefixes(&self, store: &dyn Store) -> Result<(), RunError> {
        for root in self.roots.iter().filter(|_| store.holds().all_kinds) {
            let Ok(tree) = &root.proof else { continue };
            let Look::Found(stat) = tree.look(&RelPath::root()) else { continue };
            let mut above: Vec<RelPath> = Vec::new();
            let mut dir = root.prefix.parent();
            while let Some(path) = dir.filter(|d| !d.is_root()) {
                dir = path.parent();
                above.push(path);
            }
            for dest in above.into_iter().rev() {
                store.put(Put { dest, what: What::Dir, stat, xattrs: Xattrs::new() }).await?;
            }
        }
        Ok(())
    }

    /// A name that a dead run may have brought into being, or removed, is asked for; what stands there enters the
    /// catalog as a listed object of ours, doubted if it is a plain file; a row of what does not is doubted, too; and the
    /// path is examined again. Never a delete on the strength of an intent alone.
    pub(super) async fn settle_intents(&mut self) -> Result<(), RunError> {
        if self.was_done_of_late(self.settled_ns, limits::INTENT_GRACE) {
            return Ok(());
        }
        for index in 0..self.roots.len() {
            let Some(root) = self.roots[index].catalog else { continue };
            let (mut changes, mut fulfilled, mut open, mut deferred) = (vec![], vec![], vec![], vec![]);
            for intent in self.parts.catalog.intents(root)? {
                let Some((change, done)) = self.settle_intent(index, &intent).await? else { continue };
                changes.extend(change);
                deferred.push(settle_row(&self.roots[index], intent.key.path(), self.parts.clock.wall_ns()));
                if done { fulfilled.push((root, intent.key)) } else { open.push((root, intent.key)) }
            }
            if !deferred.is_empty() {
                self.settled_ns = Some(self.parts.clock.boot_ns());
                // Owed before forgotten: a crash between the two repeats the question.
                self.parts.journal.defer(self.parts.leg.name.as_str(), &deferred)?;
                self.parts.catalog.apply(&changes, &[])?;
                self.parts.catalog.drop_intents(&fulfilled)?;
                self.parts.catalog.keep_intents(&open, self.parts.clock.wall_ns())?;
            }
        }
        Ok(())
    }

    /// What stands at the intent's name, and whether the question is answered for good: for a while a request may
    /// still come true after its connection broke, and then what stands there changes. `None` if the destination
    /// could not be asked.
    async fn settle_intent(
        &self,
        index: usize,
        intent: &Intent,
    ) -> Result<Option<(Option<Change>, bool)>, RunError> {
        let path = intent.key.path();
        let now = self.parts.clock.wall_ns();
        let store = self.store()?;
        let found = match store.newest(&self.roots[index].prefix.join(&path)).await {
            Ok(found) => found,
            Err(e) if matches!(e.problem, Problem::Stop(_)) => return Err(e.into()),
            Err(e) => {
                tracing::warn!(%path, "an intent stays open: {e}");
                return Ok(None);
            }
        };
        let done = now.saturating_sub(intent.at_ns) > limits::INTENT_GRACE.as_nanos() as i64;
        let known = self.parts.catalog.get(intent.root, &intent.key)?;
        if let Some(change) = touch::settle(intent, found.as_ref(), known.as_ref()) {
            return Ok(Some((Some(change), true)));
        }
        let row = match (found.filter(|object| Key::new(&path, object.kind) == intent.key), known) {
            (Some(object), known) => known.is_none_or(|row| row.object != object.object).then(|| {
                if store.holds().writers {
                    // Of which moment of its file it is, nobody wrote down: only its hash tells.
                    let listed = Row::listed(&object, self.is_ours(&object), now, self.report.run);
                    return Row { fuzzy: true, ..listed };
                }
                // A file whose writing nobody confirmed may have its size and time but not its content: a power cut
                // leaves zeros.
                Row::listed(&object, true, now, self.report.run).doubted()
            }),
            (None, known) => {
                known.filter(|row| row.has_object() && row.origin != Origin::ListedForeign).map(Row::doubted)
            }
        };
        let change = row.map(|row| Change::Put { root: intent.root, key: intent.key.clone(), row });
        Ok(Some((change, done)))
    }

    /// True if one of the leg's writers made the object.
    pub(super) fn is_ours(&self, object: &Listed) -> bool {
        let writers = self.leg_row.iter().flat_map(|leg| &leg.writer_ids);
        object.writer.as_ref().is_some_and(|own| writers.into_iter().any(|w| w == own))
    }
}

fn settle_row(root: &RunRoot, path: RelPath, now_ns: i64) -> NewDeferred {
    NewDeferred {
        root: root.id,
        path,
        scope: Scope::SelfOnly,
        handle: None,
        seq: 0,
        mask: Mask::UNKNOWN,
        since_ns: now_ns,
        attempts: 0,
        not_before_ns: 0,
        class: Class::InFlight,
        last_error: "its transfer was cut off".into(),
    }
}

/// The row of a root whose path and rules are the ones the tracker works by.
fn rules_in_force<'a>(root: &Root, in_force: &'a [RootRow]) -> Result<&'a RootRow, RunError> {
    let Some(row) = in_force.iter().find(|r| r.name == root.name.as_str()) else {
        return Err(RunError::Config(format!(
            "The tracker does not know the root `{}` yet: restart longshore-tracker so that it reads the configuration",
            root.name
        )));
    };
    if row.rules != root.rules.text() || row.path != root.path {
        return Err(RunError::Config(format!(
            "The root `{}` has another path or other exclude rules in the configuration than the tracker works by: restart longshore-tracker so that it reads the configuration",
            root.name
        )));
    }
    Ok(row)
}

fn list(differences: &[Difference]) -> String {
    differences.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}
