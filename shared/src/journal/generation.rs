//! From which of its own generations on a filesystem has to be asked what changed, where it keeps them (btrfs).

use rusqlite::{OptionalExtension as _, Transaction, params};

use super::{Journal, RootId};
use crate::database::DatabaseError;

/// A number that was read before everything committed since was complete. It says something only of this subvolume and
/// this root directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Generation {
    /// The subvolume's UUID: a snapshot put in its place has another one.
    pub subvolume: [u8; 16],
    /// The root directory's inode number.
    pub inode: u64,
    pub generation: u64,
}

impl Journal {
    pub fn generation(&self, root: RootId) -> Result<Option<Generation>, DatabaseError> {
        let read = |r: &rusqlite::Row<'_>| {
            let inode: i64 = r.get(1)?;
            Ok(Generation { subvolume: r.get(0)?, inode: inode as u64, generation: r.get(2)? })
        };
        self.conn
            .query_row("SELECT subvolume, inode, generation FROM generation WHERE root = ?1", [root.0], read)
            .optional()
            .map_err(self.fail("read a root's generation"))
    }
}

/// After a crash: a filesystem may have gone back behind what was recorded, and its generations do not tell so.
pub(super) fn forget_all(tx: &Transaction<'_>) -> rusqlite::Result<()> {
    tx.execute("DELETE FROM generation", [])?;
    Ok(())
}

pub(super) fn record(tx: &Transaction<'_>, root: RootId, at: &Generation) -> rusqlite::Result<()> {
    tx.prepare_cached(
        "INSERT OR REPLACE INTO generation(root, subvolume, inode, generation) VALUES (?1, ?2, ?3, ?4)",
    )?
    // Inode numbers use all 64 bits; only equality matters.
    .execute(params![root.0, at.subvolume, at.inode as i64, at.generation])?;
    Ok(())
}
