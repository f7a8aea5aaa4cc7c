//! The installed unit under a real systemd: what the tracker keeps over a kill and a restart, and not over a stop.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::fs;
use std::path::Path;
use std::process::Command;

use tests::container::Container;
use tests::mount::{LoopFs, available};
use tests::programs::{program, text};

const UNIT: &str = "longshore-tracker.service";

/// A booted machine with the tracker installed and running, and a filesystem of its own for the root.
struct Machine {
    container: Container,
    fs: LoopFs,
}

impl Machine {
    /// `None` where there can be none.
    fn new() -> Option<Machine> {
        if !available("ext4") {
            return None;
        }
        let mut container = match Container::new() {
            Ok(container) => container,
            Err(why) => {
                tests::skip(&format!("no machine in systemd-nspawn: {why}"));
                return None;
            }
        };
        let fs = LoopFs::new("ext4").unwrap();
        fs::create_dir(fs.path().join("tree")).unwrap();
        install(&container.root());
        container.boot(&fs.path(), "/space");
        container.must(&["systemctl", "start", UNIT]);
        Some(Machine { container, fs })
    }

    fn write(&self, name: &str) {
        fs::write(self.fs.path().join("tree").join(name), name).unwrap();
    }

    fn pid(&self) -> String {
        self.container.must(&["systemctl", "show", "--property=MainPID", "--value", UNIT]).trim().to_owned()
    }

    /// (causes of the gaps, paths) in the journal, after a flush.
    fn rows(&self) -> (Vec<String>, Vec<String>) {
        self.container.until(&["tracker", "flush"]);
        let (mut gaps, mut paths) = (Vec::new(), Vec::new());
        for line in self.container.must(&["tracker", "pending", "--json"]).lines() {
            let row: serde_json::Value = serde_json::from_str(line).unwrap();
            let text = |key: &str| row[key].as_str().unwrap_or_default().to_owned();
            match text("cause").as_str() {
                "event" => paths.push(text("path")),
                cause => gaps.push(cause.to_owned()),
            }
        }
        (gaps, paths)
    }

    fn said(&self) -> String {
        self.container.must(&["journalctl", "--no-pager", "--unit", UNIT])
    }
}

fn install(root: &Path) {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let programs = program("tracker").parent().unwrap().to_owned();
    let installed =
        Command::new(top.join("packaging/install.sh")).arg(programs).env("DESTDIR", root).output().unwrap();
    assert!(installed.status.success(), "{}", text(&installed));
    for tool in ["systemd-sysusers", "systemd-tmpfiles"] {
        let mut command = Command::new(tool);
        if tool == "systemd-tmpfiles" {
            command.arg("--create");
        }
        let done = command.arg(format!("--root={}", root.display())).arg("longshore.conf").output().unwrap();
        assert!(done.status.success(), "{tool}: {}", text(&done));
    }
    fs::create_dir_all(root.join("etc/longshore")).unwrap();
    let config = "[[root]]\nname = \"space\"\npath = \"/space/tree\"\n";
    fs::write(root.join("etc/longshore/longshore.toml"), config).unwrap();
}

#[test]
fn a_kill_and_a_restart_miss_nothing_and_need_no_gap_and_a_stop_needs_one() {
    let Some(machine) = Machine::new() else { return };
    let (first, _) = machine.rows();
    assert!(!machine.said().contains("cannot be locked"), "{}", machine.said());
    machine.write("before-kill");
    let pid = machine.pid();
    machine.container.must(&["systemctl", "kill", "--signal=KILL", UNIT]);
    machine.write("while-dead");
    machine.container.until(&[
        "sh",
        "-c",
        &format!("test $(systemctl show -P MainPID {UNIT}) -ne {pid} && tracker flush"),
    ]);
    machine.write("after-kill");
    let (gaps, paths) = machine.rows();
    assert_eq!(gaps, first, "{}", machine.said());
    for name in ["before-kill", "while-dead", "after-kill"] {
        assert!(paths.iter().any(|p| p == name), "{name}: {paths:?}\n{}", machine.said());
    }

    machine.container.must(&["systemctl", "restart", UNIT]);
    machine.write("after-restart");
    let (gaps, paths) = machine.rows();
    assert_eq!(gaps, first, "{}", machine.said());
    assert!(paths.iter().any(|p| p == "after-restart"), "{paths:?}");

    machine.container.must(&["systemctl", "stop", UNIT]);
    machine.container.must(&["systemctl", "start", UNIT]);
    let (gaps, _) = machine.rows();
    assert_eq!(gaps.len(), first.len() + 1, "{}", machine.said());
    assert_eq!(gaps.last().map(String::as_str), Some("start"), "{}", machine.said());
}
