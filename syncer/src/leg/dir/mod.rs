//! A directory as a destination: plain files under their own paths. What is replaced or removed goes to
//! `.longshore/trash`, what is being written lies in `.longshore/tmp`, both at the destination's top.

mod attributes;
mod begin;
mod listing;
mod put;
mod trash;

use std::fmt::Display;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use async_trait::async_trait;
use rustix::fs::AtFlags;
use rustix::io::Errno;
use shared::clock::Clock;
use shared::exit::Exit;
use shared::path::RelPath;

use crate::leg::{Calls, Holds, Listed, Page, Problem, Put, Receipt, Remove, Store, StoreError};
use crate::tree::beneath::{Beneath, Miss};
use crate::tree::{Kind, Stat};

/// Our own directory at the destination's top; what is put below it is replaced and removed without trash.
const STATE: &[u8] = b".longshore";
/// Below this much free space nothing is written: a hundredth of the disk, at most a GiB.
const FREE_BYTES_MAX: u64 = 1 << 30;

pub struct Setup {
    pub destination: PathBuf,
    pub run: u64,
    pub trash_days: u32,
    /// The roots that are mirrored here; none of them may hold the destination, nor lie in it.
    pub sources: Vec<PathBuf>,
    pub clock: Arc<dyn Clock>,
}

pub struct DirStore {
    inner: Arc<Inner>,
}

struct Inner {
    setup: Setup,
    place: OnceLock<Place>,
    writing: OnceLock<Writing>,
    listing: Mutex<Option<listing::Paused>>,
    temp_count: AtomicU64,
    unset_count: AtomicU64,
}

/// The destination, as `open` found it.
struct Place {
    below: Beneath,
    /// All that names the directory, as JSON.
    identity: String,
    /// Filesystem and UUID, for messages.
    disk: String,
}

/// What `prepare` made ready.
struct Writing {
    /// Open for reading, and locked against a second run.
    tmp: Arc<OwnedFd>,
    trash: trash::Trash,
    rights: begin::Rights,
}

impl DirStore {
    pub fn new(setup: Setup) -> DirStore {
        DirStore {
            inner: Arc::new(Inner {
                setup,
                place: OnceLock::new(),
                writing: OnceLock::new(),
                listing: Mutex::new(None),
                temp_count: AtomicU64::new(0),
                unset_count: AtomicU64::new(0),
            }),
        }
    }

    /// Owners, modes, times and extended attributes that this run could not set for want of rights or support.
    pub fn unset_count(&self) -> u64 {
        self.inner.unset_count.load(Ordering::Relaxed)
    }

    /// Dropping the future leaves the work running to its end on its thread.
    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let inner = Arc::clone(&self.inner);
        match tokio::task::spawn_blocking(move || work(&inner)).await {
            Ok(result) => result,
            Err(e) if e.is_panic() => std::panic::resume_unwind(e.into_panic()),
            Err(e) => Err(StoreError::new("finish", "the work", Problem::TryLater(None), e)),
        }
    }
}

#[async_trait]
impl Store for DirStore {
    fn holds(&self) -> Holds {
        Holds { all_kinds: true, attributes: true, hard_links: true, writers: false, nanoseconds: true }
    }

    async fn open(&self) -> Result<(), StoreError> {
        self.run(Inner::open).await
    }

    fn identity(&self) -> String {
        self.inner.place().identity.clone()
    }

    async fn prepare(&self) -> Result<(), StoreError> {
        self.run(Inner::prepare).await
    }

    async fn put(&self, put: Put) -> Result<Receipt, StoreError> {
        self.run(move |inner| inner.forgetting(|inner| inner.put(&put))).await
    }

    async fn remove(&self, remove: Remove) -> Result<(), StoreError> {
        self.run(move |inner| inner.forgetting(|inner| inner.remove(&remove))).await
    }

    async fn sync(&self) -> Result<(), StoreError> {
        self.run(|inner| {
            inner.forget();
            let destination = inner.setup.destination.display();
            rustix::fs::syncfs(inner.below().root()).map_err(|e| failed("sync", destination, e))
        })
        .await
    }

    async fn list(&self, top: &RelPath, page: Option<String>) -> Result<Page, StoreError> {
        let top = top.clone();
        self.run(move |inner| inner.list(&top, page)).await
    }

    async fn newest(&self, dest: &RelPath) -> Result<Option<Listed>, StoreError> {
        let dest = dest.clone();
        self.run(move |inner| match inner.below().pin(&dest) {
            Ok(pinned) => Ok(Some(listed(dest, &pinned.stat))),
            Err(Miss::Absent { .. } | Miss::NotDir { .. }) => Ok(None),
            Err(miss) => Err(missed("look at", miss)),
        })
        .await
    }

    fn calls(&self) -> Calls {
        Calls::default()
    }

    fn notes(&self) -> Vec<String> {
        let unset = self.unset_count();
        let text =
            format!("{unset} owners, modes, times or attributes could not be set there for want of rights");
        (unset > 0).then_some(text).into_iter().collect()
    }
}

impl Inner {
    fn place(&self) -> &Place {
        self.place.get().expect("`open` comes before everything else")
    }

    fn below(&self) -> &Beneath {
        &self.place().below
    }

    fn writing(&self) -> &Writing {
        self.writing.get().expect("`begin` comes before every change")
    }

