//! Rows a leg still owes. A row carries the seq of its newest cause and is removed only with the seq that was
//! read, so that a renewed one stays.

use rusqlite::{OptionalExtension as _, Transaction, params};

use super::bound::bound_deferred;
use super::leg::note_revision;
use super::{Journal, RootId, read_mask, read_path};
use crate::database::DatabaseError;
use crate::entry::{Handle, Mask, Scope, stored_enum};
use crate::limits;
use crate::path::RelPath;

stored_enum! {
    /// Why a path is owed.
    Class {
        /// It changed while it was read.
        Busy = 0 => "busy",
        /// Its transfer was running when its batch was done.
        InFlight = 1 => "in-flight",
        /// It could not be read, or the destination refused it.
        Error = 2 => "error",
        /// It came from a gap that is worked off in pieces.
        Gap = 3 => "gap",
        FullPass = 4 => "full-pass",
        /// Another kind of object still stands at its name, or above or below it.
        Kind = 5 => "kind",
        /// Its root was not proven.
        Root = 6 => "root",
        /// Whether it exists could not be told.
        Unknown = 7 => "unknown",
        /// Taken out of the journal because the leg lagged behind.
        Collapse = 8 => "collapse",
        /// Another filesystem or subvolume lies over it.
        Elsewhere = 9 => "elsewhere",
    }
}

impl Class {
    /// Classes whose failing attempts count as errors of the run once they have lasted too long.
    pub fn is_failure(self) -> bool {
        matches!(self, Class::Busy | Class::Error | Class::Unknown)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeferredKey {
    pub root: RootId,
    pub path: RelPath,
    pub scope: Scope,
    /// In the place of a path, with the scope of that name.
    pub handle: Option<Handle>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deferred {
    pub key: DeferredKey,
    pub seq: u64,
    pub mask: Mask,
    pub since_ns: i64,
    pub attempts: u32,
    pub not_before_ns: i64,
    pub class: Class,
    pub last_error: String,
}

/// What a leg owes of one class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeferredSum {
    pub class: Class,
    pub count: u64,
    pub oldest_ns: i64,
}

/// A row to write; where one stands already they are merged: the newer seq, both masks, the older age.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewDeferred {
    pub root: RootId,
    pub path: RelPath,
    pub scope: Scope,
    pub handle: Option<Handle>,
    pub seq: u64,
    pub mask: Mask,
    pub since_ns: i64,
    /// Attempts that have failed: added to those counted already.
    pub attempts: u32,
    pub not_before_ns: i64,
    pub class: Class,
    pub last_error: String,
}

impl Deferred {
    /// What people are told is owed.
    pub fn what(&self) -> String {
        match self.key.handle {
            Some(_) => "a file without a known name".to_owned(),
            None => self.key.path.to_string(),
        }
    }
}

impl NewDeferred {
    pub fn key(&self) -> DeferredKey {
        let NewDeferred { root, path, scope, handle, .. } = self;
        DeferredKey { root: *root, path: path.clone(), scope: *scope, handle: handle.clone() }
    }
}

impl Journal {
    /// Rows of a root that may be tried now. A `not_before` further away than the longest backoff is due: the clock
    /// jumped.
    pub fn deferred_due(
        &self,
        leg: &str,
        root: RootId,
        now_ns: i64,
        limit: usize,
    ) -> Result<Vec<Deferred>, DatabaseError> {
        let far = now_ns.saturating_add(limits::BACKOFF_MAX.as_nanos() as i64);
        let sql = format!(
            "SELECT {COLUMNS} FROM deferred
             WHERE leg = ?1 AND root = ?2 AND (not_before_ns <= ?3 OR not_before_ns > ?4)
             ORDER BY seq DESC LIMIT ?5"
        );
        self.select_deferred(&sql, params![leg, root.0, now_ns, far, limit])
    }

