//! Kills, power cuts, late effects, foreign hands, and what is written down of them.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use shared::clock::Clock;
use shared::exit::Exit;
use shared::path::RelPath;
use syncer::leg::{Problem, Put, Receipt, Remove, Store, StoreError, What};
use syncer::tree::{Kind, Stat, Xattrs};

use super::b2::{SimB2, mirrored};
use super::bucket::{Bucket, Object, complete_late};
use super::dir::{Setup, SimDir};
use super::directory::Directory;
use super::*;
use crate::fate::{Fate, Fault, Killed, die};
use crate::random::Random;

const HOUR_NS: i64 = 3_600 * 1_000_000_000;
const NOW_NS: i64 = 1_795_176_000 * 1_000_000_000;

/// Faults that were asked for, each once, and a kill at the pass of that number.
#[derive(Default)]
struct Script {
    faults: Mutex<Vec<Fault>>,
    passes: AtomicUsize,
    kill_at: AtomicUsize,
    picks: Mutex<Vec<u64>>,
}

impl Fate for Script {
    fn pass(&self, _: &'static str) {
        if self.passes.fetch_add(1, Ordering::Relaxed) + 1 == self.kill_at.load(Ordering::Relaxed) {
            die();
        }
    }

    fn strikes(&self, fault: Fault) -> bool {
        let mut faults = lock(&self.faults);
        let at = faults.iter().position(|f| *f == fault);
        at.map(|at| faults.remove(at)).is_some()
    }

    fn pick(&self, n: u64) -> u64 {
        let mut picks = lock(&self.picks);
        if picks.is_empty() { 0 } else { picks.remove(0).min(n.saturating_sub(1)) }
    }
}

struct Time(AtomicI64);

impl Clock for Time {
    fn wall_ns(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }

    fn boot_ns(&self) -> i64 {
        self.wall_ns() - NOW_NS
    }
}

/// Both destinations, and what their stores are made of.
struct Scene {
    bucket: Shared<Bucket>,
    place: Shared<Directory>,
    fate: Arc<Script>,
    watch: Watch,
    clock: Arc<Time>,
}

fn scene() -> Scene {
    Scene {
        bucket: shared(Bucket::new("b1")),
        place: shared(Directory::new("1", NOW_NS)),
        fate: Arc::default(),
        watch: Watch::silent(),
        clock: Arc::new(Time(AtomicI64::new(NOW_NS))),
    }
}

impl Scene {
    fn b2(&self) -> SimB2 {
        let (bucket, top) = (self.bucket.clone(), RelPath::root());
        let store = SimB2::new(bucket, &top, "w1", self.clock.clone(), self.fate.clone(), self.watch.clone());
        wait(store.open()).unwrap();
        store
    }

    fn dir(&self, run: u64) -> SimDir {
        let setup = Setup { run, trash_days: 30, clock: self.clock.clone() };
        let store = SimDir::new(self.place.clone(), setup, self.fate.clone(), self.watch.clone());
        wait(store.open()).unwrap();
        wait(store.prepare()).unwrap();
        store
    }

    fn strike(&self, fault: Fault) {
        lock(&self.fate.faults).push(fault);
    }

    fn moments(&self, asked: Asked) -> Vec<Moment> {
        let seen = self.watch.seen();
        seen.calls.iter().filter(|call| call.asked == asked).map(|call| call.moment.clone()).collect()
    }

    /// What the directory holds, and whether it is what was sent.
    fn files(&self) -> BTreeMap<String, bool> {
        let place = lock(&self.place);
        let files = place.tree().filter_map(|(path, _, node)| Some((path, node.content.clone()?)));
        files.map(|(path, content)| (path.to_string(), content.bytes.unwrap() != vec![0; 7])).collect()
    }
}

fn wait<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(work)
}

fn p(path: &str) -> RelPath {
    RelPath::parse(path.as_bytes()).unwrap()
}

fn stat(size: u64) -> Stat {
    let mtime_ns = NOW_NS - HOUR_NS;
    Stat {
        kind: Kind::File,
        size,
        mtime_ns,
        ctime_ns: mtime_ns,
        btime_ns: None,
        ino: 1,
        mode: 0o600,
        uid: 0,
        gid: 0,
        nlink: 1,
        rdev: 0,
    }
}

#[derive(Debug)]
struct Nothing(Stat);

impl syncer::tree::SourceFile for Nothing {
    fn stat(&self) -> &Stat {
        &self.0
    }

