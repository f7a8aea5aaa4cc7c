//! From work (entries and deferred rows) to single paths with what was seen of each: the looks of a batch.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use shared::database::DatabaseError;
use shared::entry::{Mask, Scope};
use shared::journal::Class;
use shared::limits;
use shared::path::RelPath;
use shared::rules::Rules;

use super::threads::Threads;
use crate::catalog::{Catalog, CatalogRoot, Key, Origin, Row, RowState};
use crate::examine::Terms;
use crate::leg::Holds;
use crate::tree::{Look, Stat, Tree};
use crate::walk::{Children, Merge, Pair};

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
    /// What is being gone through; the last one first.
    below: Vec<Below>,
    /// Paths that lie within a subtree of the list and were looked at before it.
    apart: HashSet<(usize, RelPath)>,
    /// Subtrees that were not on the list, with the seq of their cause.
    covered: HashMap<(usize, RelPath), u64>,
    /// Paths that a subtree may bring before the rest of it is put off; none for what was put off before.
    plan_max: Option<usize>,
    /// Subtrees that brought more than that.
    put_off: Vec<Work>,
    /// Paths that were taken out of a batch: the next one begins with them.
    again: Vec<Work>,
}

/// What is below a work's own path, taken page by page.
enum Below {
    /// A tree, merged with its rows; and how many paths it brought so far.
    Merge(Box<Merge>, Work, usize),
    /// The rows of a directory that is gone, from this key on.
    Gone(Vec<u8>, Work),
    /// The names in a directory that are not those of its rows.
    Names(Box<Children>, Work),
}

/// The next paths, or what was done in their place.
#[derive(Debug, Default)]
pub struct Taken {
    pub items: Vec<Item>,
    /// Paths that were what the catalog says.
    pub same: u64,
    /// Nothing is left.
    pub ended: bool,
}

/// What a source looks at paths with.
#[derive(Clone, Copy)]
pub struct Eyes<'a> {
    pub grounds: &'a [Option<Ground>],
    pub catalog: &'a Catalog,
    pub holds: Holds,
    pub threads: Threads,
}

impl Source {
    /// Tonight's changes: single paths first, one per path and scope, then subtrees. A subtree that brings too many
    /// paths is put off. In key order.
    pub fn of_entries(works: Vec<Work>) -> Source {
        Source { plan_max: Some(limits::GAP_PLAN_PATHS), ..Source::new(works) }
    }

    /// What was owed, newest first: it waited for its turn, or for its disk.
    pub fn of_due(works: Vec<Work>) -> Source {
        let mut source = Source::new(works);
        source.works.make_contiguous().sort_by_key(|w| std::cmp::Reverse(w.seq));
        source
    }

    fn new(mut works: Vec<Work>) -> Source {
        // In the order of directories' keys, so that what lies within a subtree follows it without a gap.
        works.sort_by_cached_key(|w| (w.root, w.path.dir_key(), w.scope));
        let mut singles: VecDeque<Work> = VecDeque::with_capacity(works.len());
        let (mut subtrees, mut apart) = (VecDeque::<Work>::new(), HashSet::new());
        // The outermost subtree around what comes next.
        let mut cover: Option<Work> = None;
        for mut work in works {
            let around = cover.as_mut().filter(|t| t.root == work.root && work.path.is_within(&t.path));
            match around {
                // The subtree may stand for events of it that nobody saw.
                Some(_) if work.scope == Scope::SelfOnly => {
                    work.mask |= Mask::UNKNOWN;
                    apart.insert((work.root, work.path.clone()));
                }
                // A name's place in the list is told by the subtree around it, too. What is owed for a newer reason than
                // that does not wait for all of it.
                Some(tree)
                    if tree.seq >= work.seq && (tree.path != work.path || work.scope == Scope::Names) =>
                {
                    continue;
                }
                Some(tree) if tree.path == work.path => tree.seq = tree.seq.max(work.seq),
                None if work.is_tree() => cover = Some(work.clone()),
                _ => {}
            }
            let list = if work.is_tree() { &mut subtrees } else { &mut singles };
            match list.back_mut() {
                Some(last) if (last.root, &last.path, last.scope) == (work.root, &work.path, work.scope) => {
                    last.mask |= work.mask;
                    last.seq = last.seq.max(work.seq);
                }
                _ => list.push_back(work),
            }
        }
        singles.append(&mut subtrees);
        Source { works: singles, apart, ..Source::default() }
    }

