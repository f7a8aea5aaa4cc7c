//! The tracker's status file: rewritten by rename on change (at most once a second) and at each probe, so that
//! `tracker stats` answers even when the daemon hangs, and its age shows that it hangs.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::entry::Mask;
use crate::path::RelPath;

/// A stable face: fields only get added, and a file without the newer ones is read as if they were zero.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    pub schema: u32,
    pub version: String,
    pub pid: u32,
    pub boot_id: String,
    pub started_ns: i64,
    /// The same moment by CLOCK_BOOTTIME; 0 if it is not told.
    #[serde(default)]
    pub started_boot_ns: i64,
    /// Wall time of this writing.
    pub written_ns: i64,
    /// CLOCK_BOOTTIME of the last probe: the heartbeat.
    pub probed_boot_ns: i64,
    /// Memory of the tracker that is resident now.
    #[serde(default)]
    pub rss_bytes: u64,
    /// CPU time of all its threads since its start.
    #[serde(default)]
    pub cpu_ns: u64,
    /// How often the journal was over its bound and a leg that lagged behind gave up what it had not read.
    #[serde(default)]
    pub collapses: u64,
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

#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct FilesystemStatus {
    /// Type and UUID, or the mount point where there is none.
    pub name: String,
    pub source: String,
    pub events_read: u64,
    pub bytes_read: u64,
    pub kinds: Kinds,
    pub rates: Rates,
    pub overflows: u64,
    pub gaps: u64,
    pub entries: u64,
    /// Changes that an entry no leg has claimed yet covered.
    pub coalesced: u64,
    /// Events whose path had one in the same batch already.
    pub merged: u64,
    pub dropped: u64,
    pub commits: u64,
    pub commit_latency: Latency,
    pub doubts: u64,
    /// Directories whose place is remembered, or that are watched.
    pub cached_dirs: u64,
    pub queue: Option<Queue>,
    pub buffer: Buffer,
    /// Where most changes of the last hour were, most first.
    pub top_dirs: Vec<TopDir>,
    /// Who made most events of the last hour, most first.
    pub top_processes: Vec<TopProcess>,
    pub last_commit_ns: i64,
    pub last_error: String,
}

/// Events since the start by what they tell. The kernel merges: one event may tell of several.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Kinds {
    pub create: u64,
    pub delete: u64,
    pub modify: u64,
    pub close_write: u64,
    pub attrib: u64,
    pub rename: u64,
    /// Of all these, the events of directories.
    pub directories: u64,
}

/// Events per second as they were at `at_boot_ns`, weighed by age like a load average: what is a minute (ten minutes)
/// old counts for 1/e. Whoever reads them later lets them age with [`Rates::at`], so that silence needs no writing.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Rates {
    pub per_second_1m: f64,
    pub per_second_10m: f64,
    pub at_boot_ns: i64,
}

/// How long commits take: percentiles of about the last 65,000, each at most an eighth too high.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Latency {
    pub p50_us: u64,
    pub p90_us: u64,
    pub p99_us: u64,
    /// Since the start.
    pub max_us: u64,
}

/// The kernel's queue, when it was last looked at: at a probe or a flush, because the look holds up those who write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Queue {
    pub events: u64,
    pub at_ns: i64,
}

