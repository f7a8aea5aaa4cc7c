//! From work (entries and deferred rows) to single paths with what was seen of each: the looks of a batch.

use std::collections::VecDeque;
use std::sync::Arc;

use shared::database::DatabaseError;
use shared::entry::{Mask, Scope};
use shared::journal::Class;
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
    Unknown { root: usize, path: RelPath, scope: Scope, mask: Mask, seq: u64, class: Class, reason: String },
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
    below: Option<Below>,
}

/// What is below a work's own path, taken page by page.
enum Below {
    /// A tree, merged with its rows.
    Merge(Box<Merge>, Work),
    /// The rows of a directory that is gone, from this key on.
    Gone(Vec<u8>, Work),
}

impl Source {
    /// Works in key order, one per path and scope; what lies within a subtree of the list is covered by it.
    pub fn new(mut works: Vec<Work>) -> Source {
        // In the order of directories' keys, so that what lies within a subtree follows it without a gap.
        works.sort_by_cached_key(|w| (w.root, w.path.dir_key(), w.scope));
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
                Some(last) if (last.root, &last.path, last.scope) == (work.root, &work.path, work.scope) => {
                    last.mask |= work.mask;
                    last.seq = last.seq.max(work.seq);
                }
                _ => out.push_back(work),
            }
        }
        Source { works: out, below: None }
    }

    /// The next items, about `limits::BATCH_PATHS`; empty at the end.
    pub fn next_batch(
        &mut self,
        grounds: &[Option<Ground>],
        catalog: &Catalog,
    ) -> Result<Vec<Item>, DatabaseError> {
        let mut items = Vec::new();
        while items.len() < limits::BATCH_PATHS {
            if let Some(below) = self.below.take() {
                self.below = below.next(grounds, catalog, &mut items)?;
                continue;
            }
            let Some(work) = self.works.pop_front() else { break };
            // Roots that are not proven were deferred when the list was made.
            let Some(ground) = grounds[work.root].as_ref() else { continue };
            let looked = examine_path(ground, catalog, &work)?;
            items.extend(looked.items);
            self.below = match looked.below {
                What::Tree if matches!(work.scope, Scope::Subtree | Scope::Full) => {
                    let (tree, rules) = (ground.tree.clone(), ground.rules.clone());
                    let merge = Merge::below(tree, rules, ground.catalog, &work.path);
                    Some(Below::Merge(Box::new(merge), work))
                }
                What::Gone => Some(Below::Gone(work.path.dir_key(), work)),
                _ => None,
            };
        }
        Ok(items)
    }
}

impl Below {
    /// Adds the next items; `None` at the end.
    fn next(
        self,
        grounds: &[Option<Ground>],
        catalog: &Catalog,
        items: &mut Vec<Item>,
    ) -> Result<Option<Below>, DatabaseError> {
        match self {
            Below::Merge(mut merge, work) => {
                let (Some(ground), Some(pair)) = (&grounds[work.root], merge.next(catalog)?) else {
                    return Ok(None);
                };
                items.extend(of_pair(ground, &work, pair));
                Ok(Some(Below::Merge(merge, work)))
            }
            Below::Gone(from, work) => {
                let Some(ground) = &grounds[work.root] else { return Ok(None) };
                let end = work.path.dir_key_end();
                let rows = catalog.range(ground.catalog, &from, end.as_deref(), limits::BATCH_PATHS)?;
                let Some((last, _)) = rows.last() else { return Ok(None) };
                let from = [last.0.as_slice(), &[0]].concat();
                items.extend(rows.into_iter().filter_map(|(key, row)| gone(ground, &work, key, row)));
                Ok(Some(Below::Gone(from, work)))
            }
        }
    }
}

/// What was seen of one path, and what is to be taken from below it.
pub struct Looked {
    pub items: Vec<Item>,
    below: What,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    /// It is a directory.
    Tree,
    /// It is no directory, or nothing: rows that stand below it are gone.
    Gone,
    /// Nothing can be said, or nothing matters.
    Nothing,
}

