//! Everything before the first event: directories, the lock, the journal, the roots and which filesystem each is on.

use std::collections::BTreeMap;
use std::fs::{DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::Sender;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags};
use shared::clock::{self, Clock as _, SystemClock};
use shared::config::Config;
use shared::database::DatabaseError;
use shared::entry::Cause;
use shared::exit::Exit;
use shared::journal::{Journal, RootRow, Session};
use shared::limits;

use super::bound::Bound;
use super::peer::Door;
use super::room::Room;
use super::server::Server;
use super::slot::{self, Common, SlotHandle, SlotParts};
use super::stored::Stored;
use super::{Report, report};
use crate::intake::fanotify;
use crate::intake::keep::Keep;
use crate::mounts;
use crate::roots::{Found, OwnDir, RootError, TrackedRoot};

#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("Cannot use the directory {}: {source}. Make it, writable for this user, or name another in the configuration", path.display())]
    Directory { path: PathBuf, source: io::Error },
    #[error(
        "The disk with the state directory {} is full: the tracker needs {} MiB to begin. Make room there, or name another state_dir in the configuration",
        dir.display(), limits::RESERVE_BYTES >> 20
    )]
    NoRoom { dir: PathBuf },
    #[error("Another tracker runs with the state directory {}. Stop it first, or give this one a state_dir of its own", dir.display())]
    Locked { dir: PathBuf },
    #[error("The configuration {} names no root. `tracker identify PATH` prints one to add", file.display())]
    NoRoots { file: PathBuf },
    #[error(
        "The directory {} is or holds the root `{name}` ({}): nothing in it would be tracked. Name another state_dir or runtime_dir in the configuration",
        dir.display(), root.display()
    )]
    HoldsRoot { dir: PathBuf, name: String, root: PathBuf },
    #[error(
        "The roots lie on {count} filesystems, one tracker can track {max}: each needs a fanotify group, and the kernel gives a user 128 (fs.fanotify.max_user_groups). Give the others to a tracker of another user, with a configuration and a state_dir of its own"
    )]
    TooManyFilesystems { count: usize, max: usize },
    #[error(transparent)]
    Root(RootError),
    #[error(transparent)]
    Journal(DatabaseError),
    #[error("Cannot listen on the control socket {}: {source}", path.display())]
    Socket { path: PathBuf, source: io::Error },
    #[error("Cannot {op}: {source}")]
    System { op: &'static str, source: io::Error },
    #[error(
        "The tracker ended without having committed everything. Nothing is lost: the next start goes on from what was kept, or compares the roots anew"
    )]
    Unclean,
}

impl RunError {
    pub fn exit(&self) -> Exit {
        match self {
            RunError::Locked { .. }
            | RunError::NoRoom { .. }
            | RunError::Journal(DatabaseError::Full { .. }) => Exit::TryLater,
            RunError::Directory { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
                Exit::TryLater
            }
            RunError::Directory { .. }
            | RunError::NoRoots { .. }
            | RunError::HoldsRoot { .. }
            | RunError::TooManyFilesystems { .. }
            | RunError::Root(_) => Exit::Config,
            RunError::Journal(e) if e.is_permanent() => Exit::Config,
            RunError::Journal(_) | RunError::Socket { .. } | RunError::System { .. } | RunError::Unclean => {
                Exit::Failed
            }
        }
    }
}

pub(super) struct Started {
    pub config: Config,
    pub slots: Vec<SlotHandle>,
    pub server: Arc<Server>,
    pub session: i64,
    pub boot_id: String,
}

/// Group and nobody else: the syncer reads and writes the state too.
const STATE_MODE: u32 = 0o2770;
const RUNTIME_MODE: u32 = 0o770;

