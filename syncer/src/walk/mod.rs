//! A sorted walk of a tree, in the order of the catalog's keys, and its merge with the catalog's range: one stream of
//! the paths that are not what the catalog says, in bounded memory.

mod ahead;
mod children;
mod listing;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use shared::database::DatabaseError;
use shared::journal::Class;
use shared::limits;
use shared::path::RelPath;
use shared::rules::Rules;

use crate::catalog::{Catalog, CatalogRoot, Key, Row, RowPage};
use crate::examine::{self, Terms};
use crate::tree::{Stat, Tree};
use ahead::{Ahead, Begin, Place};
pub use children::Children;
use listing::Block;
pub use listing::{Bounds, Why};

/// Everything below a directory, which itself is not part of the walk; excluded paths are left out.
pub struct Walk {
    ahead: Ahead,
    levels: Vec<Level>,
    /// The key of the directory to enter before the next step.
    enter: Option<Vec<u8>>,
    /// The key of the next step, if there is one.
    key: Vec<u8>,
}

struct Level {
    block: Block,
    next: usize,
}

/// What the walk has at its key. A path of which nothing can be said stands for all below it.
pub type Step<'a> = Result<&'a Stat, &'a Why>;

impl Walk {
    pub fn below(tree: Arc<dyn Tree>, rules: Arc<Rules>, top: RelPath, bounds: Bounds) -> Walk {
        let enter = Some(top.dir_key());
        Walk { ahead: Ahead::new(tree, rules, bounds, top), levels: Vec::new(), enter, key: Vec::new() }
    }

    /// Goes to the next step; asked for it, the walk stays there until [`Walk::pass`].
    pub fn step(&mut self) -> Option<(&[u8], Step<'_>)> {
        self.find()?;
        let Level { block, next } = self.levels.last()?;
        let step = match &block.failed {
            Some(why) => Err(why),
            None => block.get(*next, &mut self.key)?.as_ref(),
        };
        Some((&self.key, step))
    }

    pub fn pass(&mut self) {
        let Some(Level { block, next }) = self.levels.last_mut() else { return };
        if block.failed.take().is_some() {
            return;
        }
        if let Some(Ok(stat)) = block.get(*next, &mut self.key)
            && stat.kind.is_dir()
        {
            self.enter = Some(self.key.clone());
        }
        *next += 1;
    }

    /// Makes the last level one with something left.
    fn find(&mut self) -> Option<()> {
        if let Some(key) = self.enter.take() {
            self.push((key, Begin::In));
        }
        loop {
            let Level { block, next } = self.levels.last()?;
            if block.failed.is_some() || *next < block.len() {
                return Some(());
            }
            let ended = self.levels.pop()?;
            if let Some(key) = ended.block.then {
                self.push((key, Begin::At));
            }
        }
    }

    fn push(&mut self, place: Place) {
        let block = self.ahead.take(&place);
        if block.failed.is_some() {
            self.key = block.path.dir_key();
        }
        self.levels.push(Level { block, next: 0 });
    }
}

/// A path that exists on at least one side, and is not surely the same on both.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pair {
    Both(RelPath, Stat, Box<Row>),
    Local(RelPath, Stat),
    /// Only a candidate for absence: the listing lacked the name.
    Row(Key, Box<Row>),
    Unknown(RelPath, Class, String),
    /// So many paths were found unchanged that the run may want to look around.
    Pause,
}

/// The merge of a walk with the catalog's rows of the same range. Rows of excluded paths, and rows below what is
/// unknown or passed over, do not appear.
pub struct Merge {
    walk: Walk,
    rules: Arc<Rules>,
    terms: Terms,
    rows: RowPage,
    /// Where the next page of rows begins; `None` at the end.
    from: Option<Vec<u8>>,
    end: Option<Vec<u8>>,
    root: CatalogRoot,
    /// Every path of the root is compared.
    whole: bool,
    /// Everything within is unknown, or owed.
    blind: Option<RelPath>,
    /// Paths that are what the catalog says, since the last time somebody asked.
    same: u64,
}

/// Whose turn it is.
enum Turn {
    Same,
    Both(Stat),
    Walk(Result<Stat, Why>),
    Row,
}

