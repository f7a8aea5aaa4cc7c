//! The catalog of one leg: what the destination holds for each path, and the local state it was made from.

mod intents;
mod page;
mod rows;
mod schema;
mod silent;
mod staging;

use std::path::{Path, PathBuf};

use rusqlite::{Connection, OptionalExtension as _, Transaction, params};
use shared::database::{self, DatabaseError, Mode};
use shared::identity::Identity;
use shared::journal::{CatalogFacts, JournalId};
use shared::path::RelPath;

pub use intents::{Intent, NewIntent};
pub use page::{Known, RowPage};
pub use rows::{Change, Key, NO_TIME, Origin, Row, RowState, Totals};
pub use staging::Reconciled;

/// Number of a root in this catalog.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CatalogRoot(pub i64);

/// An open catalog, used by one run at a time.
#[derive(Debug)]
pub struct Catalog {
    conn: Connection,
    path: PathBuf,
}

#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    #[error(transparent)]
    Database(#[from] DatabaseError),
    #[error(
        "The root `{root}` of this leg lies under the prefix `{stored}` at the destination, the configuration says `{wanted}`. A prefix is fixed once the catalog exists: change it back, or give the leg another name"
    )]
    PrefixChanged { root: String, stored: RelPath, wanted: RelPath },
}

impl Catalog {
    /// Opens the catalog, made if it is missing.
    pub fn open(path: &Path) -> Result<Catalog, DatabaseError> {
        let mut conn = database::open(path, &schema::SCHEMA, Mode::Owner)?;
        let id: [u8; 16] = rand::random();
        let name =
            "INSERT OR IGNORE INTO meta(one, catalog_id, acked, revision, recorded) VALUES (1, ?1, 0, 0, 0)";
        database::write(&mut conn, path, None, "name the catalog", |tx| tx.execute(name, params![id]))?;
        conn.set_prepared_statement_cache_capacity(64);
        Ok(Catalog { conn, path: path.to_owned() })
    }

    /// What the journal compares at the start of a run.
    pub fn facts(&self) -> Result<CatalogFacts, DatabaseError> {
        let read = |r: &rusqlite::Row<'_>| {
            let journal: Option<[u8; 16]> = r.get(1)?;
            Ok(CatalogFacts {
                catalog_id: r.get(0)?,
                journal_id: journal.map(JournalId),
                acked: r.get(2)?,
                revision: r.get(3)?,
            })
        };
        self.conn
            .query_row("SELECT catalog_id, journal_id, acked, revision FROM meta", [], read)
            .map_err(self.fail("read the catalog's facts"))
    }

    /// The catalog's own copy of the cursor, for the roots that this run attends to; written before the journal's
    /// ack. Its count of changes is at least what the journal expects.
    pub fn set_cursor(
        &mut self,
        journal: JournalId,
        acked: u64,
        revision: u64,
        roots: &[&str],
    ) -> Result<(), DatabaseError> {
        self.write("store the cursor", |tx| {
            let sql = "UPDATE meta SET journal_id = ?1, acked = ?2, revision = max(revision, ?3)";
            tx.execute(sql, params![journal.0, acked, revision])?;
            for root in roots {
                tx.execute("UPDATE root SET acked = ?2 WHERE name = ?1", params![root, acked])?;
            }
            Ok(())
        })
    }

    /// Of roots that are not in the leg now it is not known up to where they were attended to: what they were owed goes
    /// with them.
    pub fn keep_roots(&mut self, roots: &[&str]) -> Result<(), DatabaseError> {
        self.write("forget the cursors of roots that left", |tx| {
            let mut known = tx.prepare("SELECT name FROM root WHERE acked IS NOT NULL")?;
            let known: Vec<String> = known.query_map([], |r| r.get(0))?.collect::<rusqlite::Result<_>>()?;
            for gone in known.iter().filter(|name| !roots.contains(&name.as_str())) {
                tx.execute("UPDATE root SET acked = NULL WHERE name = ?1", [gone])?;
            }
            Ok(())
        })
    }

    /// Up to where a run of this leg attended to a root; `None` if it is new here.
    pub fn attended(&self, root: &str) -> Result<Option<u64>, DatabaseError> {
        self.conn
            .query_row("SELECT acked FROM root WHERE name = ?1", [root], |r| r.get(0))
            .optional()
            .map(Option::flatten)
            .map_err(self.fail("read a root's cursor"))
    }

    /// What the destination said it is, at the first run.
    pub fn destination(&self) -> Result<Option<String>, DatabaseError> {
        self.conn
            .query_row("SELECT destination FROM meta", [], |r| r.get(0))
            .map_err(self.fail("read the destination's identity"))
    }

    /// Remembered at the first run; later it is the same.
    pub fn set_destination(&mut self, identity: &str) -> Result<(), DatabaseError> {
        if self.destination()?.is_some() {
            return Ok(());
        }
        self.write("store the destination's identity", |tx| {
            tx.execute("UPDATE meta SET destination = ?1", [identity])?;
            Ok(())
        })
    }

    /// The identity a root was built from, if it is known here.
    pub fn root_identity(&self, name: &str) -> Result<Option<Identity>, DatabaseError> {
        let text: Option<String> = self
            .conn
            .query_row("SELECT identity FROM root WHERE name = ?1", [name], |r| r.get(0))
            .optional()
            .map_err(self.fail("read a root's identity"))?;
        let bad = |e| {
            let e = rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, Box::new(e));
            self.fail("read a root's identity")(e)
        };
        text.map(|t| serde_json::from_str(&t).map_err(bad)).transpose()
    }

    /// Stores a root at its first run; later the prefix must be the same, and the identity stays.
    pub fn put_root(
        &mut self,
        name: &str,
        prefix: &RelPath,
        identity: &Identity,
    ) -> Result<CatalogRoot, CatalogError> {
        let identity = serde_json::to_string(identity).expect("an identity is plain data");
        let (id, stored) = self.write("store a root", |tx| {
            tx.execute(
                "INSERT OR IGNORE INTO root(name, prefix, identity) VALUES (?1, ?2, ?3)",
                params![name, prefix.as_bytes(), identity],
            )?;
            tx.query_row("SELECT id, prefix FROM root WHERE name = ?1", [name], |r| {
                Ok((CatalogRoot(r.get(0)?), r.get::<_, Vec<u8>>(1)?))
            })
        })?;
        if stored != prefix.as_bytes() {
            let stored = RelPath::parse(&stored).unwrap_or_default();
            return Err(CatalogError::PrefixChanged {
                root: name.to_owned(),
                stored,
                wanted: prefix.clone(),
            });
        }
        Ok(id)
    }

    /// A consistent copy in a new file.
    pub fn copy_to(&self, path: &Path) -> Result<(), DatabaseError> {
        database::copy_to(&self.conn, &self.path, path)
    }

    fn write<T>(
        &mut self,
        op: &'static str,
        work: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>,
    ) -> Result<T, DatabaseError> {
        database::write(&mut self.conn, &self.path, None, op, work)
    }

    fn fail(&self, op: &'static str) -> impl Fn(rusqlite::Error) -> DatabaseError + '_ {
        move |e| DatabaseError::new(&self.path, op, e)
    }
}
