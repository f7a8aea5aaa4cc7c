//! How much waits, for people: one pass over the entries answers for every leg at once, so that all figures are of
//! the same moment.

use std::collections::BTreeMap;

use rusqlite::params;

use super::{Journal, RootId};
use crate::database::DatabaseError;
use crate::entry::Cause;

/// The entries above one cursor, by root and cause.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Waiting {
    sums: BTreeMap<(RootId, Cause), (u64, i64)>,
}

/// Entries of one root and cause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WaitingSum {
    pub root: RootId,
    pub cause: Cause,
    pub count: u64,
    pub oldest_ns: i64,
}

impl Waiting {
    pub fn sums(&self) -> impl Iterator<Item = WaitingSum> {
        let sum = |(&(root, cause), &(count, oldest_ns))| WaitingSum { root, cause, count, oldest_ns };
        self.sums.iter().map(sum)
    }

    fn add(&mut self, root: RootId, cause: Cause, at_ns: i64) {
        let (count, oldest) = self.sums.entry((root, cause)).or_insert((0, at_ns));
        *count += 1;
        *oldest = at_ns.min(*oldest);
    }
}

impl Journal {
    /// What lies above each of these cursors.
    pub fn waiting(&self, cursors: &[u64]) -> Result<Vec<Waiting>, DatabaseError> {
        let fail = self.fail("count what waits");
        let lowest = cursors.iter().min().copied().unwrap_or(0);
        let sql = "SELECT seq, root, cause, at_ns FROM entry WHERE seq > ?1";
        let mut statement = self.conn.prepare_cached(sql).map_err(&fail)?;
        let mut rows = statement.query(params![lowest]).map_err(&fail)?;
        let mut all = vec![Waiting::default(); cursors.len()];
        while let Some(r) = rows.next().map_err(&fail)? {
            let read = || Ok((r.get::<_, u64>(0)?, RootId(r.get(1)?), r.get(2)?, r.get(3)?));
            let (seq, root, cause, at_ns) = read().map_err(&fail)?;
            for (waiting, _) in all.iter_mut().zip(cursors).filter(|(_, cursor)| seq > **cursor) {
                waiting.add(root, cause, at_ns);
            }
        }
        Ok(all)
    }
}
