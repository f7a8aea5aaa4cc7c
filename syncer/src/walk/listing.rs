//! The names of one directory in the order of the catalog's keys, with what stands there: in slices, so that no
//! directory is too big, and in blocks, so that several threads can look ahead.

use std::cmp::Ordering;
use std::ffi::CStr;
use std::io;
use std::sync::Arc;

use shared::journal::Class;
use shared::path::RelPath;
use shared::rules::Rules;

use crate::tree::{Dir, Stat};

/// How much is held at once.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Names of one directory. One with more is read again for each further slice.
    pub slice: usize,
    /// Names looked at in one go.
    pub block: usize,
    /// That look ahead; none is needed.
    pub threads: usize,
}

/// Names in one buffer, each with a NUL at its end.
#[derive(Default)]
pub struct Names {
    bytes: Vec<u8>,
    list: Vec<Name>,
}

#[derive(Debug, Clone, Copy)]
struct Name {
    at: usize,
    len: usize,
    is_dir: bool,
}

/// A directory that is being listed.
pub struct Listing {
    dir: Arc<dyn Dir>,
    path: RelPath,
    names: Arc<Names>,
    /// The first name that no block had yet.
    next: usize,
    /// There are names behind this slice.
    more: bool,
}

/// What stands at some names of a directory.
pub struct Block {
    pub path: RelPath,
    names: Arc<Names>,
    seen: Vec<(Name, Result<Stat, Why>)>,
    /// The key at which the directory goes on.
    pub then: Option<Vec<u8>>,
    /// Nothing can be said of the directory, or of the rest of it.
    pub failed: Option<Why>,
}

/// Why nothing can be said.
pub type Why = (Class, String);

impl Listing {
    pub fn new(dir: Arc<dyn Dir>, path: RelPath, bounds: Bounds) -> io::Result<Listing> {
        let (names, more) = Names::read(&*dir, None, bounds.slice)?;
        Ok(Listing { dir, path, names: Arc::new(names), next: 0, more })
    }

    pub fn dir(&self) -> &Arc<dyn Dir> {
        &self.dir
    }

    pub fn path(&self) -> &RelPath {
        &self.path
    }

    /// Looks at the next names; returns the rest of the listing, if there is one. What the rules exclude is left out,
    /// and so is what is gone already: that a name is not listed proves nothing, so whoever misses it looks.
    pub fn block(mut self, rules: &Rules, bounds: Bounds) -> io::Result<(Block, Option<Listing>)> {
        let end = self.names.list.len().min(self.next + bounds.block);
        let mut seen = Vec::with_capacity(end - self.next);
        for &name in &self.names.list[self.next..end] {
            let excluded = !rules.is_empty() && {
                let path = self.path.child(self.names.bytes_of(name)).map_err(io::Error::other)?;
                rules.excludes_within(&path, name.is_dir)
            };
            if excluded {
                continue;
            }
            match self.dir.stat(self.names.text_of(name)?) {
                Ok(stat) if stat.kind.is_dir() == name.is_dir => seen.push((name, Ok(stat))),
                Ok(_) => seen.push((name, Err((Class::Busy, "it became something else just now".into())))),
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => seen.push((name, Err(why(&e)))),
            }
        }
        let names = self.names.clone();
        self.next = end;
        if end == names.list.len() {
            let Some(last) = names.list.last().filter(|_| self.more) else {
                return Ok((Block { path: self.path, names, seen, then: None, failed: None }, None));
            };
            let (next, more) = Names::read(&*self.dir, Some(names.key_of(*last)), bounds.slice)?;
            (self.names, self.more, self.next) = (Arc::new(next), more, 0);
        }
        let path = self.path.clone();
        let then = self.names.list.get(self.next).map(|name| self.names.full_key(&path, *name));
        let rest = then.is_some().then_some(self);
        Ok((Block { path, names, seen, then, failed: None }, rest))
    }
}

impl Block {
    pub fn failed(path: RelPath, why: Why) -> Block {
        Block { path, names: Arc::default(), seen: Vec::new(), then: None, failed: Some(why) }
    }

    pub fn empty(path: RelPath) -> Block {
        Block { path, names: Arc::default(), seen: Vec::new(), then: None, failed: None }
    }

    pub fn len(&self) -> usize {
        self.seen.len()
    }

    /// What was seen at the place `at`, and its key.
    pub fn get(&self, at: usize, key: &mut Vec<u8>) -> Option<&Result<Stat, Why>> {
        let (name, seen) = self.seen.get(at)?;
        self.names.write_key(&self.path, *name, key);
        Some(seen)
    }

