//! What the trait of destinations promises, asked of the simulated stores and of the real ones alike: the simulated
//! ones must answer as the real ones do.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod faults;
mod histories;
mod subject;

use std::collections::BTreeSet;
use std::fs;

use shared::exit::Exit;
use shared::path::RelPath;
use simulation::store::lock;
use subject::{
    MTIME_NS, Manner, Subject, World, all, buckets, directories, hex, of, p, small, stat, streamed, wait,
};
use syncer::leg::{Listed, Problem, Put, What};
use syncer::tree::{Kind, Xattrs};

fn newest(subject: &Subject, path: &str) -> Option<Listed> {
    wait(subject.store.newest(&p(path))).unwrap()
}

#[test]
fn the_identity_is_that_of_the_place_and_no_other_has_it() {
    for (subject, other) in all().into_iter().zip(all()) {
        let name = subject.name();
        let again = subject.world.store("", "another");
        wait(again.open()).unwrap();
        assert_eq!(again.identity(), subject.store.identity(), "{name}");
        assert!(!again.identity().is_empty(), "{name}");
        if let World::B2 { .. } | World::Dir { .. } = subject.world {
            // What stands for another place in a simulation is made by the one who asks for it.
            assert!(matches!(subject.world, World::B2 { .. }) || other.store.identity() != again.identity());
        }
    }
}

#[test]
fn both_of_a_kind_hold_the_same() {
    for [simulated, real] in [buckets(""), directories()] {
        assert_eq!(simulated.store.holds(), real.store.holds());
        assert_eq!(simulated.store.notes(), real.store.notes());
    }
}

#[test]
fn a_receipt_names_what_a_look_and_a_listing_then_show() {
    for subject in all() {
        let (name, holds) = (subject.name(), subject.store.holds());
        let receipt = wait(subject.store.put(small("f", b"content", MTIME_NS))).unwrap();
        assert_eq!(receipt.sha1.map(|s| hex(&s)[..8].to_owned()), Some("040f06fd".into()), "{name}");
        let found = newest(&subject, "f").unwrap();
        assert_eq!((&found.object, found.size, found.kind), (&receipt.object, 7, Kind::File), "{name}");
        let time = if holds.nanoseconds { MTIME_NS } else { MTIME_NS / 1_000_000 * 1_000_000 };
        assert_eq!(found.mtime_ns, Some(time), "{name}");
        assert_eq!(found.writer.is_some(), holds.writers, "{name}");
        assert_eq!(found.sha1, receipt.sha1.filter(|_| holds.writers), "{name}");
        let listed = subject.objects("").unwrap();
        assert_eq!(listed.last(), Some(&found), "{name}");
        assert_eq!(newest(&subject, "f"), Some(found), "{name}: nobody touched it");
    }
}

#[test]
fn a_time_before_1970_is_rounded_as_the_real_one_does() {
    for subject in all() {
        wait(subject.store.put(small("f", b"", -1_500_000_001))).unwrap();
        let time = if subject.store.holds().nanoseconds { -1_500_000_001 } else { -1_501_000_000 };
        assert_eq!(newest(&subject, "f").unwrap().mtime_ns, Some(time), "{}", subject.name());
    }
}

#[test]
fn each_put_makes_another_version_under_the_one_name() {
    for subject in all() {
        let mut objects = BTreeSet::new();
        for content in ["one", "one", "two"] {
            let receipt = wait(subject.store.put(small("f", content.as_bytes(), MTIME_NS))).unwrap();
            assert_eq!(newest(&subject, "f").unwrap().object, receipt.object, "{}", subject.name());
            objects.insert(receipt.object);
        }
        assert_eq!(objects.len(), 3, "{}", subject.name());
        let names = subject.objects("").unwrap().into_iter().filter(|o| o.kind == Kind::File).count();
        assert_eq!(names, 1, "{}", subject.name());
    }
}

#[test]
fn what_is_removed_is_gone_and_what_is_gone_is_removed() {
    for mut subject in all() {
        wait(subject.store.put(small("f", b"x", MTIME_NS))).unwrap();
        for path in ["f", "f", "never", "never/below"] {
            assert_eq!(subject.remove(path, Kind::File), "removed", "{}", subject.name());
            assert_eq!(newest(&subject, path), None, "{}", subject.name());
        }
        let left = subject.objects("").unwrap();
        assert!(left.iter().all(|o| o.dest == Some(RelPath::root())), "{}", subject.name());
    }
}

