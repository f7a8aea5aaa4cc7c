//! The real programs beside each other: watching, trying without writing, and asking where things stand.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;
use tests::compare::{Depth, assert_equal};
use tests::programs::{Daemon, Watch, call, killable, program, text};
use tests::workload::plant;

/// A root on this machine's own filesystem, which serves an ordinary user too.
struct Setup {
    dir: TempDir,
}

impl Setup {
    fn new() -> Setup {
        let setup = Setup { dir: tempfile::tempdir().unwrap() };
        for name in ["source", "copy"] {
            fs::create_dir(setup.path(name)).unwrap();
        }
        let base = setup.dir.path().display();
        let text = format!(
            "state_dir = \"{base}/state\"\nruntime_dir = \"{base}/run\"\n[[root]]\nname = \"space\"\npath = \"{base}/source\"\n\
             [[leg]]\nname = \"copy\"\nkind = \"dir\"\nroots = [\"space\"]\npath = \"{base}/copy\"\n"
        );
        fs::write(setup.config(), text).unwrap();
        plant(&setup.path("source"));
        setup
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn config(&self) -> PathBuf {
        self.path("longshore.toml")
    }

    fn assert_equal(&self) {
        let depth = if tests::is_root() { Depth::All } else { Depth::Unprivileged };
        assert_equal(&self.path("source"), &self.path("copy"), depth);
    }

    fn json(&self, name: &str, args: &[&str]) -> serde_json::Value {
        let output = call(name, &self.config(), args);
        serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {}", text(&output)))
    }
}

#[test]
fn what_changes_while_watch_runs_reaches_the_destination() {
    let setup = Setup::new();
    let _daemon = Daemon::start(&setup.config());
    let mut watch = Watch::start(&setup.config());
    watch.synced(&["copy"]);
    setup.assert_equal();
    fs::rename(setup.path("source/photos"), setup.path("source/pictures")).unwrap();
    while !setup.path("copy/pictures/2024/0.jpg").exists() || setup.path("copy/photos").exists() {
        watch.synced(&["copy"]);
    }
    assert_eq!(watch.stop(), Some(0));
    let output = call("syncer", &setup.config(), &["run"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    setup.assert_equal();
}

#[test]
fn a_dry_run_names_what_it_would_do_and_writes_nothing() {
    let setup = Setup::new();
    let _daemon = Daemon::start(&setup.config());
    let output = call("syncer", &setup.config(), &["run", "--dry-run"]);
    let said = text(&output);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(said.contains("send docs/old/1.txt") && said.contains("to send"), "{said}");
    assert_eq!(fs::read_dir(setup.path("copy")).unwrap().count(), 0);
    assert!(!setup.path("state/catalog-copy.db").exists());
    let output = call("syncer", &setup.config(), &["run"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    fs::remove_file(setup.path("source/docs/old/1.txt")).unwrap();
    let output = call("syncer", &setup.config(), &["run", "--dry-run"]);
    assert!(text(&output).contains("remove docs/old/1.txt"), "{}", text(&output));
    assert!(setup.path("copy/docs/old/1.txt").exists());
    let output = call("syncer", &setup.config(), &["run"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    setup.assert_equal();
}

#[test]
fn status_and_stats_say_where_things_stand() {
    let setup = Setup::new();
    let daemon = Daemon::start(&setup.config());
    let before = setup.json("syncer", &["status", "--json"]);
    assert_eq!((&before["runs"], &before["objects"]), (&serde_json::Value::Null, &0.into()), "{before}");
    let output = call("syncer", &setup.config(), &["run"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    let after = setup.json("syncer", &["status", "--json"]);
    assert_eq!(
        (&after["runs"], &after["deferred"], &after["last"]["exit"]),
        (&1.into(), &0.into(), &0.into()),
        "{after}"
    );
    assert!(after["objects"].as_u64() > Some(90), "{after}");
    let stats = setup.json("tracker", &["stats", "--json"]);
    let source = if tests::is_root() { "fanotify" } else { "inotify" };
    assert_eq!(stats["status"]["roots"][0]["source"], source, "{stats}");
    assert_eq!(daemon.stop(), Some(0));
    let output = call("syncer", &setup.config(), &["run"]);
    assert_eq!(output.status.code(), Some(75), "{}", text(&output));
    assert!(text(&output).contains("tracker"), "{}", text(&output));
}

#[test]
fn each_program_explains_itself() {
    for name in ["tracker", "syncer"] {
        let help = Command::new(program(name)).arg("--help").output().unwrap();
        assert!(help.status.success() && text(&help).contains("--config"), "{}", text(&help));
        let nonsense = Command::new(program(name)).arg("nonsense").output().unwrap();
        assert_eq!(nonsense.status.code(), Some(2));
    }
}

#[test]
fn what_is_there_for_tests_alone_is_in_no_program_that_is_shipped() {
    let holds = |program: PathBuf, what: &str| {
        let status = Command::new("grep").args(["-qaF", what]).arg(program).status().unwrap();
        status.code().filter(|code| *code < 2).map(|code| code == 0)
    };
    for what in ["LONGSHORE_KILL", "LONGSHORE_WITHOUT", "switched_off"] {
        assert_eq!(holds(killable(), what), Some(true), "{what}: nothing is found that way");
        for name in ["tracker", "syncer"] {
            assert_eq!(holds(program(name), what), Some(false), "{what} in {name}");
        }
    }
}
