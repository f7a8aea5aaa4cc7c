//! Random interleavings of everything that touches the journal, on the real journal, against the rule that no change
//! is ever without a row that leads to it. Each way of getting it wrong that is known is planted and must be found.

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::super::append::{append_changes, watermarks};
use super::super::bound::bound_deferred;
use super::super::coalesce::Watermarks;
use super::*;

const PATHS: [&str; 5] = ["a/1", "a/b/1", "a/b/2", "c/d/1", "top"];
const DIRS: [&str; 4] = ["", "a", "a/b", "c"];
/// Two of the paths are names of one file, which may be written through a third one outside the root.
const LINKED: [usize; 2] = [1, 3];
const LEGS: [&str; 3] = ["day", "night", "never"];
const STEPS: usize = 150;

/// A mistake that the rule must find.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Plant {
    Nothing,
    /// The claims are those of the commit before.
    StaleClaims,
    /// What is claimed and not acked still covers.
    AckedForClaimed,
    /// A leg looks before it claims.
    LookThenClaim,
    /// What a rolled back transaction staged is remembered.
    KeptAfterRollback,
    /// The watermark stays where it was when a collapse took rows away.
    CollapseForgotten,
    /// A deferred row goes although it was renewed since it was read.
    SettledUnseen,
    /// A new row takes the place of one that a leg has claimed and not acked.
    ReplacedWhileClaimed,
    /// The journal does not note what the catalog counts.
    CatalogUncounted,
    /// An entry by handle leads to one of the names that the leg knows.
    OneNameOfMany,
}

/// How many changes a path has had.
type Versions = [u64; PATHS.len()];

/// What a leg is doing; everything but its catalog goes when it is killed.
enum Doing {
    Nothing,
    Reading { head: u64, after: u64, committed: Versions, works: Vec<(RelPath, Scope)> },
    Looking { head: u64, committed: Versions, works: Vec<(RelPath, Scope)>, owed: Vec<usize> },
    Due { rows: Vec<Deferred>, works: Vec<(RelPath, Scope)>, owed: Vec<usize> },
}

/// Which versions were looked at, how many changes of that there were, the copy of the cursor, and that of the root.
#[derive(Clone, Copy, Default)]
struct CatalogModel {
    seen: Versions,
    revision: u64,
    acked: u64,
    attended: Option<u64>,
}

struct LegModel {
    name: &'static str,
    configured: bool,
    /// Configured at each moment since it was attached last.
    steady: bool,
    catalog: CatalogModel,
    /// A copy of the catalog that somebody made.
    copy: CatalogModel,
    doing: Doing,
}

/// A writer: a queue of events with the set that coalesces them.
#[derive(Default)]
struct Writer {
    queue: Vec<Change>,
    set: Coalesce,
    stale: Watermarks,
}

struct Model {
    world: super::World,
    rng: StdRng,
    plant: Plant,
    now: Versions,
    committed: Versions,
    writers: [Writer; 2],
    legs: Vec<LegModel>,
    /// Claims that legs made, without what a collapse made of them.
    claims: [u64; LEGS.len()],
    collapses: u64,
}

/// Whether a row leads to a path, for a leg whose catalog has these versions. By handle only what the catalog has is
/// found: any other name is new, which a row of its own tells.
fn covers(scope: Scope, path: &RelPath, of: usize, seen: &Versions) -> bool {
    let name = super::path(PATHS[of]);
    match scope {
        Scope::Handle => LINKED.contains(&of) && seen[of] > 0,
        Scope::SelfOnly => *path == name,
        _ => name.is_within(path),
    }
}

/// To a leg that knows all names.
const ALL: Versions = [1; PATHS.len()];

impl Model {
    fn new(seed: u64, plant: Plant) -> Model {
        let leg = |name| LegModel {
            name,
            configured: true,
            steady: false,
            catalog: CatalogModel::default(),
            copy: CatalogModel::default(),
            doing: Doing::Nothing,
        };
        // In memory where there is such a filesystem: thousands of transactions wait for no disk.
        let memory = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
        Model {
            world: super::world_in(memory.unwrap()),
            rng: StdRng::seed_from_u64(seed),
            plant,
            now: [0; PATHS.len()],
            committed: [0; PATHS.len()],
            writers: Default::default(),
            legs: LEGS.map(leg).into(),
            claims: [0; LEGS.len()],
            collapses: 0,
        }
    }