    /// The roots of which a full pass may begin now.
    pub fn full_passes_due(&self, leg: &str, now_ns: i64) -> Result<Vec<RootId>, DatabaseError> {
        let far = now_ns.saturating_add(limits::BACKOFF_MAX.as_nanos() as i64);
        let sql = format!(
            "SELECT {COLUMNS} FROM deferred
             WHERE leg = ?1 AND scope = ?2 AND (not_before_ns <= ?3 OR not_before_ns > ?4)"
        );
        let rows = self.select_deferred(&sql, params![leg, Scope::Full, now_ns, far])?;
        Ok(rows.into_iter().map(|row| row.key.root).collect())
    }

    /// All rows of a leg, oldest first; those by handle, which say little to people and may be many, after the others.
    pub fn deferred(&self, leg: &str, limit: usize) -> Result<Vec<Deferred>, DatabaseError> {
        let sql = format!(
            "SELECT {COLUMNS} FROM deferred WHERE leg = ?1 ORDER BY handle <> x'', since_ns, path LIMIT ?2"
        );
        self.select_deferred(&sql, params![leg, limit])
    }

    /// How much is owed, by class.
    pub fn deferred_by_class(&self, leg: &str) -> Result<Vec<DeferredSum>, DatabaseError> {
        let fail = self.fail("count deferred rows");
        let sql = "SELECT class, count(*), min(since_ns) FROM deferred WHERE leg = ?1 GROUP BY class ORDER BY class";
        let mut statement = self.conn.prepare_cached(sql).map_err(&fail)?;
        let read = |r: &rusqlite::Row<'_>| {
            Ok(DeferredSum { class: r.get(0)?, count: r.get(1)?, oldest_ns: r.get(2)? })
        };
        let rows = statement.query_map([leg], read).map_err(&fail)?;
        rows.collect::<rusqlite::Result<_>>().map_err(&fail)
    }

    /// Rows of a leg that stand for more than what was seen to change, by root.
    pub fn owed_gaps(&self, leg: &str) -> Result<Vec<(RootId, u64)>, DatabaseError> {
        let fail = self.fail("count deferred rows");
        let sql =
            "SELECT root, count(*) FROM deferred WHERE leg = ?1 AND class IN (?2, ?3, ?4, ?5) GROUP BY root";
        let mut statement = self.conn.prepare_cached(sql).map_err(&fail)?;
        let of = params![leg, Class::Gap, Class::FullPass, Class::Root, Class::Collapse];
        let rows = statement.query_map(of, |r| Ok((RootId(r.get(0)?), r.get(1)?))).map_err(&fail)?;
        rows.collect::<rusqlite::Result<_>>().map_err(&fail)
    }

    /// When the next row of a leg comes due.
    pub fn next_due_ns(&self, leg: &str) -> Result<Option<i64>, DatabaseError> {
        self.conn
            .query_row("SELECT min(not_before_ns) FROM deferred WHERE leg = ?1", [leg], |r| r.get(0))
            .map_err(self.fail("read deferred rows"))
    }

