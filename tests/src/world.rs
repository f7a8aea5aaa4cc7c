//! Runs of the syncer in this process, against a real journal, a real tree and a real store, with a tracker that is
//! played by the test: it says what changed.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use shared::clock::{Clock as _, SystemClock};
use shared::config::Config;
use shared::entry::{Cause, Mask, Scope};
use shared::journal::{Change, Coalesce, Commit, Journal, RootId, RootState};
use shared::path::RelPath;
use syncer::credentials::Environment;
use syncer::live;
use syncer::report::Report;
use syncer::run::{Parts, Rest, Run};
use syncer::tree::Tree as _;
use syncer::tree::proven::ProvenTree;
use tempfile::TempDir;

use crate::played::{PlayedRest, PlayedTracker};

/// The root of every world, as the configuration has it.
pub const ROOT: &str = "[[root]]\nname = \"space\"\npath = \"{dir}/source\"\n";
/// A file was written.
pub const WRITTEN: Mask = Mask::MODIFY.union(Mask::CLOSE_WRITE);
/// A file was made and written.
pub const MADE: Mask = WRITTEN.union(Mask::CREATE);

/// A state directory with one root, and the legs that a configuration text names.
pub struct World {
    pub dir: TempDir,
    pub config: Config,
    pub journal: Journal,
    pub root: RootId,
    pub environment: Environment,
}

impl World {
    /// `legs` is the part of the configuration after the root; `{dir}` in it is the world's directory.
    pub fn new(legs: &str) -> World {
        World::with_root("", legs)
    }

    /// `more` are further lines of the root's table.
    pub fn with_root(more: &str, legs: &str) -> World {
        let dir = tempfile::tempdir().unwrap();
        for name in ["source", "state", "run"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        let config = parse(dir.path(), &format!("{ROOT}{more}\n{legs}"));
        let mut journal = Journal::create_or_open(&config.journal_path()).unwrap();
        let root = read_roots(&mut journal, &config);
        World { dir, config, journal, root, environment: Environment::default() }
    }

    /// A configuration of these roots and legs.
    pub fn parse(&self, roots_and_legs: &str) -> Config {
        parse(self.dir.path(), roots_and_legs)
    }

    /// Another configuration, which the tracker works by from now on.
    pub fn configure(&mut self, roots_and_legs: &str) {
        self.config = self.parse(roots_and_legs);
        read_roots(&mut self.journal, &self.config);
    }

    /// What the journal calls a root.
    pub fn root_named(&self, name: &str) -> RootId {
        self.journal.roots().unwrap().iter().find(|r| r.name == name).expect("the root is known").id
    }

    pub fn source(&self) -> PathBuf {
        self.dir.path().join("source")
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// What the tracker would write for a path.
    pub fn saw(&mut self, path: &str, scope: Scope, mask: Mask) {
        note(&mut self.journal, self.root, path, scope, mask);
    }

    /// What the tracker would write for a file without a usable name: the one that lies at this path.
    pub fn saw_by_handle(&mut self, path: &str, mask: Mask) {
        let tree = ProvenTree::open(&self.source()).unwrap();
        let handle = tree.handle(&RelPath::parse(path.as_bytes()).unwrap());
        assert!(handle.is_some(), "the filesystem has handles");
        let (root, path) = (self.root, RelPath::root());
        let change = Change { root, path, handle, scope: Scope::Handle, cause: Cause::Event, mask };
        commit(&mut self.journal, change);
    }

    pub fn saw_gap(&mut self) {
        commit(&mut self.journal, Change::gap(self.root, Cause::Start));
    }

    /// The tracker finds the journal full: what a leg has not read is owed.
    pub fn collapse(&mut self, leg: &str) {
        let done = self.journal.bound(&[leg.to_owned()], 0, SystemClock.wall_ns()).unwrap();
        assert_eq!(done.collapses, 1);
    }

    /// The catalog of a leg is lost.
    pub fn lose_catalog(&self, leg: &str) {
        self.lose(&format!("catalog-{leg}.db"));
    }

    /// The journal is lost, and the tracker begins another.
    pub fn lose_journal(&mut self) {
        self.lose("journal.db");
        self.journal = Journal::create_or_open(&self.config.journal_path()).unwrap();
        self.root = read_roots(&mut self.journal, &self.config);
    }

    fn lose(&self, database: &str) {
        std::fs::remove_file(self.path("state").join(database)).unwrap();
        for suffix in ["-wal", "-shm"] {
            let _ = std::fs::remove_file(self.path("state").join(format!("{database}{suffix}")));
        }
    }

    pub fn run(&self, leg: &str) -> Report {
        self.run_as(leg, |_| {})
    }

    /// A run whose parts the test changes first.
    pub fn run_as(&self, leg: &str, change: impl FnOnce(&mut Parts)) -> Report {
        self.start(leg, change, None)
    }

    /// A run that goes on for as long as `rest` says so.
    pub fn watch(&self, leg: &str, rest: impl FnMut(&Report, Option<i64>) -> bool) -> Report {
        self.watch_as(leg, |_| {}, rest)
    }

    /// One whose parts the test changes first.
    pub fn watch_as(
        &self,
        leg: &str,
        change: impl FnOnce(&mut Parts),
        rest: impl FnMut(&Report, Option<i64>) -> bool,
    ) -> Report {
        self.start(leg, change, Some(Box::new(PlayedRest(rest))))
    }

    fn start(&self, leg: &str, change: impl FnOnce(&mut Parts), rest: Option<Box<dyn Rest + '_>>) -> Report {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        let leg = self.config.leg(leg).expect("the leg is configured");
        let catalog = live::catalog_path(&self.config, leg);
        let (progress, stop) = (Arc::default(), Arc::default());
        let mut parts = live::parts(&self.config, leg, &self.environment, progress, stop, &catalog).unwrap();
        parts.tracker = Box::new(PlayedTracker::up());
        change(&mut parts);
        runtime.block_on(Run::new(parts, rest).run())
    }
}

fn parse(dir: &Path, roots_and_legs: &str) -> Config {
    let base = dir.display().to_string();
    let text = format!("state_dir = \"{{dir}}/state\"\nruntime_dir = \"{{dir}}/run\"\n{roots_and_legs}");
    Config::parse(Path::new("test.toml"), &text.replace("{dir}", &base)).unwrap()
}

/// The tracker reads the configuration and finds every root in its place; the first one's id.
fn read_roots(journal: &mut Journal, config: &Config) -> RootId {
    let rows = journal.put_roots(&config.roots, 0).unwrap();
    for row in &rows {
        journal.set_root_state(row.id, RootState::Ok, "test", 0).unwrap();
    }
    rows[0].id
}

/// What the tracker would write for a path of any root.
pub fn note(journal: &mut Journal, root: RootId, path: &str, scope: Scope, mask: Mask) {
    let path = RelPath::parse(path.as_bytes()).unwrap();
    commit(journal, Change { root, path, handle: None, scope, cause: Cause::Event, mask });
}

fn commit(journal: &mut Journal, change: Change) {
    let commit = Commit { changes: vec![change], ..Commit::default() };
    journal.append(&mut Coalesce::default(), &commit, SystemClock.wall_ns()).unwrap();
}
