//! Every bound of the program, with its unit, in one place; what must fit together is checked at compile time.

use std::time::Duration;

/// Paths that the coalescing set remembers at most, per filesystem, and the memory they take. Beyond it the older half
/// is forgotten: only more rows.
pub const COALESCE_PATHS_MAX: usize = 229_376;
pub const COALESCE_BYTES_MAX: usize = 9 * 1024 * 1024;
/// Rows a leg reads from the journal at once.
pub const READ_ROWS_MAX: usize = 50_000;
/// Rows of the journal above which what only laggards have not read becomes their deferred rows, unless the
/// configuration says otherwise; and what it may say.
pub const ENTRIES_MAX: u64 = 500_000;
pub const ENTRIES_MAX_RANGE: std::ops::RangeInclusive<u64> = 1_000..=100_000_000;
/// Rows that one collapse makes for a leg, the memory they may take, and the components to which their paths are cut.
pub const COLLAPSE_ROWS_MAX: usize = 10_000;
pub const COLLAPSE_BYTES_MAX: usize = 32 * 1024 * 1024;
pub const COLLAPSE_DEPTH_MAX: usize = 32;
/// Rows that one leg may owe; beyond it they become half as many, of directories.
pub const DEFERRED_ROWS_MAX: usize = 100_000;

/// Bytes one read(2) on a fanotify group may return. It bounds the time from SIGKILL to death
/// (measured: 0.7 µs per event, about 92 bytes each).
pub const INTAKE_READ_BYTES: usize = 256 * 1024;
/// Bytes of unread events a batch may hold before it is committed: the data of an intake buffer.
pub const INTAKE_BATCH_BYTES: usize = 4 * 1024 * 1024;
/// Bytes of the first batch after a recovery, doubled with each that succeeds: a tracker that is killed over and over
/// gets on nevertheless.
pub const INTAKE_RECOVERY_BYTES: usize = 32 * 1024;
/// Bytes of each of the two copies of what a buffer says of itself, its roots above all (about 90 bytes each).
pub const INTAKE_LASTING_BYTES: usize = 16 * 1024;
/// Deleted directories that a buffer remembers, so that a later event from them raises no doubt after a kill either.
pub const INTAKE_GONE_MAX: usize = 65_536;
/// Deaths at one and the same record after which it is skipped, with a gap.
pub const INTAKE_POISON_DEATHS: u64 = 3;
/// Events after which a batch is committed.
pub const INTAKE_BATCH_EVENTS: usize = 20_000;
/// Age after which a batch is committed.
pub const INTAKE_BATCH_AGE: Duration = Duration::from_millis(250);
/// Pause after a wake-up, so that the kernel merges events (measured: half the cost per event).
pub const INTAKE_NAP: Duration = Duration::from_millis(4);
/// Filesystems marked at most: the kernel allows 128 groups per user (fanotify(7)).
pub const FILESYSTEMS_MAX: usize = 120;
/// Bytes of the cache of directories of one filesystem (measured: 72 to 88 for a directory).
pub const HANDLE_CACHE_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Files that one leg publishes of one root because they have more names than it knows. Beyond it the tracker asks the
/// disk for each written file whether it has more than one name.
pub const LINKED_FILES_MAX: usize = 65_536;
/// Between two counts, in a run that goes on, whether such files still are too many: each reads the catalog's index of
/// linked files from end to end.
pub const LINKED_COUNT_INTERVAL: Duration = Duration::from_secs(3600);
/// Paths that a filesystem's own record of what changed may put in the place of a gap; more are a gap.
pub const GENERATION_PATHS_MAX: usize = 100_000;
/// Doubts kept per filesystem before they become one gap.
pub const DOUBTS_MAX: usize = 10_000;
/// Room on the state disk that is kept for the gaps to be written when it is full.
pub const RESERVE_BYTES: u64 = 4 * 1024 * 1024;
/// Interval of the probe of each root, and of the heartbeat in the status file.
pub const PROBE_INTERVAL: Duration = Duration::from_secs(30);
/// How long `tracker flush` waits for an answer.
pub const FLUSH_TIMEOUT: Duration = Duration::from_secs(60);
/// Flushes and canaries that wait for one filesystem, and again as many that its thread has not heard of: with a disk
/// that hangs, whoever asked for them is long gone. Beyond that the answer is to come back later.
pub const WAITING_MAX: usize = 128;
/// How long the tracker waits until each filesystem has told of its canary.
pub const CANARY_TIMEOUT: Duration = Duration::from_secs(10);
/// How long `tracker stats` waits for the journal before it tells the rest without it.
pub const STATS_JOURNAL_TIMEOUT: Duration = Duration::from_secs(5);
/// Paths one `tracker add` may name, and how many a user may add per second once they have added so many at once.
pub const ADD_PATHS_MAX: usize = 100_000;
pub const ADD_PATHS_PER_SECOND: u64 = 10_000;
/// Flushes of one user: so many at once, then per second. A leg that watches asks for four a second at most.
pub const FLUSH_BURST: u64 = 500;
pub const FLUSHES_PER_SECOND: u64 = 100;
/// Users whose requests are counted at once.
pub const RATED_USERS_MAX: usize = 256;
/// Bytes of one message on the control socket.
pub const CONTROL_MESSAGE_BYTES: usize = 64 * 1024 * 1024;

