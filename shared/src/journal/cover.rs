//! Fewer, coarser rows for what many rows speak of: path, directory, higher directory, root. Pure.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry as Slot;

use super::{Class, Entry, NewDeferred, RootId};
use crate::entry::{Handle, Mask, Scope};
use crate::limits;
use crate::path::RelPath;

/// Rows that together speak of everything that was added, never more of them than they may be.
#[derive(Debug)]
pub struct Cover {
    rows_max: usize,
    bytes_max: usize,
    /// Paths are cut to so many components; what is cut becomes the subtree of what is left of it.
    depth: usize,
    bytes: usize,
    rows: BTreeMap<(RootId, RelPath, Scope, Option<Handle>), NewDeferred>,
}

impl Cover {
    pub fn new(rows_max: usize) -> Cover {
        let (bytes_max, depth) = (limits::COLLAPSE_BYTES_MAX, limits::COLLAPSE_DEPTH_MAX);
        Cover { rows_max, bytes_max, depth, bytes: 0, rows: BTreeMap::new() }
    }

    pub fn add(&mut self, row: NewDeferred) {
        self.put(cut(row, self.depth));
        if self.rows.len() > self.rows_max || self.bytes > self.bytes_max {
            self.coarsen();
        }
    }

    pub fn into_rows(self) -> impl Iterator<Item = NewDeferred> {
        self.rows.into_values()
    }

    fn put(&mut self, row: NewDeferred) {
        if let Some(above) = self.subtree_above(&row) {
            above.absorb(row);
            return;
        }
        let weight = weight(&row);
        match self.rows.entry((row.root, row.path.clone(), row.scope, row.handle.clone())) {
            Slot::Occupied(mut known) => known.get_mut().absorb(row),
            Slot::Vacant(free) => {
                free.insert(row);
                self.bytes += weight;
            }
        }
    }

    /// The row of a subtree that the row lies in.
    fn subtree_above(&mut self, row: &NewDeferred) -> Option<&mut NewDeferred> {
        let mut dir = Some(row.path.clone());
        while let Some(path) = dir {
            dir = path.parent();
            let key = (row.root, path, Scope::Subtree, None);
            if self.rows.contains_key(&key) {
                return self.rows.get_mut(&key);
            }
        }
        None
    }

    /// Cuts level by level until half of the room is free, so that not every further row cuts again.
    fn coarsen(&mut self) {
        let fits = |s: &Cover, rows, bytes| rows <= s.rows_max / 2 && bytes <= s.bytes_max / 2;
        let handles = || self.rows.values().filter(|row| row.scope == Scope::Handle);
        // Where they alone do not fit, no cut of paths makes room.
        if !fits(self, handles().count(), handles().map(weight).sum()) {
            self.put_again(|row| if row.scope == Scope::Handle { cut(row, 0) } else { row });
        }
        while self.depth > 0 && !fits(self, self.rows.len(), self.bytes) {
            let deepest = self.rows.keys().map(|(_, path, ..)| path.components().count()).max();
            self.depth = deepest.unwrap_or(0).min(self.depth).saturating_sub(1);
            let depth = self.depth;
            self.put_again(|row| cut(row, depth));
        }
    }

    fn put_again(&mut self, cut: impl Fn(NewDeferred) -> NewDeferred) {
        self.bytes = 0;
        // In order: a directory comes before what lies below it.
        for (_, row) in std::mem::take(&mut self.rows) {
            self.put(cut(row));
        }
    }
}

/// What a row takes, with its key and the tree around both.
fn weight(row: &NewDeferred) -> usize {
    let key = row.path.as_bytes().len() + row.handle.as_ref().map_or(0, |handle| handle.bytes.len());
    2 * (size_of::<NewDeferred>() + key) + row.last_error.len()
}

