//! What only the journal knows: how much waits for whom, since when, and which gaps are open.

use std::collections::BTreeMap;

use crossbeam_channel::{RecvTimeoutError, bounded};
use serde::Serialize;
use shared::clock::{Clock as _, SystemClock};
use shared::config::{Config, Leg as LegConfig};
use shared::database::DatabaseError;
use shared::entry::Cause;
use shared::journal::{Class, Journal, Leg, RootId, RootRow, Waiting, WaitingSum};
use shared::limits;

use super::super::CommandError;
use super::super::pending::open_journal;

#[derive(Debug, Serialize)]
pub struct JournalStats {
    pub head: u64,
    pub floor: u64,
    pub entries: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oldest_ns: Option<i64>,
    pub roots: Vec<RootCounts>,
    pub legs: Vec<LegCounts>,
    /// What some leg still has to compare because events were not seen or not kept.
    pub gaps: Vec<GapCounts>,
}

#[derive(Debug, Serialize)]
pub struct RootCounts {
    pub name: String,
    pub state: String,
    pub state_since_ns: i64,
    pub pending: u64,
    pub gaps: u64,
}

#[derive(Debug, Serialize)]
pub struct LegCounts {
    pub name: String,
    /// False before its first run.
    pub known: bool,
    pub claimed: u64,
    pub acked: u64,
    pub pending: u64,
    pub deferred: u64,
    pub last_ack_ns: i64,
    /// When the oldest change was seen that the destination does not have; absent if it has all, or never ran.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unsynced_since_ns: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unsynced_age_ns: Option<i64>,
    pub roots: Vec<LegRootCounts>,
    /// The deferred rows by class.
    pub owed: Vec<Owed>,
}

#[derive(Debug, Serialize)]
pub struct LegRootCounts {
    pub name: String,
    pub pending: u64,
    /// In the journal, and put off by the leg: full passes and collapses too.
    pub gaps: u64,
    #[serde(skip)]
    put_off: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oldest_ns: Option<i64>,
}

#[derive(Debug, Serialize)]
pub struct Owed {
    pub class: Class,
    pub count: u64,
    pub oldest_ns: i64,
}

#[derive(Debug, Serialize)]
pub struct GapCounts {
    pub root: String,
    pub cause: Cause,
    pub count: u64,
    pub oldest_ns: i64,
    pub age_ns: i64,
}

/// On a thread of its own: a disk that hangs must not keep the rest from being told.
pub fn read(config: &Config) -> Result<JournalStats, CommandError> {
    let (answer, answered) = bounded(1);
    let own = config.clone();
    let work = move || {
        let read = open_journal(&own)
            .and_then(|j| of(&own, &j, SystemClock.wall_ns()).map_err(CommandError::Journal));
        if answer.send(read).is_err() {
            tracing::debug!("the journal answered too late");
        }
    };
    let spawned = std::thread::Builder::new().name("journal".into()).spawn(work);
    spawned.map_err(|source| CommandError::Io { op: "start a thread".to_owned(), source })?;
    match answered.recv_timeout(limits::STATS_JOURNAL_TIMEOUT) {
        Ok(read) => read,
        Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
            Err(CommandError::JournalSilent { path: config.journal_path() })
        }
    }
}

fn of(config: &Config, journal: &Journal, now_ns: i64) -> Result<JournalStats, DatabaseError> {
    let (head, floor) = journal.head_and_floor()?;
    let known = journal.roots()?;
    let legs = config.legs.iter().map(|leg| journal.leg(leg.name.as_str()));
    let legs = legs.collect::<Result<Vec<_>, _>>()?;
    let cursor = |leg: &Option<Leg>| leg.as_ref().map_or(0, Leg::cursor);
    // What every leg has acked waits for nobody, also before it is pruned.
    let slowest = legs.iter().map(cursor).min().unwrap_or(floor).max(floor);
    let cursors: Vec<u64> = [0, slowest].into_iter().chain(legs.iter().map(cursor)).collect();
    let waiting = journal.waiting(&cursors)?;
    let (all, for_slowest, for_legs) = (&waiting[0], &waiting[1], &waiting[2..]);
    let names: BTreeMap<RootId, &str> = known.iter().map(|r| (r.id, r.name.as_str())).collect();
    let root_id = |name: &str| known.iter().find(|r| r.name == name).map(|r| r.id);
    let mut told = Vec::new();
    for ((leg, row), waiting) in config.legs.iter().zip(&legs).zip(for_legs) {
        told.push(leg_counts(journal, leg, row.as_ref(), waiting, root_id, now_ns)?);
    }
    let configured = |r: &&RootRow| config.roots.iter().any(|c| c.name.as_str() == r.name);
    Ok(JournalStats {
        head,
        floor,
        entries: all.sums().map(|s| s.count).sum(),
        oldest_ns: all.sums().map(|s| s.oldest_ns).min(),
        roots: known.iter().filter(configured).map(|r| root_counts(r, for_slowest, &told)).collect(),
        legs: told,
        gaps: gaps(for_slowest, &names, now_ns),
    })
}

