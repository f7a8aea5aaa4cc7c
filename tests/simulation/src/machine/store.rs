//! The fd store of the service manager: what it keeps for a service outlives every end of it, and no reboot.

use std::cell::Cell;
use std::sync::{Arc, Mutex};

use tracker::intake::buffer::{TOTAL_BYTES, WORDS};

use super::{GroupId, Machine};

/// A memfd of the size of an intake buffer. What is in it is taken out for as long as a process has it mapped.
pub type Memory = Arc<Mutex<Option<Box<Mapped>>>>;

/// What a memfd holds. The words at its head are stored through a shared reference, as through a mapping.
#[derive(Debug, Clone)]
pub struct Mapped {
    pub words: [Cell<u64>; WORDS],
    pub bytes: Vec<u8>,
}

impl Default for Mapped {
    fn default() -> Mapped {
        Mapped { words: [const { Cell::new(0) }; WORDS], bytes: vec![0; TOTAL_BYTES] }
    }
}

#[derive(Debug, Clone)]
pub enum Kept {
    Group(GroupId),
    Memory(Memory),
}

impl Kept {
    pub fn group(&self) -> Option<GroupId> {
        match self {
            Kept::Group(group) => Some(*group),
            Kept::Memory(_) => None,
        }
    }
}

impl Machine {
    /// In place of what was kept under the name before.
    pub fn keep(&mut self, name: &str, kept: Kept) {
        self.store.insert(name.to_owned(), kept);
        self.end_groups();
    }

    /// What is kept under a name, for a process that takes it over.
    pub fn take_kept(&mut self, pid: u32, name: &str) -> Option<Kept> {
        let kept = self.store.get(name)?.clone();
        if let Some(group) = kept.group().and_then(|group| self.groups.get_mut(&group)) {
            group.owner = Some(pid);
        }
        Some(kept)
    }

    pub fn kept_names(&self) -> Vec<String> {
        self.store.keys().cloned().collect()
    }

    pub fn let_go(&mut self, name: &str) {
        self.store.remove(name);
        self.end_groups();
    }
}
