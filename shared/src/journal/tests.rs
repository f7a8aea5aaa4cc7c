//! The journal as its users see it: what is committed, claimed, read, acked, owed and pruned.

mod bound;
mod coverage;

use tempfile::TempDir;

use super::*;
use crate::config::Config;

struct World {
    _dir: TempDir,
    journal: Journal,
    set: Coalesce,
    root: RootId,
}

const CONFIG: &str = "state_dir = \"/tmp\"\n[[root]]\nname = \"space\"\npath = \"/space\"\n";

fn roots(text: &str) -> Vec<crate::config::Root> {
    Config::parse(Path::new("t.toml"), text).unwrap().roots
}

fn world() -> World {
    world_in(tempfile::tempdir().unwrap())
}

fn world_in(dir: TempDir) -> World {
    let mut journal = Journal::create_or_open(&dir.path().join("journal.db")).unwrap();
    let root = journal.put_roots(&roots(CONFIG), 1).unwrap()[0].id;
    World { _dir: dir, journal, set: Coalesce::default(), root }
}

fn path(text: &str) -> RelPath {
    RelPath::parse(text.as_bytes()).unwrap()
}

impl World {
    fn changed(&mut self, name: &str, mask: Mask, at_ns: i64) -> Appended {
        let change = Change {
            root: self.root,
            path: path(name),
            handle: None,
            scope: Scope::SelfOnly,
            cause: Cause::Event,
            mask,
        };
        let commit = Commit { changes: vec![change], ..Commit::default() };
        self.journal.append(&mut self.set, &commit, at_ns).unwrap()
    }

    fn attach(&mut self, leg: &str) -> Attached {
        let facts =
            CatalogFacts { catalog_id: [7; 16], journal_id: Some(self.journal.id()), acked: 0, revision: 0 };
        let roots = [LegRootFacts { id: self.root, attended: Some(u64::MAX) }];
        self.journal.attach_leg(leg, &facts, &roots, 5).unwrap()
    }

    fn rows(&self) -> Vec<(u64, String, Mask)> {
        let rows = self.journal.read(0, u64::MAX >> 1, 100).unwrap();
        rows.into_iter().filter(|e| !e.cause.is_gap()).map(|e| (e.seq, e.path.to_string(), e.mask)).collect()
    }
}

#[test]
fn a_new_root_begins_with_a_gap_and_a_known_one_does_not() {
    let mut w = world();
    let gaps =
        |w: &World| w.journal.read(0, 100, 100).unwrap().iter().filter(|e| e.cause == Cause::Rules).count();
    assert_eq!(gaps(&w), 1);
    w.journal.put_roots(&roots(CONFIG), 2).unwrap();
    assert_eq!(gaps(&w), 1);
    let stricter = format!("{CONFIG}exclude = [\"*.tmp\"]\n");
    let epoch = w.journal.put_roots(&roots(&stricter), 3).unwrap()[0].epoch;
    assert_eq!((gaps(&w), epoch), (2, 2), "changed rules are a gap in the same transaction");
}

#[test]
fn a_file_written_all_day_is_one_row_that_keeps_the_age_of_its_first_event() {
    let mut w = world();
    w.attach("b2");
    for at in 0..100 {
        w.changed("f", Mask::MODIFY, 1_000 + at);
    }
    w.changed("f", Mask::ATTRIB, 2_000);
    let rows = w.journal.read(0, 1_000, 10).unwrap();
    let of_f: Vec<_> = rows.iter().filter(|e| e.path == path("f")).collect();
    assert_eq!(of_f.len(), 1);
    assert_eq!((of_f[0].mask, of_f[0].at_ns), (Mask::MODIFY | Mask::ATTRIB, 1_000));
}

