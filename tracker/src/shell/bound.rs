//! Keeps the journal small: drops what every leg has acked, and collapses the legs that lag behind once there are too
//! many rows. At the regular tick, and where a commit finds itself over the bound.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use shared::clock::Clock;
use shared::config::Config;
use shared::database::DatabaseError;
use shared::journal::{Appended, Journal};

pub struct Bound {
    clock: Arc<dyn Clock>,
    /// Legs of the configuration: others hold nothing back.
    legs: Vec<String>,
    entries_max: u64,
    collapses: AtomicU64,
    /// The head from which on it is worth counting the rows again.
    count_at: AtomicU64,
}

impl Bound {
    pub fn new(config: &Config, clock: Arc<dyn Clock>) -> Bound {
        Bound {
            clock,
            legs: config.legs.iter().map(|l| l.name.as_str().to_owned()).collect(),
            entries_max: config.max_entries,
            collapses: AtomicU64::new(0),
            count_at: AtomicU64::new(0),
        }
    }

    /// Since the start.
    pub fn collapses(&self) -> u64 {
        self.collapses.load(Ordering::Relaxed)
    }

    /// At the regular tick. Writes nothing if there is nothing to do.
    pub fn tidy(&self, journal: &mut Journal) -> Result<(), DatabaseError> {
        let dropped = journal.prune(&self.legs)?;
        if dropped > 0 {
            tracing::debug!("{dropped} entries that every leg has acked were dropped");
        }
        journal.gather_roots_not_ok()?;
        self.keep(journal)
    }

    /// There are no more rows than seqs since the last pruned one. Where these are too many the rows are counted, and
    /// again only once a good part more of them has come.
    pub fn after_commit(&self, journal: &mut Journal, done: &Appended) {
        let over = done.head - done.floor.min(done.head) > self.entries_max;
        if !over || done.head < self.count_at.load(Ordering::Relaxed) {
            return;
        }
        self.count_at.store(done.head + self.entries_max / 16, Ordering::Relaxed);
        if let Err(e) = self.keep(journal) {
            tracing::warn!("The journal cannot be kept within its bound: {e}");
        }
    }

    fn keep(&self, journal: &mut Journal) -> Result<(), DatabaseError> {
        let done = journal.bound(&self.legs, self.entries_max, self.clock.wall_ns())?;
        if done.collapses > 0 {
            self.collapses.fetch_add(done.collapses, Ordering::Relaxed);
            let (max, dropped) = (self.entries_max, done.dropped);
            tracing::warn!(
                "the journal had more than {max} entries: {dropped} went, for legs that lag behind"
            );
        }
        Ok(())
    }
}
