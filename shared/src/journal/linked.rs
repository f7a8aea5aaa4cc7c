//! Linked files: those that have more names than a leg knows of. Its legs publish them by handle, so that the tracker
//! tells of a write through any other name.

use std::collections::BTreeSet;

use rusqlite::{Transaction, params};

use super::deferred::owe;
use super::{Journal, NewDeferred, RootId};
use crate::database::DatabaseError;
use crate::entry::Handle;
use crate::limits;

/// Stands for all that a leg could not publish.
const TOO_MANY: &[u8] = b"";

impl Journal {
    /// Changes with what is published.
    pub fn linked_epoch(&self) -> Result<u64, DatabaseError> {
        self.conn
            .query_row("SELECT linked_epoch FROM meta", [], |r| r.get(0))
            .map_err(self.fail("read the linked files"))
    }

    /// Each file that some leg has published for one of these roots. `None` if it had too many of that root: then every
    /// file with more than one name counts.
    pub fn linked(
        &self,
        roots: &[RootId],
        mut each: impl FnMut(RootId, Option<&Handle>),
    ) -> Result<(), DatabaseError> {
        let fail = self.fail("read the linked files");
        let mut statement = self.conn.prepare_cached("SELECT root, handle FROM linked").map_err(&fail)?;
        let mut rows = statement.query([]).map_err(&fail)?;
        while let Some(row) = rows.next().map_err(&fail)? {
            let root = RootId(row.get(0).map_err(&fail)?);
            let blob: Vec<u8> = row.get(1).map_err(&fail)?;
            if roots.contains(&root) {
                each(root, Handle::from_blob(&blob).as_ref());
            }
        }
        Ok(())
    }

    /// Publishes and withdraws files of a root, in one transaction; nothing is written if nothing changes. Returns
    /// those that were not published before: what happened to them until now nobody has told, so they are to be
    /// looked at once more.
    pub fn publish_linked(
        &mut self,
        leg: &str,
        root: RootId,
        publish: &BTreeSet<Handle>,
        withdraw: &BTreeSet<Handle>,
    ) -> Result<BTreeSet<Handle>, DatabaseError> {
        self.publish_owing(leg, root, publish, withdraw, |_| None)
    }

    /// The same; what the look at each of them is owed as goes into the transaction.
    pub fn publish_owing(
        &mut self,
        leg: &str,
        root: RootId,
        publish: &BTreeSet<Handle>,
        withdraw: &BTreeSet<Handle>,
        owed: impl Fn(&Handle) -> Option<NewDeferred>,
    ) -> Result<BTreeSet<Handle>, DatabaseError> {
        let (mut news, mut old) = (BTreeSet::new(), Vec::new());
        // Then they are told of as it is.
        if !self.is_linked(leg, root, TOO_MANY)? {
            for handle in publish {
                if !self.is_linked(leg, root, &handle.to_blob())? {
                    news.insert(handle.clone());
                }
            }
        }
        for handle in withdraw {
            if self.is_linked(leg, root, &handle.to_blob())? {
                old.push(handle);
            }
        }
        if news.is_empty() && old.is_empty() {
            return Ok(news);
        }
        self.write("publish linked files", |tx| {
            for handle in old {
                tx.prepare_cached("DELETE FROM linked WHERE leg = ?1 AND root = ?2 AND handle = ?3")?
                    .execute(params![leg, root.0, handle.to_blob()])?;
            }
            let sql = "SELECT count(*) FROM linked WHERE leg = ?1 AND root = ?2";
            let count: usize = tx.query_row(sql, params![leg, root.0], |r| r.get(0))?;
            let room = limits::LINKED_FILES_MAX.saturating_sub(count);
            let beyond = (news.len() > room).then(|| TOO_MANY.to_vec());
            insert(tx, leg, root, news.iter().take(room).map(Handle::to_blob).chain(beyond))?;
            let owed: Vec<NewDeferred> = news.iter().filter_map(&owed).collect();
            owe(tx, leg, &owed)
        })?;
        Ok(news)
    }

    /// Puts these in the place of all that is published for a root. They must be all that the leg's catalog asks for.
    pub fn replace_linked(
        &mut self,
        leg: &str,
        root: RootId,
        files: &BTreeSet<Handle>,
    ) -> Result<(), DatabaseError> {
        self.write("publish linked files", |tx| {
            withdraw_all(tx, leg, root)?;
            insert(tx, leg, root, files.iter().map(Handle::to_blob))
        })
    }

    /// True if the leg had more for this root than could be published.
    pub fn has_too_many_linked(&self, leg: &str, root: RootId) -> Result<bool, DatabaseError> {
        self.is_linked(leg, root, TOO_MANY)
    }

    fn is_linked(&self, leg: &str, root: RootId, blob: &[u8]) -> Result<bool, DatabaseError> {
        let fail = self.fail("read the linked files");
        let sql = "SELECT EXISTS(SELECT 1 FROM linked WHERE leg = ?1 AND root = ?2 AND handle = ?3)";
        let mut statement = self.conn.prepare_cached(sql).map_err(&fail)?;
        statement.query_row(params![leg, root.0, blob], |r| r.get(0)).map_err(&fail)
    }
}

fn insert(
    tx: &Transaction<'_>,
    leg: &str,
    root: RootId,
    blobs: impl Iterator<Item = Vec<u8>>,
) -> rusqlite::Result<()> {
    let mut statement =
        tx.prepare_cached("INSERT OR IGNORE INTO linked(leg, root, handle) VALUES (?1, ?2, ?3)")?;
    for blob in blobs {
        statement.execute(params![leg, root.0, blob])?;
    }
    tx.execute("UPDATE meta SET linked_epoch = linked_epoch + 1", [])?;
    Ok(())
}

