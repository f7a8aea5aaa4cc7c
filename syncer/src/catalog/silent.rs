//! Files that may change without an event: those that did once, and big ones. Native AIO, stores through a
//! live mapping and loop devices write so, and what they write to is mostly big.

use rusqlite::params;
use shared::database::DatabaseError;
use shared::limits;

use super::page::KNOWN_COLUMNS;
use super::{Catalog, CatalogRoot, Key, RowPage};
use crate::tree::Stat;

impl Catalog {
    /// Files that are to be looked at without being named, with what they were: those that changed without an event
    /// before, then big ones, newest first; at most `limit` in all. No age is too old: a disk image that was quiet for
    /// months has the times of then until somebody looks.
    pub fn silent_files(&self, root: CatalogRoot, limit: usize) -> Result<Vec<(Key, Stat)>, DatabaseError> {
        let listed = format!(
            "SELECT {KNOWN_COLUMNS} FROM silent CROSS JOIN row USING (root, key)
             WHERE silent.root = ?1 AND kind = 0 AND origin = 0 AND state = 0
             ORDER BY found_ns DESC LIMIT ?2"
        );
        // The literals let SQLite see that the partial index serves.
        let big = format!(
            "SELECT {KNOWN_COLUMNS} FROM row WHERE root = ?1 AND kind = 0 AND size >= {}
               AND origin = 0 AND state = 0
             ORDER BY mtime_ns DESC LIMIT ?2",
            limits::SILENT_FILE_BYTES
        );
        let mut out: Vec<(Key, Stat)> = Vec::new();
        let mut page = RowPage::default();
        for sql in [listed, big] {
            self.select_page(&sql, params![root.0, limit], &mut page)?;
            while let Some((key, known)) = page.front() {
                out.push((Key(key.to_vec()), known.stat));
                page.pop();
            }
        }
        out.truncate(limit);
        // One on both lists is looked at once; the order of keys is that of directories.
        out.sort_by(|a, b| a.0.cmp(&b.0));
        out.dedup_by(|a, b| a.0 == b.0);
        Ok(out)
    }

    /// Puts files on the list of those that change without an event; the oldest go when there are too many.
    pub fn add_silent(&mut self, found: &[(CatalogRoot, Key)], now_ns: i64) -> Result<(), DatabaseError> {
        self.write("remember what changed without an event", |tx| {
            let mut insert =
                tx.prepare_cached("INSERT OR REPLACE INTO silent(root, key, found_ns) VALUES (?1, ?2, ?3)")?;
            for (root, key) in found {
                insert.execute(params![root.0, key.0, now_ns])?;
            }
            tx.execute(
                "DELETE FROM silent WHERE (root, key) IN
                     (SELECT root, key FROM silent ORDER BY found_ns DESC LIMIT -1 OFFSET ?1)",
                [limits::SILENT_PATHS_MAX],
            )?;
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::{Change, RowState};
    use crate::examine::made_row;
    use crate::tree::Kind;
    use shared::identity::Identity;
    use shared::path::RelPath;

    const BIG: u64 = limits::SILENT_FILE_BYTES;

    fn catalog() -> (tempfile::TempDir, Catalog, CatalogRoot) {
        let dir = tempfile::tempdir().unwrap();
        let mut catalog = Catalog::open(&dir.path().join("c.db")).unwrap();
        let identity = Identity { fs: "x".into(), uuid: None, subvolume: None, inode: 1, btime_ns: None };
        let root = catalog.put_root("r", &RelPath::root(), &identity).unwrap();
        (dir, catalog, root)
    }

    fn put(catalog: &mut Catalog, root: CatalogRoot, key: &str, kind: Kind, size: u64, mtime_ns: i64) {
        let stat = Stat {
            kind,
            size,
            mtime_ns,
            ctime_ns: mtime_ns,
            btime_ns: None,
            ino: 7,
            mode: 0,
            uid: 0,
            gid: 0,
            nlink: 1,
            rdev: 0,
        };
        let row = made_row(&stat, None, "o".into(), None, 0);
        catalog.apply(&[Change::Put { root, key: Key(key.into()), row }], &[]).unwrap();
    }

    fn files(catalog: &Catalog, root: CatalogRoot, limit: usize) -> Vec<String> {
        let files = catalog.silent_files(root, limit).unwrap();
        files.into_iter().map(|(key, _)| String::from_utf8(key.0).unwrap()).collect()
    }

    #[test]
    fn big_files_and_those_once_found_are_looked_at() {
        let (_dir, mut catalog, root) = catalog();
        for (key, kind, size, mtime) in [
            ("old", Kind::File, BIG, 99),
            ("new", Kind::File, BIG, 200),
            ("newest", Kind::File, BIG + 5, 300),
            ("small", Kind::File, BIG - 1, 300),
            ("known", Kind::File, 10, 5),
            ("link", Kind::Symlink, BIG, 300),
            ("gone", Kind::File, BIG, 300),
        ] {
            put(&mut catalog, root, key, kind, size, mtime);
        }
        let gone =
            Change::State { root, key: Key(b"gone".to_vec()), state: RowState::Absent, now_ns: 1, run: 1 };
        catalog.apply(&[gone], &[]).unwrap();
        catalog.add_silent(&[(root, Key(b"known".to_vec())), (root, Key(b"newest".to_vec()))], 1).unwrap();
        catalog.add_silent(&[(root, Key(b"no-row".to_vec()))], 1).unwrap();
        assert_eq!(files(&catalog, root, 10), ["known", "new", "newest", "old"]);
        assert_eq!(files(&catalog, root, 2), ["known", "newest"], "what was found before comes first");
        assert_eq!(files(&catalog, CatalogRoot(99), 10), [] as [&str; 0]);
    }

    #[test]
    fn the_list_of_what_was_found_is_bounded() {
        let (_dir, mut catalog, root) = catalog();
        let keys = |from: usize| -> Vec<(CatalogRoot, Key)> {
            (from..from + limits::SILENT_PATHS_MAX).map(|n| (root, Key(n.to_string().into_bytes()))).collect()
        };
        catalog.add_silent(&keys(0), 1).unwrap();
        catalog.add_silent(&keys(limits::SILENT_PATHS_MAX), 2).unwrap();
        let (count, oldest): (usize, i64) = catalog
            .conn
            .query_row("SELECT count(*), min(found_ns) FROM silent", [], |r| Ok((r.get(0)?, r.get(1)?)))
            .unwrap();
        assert_eq!((count, oldest), (limits::SILENT_PATHS_MAX, 2));
    }

    #[test]
    fn no_look_goes_through_the_catalog() {
        let (_dir, catalog, _) = catalog();
        let sql = format!(
            "EXPLAIN QUERY PLAN SELECT key FROM row WHERE root = 1 AND mtime_ns >= 5 AND kind = 0 AND size >= {BIG}
             ORDER BY mtime_ns DESC LIMIT 5"
        );
        let plan: String = catalog.conn.query_row(&sql, [], |r| r.get(3)).unwrap();
        assert!(plan.contains("row_big"), "{plan}");
    }
}