pub(super) fn start(config: Config, reports: &Sender<Report>) -> Result<Started, RunError> {
    if config.roots.is_empty() {
        return Err(RunError::NoRoots { file: config.file.clone() });
    }
    // What only group and owner may use is made without a moment in which others could.
    rustix::process::umask(Mode::from_raw_mode(0o007));
    let mut tracked = config.roots.iter().map(unnumbered).collect::<Vec<_>>();
    for root in &mut tracked {
        root.check_at_start().map_err(RunError::Root)?;
    }
    make_dir(&config.state_dir, STATE_MODE)?;
    make_dir(&config.runtime_dir, RUNTIME_MODE)?;
    refuse_to_hold_roots(&config)?;
    let lock = lock(&config)?;
    let room = make_room(&config.state_dir)?;
    let mut journal = Journal::create_or_open(&config.journal_path()).map_err(RunError::Journal)?;
    let now = SystemClock.wall_ns();
    let rows = journal.put_roots(&config.roots, now).map_err(RunError::Journal)?;
    for (root, row) in tracked.iter_mut().zip(&rows) {
        root.id = row.id;
        root.changed = row.changed;
    }
    let boot_id = clock::boot_id().map_err(|source| RunError::System { op: "read the boot id", source })?;
    let version = env!("CARGO_PKG_VERSION");
    let (session, before) = journal.begin_session(&boot_id, version, now).map_err(RunError::Journal)?;
    let before = before_this(before.as_ref(), &boot_id);
    let stored = Stored::listen();
    // What the tracker before wrote is not this one's.
    match std::fs::remove_file(config.status_path()) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            tracing::debug!("{}: {e}", config.status_path().display());
        }
        _ => {}
    }
    let common = Common { heads: Arc::default(), bound: Arc::new(Bound::new(&config)), room };
    let names: Vec<String> = tracked.iter().map(filesystem_name).collect();
    let (slots, left_over) = spawn_slots(&config, tracked, before, stored, &boot_id, &common, reports)?;
    for name in left_over {
        let text = format!("{name} is of no filesystem of the configuration, and is kept no more");
        tracing::info!("{text}");
        journal.add_history(now, "start", None, &text).map_err(RunError::Journal)?;
    }
    forget_filesystems(&mut journal, &config, &names).map_err(RunError::Journal)?;
    let door = Door::of(&config.state_dir)
        .map_err(|source| RunError::Directory { path: config.state_dir.clone(), source })?;
    let server = Server::new(&config, rows_by_name(rows), journal, common, door, lock);
    let socket = config.control_path();
    let server = server.listen(&slots).map_err(|source| RunError::Socket { path: socket, source })?;
    Ok(Started { config, slots, server, session, boot_id })
}

/// What was known of filesystems without a root is of no use: nothing of their groups is kept any more either, so that
/// one that comes back begins with a gap. A root whose identity nobody wrote down may belong to one of them.
fn forget_filesystems(journal: &mut Journal, config: &Config, names: &[String]) -> Result<(), DatabaseError> {
    if config.roots.iter().any(|root| root.identity.is_none()) {
        return Ok(());
    }
    for fs in journal.forget_filesystems(|fs| is_of(names, fs))? {
        tracing::info!("{fs} has no root any more, and what was known of it is forgotten");
    }
    Ok(())
}

/// Whether a key of the journal is one that a filesystem of these names can have.
fn is_of(names: &[String], fs_key: &str) -> bool {
    let rest = |name: &String| fs_key.strip_prefix(name.as_str());
    names.iter().filter_map(rest).any(|rest| rest.is_empty() || rest.starts_with(TWIN))
}

fn make_room(state_dir: &Path) -> Result<Arc<Room>, RunError> {
    Room::make(state_dir).map(Arc::new).map_err(|source| match source.kind() {
        io::ErrorKind::StorageFull => RunError::NoRoom { dir: state_dir.to_owned() },
        _ => RunError::Directory { path: state_dir.to_owned(), source },
    })
}

fn rows_by_name(rows: Vec<RootRow>) -> BTreeMap<String, RootRow> {
    rows.into_iter().map(|row| (row.name.clone(), row)).collect()
}

fn unnumbered(root: &shared::config::Root) -> TrackedRoot {
    TrackedRoot {
        id: shared::journal::RootId(0),
        name: root.name.as_str().to_owned(),
        path: root.path.clone(),
        rules: root.rules.clone(),
        expected: root.identity.clone(),
        is_mount: false,
        changed: false,
    }
}

fn make_dir(path: &Path, mode: u32) -> Result<(), RunError> {
    let error = |source| RunError::Directory { path: path.to_owned(), source };
    if path.is_dir() {
        return Ok(());
    }
    DirBuilder::new().recursive(true).mode(0o755).create(path).map_err(error)?;
    std::fs::set_permissions(path, Permissions::from_mode(mode)).map_err(error)
}