    fn below(&mut self, n: usize) -> usize {
        self.rng.random_range(0..n)
    }

    fn configured(&self) -> Vec<String> {
        self.legs.iter().filter(|l| l.configured).map(|l| l.name.to_owned()).collect()
    }

    /// One thing happens.
    fn step(&mut self) -> Result<(), String> {
        let (writer, leg) = (self.below(2), self.below(LEGS.len()));
        match self.below(100) {
            0..25 => self.change(writer),
            25..43 => self.commit(writer),
            43..46 => self.fail_to_commit(writer),
            46..86 => (0..4).try_for_each(|_| if self.below(4) > 0 { self.go_on(leg) } else { Ok(()) })?,
            86..88 => self.legs[leg].doing = Doing::Nothing,
            88..90 => {
                let legs = self.configured();
                self.world.journal.prune(&legs).unwrap();
            }
            90..95 => {
                let legs = self.configured();
                self.collapses += self.world.journal.bound(&legs, 4, 0).unwrap().collapses;
            }
            95 => self.gather(leg),
            96 => {
                let configured = !self.legs[leg].configured;
                self.legs[leg].configured = configured;
                self.legs[leg].steady = false;
            }
            // A new session remembers nothing.
            97 => self.writers[writer].set = Coalesce::default(),
            _ => self.copy_or_restore(leg),
        }
        self.check()
    }

    fn change(&mut self, writer: usize) {
        let masks = [Mask::MODIFY, Mask::ATTRIB, Mask::MODIFY | Mask::CLOSE_WRITE];
        let (scope, path, mask) = match self.below(12) {
            0 => (Scope::Subtree, DIRS[self.below(DIRS.len())], Mask::RENAME | Mask::ONDIR),
            1 | 2 => (Scope::Handle, "", Mask::MODIFY),
            _ => (Scope::SelfOnly, PATHS[self.below(PATHS.len())], masks[self.below(3)]),
        };
        let path = super::path(path);
        let there = if scope == Scope::Handle { self.now } else { ALL };
        for of in (0..PATHS.len()).filter(|of| covers(scope, &path, *of, &there)) {
            self.now[of] += 1;
        }
        let (root, cause) = (self.world.root, Cause::Event);
        let handle = (scope == Scope::Handle).then(|| Handle { kind: 1, bytes: vec![7; 8] });
        self.writers[writer].queue.push(Change { root, path, handle, scope, cause, mask });
    }

    /// The paths that a row leads a leg to, by its catalog of this moment.
    fn works(&self, leg: usize, scope: Scope, path: &RelPath) -> Vec<(RelPath, Scope)> {
        if scope != Scope::Handle {
            return vec![(path.clone(), scope)];
        }
        let seen = &self.legs[leg].catalog.seen;
        let known = LINKED.iter().filter(|of| covers(scope, path, **of, seen));
        let names = known.map(|of| (super::path(PATHS[*of]), Scope::SelfOnly));
        names.take(if self.plant == Plant::OneNameOfMany { 1 } else { LINKED.len() }).collect()
    }

