//! The real SQLite and the real journal on a disk that loses what was not synced, under programs that die, and full.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use rusqlite::{Connection, ErrorCode};
use shared::config::Config;
use shared::entry::{Cause, Mask, Scope};
use shared::journal::{Change as Entry, Coalesce, Commit, Journal};
use shared::path::RelPath;
use tempfile::TempDir;

use super::*;
use crate::random::Random;

const TRANSACTIONS: u32 = 20;
const PARTS: u32 = 3;
const FIRST: Program = 1;
const SECOND: Program = 2;

struct World {
    _disk: Attached,
    path: PathBuf,
    _dir: TempDir,
}

fn world() -> World {
    let dir = scratch();
    let disk = attach(dir.path());
    enter(FIRST);
    World { _disk: disk, path: dir.path().canonicalize().unwrap().join("some.db"), _dir: dir }
}

fn open(path: &Path, synchronous: &str) -> rusqlite::Result<Connection> {
    let conn = Connection::open(path)?;
    conn.busy_timeout(Duration::from_secs(30))?;
    conn.pragma_update(None, "journal_mode", "WAL")?;
    conn.pragma_update(None, "synchronous", synchronous)?;
    conn.pragma_update(None, "wal_autocheckpoint", 12)?;
    conn.execute_batch("CREATE TABLE IF NOT EXISTS t(n INTEGER, part INTEGER, content BLOB)")?;
    Ok(conn)
}

fn content(n: u32) -> Vec<u8> {
    vec![n as u8; 3_000]
}

fn commit(conn: &mut Connection, n: u32) -> rusqlite::Result<()> {
    let tx = conn.transaction()?;
    for part in 0..PARTS {
        tx.execute("INSERT INTO t VALUES (?1, ?2, ?3)", (n, part, content(n)))?;
    }
    tx.commit()
}

/// Opens, commits and closes, up to the first error; says how many were acknowledged.
fn script(path: &Path, synchronous: &str) -> u32 {
    let acknowledged = Cell::new(0);
    let work = || {
        let mut conn = open(path, synchronous)?;
        for n in 1..=TRANSACTIONS {
            commit(&mut conn, n)?;
            acknowledged.set(n);
        }
        rusqlite::Result::Ok(())
    };
    let _: rusqlite::Result<()> = work();
    acknowledged.get()
}

/// Up to which transaction all are there, each of them whole; none may be that is not among them.
fn present(conn: &Connection) -> u32 {
    let verdict: String = conn.query_row("PRAGMA integrity_check", [], |r| r.get(0)).unwrap();
    assert_eq!(verdict, "ok");
    let mut statement = conn.prepare("SELECT n, part, content FROM t ORDER BY n, part").unwrap();
    let rows = statement.query_map([], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?))).unwrap();
    let rows: Vec<(u32, u32, Vec<u8>)> = rows.map(Result::unwrap).collect();
    let count = rows.len() as u32 / PARTS;
    let whole = (1..=count).flat_map(|n| (0..PARTS).map(move |part| (n, part, content(n))));
    assert!(rows.into_iter().eq(whole));
    count
}

/// What a program that starts now finds, and that it can go on.
fn found(path: &Path) -> u32 {
    ask(|_| Answer::Go);
    enter(SECOND);
    let mut conn = open(path, "FULL").unwrap();
    let found = present(&conn);
    commit(&mut conn, found + 1).unwrap();
    assert_eq!(present(&conn), found + 1);
    found
}

/// Answers the `n`-th act, from 0 on, and says afterwards how many there were.
fn answer_at(n: u64, mut answer: impl FnMut() -> Answer + 'static) -> Rc<Cell<u64>> {
    let count = Rc::new(Cell::new(0));
    let counter = Rc::clone(&count);
    ask(move |_| {
        let now = counter.replace(counter.get() + 1);
        if now == n { answer() } else { Answer::Go }
    });
    count
}

fn powerless() -> Answer {
    halt();
    Answer::Die
}

/// Runs the script with a power cut at each of its acts in turn; `judge` gets what was acknowledged and what was found.
/// Says how many acts there are.
fn cut_everywhere(synchronous: &str, seed: Option<u64>, mut judge: impl FnMut(u32, u32)) -> u64 {
    for n in 0.. {
        let w = world();
        let count = answer_at(n, powerless);
        let acknowledged = script(&w.path, synchronous);
        ask(|_| Answer::Go);
        let mut random = seed.map(|seed| Random::new(seed + n));
        power_cut(&mut || random.as_mut().is_some_and(|random| random.one_in(2)));
        judge(acknowledged, found(&w.path));
        if count.get() <= n {
            return n;
        }
    }
    unreachable!("some script ends")
}