#[test]
fn a_change_after_a_claim_gets_a_row_above_it() {
    let mut w = world();
    w.attach("b2");
    w.changed("f", Mask::MODIFY, 1);
    let head = w.journal.claim("b2").unwrap();
    assert_eq!(w.changed("f", Mask::MODIFY, 2).rows, 1);
    w.journal.ack("b2", head, 0, &[], 3).unwrap();
    let left = w.journal.read(head, 1_000, 10).unwrap();
    assert_eq!(left.len(), 1, "what happened after the claim is still to be read");
}

#[test]
fn a_commit_that_fails_leaves_nothing_behind_and_covers_nothing() {
    let mut w = world();
    w.attach("b2");
    w.journal.conn.execute_batch("PRAGMA query_only = 1").unwrap();
    let change = Change::gap(w.root, Cause::Overflow);
    let commit = Commit { changes: vec![change.clone()], ..Commit::default() };
    assert!(w.journal.append(&mut w.set, &commit, 1).is_err());
    w.journal.conn.execute_batch("PRAGMA query_only = 0").unwrap();
    assert_eq!(w.journal.append(&mut w.set, &commit, 2).unwrap().rows, 1);
}

#[test]
fn what_waits_is_told_by_cursor_root_and_cause_with_the_age_of_the_oldest() {
    let mut w = world();
    w.changed("f", Mask::MODIFY, 30);
    w.changed("g", Mask::MODIFY, 20);
    let commit = Commit { changes: vec![Change::gap(w.root, Cause::Overflow)], ..Commit::default() };
    let head = w.journal.append(&mut w.set, &commit, 40).unwrap().head;
    let waiting = w.journal.waiting(&[0, head - 1, head]).unwrap();
    let told = |at: usize| -> Vec<(Cause, u64, i64)> {
        waiting[at].sums().map(|s| (s.cause, s.count, s.oldest_ns)).collect()
    };
    // The first row is the gap that each new root begins with.
    assert_eq!(told(0), [(Cause::Event, 2, 20), (Cause::Overflow, 1, 40), (Cause::Rules, 1, 1)]);
    assert_eq!(told(1), [(Cause::Overflow, 1, 40)]);
    assert_eq!(told(2), []);
    assert_eq!(w.journal.waiting(&[]).unwrap(), []);
}

#[test]
fn pruning_waits_for_the_slowest_configured_leg_and_seqs_are_never_given_twice() {
    let mut w = world();
    w.attach("b2");
    w.attach("nas");
    w.attach("forgotten");
    w.changed("f", Mask::MODIFY, 1);
    let head = w.journal.claim("b2").unwrap();
    w.journal.ack("b2", head, 0, &[], 2).unwrap();
    let legs = ["b2".to_string(), "nas".to_string(), "never-ran".to_string()];
    w.journal.prune(&legs).unwrap();
    assert_eq!(w.rows().len(), 1, "nas has not read it");
    w.journal.ack("nas", head, 0, &[], 3).unwrap();
    w.journal.prune(&legs).unwrap();
    assert_eq!(w.rows(), []);
    assert_eq!(w.journal.head_and_floor().unwrap(), (head, head));
    assert_eq!(w.changed("f", Mask::MODIFY, 4).head, head + 1);
}

#[test]
fn a_leg_that_comes_back_after_pruning_gets_a_full_pass_and_a_steady_one_does_not() {
    let mut w = world();
    assert!(w.attach("b2").full_pass.is_some());
    let due = w.journal.deferred_due("b2", w.root, 10, 10).unwrap();
    assert_eq!((due.len(), due[0].key.scope), (1, Scope::Full));
    w.journal.settle_deferred("b2", 0, &[(due[0].key.clone(), due[0].seq)]).unwrap();
    let acked = w.journal.leg("b2").unwrap().unwrap().acked;
    let facts = CatalogFacts { catalog_id: [7; 16], journal_id: Some(w.journal.id()), acked, revision: 1 };
    assert_eq!(w.journal.attach_leg("b2", &facts, &[known(&w)], 5).unwrap().full_pass, None);
    w.changed("f", Mask::MODIFY, 1);
    let head = w.journal.claim("other").unwrap();
    w.journal.ack("other", head, 0, &[], 2).unwrap();
    w.attach("other");
    w.journal.prune(&["other".into()]).unwrap();
    let back = w.journal.attach_leg("b2", &facts, &[known(&w)], 6).unwrap();
    assert_eq!(back.full_pass, Some("entries that this leg had not read were pruned"));
}