fn cut(mut row: NewDeferred, depth: usize) -> NewDeferred {
    let below = row.path.components().count().saturating_sub(depth);
    // The names of a handle are anywhere in its root.
    if below == 0 && (depth > 0 || row.scope != Scope::Handle) {
        return row;
    }
    if row.scope == Scope::SelfOnly && row.class.is_failure() {
        row.last_error = format!("{}: {}", row.path, row.last_error);
    }
    for _ in 0..below {
        row.path = row.path.parent().unwrap_or_default();
    }
    row.scope = Scope::Subtree;
    row.handle = None;
    row.mask = Mask::UNKNOWN;
    row
}

impl NewDeferred {
    /// Speaks of the other row's path too. What fails goes on to count as failing, for as long as it has.
    pub(super) fn absorb(&mut self, other: NewDeferred) {
        if other.class.is_failure() && !self.class.is_failure() {
            self.class = other.class;
            self.last_error = other.last_error;
        }
        self.seq = self.seq.max(other.seq);
        self.mask |= other.mask;
        self.since_ns = self.since_ns.min(other.since_ns);
        self.attempts = self.attempts.max(other.attempts);
        self.not_before_ns = self.not_before_ns.min(other.not_before_ns);
    }

    /// What a leg owes of an entry that it has not read.
    pub(super) fn of_entry(entry: Entry) -> NewDeferred {
        let Entry { root, path, handle, scope, mask, at_ns, .. } = entry;
        let scope = match scope {
            Scope::SelfOnly | Scope::Names => scope,
            Scope::Handle if handle.is_some() => scope,
            _ => Scope::Subtree,
        };
        NewDeferred {
            root,
            path,
            scope,
            handle,
            seq: 0,
            mask,
            since_ns: at_ns,
            attempts: 0,
            not_before_ns: 0,
            class: Class::Collapse,
            last_error: "the leg lagged behind, and the journal was full".into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::Cause;
    use proptest::prelude::*;

    fn entry(path: &str, scope: Scope) -> Entry {
        let path = RelPath::parse(path.as_bytes()).unwrap();
        let (root, cause, mask) = (RootId(1), Cause::Event, Mask::MODIFY);
        Entry { seq: 1, root, path, handle: None, scope, cause, mask, at_ns: 7 }
    }

    fn row(path: &str, scope: Scope) -> NewDeferred {
        NewDeferred::of_entry(entry(path, scope))
    }

    fn by_handle(root: i64, file: u8) -> NewDeferred {
        let handle = Some(Handle { kind: 1, bytes: vec![file; 8] });
        NewDeferred::of_entry(Entry { root: RootId(root), handle, ..entry("", Scope::Handle) })
    }

    fn covered(rows: &[NewDeferred], of: &NewDeferred) -> bool {
        rows.iter().any(|r| {
            r.root == of.root
                && match r.scope {
                    Scope::Subtree => of.path.is_within(&r.path),
                    _ => r.key() == of.key(),
                }
        })
    }

    fn shown(cover: Cover) -> Vec<(String, Scope)> {
        cover.into_rows().map(|r| (r.path.to_string(), r.scope)).collect()
    }

    #[test]
    fn what_fits_stays_as_it_was() {
        let mut cover = Cover::new(4);
        let paths = ["a/b/f", "a/b/g", "top"];
        paths.iter().for_each(|path| cover.add(row(path, Scope::SelfOnly)));
        assert_eq!(shown(cover), paths.map(|path| (path.to_owned(), Scope::SelfOnly)));
    }

    #[test]
    fn the_deepest_paths_become_directories_first() {
        let mut cover = Cover::new(6);
        let deep = ["a/b/1", "a/b/2", "a/b/3", "a/b/4", "a/b/5"];
        deep.into_iter().chain(["top", "other"]).for_each(|path| cover.add(row(path, Scope::SelfOnly)));
        let expected = [("a/b", Scope::Subtree), ("other", Scope::SelfOnly), ("top", Scope::SelfOnly)];
        assert_eq!(shown(cover), expected.map(|(path, scope)| (path.to_owned(), scope)));
    }

    #[test]
    fn a_list_of_names_is_not_all_that_lies_below_it() {
        let mut cover = Cover::new(10);
        cover.add(row("a", Scope::Names));
        assert_eq!(shown(cover), [("a".to_owned(), Scope::Names)]);
    }

    #[test]
    fn handles_stay_while_paths_become_directories() {
        let mut cover = Cover::new(6);
        (0..2).for_each(|file| cover.add(by_handle(1, file)));
        ["a/1", "a/2", "a/3", "a/4", "a/5"].iter().for_each(|path| cover.add(row(path, Scope::SelfOnly)));
        let (handle, dir) = ((".".to_owned(), Scope::Handle), ("a".to_owned(), Scope::Subtree));
        assert_eq!(shown(cover), [handle.clone(), handle, dir]);
    }

    #[test]
    fn handles_that_alone_do_not_fit_are_their_roots_and_spare_the_paths_of_others() {
        let mut cover = Cover::new(6);
        let other = NewDeferred { root: RootId(2), ..row("a/b/c", Scope::SelfOnly) };
        cover.add(other.clone());
        (0..9).for_each(|file| cover.add(by_handle(1, file)));
        let rows: Vec<_> = cover.into_rows().collect();
        assert_eq!((rows.len(), rows[0].root, rows[0].scope), (2, RootId(1), Scope::Subtree));
        assert!(rows[0].handle.is_none() && rows[0].mask.contains(Mask::UNKNOWN), "{:?}", rows[0]);
        assert_eq!(rows[1], other);
    }

    #[test]
    fn a_handle_without_its_bytes_is_its_whole_root() {
        let row = row("", Scope::Handle);
        assert_eq!((row.path, row.scope), (RelPath::root(), Scope::Subtree));
    }

    #[test]
    fn what_fails_is_still_named_when_it_is_part_of_a_directory() {
        let mut cover = Cover::new(1);
        for name in ["a/first", "a/second"] {
            let (class, last_error) = (Class::Error, "Permission denied".to_owned());
            cover.add(NewDeferred { class, last_error, attempts: 3, ..row(name, Scope::SelfOnly) });
        }
        cover.add(row("a/third", Scope::SelfOnly));
        let rows: Vec<_> = cover.into_rows().collect();
        assert_eq!((rows.len(), rows[0].class, rows[0].attempts), (1, Class::Error, 3));
        assert_eq!(rows[0].last_error, "a/first: Permission denied");
    }

    #[test]
    fn long_paths_count_by_their_bytes() {
        let mut cover = Cover::new(1_000_000);
        let long = vec!["x".repeat(250); 16].join("/");
        (0..5_000).for_each(|n| cover.add(row(&format!("{n}/{long}"), Scope::SelfOnly)));
        assert!(cover.bytes <= limits::COLLAPSE_BYTES_MAX);
        let held: usize = cover.rows.values().map(weight).sum();
        assert_eq!(cover.bytes, held);
    }

    proptest! {
        #[test]
        fn nothing_is_left_uncovered_and_the_bound_is_kept(
            paths in proptest::collection::vec(("([a-c]/){0,5}[a-f]", 1..3i64, 0..12u8), 1..200),
            rows_max in 2..20usize,
        ) {
            let scopes = [Scope::SelfOnly, Scope::Subtree, Scope::SelfOnly];
            let made = |(path, root, what): &(String, i64, u8)| match scopes.get(usize::from(what % 4)) {
                Some(scope) => NewDeferred { root: RootId(*root), ..row(path, *scope) },
                None => by_handle(*root, what / 4 + path.len() as u8),
            };
            let rows: Vec<NewDeferred> = paths.iter().map(made).collect();
            let mut cover = Cover::new(rows_max);
            for row in &rows {
                cover.add(row.clone());
                prop_assert!(cover.rows.len() <= rows_max);
            }
            let left: Vec<NewDeferred> = cover.into_rows().collect();
            for row in &rows {
                prop_assert!(covered(&left, row), "{row:?} in {left:?}");
            }
        }
    }
}