/// All that a leg has published for a root.
pub(super) fn withdraw_all(tx: &Transaction<'_>, leg: &str, root: RootId) -> rusqlite::Result<()> {
    if tx.execute("DELETE FROM linked WHERE leg = ?1 AND root = ?2", params![leg, root.0])? > 0 {
        tx.execute("UPDATE meta SET linked_epoch = linked_epoch + 1", [])?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::{CatalogFacts, LegRootFacts};

    const ROOT: RootId = RootId(1);

    fn journal() -> (tempfile::TempDir, Journal) {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::create_or_open(&dir.path().join("journal.db")).unwrap();
        (dir, journal)
    }

    fn published(journal: &Journal, roots: &[RootId]) -> (BTreeSet<Handle>, bool) {
        let (mut files, mut too_many) = (BTreeSet::new(), false);
        let each = |root, file: Option<&Handle>| {
            assert!(roots.contains(&root));
            too_many |= file.is_none();
            files.extend(file.cloned());
        };
        journal.linked(roots, each).unwrap();
        (files, too_many)
    }

    fn files(numbers: impl IntoIterator<Item = u32>) -> BTreeSet<Handle> {
        numbers.into_iter().map(|n| Handle { kind: 1, bytes: n.to_le_bytes().to_vec() }).collect()
    }

    #[test]
    fn what_is_published_is_read_until_it_is_withdrawn_and_each_change_shows() {
        let (_dir, mut journal) = journal();
        assert_eq!(journal.publish_linked("l", ROOT, &files([1, 2]), &files([])).unwrap(), files([1, 2]));
        journal.publish_linked("other", ROOT, &files([2]), &files([])).unwrap();
        let epoch = journal.linked_epoch().unwrap();
        assert_eq!(published(&journal, &[ROOT]).0, files([1, 2]));
        assert_eq!(published(&journal, &[RootId(2)]), (files([]), false), "another filesystem");
        assert_eq!(journal.publish_linked("l", ROOT, &files([2]), &files([9])).unwrap(), files([]));
        assert_eq!(journal.linked_epoch().unwrap(), epoch, "nothing changed");
        assert_eq!(journal.publish_linked("l", ROOT, &files([3]), &files([1, 2])).unwrap(), files([3]));
        assert_eq!(published(&journal, &[ROOT]).0, files([2, 3]), "the other leg still asks for 2");
        assert!(journal.linked_epoch().unwrap() > epoch);
    }

    #[test]
    fn beyond_the_limit_a_flag_stands_for_the_rest_until_all_is_replaced() {
        let (_dir, mut journal) = journal();
        let max = limits::LINKED_FILES_MAX as u32;
        journal.publish_linked("l", ROOT, &files(0..max), &files([])).unwrap();
        assert!(!published(&journal, &[ROOT]).1);
        let news = journal.publish_linked("l", ROOT, &files(max..max + 2), &files([])).unwrap();
        assert_eq!(news, files(max..max + 2), "they are to be looked at once more like any other");
        let (all, too_many) = published(&journal, &[ROOT]);
        assert!(too_many && journal.has_too_many_linked("l", ROOT).unwrap());
        assert_eq!(all.len(), limits::LINKED_FILES_MAX);
        let later = journal.publish_linked("l", ROOT, &files([max + 9]), &files([1])).unwrap();
        assert_eq!(later, files([]), "told of already");
        assert_eq!(published(&journal, &[ROOT]).0.len(), limits::LINKED_FILES_MAX - 1);
        journal.replace_linked("l", ROOT, &files([5])).unwrap();
        assert_eq!(published(&journal, &[ROOT]), (files([5]), false));
    }

    #[test]
    fn a_root_that_left_the_leg_and_a_lost_catalog_ask_for_nothing() {
        let (_dir, mut journal) = journal();
        let config = crate::config::Config::parse(
            std::path::Path::new("test.toml"),
            "state_dir = \"/s\"\nruntime_dir = \"/r\"\n[[root]]\nname = \"a\"\npath = \"/a\"\n[[root]]\nname = \"b\"\npath = \"/b\"\n",
        )
        .unwrap();
        let ids: Vec<RootId> = journal.put_roots(&config.roots, 0).unwrap().iter().map(|r| r.id).collect();
        let acked = journal.head_and_floor().unwrap().0;
        let facts = CatalogFacts { catalog_id: [1; 16], journal_id: Some(journal.id()), acked, revision: 0 };
        let roots: Vec<LegRootFacts> = ids.iter().map(|&id| LegRootFacts { id, attended: Some(0) }).collect();
        let revision = journal.attach_leg("l", &facts, &roots, 0).unwrap().leg.revision;
        let facts = CatalogFacts { revision, ..facts };
        for (&id, file) in ids.iter().zip([1, 2]) {
            journal.publish_linked("l", id, &files([file]), &files([])).unwrap();
        }
        journal.attach_leg("l", &facts, &roots, 0).unwrap();
        assert_eq!(published(&journal, &ids).0, files([1, 2]), "nothing is amiss");
        journal.attach_leg("l", &facts, &roots[..1], 0).unwrap();
        assert_eq!(published(&journal, &ids).0, files([1]));
        let lost = CatalogFacts { catalog_id: [2; 16], ..facts };
        journal.attach_leg("l", &lost, &roots, 0).unwrap();
        assert_eq!(published(&journal, &ids), (files([]), false));
    }
}
