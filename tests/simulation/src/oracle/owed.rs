//! What a leg owes, read from its databases: whether a path that differs is covered by anything that will lead to it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use rusqlite::{Connection, OpenFlags, OptionalExtension as _};
use shared::entry::{Handle, Scope};
use shared::journal::{Class, Deferred, Entry, Journal, RootId};
use shared::path::RelPath;

/// Of one root of one leg.
pub struct Owed {
    singles: BTreeSet<RelPath>,
    trees: BTreeSet<RelPath>,
    handles: BTreeSet<Handle>,
    /// Nothing can be said of it now, or all of it is owed.
    everything: bool,
    /// By key: whether it waits for the guard or the owner, and the file's handle.
    rows: BTreeMap<Vec<u8>, (bool, Option<Handle>)>,
}

/// More rows than any world has.
const ALL: usize = 1 << 30;

impl Owed {
    /// What stands in the journal behind the leg's cursor, and in its catalog. `None` if a run of the leg has not attended
    /// to the root up to its cursor: then the next one compares all of it.
    pub fn read(journal: &Journal, catalog: &Path, leg: &str, root: RootId, name: &str) -> Option<Owed> {
        let row = journal.leg(leg).ok()??;
        let rows = rows(catalog, name, row.acked).ok()??;
        let (head, _) = journal.head_and_floor().ok()?;
        let mut owed = Owed {
            singles: BTreeSet::new(),
            trees: BTreeSet::new(),
            handles: BTreeSet::new(),
            everything: false,
            rows,
        };
        for Entry { root: of, path, handle, scope, .. } in journal.read(row.cursor(), head, ALL).ok()? {
            if of == root {
                owed.add(path, scope, handle);
            }
        }
        for Deferred { key, class, .. } in journal.deferred(leg, ALL).ok()? {
            if key.root == root {
                owed.everything |= class == Class::Root;
                owed.add(key.path, key.scope, key.handle);
            }
        }
        Some(owed)
    }

    fn add(&mut self, path: RelPath, scope: Scope, handle: Option<Handle>) {
        if let Some(handle) = handle {
            self.handles.insert(handle);
            return;
        }
        match scope {
            Scope::Full => self.everything = true,
            Scope::Subtree => _ = self.trees.insert(path),
            _ => _ = self.singles.insert(path),
        }
    }

    /// Whether something leads to this path. `is_dir` says what stands at a path now; `handle` is of what stands at
    /// this one.
    pub fn covers(&self, path: &RelPath, handle: Option<&Handle>, is_dir: impl Fn(&RelPath) -> bool) -> bool {
        if self.everything || self.singles.contains(path) {
            return true;
        }
        let mut around = std::iter::successors(Some(path.clone()), RelPath::parent);
        let is_above = |above: &RelPath| {
            // What is below a name that is no directory (any more) goes with it.
            self.trees.contains(above) || (above != path && self.singles.contains(above) && !is_dir(above))
        };
        if around.any(|above| is_above(&above)) || self.waits(path) {
            return true;
        }
        // A look at one name of a file is one at all names that the catalog has of it.
        handle.is_some_and(|handle| self.handles.contains(handle) || self.covers_by_name(handle))
    }

    /// The attributes of a directory are looked at together with any of its names.
    pub fn covers_dir(&self, path: &RelPath) -> bool {
        let is_child = |other: &RelPath| other.parent().as_ref() == Some(path);
        self.singles.iter().chain(&self.trees).any(is_child)
            || self.rows.iter().any(|(key, (waits, _))| *waits && is_child(&path_of(key)))
    }

    /// The guard, or the owner, has to decide.
    fn waits(&self, path: &RelPath) -> bool {
        let keys = [path.as_bytes().to_vec(), path.dir_key()];
        keys.iter().any(|key| self.rows.get(key).is_some_and(|(waits, _)| *waits))
    }

    fn covers_by_name(&self, handle: &Handle) -> bool {
        let of_it = self.rows.iter().filter(|(_, (_, of))| of.as_ref() == Some(handle));
        of_it.map(|(key, _)| path_of(key)).any(|name| self.singles.contains(&name))
    }
}

fn path_of(key: &[u8]) -> RelPath {
    RelPath::parse(key.strip_suffix(b"/").unwrap_or(key)).expect("a key of a path")
}

type Rows = BTreeMap<Vec<u8>, (bool, Option<Handle>)>;

/// Read past the program: what it would say of its own catalog is what is to be judged.
fn rows(catalog: &Path, root: &str, acked: u64) -> rusqlite::Result<Option<Rows>> {
    let conn = Connection::open_with_flags(catalog, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    let found: Option<(i64, Option<u64>)> = conn
        .query_row("SELECT id, acked FROM root WHERE name = ?1", [root], |r| Ok((r.get(0)?, r.get(1)?)))
        .optional()?;
    let Some((id, Some(attended))) = found else { return Ok(None) };
    if attended < acked {
        return Ok(None);
    }
    let mut statement = conn.prepare("SELECT key, state, handle FROM row WHERE root = ?1")?;
    let mut all = Rows::new();
    // A name that may come into being, or go, is asked for by the next run.
    let mut intents = conn.prepare("SELECT key FROM intent WHERE root = ?1")?;
    for key in intents.query_map([id], |r| r.get(0))? {
        all.insert(key?, (true, None));
    }
    let rows = statement.query_map([id], |r| {
        let handle: Option<Vec<u8>> = r.get(2)?;
        let waits = r.get::<_, i64>(1)? != 0;
        Ok((r.get(0)?, (waits, handle.and_then(|blob| Handle::from_blob(&blob)))))
    })?;
    for row in rows {
        let (key, (waits, handle)): (Vec<u8>, _) = row?;
        let is_intended = all.contains_key(&key);
        all.insert(key, (waits || is_intended, handle));
    }
    Ok(Some(all))
}
