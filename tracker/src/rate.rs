//! How much each user may ask for: a token bucket for each uid. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use shared::limits;

#[derive(Debug)]
pub struct Rates {
    per_second: u64,
    burst: u64,
    buckets: BTreeMap<u32, Bucket>,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    tokens: u64,
    /// When they were so many.
    at_ns: i64,
}

const SECOND_NS: u128 = 1_000_000_000;

impl Rates {
    /// `burst` tokens at once, then so many per second.
    pub fn new(per_second: u64, burst: u64) -> Rates {
        Rates { per_second, burst, buckets: BTreeMap::new() }
    }

    /// Takes tokens, or says after what time there will be enough. More than a burst is as much as a burst.
    pub fn take(&mut self, uid: u32, tokens: u64, now_ns: i64) -> Result<(), Duration> {
        let tokens = tokens.min(self.burst);
        let held = self.held(uid, now_ns);
        if tokens > held {
            let wait_ns = u128::from(tokens - held) * SECOND_NS / u128::from(self.per_second);
            return Err(Duration::from_nanos(u64::try_from(wait_ns).unwrap_or(u64::MAX)));
        }
        if self.buckets.len() >= limits::RATED_USERS_MAX && !self.buckets.contains_key(&uid) {
            self.forget_full(now_ns);
        }
        self.buckets.insert(uid, Bucket { tokens: held - tokens, at_ns: now_ns });
        Ok(())
    }

    fn held(&self, uid: u32, now_ns: i64) -> u64 {
        let Some(bucket) = self.buckets.get(&uid) else { return self.burst };
        let elapsed = u128::try_from(now_ns - bucket.at_ns).unwrap_or(0);
        let grown = elapsed * u128::from(self.per_second) / SECOND_NS;
        bucket.tokens.saturating_add(u64::try_from(grown).unwrap_or(u64::MAX)).min(self.burst)
    }

    /// A full bucket is as good as none. If none is full, the fullest is forgotten.
    fn forget_full(&mut self, now_ns: i64) {
        let held: Vec<(u64, u32)> = self.buckets.keys().map(|uid| (self.held(*uid, now_ns), *uid)).collect();
        let fullest = held.iter().max().map(|(_, uid)| *uid);
        for (tokens, uid) in held {
            if tokens == self.burst || Some(uid) == fullest {
                self.buckets.remove(&uid);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i64 = 1_000_000_000;

    #[test]
    fn a_burst_passes_and_then_so_many_per_second() {
        let mut rates = Rates::new(10, 100);
        assert_eq!(rates.take(1, 100, 0), Ok(()));
        assert_eq!(rates.take(1, 5, 0), Err(Duration::from_millis(500)));
        assert_eq!(rates.take(1, 5, SECOND / 2), Ok(()));
        assert_eq!(rates.take(1, 1, SECOND / 2), Err(Duration::from_millis(100)));
        assert_eq!(rates.take(1, 100, 1_000 * SECOND), Ok(()), "no more than a burst is saved up");
        assert!(rates.take(1, 100, 1_001 * SECOND).is_err());
    }

    #[test]
    fn one_user_takes_nothing_from_another() {
        let mut rates = Rates::new(10, 100);
        assert_eq!(rates.take(1, 100, 0), Ok(()));
        assert_eq!(rates.take(2, 100, 0), Ok(()));
    }

    #[test]
    fn who_waits_as_long_as_was_said_is_served() {
        let mut rates = Rates::new(7, 100);
        rates.take(1, 100, 0).unwrap();
        let wait = rates.take(1, 50, 3).unwrap_err();
        assert_eq!(rates.take(1, 50, 3 + wait.as_nanos() as i64 + 1), Ok(()));
    }

    #[test]
    fn a_clock_that_goes_back_and_a_refused_request_cost_nothing() {
        let mut rates = Rates::new(10, 100);
        rates.take(1, 90, SECOND).unwrap();
        assert!(rates.take(1, 50, 0).is_err());
        assert_eq!(rates.take(1, 10, 0), Ok(()));
    }

    #[test]
    fn however_many_users_there_are_it_stays_small_and_forgets_who_took_least() {
        let mut rates = Rates::new(1, 100);
        rates.take(0, 100, 0).unwrap();
        for uid in 1..=10 * limits::RATED_USERS_MAX as u32 {
            rates.take(uid, 1 + u64::from(uid % 50), 0).unwrap();
            assert!(rates.buckets.len() <= limits::RATED_USERS_MAX);
        }
        assert!(rates.take(0, 1, 0).is_err(), "the one who took most is remembered");
    }
}
