//! Listings and single looks.

use super::*;
use crate::leg::Problem;

async fn pages(fixture: &Fixture, top: &str) -> Vec<Vec<Option<RelPath>>> {
    let mut pages = Vec::new();
    let mut next = None;
    loop {
        let page = fixture.store.list(&path(top.as_bytes()), next).await.unwrap();
        pages.push(page.objects.into_iter().map(|object| object.dest).collect());
        next = page.next;
        if next.is_none() {
            return pages;
        }
    }
}

fn some(names: &[&str]) -> Vec<Option<RelPath>> {
    names.iter().map(|name| Some(path(name.as_bytes()))).collect()
}

#[tokio::test]
async fn a_listing_comes_in_pages_and_shows_each_name_once() {
    let fixture = Fixture::tuned("mirror", tuning()).await;
    let names: Vec<_> = (0..25).map(|n| format!("d{}/f{n:02}", n / 9)).collect();
    for name in &names {
        fixture.put(name, small(b"x")).await.unwrap();
    }
    fixture.put(&names[3], small(b"newer")).await.unwrap();
    fixture.hide(&names[4]).await.unwrap();
    let pages = pages(&fixture, "").await;
    assert_eq!(pages.iter().map(Vec::len).collect::<Vec<_>>(), [10, 10, 4]);
    let expected: Vec<_> = names.iter().filter(|name| **name != names[4]).map(String::as_str).collect();
    assert_eq!(pages.concat(), some(&expected));
    fixture.check();
}

#[tokio::test]
async fn a_listing_of_a_directory_has_what_stands_at_its_name_and_below_but_no_neighbours() {
    let fixture = Fixture::new().await;
    for name in ["a", "a-b", "a/x", "a/y/z", "a0", "b"] {
        fixture.put(name, small(b"x")).await.unwrap();
    }
    assert_eq!(pages(&fixture, "a").await.concat(), some(&["a", "a/x", "a/y/z"]));
    assert_eq!(pages(&fixture, "b").await.concat(), some(&["b"]));
    assert_eq!(pages(&fixture, "none").await.concat(), some(&[]));
    for too_long_to_hold_any in [1024, 2000] {
        let before = fixture.called(Call::ListFileNames);
        assert_eq!(pages(&fixture, &"x".repeat(too_long_to_hold_any)).await.concat(), some(&[]));
        assert_eq!(fixture.called(Call::ListFileNames) - before, 1);
    }
    fixture.check();
}

#[tokio::test]
async fn what_is_listed_has_all_that_b2_says() {
    let fixture = Fixture::tuned("mirror", tuning()).await;
    let receipt = fixture.put("a\\b", small(b"hello")).await.unwrap();
    let listed = fixture.store.list(&RelPath::root(), None).await.unwrap().objects.remove(0);
    assert_eq!(listed.dest, Some(path(b"a\\b")));
    assert_eq!(listed.name, "mirror/a＼b");
    assert_eq!((listed.object, listed.sha1), (receipt.object, receipt.sha1));
    assert_eq!((listed.kind, listed.size), (Kind::File, 5));
    assert_eq!(listed.mtime_ns, Some(1_700_000_000_123_000_000));
    assert_eq!(listed.writer.as_deref(), Some("writer-1"));
}

#[tokio::test]
async fn our_own_objects_are_left_out_and_names_that_stand_apart_come_without_a_path() {
    let fixture = Fixture::tuned("mirror", tuning()).await;
    fixture.put("a", small(b"x")).await.unwrap();
    fixture.put(".longshore/head", small(b"of a user")).await.unwrap();
    // Not by way of the store: the leg's own head, and a name of somebody else.
    let other = store(&fixture.emulator, "", fixture.emulator.key(), tuning());
    other.open().await.unwrap();
    for name in ["mirror/.longshore/head", "mirror/‛x"] {
        other.put(put(path(name.as_bytes()), small(b"x"))).await.unwrap();
    }
    let objects = fixture.store.list(&RelPath::root(), None).await.unwrap().objects;
    let dests: Vec<_> = objects.iter().map(|object| object.dest.clone()).collect();
    assert_eq!(dests, [None, Some(path(b"a")), Some(path("‛x".as_bytes()))]);
    assert!(objects[0].name.starts_with("mirror/.longshore/names/"), "{}", objects[0].name);
}

#[tokio::test]
async fn a_look_at_one_name_finds_that_name_only() {
    let fixture = Fixture::new().await;
    fixture.put("a-longer", small(b"x")).await.unwrap();
    assert_eq!(fixture.store.newest(&path(b"a")).await.unwrap(), None);
    fixture.put("a", small(b"1")).await.unwrap();
    let receipt = fixture.put("a", small(b"2")).await.unwrap();
    assert_eq!(fixture.store.newest(&path(b"a")).await.unwrap().unwrap().object, receipt.object);
    fixture.hide("a").await.unwrap();
    assert_eq!(fixture.store.newest(&path(b"a")).await.unwrap(), None);
    fixture.check();
}

#[tokio::test]
async fn a_page_is_asked_for_again_after_a_fault_that_passes() {
    let fixture = Fixture::new().await;
    fixture.put("a", small(b"x")).await.unwrap();
    let faults = [
        FaultKind::answer(503, "service_unavailable"),
        FaultKind::DropAfterEffect,
        FaultKind::Answer(answer(429, "too_many_requests", Some(0))),
    ];
    fixture.faults(Call::ListFileNames, &faults);
    assert_eq!(pages(&fixture, "").await.concat(), some(&["a"]));
    assert_eq!(fixture.called(Call::ListFileNames), 4);

    let down = FaultKind::answer(500, "internal_error");
    fixture.emulator.inject(Fault { times: 99, ..Fault::next(Call::ListFileNames, down) });
    let error = fixture.store.list(&RelPath::root(), None).await.unwrap_err();
    assert_eq!((error.problem, error.outcome_unknown), (Problem::TryLater(None), false));
    assert_eq!(fixture.called(Call::ListFileNames), 9, "five attempts");
}

#[tokio::test]
async fn a_listing_is_billed_for_each_thousand() {
    let fixture = Fixture::tuned("", Tuning { page_files: 10_000, ..tuning() }).await;
    for n in 0..1001 {
        fixture.put(&format!("f{n:04}"), small(b"")).await.unwrap();
    }
    assert_eq!(pages(&fixture, "").await.concat().len(), 1001);
    assert_eq!(fixture.store.calls().class_c, 2 + 2, "authorize, list_buckets, and two for the page");
    fixture.check();
}