#[test]
fn a_root_that_was_never_proven_is_in_the_history_once_however_often_its_leg_runs() {
    let mut w = world();
    let acked = w.attach("b2").leg.acked;
    let facts = CatalogFacts { catalog_id: [7; 16], journal_id: Some(w.journal.id()), acked, revision: 1 };
    let due = w.journal.deferred("b2", 10).unwrap();
    w.journal.settle_deferred("b2", 0, &[(due[0].key.clone(), due[0].seq)]).unwrap();
    let told = |w: &World| w.journal.history(100).unwrap().iter().filter(|h| h.kind == "full-pass").count();
    let before = told(&w);
    for _ in 0..3 {
        let roots = [LegRootFacts { id: w.root, attended: None }];
        assert_eq!(w.journal.attach_leg("b2", &facts, &roots, 5).unwrap().full_pass, None);
    }
    assert_eq!((told(&w), w.journal.deferred_count("b2").unwrap()), (before + 1, 1));
}

fn known(w: &World) -> LegRootFacts {
    LegRootFacts { id: w.root, attended: Some(u64::MAX) }
}

#[test]
fn a_root_that_acks_passed_while_it_was_not_in_the_leg_gets_a_full_pass_of_its_own() {
    let mut w = world();
    w.attach("b2");
    let due = w.journal.deferred("b2", 10).unwrap();
    w.journal.settle_deferred("b2", 0, &[(due[0].key.clone(), due[0].seq)]).unwrap();
    let acked = w.journal.leg("b2").unwrap().unwrap().acked;
    let facts = CatalogFacts { catalog_id: [7; 16], journal_id: Some(w.journal.id()), acked, revision: 1 };
    for (attended, rows) in [(Some(acked), 0), (Some(acked - 1), 1), (None, 1)] {
        let roots = [LegRootFacts { id: w.root, attended }];
        w.journal.attach_leg("b2", &facts, &roots, 5).unwrap();
        assert_eq!(w.journal.deferred_count("b2").unwrap(), rows, "{attended:?}");
    }
    w.journal.attach_leg("b2", &facts, &[], 5).unwrap();
    assert_eq!(w.journal.deferred_count("b2").unwrap(), 0, "a root that left owes nothing");
}

fn owed(root: RootId, name: &str, seq: u64, since_ns: i64) -> NewDeferred {
    NewDeferred {
        root,
        path: path(name),
        scope: Scope::SelfOnly,
        handle: None,
        seq,
        mask: Mask::MODIFY,
        since_ns,
        attempts: 1,
        not_before_ns: 100,
        class: Class::Busy,
        last_error: "busy".into(),
    }
}

#[test]
fn a_renewed_row_survives_its_own_settlement() {
    let mut w = world();
    w.attach("b2");
    w.journal.defer("b2", &[owed(w.root, "f", 5, 50)]).unwrap();
    let read = w.journal.deferred("b2", 10).unwrap().into_iter().find(|d| d.key.path == path("f")).unwrap();
    w.journal.defer("b2", &[NewDeferred { mask: Mask::ATTRIB, ..owed(w.root, "f", 9, 70) }]).unwrap();
    assert_eq!(w.journal.settle_deferred("b2", 0, &[(read.key.clone(), read.seq)]).unwrap(), 0);
    let now = w.journal.deferred("b2", 10).unwrap().into_iter().find(|d| d.key.path == path("f")).unwrap();
    assert_eq!((now.seq, now.since_ns, now.attempts), (9, 50, 2));
    assert_eq!(now.mask, Mask::MODIFY | Mask::ATTRIB);
    assert_eq!(w.journal.settle_deferred("b2", 0, &[(now.key.clone(), now.seq)]).unwrap(), 1);
}

