//! The tracker's side: one transaction per batch takes the entries, the doubts and what they replace.

use rusqlite::{Connection, OptionalExtension as _, Transaction, params};

use super::bound::{lowest_cursor, prune_to};
use super::coalesce::{Coalesce, Decision, Watermarks};
use super::generation::{Generation, record};
use super::leg::Leg;
use super::{Journal, RootId, head};
use crate::database::DatabaseError;
use crate::entry::{Cause, Handle, Mask, Scope};
use crate::kill;
use crate::path::RelPath;

/// A path to look at again, before it has a seq.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    pub root: RootId,
    pub path: RelPath,
    pub handle: Option<Handle>,
    pub scope: Scope,
    pub cause: Cause,
    pub mask: Mask,
}

impl Change {
    /// A gap over a whole root.
    pub fn gap(root: RootId, cause: Cause) -> Change {
        Change {
            root,
            path: RelPath::root(),
            handle: None,
            scope: Scope::Subtree,
            cause,
            mask: Mask::UNKNOWN,
        }
    }
}

/// A directory handle that did not resolve, on a filesystem named by `fs`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Doubt {
    pub fs: String,
    pub handle: Handle,
    pub epoch: u64,
}

/// The batch of an intake buffer that a transaction takes: each counts once, whoever commits it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IntakeMark {
    pub fs: String,
    pub buffer_id: [u8; 16],
    pub epoch: u64,
}

/// What one transaction takes.
#[derive(Debug, Clone, Default)]
pub struct Commit {
    pub changes: Vec<Change>,
    pub doubts: Vec<Doubt>,
    /// Doubts that the stream has answered.
    pub settled: Vec<(String, Handle)>,
    /// From when on a filesystem has to be asked what changed, once this is committed.
    pub generations: Vec<(RootId, Generation)>,
    /// The buffer that the changes were read into.
    pub intake: Option<IntakeMark>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Appended {
    pub rows: u64,
    /// Changes that an unclaimed row covered.
    pub coalesced: u64,
    /// The newest seq after the transaction, and the highest pruned one.
    pub head: u64,
    pub floor: u64,
}

impl Journal {
    /// Commits a batch. The last of its events must have been read from the kernel before the call: the claims are
    /// read inside. On an error nothing is committed and `remembered` is as it was.
    pub fn append(
        &mut self,
        remembered: &mut Coalesce,
        batch: &Commit,
        at_ns: i64,
    ) -> Result<Appended, DatabaseError> {
        let done = self.write("append entries", |tx| {
            let marks = watermarks(tx)?;
            let appended = append_changes(tx, remembered, &marks, &batch.changes, at_ns)?;
            for doubt in &batch.doubts {
                let sql = "INSERT OR REPLACE INTO doubt(fs, handle, epoch) VALUES (?1, ?2, ?3)";
                let row = params![doubt.fs, doubt.handle.to_blob(), doubt.epoch];
                assert_eq!(tx.prepare_cached(sql)?.execute(row)?, 1, "a doubt that is not stored is lost");
            }
            for (fs, handle) in &batch.settled {
                tx.prepare_cached("DELETE FROM doubt WHERE fs = ?1 AND handle = ?2")?
                    .execute(params![fs, handle.to_blob()])?;
            }
            for (root, generation) in &batch.generations {
                record(tx, *root, generation)?;
            }
            if let Some(mark) = &batch.intake {
                let sql = "INSERT OR REPLACE INTO intake(fs, buffer_id, epoch) VALUES (?1, ?2, ?3)";
                let row = params![mark.fs, mark.buffer_id, mark.epoch];
                assert_eq!(
                    tx.prepare_cached(sql)?.execute(row)?,
                    1,
                    "a mark that is not stored would count twice"
                );
            }
            kill::point("transaction");
            Ok(appended)
        });
        match done {
            Ok(appended) => {
                remembered.commit();
                Ok(appended)
            }
            Err(e) => {
                remembered.roll_back();
                Err(e)
            }
        }
    }

    /// Drops the rows that every leg in `legs` has acked. Legs without a row hold nothing back (their first run is
    /// a full pass), nor do rows of legs not named here. Without any such leg nothing is dropped, and where there is
    /// nothing to drop nothing is written.
    pub fn prune(&mut self, legs: &[String]) -> Result<u64, DatabaseError> {
        let (_, floor) = self.head_and_floor()?;
        match lowest_cursor(&self.conn, legs).map_err(self.fail("read the legs"))? {
            Some(lowest) if lowest > floor => self.write("prune entries", |tx| prune_to(tx, lowest)),
            _ => Ok(0),
        }
    }