/// Events that were read and are not committed yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Buffer {
    pub bytes: u64,
    pub bytes_max: u64,
    /// The fullest since the start.
    pub bytes_peak: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopDir {
    pub root: String,
    #[serde(flatten)]
    pub path: RelPath,
    /// About so many: of large batches only a sample is counted.
    pub changes: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopProcess {
    pub pid: u32,
    /// Empty if it was gone before anybody asked.
    pub name: String,
    /// About so many.
    pub events: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum StatusError {
    #[error("There is no status at {}: {source}. Is longshore-tracker running?", path.display())]
    Missing { path: PathBuf, source: io::Error },
    #[error("The status at {} cannot be read: {source}", path.display())]
    Bad { path: PathBuf, source: serde_json::Error },
}

impl Kinds {
    /// One event more.
    pub fn count(&mut self, mask: Mask) {
        let has = |bit| u64::from(mask.contains(bit));
        self.create += has(Mask::CREATE);
        self.delete += has(Mask::DELETE);
        self.modify += has(Mask::MODIFY);
        self.close_write += has(Mask::CLOSE_WRITE);
        self.attrib += has(Mask::ATTRIB);
        self.rename += has(Mask::RENAME);
        self.directories += has(Mask::ONDIR);
    }

    pub fn add(&mut self, more: &Kinds) {
        self.create += more.create;
        self.delete += more.delete;
        self.modify += more.modify;
        self.close_write += more.close_write;
        self.attrib += more.attrib;
        self.rename += more.rename;
        self.directories += more.directories;
    }
}

impl Rates {
    /// So many events came until now.
    pub fn add(&mut self, events: u64, now_boot_ns: i64) {
        *self = self.at(now_boot_ns);
        self.per_second_1m += events as f64 / MINUTE_S;
        self.per_second_10m += events as f64 / (10.0 * MINUTE_S);
    }

    /// The rates at a later time, if no event came since.
    pub fn at(self, now_boot_ns: i64) -> Rates {
        let seconds = now_boot_ns.saturating_sub(self.at_boot_ns).max(0) as f64 / 1e9;
        Rates {
            per_second_1m: self.per_second_1m * (-seconds / MINUTE_S).exp(),
            per_second_10m: self.per_second_10m * (-seconds / (10.0 * MINUTE_S)).exp(),
            at_boot_ns: now_boot_ns.max(self.at_boot_ns),
        }
    }
}

const MINUTE_S: f64 = 60.0;

impl Status {
    pub fn load(path: &Path) -> Result<Status, StatusError> {
        let bytes =
            std::fs::read(path).map_err(|source| StatusError::Missing { path: path.to_owned(), source })?;
        serde_json::from_slice(&bytes).map_err(|source| StatusError::Bad { path: path.to_owned(), source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i64 = 1_000_000_000;

    #[test]
    fn a_merged_event_counts_for_each_kind_it_has() {
        let mut kinds = Kinds::default();
        kinds.count(Mask::CREATE | Mask::ONDIR);
        kinds.count(Mask::CREATE | Mask::MODIFY | Mask::CLOSE_WRITE);
        let once = kinds;
        kinds.add(&once);
        let wanted = Kinds { create: 4, modify: 2, close_write: 2, directories: 2, ..Kinds::default() };
        assert_eq!(kinds, wanted);
    }

    #[test]
    fn a_steady_stream_shows_its_rate_and_silence_lets_it_fade() {
        let mut rates = Rates::default();
        (0..3_600).for_each(|s| rates.add(50, s * SECOND));
        let near = |is: f64, should: f64| assert!((is - should).abs() < should / 20.0, "{is} {should}");
        near(rates.per_second_1m, 50.0);
        near(rates.per_second_10m, 50.0);
        let later = rates.at(3_660 * SECOND);
        near(later.per_second_1m, 50.0 / std::f64::consts::E);
        near(later.per_second_10m, 45.0);
        near(rates.at(2 * 3_600 * SECOND).per_second_10m, 50.0 * (-6.0f64).exp());
    }

    #[test]
    fn a_clock_that_stands_still_or_goes_back_lets_nothing_fade_or_grow() {
        let rates = Rates { per_second_1m: 3.0, per_second_10m: 2.0, at_boot_ns: 10 * SECOND };
        assert_eq!(rates.at(5 * SECOND), rates);
        assert_eq!(rates.at(10 * SECOND), rates);
    }

    /// As version 0.1.0 wrote it, before most counters.
    const OLDER: &str = r#"{"schema":1,"version":"0.1.0","pid":7,"boot_id":"b","started_ns":1,"written_ns":2,
        "probed_boot_ns":3,"roots":[{"name":"a","path":"/a","state":"ok","state_reason":"","source":"fanotify",
        "source_reason":"","blind_spots":[]}],"filesystems":[{"name":"ext4","source":"fanotify","events_read":5,
        "bytes_read":6,"overflows":0,"gaps":1,"entries":4,"coalesced":2,"dropped":0,"commits":3,"doubts":0,
        "last_commit_ns":9,"last_error":""}]}"#;

    fn loaded(text: &[u8]) -> Result<Status, StatusError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tracker.json");
        std::fs::write(&path, text).unwrap();
        Status::load(&path)
    }

    #[test]
    fn a_file_of_an_older_version_is_read_without_the_newer_fields() {
        let status = loaded(OLDER.as_bytes()).unwrap();
        assert_eq!((status.started_boot_ns, status.rss_bytes), (0, 0));
        let fs = &status.filesystems[0];
        assert_eq!((fs.events_read, fs.kinds, fs.queue), (5, Kinds::default(), None));
    }

    #[test]
    fn a_file_of_a_newer_version_is_read_without_what_is_not_known_yet() {
        let newer = OLDER.replacen("\"pid\":7", "\"pid\":7,\"phase_of_the_moon\":{\"full\":true}", 1);
        assert_eq!(loaded(newer.as_bytes()).unwrap(), loaded(OLDER.as_bytes()).unwrap());
    }

    #[test]
    fn a_file_that_is_no_status_is_named() {
        for text in [&b""[..], b"{", b"[]", b"\xff\xfe", b"{\"schema\":\"x\"}"] {
            let error = loaded(text).unwrap_err();
            assert!(matches!(error, StatusError::Bad { .. }) && error.to_string().contains("tracker.json"));
        }
    }

    #[test]
    fn names_that_are_not_utf_8_survive() {
        let path = RelPath::parse(b"a\xff/b").unwrap();
        let top = TopDir { root: "r".into(), path, changes: 3 };
        let json = serde_json::to_string(&top).unwrap();
        assert!(json.contains("path_b64") && !json.contains("\"path\""), "{json}");
        assert_eq!(serde_json::from_str::<TopDir>(&json).unwrap(), top);
    }
}