#[test]
fn a_row_stamped_far_in_the_future_is_due_now() {
    let mut w = world();
    w.attach("b2");
    let ten_years = 10 * 365 * 24 * 3600 * 1_000_000_000i64;
    w.journal.defer("b2", &[NewDeferred { not_before_ns: ten_years, ..owed(w.root, "f", 5, 50) }]).unwrap();
    w.journal
        .defer("b2", &[NewDeferred { not_before_ns: 5_000_000_000, ..owed(w.root, "g", 5, 50) }])
        .unwrap();
    let due: Vec<_> =
        w.journal.deferred_due("b2", w.root, 1_000, 10).unwrap().into_iter().map(|d| d.key.path).collect();
    assert!(due.contains(&path("f")) && !due.contains(&path("g")), "{due:?}");
}

/// What the other user of the file may do to it while it is in use.
fn planted(sql: &str) -> (World, Result<Appended, DatabaseError>) {
    let mut w = world();
    let other = rusqlite::Connection::open(w.journal.path()).unwrap();
    other.execute_batch(sql).unwrap();
    let commit = Commit { changes: vec![Change::gap(w.root, Cause::Overflow)], ..Commit::default() };
    let done = w.journal.append(&mut w.set, &commit, 1);
    (w, done)
}

#[test]
fn what_another_user_plants_while_the_journal_is_in_use_is_noticed_and_not_obeyed() {
    for (name, sql) in [
        ("t1", "CREATE TRIGGER t1 BEFORE INSERT ON entry BEGIN SELECT RAISE(IGNORE); END"),
        ("v1", "CREATE VIEW v1 AS SELECT * FROM entry"),
        ("i1", "CREATE UNIQUE INDEX i1 ON doubt(fs)"),
        ("renamed", "ALTER TABLE entry RENAME TO renamed; CREATE VIEW entry AS SELECT * FROM renamed"),
        ("extra", "ALTER TABLE leg ADD COLUMN extra"),
    ] {
        let (mut w, done) = planted(sql);
        let error = done.unwrap_err();
        assert!(matches!(&error, DatabaseError::Foreign { what, .. } if what.contains(name)), "{error}");
        assert!(matches!(w.journal.claim("b2"), Err(DatabaseError::Foreign { .. })), "{name}");
    }
}

#[test]
fn once_what_was_planted_is_away_the_journal_goes_on_by_itself() {
    let (mut w, done) = planted("CREATE TRIGGER t1 BEFORE INSERT ON entry BEGIN SELECT RAISE(IGNORE); END");
    assert!(done.is_err());
    let other = rusqlite::Connection::open(w.journal.path()).unwrap();
    other.execute_batch("DROP TRIGGER t1; VACUUM").unwrap();
    assert_eq!(w.changed("f", Mask::MODIFY, 1).rows, 1);
}

#[test]
fn a_trigger_does_not_run_even_before_it_is_noticed() {
    let w = world();
    let other = rusqlite::Connection::open(w.journal.path()).unwrap();
    other
        .execute_batch("CREATE TRIGGER t1 BEFORE INSERT ON history BEGIN SELECT RAISE(IGNORE); END")
        .unwrap();
    let insert = "INSERT INTO history(at_ns, kind, text) VALUES (0, 'test', 'x')";
    assert_eq!(w.journal.conn.execute(insert, []).unwrap(), 1);
}

