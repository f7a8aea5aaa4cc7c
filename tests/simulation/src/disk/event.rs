//! What fanotify tells of one operation, before it is queued: as measured on 6.18.

use super::{Id, Name};

/// A name in a directory.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct At {
    pub dir: Id,
    pub name: Name,
}

/// One event. Of an event of a directory itself, `at` is missing and `target` is the directory, which is told as the
/// name `.` in it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Event {
    /// Of FAN_*.
    pub mask: u64,
    pub at: Option<At>,
    /// Where it is now, of a RENAME.
    pub to: Option<At>,
    pub target: Option<Id>,
}

impl Event {
    /// Of an object alone, by no name.
    pub fn of(target: Id, mask: u64) -> Event {
        Event { mask, at: None, to: None, target: Some(target) }
    }

    pub fn named(dir: Id, name: &Name, target: Id, mask: u64) -> Event {
        Event { mask, at: Some(At { dir, name: name.clone() }), to: None, target: Some(target) }
    }
}

/// The bit of a directory.
pub(super) fn ondir(is_dir: bool) -> u64 {
    if is_dir { libc::FAN_ONDIR } else { 0 }
}
