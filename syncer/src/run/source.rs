//! From work (entries and deferred rows) to single paths with what was seen of each: the looks of a batch.

use std::collections::VecDeque;
use std::sync::Arc;

use shared::database::DatabaseError;
use shared::entry::{Mask, Scope};
use shared::limits;
use shared::path::RelPath;
use shared::rules::Rules;

use crate::catalog::{Catalog, CatalogRoot, Key, Origin, Row, RowState};
use crate::tree::{Look, Stat, Tree};
use crate::walk::{Merge, Pair};

/// A path to examine, with the seq of its newest cause.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Work {
    /// Index of the root in the run.
    pub root: usize,
    pub path: RelPath,
    pub scope: Scope,
    pub mask: Mask,
    pub seq: u64,
}

/// One path after it was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    /// It is there.
    Check { root: usize, path: RelPath, stat: Stat, row: Option<Box<Row>>, mask: Mask, seq: u64 },
    /// Its row's object has no source any more: witnessed.
    Gone { root: usize, key: Key, row: Box<Row>, mask: Mask, seq: u64 },
    /// Nothing can be concluded now.
    Unknown { root: usize, path: RelPath, scope: Scope, mask: Mask, seq: u64, reason: String },
}

/// What a source needs of a root.
#[derive(Clone)]
pub struct Ground {
    pub tree: Arc<dyn Tree>,
    pub rules: Arc<Rules>,
    pub catalog: CatalogRoot,
}

/// Works off a list, a bounded number of paths at a time.
#[derive(Default)]
pub struct Source {
    works: VecDeque<Work>,
    /// The subtree being merged.
    merge: Option<(Merge, Work)>,
}

impl Source {
    /// Works in key order, one per path and scope; what lies within a subtree of the list is covered by it.
    pub fn new(mut works: Vec<Work>) -> Source {
        works.sort_by(|a, b| (a.root, &a.path, a.scope).cmp(&(b.root, &b.path, b.scope)));
        let mut out: VecDeque<Work> = VecDeque::with_capacity(works.len());
        let mut cover: Option<(usize, RelPath)> = None;
        for work in works {
            let covered =
                cover.as_ref().is_some_and(|(root, top)| *root == work.root && work.path.is_within(top));
            if covered && work.scope != Scope::Handle {
                continue;
            }
            if work.scope == Scope::Subtree {
                cover = Some((work.root, work.path.clone()));
            }
            match out.back_mut() {
                Some(last)
                    if last.root == work.root && last.path == work.path && last.scope == work.scope =>
                {
                    last.mask |= work.mask;
                    last.seq = last.seq.max(work.seq);
                }
                _ => out.push_back(work),
            }
        }
        Source { works: out, merge: None }
    }

    /// The next items, about `limits::BATCH_PATHS`; empty at the end.
    pub fn next_batch(
        &mut self,
        grounds: &[Option<Ground>],
        catalog: &Catalog,
    ) -> Result<Vec<Item>, DatabaseError> {
        let mut items = Vec::new();
        while items.len() < limits::BATCH_PATHS {
            if let Some((merge, work)) = &mut self.merge {
                match merge.next(catalog)? {
                    Some(pair) => {
                        if let Some(ground) = &grounds[work.root] {
                            items.extend(of_pair(ground, work, pair));
                        }
                    }
                    None => self.merge = None,
                }
                continue;
            }
            let Some(work) = self.works.pop_front() else { break };
            // Roots that are not proven were deferred when the list was made.
            let Some(ground) = grounds[work.root].as_ref() else { continue };
            let looked = examine_path(ground, catalog, &work)?;
            let is_dir =
                looked.iter().any(|item| matches!(item, Item::Check { stat, .. } if stat.kind.is_dir()));
            items.extend(looked);
            if is_dir && matches!(work.scope, Scope::Subtree | Scope::Full) {
                let below =
                    Merge::below(ground.tree.clone(), ground.rules.clone(), ground.catalog, &work.path);
                self.merge = Some((below, work));
            }
        }
        Ok(items)
    }
}

/// The items of one work's own path.
pub fn examine_path(ground: &Ground, catalog: &Catalog, work: &Work) -> Result<Vec<Item>, DatabaseError> {
    match ground.tree.look(&work.path) {
        Look::Found(stat) => {
            if ground.rules.excludes(&work.path, stat.kind.is_dir()) {
                return Ok(Vec::new());
            }
            let mut items = displaced(ground, catalog, work, &stat)?;
            let row = catalog.get(ground.catalog, &Key::new(&work.path, stat.kind))?;
            items.push(check(work, work.path.clone(), stat, row));
            Ok(items)
        }
        Look::Gone { .. } => {
            let mut items = Vec::new();
            if let Some(row) = catalog.get(ground.catalog, &Key(work.path.as_bytes().to_vec()))? {
                items.extend(gone(ground, work, Key(work.path.as_bytes().to_vec()), row));
            }
            if !work.path.is_root() {
                items.extend(rows_within(ground, catalog, work)?);
            }
            Ok(items)
        }
        Look::Unknown(reason) => Ok(vec![unknown(work, work.path.clone(), work.scope, reason)]),
    }
}

