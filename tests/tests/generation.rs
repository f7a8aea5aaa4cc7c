//! btrfs: whatever happens while no tracker runs, one run after its start makes the mirror equal, and looks at little
//! more than what changed.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::fs;
use std::path::{Path, PathBuf};

use rand::RngExt as _;
use tempfile::TempDir;
use tests::compare::{Depth, assert_equal};
use tests::mount::{LoopFs, available};
use tests::programs::{Daemon, call, program, text};
use tests::supervisor::Supervisor;
use tests::workload::{Workload, plant};

const QUIET_FILES: usize = 3_000;

/// Else the first read of a file after a change is a change of its inode, too.
const OPTIONS: &str = "noatime";

struct Setup {
    dir: TempDir,
    fs: LoopFs,
}

impl Setup {
    fn new() -> Setup {
        let dir = tempfile::tempdir().unwrap();
        let fs = LoopFs::new("btrfs").unwrap();
        fs.remount(OPTIONS).unwrap();
        for name in ["root/quiet", "outside"] {
            fs::create_dir_all(fs.path().join(name)).unwrap();
        }
        fs::create_dir(dir.path().join("copy")).unwrap();
        let (base, root) = (dir.path().display(), fs.path().join("root"));
        let config = format!(
            "state_dir = \"{base}/state\"\nruntime_dir = \"{base}/run\"\n[[root]]\nname = \"space\"\npath = \"{}\"\n\
             [[leg]]\nname = \"copy\"\nkind = \"dir\"\nroots = [\"space\"]\npath = \"{base}/copy\"\n",
            root.display()
        );
        fs::write(dir.path().join("longshore.toml"), config).unwrap();
        for n in 0..QUIET_FILES {
            fs::write(root.join("quiet").join(n.to_string()), "").unwrap();
        }
        Setup { dir, fs }
    }

    fn root(&self) -> PathBuf {
        self.fs.path().join("root")
    }

    /// The disk as it is now; what is written from here on is lost when it is put back.
    fn older(&self) -> PathBuf {
        self.commit();
        self.sync();
        let older = self.dir.path().join("older");
        fs::copy(self.fs.image(), &older).unwrap();
        older
    }

    fn unmount(&mut self) {
        self.fs.unmount().unwrap();
    }

    fn mount(&mut self) {
        self.fs.mount().unwrap();
        self.fs.remount(OPTIONS).unwrap();
    }

    fn put_back(&mut self, older: &Path) {
        fs::copy(older, self.fs.image()).unwrap();
        self.mount();
    }

    fn sync(&self) {
        rustix::fs::syncfs(fs::File::open(self.fs.path()).unwrap()).unwrap();
    }

    fn config(&self) -> PathBuf {
        self.dir.path().join("longshore.toml")
    }

    /// Everything so far is of an older generation than what comes.
    fn commit(&self) {
        self.sync();
        fs::write(self.fs.path().join("outside/tick"), "tick").unwrap();
    }

    /// The tracker begins, one run follows, and the tracker ends. Returns how many paths were examined.
    fn one_run(&self) -> u64 {
        self.commit();
        let daemon = Daemon::start(&self.config());
        let examined = self.mirror();
        assert_eq!(daemon.stop(), Some(0));
        examined
    }

    fn mirror(&self) -> u64 {
        let output = call("syncer", &self.config(), &["--json", "run"]);
        assert_eq!(output.status.code(), Some(0), "{}", text(&output));
        assert_equal(&self.root(), &self.dir.path().join("copy"), Depth::All);
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        report["examined"].as_u64().unwrap()
    }
}

#[test]
fn one_run_after_a_time_without_a_tracker_finds_every_change_and_looks_at_little_else() {
    if !available("btrfs") {
        return;
    }
    let setup = Setup::new();
    plant(&setup.root());
    let seed = rand::rng().random();
    let mut workload = Workload::new(&setup.root(), &setup.fs.path().join("outside"), seed);
    let first = setup.one_run();
    assert!(first > QUIET_FILES as u64, "the first run looks at everything: {first}");
    let again = setup.one_run();
    assert!(again < 10, "nothing changed: {again}");
    workload.every_kind();
    let kinds = setup.one_run();
    assert!(kinds < 250, "{kinds}");
    for (steps, with_events) in [(1, false), (10, true), (40, false), (80, true), (40, true), (10, false)] {
        if with_events {
            // Some of it has entries of its own, of which a run has read nothing yet.
            let daemon = Daemon::start(&setup.config());
            workload.storm(steps);
            assert_eq!(daemon.stop(), Some(0));
        }
        workload.storm(steps);
        let examined = setup.one_run();
        assert!(examined < 20 + 8 * steps as u64, "{examined} for {steps} steps");
    }
}

#[test]
fn a_disk_that_was_put_back_to_an_older_state_is_looked_at_as_a_whole() {
    if !available("btrfs") {
        return;
    }
    let mut setup = Setup::new();
    setup.one_run();
    let older = setup.older();
    setup.unmount();
    setup.mount();
    fs::write(setup.root().join("quiet/1"), "newer").unwrap();
    fs::write(setup.root().join("made"), "later").unwrap();
    assert!(setup.one_run() < 20, "the generations go on after an unmount");
    setup.unmount();
    setup.put_back(&older);
    let examined = setup.one_run();
    assert!(examined > QUIET_FILES as u64, "{examined}");
    assert!(!setup.dir.path().join("copy/made").exists());
}

#[test]
fn a_disk_that_lost_what_was_mirrored_already_is_looked_at_as_a_whole() {
    if !available("btrfs") {
        return;
    }
    let mut setup = Setup::new();
    setup.one_run();
    for tracker_sees_it_go in [true, false] {
        let daemon = Daemon::start(&setup.config());
        let older = setup.older();
        fs::write(setup.root().join("quiet/1"), "lost with the disk").unwrap();
        setup.mirror();
        if tracker_sees_it_go {
            setup.unmount();
            assert!(call("tracker", &setup.config(), &["flush"]).status.success());
            assert_eq!(daemon.stop(), Some(0));
        } else {
            daemon.kill();
            setup.unmount();
        }
        setup.put_back(&older);
        let examined = setup.one_run();
        assert!(examined > QUIET_FILES as u64, "{examined}");
    }
}

#[test]
fn what_a_tracker_that_went_on_without_a_gap_committed_does_not_count_as_made_last() {
    if !available("btrfs") {
        return;
    }
    let mut setup = Setup::new();
    setup.one_run();
    let mut tracker = Supervisor::new(&program("tracker"), &setup.config());
    tracker.start();
    assert!(tracker.stop().success());
    tracker.start();
    let older = setup.older();
    fs::write(setup.root().join("quiet/1"), "lost with the disk").unwrap();
    setup.mirror();
    assert!(tracker.log().contains("clean stop: adopted"), "{}", tracker.log());
    tracker.kill();
    tracker.empty_the_store();
    setup.unmount();
    setup.put_back(&older);
    let examined = setup.one_run();
    assert!(examined > QUIET_FILES as u64, "{examined}");
}

#[test]
fn a_killed_tracker_asks_a_disk_that_stayed_mounted_what_changed() {
    if !available("btrfs") {
        return;
    }
    let setup = Setup::new();
    setup.one_run();
    Daemon::start(&setup.config()).kill();
    fs::write(setup.root().join("quiet/1"), "newer").unwrap();
    let examined = setup.one_run();
    assert!(examined < 20, "{examined}");
}