    /// True if a leg owes this path, or all of a directory above it.
    pub fn owes(&self, leg: &str, root: RootId, path: &RelPath) -> Result<bool, DatabaseError> {
        let fail = self.fail("read deferred rows");
        // A row by handle has no path, although the root's stands in it.
        let sql =
            "SELECT EXISTS(SELECT 1 FROM deferred WHERE leg = ?1 AND root = ?2 AND path = ?3 AND handle = x''
            AND (scope IN (?4, ?5) OR ?6))";
        let mut statement = self.conn.prepare_cached(sql).map_err(&fail)?;
        let mut at = Some(path.clone());
        while let Some(path_or_above) = at {
            let itself = path_or_above == *path;
            let args = params![leg, root.0, path_or_above.as_bytes(), Scope::Subtree, Scope::Full, itself];
            if statement.query_row(args, |r| r.get(0)).map_err(&fail)? {
                return Ok(true);
            }
            at = path_or_above.parent();
        }
        Ok(false)
    }

    pub fn deferred_count(&self, leg: &str) -> Result<u64, DatabaseError> {
        self.conn
            .query_row("SELECT count(*) FROM deferred WHERE leg = ?1", [leg], |r| r.get(0))
            .map_err(self.fail("count deferred rows"))
    }

    /// Writes rows outside an ack (a failed attempt, a rule change).
    pub fn defer(&mut self, leg: &str, rows: &[NewDeferred]) -> Result<(), DatabaseError> {
        self.write("defer", |tx| owe(tx, leg, rows))
    }

    /// Removes the rows that still have the seq they were read with; returns how many did. To be called after the catalog
    /// committed, with what it counts then.
    pub fn settle_deferred(
        &mut self,
        leg: &str,
        revision: u64,
        rows: &[(DeferredKey, u64)],
    ) -> Result<usize, DatabaseError> {
        self.write("settle deferred rows", |tx| {
            note_revision(tx, leg, revision)?;
            let mut statement = tx.prepare_cached(
                "DELETE FROM deferred WHERE leg = ?1 AND root = ?2 AND path = ?3 AND scope = ?4
                     AND handle = ?5 AND seq = ?6",
            )?;
            let mut removed = 0;
            for (key, seq) in rows {
                let (path, handle) = (key.path.as_bytes(), blob(key.handle.as_ref()));
                removed += statement.execute(params![leg, key.root.0, path, key.scope, handle, seq])?;
            }
            Ok(removed)
        })
    }

    /// What these rows waited for has happened: they are due now.
    pub fn wake_deferred(&mut self, leg: &str, class: Class) -> Result<(), DatabaseError> {
        self.write("wake deferred rows", |tx| {
            tx.execute(
                "UPDATE deferred SET not_before_ns = 0 WHERE leg = ?1 AND class = ?2",
                params![leg, class],
            )?;
            Ok(())
        })
    }

    /// How many attempts at this have failed.
    pub fn deferred_attempts(&self, leg: &str, key: &DeferredKey) -> Result<u32, DatabaseError> {
        let fail = self.fail("read a deferred row");
        let sql = "SELECT attempts FROM deferred WHERE leg = ?1 AND root = ?2 AND path = ?3 AND scope = ?4 AND handle = ?5";
        let mut statement = self.conn.prepare_cached(sql).map_err(&fail)?;
        let (path, handle) = (key.path.as_bytes(), blob(key.handle.as_ref()));
        let found = statement.query_row(params![leg, key.root.0, path, key.scope, handle], |r| r.get(0));
        Ok(found.optional().map_err(&fail)?.unwrap_or(0))
    }

    /// Rows of paths and trees that are not due yet.
    pub fn deferred_waiting(&self, leg: &str, now_ns: i64) -> Result<Vec<Deferred>, DatabaseError> {
        let sql = format!(
            "SELECT {COLUMNS} FROM deferred WHERE leg = ?1 AND scope IN (?2, ?3, ?4) AND not_before_ns > ?5"
        );
        let scopes = (Scope::SelfOnly, Scope::Subtree, Scope::Names);
        self.select_deferred(&sql, params![leg, scopes.0, scopes.1, scopes.2, now_ns])
    }

    /// These rows stand for something newer, too, and wait as long as before.
    pub fn renew_deferred(
        &mut self,
        leg: &str,
        rows: &[(DeferredKey, u64, Mask)],
    ) -> Result<(), DatabaseError> {
        self.write("renew deferred rows", |tx| {
            let mut statement = tx.prepare_cached(
                "UPDATE deferred SET seq = max(seq, ?5), mask = mask | ?6
                 WHERE leg = ?1 AND root = ?2 AND path = ?3 AND scope = ?4",
            )?;
            rows.iter().try_for_each(|(key, seq, mask)| {
                let path = key.path.as_bytes();
                statement.execute(params![leg, key.root.0, path, key.scope, seq, mask.bits()]).map(drop)
            })
        })
    }

    /// Whatever was in the way of these, they are others since: they are due now.
    pub fn wake_changed(&mut self, leg: &str, paths: &[DeferredKey]) -> Result<(), DatabaseError> {
        self.write("wake deferred rows", |tx| {
            let mut statement = tx.prepare_cached(
                "UPDATE deferred SET not_before_ns = 0 WHERE leg = ?1 AND root = ?2 AND path = ?3 AND scope = ?4",
            )?;
            paths.iter().try_for_each(|key| {
                statement.execute(params![leg, key.root.0, key.path.as_bytes(), key.scope]).map(drop)
            })
        })
    }

    fn select_deferred(
        &self,
        sql: &str,
        args: impl rusqlite::Params,
    ) -> Result<Vec<Deferred>, DatabaseError> {
        let fail = self.fail("read deferred rows");
        let mut statement = self.conn.prepare_cached(sql).map_err(&fail)?;
        let rows = statement.query_map(args, read_deferred).map_err(&fail)?;
        rows.collect::<rusqlite::Result<_>>().map_err(&fail)
    }
}

