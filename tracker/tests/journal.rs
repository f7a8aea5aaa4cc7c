//! The journal of a running tracker: its bound, its other user, its replacement, and the commands for people.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::{NOBODY, World, is_root};
use rusqlite::Connection;
use shared::journal::{CatalogFacts, Journal};

fn text(out: &Output) -> String {
    String::from_utf8_lossy(&[&out.stdout[..], &out.stderr].concat()).into_owned()
}

fn journal_path(world: &World) -> PathBuf {
    world.dir.path().join("state/journal.db")
}

/// The tracker runs, and every change has an entry of its own.
fn running() -> (World, PathBuf) {
    let (mut world, root) = World::with_root();
    world.start();
    world.claim();
    (world, root)
}

fn json(world: &World, args: &[&str]) -> serde_json::Value {
    serde_json::from_slice(&world.ok(args)).unwrap()
}

#[test]
fn a_copy_and_a_check_are_made_beside_a_running_tracker() {
    let (mut world, root) = running();
    for n in 0..200 {
        std::fs::write(root.join(format!("f{n}")), "x").unwrap();
    }
    world.flush();
    let copy = world.dir.path().join("copy.db");
    let shown = copy.to_str().unwrap();
    assert!(text(&world.run(&["journal", "check"])).contains("is whole"));
    assert_eq!(json(&world, &["journal", "check", "--json"])["whole"], true);
    let told = json(&world, &["journal", "backup", "--json", shown]);
    assert_eq!(told["bytes"], std::fs::metadata(&copy).unwrap().len());
    let rows = |path: &Path| Journal::open_to_read(path).unwrap().read(0, 1 << 40, 1_000).unwrap();
    assert_eq!(rows(&copy), rows(&journal_path(&world)));
    // What stands there stays, and the journal itself is never the place.
    let before = std::fs::read(&copy).unwrap();
    let out = world.run(&["journal", "backup", shown]);
    assert_eq!((out.status.code(), std::fs::read(&copy).unwrap()), (Some(2), before), "{}", text(&out));
    assert!(text(&out).contains("--force"), "{}", text(&out));
    world.ok(&["journal", "backup", "--force", shown]);
    let own = journal_path(&world);
    let out = world.run(&["journal", "backup", "--force", own.to_str().unwrap()]);
    assert!(out.status.code() == Some(2) && text(&out).contains("the journal itself"), "{}", text(&out));
    assert_eq!(world.stop(), 0);
}

#[test]
fn room_that_is_not_used_any_more_is_given_back_beside_a_running_tracker() {
    let (mut world, root) = running();
    let list = world.dir.path().join("list");
    let paths: String = (0..20_000).map(|n| format!("{n}-{}\0", "z".repeat(100))).collect();
    std::fs::write(&list, paths).unwrap();
    world.ok(&["add", "--root", "a", "--from0", list.to_str().unwrap()]);
    let other = Connection::open(journal_path(&world)).unwrap();
    other.execute("DELETE FROM entry WHERE cause = 1", []).unwrap();
    drop(other);
    let told = json(&world, &["journal", "vacuum", "--json"]);
    let bytes = |key: &str| told[key].as_u64().unwrap();
    assert!(bytes("bytes_before") > 2_000_000 && bytes("bytes_after") < 200_000, "{told}");
    // SQLite counts that as a change of the schema; the tracker sees that it is none.
    std::fs::write(root.join("after"), "x").unwrap();
    world.flush();
    assert!(world.has("self", b"after"));
    assert_eq!(world.stop(), 0);
}

#[test]
fn what_is_wrong_with_a_journal_is_said() {
    let (mut world, _) = running();
    assert_eq!(world.stop(), 0);
    let path = journal_path(&world);
    let whole = std::fs::read(&path).unwrap();
    for (sql, needle) in [
        ("UPDATE meta SET head = 0", "outside of 0 to 0"),
        ("UPDATE meta SET floor = 5, head = 3", "pruned up to 5"),
        ("UPDATE entry SET root = 77", "unknown root 77"),
        ("UPDATE entry SET path = x'2e2e'", "cannot be read"),
        ("UPDATE leg SET acked = claimed + 1", "the leg test"),
        (
            "INSERT INTO deferred VALUES ('test', 1, x'', x'', 1, 999, 0, 0, 0, 0, 0, '')",
            "newer than the head",
        ),
    ] {
        Connection::open(&path).unwrap().execute(sql, []).unwrap();
        let out = world.run(&["journal", "check"]);
        assert!(out.status.code() == Some(1) && text(&out).contains(needle), "{sql}: {}", text(&out));
        assert!(text(&out).contains("move the file away"), "{}", text(&out));
        std::fs::write(&path, &whole).unwrap();
    }
    // A page of the file is torn.
    let mut torn = whole.clone();
    torn[3 * 4096..4 * 4096].fill(0x5a);
    std::fs::write(&path, &torn).unwrap();
    let out = world.run(&["journal", "check"]);
    assert!(matches!(out.status.code(), Some(1 | 78)), "{}", text(&out));
    assert!(text(&out).contains("journal.db"), "{}", text(&out));
    std::fs::remove_file(&path).unwrap();
    for what in [&["check"][..], &["backup", "x"], &["vacuum"]] {
        let out = world.run(&[&["journal"], what].concat());
        assert!(out.status.code() == Some(75) && text(&out).contains("no journal"), "{}", text(&out));
        std::fs::write(&path, "my diary").unwrap();
        let out = world.run(&[&["journal"], what].concat());
        assert!(out.status.code() == Some(78) && text(&out).contains("not a SQLite"), "{}", text(&out));
        std::fs::remove_file(&path).unwrap();
    }
}

