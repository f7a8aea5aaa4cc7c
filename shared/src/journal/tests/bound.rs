//! The bound of the journal at its edges: who is collapsed, who is not, and what becomes of what is owed.

use super::super::bound::{bound_deferred, carry_out, plan};
use super::*;

/// Two legs that have read everything, and the names of both.
fn two_legs() -> (World, [String; 2]) {
    let mut w = world();
    for leg in ["day", "night"] {
        w.attach(leg);
        for row in w.journal.deferred(leg, 10).unwrap() {
            w.journal.settle_deferred(leg, 0, &[(row.key, row.seq)]).unwrap();
        }
    }
    (w, ["day".into(), "night".into()])
}

impl World {
    fn change_many(&mut self, names: std::ops::Range<usize>) {
        for n in names {
            self.changed(&format!("d{}/f{n}", n % 3), Mask::MODIFY, n as i64);
        }
    }

    fn ack_all(&mut self, leg: &str) {
        let head = self.journal.claim(leg).unwrap();
        self.journal.ack(leg, head, 0, &[], 0).unwrap();
    }

    fn owes(&self, leg: &str, name: &str) -> bool {
        let covers = |d: &Deferred| match d.key.scope {
            Scope::SelfOnly => d.key.path == path(name),
            _ => path(name).is_within(&d.key.path),
        };
        self.journal.deferred(leg, 1_000_000).unwrap().iter().any(covers)
    }

    fn cursor(&self, leg: &str) -> u64 {
        self.journal.leg(leg).unwrap().unwrap().cursor()
    }
}

#[test]
fn only_the_leg_that_lags_behind_is_collapsed_and_the_other_notices_nothing() {
    let (mut w, legs) = two_legs();
    w.change_many(0..40);
    w.ack_all("day");
    w.change_many(100..110);
    let before = (w.journal.leg("day").unwrap(), w.rows());
    assert_eq!(w.journal.bound(&legs, 60, 0).unwrap(), Bounded::default(), "not before it is over the bound");
    let done = w.journal.bound(&legs, 45, 0).unwrap();
    assert_eq!((done.collapses, done.dropped), (1, 41), "40 and the gap of the start");
    assert_eq!(w.journal.leg("day").unwrap(), before.0);
    assert_eq!(w.rows(), before.1[40..], "what it has not read is still there");
    assert_eq!(w.journal.deferred_count("day").unwrap(), 0);
    assert!((0..40).all(|n| w.owes("night", &format!("d{}/f{n}", n % 3))));
    let night = w.journal.leg("night").unwrap().unwrap();
    let head = w.journal.head_and_floor().unwrap().0;
    assert!(night.claimed == night.collapsed_to && night.collapsed_to < head && night.acked < 3, "{night:?}");
}

#[test]
fn what_changes_after_a_collapse_has_a_row_of_its_own() {
    let (mut w, legs) = two_legs();
    w.change_many(0..40);
    assert_eq!(w.journal.bound(&legs, 10, 0).unwrap().collapses, 2);
    assert_eq!(w.rows(), []);
    assert_eq!(w.changed("d0/f0", Mask::MODIFY, 1).rows, 1);
}

#[test]
fn a_file_without_a_usable_name_is_owed_by_its_handle() {
    let (mut w, legs) = two_legs();
    w.ack_all("night");
    w.ack_all("day");
    let file = |n: u8| Handle { kind: 1, bytes: vec![n; 8] };
    let by_handle = |n| {
        let scope = Scope::Handle;
        Change { handle: Some(file(n)), scope, mask: Mask::MODIFY, ..Change::gap(w.root, Cause::Event) }
    };
    let commit = Commit { changes: (0..6).map(by_handle).collect(), ..Commit::default() };
    w.journal.append(&mut w.set, &commit, 0).unwrap();
    assert_eq!(w.journal.bound(&legs, 4, 0).unwrap().collapses, 2);
    let owed = w.journal.deferred("night", 10).unwrap();
    assert!(!w.journal.owes("night", w.root, &RelPath::root()).unwrap(), "nobody said that of the root");
    assert_eq!(owed[0].what(), "a file without a known name");
    let mut files: Vec<_> = owed.iter().map(|row| (row.key.scope, row.key.handle.clone())).collect();
    files.sort();
    assert_eq!(files, [0, 1, 2, 3, 4, 5].map(|n| (Scope::Handle, Some(file(n)))));
    // Each is a row of its own to what comes later, too.
    w.journal.append(&mut w.set, &commit, 0).unwrap();
    assert_eq!(w.journal.bound(&legs, 4, 0).unwrap().collapses, 2);
    assert_eq!(w.journal.deferred_count("night").unwrap(), 6);
    assert_eq!(w.journal.settle_deferred("night", 0, &[(owed[2].key.clone(), owed[2].seq)]).unwrap(), 0);
    let renewed = w.journal.deferred("night", 10).unwrap().swap_remove(2);
    assert_eq!(w.journal.settle_deferred("night", 0, &[(renewed.key, renewed.seq)]).unwrap(), 1);
    assert_eq!(w.journal.deferred_count("night").unwrap(), 5);
    // And the bound of what is owed is kept.
    w.journal.write("bound", |tx| bound_deferred(tx, "night", 4)).unwrap();
    let owed = w.journal.deferred("night", 10).unwrap();
    assert_eq!((owed.len(), owed[0].key.scope, &owed[0].key.path), (1, Scope::Subtree, &RelPath::root()));
}

