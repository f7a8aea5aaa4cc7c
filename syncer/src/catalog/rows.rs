//! Rows: one per path, read by key or as a sorted range, changed in one transaction per batch.

use rusqlite::{OptionalExtension as _, Transaction, params};
use shared::database::DatabaseError;
use shared::entry::{Handle, stored_enum};
use shared::path::RelPath;

use super::{Catalog, CatalogRoot, Known};
use crate::leg::Sha1;
use crate::tree::{Kind, Stat};

stored_enum! {
    /// Where a row's knowledge comes from.
    Origin {
        /// We made the object from the local state in the row.
        Made = 0 => "made",
        /// A listing named it, and it is ours: only size, time and hash are known.
        ListedOurs = 1 => "listed-ours",
        /// A listing named it, and it is somebody else's.
        ListedForeign = 2 => "listed-foreign",
    }
}

stored_enum! {
    RowState {
        Present = 0 => "present",
        /// Witnessed gone; the object stands until the guard releases it.
        Absent = 1 => "absent",
        /// The local file differs from an object that may not be replaced.
        Held = 2 => "held",
    }
}

/// The time of a row that no file has.
pub const NO_TIME: i64 = i64::MIN;

/// The sort key of a path: a directory's ends in `/`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(pub Vec<u8>);

impl Key {
    pub fn new(path: &RelPath, kind: Kind) -> Key {
        Key(if kind.is_dir() { path.dir_key() } else { path.as_bytes().to_vec() })
    }

    pub fn path(&self) -> RelPath {
        let bytes = self.0.strip_suffix(b"/").unwrap_or(&self.0);
        RelPath::parse(bytes).expect("only keys made of paths are stored")
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    pub stat: Stat,
    pub handle: Option<Handle>,
    pub sha1: Option<Sha1>,
    /// Empty: the leg holds no object for this kind.
    pub object: String,
    pub origin: Origin,
    /// The content was read, or adopted, while its times were old enough for an equal stat to prove sameness.
    pub settled: bool,
    /// The content is a mixture: it kept changing while it was read. Or it is of a moment that nobody wrote down.
    pub fuzzy: bool,
    pub state: RowState,
    pub state_since_ns: i64,
    pub state_run: u64,
    pub revision: u64,
}

impl Row {
    pub fn known(&self) -> Known {
        Known { stat: self.stat, origin: self.origin, settled: self.settled, state: self.state }
    }

    pub fn has_object(&self) -> bool {
        !self.object.is_empty()
    }

    /// Whether it was made from this file. An inode number alone may be another one's by now: it counts where a handle is
    /// not known.
    pub fn is_of(&self, stat: &Stat, handle: Option<&Handle>) -> bool {
        match (&self.handle, handle) {
            (Some(own), Some(handle)) => own == handle,
            _ => self.stat.ino == stat.ino,
        }
    }
}

/// One change of a batch.
#[derive(Debug, Clone)]
pub enum Change {
    /// The row as it is now. Its `revision` is given by the catalog.
    Put {
        root: CatalogRoot,
        key: Key,
        row: Row,
    },
    Remove {
        root: CatalogRoot,
        key: Key,
    },
    State {
        root: CatalogRoot,
        key: Key,
        state: RowState,
        now_ns: i64,
        run: u64,
    },
    /// What attributes the object has is not known: no stat that is seen equals the row's.
    DoubtAttributes {
        root: CatalogRoot,
        key: Key,
    },
    /// So much was deleted; `approved` if the owner said so for this run.
    Released {
        at_ns: i64,
        run: u64,
        count: u64,
        bytes: u64,
        approved: bool,
    },
}

/// Sums over the rows of a root; objects of others do not count, unless they hold a file of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct Totals {
    pub rows: u64,
    pub objects: u64,
    /// Regular files among them.
    pub files: u64,
    pub bytes: u64,
    pub absent: u64,
    pub absent_files: u64,
    pub absent_bytes: u64,
    pub held: u64,
    /// Rows that the leg cannot hold as objects, directories left out.
    pub unheld: u64,
}

const COLUMNS: &str =
    "key, kind, size, mtime_ns, ctime_ns, btime_ns, ino, mode, uid, gid, nlink, rdev, handle, sha1,
     object, origin, settled, fuzzy, state, state_since_ns, state_run, revision";

impl Catalog {
    pub fn get(&self, root: CatalogRoot, key: &Key) -> Result<Option<Row>, DatabaseError> {
        let fail = self.fail("read a row");
        let sql = format!("SELECT {COLUMNS} FROM row WHERE root = ?1 AND key = ?2");
        let mut statement = self.conn.prepare_cached(&sql).map_err(&fail)?;
        statement
            .query_row(params![root.0, key.0], read_row)
            .optional()
            .map(|r| r.map(|(_, row)| row))
            .map_err(&fail)
    }

