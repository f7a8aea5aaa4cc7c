//! What a test plays to a run in the place of the real thing: the tracker, the clock, the rest between two rounds, what
//! a tree answers, and a store that is cut off.

use std::ffi::CStr;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use shared::clock::{Clock, SystemClock};
use shared::entry::Handle;
use shared::exit::Exit;
use shared::path::RelPath;
use syncer::leg::{Calls, Holds, Listed, Page, Problem, Put, Receipt, Remove, Store, StoreError};
use syncer::report::Report;
use syncer::run::{Parts, Rest, Tracker};
use syncer::tree::{Dir, Look, SourceFile, Stat, Tree, TreeError, Xattrs};

/// A tracker that is up, or not, and at whose flushes the test may do something.
pub struct PlayedTracker {
    up: bool,
    flushes: AtomicU64,
    at_flush: Mutex<Box<dyn FnMut(u64) + Send>>,
}

impl PlayedTracker {
    pub fn up() -> PlayedTracker {
        PlayedTracker::at_flush(|_| {})
    }

    pub fn down() -> PlayedTracker {
        PlayedTracker { up: false, ..PlayedTracker::up() }
    }

    /// `work` gets the number of the flush, from 1 on: that of the round that begins with it.
    pub fn at_flush(work: impl FnMut(u64) + Send + 'static) -> PlayedTracker {
        PlayedTracker { up: true, flushes: AtomicU64::new(0), at_flush: Mutex::new(Box::new(work)) }
    }
}

impl Tracker for PlayedTracker {
    fn flush(&self) -> Result<(), String> {
        let round = self.flushes.fetch_add(1, Ordering::Relaxed) + 1;
        (self.at_flush.lock().unwrap())(round);
        if self.up { Ok(()) } else { Err("The tracker does not answer".into()) }
    }

    fn probed_boot_ns(&self) -> Option<i64> {
        self.up.then(|| SystemClock.boot_ns())
    }
}

/// The clock of a run that comes so much later.
pub struct Later(pub Duration);

impl Clock for Later {
    fn wall_ns(&self) -> i64 {
        SystemClock.wall_ns() + self.0.as_nanos() as i64
    }

    fn boot_ns(&self) -> i64 {
        SystemClock.boot_ns()
    }
}

/// A rest that the test plays: it gets what the run gives, and says whether there is to be another round.
pub struct PlayedRest<F>(pub F);

#[async_trait(?Send)]
impl<F: FnMut(&Report, Option<i64>) -> bool> Rest for PlayedRest<F> {
    async fn rest(&mut self, report: &Report, due_ns: Option<i64>) -> bool {
        (self.0)(report, due_ns)
    }
}

/// In what a tree answers otherwise than it would.
#[derive(Clone, Default)]
pub struct Bent {
    /// Its clock goes before by so much: what was just written counts as settled.
    pub ahead: Duration,
    /// Nothing can be said of this path.
    pub unknown: Option<&'static str>,
    /// This path is gone by the time its attributes are read.
    pub gone_later: Option<&'static str>,
    /// Called before the attributes of a path are read.
    pub at_xattrs: Option<Arc<dyn Fn() + Send + Sync>>,
    /// The list of names that this path is in lacks it.
    pub unlisted: Option<&'static str>,
    /// Called before a file is opened.
    pub at_open: Option<Arc<dyn Fn() + Send + Sync>>,
    /// Called before each read of an open file.
    pub at_read: Option<Arc<dyn Fn() + Send + Sync>>,
    /// Called after a file was read and found unchanged.
    pub after_read: Option<Arc<dyn Fn() + Send + Sync>>,
}

impl Bent {
    /// Minutes ahead: every row that a run makes is settled.
    pub fn ahead() -> Bent {
        Bent { ahead: Duration::from_secs(600), ..Bent::default() }
    }

    /// Puts it over the trees of a run.
    pub fn over(self, parts: &mut Parts) {
        let open_tree = std::mem::replace(&mut parts.open_tree, Box::new(|_| Err("replaced below".into())));
        parts.open_tree = Box::new(move |root| {
            let (real, identity) = open_tree(root)?;
            Ok((Arc::new(BentTree { real, bent: self.clone() }), identity))
        });
    }
}

struct BentTree {
    real: Arc<dyn Tree>,
    bent: Bent,
}

struct BentFile {
    real: Arc<dyn SourceFile>,
    bent: Bent,
}

impl SourceFile for BentFile {
    fn stat(&self) -> &Stat {
        self.real.stat()
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        if let Some(work) = &self.bent.at_read {
            work();
        }
        self.real.read_at(buffer, offset)
    }

    fn next_data(&self, from: u64) -> io::Result<Option<Range<u64>>> {
        self.real.next_data(from)
    }

    fn unchanged(&self) -> io::Result<bool> {
        let unchanged = self.real.unchanged()?;
        if let Some(work) = &self.bent.after_read {
            work();
        }
        Ok(unchanged)
    }
}

fn io_error() -> io::Error {
    io::Error::from(rustix::io::Errno::IO)
}