fn root_counts(root: &RootRow, waiting: &Waiting, legs: &[LegCounts]) -> RootCounts {
    let (pending, gaps, _) = sum(waiting, root.id);
    let of_legs = legs.iter().flat_map(|leg| &leg.roots).filter(|r| r.name == root.name);
    let gaps = gaps + of_legs.map(|r| r.put_off).sum::<u64>();
    RootCounts {
        name: root.name.clone(),
        state: root.state.to_string(),
        state_since_ns: root.state_since_ns,
        pending,
        gaps,
    }
}

/// Entries of a root, those of them that are gaps, and the age of the oldest.
fn sum(waiting: &Waiting, root: RootId) -> (u64, u64, Option<i64>) {
    let of_root = || waiting.sums().filter(|s| s.root == root);
    let gaps = of_root().filter(|s| s.cause.is_gap()).map(|s| s.count).sum();
    (of_root().map(|s| s.count).sum(), gaps, of_root().map(|s| s.oldest_ns).min())
}

fn leg_counts(
    journal: &Journal,
    leg: &LegConfig,
    row: Option<&Leg>,
    waiting: &Waiting,
    root_id: impl Fn(&str) -> Option<RootId>,
    now_ns: i64,
) -> Result<LegCounts, DatabaseError> {
    let name = leg.name.as_str();
    let owed = journal.deferred_by_class(name)?.into_iter();
    let owed: Vec<Owed> =
        owed.map(|d| Owed { class: d.class, count: d.count, oldest_ns: d.oldest_ns }).collect();
    let put_off: BTreeMap<RootId, u64> = journal.owed_gaps(name)?.into_iter().collect();
    let of_root = |name: &str| {
        let id = root_id(name);
        let (pending, gaps, oldest_ns) = id.map_or((0, 0, None), |id| sum(waiting, id));
        let put_off = id.and_then(|id| put_off.get(&id)).copied().unwrap_or(0);
        LegRootCounts { name: name.to_owned(), pending, gaps: gaps + put_off, put_off, oldest_ns }
    };
    let roots: Vec<LegRootCounts> = leg.roots.iter().map(|r| of_root(r.root.as_str())).collect();
    let oldest = roots.iter().filter_map(|r| r.oldest_ns).chain(owed.iter().map(|o| o.oldest_ns)).min();
    // Of a leg that never ran everything is unsynced, since before anybody looked.
    let unsynced_since_ns = oldest.filter(|_| row.is_some());
    Ok(LegCounts {
        name: name.to_owned(),
        known: row.is_some(),
        claimed: row.map_or(0, |l| l.claimed),
        acked: row.map_or(0, |l| l.acked),
        pending: roots.iter().map(|r| r.pending).sum(),
        deferred: owed.iter().map(|o| o.count).sum(),
        last_ack_ns: row.map_or(0, |l| l.last_ack_ns),
        unsynced_since_ns,
        unsynced_age_ns: unsynced_since_ns.map(|since| (now_ns - since).max(0)),
        roots,
        owed,
    })
}

