//! A sorted walk of a tree, in the order of the catalog's keys, and its merge with the catalog's range: one stream of
//! paths that exist on either side, in bounded memory (the names of the directories on the way down).

use std::collections::VecDeque;
use std::io;
use std::iter::Peekable;
use std::sync::Arc;

use shared::database::DatabaseError;
use shared::journal::Class;
use shared::path::RelPath;
use shared::rules::Rules;

use crate::catalog::{Catalog, CatalogRoot, Key, Row};
use crate::tree::{Stat, Tree};

/// One step of the walk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    Found(RelPath, Stat),
    /// Nothing can be said of this path and what is below it; the class says why.
    Unknown(RelPath, Class, String),
}

struct Level {
    dir: RelPath,
    /// Sorted in reverse, so that the next is popped from the end.
    names: Vec<(Vec<u8>, io::Result<Stat>)>,
}

/// Walks everything below a directory; excluded paths are left out.
pub struct Walk {
    tree: Arc<dyn Tree>,
    rules: Arc<Rules>,
    levels: Vec<Level>,
    /// The directory to enter before the next step.
    enter: Option<RelPath>,
}

impl Walk {
    /// Everything below `top`, which itself is not part of the walk.
    pub fn below(tree: Arc<dyn Tree>, rules: Arc<Rules>, top: RelPath) -> Walk {
        Walk { tree, rules, levels: Vec::new(), enter: Some(top) }
    }

    fn open(&mut self, dir: RelPath) -> Option<Step> {
        match self.tree.list(&dir) {
            Ok(mut names) => {
                names.sort_by_cached_key(|(name, stat)| std::cmp::Reverse(sort_key(name, stat)));
                self.levels.push(Level { dir, names });
                None
            }
            Err(e) => Some(Step::Unknown(dir, class_of(&e.source), e.to_string())),
        }
    }
}

fn sort_key(name: &[u8], stat: &io::Result<Stat>) -> Vec<u8> {
    let mut key = name.to_vec();
    if matches!(stat, Ok(s) if s.kind.is_dir()) {
        key.push(b'/');
    }
    key
}

/// Another filesystem or subvolume is skipped and named; everything else is a trouble.
fn class_of(e: &io::Error) -> Class {
    if e.kind() == io::ErrorKind::CrossesDevices { Class::Elsewhere } else { Class::Unknown }
}

impl Iterator for Walk {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        if let Some(dir) = self.enter.take()
            && let Some(step) = self.open(dir)
        {
            return Some(step);
        }
        loop {
            let level = self.levels.last_mut()?;
            let Some((name, stat)) = level.names.pop() else {
                self.levels.pop();
                continue;
            };
            // The kernel gives no name that is not one component.
            let Ok(path) = level.dir.child(&name) else { continue };
            let is_dir = matches!(&stat, Ok(s) if s.kind.is_dir());
            if self.rules.excludes(&path, is_dir) {
                continue;
            }
            return Some(match stat {
                Ok(stat) => {
                    if is_dir {
                        self.enter = Some(path.clone());
                    }
                    Step::Found(path, stat)
                }
                Err(e) => Step::Unknown(path, class_of(&e), e.to_string()),
            });
        }
    }
}

/// A path that exists on at least one side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pair {
    Both(RelPath, Stat, Box<Row>),
    Local(RelPath, Stat),
    /// Only a candidate for absence: the listing lacked the name.
    Row(Key, Box<Row>),
    Unknown(RelPath, Class, String),
}

const PAGE: usize = 1_000;

/// The merge of a walk with the catalog's rows of the same range. Rows of excluded paths, and rows below what is
/// unknown, do not appear.
pub struct Merge {
    walk: Peekable<Walk>,
    rules: Arc<Rules>,
    rows: VecDeque<(Key, Row)>,
    /// Where the next page of rows begins; `None` at the end.
    from: Option<Vec<u8>>,
    end: Option<Vec<u8>>,
    root: CatalogRoot,
    /// Everything within is unknown.
    blind: Option<RelPath>,
}

impl Merge {
    pub fn below(tree: Arc<dyn Tree>, rules: Arc<Rules>, root: CatalogRoot, top: &RelPath) -> Merge {
        // The row of `top` itself has the key `top/`: the first key after it is one byte longer.
        let mut from = top.dir_key();
        from.push(0);
        Merge {
            walk: Walk::below(tree, rules.clone(), top.clone()).peekable(),
            rules,
            rows: VecDeque::new(),
            from: Some(from),
            end: top.dir_key_end(),
            root,
            blind: None,
        }
    }

    /// The next pair. The catalog may have changed since the last call: rows are read by pages.
    pub fn next(&mut self, catalog: &Catalog) -> Result<Option<Pair>, DatabaseError> {
        loop {
            self.fill(catalog)?;
            let walk_key = self.walk.peek().map(|step| match step {
                Step::Found(path, stat) => Key::new(path, stat.kind),
                Step::Unknown(path, ..) => Key(path.as_bytes().to_vec()),
            });
            let row_key = self.rows.front().map(|(key, _)| key);
            let pair = match (walk_key, row_key) {
                (None, None) => return Ok(None),
                (Some(w), Some(r)) if w == *r => self.take_both(),
                (Some(w), Some(r)) if w < *r => self.take_step(),
                (Some(_), None) => self.take_step(),
                (_, Some(_)) => self.rows.pop_front().map(|(key, row)| Pair::Row(key, Box::new(row))),
            };
            match pair {
                Some(Pair::Row(key, row)) if self.is_hidden(&key, &row) => continue,
                Some(Pair::Unknown(path, class, reason)) => {
                    self.blind = Some(path.clone());
                    return Ok(Some(Pair::Unknown(path, class, reason)));
                }
                Some(pair) => return Ok(Some(pair)),
                None => continue,
            }
        }
    }

    fn is_hidden(&self, key: &Key, row: &Row) -> bool {
        let path = key.path();
        self.blind.as_ref().is_some_and(|blind| path.is_within(blind))
            || self.rules.excludes(&path, row.stat.kind.is_dir())
    }

    fn take_step(&mut self) -> Option<Pair> {
        Some(match self.walk.next()? {
            Step::Found(path, stat) => Pair::Local(path, stat),
            Step::Unknown(path, class, reason) => Pair::Unknown(path, class, reason),
        })
    }

    fn take_both(&mut self) -> Option<Pair> {
        let (_, row) = self.rows.pop_front()?;
        Some(match self.walk.next()? {
            Step::Found(path, stat) => Pair::Both(path, stat, Box::new(row)),
            Step::Unknown(path, class, reason) => Pair::Unknown(path, class, reason),
        })
    }

    fn fill(&mut self, catalog: &Catalog) -> Result<(), DatabaseError> {
        if !self.rows.is_empty() {
            return Ok(());
        }
        let Some(from) = self.from.take() else { return Ok(()) };
        self.rows = catalog.range(self.root, &from, self.end.as_deref(), PAGE)?.into();
        if self.rows.len() == PAGE {
            self.from = self.rows.back().map(|(key, _)| [key.0.as_slice(), &[0]].concat());
        }
        Ok(())
    }
}