#[test]
fn content_that_is_read_by_the_store_is_the_same_as_content_read_before() {
    let bytes: Vec<u8> = (0..700_000u32).map(|n| (n % 251) as u8).collect();
    for content in [&b""[..], b"x", &bytes] {
        for subject in all() {
            let before = wait(subject.store.put(small("f", content, MTIME_NS))).unwrap();
            let read = wait(subject.store.put(streamed("g", content, MTIME_NS, Manner::Still))).unwrap();
            assert_eq!(before.sha1, read.sha1, "{}", subject.name());
            assert_eq!(newest(&subject, "g").unwrap().size, content.len() as u64, "{}", subject.name());
        }
    }
}

#[test]
fn a_source_that_moves_shrinks_or_fails_leaves_the_old_version() {
    let manners = [
        (Manner::Moves, Problem::Busy),
        (Manner::Shrinks, Problem::Busy),
        (Manner::Fails, Problem::Unreadable),
    ];
    for (manner, problem) in manners {
        for subject in all() {
            let old = wait(subject.store.put(small("f", b"old", MTIME_NS))).unwrap();
            let put = streamed("f", &[7; 600_000], MTIME_NS, manner);
            let error = wait(subject.store.put(put)).unwrap_err();
            assert_eq!((&error.problem, error.outcome_unknown), (&problem, false), "{}", subject.name());
            assert_eq!(newest(&subject, "f").unwrap().object, old.object, "{}", subject.name());
        }
    }
}

#[test]
fn a_file_whose_size_is_not_the_one_of_its_look_is_busy_in_a_directory() {
    let answers = directories().map(|mut subject| {
        let mut put = small("f", b"longer", MTIME_NS);
        put.stat.size = 3;
        subject.put(put)
    });
    assert_eq!(answers[0], answers[1]);
    assert!(answers[0].contains("Busy"), "{}", answers[0]);
}

#[test]
fn a_listing_is_in_order_whole_and_of_what_lies_at_and_below_its_top() {
    let paths = ["a", "a-b", "d", "d-e", "d/a", "d/a-b", "d/b", "d0", "e", "z"];
    for [mut simulated, mut real] in [buckets(""), directories()] {
        for subject in [&mut simulated, &mut real] {
            let all_kinds = subject.store.holds().all_kinds;
            if all_kinds {
                for dir in ["d", "z"] {
                    wait(subject.store.put(of(dir, Kind::Dir, MTIME_NS, What::Dir))).unwrap();
                }
            }
            for path in paths.iter().filter(|path| !all_kinds || !["d", "z"].contains(path)) {
                wait(subject.store.put(small(path, path.as_bytes(), MTIME_NS))).unwrap();
            }
        }
        for top in ["", "a", "d", "d/a", "d/none", "z", "none"] {
            assert_eq!(simulated.list(top), real.list(top), "`{top}` of {}", real.name());
        }
        let objects = simulated.objects("d").unwrap();
        let found: Vec<_> = objects.iter().map(|object| object.name.as_str()).collect();
        assert_eq!(found, ["d", "d/a", "d/a-b", "d/b"]);
    }
}

#[test]
fn pages_of_any_size_add_up_to_the_whole_listing() {
    for mut subject in all().into_iter().filter(|s| !matches!(s.world, World::B2 { .. })) {
        let dirs = subject.store.holds().all_kinds;
        for dir in 0..7 {
            if dirs {
                let put = of(&format!("d{dir}"), Kind::Dir, MTIME_NS, What::Dir);
                wait(subject.store.put(put)).unwrap();
            }
            for file in 0..150 {
                let path = format!("d{dir}/f{file:03}");
                wait(subject.store.put(small(path, b"", MTIME_NS))).unwrap();
            }
        }
        let whole = subject.list("");
        assert_eq!(whole.lines().count(), 1_050 + if dirs { 8 } else { 0 }, "{}", subject.name());
        for size in [1, 2, 7, 149, 150, 151] {
            match &subject.world {
                World::SimB2 { bucket, .. } => lock(bucket).page_files = size,
                World::SimDir { place, .. } => lock(place).page_objects = size,
                World::B2 { .. } | World::Dir { .. } => {}
            }
            assert_eq!(subject.list(""), whole, "{} by {size}", subject.name());
        }
    }
}

