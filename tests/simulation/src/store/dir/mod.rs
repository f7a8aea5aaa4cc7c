//! A leg on a [`Directory`], as the real one carries it out: made whole under a temporary name and renamed, what is
//! replaced or removed linked or moved to the trash first, attributes last.
//!
//! What is not as in the real one:
//! * Room is a switch (`Directory::full`), looked at where the real one looks; `Fault::DirFull` is a disk that fills up
//!   while it is written to.
//! * Nesting with a root, names that merge, other filesystems mounted inside, and files that take no further link are
//!   left out. Symlinks carry no extended attributes.
//! * The run has all rights, or under `Fault::DirNoOwners` not that of setting owners and attributes.
//! * Content has no holes: a copy reads all bytes of a sparse file.
//! * The trash is emptied in `prepare` as a whole, without the limit of names for one run.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use async_trait::async_trait;
use shared::clock::Clock;
use shared::exit::Exit;
use shared::path::RelPath;
use syncer::leg::{Calls, Holds, Listed, Page, Problem, Put, Receipt, Remove, Store, StoreError};
use syncer::tree::{Kind, Stat};

use super::directory::{Directory, Errno, Miss, Node};
use super::seen::Request;
use super::{Asked, Shared, Watch, lock, shared};
use crate::fate::{Fate, Fault};

mod listing;
mod put;
mod trash;

const STATE: &[u8] = b".longshore";
const REMOVE: &str = "remove";

/// As the real one has it.
pub const HOLDS: Holds =
    Holds { all_kinds: true, attributes: true, hard_links: true, writers: false, nanoseconds: true };

pub struct Setup {
    pub run: u64,
    pub trash_days: u32,
    pub clock: Arc<dyn Clock>,
}

pub struct SimDir {
    setup: Setup,
    place: Shared<Directory>,
    fate: Arc<dyn Fate>,
    watch: Watch,
    opened: OnceLock<Opened>,
    lock: Arc<()>,
    listing: Mutex<Option<listing::Paused>>,
    /// By the day that it is of.
    trash_top: Mutex<(i64, String)>,
    trash_version: AtomicU32,
    temp_count: AtomicU64,
    unset_count: AtomicU64,
}

struct Opened {
    directory: Shared<Directory>,
    identity: String,
    mounted: u64,
}

impl SimDir {
    pub fn new(place: Shared<Directory>, setup: Setup, fate: Arc<dyn Fate>, watch: Watch) -> SimDir {
        SimDir {
            setup,
            place,
            fate,
            watch,
            opened: OnceLock::new(),
            lock: Arc::new(()),
            listing: Mutex::new(None),
            trash_top: Mutex::default(),
            trash_version: AtomicU32::new(1),
            temp_count: AtomicU64::new(0),
            unset_count: AtomicU64::new(0),
        }
    }

    /// Every asynchronous call begins here: others go on first.
    async fn pass(&self, point: &'static str) {
        self.fate.pass(point);
        tokio::task::yield_now().await;
    }

    fn now(&self) -> i64 {
        self.setup.clock.wall_ns()
    }

    fn opened(&self) -> &Opened {
        self.opened.get().expect("`open` comes before everything else")
    }

    /// Asks the filesystem something.
    fn ask<T>(&self, question: impl FnOnce(&Directory) -> T) -> Result<T, Errno> {
        let opened = self.opened();
        let directory = lock(&opened.directory);
        if directory.mounted != opened.mounted { Err(libc::EIO) } else { Ok(question(&directory)) }
    }

    /// Changes something at the filesystem, in one operation.
    fn change<T>(&self, change: impl FnOnce(&mut Directory, i64) -> Result<T, Errno>) -> Result<T, Errno> {
        let opened = self.opened();
        if self.fate.strikes(Fault::DirPowerCut) {
            lock(&opened.directory).power_cut(|n| self.fate.pick(n));
        }
        let answers =
            [(Fault::DirIo, libc::EIO), (Fault::DirFull, libc::ENOSPC), (Fault::DirReadOnly, libc::EROFS)];
        if let Some((_, errno)) = answers.into_iter().find(|(fault, _)| self.fate.strikes(*fault)) {
            return Err(errno);
        }
        let mut directory = lock(&opened.directory);
        if directory.mounted != opened.mounted {
            return Err(libc::EIO);
        }
        change(&mut directory, self.now())
    }

