//! The bound of the journal: what only laggards have not read leaves it for their deferred rows, which have a bound
//! of their own. A leg that reads along loses nothing and pays nothing.

use rusqlite::{Connection, OptionalExtension as _, Transaction, params};

use super::cover::Cover;
use super::deferred::{COLUMNS, NewDeferred, blob, insert, owed_row};
use super::leg::Leg;
use super::{Class, Journal, RootId, RootState, bump_head, head, history, read_entry};
use crate::database::DatabaseError;
use crate::entry::{Mask, Scope};
use crate::limits;
use crate::path::RelPath;

/// What keeping the bound came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Bounded {
    /// Legs whose entries became deferred rows. Entries that no leg waits for count as one.
    pub collapses: u64,
    /// Rows dropped from the journal.
    pub dropped: u64,
}

/// What a laggard gets in place of the entries it has not read.
struct Collapse {
    leg: Leg,
    entries: u64,
    rows: Vec<NewDeferred>,
}

pub(super) struct Plan {
    /// Up to here the entries were looked at.
    head: u64,
    collapses: Vec<Collapse>,
    /// No leg waits for an entry: the first run of each compares everything.
    nobody: bool,
}

impl Journal {
    /// With more than `max` rows: lets go of what is behind all legs in `legs`, and collapses those that have more
    /// than half of the bound before them. The long look at the rows is made first and holds up nobody; a leg that
    /// claimed or acked meanwhile is left alone until the next time.
    pub fn bound(&mut self, legs: &[String], max: u64, now_ns: i64) -> Result<Bounded, DatabaseError> {
        let plan = self.conn.transaction().and_then(|tx| plan(&tx, legs, max));
        let Some(plan) = plan.map_err(self.fail("look for laggards"))? else { return Ok(Bounded::default()) };
        self.write("collapse", |tx| carry_out(tx, &plan, legs, now_ns))
    }

    /// Makes all rows that a leg owes of a root that is not ok one row: they cannot be worked off one by one now, and
    /// the whole root is compared once it is back. Writes nothing if there is nothing to do; returns for how many
    /// legs there was.
    pub fn gather_roots_not_ok(&mut self) -> Result<usize, DatabaseError> {
        let found = gatherable(&self.conn).map_err(self.fail("read rows of roots that are not ok"))?;
        if found.is_empty() {
            return Ok(0);
        }
        self.write("gather rows of roots that are not ok", |tx| {
            let seq = bump_head(tx)?;
            let found = gatherable(tx)?;
            for (leg, row) in &found {
                tx.execute("DELETE FROM deferred WHERE leg = ?1 AND root = ?2", params![leg, row.root.0])?;
                insert(tx, leg, &NewDeferred { seq, ..row.clone() })?;
            }
            Ok(found.len())
        })
    }
}

/// The one row that the rows of a leg in a root that is not ok become, where there are several.
fn gatherable(conn: &Connection) -> rusqlite::Result<Vec<(String, NewDeferred)>> {
    let sql = "SELECT leg, root, min(since_ns), max(scope = ?1)
               FROM deferred JOIN root ON root.id = root WHERE state <> ?2
               GROUP BY leg, root HAVING count(*) > 1";
    let read = |r: &rusqlite::Row<'_>| {
        let (scope, class) =
            if r.get(3)? { (Scope::Full, Class::FullPass) } else { (Scope::Subtree, Class::Root) };
        let row = NewDeferred {
            root: RootId(r.get(1)?),
            path: RelPath::root(),
            scope,
            handle: None,
            seq: 0,
            mask: Mask::UNKNOWN,
            since_ns: r.get(2)?,
            attempts: 0,
            not_before_ns: 0,
            class,
            last_error: "its root was not ok".into(),
        };
        Ok((r.get(0)?, row))
    };
    conn.prepare_cached(sql)?.query_map(params![Scope::Full, RootState::Ok], read)?.collect()
}

pub(super) fn plan(tx: &Transaction<'_>, legs: &[String], max: u64) -> rusqlite::Result<Option<Plan>> {
    let count: u64 = tx.query_row("SELECT count(*) FROM entry", [], |r| r.get(0))?;
    if count <= max {
        return Ok(None);
    }
    let readers = readers(tx, legs)?;
    let mut plan = Plan { head: head(tx)?, collapses: Vec::new(), nobody: readers.is_empty() };
    let near: u64 =
        tx.query_row("SELECT seq FROM entry ORDER BY seq DESC LIMIT 1 OFFSET ?1", [max / 2], |r| r.get(0))?;
    for leg in readers.into_iter().filter(|leg| leg.cursor() < near) {
        let mut cover = Cover::new(limits::COLLAPSE_ROWS_MAX);
        let mut entries = 0;
        let sql = "SELECT seq, root, path, handle, scope, cause, mask, at_ns FROM entry WHERE seq > ?1";
        let mut statement = tx.prepare_cached(sql)?;
        let mut rows = statement.query([leg.cursor()])?;
        while let Some(r) = rows.next()? {
            cover.add(NewDeferred::of_entry(read_entry(r)?));
            entries += 1;
        }
        plan.collapses.push(Collapse { leg, entries, rows: cover.into_rows().collect() });
    }
    Ok(Some(plan))
}