impl Merge {
    pub fn below(
        tree: Arc<dyn Tree>,
        rules: Arc<Rules>,
        terms: Terms,
        root: CatalogRoot,
        top: &RelPath,
        threads: usize,
    ) -> Merge {
        // The row of `top` itself has the key `top/`: the first key after it is one byte longer.
        let mut from = top.dir_key();
        from.push(0);
        let bounds = Bounds { slice: limits::WALK_SLICE_NAMES, block: limits::WALK_BLOCK_NAMES, threads };
        Merge {
            walk: Walk::below(tree, rules.clone(), top.clone(), bounds),
            rules,
            terms,
            rows: RowPage::default(),
            from: Some(from),
            end: top.dir_key_end(),
            root,
            whole: top.is_root(),
            blind: None,
            same: 0,
        }
    }

    /// Nothing more is to be said of what lies within.
    pub fn pass_over(&mut self, path: &RelPath) {
        self.blind = Some(path.clone());
    }

    /// How many paths were what the catalog says, since the last call.
    pub fn take_same(&mut self) -> u64 {
        std::mem::take(&mut self.same)
    }

    /// The next pair. The catalog may have changed since the last call: rows are read by pages, and a row that
    /// matters is read again.
    pub fn next(&mut self, catalog: &Catalog) -> Result<Option<Pair>, DatabaseError> {
        loop {
            self.fill(catalog)?;
            let Some((key, turn)) = self.turn() else { return Ok(None) };
            let pair = match turn {
                Turn::Same => {
                    self.same += 1;
                    self.rows.pop();
                    self.walk.pass();
                    if self.same < limits::WALK_TURN_PATHS { None } else { Some(Pair::Pause) }
                }
                Turn::Both(stat) => {
                    self.rows.pop();
                    self.walk.pass();
                    let row = catalog.get(self.root, &key)?;
                    Some(match row {
                        Some(row) => Pair::Both(key.path(), stat, Box::new(row)),
                        None => Pair::Local(key.path(), stat),
                    })
                }
                Turn::Walk(seen) => {
                    self.walk.pass();
                    Some(self.of_walk(key.path(), seen))
                }
                Turn::Row => {
                    self.rows.pop();
                    self.of_row(catalog, key)?
                }
            };
            if pair.is_some() {
                return Ok(pair);
            }
        }
    }

    fn turn(&mut self) -> Option<(Key, Turn)> {
        // A linked file may have a name elsewhere whose row says something else.
        let alone = |stat: &Stat| self.whole || stat.nlink == 1 || stat.kind.is_dir();
        let row = self.rows.front();
        let Some((key, step)) = self.walk.step() else {
            return row.map(|(key, _)| (Key(key.to_vec()), Turn::Row));
        };
        match row {
            Some((row_key, _)) if row_key < key => Some((Key(row_key.to_vec()), Turn::Row)),
            Some((row_key, known)) if row_key == key => match step {
                // Without the key: this is the case that must cost nothing.
                Ok(stat) if alone(stat) && examine::is_same(known, stat, self.terms) => {
                    Some((Key(Vec::new()), Turn::Same))
                }
                Ok(stat) => Some((Key(key.to_vec()), Turn::Both(*stat))),
                Err(why) => Some((Key(key.to_vec()), Turn::Walk(Err(why.clone())))),
            },
            _ => Some((Key(key.to_vec()), Turn::Walk(step.copied().map_err(Why::clone)))),
        }
    }

    fn of_walk(&mut self, path: RelPath, seen: Result<Stat, Why>) -> Pair {
        match seen {
            Ok(stat) => Pair::Local(path, stat),
            Err((class, reason)) => {
                self.pass_over(&path);
                Pair::Unknown(path, class, reason)
            }
        }
    }

    fn of_row(&self, catalog: &Catalog, key: Key) -> Result<Option<Pair>, DatabaseError> {
        let path = key.path();
        if self.blind.as_ref().is_some_and(|blind| path.is_within(blind)) {
            return Ok(None);
        }
        let Some(row) = catalog.get(self.root, &key)? else { return Ok(None) };
        let hidden = self.rules.excludes(&path, row.stat.kind.is_dir());
        Ok((!hidden).then(|| Pair::Row(key, Box::new(row))))
    }

    fn fill(&mut self, catalog: &Catalog) -> Result<(), DatabaseError> {
        if self.rows.front().is_some() {
            return Ok(());
        }
        let Some(from) = self.from.take() else { return Ok(()) };
        let end = self.end.as_deref();
        catalog.read_page(self.root, &from, end, limits::WALK_ROWS, &mut self.rows)?;
        self.from = self.rows.then(limits::WALK_ROWS);
        Ok(())
    }
}
