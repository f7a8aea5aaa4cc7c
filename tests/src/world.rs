//! Runs of the syncer in this process, against a real journal, a real tree and a real store, with a tracker that is
//! played by the test: it says what changed.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use shared::clock::{Clock, SystemClock};
use shared::config::Config;
use shared::entry::{Cause, Mask, Scope};
use shared::journal::{Change, Coalesce, Commit, Journal, RootId, RootState};
use shared::path::RelPath;
use syncer::credentials::Environment;
use syncer::live;
use syncer::report::Report;
use syncer::run::{Progress, Run, Tracker};
use tempfile::TempDir;

/// A state directory with one root, and the legs that a configuration text names.
pub struct World {
    pub dir: TempDir,
    pub config: Config,
    pub journal: Journal,
    pub root: RootId,
    pub environment: Environment,
}

/// A tracker that is up, or not.
struct Played {
    up: bool,
}

impl Tracker for Played {
    fn flush(&self) -> Result<(), String> {
        if self.up { Ok(()) } else { Err("The tracker does not answer".into()) }
    }

    fn probed_boot_ns(&self) -> Option<i64> {
        self.up.then(|| SystemClock.boot_ns())
    }
}

impl World {
    /// `legs` is the part of the configuration after the root; `{dir}` in it is the world's directory.
    pub fn new(legs: &str) -> World {
        World::with_root("", legs)
    }

    /// `more` are further lines of the root's table.
    pub fn with_root(more: &str, legs: &str) -> World {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().display().to_string();
        for name in ["source", "state", "run"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        let text = format!(
            "state_dir = \"{base}/state\"\nruntime_dir = \"{base}/run\"\n[[root]]\nname = \"space\"\npath = \"{base}/source\"\n{more}\n{}",
            legs.replace("{dir}", &base)
        );
        let config = Config::parse(Path::new("test.toml"), &text).unwrap();
        let mut journal = Journal::create_or_open(&config.journal_path()).unwrap();
        let rows = journal.put_roots(&config.roots, 0).unwrap();
        let root = rows[0].id;
        journal.set_root_state(root, RootState::Ok, "test", 0).unwrap();
        World { dir, config, journal, root, environment: Environment::default() }
    }

    pub fn source(&self) -> PathBuf {
        self.dir.path().join("source")
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// What the tracker would write for a path.
    pub fn saw(&mut self, path: &str, scope: Scope, mask: Mask) {
        let path = RelPath::parse(path.as_bytes()).unwrap();
        let change = Change { root: self.root, path, handle: None, scope, cause: Cause::Event, mask };
        self.commit(vec![change]);
    }

    pub fn saw_gap(&mut self) {
        self.commit(vec![Change::gap(self.root, Cause::Start)]);
    }

    fn commit(&mut self, changes: Vec<Change>) {
        let commit = Commit { changes, ..Commit::default() };
        self.journal.append(&mut Coalesce::default(), &commit, SystemClock.wall_ns()).unwrap();
    }

    pub fn run(&self, leg: &str) -> Report {
        self.run_with(leg, true)
    }

    /// A run of a leg; `up` says whether the tracker answers.
    pub fn run_with(&self, leg: &str, up: bool) -> Report {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        let leg = self.config.leg(leg).expect("the leg is configured");
        let catalog = live::catalog_path(&self.config, leg);
        let stop = Arc::new(AtomicBool::new(false));
        let progress = Arc::new(Progress::default());
        let mut parts = live::parts(&self.config, leg, &self.environment, progress, stop, &catalog).unwrap();
        parts.tracker = Box::new(Played { up });
        runtime.block_on(Run::new(parts, None).run())
    }
}