    fn forget(&self) {
        self.below().forget();
        if let Some(writing) = self.writing.get() {
            writing.trash.forget();
        }
    }

    /// After an error nothing remembered is trusted.
    fn forgetting<T>(&self, work: impl FnOnce(&Self) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let result = work(self);
        if result.is_err() {
            self.forget();
        }
        result
    }

    fn remove(&self, remove: &Remove) -> Result<(), StoreError> {
        const OP: &str = "remove";
        let (below, dest) = (self.below(), &remove.dest);
        let standing = match below.pin(dest) {
            Ok(pinned) => pinned.stat.kind,
            Err(Miss::Absent { .. } | Miss::NotDir { .. }) => return Ok(()),
            Err(miss) => return Err(missed(OP, miss)),
        };
        let (Some(parent), Some(name)) = (dest.parent(), dest.name()) else {
            return Err(StoreError::new(OP, dest, Problem::InTheWay, "it is the destination itself"));
        };
        if standing != remove.kind {
            let message = format!("a {standing} is there, a {} is expected", remove.kind);
            return Err(StoreError::new(OP, dest, Problem::InTheWay, message));
        }
        let parent = below.dir(&parent, false).map_err(|m| missed(OP, m))?;
        let gone_is_fine = |result: Result<(), Errno>| match result {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(e) => Err(failed(OP, dest, e)),
        };
        if standing.is_dir() {
            let removed = rustix::fs::unlinkat(&parent, name, AtFlags::REMOVEDIR);
            below.forget(); // it may be among the remembered ones
            return match removed {
                Err(Errno::NOTEMPTY) => {
                    Err(StoreError::new(OP, dest, Problem::Occupied, "the directory is not empty"))
                }
                other => gone_is_fine(other),
            };
        }
        if is_state(dest) {
            return gone_is_fine(rustix::fs::unlinkat(&parent, name, AtFlags::empty()));
        }
        let now_ns = self.setup.clock.wall_ns();
        self.writing().trash.take(dest, parent.as_fd(), name, now_ns).map_err(|e| trash_failed(OP, dest, e))
    }

    /// Refuses to write once the disk is nearly full.
    fn check_room(&self, top: BorrowedFd<'_>, disk: &str) -> Result<(), StoreError> {
        const OP: &str = "write to";
        let destination = self.setup.destination.display();
        let space = rustix::fs::fstatvfs(top).map_err(|e| failed(OP, &destination, e))?;
        let bytes = |blocks: u64| blocks.saturating_mul(space.f_frsize);
        let (free, total) = (bytes(space.f_bavail), bytes(space.f_blocks));
        let floor = (total / 100).min(FREE_BYTES_MAX);
        if free >= floor {
            return Ok(());
        }
        let message = format!(
            "its disk ({disk}) has {} of {} MiB free, and {} are kept free; make room there",
            free >> 20,
            total >> 20,
            floor >> 20
        );
        Err(StoreError::new(OP, destination, Problem::Stop(Exit::Failed), message))
    }
}

fn is_state(dest: &RelPath) -> bool {
    dest.components().next() == Some(STATE)
}

fn state(name: &str) -> RelPath {
    RelPath::parse(STATE)
        .and_then(|state| state.child(name.as_bytes()))
        .expect("a constant name is a component")
}

/// What a receipt and a listing call this version. A directory keeps its own as long as it stands.
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

fn problem(error: &io::Error) -> Problem {
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::NOSPC | Errno::DQUOT | Errno::ROFS) => Problem::Stop(Exit::Failed),
        Some(
            Errno::NAMETOOLONG | Errno::ILSEQ | Errno::INVAL | Errno::FBIG | Errno::MLINK | Errno::OPNOTSUPP,
        ) => Problem::Unfit,
        Some(Errno::ISDIR | Errno::NOTDIR | Errno::EXIST) => Problem::InTheWay,
        _ => Problem::TryLater(None),
    }
}

/// Of an error of the disk, or of a server behind it, nobody knows whether it came before or after the effect.
fn failed(op: &'static str, object: impl Display, source: impl Into<io::Error>) -> StoreError {
    let source = source.into();
    let problem = problem(&source);
    let outcome_unknown = problem == Problem::TryLater(None);
    StoreError { outcome_unknown, ..StoreError::new(op, object, problem, source) }
}

fn missed(op: &'static str, miss: Miss) -> StoreError {
    match miss {
        Miss::Absent { at } => StoreError::new(
            op,
            at,
            Problem::TryLater(None),
            "it is not at the destination yet; if somebody took it away there, `syncer run --full` brings it back",
        ),
        Miss::NotDir { at } => StoreError::new(op, at, Problem::InTheWay, "it is no directory"),
        Miss::Failed { at, source } => failed(op, at, source),
    }
}

/// What goes wrong on the way to the trash says nothing of the path itself.
fn trash_failed(op: &'static str, dest: &RelPath, source: io::Error) -> StoreError {
    let problem = match problem(&source) {
        stop @ Problem::Stop(_) => stop,
        _ => Problem::TryLater(None),
    };
    let outcome_unknown = problem == Problem::TryLater(None);
    let message = format!("moving the old version to the trash: {source}");
    StoreError { outcome_unknown, ..StoreError::new(op, dest, problem, message) }
}

#[cfg(test)]
mod tests;