/// What a leg could not do, within the bound of what it may owe.
pub(super) fn owe(tx: &Transaction<'_>, leg: &str, rows: &[NewDeferred]) -> rusqlite::Result<()> {
    rows.iter().try_for_each(|row| upsert(tx, leg, row))?;
    if rows.is_empty() { Ok(()) } else { bound_deferred(tx, leg, limits::DEFERRED_ROWS_MAX) }
}

/// In the place of what stands there.
pub(super) fn insert(tx: &Transaction<'_>, leg: &str, row: &NewDeferred) -> rusqlite::Result<()> {
    store(tx, leg, row, &format!("INSERT OR REPLACE {INTO}"))
}

pub(super) fn upsert(tx: &Transaction<'_>, leg: &str, row: &NewDeferred) -> rusqlite::Result<()> {
    let sql = format!(
        "INSERT {INTO} ON CONFLICT(leg, root, path, scope, handle) DO UPDATE SET
             seq = max(seq, excluded.seq), mask = mask | excluded.mask, since_ns = min(since_ns, excluded.since_ns),
             attempts = attempts + excluded.attempts, not_before_ns = excluded.not_before_ns,
             class = excluded.class, last_error = excluded.last_error"
    );
    store(tx, leg, row, &sql)
}

const INTO: &str =
    "INTO deferred(leg, root, path, handle, scope, seq, mask, since_ns, attempts, not_before_ns, class, last_error)
     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)";

/// A handle as a part of the key, which cannot be NULL.
pub(super) fn blob(handle: Option<&Handle>) -> Vec<u8> {
    handle.map_or_else(Vec::new, Handle::to_blob)
}

fn store(tx: &Transaction<'_>, leg: &str, row: &NewDeferred, sql: &str) -> rusqlite::Result<()> {
    let stored = tx.prepare_cached(sql)?.execute(params![
        leg,
        row.root.0,
        row.path.as_bytes(),
        blob(row.handle.as_ref()),
        row.scope,
        row.seq,
        row.mask.bits(),
        row.since_ns,
        row.attempts,
        row.not_before_ns,
        row.class,
        row.last_error
    ])?;
    assert_eq!(stored, 1, "an INSERT that stores nothing would forget what is owed");
    Ok(())
}

/// What [`read_deferred`] and [`owed_row`] take, in this order.
pub(super) const COLUMNS: &str =
    "root, path, handle, scope, seq, mask, since_ns, attempts, not_before_ns, class, last_error";

pub(super) fn owed_row(r: &rusqlite::Row<'_>) -> rusqlite::Result<NewDeferred> {
    let Deferred { key, seq, mask, since_ns, attempts, not_before_ns, class, last_error } = read_deferred(r)?;
    let DeferredKey { root, path, scope, handle } = key;
    Ok(NewDeferred {
        root,
        path,
        scope,
        handle,
        seq,
        mask,
        since_ns,
        attempts,
        not_before_ns,
        class,
        last_error,
    })
}

fn read_deferred(r: &rusqlite::Row<'_>) -> rusqlite::Result<Deferred> {
    let handle = Handle::from_blob(&r.get::<_, Vec<u8>>(2)?);
    Ok(Deferred {
        key: DeferredKey { root: RootId(r.get(0)?), path: read_path(r, 1)?, scope: r.get(3)?, handle },
        seq: r.get(4)?,
        mask: read_mask(r, 5)?,
        since_ns: r.get(6)?,
        attempts: r.get(7)?,
        not_before_ns: r.get(8)?,
        class: r.get(9)?,
        last_error: r.get(10)?,
    })
}