#[test]
fn a_leg_that_lags_behind_is_collapsed_where_a_commit_finds_the_journal_over_its_bound() {
    let (mut world, root) = World::with_root();
    let state = world.dir.path().join("state");
    let mirror = world.dir.path().join("mirror");
    std::fs::create_dir(&mirror).unwrap();
    let leg =
        format!("[[leg]]\nname = \"l\"\nkind = \"dir\"\nroots = [\"a\"]\npath = \"{}\"\n", mirror.display());
    world.configure(&state, &[("a", &root)], &leg);
    let config = std::fs::read_to_string(&world.config).unwrap();
    std::fs::write(&world.config, format!("max_entries = 1000\n{config}")).unwrap();
    world.start();
    let mut journal = Journal::open(&journal_path(&world)).unwrap();
    let facts = CatalogFacts { catalog_id: [1; 16], journal_id: Some(journal.id()), acked: 0, revision: 0 };
    journal.attach_leg("l", &facts, &[], 0).unwrap();
    std::fs::create_dir(root.join("d")).unwrap();
    for n in 0..1_500 {
        std::fs::write(root.join(format!("d/f{n}")), "x").unwrap();
    }
    world.flush();
    // The status is written once a second.
    let begun = std::time::Instant::now();
    while world.stats()["status"]["collapses"] != 1 {
        assert!(begun.elapsed().as_secs() < 60, "{}", world.stats());
    }
    let stats = world.stats();
    assert!(stats["journal"]["entries"].as_u64().unwrap() <= 1_000, "{stats}");
    let history = journal.history(100).unwrap();
    assert!(history.iter().any(|h| h.kind == "collapse" && h.text.contains("leg l")), "{history:?}");
    let owed = journal.deferred("l", 10_000).unwrap();
    let covered = |n: usize| {
        let path = shared::path::RelPath::parse(format!("d/f{n}").as_bytes()).unwrap();
        owed.iter().any(|d| path.is_within(&d.key.path))
            || world.changes().iter().any(|(_, changed)| *changed == format!("d/f{n}"))
    };
    assert!([0, 700, 1_499].into_iter().all(covered), "{owed:?}");
    assert_eq!(world.stop(), 0);
}

/// Set for a copy of this program that plays the journal's other user.
const SQL: &str = "LONGSHORE_OTHER_USER_SQL";

#[test]
fn the_other_user_of_the_journal_plants_nothing_that_is_obeyed() {
    if let Ok(sql) = std::env::var(SQL) {
        let path = std::env::var("LONGSHORE_OTHER_USER_JOURNAL").unwrap();
        return Connection::open(path).unwrap().execute_batch(&sql).unwrap();
    }
    if !is_root() {
        return;
    }
    let (mut world, root) = World::with_root();
    let open =
        |path: &Path, mode| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    open(world.dir.path(), 0o755);
    let state = world.dir.path().join("state");
    std::fs::create_dir(&state).unwrap();
    chown(&state, None, Some(NOBODY)).unwrap();
    open(&state, 0o2770);
    let program = world.dir.path().join("other-user");
    let copied = Command::new("cp").arg(std::env::current_exe().unwrap()).arg(&program).status().unwrap();
    assert!(copied.success());
    let plant = |sql: &str| {
        let mut other = Command::new(&program);
        other.args(["--exact", "the_other_user_of_the_journal_plants_nothing_that_is_obeyed"]);
        other.env(SQL, sql).env("LONGSHORE_OTHER_USER_JOURNAL", state.join("journal.db"));
        let out = other.uid(NOBODY).gid(NOBODY).current_dir("/").output().unwrap();
        assert!(out.status.success(), "{}", text(&out));
    };
    world.start();
    plant("CREATE TRIGGER planted BEFORE INSERT ON entry BEGIN SELECT RAISE(IGNORE); END");
    std::fs::write(root.join("meanwhile"), "x").unwrap();
    world.wait_for_line("planted");
    plant("DROP TRIGGER planted");
    world.flush();
    assert!(world.has("self", b"meanwhile"), "{:?}", world.changes());
    assert_eq!(world.stop(), 0);
}

#[test]
fn a_journal_that_is_replaced_ends_the_tracker_and_the_next_start_covers_everything() {
    let (mut world, root) = World::with_root();
    world.env = vec![("WATCHDOG_USEC", "400000")];
    world.start();
    let copy = world.dir.path().join("copy.db");
    world.ok(&["journal", "backup", copy.to_str().unwrap()]);
    std::fs::write(root.join("after-the-copy"), "x").unwrap();
    world.flush();
    let path = journal_path(&world);
    std::fs::rename(&copy, &path).unwrap();
    world.wait_for_line("was moved away or replaced");
    assert_eq!(world.wait(), 1);
    for suffix in ["-wal", "-shm"] {
        let _ = std::fs::remove_file(format!("{}{suffix}", path.display()));
    }
    let gaps = world.cause_count("start");
    world.start();
    assert_eq!(world.cause_count("start"), gaps + 1, "{:?}", world.causes());
    std::fs::write(root.join("then"), "x").unwrap();
    world.flush();
    assert!(world.has("self", b"then"));
    assert_eq!(world.stop(), 0);
}