fn gaps(waiting: &Waiting, names: &BTreeMap<RootId, &str>, now_ns: i64) -> Vec<GapCounts> {
    let open = waiting.sums().filter(|s| s.cause.is_gap());
    let told = |s: WaitingSum| GapCounts {
        root: names.get(&s.root).map_or_else(|| format!("#{}", s.root.0), |name| (*name).to_owned()),
        cause: s.cause,
        count: s.count,
        oldest_ns: s.oldest_ns,
        age_ns: (now_ns - s.oldest_ns).max(0),
    };
    open.map(told).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use shared::entry::{Mask, Scope};
    use shared::journal::{CatalogFacts, Change, Coalesce, Commit, LegRootFacts, NewDeferred};
    use shared::path::RelPath;
    use std::path::Path;

    const CONFIG: &str = "state_dir = \"/nonexistent\"
        [[root]]\nname = \"a\"\npath = \"/a\"\n[[root]]\nname = \"b\"\npath = \"/b\"\n
        [[leg]]\nname = \"near\"\nkind = \"dir\"\nroots = [\"a\"]\npath = \"/near\"\n
        [[leg]]\nname = \"far\"\nkind = \"dir\"\nroots = [{ root = \"a\", prefix = \"a\" }, { root = \"b\", prefix = \"b\" }]\npath = \"/far\"\n";

    struct World {
        config: Config,
        journal: Journal,
        roots: Vec<RootId>,
        _dir: tempfile::TempDir,
    }

    impl World {
        fn new() -> World {
            let dir = tempfile::tempdir().unwrap();
            let config = Config::parse(Path::new("t.toml"), CONFIG).unwrap();
            let mut journal = Journal::create_or_open(&dir.path().join("journal.db")).unwrap();
            let roots = journal.put_roots(&config.roots, 100).unwrap().iter().map(|r| r.id).collect();
            World { config, journal, roots, _dir: dir }
        }

        fn change(&mut self, root: usize, path: &str, at_ns: i64) {
            let change = Change {
                root: self.roots[root],
                path: RelPath::parse(path.as_bytes()).unwrap(),
                handle: None,
                scope: Scope::SelfOnly,
                cause: Cause::Event,
                mask: Mask::MODIFY,
            };
            let commit = Commit { changes: vec![change], ..Commit::default() };
            self.journal.append(&mut Coalesce::default(), &commit, at_ns).unwrap();
        }

        fn run_of(&mut self, leg: &str) {
            let facts = CatalogFacts {
                catalog_id: [1; 16],
                journal_id: Some(self.journal.id()),
                acked: 0,
                revision: 0,
            };
            let attended = |id: &RootId| LegRootFacts { id: *id, attended: Some(u64::MAX) };
            let roots: Vec<LegRootFacts> = self.roots.iter().map(attended).collect();
            self.journal.attach_leg(leg, &facts, &roots, 150).unwrap();
            for row in self.journal.deferred(leg, 10).unwrap() {
                self.journal.settle_deferred(leg, 0, &[(row.key, row.seq)]).unwrap();
            }
            let head = self.journal.claim(leg).unwrap();
            self.journal.ack(leg, head, 0, &[], 160).unwrap();
        }

        fn stats(&self) -> JournalStats {
            of(&self.config, &self.journal, 1_000).unwrap()
        }
    }

    #[test]
    fn the_oldest_unsynced_change_is_told_for_each_leg_by_itself() {
        let mut world = World::new();
        world.run_of("near");
        world.change(1, "of/b", 300);
        world.run_of("far");
        world.change(0, "of/a", 700);
        let stats = world.stats();
        let [near, far] = &stats.legs[..] else { panic!("two legs") };
        assert_eq!((near.pending, near.unsynced_since_ns), (1, Some(700)), "b is none of its roots");
        assert_eq!((far.pending, far.unsynced_since_ns, far.unsynced_age_ns), (1, Some(700), Some(300)));
        let rows: Vec<_> = far.roots.iter().map(|r| (r.name.as_str(), r.pending, r.oldest_ns)).collect();
        assert_eq!(rows, [("a", 1, Some(700)), ("b", 0, None)]);
        assert_eq!((stats.roots[0].pending, stats.roots[1].pending), (1, 1), "near is the slower one");
        assert_eq!(stats.gaps.len(), 0, "both have acked the gaps of the beginning");
    }

    #[test]
    fn what_was_put_off_is_as_old_as_its_first_cause() {
        let mut world = World::new();
        world.run_of("near");
        world.change(0, "new", 700);
        let row = NewDeferred {
            root: world.roots[0],
            path: RelPath::parse(b"busy").unwrap(),
            scope: Scope::SelfOnly,
            handle: None,
            seq: 1,
            mask: Mask::MODIFY,
            since_ns: 200,
            attempts: 1,
            not_before_ns: 0,
            class: Class::Busy,
            last_error: String::new(),
        };
        world.journal.defer("near", &[row]).unwrap();
        let near = &world.stats().legs[0];
        assert_eq!((near.pending, near.deferred, near.unsynced_since_ns), (1, 1, Some(200)));
        assert_eq!((near.owed[0].class, near.owed[0].count, near.owed[0].oldest_ns), (Class::Busy, 1, 200));
    }

    #[test]
    fn a_leg_that_never_ran_has_no_oldest_change_and_holds_the_gaps_open() {
        let mut world = World::new();
        world.run_of("near");
        let stats = world.stats();
        let far = &stats.legs[1];
        assert!(!far.known && far.unsynced_since_ns.is_none() && far.pending > 0);
        let gaps: Vec<_> = stats.gaps.iter().map(|g| (g.root.as_str(), g.cause, g.count, g.age_ns)).collect();
        assert_eq!(gaps, [("a", Cause::Rules, 1, 900), ("b", Cause::Rules, 1, 900)]);
        assert_eq!(stats.legs[0].unsynced_since_ns, None, "it has everything");
    }
}