    /// The change that a request is about. Whether it took effect is not for its answer to say.
    fn change_for_good<T>(
        &self,
        change: impl FnOnce(&mut Directory, i64) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        let done = self.change(change);
        if done.is_ok() && self.fate.strikes(Fault::DirAnswerLost) { Err(libc::EIO) } else { done }
    }

    fn look(&self, op: &'static str, path: &RelPath) -> Result<Stat, StoreError> {
        let looked = self.ask(|d| d.look(path).map(|(stat, _)| stat)).map_err(|e| failed(op, path, e))?;
        looked.map_err(|miss| missed(op, miss))
    }

    fn check_room(&self) -> Result<(), StoreError> {
        const OP: &str = "write to";
        match self.ask(|directory| directory.full) {
            Ok(false) => Ok(()),
            Ok(true) => {
                let message = "its disk has too little free; make room there";
                Err(StoreError::new(OP, "the destination", Problem::Stop(Exit::Failed), message))
            }
            Err(e) => Err(failed(OP, &RelPath::root(), e)),
        }
    }

    fn find_place(&self) -> Result<Opened, StoreError> {
        const OP: &str = "use";
        let mut directory = self.place.clone();
        if !lock(&directory).present {
            let message = "it must be a directory: make it, or mount the disk it is on";
            return Err(StoreError::new(OP, "the destination", Problem::Stop(Exit::Config), message));
        }
        if self.fate.strikes(Fault::DirOpenFails) {
            return Err(failed(OP, &RelPath::root(), libc::EIO));
        }
        if self.fate.strikes(Fault::DirAnotherDisk) {
            directory = shared(Directory::new("another", self.now()));
        }
        let locked = lock(&directory);
        let identity = serde_json::to_string(&locked.identity).expect("an identity is plain data");
        let mounted = locked.mounted;
        drop(locked);
        Ok(Opened { directory, identity, mounted })
    }

    fn make_ready(&self) -> Result<(), StoreError> {
        self.check_room()?;
        let newest_ns = self.newest_trace().map_err(|e| failed("look at", &state("trash"), e))?;
        self.state_dir(&state("tmp"))?;
        let opened = self.opened();
        let mut directory = lock(&opened.directory);
        if directory.locked.strong_count() > 0 {
            let message = "another run is writing to it";
            return Err(StoreError::new("use", "the destination", Problem::Stop(Exit::TryLater), message));
        }
        directory.locked = Arc::downgrade(&self.lock);
        drop(directory);
        self.state_dir(&state("trash"))?;
        self.empty_trash(newest_ns).map_err(|e| failed("empty", &state("trash"), e))?;
        let tmp = state("tmp");
        for name in self.ask(|d| d.children(&tmp)).map_err(|e| failed("clean", &tmp, e))? {
            let left = tmp.child(&name).unwrap();
            self.change(|d, now| d.remove(&left, now)).map_err(|e| failed("clean", &tmp, e))?;
        }
        // The real one looks with it for names that merge. It leaves a time in our directory, by which the next run
        // believes its clock.
        let canary = tmp.child(b"canary").expect("a constant name is a component");
        self.change(|d, now| d.make(&canary, Node::new(Kind::File, 0o600, now), now).map(drop))
            .and_then(|()| self.change(|d, now| d.remove(&canary, now)))
            .map_err(|e| failed("write to", &tmp, e))
    }

    /// One of our own directories, made if it is missing.
    fn state_dir(&self, path: &RelPath) -> Result<(), StoreError> {
        self.make_dirs(path).map_err(|missing| match missing {
            (at, libc::ENOTDIR) => {
                let message = format!("{at} in it is no directory; take it away");
                StoreError::new("use", "the destination", Problem::Stop(Exit::Config), message)
            }
            (at, errno) => failed("use", &at, errno),
        })
    }

