//! Doubts: directory handles that did not resolve and whose fate the stream has not told yet. Pure.
//!
//! In an `rm -r` up to half the events come from directories that are gone by the time they are looked up. Nothing
//! is lost as long as the deletion (or rename) of that directory is read too, because that entry covers it. What
//! the stream does not tell in time becomes a gap.

use std::collections::HashSet;

use hashbrown::HashMap;
use shared::entry::Handle;
use shared::limits;
use xxhash_rust::xxh3::xxh3_64;

use crate::intake::records::HandleRef;

/// How long after the last event that may tell, a doubt waits for its answer.
const GRACE_NS: i64 = 1_000_000_000;
/// Directories whose deletion is remembered, so that a later event from them raises no doubt; two generations.
const GONE_MAX: usize = 32_768;

#[derive(Debug, Clone, Copy)]
struct Open {
    /// Events read when it was raised.
    epoch: u64,
    /// When everything queued at that time had been read.
    drained_ns: Option<i64>,
    stored: bool,
}

/// What is remembered of a directory that is gone.
fn trace(handle: &Handle) -> u64 {
    xxh3_64(&handle.to_blob())
}

/// What the pacing needs to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DoubtState {
    /// The epoch of the oldest.
    pub oldest: Option<u64>,
    /// When the next one runs out; `None` while what was queued is still being read.
    pub due_ns: Option<i64>,
}

/// What a commit has to store.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Turn {
    pub raised: Vec<(Handle, u64)>,
    pub settled: Vec<Handle>,
    /// Some ran out, or there were too many: the roots need a gap.
    pub gap: bool,
}

#[derive(Debug, Default)]
pub struct Doubts {
    open: HashMap<Handle, Open>,
    settled: Vec<Handle>,
    gone: HashSet<u64>,
    gone_before: HashSet<u64>,
    /// Buried since the last [`Doubts::buried`].
    buried: Vec<u64>,
}

impl Doubts {
    /// A directory did not resolve. True if that is a doubt: its deletion has not been read.
    pub fn raise(&mut self, handle: Handle, epoch: u64) -> bool {
        let trace = trace(&handle);
        if self.gone.contains(&trace) || self.gone_before.contains(&trace) {
            return false;
        }
        self.open.entry(handle).or_insert(Open { epoch, drained_ns: None, stored: false });
        true
    }

    /// True if the directory is in doubt already: the kernel need not be asked again for each of its events.
    pub fn holds(&self, dir: HandleRef<'_>) -> bool {
        !self.open.is_empty() && self.open.contains_key(&dir)
    }

    /// The stream told of its rename, or of one that replaced it: an entry covers all that was before.
    pub fn settle(&mut self, dir: HandleRef<'_>) {
        if let Some((handle, doubt)) = self.open.remove_entry(&dir)
            && doubt.stored
        {
            self.settled.push(handle);
        }
    }

    /// The stream told of its deletion: an entry covers all that was before, and there is no after.
    pub fn bury(&mut self, handle: Handle) {
        self.settle((&handle).into());
        if self.gone.len() >= GONE_MAX {
            self.gone_before = std::mem::take(&mut self.gone);
        }
        let trace = trace(&handle);
        if self.gone.insert(trace) {
            self.buried.push(trace);
        }
    }

    /// What an instance before knew of the same unbroken stream.
    pub fn restore(&mut self, open: Vec<Handle>, gone: Vec<u64>) {
        let doubt = |handle| (handle, Open { epoch: 0, drained_ns: None, stored: true });
        self.open.extend(open.into_iter().map(doubt));
        self.gone_before.extend(gone);
    }