    fn commit(&mut self, writer: usize) {
        let Writer { queue, set, stale } = &mut self.writers[writer];
        let changes = std::mem::take(queue);
        let (plant, claims) = (self.plant, self.claims);
        if plant == Plant::Nothing {
            let commit = Commit { changes: changes.clone(), ..Commit::default() };
            self.world.journal.append(set, &commit, 0).unwrap();
        } else {
            let planted = |tx: &Transaction<'_>| {
                let marks = bent(plant, &watermarks(tx)?, stale, claims);
                append_changes(tx, set, &marks, &changes, 0)
            };
            self.world.journal.write("append", planted).unwrap();
            set.commit();
            *stale = self.world.journal.write("look", watermarks).unwrap();
        }
        for of in 0..PATHS.len() {
            let queued = |w: &Writer| w.queue.iter().any(|c| covers(c.scope, &c.path, of, &ALL));
            if !self.writers.iter().any(queued) {
                self.committed[of] = self.now[of];
            }
        }
    }

    fn fail_to_commit(&mut self, writer: usize) {
        let Writer { queue, set, .. } = &mut self.writers[writer];
        // An epoch that SQLite cannot hold, after all the entries.
        let doubt = Doubt { fs: "fs".into(), handle: Handle { kind: 1, bytes: vec![1] }, epoch: u64::MAX };
        let commit = Commit { changes: queue.clone(), doubts: vec![doubt], ..Commit::default() };
        if self.plant == Plant::KeptAfterRollback {
            let failing = |tx: &Transaction<'_>| {
                append_changes(tx, set, &watermarks(tx)?, &commit.changes, 0)?;
                Err::<(), _>(rusqlite::Error::InvalidQuery)
            };
            self.world.journal.write("append", failing).unwrap_err();
            set.commit();
        } else {
            self.world.journal.append(set, &commit, 0).unwrap_err();
        }
    }

    fn gather(&mut self, leg: usize) {
        let (journal, root) = (&mut self.world.journal, self.world.root);
        if self.rng.random_range(0..2) == 0 {
            journal.write("bound", |tx| bound_deferred(tx, LEGS[leg], 3)).unwrap();
        } else {
            journal.set_root_state(root, RootState::Missing, "test", 0).unwrap();
            journal.gather_roots_not_ok().unwrap();
            journal.set_root_state(root, RootState::Ok, "test", 0).unwrap();
        }
    }

    fn copy_or_restore(&mut self, leg: usize) {
        let restore = self.below(2) == 0;
        let model = &mut self.legs[leg];
        if !restore {
            model.copy = model.catalog;
        } else if model.copy.attended.is_some() {
            model.catalog = model.copy;
            (model.doing, model.steady) = (Doing::Nothing, false);
        }
    }

    /// The leg does the next thing of its run.
    fn go_on(&mut self, leg: usize) -> Result<(), String> {
        match std::mem::replace(&mut self.legs[leg].doing, Doing::Nothing) {
            Doing::Nothing => self.begin(leg)?,
            Doing::Reading { head, after, committed, mut works } => {
                let rows = self.world.journal.read(after, head, 3).unwrap();
                works.extend(rows.iter().flat_map(|e| self.works(leg, e.scope, &e.path)));
                self.legs[leg].doing = match rows.last() {
                    Some(last) => Doing::Reading { head, after: last.seq, committed, works },
                    None => Doing::Looking { head, committed, works, owed: Vec::new() },
                };
            }
            Doing::Looking { head, committed, mut works, mut owed } => match works.pop() {
                Some((path, scope)) => {
                    owed.extend(self.look(leg, scope, &path));
                    self.legs[leg].doing = Doing::Looking { head, committed, works, owed };
                }
                None => self.ack(leg, head, &committed, owed)?,
            },
            Doing::Due { rows, mut works, mut owed } => match works.pop() {
                Some((path, scope)) => {
                    owed.extend(self.look(leg, scope, &path));
                    self.legs[leg].doing = Doing::Due { rows, works, owed };
                }
                None => self.settle(leg, &rows, owed),
            },
        }
        Ok(())
    }

    fn begin(&mut self, leg: usize) -> Result<(), String> {
        let LegModel { name, catalog: CatalogModel { acked, attended, revision, .. }, steady, .. } =
            self.legs[leg];
        let journal = &mut self.world.journal;
        let (catalog_id, journal_id) = ([leg as u8; 16], Some(journal.id()));
        let facts = CatalogFacts { catalog_id, journal_id, acked, revision };
        let roots = [LegRootFacts { id: self.world.root, attended }];
        let attached = journal.attach_leg(name, &facts, &roots, 0).unwrap();
        if let (true, Some(reason)) = (steady, attached.full_pass) {
            return Err(format!("{name} was there all the time, and gets a full pass: {reason}"));
        }
        let model = &mut self.legs[leg];
        let catalog = &mut model.catalog;
        (catalog.acked, catalog.attended) = (attached.leg.acked, Some(attached.leg.acked));
        catalog.revision = catalog.revision.max(attached.leg.revision);
        model.steady = model.configured;
        let after = attached.leg.cursor();
        if self.plant == Plant::LookThenClaim {
            let early = self.world.journal.read(after, u64::MAX >> 1, 1_000).unwrap();
            for (path, scope) in
                early.iter().flat_map(|e| self.works(leg, e.scope, &e.path)).collect::<Vec<_>>()
            {
                self.look(leg, scope, &path);
            }
            // Something happens meanwhile.
            self.change(0);
            self.commit(0);
        }
        let head = self.world.journal.claim(name).unwrap();
        self.claims[leg] = self.claims[leg].max(head);
        let committed = self.committed;
        self.legs[leg].doing = if self.plant == Plant::LookThenClaim {
            Doing::Looking { head, committed: [0; PATHS.len()], works: Vec::new(), owed: Vec::new() }
        } else {
            Doing::Reading { head, after, committed, works: Vec::new() }
        };
        Ok(())
    }

    /// Looks at what the row speaks of; returns what could not be done.
    fn look(&mut self, leg: usize, scope: Scope, path: &RelPath) -> Option<usize> {
        let of: Vec<usize> = (0..PATHS.len()).filter(|of| covers(scope, path, *of, &ALL)).collect();
        let busy = (self.below(8) == 0).then(|| of.first().copied()).flatten();
        for of in of.into_iter().filter(|of| Some(*of) != busy) {
            let catalog = &mut self.legs[leg].catalog;
            catalog.revision += u64::from(catalog.seen[of] < self.now[of]);
            catalog.seen[of] = self.now[of];
        }
        busy
    }

    fn owed(&self, busy: Vec<usize>, seq: u64) -> Vec<NewDeferred> {
        busy.into_iter()
            .map(|of| NewDeferred { not_before_ns: 0, ..super::owed(self.world.root, PATHS[of], seq, 0) })
            .collect()
    }

    fn ack(&mut self, leg: usize, head: u64, committed: &Versions, busy: Vec<usize>) -> Result<(), String> {
        let owed = self.owed(busy, head);
        let revision = self.counted(leg);
        let model = &mut self.legs[leg];
        (model.catalog.acked, model.catalog.attended) = (head, Some(head));
        self.world.journal.ack(model.name, head, revision, &owed, 0).unwrap();
        let rows = self.world.journal.deferred_due(LEGS[leg], self.world.root, 0, 100).unwrap();
        let works = rows.iter().flat_map(|row| self.works(leg, row.key.scope, &row.key.path)).collect();
        self.legs[leg].doing = Doing::Due { rows, works, owed: Vec::new() };
        // A run can say that it knows all that was committed before it began.
        let (row, floor) = self.row_and_floor(leg);
        let deferred = self.world.journal.deferred(LEGS[leg], 1_000).unwrap();
        for of in (0..PATHS.len()).filter(|_| row.is_some_and(|cursor| cursor >= floor)) {
            let seen = &self.legs[leg].catalog.seen;
            let owed = deferred.iter().any(|d| covers(d.key.scope, &d.key.path, of, seen));
            if self.legs[leg].catalog.seen[of] < committed[of] && !owed {
                return Err(format!("{}: a run is done without {}", LEGS[leg], PATHS[of]));
            }
        }
        Ok(())
    }

    fn counted(&self, leg: usize) -> u64 {
        if self.plant == Plant::CatalogUncounted { 0 } else { self.legs[leg].catalog.revision }
    }

    fn settle(&mut self, leg: usize, rows: &[Deferred], busy: Vec<usize>) {
        let revision = self.counted(leg);
        let seq = rows.iter().map(|r| r.seq).max().unwrap_or(0);
        let owed = self.owed(busy, seq);
        let again: Vec<DeferredKey> = owed.iter().map(NewDeferred::key).collect();
        let done = rows.iter().filter(|r| !again.contains(&r.key));
        let done: Vec<(DeferredKey, u64)> = done.map(|r| (r.key.clone(), r.seq)).collect();
        let journal = &mut self.world.journal;
        journal.defer(LEGS[leg], &owed).unwrap();
        if self.plant == Plant::SettledUnseen {
            let sql = "DELETE FROM deferred WHERE leg = ?1 AND path = ?2 AND scope = ?3";
            for (key, _) in &done {
                journal.conn.execute(sql, params![LEGS[leg], key.path.as_bytes(), key.scope]).unwrap();
            }
        } else {
            journal.settle_deferred(LEGS[leg], revision, &done).unwrap();
        }
    }

    fn row_and_floor(&self, leg: usize) -> (Option<u64>, u64) {
        let row = self.world.journal.leg(LEGS[leg]).unwrap();
        (row.map(|leg| leg.cursor()), self.world.journal.head_and_floor().unwrap().1)
    }

    /// Every change that a leg has not seen has something that leads to it.
    fn check(&self) -> Result<(), String> {
        for (leg, model) in self.legs.iter().enumerate() {
            let (Some(cursor), floor) = self.row_and_floor(leg) else { continue };
            let known = self.world.journal.leg(model.name).unwrap().unwrap();
            let is_older = model.catalog.acked < known.acked || model.catalog.revision < known.revision;
            if cursor < floor || is_older {
                continue; // its next run is a full pass
            }
            let rows = self.world.journal.read(cursor, u64::MAX >> 1, 1_000).unwrap();
            let deferred = self.world.journal.deferred(model.name, 1_000).unwrap();
            let seen = &model.catalog.seen;
            for of in (0..PATHS.len()).filter(|of| seen[*of] < self.now[*of]) {
                let queued = |w: &Writer| w.queue.iter().any(|c| covers(c.scope, &c.path, of, seen));
                let queued = self.writers.iter().any(queued);
                let entry = rows.iter().any(|e| covers(e.scope, &e.path, of, seen));
                let owed = deferred.iter().any(|d| covers(d.key.scope, &d.key.path, of, seen));
                if !(queued || entry || owed) {
                    return Err(format!("nothing leads {} to {}", model.name, PATHS[of]));
                }
            }
        }
        Ok(())
    }
}