#[test]
fn a_journal_that_is_replaced_while_it_is_in_use_takes_nothing_more() {
    let mut w = world();
    let path = w.journal.path().to_owned();
    std::fs::rename(&path, path.with_extension("old")).unwrap();
    let commit = Commit { changes: vec![Change::gap(w.root, Cause::Overflow)], ..Commit::default() };
    for _ in 0..2 {
        let error = w.journal.append(&mut w.set, &commit, 1).unwrap_err();
        assert!(matches!(error, DatabaseError::Replaced { .. }) && !error.is_permanent(), "{error}");
        drop(Journal::create_or_open(&path));
    }
}

#[test]
fn doubts_stand_and_go_with_their_batch() {
    let mut w = world();
    let handle = Handle { kind: 1, bytes: vec![9; 8] };
    let doubt = Doubt { fs: "ext4 x".into(), handle: handle.clone(), epoch: 3 };
    let commit = Commit { doubts: vec![doubt.clone()], ..Commit::default() };
    w.journal.append(&mut w.set, &commit, 1).unwrap();
    assert_eq!(w.journal.doubts("ext4 x").unwrap(), [doubt]);
    let commit = Commit { settled: vec![("ext4 x".into(), handle)], ..Commit::default() };
    w.journal.append(&mut w.set, &commit, 2).unwrap();
    assert_eq!(w.journal.doubts("ext4 x").unwrap(), []);
}

#[test]
fn every_kind_of_name_survives_the_journal() {
    let mut w = world();
    w.attach("b2");
    let names: [&[u8]; 5] = [b"new\nline", b"bad\xff", b"# comment", b" space ", b"back\\slash"];
    for name in names {
        let change = Change {
            path: RelPath::parse(name).unwrap(),
            scope: Scope::SelfOnly,
            ..Change::gap(w.root, Cause::Event)
        };
        let commit = Commit { changes: vec![change], ..Commit::default() };
        w.journal.append(&mut w.set, &commit, 1).unwrap();
    }
    let read: Vec<_> = w.journal.read(0, 100, 100).unwrap().into_iter().map(|e| e.path).collect();
    for name in names {
        assert!(read.iter().any(|p| p.as_bytes() == name));
    }
}

#[test]
fn a_journal_of_schema_version_1_is_opened_with_all_that_is_in_it() {
    let schema = include_str!("tests/v1.sql");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal.db");
    rusqlite::Connection::open(&path).unwrap().execute_batch(schema).unwrap();
    let journal = Journal::create_or_open(&path).unwrap();
    assert_eq!(journal.id(), JournalId(std::array::from_fn(|i| i as u8 + 1)));
    assert_eq!(journal.head_and_floor().unwrap(), (5, 2));
    let rows = journal.read(0, 100, 100).unwrap();
    let paths: Vec<&[u8]> = rows.iter().map(|e| e.path.as_bytes()).collect();
    assert_eq!(paths, [&b"a/b\xff"[..], b"", b""]);
    assert_eq!(rows[1].handle, Some(Handle { kind: 1, bytes: vec![7] }));
    assert_eq!(
        (rows[2].scope, rows[2].cause, rows[2].mask),
        (Scope::Subtree, Cause::Overflow, Mask::UNKNOWN)
    );
    let leg = journal.leg("b2").unwrap().unwrap();
    assert_eq!((leg.claimed, leg.acked, leg.last_run, leg.writer_ids.len(), leg.revision), (4, 3, 9, 2, 8));
    let owed = journal.deferred("b2", 10).unwrap();
    assert_eq!((owed.len(), owed[0].class, owed[0].attempts), (2, Class::Busy, 2));
    assert_eq!((owed[1].key.scope, &owed[1].key.handle), (Scope::Handle, &rows[1].handle));
    assert_eq!(journal.doubts("ext4 x").unwrap()[0].epoch, 12);
    let root = &journal.roots().unwrap()[0];
    assert_eq!(
        (root.name.as_str(), root.rules.as_str(), root.epoch, root.state),
        ("space", "*.tmp", 3, RootState::Ok)
    );
    assert_eq!(journal.history(10).unwrap()[0].text, "ext4 x: start");
    // And it goes on.
    Journal::create_or_open(&path).unwrap().claim("b2").unwrap();
}