    /// A directory and those above it, private.
    fn make_dirs(&self, dir: &RelPath) -> Result<(), (RelPath, Errno)> {
        let mut path = RelPath::root();
        for name in dir.components() {
            path = path.child(name).unwrap();
            match self.ask(|d| d.look(&path).map(|(stat, _)| stat.kind)) {
                Ok(Ok(Kind::Dir)) => {}
                Ok(Ok(_)) => return Err((path, libc::ENOTDIR)),
                Ok(Err(_)) => {
                    let made = self.change(|d, now| d.make(&path, Node::new(Kind::Dir, 0o700, now), now));
                    made.map_err(|e| (path.clone(), e))?;
                }
                Err(e) => return Err((path, e)),
            }
        }
        Ok(())
    }

    fn take_away(&self, request: &mut Request, remove: &Remove) -> Result<(), StoreError> {
        let dest = &remove.dest;
        let standing = match self.ask(|d| d.look(dest).map(|(stat, _)| stat.kind)) {
            Ok(Ok(kind)) => kind,
            Ok(Err(Miss::Absent { .. } | Miss::NotDir { .. })) => return Ok(()),
            Ok(Err(miss)) => return Err(missed(REMOVE, miss)),
            Err(e) => return Err(failed(REMOVE, dest, e)),
        };
        if dest.is_root() {
            return Err(StoreError::new(REMOVE, dest, Problem::InTheWay, "it is the destination itself"));
        }
        if standing != remove.kind {
            let message = format!("a {standing} is there, a {} is expected", remove.kind);
            return Err(StoreError::new(REMOVE, dest, Problem::InTheWay, message));
        }
        let trashed = !standing.is_dir() && !is_state(dest);
        let room = if trashed {
            Some(self.trash_room(dest).map_err(|e| trash_failed(REMOVE, dest, e))?)
        } else {
            None
        };
        request.before_effect(None);
        let removed = self.change_for_good(|d, now| match &room {
            Some(room) => d.rename(dest, room, now),
            None => d.remove(dest, now),
        });
        if self.ask(|d| d.look(dest).is_err()) == Ok(true) {
            request.took_effect("");
        }
        match removed {
            Ok(()) => Ok(()),
            Err(libc::ENOTEMPTY) => {
                Err(StoreError::new(REMOVE, dest, Problem::Occupied, "the directory is not empty"))
            }
            Err(e) if trashed => Err(trash_failed(REMOVE, dest, e)),
            Err(e) => Err(failed(REMOVE, dest, e)),
        }
    }

    fn strikes(&self, fault: Fault, op: &'static str, path: &RelPath) -> Result<(), StoreError> {
        if self.fate.strikes(fault) { Err(failed(op, path, libc::EIO)) } else { Ok(()) }
    }
}

fn is_state(dest: &RelPath) -> bool {
    dest.components().next() == Some(STATE)
}

fn state(name: &str) -> RelPath {
    RelPath::parse(&[STATE, b"/", name.as_bytes()].concat()).expect("a constant name is a path")
}

fn object(stat: &Stat) -> String {
    match stat.kind {
        Kind::Dir => stat.ino.to_string(),
        _ => format!("{}:{}:{}", stat.ino, stat.size, stat.mtime_ns),
    }
}

fn listed(dest: RelPath, stat: &Stat) -> Listed {
    Listed {
        name: dest.to_string(),
        dest: Some(dest),
        object: object(stat),
        kind: stat.kind,
        size: stat.size,
        mtime_ns: Some(stat.mtime_ns),
        sha1: None,
        writer: None,
    }
}

fn problem(errno: Errno) -> Problem {
    match errno {
        libc::ENOSPC | libc::EDQUOT | libc::EROFS => Problem::Stop(Exit::Failed),
        libc::ENAMETOOLONG | libc::EINVAL | libc::EMLINK => Problem::Unfit,
        libc::EISDIR | libc::ENOTDIR | libc::EEXIST => Problem::InTheWay,
        _ => Problem::TryLater(None),
    }
}

fn failed(op: &'static str, path: &RelPath, errno: Errno) -> StoreError {
    let problem = problem(errno);
    let outcome_unknown = problem == Problem::TryLater(None);
    let source = std::io::Error::from_raw_os_error(errno);
    StoreError { outcome_unknown, ..StoreError::new(op, path, problem, source) }
}