    fn read_at(&self, _: &mut [u8], _: u64) -> std::io::Result<usize> {
        Ok(0)
    }

    fn next_data(&self, _: u64) -> std::io::Result<Option<std::ops::Range<u64>>> {
        Ok(None)
    }

    fn unchanged(&self) -> std::io::Result<bool> {
        Ok(true)
    }
}

fn file(dest: &str, bytes: &'static [u8]) -> Put {
    let stat = stat(bytes.len() as u64);
    let small = Some((bytes.into(), Content::of(bytes).sha1));
    let body = syncer::leg::Body { file: Arc::new(Nothing(stat)), small };
    Put { dest: p(dest), what: What::File(body), stat, xattrs: Xattrs::new() }
}

fn put(store: &dyn Store, dest: &str, bytes: &'static [u8]) -> Result<Receipt, StoreError> {
    wait(store.put(file(dest, bytes)))
}

fn remove(store: &dyn Store, dest: &str) -> Result<(), StoreError> {
    wait(store.remove(Remove { dest: p(dest), kind: Kind::File, object: "known".into() }))
}

#[test]
fn a_power_cut_keeps_the_first_changes_since_the_last_sync_and_may_empty_what_is_new() {
    let scene = scene();
    let store = scene.dir(1);
    put(&store, "kept", b"content").unwrap();
    wait(store.sync()).unwrap();
    put(&store, "first", b"content").unwrap();
    let after_first = lock(&scene.place).unsynced_count();
    put(&store, "second", b"content").unwrap();
    remove(&store, "kept").unwrap();
    let lost = (lock(&scene.place).unsynced_count() - after_first) as u64;
    lock(&scene.place).power_cut(|n| if n == 2 { 1 } else { lost });
    assert_eq!(scene.files(), BTreeMap::from([("first".into(), false), ("kept".into(), true)]));
    let error = put(&store, "third", b"content").unwrap_err();
    assert_eq!(error.problem, Problem::TryLater(None), "this run does not see the disk any more");
    drop(store);
    put(&scene.dir(2), "third", b"content").unwrap();
}

#[test]
fn nothing_that_was_synced_is_lost_whatever_the_power_cut_picks() {
    for seed in 0..200 {
        let (scene, mut random) = (scene(), Random::new(seed));
        let store = scene.dir(1);
        for name in ["a", "b", "c", "b", "a"] {
            put(&store, name, b"content").unwrap();
        }
        remove(&store, "c").unwrap();
        wait(store.sync()).unwrap();
        let synced = format!("{:?}", lock(&scene.place).everything().collect::<Vec<_>>());
        for name in ["a", "d", "c"] {
            put(&store, name, b"changed").unwrap();
        }
        lock(&scene.place).power_cut(|n| if n > 2 { n - 1 } else { random.below(n) });
        assert_eq!(format!("{:?}", lock(&scene.place).everything().collect::<Vec<_>>()), synced);
    }
}

#[test]
fn a_kill_anywhere_in_a_put_leaves_the_old_or_the_new_version_and_the_next_run_cleans_up() {
    let mut kills = 0;
    for kill_at in 1.. {
        let scene = scene();
        let store = scene.dir(1);
        put(&store, "f", b"one").unwrap();
        scene.fate.kill_at.store(scene.fate.passes.load(Ordering::Relaxed) + kill_at, Ordering::Relaxed);
        let put_again = catch_unwind(AssertUnwindSafe(|| put(&store, "f", b"two")));
        scene.fate.kill_at.store(0, Ordering::Relaxed);
        drop(store);
        let store = scene.dir(2);
        let (place, old) = (lock(&scene.place), Content::of("one").sha1);
        let standing = place.look(&p("f")).unwrap().1.content.as_ref().unwrap().sha1;
        assert!([old, Content::of("two").sha1].contains(&standing));
        assert!(place.everything().all(|(path, ..)| path.parent() != Some(p(".longshore/tmp"))));
        drop((place, store));
        let Err(killed) = put_again else { break };
        assert!(killed.is::<Killed>());
        let abandoned = |m: &Moment| matches!(m, Moment::Abandoned { .. });
        assert!(scene.moments(Asked::File).iter().any(abandoned));
        kills += 1;
    }
    assert!(kills >= 4, "{kills}");
}

