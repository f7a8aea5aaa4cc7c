//! The whole way of a change, with the real programs on real filesystems: fanotify, journal, syncer, destination.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::fs;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use b2_emulator::Emulator;
use b2_emulator::calls::Call;
use b2_emulator::options::Options;
use tempfile::TempDir;
use tests::compare::{Depth, assert_equal};
use tests::mount::{KINDS, LoopFs, available};
use tests::programs::{Daemon, Watch, call, text};
use tests::workload::{Workload, plant};

const BUCKET: &str = "end-to-end";

/// One filesystem with a root, a `dir` leg and a `b2` leg.
struct Setup {
    dir: TempDir,
    fs: LoopFs,
    b2: Emulator,
}

impl Setup {
    fn new(kind: &str) -> Setup {
        let dir = tempfile::tempdir().unwrap();
        let fs = LoopFs::new(kind).unwrap();
        fs::create_dir(fs.path().join("root")).unwrap();
        fs::create_dir(fs.path().join("outside")).unwrap();
        fs::create_dir(dir.path().join("copy")).unwrap();
        let b2 = Emulator::start(Options::default()).unwrap();
        b2.create_bucket(BUCKET).unwrap();
        let setup = Setup { dir, fs, b2 };
        setup.write_config();
        setup
    }

    fn write_config(&self) {
        let base = self.dir.path().display();
        let root = self.root();
        let (id, key) = self.b2.key();
        for (name, secret) in [("key-id", id), ("key", key)] {
            let path = self.dir.path().join(name);
            let mut file = fs::OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(path)
                .unwrap();
            std::io::Write::write_all(&mut file, secret.as_bytes()).unwrap();
        }
        let text = format!(
            r#"
state_dir = "{base}/state"
runtime_dir = "{base}/run"
[[root]]
name = "space"
path = "{}"
[[leg]]
name = "copy"
kind = "dir"
roots = ["space"]
path = "{base}/copy"
[[leg]]
name = "b2"
kind = "b2"
roots = ["space"]
bucket = "{BUCKET}"
endpoint = "{}"
key_id_file = "{base}/key-id"
key_file = "{base}/key"
"#,
            root.display(),
            self.b2.endpoint()
        );
        fs::write(self.config(), text).unwrap();
    }

    fn config(&self) -> PathBuf {
        self.dir.path().join("longshore.toml")
    }

    fn root(&self) -> PathBuf {
        self.fs.path().join("root")
    }

    fn copy(&self) -> PathBuf {
        self.dir.path().join("copy")
    }

    fn workload(&self, seed: u64) -> Workload {
        Workload::new(&self.root(), &self.fs.path().join("outside"), seed)
    }

    fn sync(&self) -> Output {
        call("syncer", &self.config(), &["run"])
    }

    fn synced(&self) {
        let output = self.sync();
        assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    }

    fn assert_all_equal(&self) {
        assert_equal(&self.root(), &self.copy(), Depth::All);
        assert_eq!(self.b2.violations(), Vec::<String>::new());
        self.rclone_agrees();
    }

    /// rclone's own `check`, and a copy back that has the same files, bytes and times to the millisecond.
    fn rclone_agrees(&self) {
        let Some(rclone) = tool("LONGSHORE_RCLONE", "rclone") else {
            return tests::skip("rclone is not installed");
        };
        let back = tempfile::tempdir().unwrap();
        let remote = format!("lsb2:{BUCKET}");
        let (root, back_path) = (self.root(), back.path().display().to_string());
        let root = root.display().to_string();
        // A symlink is no regular file: rclone leaves it out without -l, as the b2 leg does.
        for args in [
            vec!["check", "--one-way", &root, &remote],
            vec!["check", "--one-way", &remote, &root],
            vec!["copy", &remote, &back_path],
        ] {
            let output = self.rclone(&rclone, &args);
            assert!(output.status.success(), "rclone {args:?}: {}", text(&output));
        }
        let ms = |fact: &tests::compare::Fact| (fact.sha1, fact.mtime_ns.div_euclid(1_000_000));
        let files = |top: &Path| -> Vec<_> {
            let facts = tests::compare::facts(top);
            facts.into_iter().filter(|(_, f)| f.sha1.is_some()).map(|(p, f)| (p, ms(&f))).collect()
        };
        assert_eq!(files(&self.root()), files(back.path()));
    }

    fn rclone(&self, rclone: &Path, args: &[&str]) -> Output {
        let (id, key) = self.b2.key();
        Command::new(rclone)
            .args(args)
            .env("RCLONE_CONFIG", "/dev/null")
            .env("RCLONE_CONFIG_LSB2_TYPE", "b2")
            .env("RCLONE_CONFIG_LSB2_ACCOUNT", id)
            .env("RCLONE_CONFIG_LSB2_KEY", key)
            .env("RCLONE_CONFIG_LSB2_ENDPOINT", self.b2.endpoint())
            .output()
            .unwrap()
    }
}

fn tool(variable: &str, name: &str) -> Option<PathBuf> {
    let path =
        std::env::var_os(variable).map(PathBuf::from).unwrap_or_else(|| Path::new("/usr/bin").join(name));
    path.exists().then_some(path)
}

fn each_kind(test: impl Fn(&str)) {
    for kind in KINDS {
        if available(kind) {
            println!("filesystem {kind}");
            test(kind);
        }
    }
}

