//! The journal: the log of dirty paths that the tracker writes and every leg reads with a cursor of its own.
//! It holds no content and knows no destination. Who writes what: the tracker `entry`, `root`, `generation`,
//! `doubt`, `session`; a leg its own rows of `leg`, `deferred` and `linked`. In a collapse the tracker writes those of
//! a laggard.

mod append;
mod bound;
mod check;
mod coalesce;
mod cover;
mod deferred;
mod generation;
mod leg;
mod linked;
mod root;
mod schema;
#[cfg(test)]
mod tests;
mod waiting;

use std::path::{Path, PathBuf};

use rusqlite::{Connection, OptionalExtension as _, Transaction, params};

use crate::database::{self, DatabaseError, Mode, Watch};
use crate::entry::{Cause, Handle, Mask, Scope};
use crate::limits;
use crate::path::RelPath;

pub use append::{Appended, Change, Commit, Doubt, IntakeMark};
pub use bound::Bounded;
pub use coalesce::{Coalesce, key, key_of, random_seed};
pub use deferred::{Class, Deferred, DeferredKey, DeferredSum, NewDeferred};
pub use generation::Generation;
pub use leg::{Attached, CatalogFacts, Leg, LegRootFacts};
pub use root::{RootRow, RootState, Session};
pub use waiting::{Waiting, WaitingSum};

/// Number of a root in this journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RootId(pub i64);

/// The random name of one journal file: whoever holds a cursor checks that it belongs to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JournalId(pub [u8; 16]);

/// One row: "look at this path again".
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub seq: u64,
    pub root: RootId,
    pub path: RelPath,
    pub handle: Option<Handle>,
    pub scope: Scope,
    pub cause: Cause,
    pub mask: Mask,
    pub at_ns: i64,
}

/// A line for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryRow {
    pub at_ns: i64,
    pub kind: String,
    pub root: Option<String>,
    pub text: String,
}

/// An open journal. Not shared between threads: each opens its own.
#[derive(Debug)]
pub struct Journal {
    conn: Connection,
    path: PathBuf,
    watch: Watch,
    id: JournalId,
}

impl Journal {
    /// For the tracker: made if it is missing.
    pub fn create_or_open(path: &Path) -> Result<Journal, DatabaseError> {
        let mut conn = database::open(path, &schema::SCHEMA, Mode::Owner)?;
        let id: [u8; 16] = rand::random();
        let name = "INSERT OR IGNORE INTO meta(one, journal_id, floor, head) VALUES (1, ?1, 0, 0)";
        database::write(&mut conn, path, None, "name the journal", |tx| tx.execute(name, params![id]))?;
        Self::identified(conn, path)
    }

    /// For people: it must be there, and nothing of it changes.
    pub fn open_to_read(path: &Path) -> Result<Journal, DatabaseError> {
        let conn = database::open(path, &schema::SCHEMA, Mode::Reader)?;
        Self::identified(conn, path)
    }

    /// For legs: it must be there.
    pub fn open(path: &Path) -> Result<Journal, DatabaseError> {
        let conn = database::open(path, &schema::SCHEMA, Mode::Guest)?;
        Self::identified(conn, path)
    }

    fn identified(conn: Connection, path: &Path) -> Result<Journal, DatabaseError> {
        let id = conn
            .query_row("SELECT journal_id FROM meta", [], |r| r.get(0))
            .map_err(|e| DatabaseError::new(path, "read the journal's id", e))?;
        let watch = Watch::new(path, &conn, &schema::SCHEMA)?;
        Ok(Journal { conn, path: path.to_owned(), watch, id: JournalId(id) })
    }

    /// Whether the file is still in its place, with the schema it had.
    pub fn check_place(&self) -> Result<(), DatabaseError> {
        self.watch.check(&self.path, &self.conn)
    }