#[test]
fn a_run_in_progress_goes_on_and_its_ack_loses_nothing() {
    let (mut w, legs) = two_legs();
    w.change_many(0..20);
    let head = w.journal.claim("night").unwrap();
    let first = w.journal.read(w.cursor("night"), head, 10).unwrap();
    assert_eq!(first.len(), 10);
    assert_eq!(w.journal.bound(&legs, 5, 0).unwrap().collapses, 2);
    assert_eq!(w.journal.read(first[9].seq, head, 10).unwrap(), [], "the rest of its rows went meanwhile");
    w.journal.ack("night", head, 0, &[owed(w.root, "d0/f0", head, 0)], 0).unwrap();
    assert!((0..20).all(|n| w.owes("night", &format!("d{}/f{n}", n % 3))));
    let facts =
        CatalogFacts { catalog_id: [7; 16], journal_id: Some(w.journal.id()), acked: head, revision: 1 };
    let roots = [LegRootFacts { id: w.root, attended: Some(head) }];
    assert_eq!(w.journal.attach_leg("night", &facts, &roots, 0).unwrap().full_pass, None);
}

#[test]
fn a_leg_that_acks_while_its_rows_are_looked_at_is_left_alone() {
    let (mut w, legs) = two_legs();
    w.change_many(0..20);
    let planned = w.journal.conn.transaction().and_then(|tx| plan(&tx, &legs, 5)).unwrap().unwrap();
    w.ack_all("day");
    let done = w.journal.write("collapse", |tx| carry_out(tx, &planned, &legs, 0)).unwrap();
    assert_eq!(done.collapses, 1);
    let (day, night) = (w.journal.leg("day").unwrap().unwrap(), w.journal.leg("night").unwrap().unwrap());
    assert_eq!((day.collapsed_to, w.journal.deferred_count("day").unwrap()), (0, 0));
    assert!(night.collapsed_to > 0);
}

#[test]
fn a_row_that_a_run_works_off_is_renewed_by_a_collapse() {
    let (mut w, legs) = two_legs();
    let many = |w: &mut World| {
        let names = (0..=limits::COLLAPSE_ROWS_MAX).map(|n| path(&format!("d/f{n}")));
        let change = |path| Change { path, scope: Scope::SelfOnly, ..Change::gap(w.root, Cause::Event) };
        let commit = Commit { changes: names.map(change).collect(), ..Commit::default() };
        w.journal.append(&mut w.set, &commit, 0).unwrap();
    };
    many(&mut w);
    w.journal.bound(&legs, 10, 0).unwrap();
    let due = w.journal.deferred_due("night", w.root, 10, 10).unwrap();
    assert_eq!((due.len(), due[0].key.path.to_string()), (1, "d".to_owned()));
    many(&mut w);
    w.journal.bound(&legs, 10, 0).unwrap();
    assert_eq!(w.journal.settle_deferred("night", 0, &[(due[0].key.clone(), due[0].seq)]).unwrap(), 0);
    assert!(w.owes("night", "d/f7"));
}

#[test]
fn legs_that_never_ran_or_left_hold_nothing_back() {
    let (mut w, _) = two_legs();
    w.change_many(0..20);
    let done = w.journal.bound(&["never-ran".into()], 5, 0).unwrap();
    assert_eq!((done.collapses, done.dropped), (1, 21));
    assert_eq!(w.journal.deferred_count("night").unwrap(), 0, "who left is owed nothing");
    let floor = w.journal.head_and_floor().unwrap().1;
    assert!(w.cursor("night") < floor, "its next run is a full pass");
    w.change_many(0..20);
    assert_eq!(w.rows().len(), 20, "nothing that went covers what comes");
    let legs = ["night".to_owned()];
    w.journal.bound(&legs, 5, 0).unwrap();
    assert!(w.cursor("night") < floor, "a collapse must not hide that");
}

#[test]
fn a_leg_that_reads_all_the_time_does_not_fill_the_journal_of_one_that_reads_at_night() {
    let (mut w, legs) = two_legs();
    for round in 0..200 {
        for n in 0..5 {
            w.changed(&format!("f{n}"), Mask::MODIFY, round);
        }
        w.ack_all("day");
        w.journal.prune(&legs).unwrap();
    }
    assert_eq!(w.rows().len(), 5);
    w.ack_all("night");
    w.journal.prune(&legs).unwrap();
    assert_eq!(w.rows(), []);
}

