//! What people get wrong, with the real syncer: one paragraph that names the thing, the right exit code, no damage.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use shared::config::Config;
use shared::journal::Journal;
use tempfile::TempDir;
use tests::programs::{call, text};

/// A configuration with one root and one `dir` leg; the journal is made unless the test wants none.
struct Setup {
    dir: TempDir,
}

impl Setup {
    fn new() -> Setup {
        let setup = Setup { dir: tempfile::tempdir().unwrap() };
        for name in ["source", "copy", "state", "run"] {
            fs::create_dir(setup.path(name)).unwrap();
        }
        setup.write_config("");
        setup
    }

    fn write_config(&self, more: &str) {
        let base = self.dir.path().display();
        let text = format!(
            "state_dir = \"{base}/state\"\nruntime_dir = \"{base}/run\"\n[[root]]\nname = \"space\"\npath = \"{base}/source\"\n\
             [[leg]]\nname = \"copy\"\nkind = \"dir\"\nroots = [\"space\"]\npath = \"{base}/copy\"\n{more}"
        );
        fs::write(self.config(), text).unwrap();
    }

    fn with_journal() -> Setup {
        let setup = Setup::new();
        let config = Config::load(&setup.config()).unwrap();
        let mut journal = Journal::create_or_open(&config.journal_path()).unwrap();
        journal.put_roots(&config.roots, 0).unwrap();
        setup
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn config(&self) -> PathBuf {
        self.path("longshore.toml")
    }

    /// Runs the syncer and checks its exit code, and that it names what it should in a single paragraph.
    fn refused(&self, args: &[&str], code: i32, needles: &[&str]) {
        let output = call("syncer", &self.config(), args);
        let said = text(&output);
        assert_eq!(output.status.code(), Some(code), "{said}");
        for needle in needles {
            assert!(said.contains(needle), "`{needle}` is not in: {said}");
        }
        assert!(!said.contains("panicked") && !said.contains("\n\n"), "{said}");
    }
}

#[test]
fn a_missing_configuration_is_named() {
    let setup = Setup::new();
    fs::remove_file(setup.config()).unwrap();
    setup.refused(&["run"], 78, &["longshore.toml", "--config"]);
}

#[test]
fn an_unknown_key_is_named_with_its_line() {
    let setup = Setup::new();
    setup.write_config("transfres = 4\n");
    setup.refused(&["run"], 78, &["line 11", "transfres"]);
    setup.refused(&["config", "check"], 78, &["transfres"]);
}

#[test]
fn an_unknown_leg_is_named_with_those_there_are() {
    let setup = Setup::with_journal();
    setup.refused(&["run", "--leg", "nas"], 2, &["nas", "copy"]);
}

#[test]
fn a_journal_that_does_not_exist_yet_says_who_makes_it() {
    let setup = Setup::new();
    setup.refused(&["run"], 75, &["journal.db", "tracker run"]);
    assert!(!setup.path("state/journal.db").exists());
}

#[test]
fn a_database_that_is_not_one_is_left_as_it_is() {
    let diary = "dear diary\n".repeat(1_000);
    for (name, with_journal) in [("journal.db", false), ("catalog-copy.db", true)] {
        let setup = if with_journal { Setup::with_journal() } else { Setup::new() };
        let path = setup.path("state").join(name);
        fs::write(&path, &diary).unwrap();
        setup.refused(&["run"], 78, &[name, "not a SQLite database"]);
        assert_eq!(fs::read_to_string(&path).unwrap(), diary);
    }
}

#[test]
fn a_newer_schema_is_left_as_it_is() {
    for name in ["journal.db", "catalog-copy.db"] {
        let setup = Setup::with_journal();
        if name == "catalog-copy.db" {
            syncer::catalog::Catalog::open(&setup.path("state").join(name)).unwrap();
        }
        let path = setup.path("state").join(name);
        set_user_version(&path, 99);
        setup.refused(&["run"], 78, &[name, "schema version 99"]);
    }
}

/// The version number of an SQLite file: four bytes at 60, big-endian (SQLite's file format page).
fn set_user_version(path: &Path, version: u32) {
    use std::os::unix::fs::FileExt as _;
    let file = fs::File::options().write(true).open(path).unwrap();
    file.write_all_at(&version.to_be_bytes(), 60).unwrap();
}

#[test]
fn a_missing_root_or_one_that_is_a_file_is_not_proven_and_named() {
    let setup = Setup::with_journal();
    fs::remove_dir(setup.path("source")).unwrap();
    setup.refused(&["run"], 5, &["space", "source"]);
    fs::write(setup.path("source"), "a file").unwrap();
    setup.refused(&["run"], 5, &["space", "source"]);
    assert_eq!(
        fs::read_dir(setup.path("copy"))
            .unwrap()
            .filter(|e| e.as_ref().unwrap().file_name() != ".longshore")
            .count(),
        0
    );
}

#[test]
fn a_missing_destination_is_named() {
    let setup = Setup::with_journal();
    fs::remove_dir(setup.path("copy")).unwrap();
    setup.refused(&["run"], 78, &["copy"]);
    assert!(!setup.path("copy").exists());
}

#[test]
fn rules_that_the_tracker_does_not_work_by_yet_stop_the_run() {
    let setup = Setup::with_journal();
    let text = fs::read_to_string(setup.config()).unwrap();
    fs::write(setup.config(), text.replace("[[leg]]", "exclude = [\"*.tmp\"]\n[[leg]]")).unwrap();
    setup.refused(&["run"], 78, &["space", "longshore-tracker"]);
}

#[test]
fn a_second_run_of_a_leg_is_told_that_one_is_under_way() {
    let setup = Setup::with_journal();
    let lock = fs::File::create(setup.path("state/leg-copy.lock")).unwrap();
    lock.lock().unwrap();
    setup.refused(&["run"], 75, &["copy", "under way"]);
}

#[test]
fn a_full_state_disk_is_named_and_nothing_is_lost() {
    if !tests::is_root() {
        return tests::skip("a small filesystem needs root to mount");
    }
    let setup = Setup::with_journal();
    let kept = setup.path("kept");
    fs::rename(setup.path("state"), &kept).unwrap();
    fs::create_dir(setup.path("state")).unwrap();
    let state = setup.path("state");
    let mounted =
        Command::new("mount").args(["-t", "tmpfs", "-o", "size=256k", "none"]).arg(&state).status().unwrap();
    assert!(mounted.success());
    struct Unmount(PathBuf);
    impl Drop for Unmount {
        fn drop(&mut self) {
            let _ = Command::new("umount").arg("-l").arg(&self.0).status();
        }
    }
    let _unmount = Unmount(state.clone());
    fs::copy(kept.join("journal.db"), state.join("journal.db")).unwrap();
    let filler = fs::File::create(state.join("filler")).unwrap();
    let mut size = 0;
    while std::io::Write::write_all(&mut &filler, &[0; 4096]).is_ok() {
        size += 4096;
    }
    assert!(size > 0, "the disk is full");
    setup.refused(&["run"], 1, &["full"]);
    assert!(fs::read_dir(setup.path("copy")).unwrap().next().is_none(), "nothing was sent");
}
