//! The roots in force: what the tracker has stored is what every leg goes by.

use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use rusqlite::{OptionalExtension as _, params};

use super::append::{Change, append_changes};
use super::coalesce::{Coalesce, Watermarks};
use super::generation::{forget_all, forget_mounted};
use super::{Journal, RootId};
use crate::config::Root;
use crate::database::DatabaseError;
use crate::entry::{Cause, stored_enum};

stored_enum! {
    /// What the tracker last saw of a root's disk. Only from `ok` may anything be deleted.
    RootState {
        Ok = 0 => "ok",
        Missing = 1 => "missing",
        Replaced = 2 => "replaced",
        Stacked = 3 => "stacked",
        Stale = 4 => "stale",
        Readonly = 5 => "readonly",
        Failing = 6 => "failing",
        Unresponsive = 7 => "unresponsive",
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootRow {
    pub id: RootId,
    pub name: String,
    pub path: PathBuf,
    pub rules: String,
    /// Counts the changes of path and rules.
    pub epoch: u64,
    pub state: RootState,
    pub state_since_ns: i64,
    /// It is new or its path or rules changed, and it got its gap.
    pub changed: bool,
}

/// How an earlier tracker lived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    pub boot_id: String,
    /// It stopped with everything committed.
    pub ended: bool,
}

impl Journal {
    /// Stores the roots and rules in force. A root that is new or whose path or rules changed gets its gap in the
    /// same transaction. Rows of roots that left the configuration stay: catalogs may still name them.
    pub fn put_roots(&mut self, roots: &[Root], now_ns: i64) -> Result<Vec<RootRow>, DatabaseError> {
        self.write("store the roots", |tx| {
            let mut out = Vec::new();
            for root in roots {
                let path = root.path.as_os_str().as_bytes();
                let identity = root.identity.as_ref().and_then(|i| serde_json::to_string(i).ok());
                let known: Option<(Vec<u8>, String)> = tx
                    .query_row("SELECT path, rules FROM root WHERE name = ?1", [root.name.as_str()], |r| {
                        Ok((r.get(0)?, r.get(1)?))
                    })
                    .optional()?;
                tx.execute(
                    "INSERT INTO root(name, path, identity, rules, epoch, state, state_since_ns)
                     VALUES (?1, ?2, ?3, ?4, 1, ?5, ?6)
                     ON CONFLICT(name) DO UPDATE SET identity = excluded.identity,
                         epoch = epoch + (path <> excluded.path OR rules <> excluded.rules),
                         path = excluded.path, rules = excluded.rules",
                    params![
                        root.name.as_str(),
                        path,
                        identity,
                        root.rules.text(),
                        RootState::Missing,
                        now_ns
                    ],
                )?;
                let mut row = tx.query_row(&select("WHERE name = ?1"), [root.name.as_str()], read_root)?;
                row.changed = !known.is_some_and(|(p, r)| p == path && r == root.rules.text());
                if row.changed {
                    let gap = Change::gap(row.id, Cause::Rules);
                    append_changes(tx, &mut Coalesce::default(), &Watermarks::default(), &[gap], now_ns)?;
                }
                out.push(row);
            }
            Ok(out)
        })
    }

    pub fn roots(&self) -> Result<Vec<RootRow>, DatabaseError> {
        let fail = self.fail("read the roots");
        let mut statement = self.conn.prepare_cached(&select("ORDER BY id")).map_err(&fail)?;
        let rows = statement.query_map([], read_root).map_err(&fail)?;
        rows.collect::<rusqlite::Result<_>>().map_err(&fail)
    }

    /// Writes the state if it changed, with a history row; returns whether it did.
    pub fn set_root_state(
        &mut self,
        root: RootId,
        state: RootState,
        why: &str,
        now_ns: i64,
    ) -> Result<bool, DatabaseError> {
        self.write("store a root's state", |tx| {
            let changed = tx.execute(
                "UPDATE root SET state = ?2, state_since_ns = ?3 WHERE id = ?1 AND state <> ?2",
                params![root.0, state, now_ns],
            )?;
            if changed > 0 {
                tx.execute(
                    "INSERT INTO history(at_ns, kind, root, text)
                     SELECT ?2, 'root-state', name, ?3 FROM root WHERE id = ?1",
                    params![root.0, now_ns, format!("{state}: {why}")],
                )?;
            }
            Ok(changed > 0)
        })
    }

    /// A tracker began. Returns the session's number and the session before.
    pub fn begin_session(
        &mut self,
        boot_id: &str,
        version: &str,
        now_ns: i64,
    ) -> Result<(i64, Option<Session>), DatabaseError> {
        self.write("begin a session", |tx| {
            let before = tx
                .query_row(
                    "SELECT boot_id, ended_ns IS NOT NULL FROM session ORDER BY id DESC LIMIT 1",
                    [],
                    |r| Ok(Session { boot_id: r.get(0)?, ended: r.get(1)? }),
                )
                .optional()?;
            if before.as_ref().is_some_and(|before| before.boot_id != boot_id && !before.ended) {
                forget_all(tx)?;
            }
            tx.execute(
                "INSERT INTO session(boot_id, version, started_ns) VALUES (?1, ?2, ?3)",
                params![boot_id, version, now_ns],
            )?;
            let id = tx.last_insert_rowid();
            tx.execute("DELETE FROM session WHERE id <= ?1 - 1000", [id])?;
            Ok((id, before))
        })
    }

    /// It ended in order, with everything committed.
    pub fn end_session(&mut self, session: i64, now_ns: i64) -> Result<(), DatabaseError> {
        self.write("end a session", |tx| {
            tx.execute("UPDATE session SET ended_ns = ?2 WHERE id = ?1", params![session, now_ns])?;
            forget_mounted(tx)
        })
    }
}

fn select(rest: &str) -> String {
    format!("SELECT id, name, path, rules, epoch, state, state_since_ns FROM root {rest}")
}

fn read_root(r: &rusqlite::Row<'_>) -> rusqlite::Result<RootRow> {
    let path: Vec<u8> = r.get(2)?;
    Ok(RootRow {
        id: RootId(r.get(0)?),
        name: r.get(1)?,
        path: PathBuf::from(std::ffi::OsStr::from_bytes(&path)),
        rules: r.get(3)?,
        epoch: r.get(4)?,
        state: r.get(5)?,
        state_since_ns: r.get(6)?,
        changed: false,
    })
}