/// The configuration compares paths; here links and mounts are seen through.
fn refuse_to_hold_roots(config: &Config) -> Result<(), RunError> {
    let mut ours = Vec::new();
    for dir in [&config.state_dir, &config.runtime_dir] {
        let own = OwnDir::of(dir).map_err(|source| RunError::Directory { path: dir.clone(), source })?;
        ours.push((dir, (own.dev, own.inode)));
    }
    for root in &config.roots {
        // A root that is not there yet, or may not be gone up from, is told by its path alone.
        let Ok(above) = itself_and_above(&root.path) else { continue };
        if let Some((dir, _)) = ours.iter().find(|(_, own)| above.contains(own)) {
            let (dir, name, root) = (dir.to_path_buf(), root.name.to_string(), root.path.clone());
            return Err(RunError::HoldsRoot { dir, name, root });
        }
    }
    Ok(())
}

/// Device and inode of a directory and of all above it, as far as they may be gone through.
fn itself_and_above(path: &Path) -> io::Result<Vec<(u64, u64)>> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut at = rustix::fs::open(path, flags, Mode::empty())?;
    let mut found = Vec::new();
    loop {
        let stat = rustix::fs::fstat(&at)?;
        let here = (stat.st_dev, stat.st_ino);
        // The topmost directory is its own parent.
        if found.last() == Some(&here) {
            return Ok(found);
        }
        found.push(here);
        match rustix::fs::openat(&at, "..", flags, Mode::empty()) {
            Ok(parent) => at = parent,
            Err(_) => return Ok(found),
        }
    }
}

/// Who only asks whether a tracker runs holds the lock for a moment: it is tried so often, with this pause.
const LOCK_TRIES: u32 = 10;
const LOCK_PAUSE: Duration = Duration::from_millis(10);

/// The kernel's lock goes with the process, however it ends.
fn lock(config: &Config) -> Result<File, RunError> {
    let path = config.lock_path();
    let error = |source| RunError::Directory { path: path.clone(), source };
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(error)?;
    for _ in 0..LOCK_TRIES {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) => std::thread::sleep(LOCK_PAUSE),
            Err(TryLockError::Error(source)) => return Err(error(source)),
        }
    }
    Err(RunError::Locked { dir: config.state_dir.clone() })
}

/// How the tracker before ended, and the cause of the gap if nothing of it can be adopted.
fn before_this(before: Option<&Session>, boot_id: &str) -> (&'static str, Cause) {
    match before {
        None => ("the first start", Cause::Start),
        Some(s) if s.boot_id != boot_id && s.ended => ("after a clean reboot", Cause::Boot),
        Some(s) if s.boot_id != boot_id => ("after a crash of the machine", Cause::Boot),
        Some(s) if s.ended => ("after a clean stop", Cause::Start),
        Some(_) => ("after the tracker was killed", Cause::Start),
    }
}

/// Before the number of a filesystem that has the name of another.
const TWIN: &str = " #";