    /// Rows from `from` on (included), up to `end` (left out), in key order, at most `limit`.
    pub fn range(
        &self,
        root: CatalogRoot,
        from: &[u8],
        end: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<(Key, Row)>, DatabaseError> {
        // Two texts: SQLite bounds a range only by what cannot be NULL.
        let up_to = if end.is_some() { "AND key < ?3" } else { "AND ?3 IS NULL" };
        let sql =
            format!("SELECT {COLUMNS} FROM row WHERE root = ?1 AND key >= ?2 {up_to} ORDER BY key LIMIT ?4");
        self.select(&sql, params![root.0, from, end, limit])
    }

    /// Absent rows below a key (all, for `None`), in falling key order: what a directory holds before the directory.
    pub fn absent_before(
        &self,
        root: CatalogRoot,
        before: Option<&Key>,
        limit: usize,
    ) -> Result<Vec<(Key, Row)>, DatabaseError> {
        let below = if before.is_some() { "AND key < ?2" } else { "AND ?2 IS NULL" };
        // The literal lets SQLite see that the partial index serves.
        let sql = format!(
            "SELECT {COLUMNS} FROM row WHERE root = ?1 AND state = 1 {below} ORDER BY key DESC LIMIT ?3"
        );
        self.select(&sql, params![root.0, before.map(|k| &k.0), limit])
    }

    fn select(&self, sql: &str, args: impl rusqlite::Params) -> Result<Vec<(Key, Row)>, DatabaseError> {
        let fail = self.fail("read rows");
        let mut statement = self.conn.prepare_cached(sql).map_err(&fail)?;
        let rows = statement.query_map(args, read_row).map_err(&fail)?;
        rows.collect::<rusqlite::Result<_>>().map_err(&fail)
    }

    /// The catalogued names of a file handle.
    pub fn names_of_handle(&self, root: CatalogRoot, handle: &Handle) -> Result<Vec<Key>, DatabaseError> {
        let fail = self.fail("read the names of a handle");
        let sql = "SELECT key FROM row WHERE root = ?1 AND handle = ?2
             UNION SELECT key FROM intent WHERE root = ?1 AND handle = ?2 ORDER BY 1";
        let mut statement = self.conn.prepare_cached(sql).map_err(&fail)?;
        let rows =
            statement.query_map(params![root.0, handle.to_blob()], |r| Ok(Key(r.get(0)?))).map_err(&fail)?;
        rows.collect::<rusqlite::Result<_>>().map_err(&fail)
    }

    /// The rows of a file handle, with their keys.
    pub fn rows_of_handle(
        &self,
        root: CatalogRoot,
        handle: &Handle,
    ) -> Result<Vec<(Key, Row)>, DatabaseError> {
        let sql = format!("SELECT {COLUMNS} FROM row WHERE root = ?1 AND handle = ?2 ORDER BY key");
        self.select(&sql, params![root.0, handle.to_blob()])
    }

    /// Every name of a file that had more than one when it was looked at, by handle: (handle, key, link count).
    pub fn each_linked(
        &self,
        root: CatalogRoot,
        mut each: impl FnMut(Handle, Key, u64),
    ) -> Result<(), DatabaseError> {
        let fail = self.fail("read linked files");
        let sql = "SELECT handle, key, nlink FROM row INDEXED BY row_linked
            WHERE root = ?1 AND handle IS NOT NULL AND nlink > 1 AND kind <> 1 AND state <> 1 ORDER BY handle";
        let mut statement = self.conn.prepare_cached(sql).map_err(&fail)?;
        let mut rows = statement.query(params![root.0]).map_err(&fail)?;
        while let Some(row) = rows.next().map_err(&fail)? {
            let blob: Vec<u8> = row.get(0).map_err(&fail)?;
            let (key, links) = (Key(row.get(1).map_err(&fail)?), row.get(2).map_err(&fail)?);
            if let Some(handle) = Handle::from_blob(&blob) {
                each(handle, key, links);
            }
        }
        Ok(())
    }

    /// An object that stands where one of this kind at this path cannot be made: a non-directory at an ancestor's
    /// name, a directory or what is below one at the name itself, or the other way round.
    pub fn in_the_way(
        &self,
        root: CatalogRoot,
        path: &RelPath,
        kind: Kind,
    ) -> Result<Option<(Key, Origin)>, DatabaseError> {
        if path.is_root() {
            return Ok(None);
        }
        let mut ancestor = path.parent();
        while let Some(dir) = ancestor.filter(|d| !d.is_root()) {
            if let Some(found) = self.first_object(root, dir.as_bytes(), None)? {
                return Ok(Some(found));
            }
            ancestor = dir.parent();
        }
        match (kind.is_dir(), path.dir_key_end()) {
            (false, Some(end)) => self.first_object(root, &path.dir_key(), Some(&end)),
            _ => self.first_object(root, path.as_bytes(), None),
        }
    }

    /// The object at a key, or the first one from it up to `end`.
    fn first_object(
        &self,
        root: CatalogRoot,
        from: &[u8],
        end: Option<&[u8]>,
    ) -> Result<Option<(Key, Origin)>, DatabaseError> {
        let fail = self.fail("look for an object");
        let which = if end.is_some() { "key >= ?2 AND key < ?3" } else { "key = ?2 AND ?3 IS NULL" };
        let sql = format!("SELECT key, origin FROM row WHERE root = ?1 AND {which} AND object <> '' LIMIT 1");
        let mut statement = self.conn.prepare_cached(&sql).map_err(&fail)?;
        let found = statement.query_row(params![root.0, from, end], |r| Ok((Key(r.get(0)?), r.get(1)?)));
        found.optional().map_err(&fail)
    }

    /// All changes of a batch, the intents they fulfil, and the revision they raise, in one transaction. An intent of
    /// an unknown outcome stays.
    pub fn apply(
        &mut self,
        changes: &[Change],
        fulfilled: &[(CatalogRoot, Key)],
    ) -> Result<(), DatabaseError> {
        self.write("store a batch", |tx| {
            let mut revision: u64 = tx.query_row("SELECT revision FROM meta", [], |r| r.get(0))?;
            for change in changes {
                revision += 1;
                apply_one(tx, change, revision)?;
            }
            let mut done =
                tx.prepare_cached("DELETE FROM intent WHERE root = ?1 AND key = ?2 AND unknown = 0")?;
            for (root, key) in fulfilled {
                done.execute(params![root.0, key.0])?;
            }
            tx.execute("UPDATE meta SET revision = ?1", [revision])?;
            Ok(())
        })
    }

    /// Over all roots.
    pub fn all_totals(&self) -> Result<Totals, DatabaseError> {
        self.sum("1 = 1", 0)
    }

    pub fn totals(&self, root: CatalogRoot) -> Result<Totals, DatabaseError> {
        self.sum("root = ?1", root.0)
    }

    fn sum(&self, which: &str, root: i64) -> Result<Totals, DatabaseError> {
        let sql = format!(
            "SELECT count(*), coalesce(sum(object <> ''), 0), coalesce(sum(object <> '' AND kind = 0), 0),
                coalesce(sum(iif(object <> '' AND kind = 0, size, 0)), 0), coalesce(sum(state = 1 AND object <> ''), 0),
                coalesce(sum(state = 1 AND object <> '' AND kind = 0), 0),
                coalesce(sum(iif(state = 1 AND object <> '' AND kind = 0, size, 0)), 0),
                coalesce(sum(state = 2), 0), coalesce(sum(object = '' AND kind <> 1), 0)
             FROM row WHERE {which} AND ?1 = ?1 AND (origin <> 2 OR state = 2)"
        );
        let read = |r: &rusqlite::Row<'_>| {
            Ok(Totals {
                rows: r.get(0)?,
                objects: r.get(1)?,
                files: r.get(2)?,
                bytes: r.get(3)?,
                absent: r.get(4)?,
                absent_files: r.get(5)?,
                absent_bytes: r.get(6)?,
                held: r.get(7)?,
                unheld: r.get(8)?,
            })
        };
        self.conn.query_row(&sql, [root], read).map_err(self.fail("count rows"))
    }

