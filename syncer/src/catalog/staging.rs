//! A full pass: the destination's listing in a table of its own, compared with the rows by SQL, so that memory stays
//! constant. Afterwards the rows say what the destination holds, and a rescan of the tree does the rest.

use rusqlite::params;
use shared::database::DatabaseError;
use shared::path::RelPath;

use super::rows::{NO_TIME, RowState, put};
use super::{Catalog, CatalogRoot, Key, Origin, Row};
use crate::leg::Listed;
use crate::tree::Stat;

/// What the comparison changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct Reconciled {
    pub listed: u64,
    /// Rows whose object is no longer there: their paths count as never sent.
    pub lost: u64,
    /// Objects the catalog did not know, or knew in another version.
    pub found: u64,
    /// Of these, somebody else's.
    pub foreign: u64,
}

impl Catalog {
    /// Begins a listing: an empty table, kept outside the database file. Returns the revision that marks the
    /// beginning: rows changed later are left to the next round.
    pub fn begin_staging(&mut self) -> Result<u64, DatabaseError> {
        let fail = self.fail("begin a listing");
        self.conn
            .execute_batch(
                "DROP TABLE IF EXISTS temp.staging;
                 CREATE TEMP TABLE staging(
                     key BLOB PRIMARY KEY, kind INTEGER, size INTEGER, mtime_ns INTEGER, sha1 BLOB,
                     object TEXT, ours INTEGER
                 ) WITHOUT ROWID;
                 DROP TABLE IF EXISTS temp.apart;
                 CREATE TEMP TABLE apart(object TEXT PRIMARY KEY) WITHOUT ROWID;",
            )
            .map_err(&fail)?;
        self.conn.query_row("SELECT revision FROM meta", [], |r| r.get(0)).map_err(&fail)
    }

    /// Takes a page: paths below the root, their objects, and which of them are ours.
    pub fn stage(&mut self, page: &[(RelPath, &Listed, bool)]) -> Result<(), DatabaseError> {
        self.write("store a listing", |tx| {
            let mut statement = tx.prepare_cached(
                "INSERT OR REPLACE INTO temp.staging(key, kind, size, mtime_ns, sha1, object, ours)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            )?;
            for (path, object, ours) in page {
                statement.execute(params![
                    Key::new(path, object.kind).0,
                    object.kind,
                    object.size,
                    object.mtime_ns,
                    object.sha1,
                    object.object,
                    ours
                ])?;
            }
            Ok(())
        })
    }

    /// Objects whose name does not say their path: the rows that know them are not lost.
    pub fn stage_apart<'a>(&mut self, objects: impl Iterator<Item = &'a str>) -> Result<(), DatabaseError> {
        self.write("store a listing", |tx| {
            let mut statement = tx.prepare_cached("INSERT OR IGNORE INTO temp.apart(object) VALUES (?1)")?;
            for object in objects {
                statement.execute([object])?;
            }
            Ok(())
        })
    }

    /// Compares and brings the rows in line with the listing, in one transaction. `catalog_decides`: the objects do
    /// not say who wrote them, so what stands at a name of ours is ours.
    pub fn reconcile(
        &mut self,
        root: CatalogRoot,
        begun_at: u64,
        catalog_decides: bool,
        now_ns: i64,
        run: u64,
    ) -> Result<Reconciled, DatabaseError> {
        self.write("compare with the listing", |tx| {
            let mut done = Reconciled {
                listed: tx.query_row("SELECT count(*) FROM temp.staging", [], |r| r.get(0))?,
                ..Reconciled::default()
            };
            done.lost = tx.execute(
                "DELETE FROM row WHERE root = ?1 AND object <> '' AND revision <= ?2
                 AND NOT EXISTS (SELECT 1 FROM temp.staging s WHERE s.key = row.key AND s.kind = row.kind)
                 AND NOT EXISTS (SELECT 1 FROM temp.apart a WHERE a.object = row.object)",
                params![root.0, begun_at],
            )? as u64;
            let mut revision: u64 = tx.query_row("SELECT revision FROM meta", [], |r| r.get(0))?;
            let mut news = tx.prepare(
                "SELECT s.key, s.kind, s.size, s.mtime_ns, s.sha1, s.object,
                     s.ours OR (?3 AND coalesce(row.origin IN (0, 1), 0))
                 FROM temp.staging s
                 LEFT JOIN row ON row.root = ?1 AND row.key = s.key
                 WHERE row.key IS NULL OR (row.object <> s.object AND row.revision <= ?2)
                 ORDER BY s.key",
            )?;
            let mut rows = news.query(params![root.0, begun_at, catalog_decides])?;
            while let Some(r) = rows.next()? {
                let ours: bool = r.get(6)?;
                let object = Listed {
                    dest: None,
                    name: String::new(),
                    object: r.get(5)?,
                    kind: r.get(1)?,
                    size: r.get(2)?,
                    mtime_ns: r.get(3)?,
                    sha1: r.get(4)?,
                    writer: None,
                };
                revision += 1;
                put(tx, root, &Key(r.get(0)?), &Row::listed(&object, ours, now_ns, run), revision)?;
                done.found += 1;
                done.foreign += u64::from(!ours);
            }
            tx.execute("UPDATE meta SET revision = ?1", [revision])?;
            Ok(done)
        })
    }
}

impl Row {
    /// A row that only says what a listing says: the local side is unknown.
    pub fn listed(object: &Listed, ours: bool, now_ns: i64, run: u64) -> Row {
        let stat = Stat {
            kind: object.kind,
            size: object.size,
            mtime_ns: object.mtime_ns.unwrap_or(NO_TIME),
            ctime_ns: 0,
            btime_ns: None,
            ino: 0,
            mode: 0,
            uid: 0,
            gid: 0,
            nlink: 1,
            rdev: 0,
        };
        Row {
            stat,
            handle: None,
            sha1: object.sha1,
            object: object.object.clone(),
            origin: if ours { Origin::ListedOurs } else { Origin::ListedForeign },
            settled: false,
            fuzzy: false,
            state: RowState::Present,
            state_since_ns: now_ns,
            state_run: run,
            revision: 0,
        }
    }

    /// The row while nobody knows whether its object still stands: it proves nothing of what is at the path, and what
    /// is gone there is removed as before.
    pub fn doubted(self) -> Row {
        let stat = Stat { mtime_ns: NO_TIME, ino: 0, ..self.stat };
        Row { stat, sha1: None, origin: Origin::ListedOurs, settled: false, ..self }
    }
}