/// One thread for each filesystem; a root that is not there yet gets one of its own. Returns also the names of what
/// was kept for none of them.
fn spawn_slots(
    config: &Config,
    tracked: Vec<TrackedRoot>,
    (before, cause): (&'static str, Cause),
    mut stored: Stored,
    boot_id: &str,
    common: &Common,
    reports: &Sender<Report>,
) -> Result<(Vec<SlotHandle>, Vec<String>), RunError> {
    let own: Vec<_> =
        [&config.state_dir, &config.runtime_dir].into_iter().filter_map(|d| OwnDir::of(d).ok()).collect();
    let groups = by_filesystem(tracked);
    if groups.len() > limits::FILESYSTEMS_MAX {
        return Err(RunError::TooManyFilesystems { count: groups.len(), max: limits::FILESYSTEMS_MAX });
    }
    let mut all: Vec<SlotParts> = Vec::new();
    for (number, roots) in groups.into_iter().enumerate() {
        let name = filesystem_name(&roots[0]);
        // Clones have one UUID, and so have two roots of one disk that is not there.
        let twins = all.iter().filter(|other| other.name == name).count();
        let fs_key = if twins == 0 { name.clone() } else { format!("{name}{TWIN}{}", twins + 1) };
        let journal = Journal::create_or_open(&config.journal_path()).map_err(RunError::Journal)?;
        all.push(SlotParts {
            number,
            keep: Keep::new(&fs_key, boot_id, journal.id(), |name| stored.take(name)),
            fs_key,
            name,
            roots,
            own: own.clone(),
            journal,
            cause,
            before,
            common: common.clone(),
            reports: reports.clone(),
        });
    }
    let left_over = stored.discard_rest();
    let spawn =
        |parts| slot::spawn(parts).map_err(|source| RunError::System { op: "start a thread", source });
    Ok((all.into_iter().map(spawn).collect::<Result<_, _>>()?, left_over))
}

fn by_filesystem(tracked: Vec<TrackedRoot>) -> Vec<Vec<TrackedRoot>> {
    let all = mounts::read().unwrap_or_default();
    let mut groups: Vec<(Option<u64>, Vec<TrackedRoot>)> = Vec::new();
    for root in tracked {
        let dev = match root.look() {
            Found::Ok(open) => Some(fanotify::superblock(&open, &all)),
            Found::Not { .. } => None,
        };
        match groups.iter_mut().find(|(d, _)| dev.is_some() && *d == dev) {
            Some((_, roots)) => roots.push(root),
            None => groups.push((dev, vec![root])),
        }
    }
    // What was kept for a disk goes to the roots that are there, not to one of the same disk that is not.
    groups.sort_by_key(|(dev, _)| dev.is_none());
    groups.into_iter().map(|(_, roots)| roots).collect()
}

/// Type and UUID, or the root's path where there is none.
fn filesystem_name(root: &TrackedRoot) -> String {
    match &root.expected {
        Some(identity) if identity.uuid.is_some() => {
            format!("{} {}", identity.fs, identity.uuid.as_deref().unwrap_or_default())
        }
        Some(identity) => format!("{} at {}", identity.fs, root.path.display()),
        None => root.path.display().to_string(),
    }
}

pub(super) fn watch_signals(reports: &Sender<Report>) -> Result<(), RunError> {
    let error = |source| RunError::System { op: "listen for signals", source };
    let mut signals = signal_hook::iterator::Signals::new([libc::SIGTERM, libc::SIGINT]).map_err(error)?;
    let reports = reports.clone();
    let listen = move || {
        for _ in signals.forever() {
            report(&reports, Report::Signal);
        }
    };
    std::thread::Builder::new().name("signals".into()).spawn(listen).map(drop).map_err(error)
}

/// Wakes the probe at every mount and unmount. Without it the probe alone notices, later.
pub(super) fn watch_mounts(reports: &Sender<Report>) {
    let reports = reports.clone();
    let listen = move || -> io::Result<()> {
        let file = File::open(mounts::MOUNTINFO)?;
        loop {
            // The kernel reports changes since the last poll of this descriptor.
            let mut fds = [PollFd::new(&file, PollFlags::PRI | PollFlags::ERR)];
            match poll(&mut fds, None) {
                Ok(_) => report(&reports, Report::Mounts),
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
    };
    let watched = std::thread::Builder::new().name("mounts".into()).spawn(move || {
        if let Err(e) = listen() {
            tracing::warn!("Mounts are noticed by the probe only: {e}");
        }
    });
    if let Err(e) = watched {
        tracing::warn!("Mounts are noticed by the probe only: {e}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_the_tracker_before_ended_is_told_apart() {
        let session = |boot: &str, ended| Session { boot_id: boot.to_owned(), ended };
        let told = |before: Option<Session>| before_this(before.as_ref(), "now");
        assert_eq!(told(None), ("the first start", Cause::Start));
        assert_eq!(told(Some(session("now", true))), ("after a clean stop", Cause::Start));
        assert_eq!(told(Some(session("now", false))), ("after the tracker was killed", Cause::Start));
        assert_eq!(told(Some(session("then", true))), ("after a clean reboot", Cause::Boot));
        assert_eq!(told(Some(session("then", false))), ("after a crash of the machine", Cause::Boot));
    }

    #[test]
    fn the_twin_of_a_configured_filesystem_is_one_of_them() {
        let names = ["ext4 a".to_owned(), "tmpfs at /t".to_owned()];
        assert!(["ext4 a", "ext4 a #2", "tmpfs at /t"].iter().all(|fs| is_of(&names, fs)));
        assert!(["ext4 ab", "ext4", "tmpfs at /t/x", ""].iter().all(|fs| !is_of(&names, fs)));
    }
}