    /// True if no row waits for the guard: asked by every run, so it must not count all rows.
    pub fn nothing_absent(&self) -> Result<bool, DatabaseError> {
        let absent: bool = self
            .conn
            .query_row("SELECT EXISTS(SELECT 1 FROM row WHERE state = 1)", [], |r| r.get(0))
            .map_err(self.fail("look for absent rows"))?;
        Ok(!absent)
    }

    /// Objects of others that no file of ours is held by.
    pub fn foreign_count(&self, root: CatalogRoot) -> Result<u64, DatabaseError> {
        self.conn
            .query_row(
                "SELECT count(*) FROM row WHERE root = ?1 AND origin = 2 AND state <> 2",
                [root.0],
                |r| r.get(0),
            )
            .map_err(self.fail("count foreign objects"))
    }

    pub fn held_count(&self) -> Result<u64, DatabaseError> {
        self.conn
            .query_row("SELECT count(*) FROM row WHERE state = 2", [], |r| r.get(0))
            .map_err(self.fail("count held rows"))
    }

    /// What was released without approval since a time: (count, bytes). A release stamped in the future counts.
    pub fn released_since(&self, since_ns: i64) -> Result<(u64, u64), DatabaseError> {
        let sql = "SELECT coalesce(sum(count), 0), coalesce(sum(bytes), 0) FROM release WHERE approved = 0 AND at_ns >= ?1";
        self.conn
            .query_row(sql, [since_ns], |r| Ok((r.get(0)?, r.get(1)?)))
            .map_err(self.fail("read the releases"))
    }
}