#[test]
fn the_hook_sees_a_change_before_it_takes_effect_and_may_look_at_the_store() {
    let base = scene();
    let (bucket, known) = (base.bucket.clone(), Arc::new(Mutex::new(Vec::new())));
    let notes = known.clone();
    let watch = Watch::new(Arc::new(move |call: &Call| {
        let stands = lock(&bucket).at(call.dest.as_path().to_str().unwrap()).is_some();
        lock(&notes).push((call.moment.clone(), call.object.is_empty(), stands));
    }));
    let scene = Scene { watch, ..base };
    let store = scene.b2();
    put(&store, "f", b"one").unwrap();
    remove(&store, "f").unwrap();
    let answered = Moment::Answered { effect: true, problem: None, outcome_unknown: false };
    let expected = [
        (Moment::Begins, true, false),
        (Moment::BeforeEffect, true, false),
        (answered.clone(), false, true),
        (Moment::Begins, false, true),
        (Moment::BeforeEffect, false, true),
        (answered, true, false),
    ];
    assert_eq!(*lock(&known), expected);
    let seen = scene.watch.seen();
    assert_eq!(seen.counts[&Asked::File], 1);
    let steps: Vec<u64> = seen.calls.iter().map(|call| call.step).collect();
    assert!(steps.is_sorted() && steps[0] == 1, "{steps:?}");
}

#[test]
fn two_requests_for_one_path_at_the_same_time_are_noted() {
    let scene = scene();
    for store in [&scene.b2() as &dyn Store, &scene.dir(1)] {
        wait(async { tokio::join!(store.put(file("f", b"1")), store.put(file("g", b"2"))) }).0.unwrap();
        assert_eq!(scene.watch.seen().violations, [""; 0]);
        wait(async { tokio::join!(store.put(file("f", b"1")), store.put(file("f", b"2"))) }).0.unwrap();
        assert_eq!(scene.watch.seen().violations.drain(..).count(), 1);
    }
}

#[test]
fn a_late_upload_is_the_newest_version_and_is_told() {
    let scene = scene();
    let store = scene.b2();
    scene.strike(Fault::B2Late);
    let error = put(&store, "f", b"late").unwrap_err();
    assert_eq!((error.outcome_unknown, error.problem), (true, Problem::TryLater(None)));
    let known = put(&store, "f", b"in time").unwrap();
    assert_eq!(lock(&scene.bucket).late_names().collect::<Vec<_>>(), ["f"]);
    assert!(complete_late(&scene.bucket, &scene.watch, NOW_NS, |n| n - 1));
    assert!(!complete_late(&scene.bucket, &scene.watch, NOW_NS, |_| 0));
    let found = wait(store.newest(&p("f"))).unwrap().unwrap();
    assert_ne!(found.object, known.object);
    assert_eq!((found.sha1, found.size), (Some(Content::of("late").sha1), 4));
    assert_eq!(lock(&scene.bucket).versions("f").len(), 2);
    assert_eq!(scene.moments(Asked::File).last(), Some(&Moment::Late));
}

#[test]
fn foreign_hands_leave_objects_as_their_programs_do() {
    let scene = scene();
    let store = scene.b2();
    let mut bucket = lock(&scene.bucket);
    bucket.upload("r", Object::by_rclone("1", NOW_NS + 1), NOW_NS);
    bucket.upload("h", Object::by_hand("2"), NOW_NS);
    bucket.upload("w", Object::by_writer("3", NOW_NS, "another"), NOW_NS);
    drop(bucket);
    let look = |path: &str| wait(store.newest(&p(path))).unwrap();
    let found = look("r").unwrap();
    assert_eq!((found.mtime_ns, found.writer), (Some(NOW_NS), None));
    assert_eq!(look("h").unwrap().mtime_ns, None);
    assert_eq!(look("w").unwrap().writer.as_deref(), Some("another"));
    put(&store, "w", b"ours").unwrap();
    assert!(lock(&scene.bucket).delete_newest("w"));
    assert_eq!(look("w").unwrap().writer.as_deref(), Some("another"), "the one before is there again");
    assert!(lock(&scene.bucket).hide("w", NOW_NS) && look("w").is_none());
    assert_eq!(mirrored(&lock(&scene.bucket), &RelPath::root()).0.len(), 2);

    let store = scene.dir(1);
    lock(&scene.place).put_by_hand(&p("d/f"), b"theirs", 5, NOW_NS);
    assert_eq!(wait(store.newest(&p("d/f"))).unwrap().unwrap().mtime_ns, Some(5));
    lock(&scene.place).rename(&p("d"), &p("e"), NOW_NS).unwrap();
    lock(&scene.place).put_by_hand(&p("e"), b"a file now", 6, NOW_NS);
    assert_eq!(put(&store, "e/f", b"x").unwrap_err().problem, Problem::InTheWay);
}