#[test]
fn a_workload_under_watch_reaches_both_destinations_and_a_second_sync_does_nothing() {
    each_kind(|kind| {
        let setup = Setup::new(kind);
        plant(&setup.root());
        let daemon = Daemon::start(&setup.config());
        setup.synced();
        setup.assert_all_equal();
        let mut workload = setup.workload(1);
        workload.every_kind();
        workload.storm(300);
        setup.b2.reset();
        setup.synced();
        setup.assert_all_equal();
        assert_eq!(setup.b2.counters().calls(Call::ListFileVersions), 0);
        setup.b2.reset();
        let output = call("syncer", &setup.config(), &["run", "--json"]);
        assert_eq!(output.status.code(), Some(0), "{}", text(&output));
        for line in String::from_utf8(output.stdout).unwrap().lines() {
            let report: serde_json::Value = serde_json::from_str(line).unwrap();
            assert_eq!(
                (&report["files_sent"], &report["others_sent"], &report["removed"]),
                (&0.into(), &0.into(), &0.into()),
                "{report}"
            );
        }
        let counters = setup.b2.counters();
        let made: Vec<_> = counters.calls.iter().filter(|(_, n)| **n > 0).collect();
        assert_eq!(
            counters.calls.values().sum::<u64>(),
            2,
            "authorize and list_buckets, no listing: {made:?}"
        );
        assert_eq!(daemon.stop(), Some(0));
    });
}

#[test]
fn a_tracker_that_is_stopped_or_killed_in_the_middle_loses_nothing() {
    each_kind(|kind| {
        let setup = Setup::new(kind);
        plant(&setup.root());
        let daemon = Daemon::start(&setup.config());
        setup.synced();
        let mut workload = setup.workload(2);
        workload.every_kind();
        assert_eq!(daemon.stop(), Some(0));
        workload.storm(100);
        let daemon = Daemon::start(&setup.config());
        workload.storm(100);
        daemon.kill();
        workload.storm(100);
        let _daemon = Daemon::start(&setup.config());
        workload.storm(100);
        setup.synced();
        setup.assert_all_equal();
    });
}

#[test]
fn an_unmounted_root_that_shows_an_empty_directory_deletes_nothing() {
    each_kind(|kind| {
        let mut setup = Setup::new(kind);
        plant(&setup.root());
        let daemon = Daemon::start(&setup.config());
        setup.synced();
        let before = tests::compare::facts(&setup.copy());
        let objects = setup.b2.files(BUCKET).len();
        setup.fs.unmount().expect("umount works while the tracker runs");
        fs::create_dir(setup.root()).unwrap();
        let output = setup.sync();
        assert_eq!(output.status.code(), Some(5), "{}", text(&output));
        assert!(text(&output).contains("expected"), "{}", text(&output));
        assert_eq!(tests::compare::facts(&setup.copy()), before);
        assert_eq!(setup.b2.files(BUCKET).len(), objects);
        fs::remove_dir(setup.root()).unwrap();
        setup.fs.mount().unwrap();
        fs::write(setup.root().join("docs/after"), "the disk is back").unwrap();
        daemon.kill();
        let _daemon = Daemon::start(&setup.config());
        setup.synced();
        setup.assert_all_equal();
    });
}

#[test]
fn a_bucket_that_rclone_filled_is_taken_over_without_an_upload() {
    let Some(rclone) = tool("LONGSHORE_RCLONE", "rclone") else {
        return tests::skip("rclone is not installed");
    };
    if !available("ext4") {
        return;
    }
    let setup = Setup::new("ext4");
    plant(&setup.root());
    let root = setup.root().display().to_string();
    let output = setup.rclone(&rclone, &["sync", &root, &format!("lsb2:{BUCKET}")]);
    assert!(output.status.success(), "{}", text(&output));
    fs::write(setup.root().join("docs/old/1.txt"), "changed since rclone ran").unwrap();
    let _daemon = Daemon::start(&setup.config());
    setup.b2.reset();
    let output = call("syncer", &setup.config(), &["run", "--leg", "b2"]);
    // The changed file's object is not ours to replace: it is held, and says so.
    assert_eq!(output.status.code(), Some(3), "{}", text(&output));
    assert!(text(&output).contains("held"), "{}", text(&output));
    assert_eq!(setup.b2.counters().calls(Call::UploadFile), 0);
    assert_eq!(setup.b2.violations(), Vec::<String>::new());
}

#[test]
fn a_root_can_be_unmounted_while_watch_rests() {
    if !available("ext4") {
        return;
    }
    let mut setup = Setup::new("ext4");
    plant(&setup.root());
    let _daemon = Daemon::start(&setup.config());
    let mut watch = Watch::start(&setup.config());
    watch.synced(&["copy", "b2"]);
    // A round may be under way; once it rests, nobody holds the disk.
    let begun = Instant::now();
    while let Err(e) = setup.fs.unmount() {
        assert!(begun.elapsed() < Duration::from_secs(60), "{e}");
    }
    setup.fs.mount().unwrap();
    fs::write(setup.root().join("docs/after"), "the disk is back").unwrap();
    while !setup.copy().join("docs/after").exists() {
        watch.synced(&["copy"]);
    }
    assert_eq!(watch.stop(), Some(0));
}
