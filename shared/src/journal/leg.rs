//! A leg's side: claim before the first look, read from acked, ack after the catalog has it. And the check which
//! database belongs to which, so that a lost, restored, copied or recreated one is harmless.

use rusqlite::{Connection, OptionalExtension as _, Transaction, params};

use super::deferred::{NewDeferred, owe, upsert};
use super::linked::withdraw_all;
use super::{Class, Journal, JournalId, RootId, bump_head, head, history};
use crate::database::DatabaseError;
use crate::entry::{Mask, Scope};
use crate::path::RelPath;

/// A leg's row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leg {
    pub name: String,
    pub catalog_id: [u8; 16],
    /// Writer ids that are ours at the destination, newest first.
    pub writer_ids: Vec<String>,
    pub last_run: u64,
    pub claimed: u64,
    pub acked: u64,
    /// Up to here a collapse made deferred rows of what it had not acked.
    pub collapsed_to: u64,
    pub last_ack_ns: i64,
    /// Its catalog counted so many changes when the leg last gave up an entry or a deferred row, or removed something.
    pub revision: u64,
}

impl Leg {
    /// What lies at or below is done, or stands in its deferred rows.
    pub fn cursor(&self) -> u64 {
        self.acked.max(self.collapsed_to)
    }

    pub(super) fn all(conn: &Connection) -> rusqlite::Result<Vec<Leg>> {
        conn.prepare_cached(&format!("{SELECT_LEG} ORDER BY name"))?.query_map([], read_leg)?.collect()
    }
}

/// A root of the leg, as its catalog knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LegRootFacts {
    pub id: RootId,
    /// Up to where a run of this leg attended to the root; `None` for one that is new to the catalog.
    pub attended: Option<u64>,
}

/// What a catalog says of itself at the start of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CatalogFacts {
    pub catalog_id: [u8; 16],
    /// The journal it was last run against; `None` for a new catalog.
    pub journal_id: Option<JournalId>,
    /// Its own copy of the cursor, written before the ack.
    pub acked: u64,
    /// How many changes of rows it counts.
    pub revision: u64,
}

/// The result of attaching a leg: its row, and why a full pass was requested, if it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attached {
    pub leg: Leg,
    pub full_pass: Option<&'static str>,
}

/// More changes than any catalog counts before they are noted here, so that a copy made meanwhile is behind as well.
const REVISION_LEAP: u64 = 1 << 32;

/// Whether journal and catalog belong together and the cursor is whole; else the reason for a full pass.
fn mismatch(
    leg: Option<&Leg>,
    catalog: &CatalogFacts,
    journal: JournalId,
    head: u64,
    floor: u64,
) -> Option<&'static str> {
    let Some(leg) = leg else { return Some("the leg is new to this journal") };
    if leg.catalog_id != catalog.catalog_id {
        Some("the catalog is not the one this journal knows")
    } else if catalog.journal_id != Some(journal) {
        Some("the journal is not the one this catalog knows")
    } else if leg.cursor() < floor {
        Some("entries that this leg had not read were pruned")
    } else if catalog.acked < leg.acked || catalog.revision < leg.revision {
        Some("the catalog is older than the journal")
    } else if catalog.acked > head {
        Some("the journal is older than the catalog")
    } else {
        None
    }
}

impl Journal {
    pub fn leg(&self, name: &str) -> Result<Option<Leg>, DatabaseError> {
        let row = self.conn.query_row(&format!("{SELECT_LEG} WHERE name = ?1"), [name], read_leg);
        row.optional().map_err(self.fail("read a leg"))
    }

    /// Whether a catalog of this id can be this leg's: the one its row names or, before its first run, one that no other
    /// leg's row names.
    pub fn may_have_catalog(&self, leg: &str, catalog_id: [u8; 16]) -> Result<bool, DatabaseError> {
        let legs = Leg::all(&self.conn).map_err(self.fail("read the legs"))?;
        Ok(match legs.iter().find(|known| known.name == leg) {
            Some(known) => known.catalog_id == catalog_id,
            None => legs.iter().all(|known| known.catalog_id != catalog_id),
        })
    }