#[test]
fn what_a_leg_owes_of_a_root_that_is_not_ok_is_one_row() {
    let (mut w, _) = two_legs();
    let rows: Vec<_> = (0..50).map(|n| owed(w.root, &format!("d/f{n}"), 1, 100 + n)).collect();
    w.journal.defer("night", &rows).unwrap();
    w.journal.set_root_state(w.root, RootState::Ok, "test", 0).unwrap();
    assert_eq!(w.journal.gather_roots_not_ok().unwrap(), 0);
    assert_eq!(w.journal.deferred_count("night").unwrap(), 50);
    w.journal.set_root_state(w.root, RootState::Missing, "test", 0).unwrap();
    assert_eq!(w.journal.gather_roots_not_ok().unwrap(), 1);
    let left = w.journal.deferred("night", 10).unwrap();
    let seen = (left.len(), &left[0].key.path, left[0].key.scope, left[0].class, left[0].since_ns);
    assert_eq!(seen, (1, &RelPath::root(), Scope::Subtree, Class::Root, 100));
    assert_eq!(w.journal.gather_roots_not_ok().unwrap(), 0, "one row is one row");
    // A full pass that was asked for is not lost in it.
    w.journal.request_full_pass("night", w.root, 5, "it was asked for").unwrap();
    assert_eq!(w.journal.gather_roots_not_ok().unwrap(), 1);
    let left = w.journal.deferred("night", 10).unwrap();
    assert_eq!((left.len(), left[0].key.scope, left[0].since_ns), (1, Scope::Full, 5));
}

#[test]
fn what_a_leg_owes_has_a_bound_and_what_fails_goes_on_to_count_as_failing() {
    let (mut w, _) = two_legs();
    let (class, last_error) = (Class::Error, "Permission denied".to_owned());
    let row = |n: i64| NewDeferred {
        class,
        last_error: last_error.clone(),
        ..owed(w.root, &format!("d/f{n}"), 1, n)
    };
    let rows: Vec<_> = (0..200).map(row).collect();
    w.journal.defer("night", &rows).unwrap();
    w.journal.request_full_pass("night", w.root, 5, "it was asked for").unwrap();
    let full = w.journal.deferred("night", 300).unwrap().into_iter().find(|d| d.key.scope == Scope::Full);
    w.journal.write("bound", |tx| bound_deferred(tx, "night", 100)).unwrap();
    let left = w.journal.deferred("night", 300).unwrap();
    assert_eq!(
        left.iter().find(|d| d.key.scope == Scope::Full),
        full.as_ref(),
        "a full pass stays as it was"
    );
    let rest: Vec<_> = left.iter().filter(|d| d.key.scope != Scope::Full).collect();
    assert_eq!(
        (rest.len(), rest[0].key.path.to_string(), rest[0].class, rest[0].since_ns),
        (1, "d".into(), Class::Error, 0)
    );
    assert!(rest[0].last_error.contains("Permission denied"), "{}", rest[0].last_error);
    assert_eq!(
        w.journal.settle_deferred("night", 0, &[(rest[0].key.clone(), 1)]).unwrap(),
        0,
        "it is renewed"
    );
}

#[test]
fn a_path_that_waits_takes_at_most_two_hundred_bytes_on_disk() {
    let mut w = world();
    // 79 bytes: longer than what a system's own files have on average (60 in /usr).
    let name = |n: usize| {
        path(&format!("projects/customer-{:03}/documents/2026/quarterly-report-{n:08}-final.ods", n % 500))
    };
    let change = |n| Change { path: name(n), scope: Scope::SelfOnly, ..Change::gap(w.root, Cause::Event) };
    let commit = Commit { changes: (0..20_000).map(change).collect(), ..Commit::default() };
    w.journal.append(&mut w.set, &commit, 1_700_000_000_000_000_000).unwrap();
    let (_, bytes) = w.journal.vacuum().unwrap();
    println!("{} bytes for each", bytes / 20_000);
    assert!(bytes <= 20_000 * 200, "{bytes}");
}

#[test]
fn what_is_owed_by_handle_is_shown_after_what_has_a_name() {
    let (mut w, _) = two_legs();
    let named = owed(w.root, "named", 1, 9);
    let by_handle = |n| NewDeferred {
        handle: Some(Handle { kind: 1, bytes: vec![n] }),
        scope: Scope::Handle,
        path: RelPath::root(),
        ..owed(w.root, "", 1, 1)
    };
    let rows: Vec<NewDeferred> = (0..5).map(by_handle).chain([named]).collect();
    w.journal.defer("night", &rows).unwrap();
    let shown: Vec<String> = w.journal.deferred("night", 3).unwrap().iter().map(Deferred::what).collect();
    assert_eq!(shown, ["named", "a file without a known name", "a file without a known name"]);
}