    /// The last batch that was taken from a filesystem's buffer.
    pub fn intake(&self, fs: &str) -> Result<Option<IntakeMark>, DatabaseError> {
        let read = |r: &rusqlite::Row<'_>| {
            Ok(IntakeMark { fs: fs.to_owned(), buffer_id: r.get(0)?, epoch: r.get(1)? })
        };
        self.conn
            .query_row("SELECT buffer_id, epoch FROM intake WHERE fs = ?1", [fs], read)
            .optional()
            .map_err(self.fail("read what was taken from the buffer"))
    }

    /// Lets go of the doubts and marks of filesystems that nobody tracks any more; returns their names.
    pub fn forget_filesystems(
        &mut self,
        is_tracked: impl Fn(&str) -> bool,
    ) -> Result<Vec<String>, DatabaseError> {
        let names = |conn: &Connection| -> rusqlite::Result<Vec<String>> {
            let mut known = conn.prepare("SELECT fs FROM doubt UNION SELECT fs FROM intake ORDER BY fs")?;
            known.query_map([], |r| r.get(0))?.collect()
        };
        let mut gone = names(&self.conn).map_err(self.fail("read the names of filesystems"))?;
        gone.retain(|fs| !is_tracked(fs));
        if !gone.is_empty() {
            self.write("forget filesystems", |tx| {
                for fs in &gone {
                    tx.execute("DELETE FROM doubt WHERE fs = ?1", [fs])?;
                    tx.execute("DELETE FROM intake WHERE fs = ?1", [fs])?;
                }
                Ok(())
            })?;
        }
        Ok(gone)
    }

    /// The doubts of a filesystem, oldest epoch first.
    pub fn doubts(&self, fs: &str) -> Result<Vec<Doubt>, DatabaseError> {
        let fail = self.fail("read doubts");
        let sql = "SELECT handle, epoch FROM doubt WHERE fs = ?1 ORDER BY epoch";
        let mut statement = self.conn.prepare_cached(sql).map_err(&fail)?;
        let rows = statement
            .query_map([fs], |r| Ok((r.get::<_, Vec<u8>>(0)?, r.get::<_, u64>(1)?)))
            .map_err(&fail)?
            .collect::<rusqlite::Result<Vec<_>>>()
            .map_err(&fail)?;
        let doubt = |(blob, epoch): (Vec<u8>, u64)| {
            Some(Doubt { fs: fs.to_owned(), handle: Handle::from_blob(&blob)?, epoch })
        };
        Ok(rows.into_iter().filter_map(doubt).collect())
    }
}

pub(super) fn watermarks(tx: &Transaction<'_>) -> rusqlite::Result<Watermarks> {
    let floor: u64 = tx.prepare_cached("SELECT floor FROM meta")?.query_row([], |r| r.get(0))?;
    let legs: Vec<(u64, u64)> = Leg::all(tx)?.iter().map(|leg| (leg.claimed, leg.cursor())).collect();
    let spoken_for = legs.iter().fold(floor, |most, &(claimed, cursor)| most.max(claimed).max(cursor));
    Ok(Watermarks { legs, floor, spoken_for })
}

pub(super) fn append_changes(
    tx: &Transaction<'_>,
    remembered: &mut Coalesce,
    marks: &Watermarks,
    changes: &[Change],
    at_ns: i64,
) -> rusqlite::Result<Appended> {
    let mut done = Appended { head: head(tx)?, floor: marks.floor, ..Appended::default() };
    let unacked_from = marks.legs.iter().map(|l| l.1).min().unwrap_or(0);
    let mut delete = tx.prepare_cached("DELETE FROM entry WHERE seq = ?1 RETURNING at_ns")?;
    let mut insert = tx.prepare_cached(
        "INSERT INTO entry(seq, root, path, handle, scope, cause, mask, at_ns) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
    )?;
    for change in changes {
        let key = remembered.key(change);
        let Decision::Append { mask, replaces } = remembered.decide(key, change.mask, marks) else {
            done.coalesced += 1;
            continue;
        };
        // The age of a change that some leg still owes is that of its first event.
        let mut first_ns = at_ns;
        if let Some(old) = replaces {
            let mut rows = delete.query([old])?;
            while let Some(r) = rows.next()? {
                if old > unacked_from {
                    first_ns = first_ns.min(r.get(0)?);
                }
            }
        }
        done.head += 1;
        done.rows += 1;
        let stored = insert.execute(params![
            done.head,
            change.root.0,
            change.path.as_bytes(),
            change.handle.as_ref().map(Handle::to_blob),
            change.scope,
            change.cause,
            mask.bits(),
            first_ns,
        ])?;
        assert_eq!(stored, 1, "an INSERT that stores nothing would be a lost change");
        remembered.stage(key, done.head, mask);
    }
    if done.rows > 0 {
        tx.execute("UPDATE meta SET head = ?1", [done.head])?;
    }
    Ok(done)
}