/// Paths that one batch of a run examines, plans, sends and commits together.
pub const BATCH_PATHS: usize = 4_096;
/// Names of one directory that a walk holds at once; one with more is read again for each slice.
pub const WALK_SLICE_NAMES: usize = 200_000;
/// Names that a thread of a walk looks at in one go.
pub const WALK_BLOCK_NAMES: usize = 4_096;
/// Threads that look ahead of a walk.
pub const WALK_THREADS: usize = 2;
/// Names and directories that were looked at ahead and wait to be asked for.
pub const WALK_NAMES_AHEAD: usize = 32_768;
pub const WALK_DIRS_AHEAD: usize = 128;
/// Levels below the root whose directories a walk keeps open while it looks at what is in them.
pub const WALK_LEVELS_OPEN: usize = 128;
/// Rows of a catalog that a walk compares with, read at once.
pub const WALK_ROWS: usize = 4_096;
/// Paths that a walk finds unchanged before it lets the run see whether it is to stop.
pub const WALK_TURN_PATHS: u64 = 65_536;
/// Paths that a subtree entry may put into the round of tonight's changes; with more, the rest is owed as a deferred
/// row and the entry is acked.
pub const GAP_PLAN_PATHS: usize = 10_000;
/// Regular files of this size, the newest first, are looked at without being named by an event: native AIO, live
/// mappings and loop devices change them so. (The catalog's index on them has the size in its text.)
pub const SILENT_FILE_BYTES: u64 = 16 * 1024 * 1024;
/// Files that one such look takes in, and that a leg remembers to have changed without an event.
pub const SILENT_PATHS_MAX: usize = 5_000;
/// Between two such looks of a run that goes on.
pub const SILENT_INTERVAL: Duration = Duration::from_secs(3600);
/// How long a round works off what is owed before it looks for new entries.
pub const DUE_TIME: Duration = Duration::from_secs(3600);
/// Files up to this size are read once into memory and hashed there.
pub const SMALL_FILE_BYTES: u64 = 8 * 1024 * 1024;
/// Bytes of small files in memory at once.
pub const SMALL_FILES_IN_FLIGHT_BYTES: u64 = 64 * 1024 * 1024;
/// mtime and ctime must be older than this at the look for a row to be settled: dirty_expire, writeback and the
/// coarsest timestamp granularity, by the filesystem's clock.
pub const SETTLE_AGE: Duration = Duration::from_secs(60);
/// First and longest wait before a deferred row is tried again.
pub const BACKOFF_FIRST: Duration = Duration::from_secs(30);
pub const BACKOFF_MAX: Duration = Duration::from_secs(6 * 3600);
/// A deferred row that has failed for longer than this makes the run exit 3.
pub const DEFERRED_TOLERATED: Duration = Duration::from_secs(3 * 24 * 3600);
/// History rows kept for people.
pub const HISTORY_ROWS_MAX: u64 = 10_000;
/// How long an intent without an answer may still come true at B2 after its request.
pub const INTENT_GRACE: Duration = Duration::from_secs(3600);

const _: () = assert!(INTAKE_READ_BYTES * 4 <= INTAKE_BATCH_BYTES, "a batch must hold several reads");
const _: () = assert!(INTAKE_RECOVERY_BYTES <= INTAKE_READ_BYTES);
const _: () = assert!(INTAKE_BATCH_BYTES.is_multiple_of(4096) && INTAKE_LASTING_BYTES.is_multiple_of(4096));
const _: () = assert!((INTAKE_GONE_MAX * 8).is_multiple_of(4096), "the parts of a buffer begin at pages");
const _: () =
    assert!(SMALL_FILE_BYTES * 4 <= SMALL_FILES_IN_FLIGHT_BYTES, "several small files must fit at once");
const _: () = assert!(BACKOFF_FIRST.as_secs() < BACKOFF_MAX.as_secs());
const _: () = assert!(BATCH_PATHS <= READ_ROWS_MAX);
const _: () =
    assert!(COLLAPSE_ROWS_MAX * 2 <= DEFERRED_ROWS_MAX, "a collapse must not fill what a leg may owe");
const _: () = assert!(*ENTRIES_MAX_RANGE.start() <= ENTRIES_MAX && ENTRIES_MAX <= *ENTRIES_MAX_RANGE.end());
const _: () = assert!(INTAKE_NAP.as_millis() < INTAKE_BATCH_AGE.as_millis());

/// The wait before attempt number `attempts + 1`: doubling from [`BACKOFF_FIRST`] to [`BACKOFF_MAX`].
pub fn backoff(attempts: u32) -> Duration {
    BACKOFF_FIRST.saturating_mul(1u32 << attempts.min(20)).min(BACKOFF_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_backoff_doubles_and_ends() {
        assert_eq!(backoff(0), BACKOFF_FIRST);
        assert_eq!(backoff(1), BACKOFF_FIRST * 2);
        assert_eq!(backoff(50), BACKOFF_MAX);
    }
}