    /// Starts a run: checks the databases against each other, counts the run, and where they do not belong together
    /// writes one row of scope `full` per root, with a line for people, all in one transaction. A root that is new to
    /// the leg, or that acks passed while it was not in it, gets such a row for itself. What is owed of roots that left
    /// goes.
    pub fn attach_leg(
        &mut self,
        name: &str,
        catalog: &CatalogFacts,
        roots: &[LegRootFacts],
        now_ns: i64,
    ) -> Result<Attached, DatabaseError> {
        let journal_id = self.id();
        self.write("attach a leg", |tx| {
            let (head, floor): (u64, u64) =
                tx.query_row("SELECT head, floor FROM meta", [], |r| Ok((r.get(0)?, r.get(1)?)))?;
            let known = Leg::all(tx)?.into_iter().find(|leg| leg.name == name);
            let full_pass = mismatch(known.as_ref(), catalog, journal_id, head, floor);
            // A new leg begins at the head: the full pass looks at everything after this moment.
            let mut leg = known.unwrap_or(Leg {
                name: name.to_owned(),
                catalog_id: catalog.catalog_id,
                writer_ids: Vec::new(),
                last_run: 0,
                claimed: head,
                acked: head,
                collapsed_to: 0,
                last_ack_ns: 0,
                revision: 0,
            });
            if leg.catalog_id != catalog.catalog_id || leg.writer_ids.is_empty() {
                // Objects of a lost catalog stay ours under the older ids; two catalogs never share one.
                leg.writer_ids.insert(0, hex(&rand::random::<[u8; 8]>()));
            }
            leg.catalog_id = catalog.catalog_id;
            // Only where entries are missing: a collapse leaves the cursor to the leg, and its copy in the catalog fits.
            if leg.cursor() < floor {
                leg.acked = floor;
            }
            leg.claimed = leg.claimed.max(leg.cursor());
            leg.last_run += 1;
            if full_pass.is_some() {
                // The leg raises its catalog to this: more than any copy of it that lies about has counted.
                leg.revision = leg.revision.max(catalog.revision) + REVISION_LEAP;
            }
            forget_roots_that_left(tx, name, roots)?;
            withdraw_linked(tx, name, roots, full_pass.is_some())?;
            for root in roots {
                let passed_over = root.attended.is_none_or(|attended| attended < leg.acked);
                let reason = full_pass.or(passed_over.then_some("the root is new to this leg, or was away"));
                if let Some(reason) = reason {
                    // Of a root that is not proven the catalog learns nothing: it is new at each run.
                    let is_news = full_pass.is_some() || !owes_full_pass(tx, name, root.id)?;
                    upsert(tx, name, &full_pass_row(root.id, head, now_ns, reason))?;
                    if is_news {
                        let text = format!("leg {name}: full pass, {reason}");
                        history(tx, now_ns, "full-pass", root_name(tx, root.id)?.as_deref(), &text)?;
                    }
                }
            }
            store_leg(tx, &leg)?;
            Ok(Attached { leg, full_pass })
        })
    }

    /// Requests a full pass of a root: a later request than the one being worked off has a higher seq and stays.
    pub fn request_full_pass(
        &mut self,
        leg: &str,
        root: RootId,
        now_ns: i64,
        why: &str,
    ) -> Result<(), DatabaseError> {
        self.write("request a full pass", |tx| {
            let seq = bump_head(tx)?;
            // Everything is about to be compared: what waited for its time is due with it.
            tx.execute(
                "UPDATE deferred SET not_before_ns = 0 WHERE leg = ?1 AND root = ?2",
                params![leg, root.0],
            )?;
            upsert(tx, leg, &full_pass_row(root, seq, now_ns, why))
        })
    }

    /// True if entries were dropped that the leg had not read.
    pub fn is_overtaken(&self, leg: &str) -> Result<bool, DatabaseError> {
        let (_, floor) = self.head_and_floor()?;
        Ok(self.leg(leg)?.is_some_and(|leg| leg.cursor() < floor))
    }