    pub fn id(&self) -> JournalId {
        self.id
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The newest seq given out, and the highest one pruned.
    pub fn head_and_floor(&self) -> Result<(u64, u64), DatabaseError> {
        self.conn
            .query_row("SELECT head, floor FROM meta", [], |r| Ok((r.get(0)?, r.get(1)?)))
            .map_err(self.fail("read the head"))
    }

    /// Entries above `after` up to `upto`, in order, at most `limit`.
    pub fn read(&self, after: u64, upto: u64, limit: usize) -> Result<Vec<Entry>, DatabaseError> {
        let fail = self.fail("read entries");
        let sql = "SELECT seq, root, path, handle, scope, cause, mask, at_ns FROM entry
                   WHERE seq > ?1 AND seq <= ?2 ORDER BY seq LIMIT ?3";
        let mut statement = self.conn.prepare_cached(sql).map_err(&fail)?;
        let rows = statement.query_map(params![after, upto, limit], read_entry).map_err(&fail)?;
        rows.collect::<rusqlite::Result<_>>().map_err(&fail)
    }

    /// How many entries lie above `after` up to `upto`.
    pub fn count_between(&self, after: u64, upto: u64) -> Result<u64, DatabaseError> {
        self.conn
            .query_row("SELECT count(*) FROM entry WHERE seq > ?1 AND seq <= ?2", params![after, upto], |r| {
                r.get(0)
            })
            .map_err(self.fail("count entries"))
    }

    /// A consistent copy in a new file.
    pub fn copy_to(&self, path: &Path) -> Result<(), DatabaseError> {
        database::copy_to(&self.conn, &self.path, path)
    }

    pub fn add_history(
        &mut self,
        at_ns: i64,
        kind: &str,
        root: Option<&str>,
        text: &str,
    ) -> Result<(), DatabaseError> {
        self.write("write history", |tx| history(tx, at_ns, kind, root, text))
    }

    /// Newest first.
    pub fn history(&self, limit: usize) -> Result<Vec<HistoryRow>, DatabaseError> {
        let fail = self.fail("read history");
        let mut statement = self
            .conn
            .prepare("SELECT at_ns, kind, root, text FROM history ORDER BY id DESC LIMIT ?1")
            .map_err(&fail)?;
        let rows = statement
            .query_map([limit], |r| {
                Ok(HistoryRow { at_ns: r.get(0)?, kind: r.get(1)?, root: r.get(2)?, text: r.get(3)? })
            })
            .map_err(&fail)?;
        rows.collect::<rusqlite::Result<_>>().map_err(&fail)
    }

    fn write<T>(
        &mut self,
        op: &'static str,
        work: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>,
    ) -> Result<T, DatabaseError> {
        database::write(&mut self.conn, &self.path, Some(&self.watch), op, work)
    }

    fn fail(&self, op: &'static str) -> impl Fn(rusqlite::Error) -> DatabaseError + '_ {
        move |e| DatabaseError::new(&self.path, op, e)
    }
}

fn read_entry(r: &rusqlite::Row<'_>) -> rusqlite::Result<Entry> {
    let handle: Option<Vec<u8>> = r.get(3)?;
    Ok(Entry {
        seq: r.get(0)?,
        root: RootId(r.get(1)?),
        path: read_path(r, 2)?,
        handle: handle.and_then(|h| Handle::from_blob(&h)),
        scope: r.get(4)?,
        cause: r.get(5)?,
        mask: read_mask(r, 6)?,
        at_ns: r.get(7)?,
    })
}

fn read_path(r: &rusqlite::Row<'_>, column: usize) -> rusqlite::Result<RelPath> {
    let bytes: Vec<u8> = r.get(column)?;
    RelPath::parse(&bytes).map_err(|e| {
        rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Blob, Box::new(e))
    })
}

fn read_mask(r: &rusqlite::Row<'_>, column: usize) -> rusqlite::Result<Mask> {
    Ok(Mask::from_bits_retain(r.get(column)?))
}

/// A new seq that no entry has.
fn bump_head(tx: &Transaction<'_>) -> rusqlite::Result<u64> {
    tx.query_row("UPDATE meta SET head = head + 1 RETURNING head", [], |r| r.get(0))
}

/// A line for people; the oldest go when there are too many.
fn history(
    tx: &Transaction<'_>,
    at_ns: i64,
    kind: &str,
    root: Option<&str>,
    text: &str,
) -> rusqlite::Result<()> {
    tx.execute(
        "INSERT INTO history(at_ns, kind, root, text) VALUES (?1, ?2, ?3, ?4)",
        params![at_ns, kind, root, text],
    )?;
    tx.execute(
        "DELETE FROM history WHERE id <= (SELECT max(id) FROM history) - ?1",
        params![limits::HISTORY_ROWS_MAX],
    )?;
    Ok(())
}

/// The head within a transaction.
fn head(tx: &Transaction<'_>) -> rusqlite::Result<u64> {
    tx.query_row("SELECT head FROM meta", [], |r| r.get(0)).optional().map(Option::unwrap_or_default)
}
