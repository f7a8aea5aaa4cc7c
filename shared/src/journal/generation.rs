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
    /// Which mount of the filesystem it was read on: a later one may have less than was committed since. `None` after
    /// an orderly end, which made all of that last: any later mount has it.
    pub mount: Option<u64>,
}

impl Journal {
    pub fn generation(&self, root: RootId) -> Result<Option<Generation>, DatabaseError> {
        let read = |r: &rusqlite::Row<'_>| {
            let inode: i64 = r.get(1)?;
            let (subvolume, generation, mount) = (r.get(0)?, r.get(2)?, r.get(3)?);
            Ok(Generation { subvolume, inode: inode as u64, generation, mount })
        };
        self.conn
            .query_row(
                "SELECT subvolume, inode, generation, mount FROM generation WHERE root = ?1",
                [root.0],
                read,
            )
            .optional()
            .map_err(self.fail("read a root's generation"))
    }

    /// Everything that was committed of the root on this mount is on its disk, and no more of it will be.
    pub fn make_generation_last(&mut self, root: RootId, mount: u64) -> Result<(), DatabaseError> {
        self.write("make a root's generation last", |tx| {
            let sql = "UPDATE generation SET mount = NULL WHERE root = ?1 AND mount = ?2";
            tx.execute(sql, params![root.0, mount]).map(drop)
        })
    }

    /// More is going to be committed of the root, on this mount.
    pub fn bind_generation(&mut self, root: RootId, mount: u64) -> Result<(), DatabaseError> {
        self.write("bind a root's generation", |tx| {
            let sql = "UPDATE generation SET mount = ?2 WHERE root = ?1 AND mount IS NULL";
            tx.execute(sql, params![root.0, mount]).map(drop)
        })
    }
}

/// After a crash: a filesystem may have gone back behind what was recorded, and its generations do not tell so.
pub(super) fn forget_all(tx: &Transaction<'_>) -> rusqlite::Result<()> {
    tx.execute("DELETE FROM generation", [])?;
    Ok(())
}

/// At an orderly end: the numbers of mounts begin anew with the next boot.
pub(super) fn forget_mounted(tx: &Transaction<'_>) -> rusqlite::Result<()> {
    tx.execute("DELETE FROM generation WHERE mount IS NOT NULL", [])?;
    Ok(())
}

pub(super) fn record(tx: &Transaction<'_>, root: RootId, at: &Generation) -> rusqlite::Result<()> {
    tx.prepare_cached(
        "INSERT OR REPLACE INTO generation(root, subvolume, inode, generation, mount)
         VALUES (?1, ?2, ?3, ?4, ?5)",
    )?
    // Inode numbers use all 64 bits; only equality matters.
    .execute(params![root.0, at.subvolume, at.inode as i64, at.generation, at.mount])?;
    Ok(())
}
