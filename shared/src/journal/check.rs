//! Whether a journal is whole: by SQLite's word, and by what its tables say of one another.

use rusqlite::{Connection, Transaction};

use super::leg::Leg;
use super::{Journal, deferred, read_entry};
use crate::database::DatabaseError;

/// Of each kind of problem so many are named.
const NAMED_MAX: usize = 20;

impl Journal {
    /// What is wrong with it, in words; nothing if it is whole. The schema was compared when it was opened.
    pub fn problems(&mut self) -> Result<Vec<String>, DatabaseError> {
        let found = self.conn.transaction().and_then(|tx| {
            let mut found = by_sqlite(&tx)?;
            // Damaged pages cannot be asked further.
            if found.is_empty() {
                found.extend(among_numbers(&tx)?);
                found.extend(in_rows(&tx)?);
            }
            Ok(found)
        });
        found.map_err(self.fail("check"))
    }

    /// Gives back to the disk what it does not use any more; (bytes before, bytes after) with its log.
    pub fn vacuum(&mut self) -> Result<(u64, u64), DatabaseError> {
        let before = self.bytes();
        self.conn.execute_batch("VACUUM").map_err(self.fail("vacuum"))?;
        // Somebody who reads just now keeps the log; it is emptied later, by itself.
        let folded = self.conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |r| r.get::<_, bool>(0));
        folded.map_err(self.fail("fold the log"))?;
        Ok((before, self.bytes()))
    }

    /// Puts its log into the file, so that the next transactions need no room of their own. By itself SQLite does that
    /// every 1,000 pages, which are as much as the reserve.
    pub fn fold(&self) -> Result<(), DatabaseError> {
        // Somebody who reads just now keeps what he reads: the rest of it is for the next time.
        let folded = self.conn.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |r| r.get::<_, bool>(0));
        folded.map(drop).map_err(self.fail("fold the log"))
    }

    fn bytes(&self) -> u64 {
        let mut log = self.path.clone().into_os_string();
        log.push("-wal");
        let size = |path: &std::path::Path| std::fs::metadata(path).map_or(0, |m| m.len());
        size(&self.path) + size(log.as_ref())
    }
}

fn by_sqlite(conn: &Connection) -> rusqlite::Result<Vec<String>> {
    let mut statement = conn.prepare(&format!("PRAGMA integrity_check({NAMED_MAX})"))?;
    let said = statement.query_map([], |r| r.get(0))?.collect::<rusqlite::Result<Vec<String>>>()?;
    Ok(said.into_iter().filter(|line| line != "ok").collect())
}

fn among_numbers(tx: &Transaction<'_>) -> rusqlite::Result<Vec<String>> {
    let mut found = Vec::new();
    let mut claim = |holds: bool, what: String| {
        if !holds {
            found.push(what);
        }
    };
    let ids: u64 = tx.query_row("SELECT count(*) FROM meta", [], |r| r.get(0))?;
    if ids != 1 {
        return Ok(vec![format!("it has {ids} names, not one")]);
    }
    let (head, floor): (u64, u64) =
        tx.query_row("SELECT head, floor FROM meta", [], |r| Ok((r.get(0)?, r.get(1)?)))?;
    claim(floor <= head, format!("entries were pruned up to {floor}, beyond the head {head}"));
    let (oldest, newest): (Option<i64>, Option<i64>) =
        tx.query_row("SELECT min(seq), max(seq) FROM entry", [], |r| Ok((r.get(0)?, r.get(1)?)))?;
    let within =
        |seq: Option<i64>| seq.is_none_or(|n| u64::try_from(n).is_ok_and(|n| n > floor && n <= head));
    claim(
        within(oldest) && within(newest),
        format!("entries reach from {oldest:?} to {newest:?}, outside of {floor} to {head}"),
    );
    for leg in Leg::all(tx)? {
        let Leg { name, claimed, acked, collapsed_to, .. } = &leg;
        let holds = *claimed <= head && leg.cursor() <= *claimed;
        claim(
            holds,
            format!(
                "the leg {name} claimed {claimed}, acked {acked}, collapsed to {collapsed_to}, and the head is {head}"
            ),
        );
    }
    let ahead: u64 = tx.query_row("SELECT count(*) FROM deferred WHERE seq > ?1", [head], |r| r.get(0))?;
    claim(ahead == 0, format!("{ahead} owed rows are newer than the head {head}"));
    Ok(found)
}

/// Every row can be read, and its root is known.
fn in_rows(tx: &Transaction<'_>) -> rusqlite::Result<Vec<String>> {
    let roots: Vec<i64> =
        tx.prepare("SELECT id FROM root")?.query_map([], |r| r.get(0))?.collect::<rusqlite::Result<_>>()?;
    let mut found = Vec::new();
    let mut statement =
        tx.prepare("SELECT seq, root, path, handle, scope, cause, mask, at_ns FROM entry ORDER BY seq")?;
    let mut rows = statement.query([])?;
    while let Some(r) = rows.next()?.filter(|_| found.len() < NAMED_MAX) {
        match read_entry(r) {
            Ok(entry) if roots.contains(&entry.root.0) => {}
            Ok(entry) => found.push(format!("entry {} is of an unknown root {}", entry.seq, entry.root.0)),
            Err(e) => found.push(format!("entry {:?} cannot be read: {e}", r.get::<_, i64>(0))),
        }
    }
    let mut statement = tx.prepare(&format!("SELECT {}, leg FROM deferred", deferred::COLUMNS))?;
    let mut rows = statement.query([])?;
    while let Some(r) = rows.next()?.filter(|_| found.len() < 2 * NAMED_MAX) {
        match deferred::owed_row(r) {
            Ok(row) if roots.contains(&row.root.0) => {}
            Ok(row) => found.push(format!("an owed row is of an unknown root {}", row.root.0)),
            Err(e) => {
                found.push(format!("an owed row of the leg {:?} cannot be read: {e}", r.get::<_, String>(11)))
            }
        }
    }
    Ok(found)
}
