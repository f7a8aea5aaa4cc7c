//! Intents: names that may come into being, written before the first byte of a batch. What a dead run left is
//! settled by asking the destination, so that no object is ever unknown.

use rusqlite::params;
use shared::database::DatabaseError;
use shared::entry::Handle;

use super::{Catalog, CatalogRoot, Key};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewIntent {
    pub root: CatalogRoot,
    pub key: Key,
    pub handle: Option<Handle>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Intent {
    pub root: CatalogRoot,
    pub key: Key,
    pub run: u64,
    pub at_ns: i64,
}

impl Catalog {
    /// One transaction, before the batch's first request.
    pub fn add_intents(&mut self, intents: &[NewIntent], run: u64, now_ns: i64) -> Result<(), DatabaseError> {
        self.write("store intents", |tx| {
            let mut statement = tx.prepare_cached(
                "INSERT INTO intent(root, key, handle, run, at_ns, unknown) VALUES (?1, ?2, ?3, ?4, ?5, 0)
                 ON CONFLICT(root, key) DO UPDATE SET handle = excluded.handle, run = excluded.run",
            )?;
            for intent in intents {
                let handle = intent.handle.as_ref().map(Handle::to_blob);
                statement.execute(params![intent.root.0, intent.key.0, handle, run, now_ns])?;
            }
            Ok(())
        })
    }

    /// Requests that may have been sent whole without an answer: they may come true for a while, whatever is sent
    /// after them.
    pub fn keep_intents(&mut self, keys: &[(CatalogRoot, Key)]) -> Result<(), DatabaseError> {
        self.write("keep intents", |tx| {
            let mut statement =
                tx.prepare_cached("UPDATE intent SET unknown = 1 WHERE root = ?1 AND key = ?2")?;
            for (root, key) in keys {
                statement.execute(params![root.0, key.0])?;
            }
            Ok(())
        })
    }

    /// Drops intents whose question is answered for good.
    pub fn drop_intents(&mut self, keys: &[(CatalogRoot, Key)]) -> Result<(), DatabaseError> {
        self.write("drop intents", |tx| {
            let mut statement = tx.prepare_cached("DELETE FROM intent WHERE root = ?1 AND key = ?2")?;
            for (root, key) in keys {
                statement.execute(params![root.0, key.0])?;
            }
            Ok(())
        })
    }

    /// What is left of dead runs and of requests that got no answer.
    pub fn intents(&self, root: CatalogRoot) -> Result<Vec<Intent>, DatabaseError> {
        let fail = self.fail("read intents");
        let sql = "SELECT key, run, at_ns FROM intent WHERE root = ?1 ORDER BY key";
        let mut statement = self.conn.prepare_cached(sql).map_err(&fail)?;
        let read = |r: &rusqlite::Row<'_>| {
            Ok(Intent { root, key: Key(r.get(0)?), run: r.get(1)?, at_ns: r.get(2)? })
        };
        let rows = statement.query_map([root.0], read).map_err(&fail)?;
        rows.collect::<rusqlite::Result<_>>().map_err(&fail)
    }
}