    /// The next paths, about `limits::BATCH_PATHS`.
    pub fn next_batch(&mut self, eyes: Eyes<'_>) -> Result<Taken, DatabaseError> {
        let mut taken = Taken::default();
        for work in std::mem::take(&mut self.again) {
            self.begin(eyes, work, &mut taken)?;
        }
        while taken.items.len() < limits::BATCH_PATHS && taken.same < limits::WALK_TURN_PATHS {
            if let Some(below) = self.below.pop() {
                self.go_below(eyes, below, &mut taken)?;
            } else if let Some(work) = self.works.pop_front() {
                if !self.is_covered(&work) {
                    self.begin(eyes, work, &mut taken)?;
                }
            } else {
                taken.ended = taken.items.is_empty() && taken.same == 0;
                break;
            }
        }
        Ok(taken)
    }

    /// Looks at a work's own path; what is below it comes next.
    fn begin(&mut self, eyes: Eyes<'_>, work: Work, taken: &mut Taken) -> Result<(), DatabaseError> {
        // Roots that are not proven were deferred when the list was made.
        let Some(ground) = eyes.grounds[work.root].as_ref() else { return Ok(()) };
        let looked = examine_path(ground, eyes.catalog, &work)?;
        taken.items.extend(looked.items);
        match looked.below {
            What::Tree if work.is_tree() => {
                let (tree, rules) = (ground.tree.clone(), ground.rules.clone());
                let terms = Terms { holds: eyes.holds, stable_inodes: tree.stable_inodes() };
                let ahead = eyes.threads.ahead();
                let merge = Merge::below(tree, rules, terms, ground.catalog, &work.path, ahead);
                self.below.push(Below::Merge(Box::new(merge), work, 0));
            }
            What::Tree if work.scope == Scope::Names => {
                let (tree, rules) = (&*ground.tree, ground.rules.clone());
                let children =
                    Children::of(tree, rules, ground.catalog, &work.path, limits::WALK_SLICE_NAMES);
                match children {
                    Ok(Some(children)) => self.below.push(Below::Names(Box::new(children), work)),
                    Ok(None) => {}
                    Err((class, reason)) => {
                        let (path, scope) = (work.path.clone(), work.scope);
                        taken.items.push(unknown(&work, path, scope, class, reason));
                    }
                }
            }
            What::Gone => self.below.push(Below::Gone(work.path.dir_key(), work)),
            _ => {}
        }
        Ok(())
    }

    /// Adds the next items.
    fn go_below(&mut self, eyes: Eyes<'_>, below: Below, taken: &mut Taken) -> Result<(), DatabaseError> {
        match below {
            Below::Merge(mut merge, work, brought) => {
                let Some(ground) = &eyes.grounds[work.root] else { return Ok(()) };
                let pair = merge.next(eyes.catalog)?;
                taken.same += merge.take_same();
                let Some(pair) = pair else { return Ok(()) };
                let items = of_pair(ground, &work, pair);
                for item in &items {
                    if let Item::Unknown { path, scope: Scope::Subtree, .. } = item {
                        merge.pass_over(path);
                    }
                }
                let before = taken.items.len();
                taken.items.extend(items.into_iter().filter(|item| !self.was_apart(item)));
                let brought = brought + taken.items.len() - before;
                match self.plan_max {
                    Some(max) if brought > max => self.put_off.push(work),
                    _ => self.below.push(Below::Merge(merge, work, brought)),
                }
            }
            Below::Names(mut children, work) => match children.next(eyes.catalog)? {
                None => {}
                Some(Ok(path)) => {
                    let child = Work { path, scope: Scope::Subtree, ..work.clone() };
                    self.covered.insert((child.root, child.path.clone()), child.seq);
                    self.below.push(Below::Names(children, work));
                    self.begin(eyes, child, taken)?;
                }
                Some(Err((class, reason))) => {
                    taken.items.push(unknown(&work, work.path.clone(), work.scope, class, reason));
                }
            },
            Below::Gone(from, work) => {
                let Some(ground) = &eyes.grounds[work.root] else { return Ok(()) };
                let end = work.path.dir_key_end();
                let rows = eyes.catalog.range(ground.catalog, &from, end.as_deref(), limits::BATCH_PATHS)?;
                let Some((last, _)) = rows.last() else { return Ok(()) };
                let from = [last.0.as_slice(), &[0]].concat();
                taken.items.extend(rows.into_iter().filter_map(|(key, row)| gone(ground, &work, key, row)));
                self.below.push(Below::Gone(from, work));
            }
        }
        Ok(())
    }