    /// Names and keys of the directories among them.
    pub fn dirs(&self) -> impl Iterator<Item = (&[u8], Vec<u8>)> {
        let dirs = self.seen.iter().filter(|(_, seen)| matches!(seen, Ok(stat) if stat.kind.is_dir()));
        dirs.map(|(name, _)| (self.names.bytes_of(*name), self.names.full_key(&self.path, *name)))
    }
}

impl Names {
    /// The first `max` names behind `after`, sorted, and whether there are more.
    pub fn read(dir: &dyn Dir, after: Option<(&[u8], bool)>, max: usize) -> io::Result<(Names, bool)> {
        let mut names = Names::default();
        let mut more = false;
        dir.names(&mut |name, is_dir| {
            let is_dir = is_dir.unwrap_or_else(|| dir.stat(name).is_ok_and(|stat| stat.kind.is_dir()));
            if after.is_none_or(|after| order((name.to_bytes(), is_dir), after).is_gt()) {
                names.push(name, is_dir);
                if names.list.len() >= 2 * max {
                    names.keep_first(max);
                    more = true;
                }
            }
        })?;
        if names.list.len() > max {
            names.keep_first(max);
            more = true;
        }
        let bytes = &names.bytes;
        names.list.sort_unstable_by(|a, b| order(a.key(bytes), b.key(bytes)));
        Ok((names, more))
    }

    fn push(&mut self, name: &CStr, is_dir: bool) {
        let (at, len) = (self.bytes.len(), name.to_bytes().len());
        self.bytes.extend_from_slice(name.to_bytes_with_nul());
        self.list.push(Name { at, len, is_dir });
    }

    /// Drops all but the first `max` names.
    fn keep_first(&mut self, max: usize) {
        let bytes = &self.bytes;
        self.list.select_nth_unstable_by(max, |a, b| order(a.key(bytes), b.key(bytes)));
        let mut kept = Names::default();
        for name in &self.list[..max] {
            kept.list.push(Name { at: kept.bytes.len(), ..*name });
            kept.bytes.extend_from_slice(&bytes[name.at..=name.at + name.len]);
        }
        *self = kept;
    }

    /// A name, and whether it is a directory.
    pub fn get(&self, at: usize) -> Option<(&[u8], bool)> {
        Some(self.key_of(*self.list.get(at)?))
    }

    pub fn text(&self, at: usize) -> io::Result<&CStr> {
        self.list.get(at).ok_or(io::ErrorKind::NotFound.into()).and_then(|name| self.text_of(*name))
    }

    fn bytes_of(&self, name: Name) -> &[u8] {
        &self.bytes[name.at..name.at + name.len]
    }

    fn text_of(&self, name: Name) -> io::Result<&CStr> {
        CStr::from_bytes_with_nul(&self.bytes[name.at..=name.at + name.len]).map_err(io::Error::other)
    }

    fn key_of(&self, name: Name) -> (&[u8], bool) {
        name.key(&self.bytes)
    }

    fn full_key(&self, dir: &RelPath, name: Name) -> Vec<u8> {
        let mut key = Vec::new();
        self.write_key(dir, name, &mut key);
        key
    }

    fn write_key(&self, dir: &RelPath, name: Name, key: &mut Vec<u8>) {
        key.clear();
        if !dir.is_root() {
            key.extend_from_slice(dir.as_bytes());
            key.push(b'/');
        }
        key.extend_from_slice(self.bytes_of(name));
        if name.is_dir {
            key.push(b'/');
        }
    }
}

impl Name {
    fn key(self, bytes: &[u8]) -> (&[u8], bool) {
        (&bytes[self.at..self.at + self.len], self.is_dir)
    }
}

/// The order of keys: a directory's name goes on with `/`.
pub fn order(a: (&[u8], bool), b: (&[u8], bool)) -> Ordering {
    let common = a.0.len().min(b.0.len());
    let rest = |(name, is_dir): (&[u8], bool)| name.get(common).copied().or(is_dir.then_some(b'/'));
    a.0[..common].cmp(&b.0[..common]).then_with(|| rest(a).cmp(&rest(b)))
}

/// Another filesystem or subvolume is skipped and named; everything else is a trouble.
pub fn why(e: &io::Error) -> Why {
    let class = if e.kind() == io::ErrorKind::CrossesDevices { Class::Elsewhere } else { Class::Unknown };
    (class, e.to_string())
}
