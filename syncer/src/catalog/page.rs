//! A page of rows as a walk needs them: what an equal stat is compared with, without what only a change asks for.

use rusqlite::params;
use shared::database::DatabaseError;

use super::rows::read_stat;
use super::{Catalog, CatalogRoot, Origin, RowState};
use crate::tree::Stat;

/// The part of a row that says whether a path is what it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known {
    pub stat: Stat,
    pub origin: Origin,
    pub settled: bool,
    pub state: RowState,
}

/// Rows in key order, their keys in one buffer.
#[derive(Debug, Default)]
pub struct RowPage {
    keys: Vec<u8>,
    rows: Vec<(usize, Known)>,
    next: usize,
}

impl RowPage {
    /// The next row's key and what is known of it.
    pub fn front(&self) -> Option<(&[u8], &Known)> {
        let (end, known) = self.rows.get(self.next)?;
        let begin = self.next.checked_sub(1).map_or(0, |before| self.rows[before].0);
        Some((&self.keys[begin..*end], known))
    }

    pub fn pop(&mut self) {
        self.next += 1;
    }

    /// Where the page after a full one begins.
    pub fn then(&self, limit: usize) -> Option<Vec<u8>> {
        let before = self.rows.len().checked_sub(2).map_or(0, |before| self.rows[before].0);
        (self.rows.len() == limit).then(|| [&self.keys[before..], &[0]].concat())
    }
}

pub(super) const KNOWN_COLUMNS: &str =
    "key, kind, size, mtime_ns, ctime_ns, btime_ns, ino, mode, uid, gid, nlink, rdev,
     origin, settled, state";

impl Catalog {
    /// Rows from `from` on (included), up to `end` (left out), at most `limit`, in the place of those in `page`.
    pub fn read_page(
        &self,
        root: CatalogRoot,
        from: &[u8],
        end: Option<&[u8]>,
        limit: usize,
        page: &mut RowPage,
    ) -> Result<(), DatabaseError> {
        // Two texts: SQLite bounds a range only by what cannot be NULL.
        let up_to = if end.is_some() { "AND key < ?3" } else { "AND ?3 IS NULL" };
        let sql = format!(
            "SELECT {KNOWN_COLUMNS} FROM row WHERE root = ?1 AND key >= ?2 {up_to} ORDER BY key LIMIT ?4"
        );
        self.select_page(&sql, params![root.0, from, end, limit], page)
    }

    /// The rows of a query for `KNOWN_COLUMNS`, in the place of those in `page`.
    pub(super) fn select_page(
        &self,
        sql: &str,
        args: impl rusqlite::Params,
        page: &mut RowPage,
    ) -> Result<(), DatabaseError> {
        let fail = self.fail("read rows");
        page.keys.clear();
        page.rows.clear();
        page.next = 0;
        let mut statement = self.conn.prepare_cached(sql).map_err(&fail)?;
        let mut rows = statement.query(args).map_err(&fail)?;
        while let Some(r) = rows.next().map_err(&fail)? {
            read_known(r, page).map_err(&fail)?;
        }
        Ok(())
    }
}

fn read_known(r: &rusqlite::Row<'_>, page: &mut RowPage) -> rusqlite::Result<()> {
    page.keys.extend_from_slice(r.get_ref(0)?.as_blob()?);
    let stat = read_stat(r)?;
    page.rows
        .push((page.keys.len(), Known { stat, origin: r.get(12)?, settled: r.get(13)?, state: r.get(14)? }));
    Ok(())
}