fn missed(op: &'static str, miss: Miss) -> StoreError {
    match miss {
        Miss::Absent { at } => {
            StoreError::new(op, at, Problem::TryLater(None), "it is not at the destination yet")
        }
        Miss::NotDir { at } => StoreError::new(op, at, Problem::InTheWay, "it is no directory"),
        Miss::TooLong { at } => failed(op, &at, libc::ENAMETOOLONG),
    }
}

/// What goes wrong on the way to the trash says nothing of the path itself.
fn trash_failed(op: &'static str, dest: &RelPath, errno: Errno) -> StoreError {
    let problem = match problem(errno) {
        stop @ Problem::Stop(_) => stop,
        _ => Problem::TryLater(None),
    };
    let source = std::io::Error::from_raw_os_error(errno);
    let outcome_unknown = problem == Problem::TryLater(None);
    let message = format!("moving the old version to the trash: {source}");
    StoreError { outcome_unknown, ..StoreError::new(op, dest, problem, message) }
}

#[async_trait]
impl Store for SimDir {
    fn holds(&self) -> Holds {
        HOLDS
    }

    async fn open(&self) -> Result<(), StoreError> {
        let request = self.watch.ask(Asked::Open, &RelPath::root());
        self.pass("open").await;
        let opened = self.find_place().map(|found| {
            assert!(self.opened.set(found).is_ok(), "`open` is called once");
        });
        request.answer(opened)
    }

    fn identity(&self) -> String {
        self.opened().identity.clone()
    }

    async fn prepare(&self) -> Result<(), StoreError> {
        let request = self.watch.ask(Asked::Prepare, &RelPath::root());
        self.pass("prepare").await;
        request.answer(self.make_ready())
    }

    async fn put(&self, put: Put) -> Result<Receipt, StoreError> {
        let mut request = self.watch.put(&put);
        self.pass("put").await;
        let result = self.carry_out(&mut request, &put).await;
        self.pass("the answer").await;
        request.answer(result)
    }

    async fn remove(&self, remove: Remove) -> Result<(), StoreError> {
        let mut request = self.watch.remove(&remove);
        self.pass("remove").await;
        let result = self.take_away(&mut request, &remove);
        self.pass("the answer").await;
        request.answer(result)
    }

    async fn sync(&self) -> Result<(), StoreError> {
        let request = self.watch.ask(Asked::Sync, &RelPath::root());
        self.pass("sync").await;
        let synced = self.change(|directory, _| {
            directory.sync();
            Ok(())
        });
        request.answer(synced.map_err(|e| failed("sync", &RelPath::root(), e)))
    }

    async fn list(&self, top: &RelPath, page: Option<String>) -> Result<Page, StoreError> {
        let request = self.watch.ask(Asked::List, top);
        self.pass("list").await;
        let listed = self.strikes(Fault::DirListFails, "list", top).and_then(|()| self.list_page(top, page));
        request.answer(listed)
    }

    async fn newest(&self, dest: &RelPath) -> Result<Option<Listed>, StoreError> {
        const OP: &str = "look at";
        let request = self.watch.ask(Asked::Newest, dest);
        self.pass("newest").await;
        let looked = self.strikes(Fault::DirLookFails, OP, dest).and_then(|()| {
            let looked = self.ask(|d| d.look(dest).map(|(stat, _)| stat));
            match looked.map_err(|e| failed(OP, dest, e))? {
                Ok(stat) => Ok(Some(listed(dest.clone(), &stat))),
                Err(Miss::Absent { .. } | Miss::NotDir { .. }) => Ok(None),
                Err(miss) => Err(missed(OP, miss)),
            }
        });
        request.answer(looked)
    }

    fn calls(&self) -> Calls {
        Calls::default()
    }

    fn notes(&self) -> Vec<String> {
        let unset = self.unset_count.load(Ordering::Relaxed);
        let text =
            format!("{unset} owners, modes, times or attributes could not be set there for want of rights");
        (unset > 0).then_some(text).into_iter().collect()
    }
}