fn apply_one(tx: &Transaction<'_>, change: &Change, revision: u64) -> rusqlite::Result<()> {
    match change {
        Change::Put { root, key, row } => put(tx, *root, key, row, revision),
        Change::Remove { root, key } => {
            tx.prepare_cached("DELETE FROM row WHERE root = ?1 AND key = ?2")?
                .execute(params![root.0, key.0])?;
            Ok(())
        }
        Change::DoubtAttributes { root, key } => {
            let sql = "UPDATE row SET mtime_ns = ?3, revision = ?4 WHERE root = ?1 AND key = ?2";
            tx.prepare_cached(sql)?.execute(params![root.0, key.0, NO_TIME, revision])?;
            Ok(())
        }
        Change::Released { at_ns, run, count, bytes, approved } => {
            tx.execute(
                "INSERT INTO release(at_ns, run, count, bytes, approved) VALUES (?1, ?2, ?3, ?4, ?5)",
                params![at_ns, run, count, bytes, approved],
            )?;
            // What no window reaches any more.
            tx.execute("DELETE FROM release WHERE at_ns < ?1", [at_ns - 31 * 24 * 3600 * 1_000_000_000])?;
            Ok(())
        }
        Change::State { root, key, state, now_ns, run } => {
            tx.prepare_cached(
                "UPDATE row SET state = ?3, state_since_ns = ?4, state_run = ?5, revision = ?6
                 WHERE root = ?1 AND key = ?2",
            )?
            .execute(params![root.0, key.0, state, now_ns, run, revision])?;
            Ok(())
        }
    }
}

pub(super) fn put(
    tx: &Transaction<'_>,
    root: CatalogRoot,
    key: &Key,
    row: &Row,
    revision: u64,
) -> rusqlite::Result<()> {
    let s = &row.stat;
    tx.prepare_cached(
        "INSERT OR REPLACE INTO row(root, key, kind, size, mtime_ns, ctime_ns, btime_ns, ino, mode, uid, gid, nlink,
             rdev, handle, sha1, object, origin, settled, fuzzy, state, state_since_ns, state_run, revision)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20, ?21, ?22, ?23)",
    )?
    .execute(params![
        root.0,
        key.0,
        s.kind,
        s.size,
        s.mtime_ns,
        s.ctime_ns,
        s.btime_ns,
        s.ino as i64, // inode numbers use all 64 bits on some filesystems; only equality matters
        s.mode,
        s.uid,
        s.gid,
        s.nlink,
        s.rdev as i64,
        row.handle.as_ref().map(Handle::to_blob),
        row.sha1,
        row.object,
        row.origin,
        row.settled,
        row.fuzzy,
        row.state,
        row.state_since_ns,
        row.state_run,
        revision,
    ])?;
    Ok(())
}

/// The columns from the second on, which all queries for rows begin with behind the key.
pub(super) fn read_stat(r: &rusqlite::Row<'_>) -> rusqlite::Result<Stat> {
    Ok(Stat {
        kind: r.get(1)?,
        size: r.get(2)?,
        mtime_ns: r.get(3)?,
        ctime_ns: r.get(4)?,
        btime_ns: r.get(5)?,
        ino: r.get::<_, i64>(6)? as u64,
        mode: r.get(7)?,
        uid: r.get(8)?,
        gid: r.get(9)?,
        nlink: r.get(10)?,
        rdev: r.get::<_, i64>(11)? as u64,
    })
}

fn read_row(r: &rusqlite::Row<'_>) -> rusqlite::Result<(Key, Row)> {
    let stat = read_stat(r)?;
    let handle: Option<Vec<u8>> = r.get(12)?;
    let row = Row {
        stat,
        handle: handle.and_then(|h| Handle::from_blob(&h)),
        sha1: r.get(13)?,
        object: r.get(14)?,
        origin: r.get(15)?,
        settled: r.get(16)?,
        fuzzy: r.get(17)?,
        state: r.get(18)?,
        state_since_ns: r.get(19)?,
        state_run: r.get(20)?,
        revision: r.get(21)?,
    };
    Ok((Key(r.get(0)?), row))
}