    /// The directories buried since the last call, to be restored some day.
    pub fn buried(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.buried)
    }

    /// The stream told of the end of all these at once.
    pub fn settle_all(&mut self, of: impl Fn(&Handle) -> bool) {
        let told: Vec<Handle> = self.open.keys().filter(|handle| of(handle)).cloned().collect();
        told.iter().for_each(|handle| self.settle(handle.into()));
    }

    /// The queue was read to its end.
    pub fn drained(&mut self, now_ns: i64) {
        for doubt in self.open.values_mut() {
            doubt.drained_ns.get_or_insert(now_ns);
        }
    }

    /// `read` events were read in all: more than the queue can hold since a doubt was raised answers for it too.
    pub fn passed(&mut self, read: u64, queue_max: u64, now_ns: i64) {
        for doubt in self.open.values_mut() {
            if read.saturating_sub(doubt.epoch) > queue_max {
                doubt.drained_ns.get_or_insert(now_ns);
            }
        }
    }

    pub fn state(&self) -> DoubtState {
        DoubtState {
            oldest: self.open.values().map(|d| d.epoch).min(),
            due_ns: self.open.values().filter_map(|d| d.drained_ns).min().map(|t| t + GRACE_NS),
        }
    }

    pub fn len(&self) -> usize {
        self.open.len()
    }

    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// What the next commit takes.
    pub fn turn(&mut self, now_ns: i64) -> Turn {
        let ran_out = self.state().due_ns.is_some_and(|due| due <= now_ns);
        let gap = ran_out || self.open.len() > limits::DOUBTS_MAX;
        if gap {
            // The gap covers all of them.
            self.forget();
        }
        let mut raised = Vec::new();
        for (handle, doubt) in &mut self.open {
            if !doubt.stored {
                doubt.stored = true;
                raised.push((handle.clone(), doubt.epoch));
            }
        }
        let mut settled = std::mem::take(&mut self.settled);
        // What is written hangs on no order of hashes.
        raised.sort_unstable();
        settled.sort_unstable();
        Turn { raised, settled, gap }
    }

    /// A gap over all roots covers whatever was in doubt.
    pub fn forget(&mut self) {
        for (handle, doubt) in std::mem::take(&mut self.open) {
            if doubt.stored {
                self.settled.push(handle);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const S: i64 = 1_000_000_000;

    fn h(n: u16) -> Handle {
        Handle { kind: 1, bytes: n.to_le_bytes().to_vec() }
    }

    #[test]
    fn a_doubt_that_its_deletion_answers_in_the_same_batch_is_never_stored() {
        let mut doubts = Doubts::default();
        assert!(doubts.raise(h(1), 5));
        doubts.bury(h(1));
        assert_eq!(doubts.turn(0), Turn::default());
    }

    #[test]
    fn a_stored_doubt_that_a_later_batch_answers_is_removed_without_a_gap() {
        let mut doubts = Doubts::default();
        doubts.raise(h(1), 5);
        assert_eq!(doubts.turn(0).raised, [(h(1), 5)]);
        assert_eq!(doubts.turn(0).raised, [], "stored once");
        doubts.settle((&h(1)).into());
        assert_eq!(doubts.turn(0), Turn { settled: vec![h(1)], ..Turn::default() });
    }

    #[test]
    fn the_end_of_many_at_once_leaves_the_others_in_doubt() {
        let mut doubts = Doubts::default();
        (1..=3).for_each(|n| _ = doubts.raise(h(n), 5));
        doubts.turn(0);
        doubts.settle_all(|handle| *handle != h(2));
        let settled: BTreeSet<Handle> = doubts.turn(0).settled.into_iter().collect();
        assert_eq!(settled, [h(1), h(3)].into());
        assert_eq!(doubts.len(), 1);
    }

    #[test]
    fn an_event_after_the_deletion_raises_no_doubt() {
        let mut doubts = Doubts::default();
        doubts.bury(h(1));
        assert!(!doubts.raise(h(1), 5));
        assert!(doubts.is_empty());
    }

    #[test]
    fn a_doubt_runs_out_a_second_after_the_queue_was_read_and_not_before() {
        let mut doubts = Doubts::default();
        doubts.raise(h(1), 5);
        doubts.turn(0);
        assert_eq!(doubts.state(), DoubtState { oldest: Some(5), due_ns: None });
        assert!(!doubts.turn(100 * S).gap, "what was queued has not been read");
        doubts.drained(100 * S);
        doubts.drained(200 * S);
        assert_eq!(doubts.state().due_ns, Some(101 * S));
        assert!(!doubts.turn(101 * S - 1).gap);
        assert_eq!(doubts.turn(101 * S), Turn { settled: vec![h(1)], gap: true, raised: vec![] });
        assert!(doubts.is_empty());
    }

    #[test]
    fn under_constant_load_a_full_queue_of_events_answers_too() {
        let mut doubts = Doubts::default();
        doubts.raise(h(1), 5);
        doubts.passed(105, 100, S);
        assert_eq!(doubts.state().due_ns, None);
        doubts.passed(106, 100, S);
        assert_eq!(doubts.state().due_ns, Some(2 * S));
    }

    #[test]
    fn what_an_earlier_instance_knew_is_decided_as_usual() {
        let mut before = Doubts::default();
        before.bury(h(1));
        let mut doubts = Doubts::default();
        doubts.restore(vec![h(2), h(3)], before.buried());
        assert!(!doubts.raise(h(1), 5), "its deletion was read");
        doubts.bury(h(2));
        doubts.drained(0);
        assert_eq!(doubts.turn(0).settled, [h(2)]);
        let turn = doubts.turn(GRACE_NS);
        assert_eq!((turn.gap, turn.settled), (true, vec![h(3)]));
    }

    #[test]
    fn too_many_doubts_are_one_gap() {
        let mut doubts = Doubts::default();
        for n in 0..=limits::DOUBTS_MAX as u16 {
            doubts.raise(h(n), 0);
        }
        let turn = doubts.turn(0);
        assert!(turn.gap && turn.raised.is_empty());
        assert!(doubts.is_empty());
    }
}