/// Looks at one work's own path.
pub fn examine_path(ground: &Ground, catalog: &Catalog, work: &Work) -> Result<Looked, DatabaseError> {
    let file_key = Key(work.path.as_bytes().to_vec());
    let own_row = || -> Result<Option<Item>, DatabaseError> {
        if work.path.is_root() {
            return Ok(None); // its key is a directory's
        }
        let row = catalog.get(ground.catalog, &file_key)?;
        Ok(row.and_then(|row| gone(ground, work, file_key.clone(), row)))
    };
    Ok(match ground.tree.look(&work.path) {
        Look::Found(stat) if ground.rules.excludes(&work.path, stat.kind.is_dir()) => {
            Looked { items: Vec::new(), below: What::Nothing }
        }
        Look::Found(stat) => {
            // Of a file that a directory took the place of, the row is gone; and the other way round, those below.
            let displaced = if stat.kind.is_dir() { own_row()? } else { None };
            let row = catalog.get(ground.catalog, &Key::new(&work.path, stat.kind))?;
            let mut items: Vec<Item> = displaced.into_iter().collect();
            items.push(check(work, work.path.clone(), stat, row));
            Looked { items, below: if stat.kind.is_dir() { What::Tree } else { What::Gone } }
        }
        Look::Gone { .. } => {
            let mut items: Vec<Item> = own_row()?.into_iter().collect();
            // Even what came and went between two runs changed its directory's times.
            items.extend(parent_of(ground, catalog, work)?);
            Looked { items, below: What::Gone }
        }
        Look::Elsewhere(reason) => {
            let item = unknown(work, work.path.clone(), work.scope, Class::Elsewhere, reason);
            Looked { items: vec![item], below: What::Nothing }
        }
        Look::Unknown(reason) => {
            let item = unknown(work, work.path.clone(), work.scope, Class::Unknown, reason);
            Looked { items: vec![item], below: What::Nothing }
        }
    })
}

fn parent_of(ground: &Ground, catalog: &Catalog, work: &Work) -> Result<Option<Item>, DatabaseError> {
    let Some(parent) = work.path.parent() else { return Ok(None) };
    let Look::Found(stat) = ground.tree.look(&parent) else { return Ok(None) };
    let row = catalog.get(ground.catalog, &Key::new(&parent, stat.kind))?;
    Ok(row.map(|row| check(work, parent, stat, Some(row))))
}

fn of_pair(ground: &Ground, work: &Work, pair: Pair) -> Vec<Item> {
    match pair {
        Pair::Both(path, stat, row) => vec![check(work, path, stat, Some(*row))],
        Pair::Local(path, stat) => vec![check(work, path, stat, None)],
        Pair::Unknown(path, class, reason) => {
            let scope = if path == work.path { work.scope } else { Scope::Subtree };
            vec![unknown(work, path, scope, class, reason)]
        }
        // A listing that lacks a name proves nothing: the name itself is asked for.
        Pair::Row(key, row) => match ground.tree.look(&key.path()) {
            Look::Gone { .. } => gone(ground, work, key, *row).into_iter().collect(),
            Look::Found(stat) if Key::new(&key.path(), stat.kind) == key => {
                vec![check(work, key.path(), stat, Some(*row))]
            }
            Look::Found(_) => gone(ground, work, key, *row).into_iter().collect(),
            Look::Elsewhere(reason) => {
                vec![unknown(work, key.path(), Scope::SelfOnly, Class::Elsewhere, reason)]
            }
            Look::Unknown(reason) => vec![unknown(work, key.path(), Scope::SelfOnly, Class::Unknown, reason)],
        },
    }
}

fn check(work: &Work, path: RelPath, stat: Stat, row: Option<Row>) -> Item {
    let mask = if work.scope == Scope::SelfOnly { work.mask } else { work.mask | Mask::UNKNOWN };
    Item::Check { root: work.root, path, stat, row: row.map(Box::new), mask, seq: work.seq }
}

/// `None` for rows that are not ours to remove: excluded paths, foreign objects that hold nothing, what is known to be
/// gone.
fn gone(ground: &Ground, work: &Work, key: Key, row: Row) -> Option<Item> {
    let kept = ground.rules.excludes(&key.path(), row.stat.kind.is_dir())
        || (row.origin == Origin::ListedForeign && row.state != RowState::Held)
        || row.state == RowState::Absent;
    (!kept).then(|| Item::Gone { root: work.root, key, row: Box::new(row), mask: work.mask, seq: work.seq })
}

fn unknown(work: &Work, path: RelPath, scope: Scope, class: Class, reason: String) -> Item {
    Item::Unknown { root: work.root, path, scope, mask: work.mask, seq: work.seq, class, reason }
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
