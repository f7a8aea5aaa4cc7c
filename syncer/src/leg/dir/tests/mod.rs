//! Against real directories: a source, a destination, and what a run would do between them.

mod files;
mod place;
mod standing;

use std::fs;
use std::path::Path;
use std::sync::LazyLock;
use std::sync::atomic::AtomicI64;

use shared::clock::SystemClock;
use tokio::runtime::Runtime;

use super::*;
use crate::leg::{Body, What};
use crate::tree::proven::ProvenTree;
use crate::tree::{Look, Tree};

pub(super) fn p(path: &str) -> RelPath {
    RelPath::parse(path.as_bytes()).unwrap()
}

/// A source tree and a destination beside each other.
pub(super) struct Scene {
    pub dir: tempfile::TempDir,
    pub tree: ProvenTree,
    pub store: DirStore,
}

/// A wall clock that stands where it is put.
pub(super) struct FakeClock(pub AtomicI64);

impl Clock for FakeClock {
    fn wall_ns(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }

    fn boot_ns(&self) -> i64 {
        SystemClock.boot_ns()
    }
}

pub(super) fn setup(dir: &Path) -> Setup {
    Setup {
        destination: dir.join("dest"),
        run: 7,
        trash_days: 30,
        sources: vec![dir.join("src")],
        clock: Arc::new(SystemClock),
    }
}

pub(super) fn scene() -> Scene {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("src")).unwrap();
    fs::create_dir(dir.path().join("dest")).unwrap();
    let tree = ProvenTree::open(&dir.path().join("src")).unwrap();
    let store = DirStore::new(setup(dir.path()));
    wait(store.open()).unwrap();
    wait(store.prepare()).unwrap();
    Scene { dir, tree, store }
}

pub(super) fn wait<T>(work: impl Future<Output = T>) -> T {
    static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Runtime::new().unwrap());
    RUNTIME.block_on(work)
}

impl Scene {
    pub fn src(&self, path: &str) -> PathBuf {
        self.dir.path().join("src").join(path)
    }

    pub fn dest(&self, path: &str) -> PathBuf {
        self.dir.path().join("dest").join(path)
    }

    /// What a run would hand over for one path of the source.
    pub fn put_of(&self, path: &str) -> Put {
        let dest = p(path);
        let Look::Found(stat) = self.tree.look(&dest) else { panic!("{path} is not there") };
        let what = match stat.kind {
            Kind::File => What::File(Body { file: self.tree.open(&dest).unwrap(), small: None }),
            Kind::Dir => What::Dir,
            Kind::Symlink => What::Symlink { target: self.tree.read_link(&dest).unwrap() },
            _ => What::Special,
        };
        let xattrs = self.tree.xattrs(&dest).unwrap();
        Put { dest, what, stat, xattrs }
    }

    pub fn put(&self, put: Put) -> Result<Receipt, StoreError> {
        wait(self.store.put(put))
    }

    pub fn mirror(&self, path: &str) -> Receipt {
        self.put(self.put_of(path)).unwrap()
    }

    /// Writes a file at the source and mirrors it.
    pub fn write(&self, path: &str, content: &[u8]) -> Receipt {
        fs::write(self.src(path), content).unwrap();
        self.mirror(path)
    }

    pub fn remove(&self, path: &str, kind: Kind) -> Result<(), StoreError> {
        wait(self.store.remove(Remove { dest: p(path), kind, object: String::new() }))
    }

    pub fn newest(&self, path: &str) -> Option<Listed> {
        wait(self.store.newest(&p(path))).unwrap()
    }

    /// All files in the trash, without the name of the run.
    pub fn trashed(&self) -> Vec<(String, Vec<u8>)> {
        let mut out = Vec::new();
        for run in fs::read_dir(self.dest(".longshore/trash")).unwrap() {
            let run = run.unwrap().path();
            let mut dirs = vec![run.clone()];
            while let Some(dir) = dirs.pop() {
                for entry in fs::read_dir(dir).unwrap() {
                    let path = entry.unwrap().path();
                    if path.is_dir() && !path.is_symlink() {
                        dirs.push(path);
                    } else {
                        let name = path.strip_prefix(&run).unwrap().to_str().unwrap().to_owned();
                        out.push((name, fs::read(&path).unwrap_or_default()));
                    }
                }
            }
        }
        out.sort();
        out
    }

    pub fn temp_count(&self) -> usize {
        fs::read_dir(self.dest(".longshore/tmp")).unwrap().count()
    }
}

pub(super) fn attributes(put: Put) -> Put {
    Put { what: What::Attributes, ..put }
}

pub(super) fn trash(files: &[(&str, &[u8])]) -> Vec<(String, Vec<u8>)> {
    files.iter().map(|(name, content)| ((*name).to_owned(), content.to_vec())).collect()
}
