//! The newest committed seq, for those who watch it.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

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
        let waited = self.moved.wait_timeout_while(self.lock(), timeout, |head| *head <= seen);
        let (head, _) = waited.unwrap_or_else(PoisonError::into_inner);
        (*head > seen).then_some(*head)
    }
}

#[cfg(test)]
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
}