/// What a mistaken writer takes for the marks.
fn bent(plant: Plant, real: &Watermarks, stale: &Watermarks, claims: [u64; LEGS.len()]) -> Watermarks {
    let of_legs = |legs: Vec<(u64, u64)>| {
        let spoken_for = legs.iter().map(|l| l.0).max().unwrap_or(0);
        Watermarks { legs, floor: 0, spoken_for }
    };
    match plant {
        Plant::StaleClaims => stale.clone(),
        Plant::AckedForClaimed => of_legs(real.legs.iter().map(|l| (l.1, l.1)).collect()),
        Plant::CollapseForgotten => of_legs(claims.map(|claimed| (claimed, 0)).into()),
        Plant::ReplacedWhileClaimed => Watermarks { legs: Vec::new(), ..real.clone() },
        _ => real.clone(),
    }
}

/// What went wrong with this seed, and how often rows were collapsed.
fn run(seed: u64, plant: Plant) -> (Result<(), String>, u64) {
    let mut model = Model::new(seed, plant);
    let done =
        (0..STEPS).try_for_each(|step| model.step().map_err(|e| format!("seed {seed}, step {step}: {e}")));
    (done, model.collapses)
}

#[test]
fn whatever_happens_every_change_is_covered_for_every_leg() {
    let seeds: u64 = std::env::var("LONGSHORE_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(80);
    let first: u64 = rand::random::<u32>().into();
    let mut collapses = 0;
    for seed in first..first + seeds {
        let (done, collapsed) = run(seed, Plant::Nothing);
        done.unwrap();
        collapses += collapsed;
    }
    assert!(collapses > seeds / 2, "the bound was hardly ever reached: {collapses} collapses");
}

#[test]
fn each_known_mistake_is_found() {
    const SEEDS: u64 = 1_000;
    for plant in [
        Plant::StaleClaims,
        Plant::AckedForClaimed,
        Plant::LookThenClaim,
        Plant::KeptAfterRollback,
        Plant::CollapseForgotten,
        Plant::SettledUnseen,
        Plant::ReplacedWhileClaimed,
        Plant::CatalogUncounted,
        Plant::OneNameOfMany,
    ] {
        let found = (0..SEEDS).find_map(|seed| run(seed, plant).0.err());
        println!("{plant:?}: {}", found.unwrap_or_else(|| panic!("{plant:?} was not found in {SEEDS} runs")));
    }
}
