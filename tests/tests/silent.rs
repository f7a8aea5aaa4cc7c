//! Changes that raise no event: the next run finds those of big files by itself.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use shared::entry::Scope;
use shared::exit::Exit;
use shared::journal::Journal;
use shared::limits;
use tempfile::TempDir;
use tests::dir_leg::{age, same, world};
use tests::mount::{LoopFs, available};
use tests::played::PlayedTracker;
use tests::programs::{Daemon, call, text};
use tests::sys::map;
use tests::world::{WRITTEN, World, note};

const BIG: u64 = limits::SILENT_FILE_BYTES;

fn big_file(path: &Path) -> File {
    let file = File::options().create(true).truncate(true).read(true).write(true).open(path).unwrap();
    file.set_len(BIG).unwrap();
    file
}

fn write_into(world: &World, name: &str) {
    File::options().write(true).open(world.source().join(name)).unwrap().write_all_at(b"new", 5_000).unwrap();
}

#[test]
fn a_big_file_that_changed_without_an_event_is_found_counted_and_remembered() {
    let world = world();
    big_file(&world.source().join("disk.img"));
    fs::write(world.source().join("small"), "old").unwrap();
    assert_eq!(world.run("copy").found_without_event, 0);
    write_into(&world, "disk.img");
    fs::write(world.source().join("small"), "new").unwrap();
    let report = world.run("copy");
    assert_eq!(
        (report.exit, report.found_without_event, report.files_sent),
        (Exit::Ok, 1, 1),
        "{}",
        report.text()
    );
    assert!(report.text().contains("found changed without an event: 1"));
    let again = world.run("copy");
    assert_eq!((again.found_without_event, again.files_sent), (0, 0));
    // One that was found once is looked at however old it is.
    age(&world.source().join("disk.img"));
    assert_eq!(world.run("copy").found_without_event, 1);
    write_into(&world, "disk.img");
    age(&world.source().join("disk.img"));
    assert_eq!(world.run("copy").found_without_event, 1);
    same_content(&world, "disk.img");
}

fn same_content(world: &World, name: &str) {
    let (source, copy) =
        (fs::read(world.source().join(name)).unwrap(), fs::read(world.path("copy").join(name)).unwrap());
    assert!(source == copy, "{name}");
}

#[test]
fn a_catalog_restored_from_before_a_change_was_found_without_an_event_is_known_for_an_older_one() {
    let world = world();
    big_file(&world.source().join("disk.img"));
    world.run("copy");
    let acked = || world.journal.leg("copy").unwrap().unwrap().acked;
    let (catalog, copy, before) = (world.path("state/catalog-copy.db"), world.path("copy.db"), acked());
    fs::copy(&catalog, &copy).unwrap();
    write_into(&world, "disk.img");
    assert_eq!((world.run("copy").found_without_event, acked()), (1, before));
    fs::copy(&copy, &catalog).unwrap();
    assert_eq!(world.run("copy").full_pass.as_deref(), Some("the catalog is older than the journal"));
}

#[test]
fn what_has_an_entry_by_the_time_of_the_next_flush_was_not_silent() {
    let world = world();
    big_file(&world.source().join("disk.img"));
    world.run("copy");
    let (journal, root, file) = (world.config.journal_path(), world.root, world.source().join("disk.img"));
    let report = world.run_as("copy", |parts| {
        parts.tracker = Box::new(PlayedTracker::at_flush(move |round| {
            // Written after the first round's flush; the tracker has told of it by the second.
            if round == 1 {
                File::options().write(true).open(&file).unwrap().write_all_at(b"new", 9).unwrap();
            } else {
                note(&mut Journal::open(&journal).unwrap(), root, "disk.img", Scope::SelfOnly, WRITTEN);
            }
        }));
    });
    assert_eq!(
        (report.exit, report.found_without_event, report.files_sent),
        (Exit::Ok, 0, 1),
        "{}",
        report.text()
    );
    same(&world);
}

#[test]
fn nothing_is_called_silent_while_the_tracker_cannot_be_asked() {
    let world = world();
    big_file(&world.source().join("disk.img"));
    world.run("copy");
    write_into(&world, "disk.img");
    let report = world.run_as("copy", |parts| parts.tracker = Box::new(PlayedTracker::down()));
    assert_eq!((report.found_without_event, report.files_sent), (0, 0));
    assert_eq!(world.run("copy").found_without_event, 1);
}

#[test]
fn a_run_that_goes_on_looks_once_in_an_hour() {
    let world = world();
    big_file(&world.source().join("disk.img"));
    world.run("copy");
    let mut rests = 0;
    let report = world.watch("copy", |report, _| {
        assert_eq!(report.found_without_event, 0);
        rests += 1;
        write_into(&world, "disk.img");
        rests < 3
    });
    assert_eq!((rests, report.found_without_event), (3, 0));
}

struct Loop(String);

impl Loop {
    fn on(file: &Path) -> Loop {
        let out = Command::new("losetup").args(["--find", "--show"]).arg(file).output().unwrap();
        assert!(out.status.success(), "{out:?}");
        Loop(String::from_utf8(out.stdout).unwrap().trim().to_owned())
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["--detach", &self.0]).status();
    }
}

struct Setup {
    dir: TempDir,
    fs: LoopFs,
}

impl Setup {
    fn new() -> Setup {
        let dir = tempfile::tempdir().unwrap();
        let fs = LoopFs::new("ext4").unwrap();
        fs::create_dir(fs.path().join("root")).unwrap();
        fs::create_dir(dir.path().join("copy")).unwrap();
        let (base, root) = (dir.path().display(), fs.path().join("root"));
        let config = format!(
            "state_dir = \"{base}/state\"\nruntime_dir = \"{base}/run\"\n[[root]]\nname = \"space\"\npath = \"{}\"\n\
             [[leg]]\nname = \"copy\"\nkind = \"dir\"\nroots = [\"space\"]\npath = \"{base}/copy\"\n",
            root.display()
        );
        fs::write(dir.path().join("longshore.toml"), config).unwrap();
        Setup { dir, fs }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.fs.path().join("root").join(name)
    }

    /// What the run found without an event.
    fn sync(&self) -> u64 {
        let output = call("syncer", &self.dir.path().join("longshore.toml"), &["--json", "run"]);
        assert_eq!(output.status.code(), Some(0), "{}", text(&output));
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        report["found_without_event"].as_u64().unwrap()
    }

    fn same(&self, name: &str) {
        let copy = fs::read(self.dir.path().join("copy").join(name)).unwrap();
        assert!(fs::read(self.file(name)).unwrap() == copy, "{name}");
    }
}

#[test]
fn what_a_loop_device_and_a_live_mapping_write_is_mirrored_by_the_next_run() {
    if !available("ext4") {
        return;
    }
    let setup = Setup::new();
    big_file(&setup.file("loop.img"));
    let mapped = big_file(&setup.file("mapped.db"));
    let mut mapping = map(&mapped);
    let device = Loop::on(&setup.file("loop.img"));
    let daemon = Daemon::start(&setup.dir.path().join("longshore.toml"));
    assert_eq!(setup.sync(), 0);

    let through = File::options().write(true).open(&device.0).unwrap();
    through.write_all_at(&[7; 4096], 1 << 20).unwrap();
    through.sync_all().unwrap();
    mapping[1 << 20..][..6].copy_from_slice(b"stored");
    mapping.flush().unwrap();

    assert_eq!(setup.sync(), 2);
    setup.same("loop.img");
    setup.same("mapped.db");
    drop((through, device, mapping));
    assert_eq!(daemon.stop(), Some(0));
}
