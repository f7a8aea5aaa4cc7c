//! What a filesystem's thread commits to the journal: batches, gaps and the states of its roots.

use shared::clock::Clock as _;
use shared::entry::Cause;
use shared::journal::{Change, Commit, RootState};

use super::{Slot, SlotParts, look_at};
use crate::batch::{self, Batch};
use crate::daemon::Event;
use crate::generation;
use crate::intake::{Kind, RootSeen, settled_by_gap};

impl Slot {
    pub(super) fn commit_gap(&mut self, cause: Cause) -> Event {
        let doubts = match self.parts.journal.doubts(&self.parts.fs_key) {
            Ok(doubts) => settled_by_gap(doubts),
            Err(e) => {
                self.note_error(&e.to_string());
                return Event::NotCommitted;
            }
        };
        let mut commit = Commit {
            changes: self.parts.roots.iter().map(|r| Change::gap(r.id, cause)).collect(),
            doubts: Vec::new(),
            settled: doubts.into_iter().map(|h| (self.parts.fs_key.clone(), h)).collect(),
            generations: Vec::new(),
        };
        let how = self.by_generation(&mut commit);
        let stored = self.store(commit);
        if !stored {
            // It is made anew at the next try.
            self.pending = None;
            return Event::NotCommitted;
        }
        self.note(|s| s.filesystem.gaps += 1);
        self.record_gaps(&[cause], &how);
        self.watching = true;
        let seen = look_at(&self.parts.roots);
        self.store_states(&seen, true);
        Event::Committed
    }

    /// What the journal and the status say of the roots. `ok` only once the gap is committed.
    pub(super) fn store_states(&mut self, seen: &[RootSeen], covered: bool) {
        for RootSeen { root, state, why } in seen {
            if self.states[*root] == Some(*state) || (*state == RootState::Ok && !covered) {
                continue;
            }
            let id = self.parts.roots[*root].id;
            match self.parts.journal.set_root_state(id, *state, why, self.clock.wall_ns()) {
                Ok(_) => self.states[*root] = Some(*state),
                Err(e) => self.note_error(&e.to_string()),
            }
            if *state != RootState::Ok {
                tracing::error!("root {}: {state}: {why}", self.parts.roots[*root].name);
            }
            self.note(|s| {
                s.roots[*root].state = state.to_string();
                s.roots[*root].state_reason = why.clone();
            });
        }
    }

    pub(super) fn commit(&mut self, read: u64) -> Event {
        if let Some(kept) = self.pending.take()
            && self.committed(kept) == Event::NotCommitted
        {
            return Event::NotCommitted;
        }
        let now = self.clock.boot_ns();
        let commit = self.on_disk(|slot| {
            let source = slot.source.as_mut()?;
            let mut batch = Batch::default();
            source.translate(&mut batch, read, now);
            let turn = source.doubt_turn(now);
            let doubts = source.doubt_count() as u64;
            if turn.gap {
                batch.gap(&slot.parts.roots, Cause::Unresolved);
            }
            slot.count(&batch, doubts);
            let gaps = std::mem::take(&mut batch.gaps);
            Some((batch.into_commit(&slot.parts.fs_key, turn), gaps))
        });
        let Some((mut commit, gaps)) = commit else { return Event::Committed };
        let how = if gaps.is_empty() { Vec::new() } else { self.by_generation(&mut commit) };
        self.record_generation(&mut commit, now);
        let event = self.committed(commit);
        self.record_gaps(&gaps, &how);
        event
    }

    /// Where the filesystem itself knows what changed, that is committed in the place of a gap; how, for people.
    fn by_generation(&mut self, commit: &mut Commit) -> Vec<String> {
        self.on_disk(|slot| {
            let SlotParts { roots, own, journal, .. } = &slot.parts;
            generation::work_off(commit, roots, own, journal)
        })
    }

    /// What inotify does not see is found by the next start only if the time before it is looked at, too.
    fn record_generation(&mut self, commit: &mut Commit, now: i64) {
        let source = self.source.as_ref().filter(|s| s.kind() == Kind::Fanotify);
        let Some(in_doubt) = source.map(|s| s.doubt_count() > 0) else { return };
        if !batch::is_empty(commit) {
            let ready = self.on_disk(|slot| slot.generations.for_commit(&slot.parts.roots, in_doubt, now));
            // What a gap recorded in this commit is newer.
            let known = commit.generations.clone();
            let missing = ready.into_iter().filter(|(root, _)| known.iter().all(|(r, _)| r != root));
            commit.generations.extend(missing);
        }
    }

    /// For people: the row itself may be covered by an older one that no leg has claimed yet.
    pub(super) fn record_gaps(&mut self, causes: &[Cause], how: &[String]) {
        for cause in causes {
            let how: String = how.iter().map(|how| format!("; {how}")).collect();
            let text = format!("{}: {cause}{how}", self.parts.name);
            // Each start begins with one.
            match cause {
                Cause::Start | Cause::Boot => tracing::info!("gap: {text}"),
                _ => tracing::warn!("gap: {text}"),
            }
            if let Err(e) = self.parts.journal.add_history(self.clock.wall_ns(), "gap", None, &text) {
                self.note_error(&format!("{JOURNAL_ERROR}: {e}"));
            }
        }
    }

    pub(super) fn count(&self, batch: &Batch, doubts: u64) {
        let mut status = self.shared.lock();
        let fs = &mut status.filesystem;
        fs.dropped += batch.dropped;
        fs.overflows += batch.overflows;
        fs.gaps += batch.gaps.len() as u64;
        fs.doubts = doubts;
        if let Some(error) = &batch.error {
            fs.last_error.clone_from(error);
        }
    }

    pub(super) fn committed(&mut self, commit: Commit) -> Event {
        if self.store(commit) { Event::Committed } else { Event::NotCommitted }
    }

    /// Commits, or keeps it for the next try.
    pub(super) fn store(&mut self, commit: Commit) -> bool {
        if batch::is_empty(&commit) {
            return true;
        }
        let at_ns = self.clock.wall_ns();
        match self.parts.journal.append(&mut self.remembered, &commit, at_ns) {
            Ok(done) => {
                self.note(|s| {
                    s.filesystem.entries += done.rows;
                    s.filesystem.coalesced += done.coalesced;
                    s.filesystem.commits += 1;
                    s.filesystem.last_commit_ns = at_ns;
                });
                self.recovered(JOURNAL_ERROR);
                self.parts.heads.publish(done.head);
                true
            }
            Err(e) => {
                self.note_error(&format!("{JOURNAL_ERROR}: {e}"));
                self.pending = Some(commit);
                false
            }
        }
    }
}

/// How the error begins that ends when the journal takes entries again.
const JOURNAL_ERROR: &str = "the journal does not take entries";
