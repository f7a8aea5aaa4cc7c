//! Intents: names that may come into being or go, written before the first byte of a batch. What a dead run left is
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
                 ON CONFLICT(root, key) DO UPDATE SET handle = excluded.handle, run = excluded.run,
                     at_ns = excluded.at_ns",
            )?;
            for intent in intents {
                let handle = intent.handle.as_ref().map(Handle::to_blob);
                statement.execute(params![intent.root.0, intent.key.0, handle, run, now_ns])?;
            }
            Ok(())
        })
    }

    /// Requests that may have been sent whole without an answer: they may come true for a while, whatever is sent
    /// after them. One from the future is from now: the clock was ahead.
    pub fn keep_intents(&mut self, keys: &[(CatalogRoot, Key)], now_ns: i64) -> Result<(), DatabaseError> {
        self.write("keep intents", |tx| {
            let mut statement = tx.prepare_cached(
                "UPDATE intent SET unknown = 1, at_ns = min(at_ns, ?3) WHERE root = ?1 AND key = ?2",
            )?;
            for (root, key) in keys {
                statement.execute(params![root.0, key.0, now_ns])?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::Change;
    use crate::examine::made_row;
    use crate::tree::{Kind, Stat};

    fn stat() -> Stat {
        Stat {
            kind: Kind::File,
            size: 1,
            mtime_ns: 0,
            ctime_ns: 0,
            btime_ns: None,
            ino: 1,
            mode: 0o644,
            uid: 0,
            gid: 0,
            nlink: 3,
            rdev: 0,
        }
    }

    #[test]
    fn a_file_is_found_by_its_handle_while_its_upload_is_under_way_and_after() {
        let dir = tempfile::tempdir().unwrap();
        let mut catalog = Catalog::open(&dir.path().join("catalog.db")).unwrap();
        let (root, handle) = (CatalogRoot(1), Handle { kind: 1, bytes: vec![7] });
        let key = |name: &str| Key(name.as_bytes().to_vec());
        let row = made_row(&stat(), None, "o".into(), Some(handle.clone()), 0);
        let put = |name: &str| Change::Put { root, key: key(name), row: row.clone() };
        catalog.apply(&[put("there"), put("both")], &[]).unwrap();
        let intent = |name: &str| NewIntent { root, key: key(name), handle: Some(handle.clone()) };
        catalog.add_intents(&[intent("on its way"), intent("both")], 1, 0).unwrap();
        let names = |catalog: &Catalog| catalog.names_of_handle(root, &handle).unwrap();
        assert_eq!(names(&catalog), [key("both"), key("on its way"), key("there")]);
        assert_eq!(catalog.names_of_handle(CatalogRoot(2), &handle).unwrap(), []);
        catalog.apply(&[put("on its way")], &[(root, key("on its way"))]).unwrap();
        assert_eq!(names(&catalog), [key("both"), key("on its way"), key("there")]);
        let mut linked = Vec::new();
        catalog.each_linked(root, |of, key, links| linked.push((of, key, links))).unwrap();
        let each = |name: &str| (handle.clone(), key(name), 3);
        assert_eq!(linked, [each("both"), each("on its way"), each("there")], "intents are none yet");
    }

    #[test]
    fn an_intent_is_as_old_as_the_last_request_for_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let mut catalog = Catalog::open(&dir.path().join("catalog.db")).unwrap();
        let (root, key) = (CatalogRoot(1), Key(b"f".to_vec()));
        for at_ns in [10, 20] {
            catalog.add_intents(&[NewIntent { root, key: key.clone(), handle: None }], 1, at_ns).unwrap();
            catalog.keep_intents(&[(root, key.clone())], at_ns).unwrap();
        }
        let intents = catalog.intents(root).unwrap();
        assert_eq!(intents.iter().map(|intent| intent.at_ns).collect::<Vec<_>>(), [20]);
    }
}