#[test]
fn a_page_goes_on_behind_its_token_whatever_was_listed_meanwhile() {
    let pages = directories().map(|subject| {
        if let World::SimDir { place, .. } = &subject.world {
            lock(place).page_objects = 1_000;
        }
        for dir in ["a", "b"] {
            wait(subject.store.put(of(dir, Kind::Dir, MTIME_NS, What::Dir))).unwrap();
            for file in 0..600 {
                wait(subject.store.put(small(format!("{dir}/f{file:03}"), b"", MTIME_NS))).unwrap();
            }
        }
        let first = wait(subject.store.list(&RelPath::root(), None)).unwrap();
        // Another listing drops the walk that was paused.
        wait(subject.store.list(&p("a"), None)).unwrap();
        let second = wait(subject.store.list(&RelPath::root(), first.next.clone())).unwrap();
        let names = |objects: &[Listed]| objects.iter().map(|o| o.name.clone()).collect::<Vec<_>>();
        (first.next, names(&first.objects), names(&second.objects), second.next)
    });
    assert_eq!(pages[0], pages[1]);
}

#[test]
fn what_is_made_behind_a_walk_is_not_seen_and_what_is_removed_before_it_neither() {
    let seconds = directories().map(|mut subject| {
        wait(subject.store.put(of("b", Kind::Dir, MTIME_NS, What::Dir))).unwrap();
        for file in 0..1_100 {
            wait(subject.store.put(small(format!("b/f{file:04}"), b"", MTIME_NS))).unwrap();
        }
        let first = wait(subject.store.list(&RelPath::root(), None)).unwrap();
        wait(subject.store.put(small("b/f1050-new", b"", MTIME_NS))).unwrap();
        wait(subject.store.put(small("c", b"", MTIME_NS))).unwrap();
        subject.remove("b/f1051", Kind::File);
        let second = wait(subject.store.list(&RelPath::root(), first.next)).unwrap();
        second.objects.into_iter().map(|o| o.name).collect::<Vec<_>>()
    });
    assert_eq!(seconds[0], seconds[1]);
    assert!(!seconds[0].iter().any(|name| name == "b/f1050-new" || name == "b/f1051" || name == "c"));
}

#[test]
fn odd_names_are_held_and_those_that_cannot_be_stand_apart_or_are_refused() {
    let mut names: Vec<Vec<u8>> = ["new\nline", "back\\slash", "‛x", "␊", "．", "ü", "a+b%20", ".longshore2"]
        .map(|name| name.as_bytes().to_vec())
        .into();
    names.extend([b"bad\xff".to_vec(), vec![b'x'; 255], vec![b'x'; 256], vec![0xff; 255]]);
    for prefix in ["", "mir\\ror"] {
        for [mut simulated, mut real] in [buckets(prefix), directories()] {
            for name in &names {
                let put = || small(name, b"x", MTIME_NS);
                assert_eq!(simulated.put(put()), real.put(put()), "{name:?}");
                assert_eq!(simulated.newest(&p(name)), real.newest(&p(name)), "{name:?}");
            }
            assert_eq!(simulated.list(""), real.list(""));
            assert_eq!(simulated.list("none"), real.list("none"));
            assert_eq!(simulated.store.notes(), real.store.notes());
            for name in &names {
                let remove = |subject: &mut Subject| {
                    let kind = Kind::File;
                    let remove = syncer::leg::Remove { dest: p(name), kind, object: String::new() };
                    wait(subject.store.remove(remove)).map_err(|e| e.problem)
                };
                assert_eq!(remove(&mut simulated), remove(&mut real), "{name:?}");
            }
            assert_eq!(simulated.list(""), real.list(""));
        }
    }
}

#[test]
fn the_reserved_directory_of_a_tree_stands_apart_at_b2() {
    let [mut simulated, mut real] = buckets("m");
    for subject in [&mut simulated, &mut real] {
        for path in ["a", ".longshore/head", ".longshore"] {
            wait(subject.store.put(small(path, b"of a user", MTIME_NS))).unwrap();
        }
        // Not by way of the leg: its own head, and names of somebody else.
        let other = subject.world.store("", "other");
        wait(other.open()).unwrap();
        for name in ["m/.longshore2", "m/b", "n/c", "m"] {
            wait(other.put(small(name, b"x", MTIME_NS))).unwrap();
        }
    }
    assert_eq!(simulated.list(""), real.list(""));
    assert_eq!(simulated.list(".longshore"), real.list(".longshore"));
    assert_eq!(simulated.store.notes(), real.store.notes());
    assert_eq!(simulated.remains(), real.remains());
    let apart = simulated.objects("").unwrap().into_iter().filter(|o| o.dest.is_none()).count();
    assert_eq!(apart, 2);
}

