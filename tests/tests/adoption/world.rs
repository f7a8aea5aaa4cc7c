//! The world of these tests: two roots on a filesystem of their own, and a tracker whose descriptors are kept.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use shared::entry::Cause;
use shared::journal::Journal;
use tempfile::TempDir;
use tests::mount::{LoopFs, available};
use tests::programs::program;
use tests::supervisor::Supervisor;

/// Bytes of a word in the head of a buffer: the second is its layout, the fourth the epoch, the twelfth that of an owed
/// gap, then its cause.
pub const WORD: u64 = 8;

/// A tracker under supervision with the roots `a` and `b` on one filesystem.
pub struct World {
    pub tracker: Supervisor,
    pub fs: LoopFs,
    pub dir: TempDir,
    /// Rows up to here were there before.
    pub seen: u64,
}

impl World {
    /// `None` where nothing can be mounted.
    pub fn new(program: &Path) -> Option<World> {
        if !available("ext4") {
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let fs = LoopFs::new("ext4").unwrap();
        let tracker = Supervisor::new(program, &dir.path().join("longshore.toml"));
        let world = World { tracker, fs, dir, seen: 0 };
        for name in ["a", "b"] {
            fs::create_dir(world.root(name)).unwrap();
        }
        world.configure(&[("a", world.root("a"), ""), ("b", world.root("b"), "")]);
        Some(world)
    }

    /// One that has started, and whose first gaps are not counted.
    pub fn started() -> Option<World> {
        World::started_as(&program("tracker"))
    }

    pub fn started_as(program: &Path) -> Option<World> {
        let mut world = World::new(program)?;
        world.tracker.start();
        world.write("a/first");
        world.tracker.flush();
        world.seen = world.journal().head_and_floor().unwrap().0;
        Some(world)
    }

    pub fn root(&self, name: &str) -> PathBuf {
        self.fs.path().join(name)
    }

    pub fn configure(&self, roots: &[(&str, PathBuf, &str)]) {
        let base = self.dir.path().display();
        let mut text = format!("state_dir = \"{base}/state\"\nruntime_dir = \"{base}/run\"\n");
        for (name, path, more) in roots {
            text += &format!("[[root]]\nname = \"{name}\"\npath = \"{}\"\n{more}\n", path.display());
        }
        fs::write(self.dir.path().join("longshore.toml"), text).unwrap();
    }

    pub fn write(&self, path: &str) {
        fs::write(self.fs.path().join(path), path).unwrap();
    }

    pub fn journal_path(&self) -> PathBuf {
        self.dir.path().join("state/journal.db")
    }

    pub fn journal(&self) -> Journal {
        Journal::open(&self.journal_path()).unwrap()
    }

    /// (root, cause) of the gaps since the first start, in order.
    pub fn gaps(&self) -> Vec<(String, Cause)> {
        let journal = self.journal();
        let roots = journal.roots().unwrap();
        let name = |id| roots.iter().find(|r| r.id == id).unwrap().name.clone();
        let rows = journal.read(self.seen, i64::MAX as u64, 100_000).unwrap();
        rows.into_iter().filter(|r| r.cause.is_gap()).map(|r| (name(r.root), r.cause)).collect()
    }

    pub fn both(&self, cause: Cause) -> Vec<(String, Cause)> {
        vec![("a".into(), cause), ("b".into(), cause)]
    }

    pub fn has(&self, path: &str) -> bool {
        let rows = self.journal().read(0, i64::MAX as u64, 100_000).unwrap();
        rows.iter().any(|r| r.path.as_bytes() == path.as_bytes())
    }

    /// What the newest start said of itself.
    pub fn how_it_began(&self) -> String {
        let history = self.journal().history(1_000).unwrap();
        history.into_iter().find(|row| row.kind == "start").unwrap().text
    }

    /// Starts it and says how it began.
    pub fn start(&mut self) -> String {
        self.tracker.start();
        self.tracker.flush();
        self.how_it_began()
    }

    /// The file `name` is in the journal, in spite of all that happened.
    pub fn assert_recorded(&self, names: &[&str]) {
        for name in names {
            assert!(self.has(name), "{name}");
        }
    }

    /// Changes a word in the head of the buffer, while no tracker runs.
    pub fn set_word(&self, word: u64, value: u64) {
        rustix::io::pwrite(self.tracker.stored("buffer."), &value.to_ne_bytes(), WORD * word).unwrap();
    }

    /// As if the next tracker were of a version that lays its buffers out in another way.
    pub fn change_the_layout(&self) {
        self.set_word(1, 999);
    }

    /// The line of a root's stanza that says which directory is meant, so that it may be away at a start.
    pub fn identity(path: &Path) -> String {
        let output =
            Command::new(program("tracker")).args(["identify", "--subdir"]).arg(path).output().unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        said.lines().find(|line| line.starts_with("identity")).unwrap().to_owned()
    }
}