#[test]
fn what_was_committed_with_full_survives_a_power_cut_at_each_act() {
    let whole = |acknowledged, found| assert!((acknowledged..=acknowledged + 1).contains(&found));
    let acts = cut_everywhere("FULL", None, whole);
    assert!(acts > 300, "{acts}");
    for seed in [1_000, 2_000, 3_000] {
        cut_everywhere("FULL", Some(seed), whole);
    }
}

#[test]
fn what_was_committed_with_normal_is_lost_in_some_power_cuts() {
    let (mut lost, mut cuts) = (0, 0);
    let mut judge = |acknowledged, found| {
        cuts += 1;
        lost += u32::from(found < acknowledged);
        assert!(found <= acknowledged + 1);
    };
    cut_everywhere("NORMAL", None, &mut judge);
    cut_everywhere("NORMAL", Some(1_000), &mut judge);
    assert!(lost > 100, "{lost} of {cuts}");
}

#[test]
fn a_kill_at_any_act_loses_and_tears_nothing() {
    for n in 0.. {
        let w = world();
        let count = answer_at(n, || Answer::Die);
        let acknowledged = script(&w.path, "NORMAL");
        assert!((acknowledged..=acknowledged + 1).contains(&found(&w.path)));
        if count.get() <= n {
            break;
        }
    }
}

#[test]
fn others_go_on_when_a_program_is_killed_at_any_act() {
    for n in 0.. {
        let w = world();
        enter(SECOND);
        let mut other = open(&w.path, "FULL").unwrap();
        enter(FIRST);
        let count = answer_at(n, || Answer::Die);
        let acknowledged = script(&w.path, "FULL");
        ask(|_| Answer::Go);
        let there = present(&other);
        assert!((acknowledged..=acknowledged + 1).contains(&there));
        commit(&mut other, there + 1).unwrap();
        drop(other);
        assert_eq!(found(&w.path), there + 1);
        if count.get() <= n {
            break;
        }
    }
}

#[test]
fn the_dead_change_nothing() {
    let w = world();
    let mut conn = open(&w.path, "FULL").unwrap();
    commit(&mut conn, 1).unwrap();
    let files = || {
        let dir = std::fs::read_dir(w.path.parent().unwrap()).unwrap();
        let content = |path: PathBuf| (path.clone(), std::fs::read(path).unwrap());
        let all = dir.map(|e| content(e.unwrap().path()));
        all.filter(|(path, _)| !path.to_string_lossy().ends_with("-shm")).collect::<BTreeMap<_, _>>()
    };
    let before = files();
    kill(FIRST);
    assert!(is_dead(FIRST) && !is_dead(SECOND));
    assert!(commit(&mut conn, 2).is_err());
    assert!(Connection::open(&w.path).is_err(), "nor do they open a file");
    drop(conn);
    assert_eq!(files(), before, "closing writes nothing back");
    assert_eq!(before.len(), 2, "the log is still there: {:?}", before.keys());
    assert_eq!(found(&w.path), 1);
}

#[test]
fn a_full_disk_is_reported_and_harms_nothing() {
    for n in 0.. {
        let w = world();
        let full = Rc::new(Cell::new(false));
        drop(open(&w.path, "FULL").unwrap());
        let mut conn = open(&w.path, "FULL").unwrap();
        let (now, from) = (Rc::clone(&full), Cell::new(0));
        ask(move |op| {
            from.set(from.get() + 1);
            now.set(from.get() > n);
            if now.get() && !matches!(op.act, Act::Delete) { Answer::Full } else { Answer::Go }
        });
        let done = (1..=TRANSACTIONS).take_while(|n| match commit(&mut conn, *n) {
            Ok(()) => true,
            Err(e) => {
                assert_eq!(e.sqlite_error_code(), Some(ErrorCode::DiskFull), "{e}");
                false
            }
        });
        let done = done.count() as u32;
        ask(|_| Answer::Go);
        assert_eq!(present(&conn), done);
        commit(&mut conn, done + 1).unwrap();
        drop(conn);
        assert_eq!(found(&w.path), done + 1);
        if !full.get() {
            break;
        }
    }
}

#[test]
fn the_same_script_makes_the_same_acts() {
    let acts = || {
        let w = world();
        let acts = Rc::new(RefCell::new(Vec::new()));
        let (list, dir) = (Rc::clone(&acts), w.path.parent().unwrap().to_owned());
        ask(move |op| {
            list.borrow_mut().push((op.path.strip_prefix(&dir).unwrap().to_owned(), op.act));
            Answer::Go
        });
        assert_eq!(script(&w.path, "FULL"), TRANSACTIONS);
        acts.take()
    };
    let first = acts();
    assert!(first.len() > 300, "{}", first.len());
    assert_eq!(first, acts());
}

