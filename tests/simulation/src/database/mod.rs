//! The disk under the real SQLite: what was not synced can be lost, a program can die in the midst of a write, and the
//! disk can be full. For the databases below one directory, as one thread uses them; all else of the process goes to
//! the machine's own disk as always.

mod changes;
#[allow(unsafe_code, reason = "SQLite calls it, and it calls SQLite")]
mod sys;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::marker::PhantomData;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};

use changes::Change;

/// One life of a program: one that starts again gets another number.
pub type Program = u64;

/// What is about to happen to a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    Write { offset: u64, len: usize },
    Truncate { len: u64 },
    Sync,
    Delete,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Op<'a> {
    pub program: Program,
    pub path: &'a Path,
    pub act: Act,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    Go,
    /// There is no room: half of a write is done, and SQLite says so. Who frees room gets `Go`.
    Full,
    /// The program dies here, a write half done. SQLite reports an I/O error to the dead; nobody hears what they say.
    Die,
}

type Hook = Box<dyn FnMut(&Op<'_>) -> Answer>;

struct Disk {
    dir: PathBuf,
    running: Program,
    dead: BTreeSet<Program>,
    /// The power is gone: all are dead.
    halted: bool,
    hook: Option<Hook>,
    /// Since the last sync of each file, oldest first.
    changes: BTreeMap<PathBuf, Vec<Change>>,
    /// Files that only memory holds.
    shared_memory: BTreeSet<PathBuf>,
    open: usize,
}

thread_local! {
    static DISK: RefCell<Option<Disk>> = const { RefCell::new(None) };
}

/// The disk of this thread, as long as this lives.
#[must_use]
pub struct Attached(PhantomData<*const ()>);

impl Drop for Attached {
    fn drop(&mut self) {
        DISK.with_borrow_mut(Option::take);
    }
}

/// A new directory in memory, where there is one.
pub fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// From now on SQLite's files below `dir` are on this thread's disk.
pub fn attach(dir: &Path) -> Attached {
    sys::register();
    let disk = Disk {
        // SQLite resolves symbolic links, too.
        dir: dir.canonicalize().unwrap(),
        running: 0,
        dead: BTreeSet::new(),
        halted: false,
        hook: None,
        changes: BTreeMap::new(),
        shared_memory: BTreeSet::new(),
        open: 0,
    };
    let before = DISK.replace(Some(disk));
    assert!(before.is_none(), "this thread has a disk already");
    Attached(PhantomData)
}

fn with<T>(work: impl FnOnce(&mut Disk) -> T) -> T {
    DISK.with_borrow_mut(|disk| work(disk.as_mut().expect("a disk is attached")))
}

/// The program that runs now: what is opened from here on is its.
pub fn enter(program: Program) {
    with(|disk| disk.running = program);
}

/// Nothing that the program does to a file has an effect any more, closing it neither. Its locks stay until it closes.
pub fn kill(program: Program) {
    with(|disk| disk.dead.insert(program));
}

/// The power goes: like [`kill`] for every program, until [`power_cut`].
pub fn halt() {
    with(|disk| disk.halted = true);
}

pub fn is_dead(program: Program) -> bool {
    with(|disk| disk.is_dead(program))
}

/// `hook` is asked before each act of a living program. One that unwinds has answered [`Answer::Die`]. It may kill, but
/// must not use SQLite.
pub fn ask(hook: impl FnMut(&Op<'_>) -> Answer + 'static) {
    with(|disk| disk.hook = Some(Box::new(hook)));
}

/// How many changes a power cut could take back.
pub fn unsynced() -> usize {
    with(|disk| disk.changes.values().map(Vec::len).sum())
}

/// Somebody took the file away or put another one there without SQLite: a power cut leaves it as it is.
pub fn forget(path: &Path) {
    with(|disk| disk.changes.remove(path));
}

/// The machine comes up again after its power went. Of what was not synced only what `keep` says is there, asked for
/// each sector of a write and each other change. Every database must have been closed. The numbers of programs are free
/// again.
pub fn power_cut(keep: &mut dyn FnMut() -> bool) {
    with(|disk| {
        assert_eq!(disk.open, 0, "a power cut leaves no database open");
        for (path, changes) in std::mem::take(&mut disk.changes) {
            changes::lose(&path, &changes, keep);
        }
        for path in std::mem::take(&mut disk.shared_memory) {
            // It is there only if somebody read the database.
            let _ = std::fs::remove_file(path);
        }
        disk.dead.clear();
        disk.halted = false;
    });
}

impl Disk {
    fn is_dead(&self, program: Program) -> bool {
        self.halted || self.dead.contains(&program)
    }
}

/// What becomes of an act.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Done,
    /// A part is done, and the disk is full.
    Full,
    /// A part is done, and the program is dead.
    Dies,
    /// It was dead before.
    Nothing,
}

/// The disk that the path lies on. `None`: it is the machine's.
fn on_disk<T>(path: &Path, work: impl FnOnce(&mut Disk) -> T) -> Option<T> {
    // A thread that ends closes what it had open.
    let found = DISK.try_with(|disk| {
        let mut disk = disk.borrow_mut();
        disk.as_mut().filter(|disk| path.starts_with(&disk.dir)).map(work)
    });
    found.ok().flatten()
}

fn decide(op: &Op<'_>) -> Verdict {
    let hook = on_disk(op.path, |disk| (!disk.is_dead(op.program)).then(|| disk.hook.take()));
    let mut hook = match hook {
        None => return Verdict::Done,
        Some(None) => return Verdict::Nothing,
        Some(Some(None)) => return Verdict::Done,
        Some(Some(Some(hook))) => hook,
    };
    let answer = std::panic::catch_unwind(AssertUnwindSafe(|| hook(op))).unwrap_or(Answer::Die);
    with(|disk| {
        disk.hook.get_or_insert(hook);
        if answer == Answer::Die {
            disk.dead.insert(op.program);
        }
        match answer {
            _ if disk.is_dead(op.program) => Verdict::Dies,
            Answer::Full => Verdict::Full,
            _ => Verdict::Done,
        }
    })
}

fn is_simulated(path: &Path) -> bool {
    on_disk(path, |_| ()).is_some()
}

fn is_attached() -> bool {
    DISK.try_with(|disk| disk.borrow().is_some()).unwrap_or(false)
}

fn is_dead_on(path: &Path, program: Program) -> bool {
    on_disk(path, |disk| disk.is_dead(program)).unwrap_or(false)
}

fn running(path: &Path) -> Option<Program> {
    on_disk(path, |disk| disk.running)
}

/// Whose a file is that is opened now; `None` if the dead would open it.
fn opener(path: &Path) -> Option<Program> {
    on_disk(path, |disk| (!disk.is_dead(disk.running)).then_some(disk.running)).flatten()
}

fn opened(path: &Path, is_database: bool) {
    on_disk(path, |disk| {
        disk.open += 1;
        if is_database {
            let mut name = path.as_os_str().to_owned();
            name.push("-shm");
            disk.shared_memory.insert(name.into());
        }
    });
}

fn closed(path: &Path) {
    on_disk(path, |disk| disk.open -= 1);
}

fn changed(path: &Path, change: Change) {
    on_disk(path, |disk| disk.changes.entry(path.to_owned()).or_default().push(change));
}

fn synced(path: &Path) {
    on_disk(path, |disk| disk.changes.remove(path));
}

/// Which names there are in the directory of `path` is on the disk.
fn synced_names(path: &Path) {
    on_disk(path, |disk| {
        for (_, changes) in disk.changes.iter_mut().filter(|(other, _)| other.parent() == path.parent()) {
            let deleted = changes.iter().rposition(|change| matches!(change, Change::Delete { .. }));
            changes.drain(..deleted.map_or(0, |at| at + 1));
        }
    });
}