#[test]
fn what_our_own_directory_holds_at_a_directory_has_no_trash_and_makes_its_parents() {
    let remains = directories().map(|mut subject| {
        for _ in 0..2 {
            wait(subject.store.put(small(".longshore/segments/head", b"1", MTIME_NS))).unwrap();
        }
        wait(subject.store.put(small(".longshore/x", b"1", MTIME_NS))).unwrap();
        assert_eq!(subject.remove(".longshore/x", Kind::File), "removed");
        subject.remains()
    });
    assert_eq!(remains[0], remains[1]);
}

#[test]
fn only_content_of_files_goes_to_b2() {
    let answers = buckets("").map(|mut subject| {
        let symlink = What::Symlink { target: b"t".to_vec() };
        let other = [(Kind::Dir, What::Dir), (Kind::Symlink, symlink), (Kind::File, What::Attributes)];
        let answers = other.map(|(kind, what)| subject.put(of("x", kind, MTIME_NS, what)));
        (answers, subject.store.calls())
    });
    assert_eq!(answers[0], answers[1]);
    assert!(answers[0].0[0].contains("Unfit"), "{:?}", answers[0]);
}

#[test]
fn attributes_come_after_content_and_change_the_version_with_the_time() {
    let remains = directories().map(|mut subject| {
        wait(subject.store.put(of("d", Kind::Dir, MTIME_NS, What::Dir))).unwrap();
        let mut answers = vec![subject.put(small("d/f", b"content", MTIME_NS))];
        for (mode, time) in [(0o4755, MTIME_NS), (0o600, MTIME_NS + 1)] {
            let put = small("d/f", b"content", time);
            let mut put = Put { what: What::Attributes, xattrs: Xattrs::new(), ..put };
            put.stat.mode = mode;
            answers.push(subject.put(put));
        }
        let mut dir = of("d", Kind::Dir, 5, What::Attributes);
        dir.stat.mode = 0o2750;
        answers.push(subject.put(dir));
        let time = newest(&subject, "d").unwrap().mtime_ns;
        assert_eq!(time, Some(5), "{}", subject.name());
        wait(subject.store.put(small("d/g", b"", MTIME_NS))).unwrap();
        let moved = newest(&subject, "d").unwrap().mtime_ns;
        assert!(moved > Some(5), "a directory's time changes with its content: {}", subject.name());
        answers.push(subject.put(of("none", Kind::File, 5, What::Attributes)));
        answers.push(subject.put(of("d", Kind::File, 5, What::Attributes)));
        (answers, subject.remains())
    });
    assert_eq!(remains[0], remains[1]);
}

#[test]
fn a_directory_is_for_one_run_at_a_time_and_must_be_there() {
    let problems = directories().map(|subject| {
        let second = subject.world.store("", "w");
        wait(second.open()).unwrap();
        let locked = wait(second.prepare()).unwrap_err().problem;
        let Subject { world, store, .. } = subject;
        drop((store, second));
        let third = world.store("", "w");
        wait(third.open()).unwrap();
        wait(third.prepare()).unwrap();
        drop(third);
        match &world {
            World::SimDir { place, .. } => lock(place).present = false,
            World::Dir { temp } => fs::remove_dir_all(temp.path().join("dest")).unwrap(),
            World::SimB2 { .. } | World::B2 { .. } => unreachable!(),
        }
        (locked, wait(world.store("", "w").open()).unwrap_err().problem)
    });
    assert_eq!(problems[0], problems[1]);
    assert_eq!(problems[0], (Problem::Stop(Exit::TryLater), Problem::Stop(Exit::Config)));
}

#[test]
fn a_directory_made_anew_is_not_said_to_be_another_by_its_kind_alone() {
    let answers = directories().map(|mut subject| {
        let put = || of("d", Kind::Dir, MTIME_NS, What::Dir);
        let first = wait(subject.store.put(put())).unwrap();
        let again = wait(subject.store.put(put())).unwrap();
        assert_eq!(first, again, "it stands: {}", subject.name());
        assert_eq!(newest(&subject, "d").unwrap().object, first.object);
        assert_eq!(stat(Kind::Dir, 0, 0).kind, newest(&subject, "d").unwrap().kind);
        subject.remove("d", Kind::Dir)
    });
    assert_eq!(answers[0], answers[1]);
}
