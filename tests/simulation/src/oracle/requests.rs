//! Looks on while a run asks its destination for something: each removal must have been witnessed and let through by
//! the guard, each put must have an intent in the catalog.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use rusqlite::{Connection, OpenFlags, OptionalExtension as _};
use shared::path::RelPath;
use syncer::tree::Kind;

use super::{Invariant, Violation};
use crate::database;
use crate::disk::Id;
use crate::hand::Hand;
use crate::store::{Asked, Call, Moment, lock};

/// A root of a leg, as the oracle knows it.
#[derive(Debug, Clone)]
pub struct Place {
    pub name: String,
    pub path: PathBuf,
    pub prefix: RelPath,
}

/// Beside one leg, for as long as the world lasts.
pub struct Requests {
    roots: Vec<Place>,
    catalog: PathBuf,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Paths that were seen to be gone in this run, and what was seen of others last.
    seen: BTreeMap<(usize, RelPath), Option<Kind>>,
    /// The directory that the run has open as each root.
    opened: BTreeMap<usize, (u64, Id)>,
    /// In this run.
    run: Counts,
    hand: Option<Hand>,
    /// Of the catalog, while a run goes on.
    conn: Option<Connection>,
    violation: Option<Violation>,
}

/// What a run did at its destination, as the destination saw it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    pub files: u64,
    pub others: u64,
    pub removed: u64,
    /// Puts and removals that were asked for.
    pub asked: u64,
}

impl Requests {
    pub fn new(roots: Vec<Place>, catalog: &Path) -> Arc<Requests> {
        Arc::new(Requests { roots, catalog: catalog.to_owned(), state: Mutex::default() })
    }

    pub fn begin_run(&self, hand: &Hand) {
        let mut state = lock(&self.state);
        state.seen.clear();
        state.opened.clear();
        state.run = Counts::default();
        state.hand = Some(hand.clone());
    }

    pub fn end_run(&self) -> Counts {
        let mut state = lock(&self.state);
        (state.hand, state.conn) = (None, None);
        std::mem::take(&mut state.run)
    }

    pub fn roots(&self) -> &[Place] {
        &self.roots
    }

    pub fn violation(&self) -> Option<Violation> {
        lock(&self.state).violation.clone()
    }

    /// The run has opened a root.
    pub fn opened(&self, root: usize, dev: u64, top: Id) {
        lock(&self.state).opened.insert(root, (dev, top));
    }

    /// The run looked at a path, and this is what stood there.
    pub fn looked(&self, root: usize, path: &RelPath, seen: Option<Kind>) {
        lock(&self.state).seen.insert((root, path.clone()), seen);
    }

    /// To be called at each moment of a request.
    pub fn at_call(&self, call: &Call) {
        match &call.moment {
            // The directories above a root's own place are made sure of by every run.
            Moment::Begins if self.root_of(&call.dest).is_some() => lock(&self.state).run.asked += 1,
            Moment::BeforeEffect => {
                let checked = match call.asked {
                    Asked::Remove => self.check_removal(call),
                    Asked::Attributes => Ok(()),
                    _ => self.check_intent(call),
                };
                if let Err(violation) = checked {
                    lock(&self.state).violation.get_or_insert(violation);
                }
            }
            Moment::Answered { problem: None, .. } => {
                let mut state = lock(&self.state);
                match call.asked {
                    Asked::File => state.run.files += 1,
                    Asked::Remove => state.run.removed += 1,
                    _ => state.run.others += 1,
                }
            }
            _ => {}
        }
    }

    fn root_of(&self, dest: &RelPath) -> Option<(usize, RelPath)> {
        let in_root = |(at, root): (usize, &Place)| Some((at, dest.strip(&root.prefix)?));
        self.roots.iter().enumerate().find_map(in_root)
    }

    fn check_removal(&self, call: &Call) -> Result<(), Violation> {
        let state = lock(&self.state);
        let (Some(hand), Some((root, path))) = (&state.hand, self.root_of(&call.dest)) else {
            return Err(Violation::new(
                Invariant::WitnessedAbsence,
                format!("{} is no path of ours", call.dest),
            ));
        };
        let place = &self.roots[root];
        let wrong = |why: &str| {
            Err(Violation::new(
                Invariant::WitnessedAbsence,
                format!("{}/{path} is removed: {why}", place.name),
            ))
        };
        let machine = hand.shared.machine();
        let Some(&(dev, top)) = state.opened.get(&root) else { return wrong("its root was not opened") };
        if !machine.is_disk_of(dev, &place.path) {
            return wrong("its root is not the disk that was meant");
        }
        let there = machine.below(dev, top, &path).and_then(|(disk, id)| Some(disk.inode(id).ok()?.kind));
        let same = |kind: Kind| Some(kind.is_dir()) == call.kind.map(Kind::is_dir);
        // Who makes it again after the look is answered by an event.
        let was_gone = match state.seen.get(&(root, path.clone())) {
            Some(Some(kind)) => !same(*kind) || Some(*kind) != call.kind,
            Some(None) => true,
            None => return wrong("nobody looked at it in this run"),
        };
        match there {
            Some(kind) if same(kind) && Some(kind) == call.kind && !was_gone => wrong("it is there"),
            _ if !was_gone => wrong("the last look at it found it there"),
            _ => Ok(()),
        }
    }

    /// Asked of the database itself: what is not committed there is no intent.
    fn check_intent(&self, call: &Call) -> Result<(), Violation> {
        let Some((root, path)) = self.root_of(&call.dest) else {
            // A directory above a root's own place.
            return Ok(());
        };
        let is_dir = call.asked == Asked::Dir;
        let key = if is_dir { path.dir_key() } else { path.as_bytes().to_vec() };
        let before = database::enter(0);
        let found = self.has_intent(&self.roots[root].name, &key);
        database::enter(before);
        match found {
            Ok(true) => Ok(()),
            Ok(false) => Err(Violation::new(Invariant::Order, format!("{path} is sent without an intent"))),
            // A database that cannot be read now is looked at later.
            Err(_) => Ok(()),
        }
    }

    fn has_intent(&self, root: &str, key: &[u8]) -> rusqlite::Result<bool> {
        let mut state = lock(&self.state);
        let conn = match state.conn.take() {
            Some(conn) => conn,
            None => Connection::open_with_flags(&self.catalog, OpenFlags::SQLITE_OPEN_READ_ONLY)?,
        };
        let conn = state.conn.insert(conn);
        let sql = "SELECT 1 FROM intent JOIN root ON root.id = intent.root WHERE root.name = ?1 AND key = ?2";
        let mut statement = conn.prepare_cached(sql)?;
        let found: Option<i64> =
            statement.query_row(rusqlite::params![root, key], |r| r.get(0)).optional()?;
        Ok(found.is_some())
    }
}
