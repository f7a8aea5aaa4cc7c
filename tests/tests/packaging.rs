//! What is shipped beside the programs fits them: the example configuration, the exit codes in the README and units.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::fs;
use std::path::{Path, PathBuf};

use shared::config::{Config, Deletes, GuardLimits, LegKind};
use shared::exit::Exit;

fn top() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the package lies in the workspace").to_owned()
}

fn example() -> String {
    fs::read_to_string(top().join("packaging/longshore.example.toml")).unwrap()
}

#[test]
fn the_example_configuration_is_valid() {
    let config = Config::load(&top().join("packaging/longshore.example.toml")).unwrap();
    assert_eq!(config.state_dir, Path::new("/var/lib/longshore"));
    assert_eq!(config.runtime_dir, Path::new("/run/longshore"));
    assert!(config.roots[0].identity.is_some());
    assert!(matches!(&config.leg("b2").unwrap().kind, LegKind::B2(b2) if b2.bucket == "my-space-mirror"));
    assert!(matches!(&config.leg("disk2").unwrap().kind, LegKind::Dir(_)));
}

/// What stands there as a default must be the default: nothing changes for who copies the file and leaves keys out.
#[test]
fn the_defaults_it_shows_are_the_defaults() {
    let shown = Config::parse(Path::new("shown"), &example()).unwrap();
    let defaults =
        ["transfers", "deletes", "guard", "endpoint", "prefix", "trash_days", "state_dir", "runtime_dir"];
    let is_default = |line: &&str| !defaults.iter().any(|key| line.starts_with(&format!("{key} =")));
    let left_out = example().lines().filter(is_default).collect::<Vec<_>>().join("\n");
    let plain = Config::parse(Path::new("left out"), &left_out).unwrap();
    assert_eq!((&shown.state_dir, &shown.runtime_dir), (&plain.state_dir, &plain.runtime_dir));
    for (a, b) in shown.legs.iter().zip(&plain.legs) {
        assert_eq!((a.transfers, a.deletes), (b.transfers, b.deletes), "{}", a.name);
        assert_eq!(
            a.guard,
            GuardLimits { delete_bytes: a.guard.delete_bytes, ..b.guard.clone() },
            "{}",
            a.name
        );
        assert_eq!(a.deletes, Deletes::Hide);
        match (&a.kind, &b.kind) {
            (LegKind::B2(a), LegKind::B2(b)) => {
                assert_eq!((&a.endpoint, &a.prefix), (&b.endpoint, &b.prefix))
            }
            (LegKind::Dir(a), LegKind::Dir(b)) => assert_eq!(a.trash_days, b.trash_days),
            _ => panic!("the kinds of {} differ", a.name),
        }
    }
}

#[test]
fn every_key_stands_in_the_example_with_a_word_on_it() {
    let text = example();
    for key in [
        "state_dir",
        "runtime_dir",
        "name",
        "path",
        "identity",
        "exclude",
        "kind",
        "roots",
        "transfers",
        "deletes",
        "guard",
        "bucket",
        "prefix",
        "endpoint",
        "key_id_file",
        "key_file",
        "trash_days",
    ] {
        let lines: Vec<&str> = text.lines().collect();
        let explained = lines.iter().enumerate().any(|(i, line)| {
            let set = line.trim_start_matches("# ").starts_with(&format!("{key} ="));
            set && (line.trim_start_matches('#').contains(" # ") || (i > 0 && lines[i - 1].starts_with("# ")))
        });
        assert!(explained, "`{key}` is not explained");
    }
}

#[test]
fn the_readme_names_every_exit_code() {
    let readme = fs::read_to_string(top().join("README.md")).unwrap();
    for exit in [
        Exit::Ok,
        Exit::Failed,
        Exit::Usage,
        Exit::Partial,
        Exit::Guard,
        Exit::Unproven,
        Exit::TryLater,
        Exit::Refused,
        Exit::Config,
    ] {
        assert!(readme.contains(&format!("\n| {} |", exit.code())), "exit code {} is missing", exit.code());
    }
}

#[test]
fn a_configuration_error_does_not_restart_the_tracker_for_ever() {
    let unit = fs::read_to_string(top().join("packaging/systemd/longshore-tracker.service")).unwrap();
    let wanted = format!("RestartPreventExitStatus={}", Exit::Config.code());
    assert!(unit.lines().any(|line| line == wanted), "{wanted}");
}

/// The programs walk with openat2(2), which this setting makes fail.
#[test]
fn no_unit_takes_openat2_away() {
    for unit in ["longshore-tracker.service", "longshore-syncer@.service"] {
        let text = fs::read_to_string(top().join("packaging/systemd").join(unit)).unwrap();
        assert!(!text.contains("RestrictSUIDSGID=yes"), "{unit}");
    }
}

/// `stop` closes what the service manager keeps of the tracker: every tree would be compared again.
#[test]
fn nothing_here_stops_the_tracker_to_start_it_anew() {
    for script in ["install.sh", "quickstart.sh"] {
        let text = fs::read_to_string(top().join("packaging").join(script)).unwrap();
        assert!(!text.contains("systemctl stop"), "{script}");
    }
}
