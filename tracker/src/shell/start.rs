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
use shared::config::Config;
use shared::database::DatabaseError;
use shared::exit::Exit;
use shared::journal::{Journal, RootRow};
use shared::limits;

use super::begin::{self, Begun};
use super::peer::Door;
use super::room::{ReserveFile, Room};
use super::server::Server;
use super::slot::{self, Common, SlotHandle};
use super::{Report, report};
use crate::host::{Host as _, Linux};
use crate::mounts;
use crate::roots::{OwnDir, RootError};

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
    let host = Linux::listen();
    let tracked = begin::tracked_roots(&config, &host)?;
    make_dir(&config.state_dir, STATE_MODE)?;
    make_dir(&config.runtime_dir, RUNTIME_MODE)?;
    refuse_to_hold_roots(&config)?;
    let lock = lock(&config)?;
    let room = make_room(&config.state_dir)?;
    let mut journal = Journal::create_or_open(&config.journal_path()).map_err(RunError::Journal)?;
    // What the tracker before wrote is not this one's.
    match std::fs::remove_file(config.status_path()) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            tracing::debug!("{}: {e}", config.status_path().display());
        }
        _ => {}
    }
    let common = Common::new(&config, host.clock(), room);
    let begun = begin::begin(&config, &host, tracked, &mut journal, &common, reports)?;
    let Begun { parts, rows, session, boot_id } = begun;
    let spawn =
        |parts| slot::spawn(parts).map_err(|source| RunError::System { op: "start a thread", source });
    let slots = parts.into_iter().map(spawn).collect::<Result<Vec<SlotHandle>, _>>()?;
    let door = Door::of(&config.state_dir)
        .map_err(|source| RunError::Directory { path: config.state_dir.clone(), source })?;
    let server = Server::new(&config, rows_by_name(rows), journal, common, door, lock);
    let socket = config.control_path();
    let server = server.listen(&slots).map_err(|source| RunError::Socket { path: socket, source })?;
    Ok(Started { config, slots, server, session, boot_id })
}

fn make_room(state_dir: &Path) -> Result<Room, RunError> {
    Room::make(ReserveFile::in_dir(state_dir)).map_err(|source| match source.kind() {
        io::ErrorKind::StorageFull => RunError::NoRoom { dir: state_dir.to_owned() },
        _ => RunError::Directory { path: state_dir.to_owned(), source },
    })
}

fn rows_by_name(rows: Vec<RootRow>) -> BTreeMap<String, RootRow> {
    rows.into_iter().map(|row| (row.name.clone(), row)).collect()
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
