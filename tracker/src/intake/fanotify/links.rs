//! What the stream told of single files and their names, so that the kernel is asked less often. Pure but for the
//! questions it passes on.

use hashbrown::{HashMap, HashSet};
use shared::journal;
use xxhash_rust::xxh3::xxh3_128_with_seed;

use crate::host::Host;
use crate::intake::records::{HandleRef, Named};
use crate::resolve::{Lost, Resolver};

/// Files remembered as alive; two generations.
const ALIVE_MAX: usize = 32_768;
/// Names whose files are remembered; two generations.
const NAMED_MAX: usize = 32_768;

pub(super) struct Links {
    seed: u64,
    /// Files made in this batch.
    born: HashSet<u128>,
    /// Files whose link count changed and that lived on. A link is told twice, as a change of its file and then as a
    /// name that was made, and the two may come in different batches: such a name is no birth.
    alive: HashSet<u128>,
    alive_before: HashSet<u128>,
    /// The answers of this batch.
    may_have_names: HashMap<u128, bool>,
    /// The files that names stood for when the kernel was asked. An event that tells of the end of such a name is read
    /// after that, whatever it was merged with. Two generations.
    named: HashMap<u128, u128>,
    named_before: HashMap<u128, u128>,
    /// Batches to come before which events were not seen.
    wary: u8,
}

impl Default for Links {
    fn default() -> Links {
        Links {
            seed: journal::random_seed(),
            born: HashSet::new(),
            alive: HashSet::new(),
            alive_before: HashSet::new(),
            may_have_names: HashMap::new(),
            named: HashMap::new(),
            named_before: HashMap::new(),
            wary: 2,
        }
    }
}

impl Links {
    fn key(&self, file: HandleRef<'_>) -> u128 {
        xxh3_128_with_seed(file.bytes, self.seed ^ file.kind as u64)
    }

    fn key_of_name(&self, named: &Named<'_>) -> u128 {
        xxh3_128_with_seed(named.name, self.key(named.dir) as u64)
    }

    /// A name came to an end, or stands for another file now.
    pub fn unnamed(&mut self, named: &Named<'_>) {
        if self.named.is_empty() && self.named_before.is_empty() {
            return;
        }
        let name = self.key_of_name(named);
        self.named.remove(&name);
        self.named_before.remove(&name);
    }

    /// True unless the name stands for another file, or none. What was unmounted cannot be asked; it gets a gap.
    pub fn is_named(
        &mut self,
        resolver: &mut Resolver<impl Host>,
        named: &Named<'_>,
        file: HandleRef<'_>,
    ) -> bool {
        let (name, key) = (self.key_of_name(named), self.key(file));
        let known = self.named.get(&name).or_else(|| self.named_before.get(&name));
        if known == Some(&key) {
            return true;
        }
        let Ok(is_named) = resolver.has(named.dir, named.name, file) else { return true };
        if is_named {
            if self.named.len() >= NAMED_MAX {
                self.named_before = std::mem::take(&mut self.named);
            }
            self.named.insert(name, key);
        }
        is_named
    }

    /// A batch is translated.
    pub fn end_batch(&mut self) {
        self.born.clear();
        self.may_have_names.clear();
        self.wary = self.wary.saturating_sub(1);
    }

    /// A name was made for the file.
    pub fn born(&mut self, file: HandleRef<'_>) {
        let key = self.key(file);
        if self.wary == 0 && !self.alive.contains(&key) && !self.alive_before.contains(&key) {
            self.born.insert(key);
        }
    }

    pub fn is_born(&self, file: HandleRef<'_>) -> bool {
        !self.born.is_empty() && self.born.contains(&self.key(file))
    }

    /// Its link count changed, and it is still there.
    pub fn alive(&mut self, file: HandleRef<'_>) {
        if self.alive.len() >= ALIVE_MAX {
            self.alive_before = std::mem::take(&mut self.alive);
        }
        self.alive.insert(self.key(file));
    }

    /// True unless it is certain that the file has no more than one name; asked once for each batch.
    pub fn may_have_names(
        &mut self,
        resolver: &mut Resolver<impl Host>,
        file: HandleRef<'_>,
    ) -> Result<bool, Lost> {
        let key = self.key(file);
        if let Some(&known) = self.may_have_names.get(&key) {
            return Ok(known);
        }
        let answer = resolver.may_have_names(file)?;
        self.may_have_names.insert(key, answer);
        Ok(answer)
    }
}