    /// Announces, before the first look, that everything up to the head is being read. Returns the head.
    pub fn claim(&mut self, leg: &str) -> Result<u64, DatabaseError> {
        self.write("claim", |tx| {
            let head = head(tx)?;
            tx.execute("UPDATE leg SET claimed = max(claimed, ?2) WHERE name = ?1", params![leg, head])?;
            Ok(head)
        })
    }

    /// Notes what the catalog counts, after it committed, where nothing is given up here: an ack and the settling of
    /// deferred rows note it with that. So an older copy of the catalog is known for one, and the catalog alone may be
    /// ahead.
    pub fn expect_revision(&mut self, leg: &str, revision: u64) -> Result<(), DatabaseError> {
        self.write("note the catalog's revision", |tx| note_revision(tx, leg, revision))
    }

    /// Moves the cursor: what is owed of the entries up to `upto` stands in `deferred`, the rest is done. To be called
    /// after the catalog committed, with what it counts then. A leg from under which entries were pruned before it read
    /// them (the tracker does not know it any more) keeps its cursor, and its next run is a full pass.
    pub fn ack(
        &mut self,
        leg: &str,
        upto: u64,
        revision: u64,
        deferred: &[NewDeferred],
        now_ns: i64,
    ) -> Result<(), DatabaseError> {
        self.write("ack", |tx| {
            owe(tx, leg, deferred)?;
            tx.execute(
                "UPDATE leg SET acked = max(acked, ?2), claimed = max(claimed, ?2), last_ack_ns = ?3, revision = ?4
                 WHERE name = ?1 AND max(acked, collapsed_to) >= (SELECT floor FROM meta)",
                params![leg, upto, now_ns, revision],
            )?;
            Ok(())
        })
    }
}

pub(super) fn note_revision(tx: &Transaction<'_>, leg: &str, revision: u64) -> rusqlite::Result<()> {
    tx.execute("UPDATE leg SET revision = ?2 WHERE name = ?1", params![leg, revision]).map(drop)
}

/// What is published goes with the roots that left, and all of it where the catalog is not the one that asked for it:
/// the full pass publishes anew what it finds.
fn withdraw_linked(
    tx: &Transaction<'_>,
    leg: &str,
    roots: &[LegRootFacts],
    all: bool,
) -> rusqlite::Result<()> {
    let mut known = tx.prepare("SELECT id FROM root")?;
    let known = known.query_map([], |r| r.get(0).map(RootId))?.collect::<rusqlite::Result<Vec<_>>>()?;
    for root in known {
        if all || roots.iter().all(|r| r.id != root) {
            withdraw_all(tx, leg, root)?;
        }
    }
    Ok(())
}

/// Their rows could not be worked off; when one comes back, it gets a full pass.
fn forget_roots_that_left(tx: &Transaction<'_>, leg: &str, roots: &[LegRootFacts]) -> rusqlite::Result<()> {
    let mut known = tx.prepare("SELECT DISTINCT root FROM deferred WHERE leg = ?1")?;
    let known = known.query_map([leg], |r| r.get(0).map(RootId))?.collect::<rusqlite::Result<Vec<_>>>()?;
    for gone in known.iter().filter(|id| roots.iter().all(|r| r.id != **id)) {
        tx.execute("DELETE FROM deferred WHERE leg = ?1 AND root = ?2", params![leg, gone.0])?;
    }
    Ok(())
}

fn root_name(tx: &Transaction<'_>, root: RootId) -> rusqlite::Result<Option<String>> {
    tx.query_row("SELECT name FROM root WHERE id = ?1", [root.0], |r| r.get(0)).optional()
}

fn owes_full_pass(tx: &Transaction<'_>, leg: &str, root: RootId) -> rusqlite::Result<bool> {
    let sql = "SELECT EXISTS(SELECT 1 FROM deferred WHERE leg = ?1 AND root = ?2 AND scope = ?3)";
    tx.query_row(sql, params![leg, root.0, Scope::Full], |r| r.get(0))
}

fn full_pass_row(root: RootId, seq: u64, now_ns: i64, why: &str) -> NewDeferred {
    NewDeferred {
        root,
        path: RelPath::root(),
        scope: Scope::Full,
        handle: None,
        seq,
        mask: Mask::UNKNOWN,
        since_ns: now_ns,
        attempts: 0,
        not_before_ns: 0,
        class: Class::FullPass,
        last_error: why.to_owned(),
    }
}

