//! The tracker's status file: rewritten by rename on change (at most once a second) and at each probe, so that
//! `tracker stats` answers even when the daemon hangs, and its age shows that it hangs.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// A stable face: fields only get added.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    pub schema: u32,
    pub version: String,
    pub pid: u32,
    pub boot_id: String,
    pub started_ns: i64,
    /// Wall time of this writing.
    pub written_ns: i64,
    /// CLOCK_BOOTTIME of the last probe: the heartbeat.
    pub probed_boot_ns: i64,
    pub roots: Vec<RootStatus>,
    pub filesystems: Vec<FilesystemStatus>,
}

pub const SCHEMA: u32 = 1;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootStatus {
    pub name: String,
    /// As people write it; bytes that are not UTF-8 are escaped.
    pub path: String,
    pub state: String,
    pub state_reason: String,
    /// `fanotify` or `inotify`.
    pub source: String,
    /// Why this source and not the better one; empty for fanotify.
    pub source_reason: String,
    /// What this source cannot see.
    pub blind_spots: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct FilesystemStatus {
    /// Type and UUID, or the mount point where there is none.
    pub name: String,
    pub source: String,
    pub events_read: u64,
    pub bytes_read: u64,
    pub overflows: u64,
    pub gaps: u64,
    pub entries: u64,
    pub coalesced: u64,
    pub dropped: u64,
    pub commits: u64,
    pub doubts: u64,
    pub last_commit_ns: i64,
    pub last_error: String,
}

#[derive(Debug, thiserror::Error)]
pub enum StatusError {
    #[error("There is no status at {}: {source}. Is longshore-tracker running?", path.display())]
    Missing { path: PathBuf, source: io::Error },
    #[error("The status at {} cannot be read: {source}", path.display())]
    Bad { path: PathBuf, source: serde_json::Error },
}

impl Status {
    pub fn load(path: &Path) -> Result<Status, StatusError> {
        let bytes =
            std::fs::read(path).map_err(|source| StatusError::Missing { path: path.to_owned(), source })?;
        serde_json::from_slice(&bytes).map_err(|source| StatusError::Bad { path: path.to_owned(), source })
    }
}