pub(super) fn carry_out(
    tx: &Transaction<'_>,
    plan: &Plan,
    legs: &[String],
    now_ns: i64,
) -> rusqlite::Result<Bounded> {
    // A seq of its own: a leg that works off a row of the same path must not take it for the one it read.
    let seq = bump_head(tx)?;
    let mut done = Bounded::default();
    for Collapse { leg, entries, rows } in &plan.collapses {
        let moved = tx.execute(
            "UPDATE leg SET claimed = max(claimed, ?2), collapsed_to = ?2
             WHERE name = ?1 AND claimed = ?3 AND acked = ?4 AND collapsed_to = ?5",
            params![leg.name, plan.head, leg.claimed, leg.acked, leg.collapsed_to],
        )?;
        if moved == 0 {
            continue;
        }
        for row in rows {
            absorb(tx, &leg.name, NewDeferred { seq, ..row.clone() })?;
        }
        bound_deferred(tx, &leg.name, limits::DEFERRED_ROWS_MAX)?;
        let text =
            format!("leg {}: {entries} entries it had not read are {} rows it owes", leg.name, rows.len());
        history(tx, now_ns, "collapse", None, &text)?;
        done.collapses += 1;
    }
    let floor = if plan.nobody { Some(plan.head) } else { lowest_cursor(tx, legs)? };
    if let Some(floor) = floor {
        done.dropped = prune_to(tx, floor)?;
    }
    if plan.nobody {
        let text = format!("{} entries that no leg waits for were dropped", done.dropped);
        history(tx, now_ns, "collapse", None, &text)?;
        done.collapses = 1;
    }
    Ok(done)
}

/// The rows of a leg are more than it may owe: they become half as many at most, of directories. Full passes stay.
pub(super) fn bound_deferred(tx: &Transaction<'_>, leg: &str, max: usize) -> rusqlite::Result<()> {
    let count = "SELECT count(*) FROM deferred WHERE leg = ?1 AND scope <> ?2";
    let count: usize = tx.prepare_cached(count)?.query_row(params![leg, Scope::Full], |r| r.get(0))?;
    if count <= max {
        return Ok(());
    }
    let mut cover = Cover::new(max / 2);
    let sql = format!("SELECT {COLUMNS} FROM deferred WHERE leg = ?1 AND scope <> ?2");
    let mut statement = tx.prepare_cached(&sql)?;
    let mut rows = statement.query(params![leg, Scope::Full])?;
    while let Some(r) = rows.next()? {
        cover.add(owed_row(r)?);
    }
    let seq = bump_head(tx)?;
    tx.execute("DELETE FROM deferred WHERE leg = ?1 AND scope <> ?2", params![leg, Scope::Full])?;
    cover.into_rows().try_for_each(|row| insert(tx, leg, &NewDeferred { seq, ..row }))
}

/// Adds to what is owed of the same path already; what fails there goes on to count as failing.
fn absorb(tx: &Transaction<'_>, leg: &str, row: NewDeferred) -> rusqlite::Result<()> {
    let sql = format!(
        "SELECT {COLUMNS} FROM deferred
         WHERE leg = ?1 AND root = ?2 AND path = ?3 AND scope = ?4 AND handle = ?5"
    );
    let handle = blob(row.handle.as_ref());
    let known = tx
        .prepare_cached(&sql)?
        .query_row(params![leg, row.root.0, row.path.as_bytes(), row.scope, handle], owed_row)
        .optional()?;
    let Some(mut known) = known else { return insert(tx, leg, &row) };
    known.absorb(row);
    insert(tx, leg, &known)
}

/// The legs that wait for entries: those in `legs` that have run. One from under which entries were pruned while the
/// configuration did not name it waits for none: its next run is a full pass, and must be one.
fn readers(conn: &Connection, legs: &[String]) -> rusqlite::Result<Vec<Leg>> {
    let floor: u64 = conn.query_row("SELECT floor FROM meta", [], |r| r.get(0))?;
    let waits = |leg: &Leg| legs.contains(&leg.name) && leg.cursor() >= floor;
    Ok(Leg::all(conn)?.into_iter().filter(waits).collect())
}

/// Up to where every leg that waits for entries is done; `None` if there is none.
pub(super) fn lowest_cursor(conn: &Connection, legs: &[String]) -> rusqlite::Result<Option<u64>> {
    Ok(readers(conn, legs)?.iter().map(Leg::cursor).min())
}

pub(super) fn prune_to(tx: &Transaction<'_>, floor: u64) -> rusqlite::Result<u64> {
    let dropped = tx.execute("DELETE FROM entry WHERE seq <= ?1", [floor])?;
    tx.execute("UPDATE meta SET floor = max(floor, ?1)", [floor])?;
    Ok(dropped as u64)
}