#[test]
fn a_lock_that_another_holds_is_not_waited_for() {
    let w = world();
    let mut holder = open(&w.path, "FULL").unwrap();
    let tx = holder.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate).unwrap();
    enter(SECOND);
    let begun = Instant::now();
    let error = commit(&mut open(&w.path, "FULL").unwrap(), 1).unwrap_err();
    assert_eq!(error.sqlite_error_code(), Some(ErrorCode::DatabaseBusy));
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    drop(tx);
}

#[test]
fn a_killed_program_s_locks_go_with_its_connections() {
    let w = world();
    let mut holder = open(&w.path, "FULL").unwrap();
    let tx = holder.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate).unwrap();
    tx.execute("INSERT INTO t VALUES (1, 0, zeroblob(3000))", []).unwrap();
    kill(FIRST);
    drop(tx);
    drop(holder);
    assert_eq!(found(&w.path), 0);
}

#[test]
fn a_hook_that_unwinds_has_killed() {
    let w = world();
    let mut conn = open(&w.path, "FULL").unwrap();
    ask(|_| crate::fate::die());
    assert!(commit(&mut conn, 1).is_err());
    assert!(is_dead(FIRST));
}

#[test]
fn other_files_and_threads_are_the_machine_s() {
    let w = world();
    ask(|op| panic!("{op:?}"));
    let elsewhere = tempfile::tempdir().unwrap();
    let path = elsewhere.path().join("other.db");
    assert_eq!(script(&path, "FULL"), TRANSACTIONS);
    let here = w.path.clone();
    let acknowledged = std::thread::spawn(move || script(&here, "FULL")).join().unwrap();
    assert_eq!((acknowledged, unsynced()), (TRANSACTIONS, 0));
}

/// Commits entries to the journal, each the next number's, until it fails; says how many were acknowledged.
fn journal_script(path: &Path, from: u32, upto: u32) -> u32 {
    let config = "state_dir = \"/tmp\"\n[[root]]\nname = \"space\"\npath = \"/space\"\n";
    let roots = Config::parse(Path::new("t.toml"), config).unwrap().roots;
    let Ok(mut journal) = Journal::create_or_open(path) else { return from };
    let Ok(rows) = journal.put_roots(&roots, 1) else { return from };
    let mut set = Coalesce::default();
    let append = |n: &u32| {
        let change = Entry {
            root: rows[0].id,
            path: RelPath::parse(format!("file-{n}").as_bytes()).unwrap(),
            handle: None,
            scope: Scope::SelfOnly,
            cause: Cause::Event,
            mask: Mask::MODIFY,
        };
        journal.append(&mut set, &Commit { changes: vec![change], ..Commit::default() }, 1).is_ok()
    };
    from + (from + 1..=upto).take_while(append).count() as u32
}

fn journal_rows(path: &Path) -> u32 {
    let Ok(journal) = Journal::open(path) else { return 0 };
    let rows = journal.read(0, 1_000, 1_000).unwrap();
    let names: Vec<String> = rows.iter().filter(|e| !e.cause.is_gap()).map(|e| e.path.to_string()).collect();
    let all: Vec<String> = (1..=names.len()).map(|n| format!("file-{n}")).collect();
    assert_eq!(names, all);
    names.len() as u32
}

#[test]
fn the_journal_works_after_a_power_cut_a_kill_and_a_full_disk() {
    type Strike = fn() -> Answer;
    let strikes: [(Strike, bool); 3] = [(powerless, true), (|| Answer::Die, false), (|| Answer::Full, false)];
    for (strike, cut) in strikes {
        for n in 0.. {
            let w = world();
            let count = answer_at(n, strike);
            let acknowledged = journal_script(&w.path, 0, 5);
            ask(|_| Answer::Go);
            let mut random = Random::new(n);
            if cut {
                power_cut(&mut || random.one_in(2));
            }
            enter(SECOND);
            // What a commit that failed left in the log may be found by the next to open it.
            let there = journal_rows(&w.path);
            assert!((acknowledged..=acknowledged + 1).contains(&there), "{acknowledged} {there}");
            assert_eq!(journal_script(&w.path, there, there + 5), there + 5);
            assert_eq!(journal_rows(&w.path), there + 5);
            if count.get() <= n {
                break;
            }
        }
    }
}
