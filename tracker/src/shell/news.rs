//! What the tracker's threads tell each other without a channel: the newest head, and that the status changed. All
//! hand-made synchronisation is in this file, and `tests/model` runs it through every order of its steps.

use std::time::{Duration, Instant};

#[cfg(model)]
use loom::sync::{Condvar, Mutex, MutexGuard, atomic::AtomicBool, atomic::Ordering};
#[cfg(not(model))]
use std::sync::{Condvar, Mutex, MutexGuard, atomic::AtomicBool, atomic::Ordering};

use std::sync::PoisonError;

/// The newest committed seq, for those who watch it.
#[derive(Debug, Default)]
pub struct Heads {
    head: Mutex<u64>,
    moved: Condvar,
}

impl Heads {
    fn lock(&self) -> MutexGuard<'_, u64> {
        // A number cannot be left half written.
        self.head.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn publish(&self, head: u64) {
        let mut current = self.lock();
        if head > *current {
            *current = head;
            self.moved.notify_all();
        }
    }

    pub fn get(&self) -> u64 {
        *self.lock()
    }

    /// Waits until the head is above `seen`; `None` when the time is up.
    pub fn above(&self, seen: u64, timeout: Duration) -> Option<u64> {
        let end = Instant::now() + timeout;
        let mut head = self.lock();
        while *head <= seen {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            head = self.moved.wait_timeout(head, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        Some(*head)
    }
}

/// That something changed and nobody has looked since, so that many changes make one report.
#[derive(Debug, Default)]
pub struct Notice {
    raised: AtomicBool,
}

impl Notice {
    /// After a change. True if it must be reported: whoever took the last report may have looked before it.
    pub fn raise(&self) -> bool {
        !self.raised.swap(true, Ordering::Release)
    }

    /// Before a look, which then sees every change that was not reported.
    pub fn take(&self) {
        // Not a plain store: that may come after the look, and a change in between would be in neither.
        self.raised.swap(false, Ordering::Acquire);
    }
}

#[cfg(all(test, not(model)))]
mod tests {
    use super::*;

    #[test]
    fn a_head_never_goes_back_and_wakes_who_waits() {
        let heads = Heads::default();
        heads.publish(5);
        heads.publish(3);
        assert_eq!(heads.get(), 5);
        assert_eq!(heads.above(4, Duration::ZERO), Some(5));
        assert_eq!(heads.above(5, Duration::ZERO), None);
        std::thread::scope(|s| {
            let waiter = s.spawn(|| heads.above(5, Duration::from_secs(60)));
            heads.publish(6);
            assert_eq!(waiter.join().unwrap(), Some(6));
        });
    }

    #[test]
    fn many_changes_between_two_looks_are_one_report() {
        let notice = Notice::default();
        assert!(notice.raise());
        assert!(!notice.raise());
        notice.take();
        assert!(notice.raise());
    }
}
