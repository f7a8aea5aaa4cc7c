//! The files of which a leg knows fewer names than they have. A write through a name nobody knows must reach those
//! that somebody does, so their events become entries by handle.

use hashbrown::HashSet;
use shared::database::DatabaseError;
use shared::journal::{self, Journal, RootId};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::intake::records::HandleRef;

/// What the legs of a filesystem's roots have published.
#[derive(Debug)]
pub struct Linked {
    seed: u64,
    /// By their hash: one taken for another costs a needless entry.
    files: HashSet<u64>,
    /// Some leg had more than the journal takes: any file with more than one name counts.
    too_many: bool,
    /// Which state of the journal this is.
    epoch: Option<u64>,
}

impl Default for Linked {
    fn default() -> Linked {
        Linked { seed: journal::random_seed(), files: HashSet::new(), too_many: false, epoch: None }
    }
}

impl Linked {
    /// Takes over what changed. To be called after the last event of a batch was read from the kernel and before it
    /// is translated: a leg publishes a file, and then looks at it once more. What is written after that look is an
    /// event read after the publication.
    pub fn refresh(&mut self, journal: &Journal, roots: &[RootId]) -> Result<(), DatabaseError> {
        let epoch = journal.linked_epoch()?;
        if self.epoch == Some(epoch) {
            return Ok(());
        }
        let mut files = HashSet::new();
        self.too_many = journal.linked(roots, |file| _ = files.insert(self.hash(file.into())))?;
        self.files = files;
        // Read before the rows: at worst they are read again.
        self.epoch = Some(epoch);
        Ok(())
    }

    fn hash(&self, file: HandleRef<'_>) -> u64 {
        xxh3_64_with_seed(file.bytes, self.seed ^ file.kind as u64)
    }

    pub fn has(&self, file: HandleRef<'_>) -> bool {
        !self.files.is_empty() && self.files.contains(&self.hash(file))
    }

    pub fn too_many(&self) -> bool {
        self.too_many
    }
}
