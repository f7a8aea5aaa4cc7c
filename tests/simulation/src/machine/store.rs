//! The fd store of the service manager: what it keeps for a service outlives every end of it, and no reboot.

use std::sync::{Arc, Mutex};

use super::{GroupId, Machine};

/// The bytes of a memfd, shared by whoever has it open.
pub type Memory = Arc<Mutex<Vec<u8>>>;

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
    pub fn keep(&mut self, name: &str, kept: Kept) {
        self.store.insert(name.to_owned(), kept);
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

    /// What stopping the service does.
    pub fn empty_store(&mut self) {
        self.store.clear();
        self.end_groups();
    }
}