impl Tree for BentTree {
    fn look(&self, path: &RelPath) -> Look {
        if is(self.bent.unknown, path) {
            return Look::Unknown(io_error().to_string());
        }
        self.real.look(path)
    }

    fn dir(&self, path: &RelPath) -> Result<Arc<dyn Dir>, TreeError> {
        let real = self.real.dir(path)?;
        Ok(Arc::new(BentDir { real, path: path.clone(), bent: self.bent.clone() }))
    }

    fn open(&self, path: &RelPath) -> Result<Arc<dyn SourceFile>, TreeError> {
        if let Some(work) = &self.bent.at_open {
            work();
        }
        let real = self.real.open(path)?;
        Ok(Arc::new(BentFile { real, bent: self.bent.clone() }))
    }

    fn read_link(&self, path: &RelPath) -> Result<Vec<u8>, TreeError> {
        self.real.read_link(path)
    }

    fn xattrs(&self, path: &RelPath) -> Result<Xattrs, TreeError> {
        if let Some(work) = &self.bent.at_xattrs {
            work();
        }
        if is(self.bent.gone_later, path) {
            let source = io::ErrorKind::NotFound.into();
            return Err(TreeError { op: "read the attributes of", path: path.clone(), source });
        }
        self.real.xattrs(path)
    }

    fn handle(&self, path: &RelPath) -> Option<Handle> {
        self.real.handle(path)
    }

    fn now_ns(&self) -> i64 {
        self.real.now_ns() + self.bent.ahead.as_nanos() as i64
    }

    fn stable_inodes(&self) -> bool {
        self.real.stable_inodes()
    }

    fn check(&self) -> Result<(), String> {
        self.real.check()
    }

    fn release(&self) {
        self.real.release();
    }
}

struct BentDir {
    real: Arc<dyn Dir>,
    path: RelPath,
    bent: Bent,
}

fn is(bent: Option<&str>, path: &RelPath) -> bool {
    bent.is_some_and(|bent| bent.as_bytes() == path.as_bytes())
}

impl Dir for BentDir {
    fn names(&self, each: &mut dyn FnMut(&CStr, Option<bool>)) -> io::Result<()> {
        self.real.names(&mut |name, is_dir| {
            if !is(self.bent.unlisted, &self.path.child(name.to_bytes()).unwrap()) {
                each(name, is_dir);
            }
        })
    }

    fn stat(&self, name: &CStr) -> io::Result<Stat> {
        let path = self.path.child(name.to_bytes()).unwrap();
        if is(self.bent.unknown, &path) {
            return Err(io_error());
        }
        self.real.stat(name)
    }

    fn dir(&self, name: &CStr) -> io::Result<Arc<dyn Dir>> {
        let path = self.path.child(name.to_bytes()).unwrap();
        Ok(Arc::new(BentDir { real: self.real.dir(name)?, path, bent: self.bent.clone() }))
    }
}

/// A store that stops the run between what it did and its receipts, as a kill there does.
pub struct CutOff {
    real: Arc<dyn Store>,
    due: AtomicBool,
}

impl CutOff {
    /// Puts it over the store of a run, to stop it after its first removals.
    pub fn over(parts: &mut Parts) {
        CutOff::put_over(parts, false);
    }

    /// To stop it before anything is confirmed.
    pub fn unconfirmed(parts: &mut Parts) {
        CutOff::put_over(parts, true);
    }

    fn put_over(parts: &mut Parts, due: bool) {
        let make = std::mem::replace(&mut parts.make_store, Box::new(|_| unreachable!("replaced below")));
        parts.make_store =
            Box::new(move |leg| Ok(Arc::new(CutOff { real: make(leg)?, due: AtomicBool::new(due) })));
    }
}

#[async_trait]
impl Store for CutOff {
    fn holds(&self) -> Holds {
        self.real.holds()
    }

    async fn open(&self) -> Result<(), StoreError> {
        self.real.open().await
    }

    fn identity(&self) -> String {
        self.real.identity()
    }

    async fn prepare(&self) -> Result<(), StoreError> {
        self.real.prepare().await
    }

    async fn put(&self, put: Put) -> Result<Receipt, StoreError> {
        self.real.put(put).await
    }

    async fn remove(&self, remove: Remove) -> Result<(), StoreError> {
        self.real.remove(remove).await?;
        self.due.store(true, Ordering::Relaxed);
        Ok(())
    }

    async fn sync(&self) -> Result<(), StoreError> {
        self.real.sync().await?;
        if self.due.load(Ordering::Relaxed) {
            let stop = Problem::Stop(Exit::Failed);
            return Err(StoreError::new("sync", "the destination", stop, "cut off by the test"));
        }
        Ok(())
    }

    async fn list(&self, top: &RelPath, page: Option<String>) -> Result<Page, StoreError> {
        self.real.list(top, page).await
    }

    async fn newest(&self, dest: &RelPath) -> Result<Option<Listed>, StoreError> {
        self.real.newest(dest).await
    }

    fn calls(&self) -> Calls {
        self.real.calls()
    }

    fn notes(&self) -> Vec<String> {
        self.real.notes()
    }
}
