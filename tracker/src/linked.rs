//! The files of which a leg knows fewer names than they have. A write through a name nobody knows must reach those
//! that somebody does, so their events become entries by handle.

use hashbrown::HashSet;
use shared::database::DatabaseError;
use shared::journal::{self, Journal, RootId};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::intake::records::HandleRef;
use crate::roots::TrackedRoot;

/// What the legs of a filesystem's roots have published.
#[derive(Debug)]
pub struct Linked {
    seed: u64,
    /// By root and hash: one taken for another costs a needless entry.
    files: HashSet<(RootId, u64)>,
    /// Roots of which some leg had more than the journal takes: any file with more than one name counts.
    too_many: HashSet<RootId>,
    /// Which state of the journal this is.
    epoch: Option<u64>,
}

impl Default for Linked {
    fn default() -> Linked {
        Linked { seed: journal::random_seed(), files: HashSet::new(), too_many: HashSet::new(), epoch: None }
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
        let (mut files, mut too_many) = (HashSet::new(), HashSet::new());
        journal.linked(roots, |root, file| match file {
            Some(file) => _ = files.insert((root, self.hash(file.into()))),
            None => _ = too_many.insert(root),
        })?;
        (self.files, self.too_many) = (files, too_many);
        // Read before the rows: at worst they are read again.
        self.epoch = Some(epoch);
        Ok(())
    }

    fn hash(&self, file: HandleRef<'_>) -> u64 {
        xxh3_64_with_seed(file.bytes, self.seed ^ file.kind as u64)
    }

    /// The roots among these of which a leg has published the file. Of the others each leg knows none of its names, or
    /// all of them, which have events of their own. Where too many are published, `has_names` says whether it has more
    /// than one name.
    pub fn roots_of<'r, E>(
        &self,
        roots: &'r [TrackedRoot],
        file: HandleRef<'_>,
        mut has_names: impl FnMut() -> Result<bool, E>,
    ) -> Result<Vec<&'r TrackedRoot>, E> {
        if self.files.is_empty() && self.too_many.is_empty() {
            return Ok(Vec::new());
        }
        let hash = self.hash(file);
        let mut found = Vec::new();
        for root in roots {
            if self.files.contains(&(root.id, hash)) || (self.too_many.contains(&root.id) && has_names()?) {
                found.push(root);
            }
        }
        Ok(found)
    }
}