    /// A new directory was looked at with all below it, because its name was new; except what is looked at apart.
    fn is_covered(&self, work: &Work) -> bool {
        if work.scope == Scope::SelfOnly && self.apart.contains(&(work.root, work.path.clone())) {
            return false;
        }
        let mut at = if self.covered.is_empty() { None } else { Some(work.path.clone()) };
        while let Some(path) = at {
            at = path.parent();
            if self.covered.get(&(work.root, path)).is_some_and(|seq| *seq >= work.seq) {
                return true;
            }
        }
        false
    }

    fn was_apart(&self, item: &Item) -> bool {
        matches!(item, Item::Check { root, path, .. } if self.apart.contains(&(*root, path.clone())))
    }

    /// Subtrees whose rest is to be owed, since the last call.
    pub fn take_put_off(&mut self) -> Vec<Work> {
        std::mem::take(&mut self.put_off)
    }

    /// What did not fit into the last batch.
    pub fn look_again(&mut self, works: Vec<Work>) {
        self.again = works;
    }

    /// Ends before the end; returns what is not done, except for what was taken out of the last batch: that is still to
    /// come.
    pub fn stop(&mut self) -> Vec<Work> {
        let begun = self.below.drain(..).map(|below| match below {
            Below::Merge(_, work, _) | Below::Gone(_, work) | Below::Names(_, work) => work,
        });
        begun.chain(self.works.drain(..)).collect()
    }
}

impl Work {
    pub fn is_tree(&self) -> bool {
        matches!(self.scope, Scope::Subtree | Scope::Full)
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
            // A file whose place an excluded directory took is gone all the same.
            let displaced = if stat.kind.is_dir() { own_row()? } else { None };
            Looked { items: displaced.into_iter().collect(), below: What::Nothing }
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
        Pair::Pause => Vec::new(),
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
                let path = key.path();
                // A directory that was not listed was not entered.
                let reason = "the list of names that it is in lacked it".to_owned();
                let below = stat
                    .kind
                    .is_dir()
                    .then(|| unknown(work, path.clone(), Scope::Subtree, Class::Gap, reason));
                [Some(check(work, path, stat, Some(*row))), below].into_iter().flatten().collect()
            }
            Look::Found(_) => gone(ground, work, key, *row).into_iter().collect(),
            // Nor was it entered, if it is a directory.
            Look::Elsewhere(reason) => {
                vec![unknown(work, key.path(), Scope::Subtree, Class::Elsewhere, reason)]
            }
            Look::Unknown(reason) => vec![unknown(work, key.path(), Scope::Subtree, Class::Unknown, reason)],
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
    fn a_subtree_covers_subtrees_and_leaves_single_paths_to_be_looked_at_first() {
        let works = vec![
            work("a", Scope::Subtree, 1),
            work("a/b", Scope::SelfOnly, 1),
            work("a/c", Scope::Subtree, 1),
            work("ab", Scope::SelfOnly, 1),
        ];
        let source = Source::new(works.clone());
        assert_eq!(source.apart, HashSet::from([(0, works[1].path.clone())]));
        let single = |path: &str| (path.to_owned(), Scope::SelfOnly, 1);
        assert_eq!(listed(works), [single("a/b"), single("ab"), ("a".into(), Scope::Subtree, 1)]);
    }

    #[test]
    fn what_is_looked_at_apart_is_left_out_by_no_other_directory_around_it() {
        let list = vec![
            work("new/d", Scope::Subtree, 9),
            work("new/d/f", Scope::SelfOnly, 9),
            work("new/g", Scope::SelfOnly, 9),
        ];
        let mut source = Source::new(list);
        source.covered.insert((0, RelPath::parse(b"new").unwrap()), 9);
        let left: Vec<_> = source.works.iter().filter(|w| !source.is_covered(w)).collect();
        assert_eq!(left.len(), 1, "the walk of `new` brings the others: {left:?}");
        assert_eq!(
            (left[0].path.to_string().as_str(), left[0].mask),
            ("new/d/f", Mask::MODIFY | Mask::UNKNOWN)
        );
    }

    #[test]
    fn what_is_owed_is_served_newest_first_and_waits_for_no_older_subtree_around_it() {
        let works = vec![
            work("old", Scope::Subtree, 1),
            work("old/newer", Scope::Subtree, 3),
            work("old/older", Scope::Subtree, 1),
            work("x", Scope::SelfOnly, 2),
        ];
        let source = Source::of_due(works);
        let order: Vec<_> = source.works.iter().map(|w| w.path.to_string()).collect();
        assert_eq!(order, ["old/newer", "x", "old"]);
    }
}