#[test]
fn a_disk_that_fails_says_what_a_run_can_do_about_it() {
    // Of an error of the disk nobody knows whether there was an effect.
    let table = [
        (Fault::DirIo, Problem::TryLater(None)),
        (Fault::DirFull, Problem::Stop(Exit::Failed)),
        (Fault::DirReadOnly, Problem::Stop(Exit::Failed)),
        (Fault::DirPowerCut, Problem::TryLater(None)),
        (Fault::DirAnswerLost, Problem::TryLater(None)),
    ];
    for (fault, problem) in table {
        let scene = scene();
        let store = scene.dir(1);
        scene.strike(fault);
        let error = put(&store, "f", b"content").unwrap_err();
        let outcome_unknown = problem == Problem::TryLater(None);
        assert_eq!((&error.problem, error.outcome_unknown), (&problem, outcome_unknown), "{fault:?}");
        assert_eq!(scene.files().len(), usize::from(fault == Fault::DirAnswerLost), "{fault:?}");
        let effect = fault == Fault::DirAnswerLost;
        let told = Moment::Answered { effect, problem: Some(problem), outcome_unknown };
        assert_eq!(scene.moments(Asked::File).last(), Some(&told));
    }
    let scene = scene();
    let store = scene.dir(1);
    lock(&scene.place).full = true;
    assert_eq!(put(&store, "f", b"").unwrap_err().problem, Problem::Stop(Exit::Failed));
}

#[test]
fn another_disk_or_bucket_has_another_identity_and_is_empty() {
    let scene = scene();
    put(&scene.dir(1), "f", b"1").unwrap();
    put(&scene.b2(), "f", b"1").unwrap();
    let known = (scene.dir(2).identity(), scene.b2().identity());
    scene.strike(Fault::DirAnotherDisk);
    let dir = scene.dir(3);
    scene.strike(Fault::B2AnotherBucket);
    let b2 = scene.b2();
    assert!(dir.identity() != known.0 && b2.identity() != known.1);
    assert_eq!(wait(dir.newest(&p("f"))).unwrap(), None);
    assert_eq!(wait(b2.newest(&p("f"))).unwrap(), None);
}

#[test]
fn the_trash_is_emptied_by_whole_days_and_by_a_clock_that_runs_on() {
    let scene = scene();
    let trashed = || lock(&scene.place).trash().map(|(_, path, _)| path.to_string()).collect::<Vec<_>>();
    for (day, run) in [(0, 1), (1, 2)] {
        scene.clock.0.store(NOW_NS + 24 * day * HOUR_NS, Ordering::Relaxed);
        let store = scene.dir(run);
        for name in ["f", "g"] {
            put(&store, name, b"").unwrap();
            put(&store, name, b"").unwrap();
        }
    }
    assert_eq!(trashed().len(), 6);
    scene.clock.0.store(NOW_NS + 24 * 31 * HOUR_NS + HOUR_NS, Ordering::Relaxed);
    drop(scene.dir(3));
    assert_eq!(trashed().len(), 6, "the clock jumped");
    drop(scene.dir(4));
    assert_eq!(trashed().len(), 4, "the oldest day");
    drop(scene.dir(5));
    assert_eq!(trashed().len(), 0, "the next");
}

#[test]
fn a_short_page_goes_on_where_it_ended() {
    let scene = scene();
    let store = scene.b2();
    for name in ["a", "b", "c", "d"] {
        put(&store, name, b"").unwrap();
    }
    scene.strike(Fault::B2PageShort);
    lock(&scene.fate.picks).push(2);
    let first = wait(store.list(&RelPath::root(), None)).unwrap();
    assert_eq!((first.objects.len(), first.next.as_deref()), (2, Some("c")));
    scene.strike(Fault::B2PageFails);
    assert!(wait(store.list(&RelPath::root(), first.next.clone())).is_err());
    let rest = wait(store.list(&RelPath::root(), first.next)).unwrap();
    assert_eq!((rest.objects.len(), rest.next), (2, None));
}