const SELECT_LEG: &str =
    "SELECT name, catalog_id, writer_ids, last_run, claimed, acked, collapsed_to, last_ack_ns,
         revision
     FROM leg";

fn read_leg(r: &rusqlite::Row<'_>) -> rusqlite::Result<Leg> {
    let writers: String = r.get(2)?;
    Ok(Leg {
        name: r.get(0)?,
        catalog_id: r.get(1)?,
        writer_ids: writers.split_whitespace().map(str::to_owned).collect(),
        last_run: r.get(3)?,
        claimed: r.get(4)?,
        acked: r.get(5)?,
        collapsed_to: r.get(6)?,
        last_ack_ns: r.get(7)?,
        revision: r.get(8)?,
    })
}

fn store_leg(tx: &Transaction<'_>, leg: &Leg) -> rusqlite::Result<()> {
    tx.execute(
        "INSERT INTO leg(name, catalog_id, writer_ids, last_run, last_plan, claimed, acked, collapsed_to, last_ack_ns,
             revision)
         VALUES (?1, ?2, ?3, ?4, 0, ?5, ?6, ?7, ?8, ?9)
         ON CONFLICT(name) DO UPDATE SET catalog_id = excluded.catalog_id, writer_ids = excluded.writer_ids,
             last_run = excluded.last_run, claimed = excluded.claimed, acked = excluded.acked,
             revision = excluded.revision",
        params![
            leg.name,
            leg.catalog_id,
            leg.writer_ids.join(" "),
            leg.last_run,
            leg.claimed,
            leg.acked,
            leg.collapsed_to,
            leg.last_ack_ns,
            leg.revision
        ],
    )?;
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const JOURNAL: JournalId = JournalId([1; 16]);

    fn leg() -> Leg {
        Leg {
            name: "b2".into(),
            catalog_id: [2; 16],
            writer_ids: vec!["w".into()],
            last_run: 3,
            claimed: 50,
            acked: 50,
            collapsed_to: 0,
            last_ack_ns: 0,
            revision: 7,
        }
    }

    fn facts() -> CatalogFacts {
        CatalogFacts { catalog_id: [2; 16], journal_id: Some(JOURNAL), acked: 50, revision: 7 }
    }

    #[test]
    fn databases_that_belong_together_need_no_full_pass() {
        assert_eq!(mismatch(Some(&leg()), &facts(), JOURNAL, 60, 40), None);
        // Killed between the catalog and the ack.
        let ahead = CatalogFacts { acked: 55, revision: 9, ..facts() };
        assert_eq!(mismatch(Some(&leg()), &ahead, JOURNAL, 60, 40), None);
    }

    #[test]
    fn each_way_in_which_they_do_not_belong_together_is_noticed() {
        let full = |leg: Option<&Leg>, facts: CatalogFacts, head, floor| {
            mismatch(leg, &facts, JOURNAL, head, floor).is_some()
        };
        assert!(full(None, facts(), 60, 40), "a new leg");
        assert!(
            full(Some(&leg()), CatalogFacts { catalog_id: [9; 16], ..facts() }, 60, 40),
            "a lost catalog"
        );
        assert!(full(Some(&leg()), CatalogFacts { journal_id: None, ..facts() }, 60, 40), "a new catalog");
        assert!(
            full(Some(&leg()), CatalogFacts { journal_id: Some(JournalId([9; 16])), ..facts() }, 60, 40),
            "a lost journal"
        );
        assert!(full(Some(&leg()), facts(), 60, 51), "a pruned gap");
        assert!(full(Some(&leg()), CatalogFacts { acked: 49, ..facts() }, 60, 40), "an older catalog");
        assert!(
            full(Some(&leg()), CatalogFacts { revision: 6, ..facts() }, 60, 40),
            "one from before a row was settled"
        );
        assert!(full(Some(&leg()), CatalogFacts { acked: 61, ..facts() }, 60, 40), "an older journal");
    }
}