#[test]
fn a_batch_and_its_mark_are_taken_together_and_the_newest_mark_of_a_filesystem_stays() {
    let World { _dir, mut journal, .. } = world();
    let mark = |epoch| IntakeMark { fs: "ext4 x".into(), buffer_id: [epoch as u8; 16], epoch };
    assert_eq!(journal.intake("ext4 x").unwrap(), None);
    for epoch in 1..4 {
        let commit = Commit { intake: Some(mark(epoch)), ..Commit::default() };
        journal.append(&mut Coalesce::default(), &commit, 0).unwrap();
        assert_eq!(journal.intake("ext4 x").unwrap(), Some(mark(epoch)));
    }
    assert_eq!(journal.intake("ext4 y").unwrap(), None);
}

#[test]
fn what_is_known_of_a_filesystem_goes_only_if_nobody_tracks_it() {
    let World { _dir, mut journal, .. } = world();
    let handle = Handle { kind: 1, bytes: vec![1] };
    for fs in ["ext4 x", "ext4 y"].map(str::to_owned) {
        let doubts = vec![Doubt { fs: fs.clone(), handle: handle.clone(), epoch: 1 }];
        let intake = Some(IntakeMark { fs, buffer_id: [1; 16], epoch: 1 });
        let commit = Commit { doubts, intake, ..Commit::default() };
        journal.append(&mut Coalesce::default(), &commit, 0).unwrap();
    }
    assert_eq!(journal.forget_filesystems(|fs| fs == "ext4 x").unwrap(), ["ext4 y"]);
    assert_eq!(journal.forget_filesystems(|fs| fs == "ext4 x").unwrap(), [""; 0]);
    let known = |fs| (journal.doubts(fs).unwrap().len(), journal.intake(fs).unwrap().is_some());
    assert_eq!((known("ext4 x"), known("ext4 y")), ((1, true), (0, false)));
}

#[test]
fn a_generation_is_of_the_mount_that_it_was_read_on_until_an_orderly_end_made_it_last() {
    let World { _dir, mut journal, root, .. } = world();
    let read = |mount| Generation { subvolume: [1; 16], inode: 256, generation: 100, mount };
    let record = |journal: &mut Journal| {
        let commit = Commit { generations: vec![(root, read(Some(7)))], ..Commit::default() };
        journal.append(&mut Coalesce::default(), &commit, 0).unwrap();
    };
    record(&mut journal);
    journal.bind_generation(root, 8).unwrap();
    journal.make_generation_last(root, 8).unwrap();
    assert_eq!(journal.generation(root).unwrap(), Some(read(Some(7))), "it is of another mount");
    journal.make_generation_last(root, 7).unwrap();
    let (session, _) = journal.begin_session("boot a", "1", 0).unwrap();
    journal.end_session(session, 1).unwrap();
    assert_eq!(journal.generation(root).unwrap(), Some(read(None)));
    journal.bind_generation(root, 8).unwrap();
    assert_eq!(journal.generation(root).unwrap(), Some(read(Some(8))));
    journal.end_session(session, 1).unwrap();
    assert_eq!(journal.generation(root).unwrap(), None, "another mount of another boot may have this number");
}

#[test]
fn a_session_knows_how_the_one_before_ended() {
    let World { _dir, mut journal, .. } = world();
    let (first, before) = journal.begin_session("boot a", "1", 0).unwrap();
    assert_eq!(before, None);
    let (_, before) = journal.begin_session("boot a", "1", 0).unwrap();
    assert_eq!(before, Some(Session { boot_id: "boot a".into(), ended: false }));
    journal.end_session(first + 1, 1).unwrap();
    let (_, before) = journal.begin_session("boot b", "1", 0).unwrap();
    assert_eq!(before, Some(Session { boot_id: "boot a".into(), ended: true }));
}
