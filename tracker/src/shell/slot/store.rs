//! What a filesystem's thread commits to the journal: batches, gaps and the states of its roots.

use std::sync::Arc;

use shared::database::DatabaseError;
use shared::entry::Cause;
use shared::journal::{Change, Commit, RootId, RootState};

use super::super::room::{self, Offer};
use super::{Slot, SlotParts};
use crate::batch::{self, Batch};
use crate::daemon::Event;
use crate::generation;
use crate::host::Host;
use crate::intake::{Kind, RootSeen, settled_by_gap};

impl<H: Host> Slot<H> {
    pub(super) fn commit_gap(&mut self, cause: Cause) -> Event {
        let mut commit = Commit::default();
        if self.gaps.is_empty() {
            let doubts = match self.parts.journal.doubts(&self.parts.fs_key) {
                Ok(doubts) => settled_by_gap(doubts),
                Err(e) => {
                    self.note_error(&e.to_string());
                    return Event::NotCommitted;
                }
            };
            commit.changes = self.parts.roots.iter().map(|r| Change::gap(r.id, cause)).collect();
            commit.settled = doubts.into_iter().map(|h| (self.parts.fs_key.clone(), h)).collect();
        } else {
            let roots = self.gaps.iter();
            commit.changes = roots.map(|&(r, cause)| Change::gap(self.parts.roots[r].id, cause)).collect();
        }
        let pace = self.pace;
        let how = self.by_generation(&mut commit);
        let stored = self.store(commit);
        if !stored {
            // It is made anew at the next try, with its search.
            (self.pending, self.pace) = (None, pace);
            return Event::NotCommitted;
        }
        self.note(|s| s.filesystem.gaps += 1);
        self.record_gaps(&[cause], &how);
        self.gaps.clear();
        self.complete();
        Event::Committed
    }

    /// Whatever was missed is covered, and nothing is missed from here on.
    pub(super) fn complete(&mut self) {
        if let Some(source) = &mut self.source {
            source.in_force();
        }
        self.watching = true;
        let (intact, seen) = self.on_disk(Slot::look);
        self.store_states(&seen, intact);
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
        // What it holds was read before this, and stays unread by us until then.
        let ids: Vec<RootId> = self.parts.roots.iter().map(|r| r.id).collect();
        if let Err(e) = self.linked.refresh(&self.parts.journal, &ids) {
            self.note_error(&format!("{JOURNAL_ERROR}: {e}"));
            return Event::NotCommitted;
        }
        let now = self.clock.boot_ns();
        let commit = self.on_disk(|slot| {
            let source = slot.source.as_mut()?;
            let mut batch = Batch::default();
            batch.linked = std::mem::take(&mut slot.linked);
            source.translate(&mut batch, read, now);
            slot.linked = std::mem::take(&mut batch.linked);
            let turn = source.doubt_turn(now);
            let doubts = source.doubt_count() as u64;
            if turn.gap {
                batch.gap(&slot.parts.roots, Cause::Unresolved);
            }
            slot.count_batch(&batch, doubts, now);
            let gaps = std::mem::take(&mut batch.gaps);
            Some((batch.into_commit(&slot.parts.fs_key, turn), gaps))
        });
        let Some((mut commit, gaps)) = commit else { return Event::Committed };
        let how = if gaps.is_empty() { Vec::new() } else { self.by_generation(&mut commit) };
        if !batch::is_empty(&commit) {
            let ready = self.generations.take(&commit);
            commit.generations.extend(ready);
        }
        let event = self.committed(commit);
        if event == Event::Committed {
            self.learn_generation(now);
        }
        self.record_gaps(&gaps, &how);
        event
    }

    /// Where the filesystem itself knows what changed, that is committed in the place of a gap; how, for people.
    fn by_generation(&mut self, commit: &mut Commit) -> Vec<String> {
        let begun = self.clock.boot_ns();
        let rested = self.pace.is_rested(begun);
        let how = self.on_disk(|slot| {
            let SlotParts { host, roots, own, journal, .. } = &slot.parts;
            generation::work_off(host, commit, roots, own, journal, rested)
        });
        if rested {
            self.pace.searched(begun, self.clock.boot_ns());
        }
        how
    }

    /// Everything read is committed. What inotify does not see is found by the next start only if the time before it
    /// is looked at, too.
    fn learn_generation(&mut self, now: i64) {
        let source = self.source.as_ref().filter(|s| s.kind() == Kind::Fanotify);
        if source.is_some_and(|s| s.doubt_count() == 0) {
            self.on_disk(|slot| slot.generations.complete(&slot.parts.host, &slot.parts.roots, now));
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

    pub(super) fn committed(&mut self, commit: Commit) -> Event {
        let is_news = !batch::is_empty(&commit);
        if !self.store(commit) {
            return Event::NotCommitted;
        }
        self.count_buffered(self.left_to_translate);
        // The commit was told before. What is not ours makes no status: its writing could be such an event.
        if is_news {
            self.note(|_| {});
        }
        if self.left_to_translate > 0 { Event::CommittedPart } else { Event::Committed }
    }

    /// Tells the source that what it translated is done with.
    fn finish(&mut self, counted: bool) {
        self.left_to_translate = self.source.as_mut().map_or(0, |source| source.finish(counted));
    }

    /// Commits, or keeps it for the next try.
    pub(super) fn store(&mut self, mut commit: Commit) -> bool {
        if batch::is_empty(&commit) {
            self.finish(false);
            return true;
        }
        commit.intake = self.source.as_ref().and_then(|source| source.mark(&self.parts.fs_key));
        let room = Arc::clone(&self.parts.common.room);
        let mut offer = room::first_offer(room.is_spent());
        loop {
            if offer == Offer::AsGap {
                commit = room::as_gap(commit, &self.parts.roots);
            }
            match self.append(&commit) {
                Ok(()) => {
                    self.finish(true);
                    self.note_offer(offer);
                    return true;
                }
                Err(e) => {
                    let less = room::next_offer(offer).filter(|_| matches!(e, DatabaseError::Full { .. }));
                    let Some(less) = less else {
                        self.note_error(&format!("{JOURNAL_ERROR}: {e}"));
                        self.pending = Some(commit);
                        return false;
                    };
                    room.spend();
                    offer = less;
                }
            }
        }
    }

    fn append(&mut self, commit: &Commit) -> Result<(), DatabaseError> {
        let at_ns = self.clock.wall_ns();
        let begun = self.clock.boot_ns();
        let done = self.parts.journal.append(&mut self.remembered, commit, at_ns)?;
        self.count_commit(&done, at_ns, self.clock.boot_ns() - begun);
        self.parts.common.heads.publish(done.head);
        self.parts.common.bound.after_commit(&mut self.parts.journal, &done);
        Ok(())
    }

    /// What is let go because the disk is full is said once, and that it ended.
    fn note_offer(&mut self, offer: Offer) {
        let full = offer == Offer::AsGap;
        if full && !self.letting_go {
            let what = "the disk is full. A gap stands for what changes until there is room";
            self.note_error(&format!("{JOURNAL_ERROR}: {what}"));
            self.note(|s| s.filesystem.gaps += 1);
            self.record_gaps(&[Cause::DiskFull], &[]);
        } else if !full {
            self.recovered(JOURNAL_ERROR);
        }
        self.letting_go = full;
        // Each batch still takes a number, and the reserve must last for as long as the disk is full.
        if full && let Err(e) = self.parts.journal.fold() {
            tracing::debug!("{e}");
        }
    }
}

/// How the error begins that ends when the journal takes entries again.
pub(crate) const JOURNAL_ERROR: &str = "the journal does not take entries";