/// Rows of another sort at the path of something that was found: what they stand for is gone.
fn displaced(
    ground: &Ground,
    catalog: &Catalog,
    work: &Work,
    stat: &Stat,
) -> Result<Vec<Item>, DatabaseError> {
    if work.path.is_root() {
        return Ok(Vec::new());
    }
    if !stat.kind.is_dir() {
        return rows_within(ground, catalog, work);
    }
    let key = Key(work.path.as_bytes().to_vec());
    let row = catalog.get(ground.catalog, &key)?;
    Ok(row.and_then(|row| gone(ground, work, key, row)).into_iter().collect())
}

/// The rows of the directory that the path was, and of everything below it.
fn rows_within(ground: &Ground, catalog: &Catalog, work: &Work) -> Result<Vec<Item>, DatabaseError> {
    const PAGE: usize = 10_000;
    let mut items = Vec::new();
    let mut from = work.path.dir_key();
    loop {
        let rows = catalog.range(ground.catalog, &from, work.path.dir_key_end().as_deref(), PAGE)?;
        let full = rows.len() == PAGE;
        if let Some((last, _)) = rows.last() {
            from = [last.0.as_slice(), &[0]].concat();
        }
        items.extend(rows.into_iter().filter_map(|(key, row)| gone(ground, work, key, row)));
        if !full {
            return Ok(items);
        }
    }
}

fn of_pair(ground: &Ground, work: &Work, pair: Pair) -> Vec<Item> {
    match pair {
        Pair::Both(path, stat, row) => vec![check(work, path, stat, Some(*row))],
        Pair::Local(path, stat) => vec![check(work, path, stat, None)],
        Pair::Unknown(path, reason) => {
            let scope = if path == work.path { work.scope } else { Scope::Subtree };
            vec![unknown(work, path, scope, reason)]
        }
        // A listing that lacks a name proves nothing: the name itself is asked for.
        Pair::Row(key, row) => match ground.tree.look(&key.path()) {
            Look::Gone { .. } => gone(ground, work, key, *row).into_iter().collect(),
            Look::Found(stat) if Key::new(&key.path(), stat.kind) == key => {
                vec![check(work, key.path(), stat, Some(*row))]
            }
            Look::Found(_) => gone(ground, work, key, *row).into_iter().collect(),
            Look::Unknown(reason) => vec![unknown(work, key.path(), Scope::SelfOnly, reason)],
        },
    }
}

fn check(work: &Work, path: RelPath, stat: Stat, row: Option<Row>) -> Item {
    let mask = if work.scope == Scope::SelfOnly { work.mask } else { work.mask | Mask::UNKNOWN };
    Item::Check { root: work.root, path, stat, row: row.map(Box::new), mask, seq: work.seq }
}

/// `None` for rows that are not ours to remove: excluded paths, foreign objects, what is known to be gone.
fn gone(ground: &Ground, work: &Work, key: Key, row: Row) -> Option<Item> {
    let kept = ground.rules.excludes(&key.path(), row.stat.kind.is_dir())
        || row.origin == Origin::ListedForeign
        || row.state == RowState::Absent;
    (!kept).then(|| Item::Gone { root: work.root, key, row: Box::new(row), mask: work.mask, seq: work.seq })
}

fn unknown(work: &Work, path: RelPath, scope: Scope, reason: String) -> Item {
    Item::Unknown { root: work.root, path, scope, mask: work.mask, seq: work.seq, reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn work(path: &str, scope: Scope, seq: u64) -> Work {
        Work { root: 0, path: RelPath::parse(path.as_bytes()).unwrap(), scope, mask: Mask::MODIFY, seq }
    }

    fn listed(works: Vec<Work>) -> Vec<(String, Scope, u64)> {
        Source::new(works).works.iter().map(|w| (w.path.to_string(), w.scope, w.seq)).collect()
    }

    #[test]
    fn entries_of_one_path_become_one_with_the_newest_seq() {
        let works = vec![work("a", Scope::SelfOnly, 1), work("a", Scope::SelfOnly, 7)];
        assert_eq!(listed(works), [("a".into(), Scope::SelfOnly, 7)]);
    }

    #[test]
    fn a_subtree_covers_what_lies_within_it_and_nothing_else() {
        let works = vec![
            work("a", Scope::Subtree, 1),
            work("a/b", Scope::SelfOnly, 2),
            work("a", Scope::SelfOnly, 3),
            work("ab", Scope::SelfOnly, 4),
        ];
        assert_eq!(
            listed(works),
            [
                ("a".into(), Scope::SelfOnly, 3),
                ("a".into(), Scope::Subtree, 1),
                ("ab".into(), Scope::SelfOnly, 4)
            ]
        );
    }
}
