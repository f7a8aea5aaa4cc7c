//! The destination as a whole: what it must be, what it lists, what it forgets.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;

use shared::clock;
use shared::exit::Exit;

use super::*;
use crate::tree::testing::{Mounted, is_root};

fn begin(setup: Setup) -> Result<DirStore, StoreError> {
    let store = DirStore::new(setup);
    wait(store.open())?;
    wait(store.prepare()).map(|()| store)
}

fn refusal(setup: Setup) -> StoreError {
    begin(setup).err().expect("it is refused")
}

fn all(scene: &Scene, top: &str, forget_between: bool) -> Vec<Listed> {
    let (mut out, mut token) = (Vec::new(), None);
    loop {
        if forget_between {
            *scene.store.inner.listing.lock().unwrap() = None;
        }
        let page = wait(scene.store.list(&p(top), token)).unwrap();
        out.extend(page.objects);
        token = page.next;
        if token.is_none() {
            return out;
        }
    }
}

#[test]
fn a_listing_gives_every_name_once_in_order_with_the_objects_of_the_receipts() {
    let scene = scene();
    let mut expected = BTreeMap::new();
    for dir in ["a", "a/b", "a/b/c", "a-b", "z"] {
        fs::create_dir(scene.src(dir)).unwrap();
        expected.insert(p(dir).dir_key(), scene.mirror(dir).object);
    }
    for n in 0..2_500 {
        let path = format!("{}/{n}", ["a", "a/b", "a/b/c", "a-b"][n % 4]);
        expected.insert(path.clone().into_bytes(), scene.write(&path, path.as_bytes()).object);
    }
    let top = fs::metadata(scene.dest("")).unwrap();
    expected.insert(Vec::new(), std::os::unix::fs::MetadataExt::ino(&top).to_string());
    for forget_between in [false, true] {
        let listed = all(&scene, "", forget_between);
        let keys: Vec<_> = listed
            .iter()
            .map(|l| {
                let dest = l.dest.as_ref().unwrap();
                let key = if l.kind.is_dir() { dest.dir_key() } else { dest.as_bytes().to_vec() };
                (key, l.object.clone())
            })
            .collect();
        assert!(keys.is_sorted());
        assert_eq!(keys, expected.clone().into_iter().collect::<Vec<_>>());
        let below: Vec<_> = all(&scene, "a/b", forget_between);
        assert_eq!(below.len(), 2 + 625 + 625);
        assert_eq!(all(&scene, "a/1", forget_between).len(), 0);
        assert_eq!(all(&scene, "a/0", forget_between).len(), 1);
    }
    wait(scene.store.sync()).unwrap();
}

#[test]
fn a_listing_goes_on_when_the_name_it_stopped_at_is_gone() {
    let scene = scene();
    for n in 0..1_500 {
        fs::write(scene.dest(&format!("{n:04}")), b"").unwrap();
    }
    let first = wait(scene.store.list(&RelPath::root(), None)).unwrap();
    let last = first.objects.last().unwrap();
    fs::remove_file(scene.dest(&last.name)).unwrap();
    *scene.store.inner.listing.lock().unwrap() = None;
    let rest = wait(scene.store.list(&RelPath::root(), first.next)).unwrap();
    assert_eq!(first.objects.len() + rest.objects.len(), 1_501);
    assert!(rest.objects[0].name > last.name);
}

#[test]
fn an_object_is_another_one_once_somebody_replaced_it() {
    let scene = scene();
    let receipt = scene.write("f", b"ours");
    assert_eq!(scene.newest("f").unwrap().object, receipt.object);
    fs::write(scene.dest("new"), b"ours").unwrap();
    fs::rename(scene.dest("new"), scene.dest("f")).unwrap();
    assert_ne!(scene.newest("f").unwrap().object, receipt.object);
}

#[test]
fn a_destination_that_is_missing_or_no_directory_is_refused_with_advice() {
    let dir = tempfile::tempdir().unwrap();
    let error = refusal(setup(dir.path()));
    assert_eq!(error.problem, Problem::Stop(Exit::Config));
    assert!(error.to_string().contains("make it, or mount"), "{error}");
    fs::write(dir.path().join("dest"), b"").unwrap();
    assert_eq!(refusal(setup(dir.path())).problem, Problem::Stop(Exit::Config));
    fs::remove_file(dir.path().join("dest")).unwrap();
    fs::create_dir(dir.path().join("dest")).unwrap();
    symlink(dir.path(), dir.path().join("dest/.longshore")).unwrap();
    assert_eq!(refusal(setup(dir.path())).problem, Problem::Stop(Exit::Config));
}

#[test]
fn a_destination_and_a_source_never_hold_one_another() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("src/x/dest")).unwrap();
    fs::create_dir_all(dir.path().join("other")).unwrap();
    symlink(dir.path().join("src"), dir.path().join("alias")).unwrap();
    let with = |destination: &str, source: &str| Setup {
        destination: dir.path().join(destination),
        sources: vec![dir.path().join("other"), dir.path().join(source), dir.path().join("missing")],
        ..setup(dir.path())
    };
    let nested = [
        ("src/x/dest", "src"),
        ("src", "src"),
        ("src", "src/x"),
        ("alias/x/dest", "src"),
        ("src/x", "alias"),
    ];
    for (destination, source) in nested {
        let error = refusal(with(destination, source));
        assert_eq!(error.problem, Problem::Stop(Exit::Config), "{destination} {source}: {error}");
    }
    assert!(!dir.path().join("src/x/dest/.longshore").exists(), "refused before the first write");
    begin(with("src/x", "src/x/dest/none")).unwrap();
}

#[test]
fn a_second_run_into_one_destination_is_refused_until_the_first_ends() {
    let scene = scene();
    assert_eq!(refusal(setup(scene.dir.path())).problem, Problem::Stop(Exit::TryLater));
    drop(scene.store);
    begin(setup(scene.dir.path())).unwrap();
}

#[test]
fn a_nearly_full_disk_stops_the_run_and_is_named() {
    if !is_root("a_nearly_full_disk_stops_the_run_and_is_named") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("src")).unwrap();
    fs::create_dir(dir.path().join("dest")).unwrap();
    let _disk = Mounted::new(&["-t", "tmpfs", "-o", "size=100m", "none"], &dir.path().join("dest"));
    let store = begin(setup(dir.path())).unwrap();
    let tree = ProvenTree::open(&dir.path().join("src")).unwrap();
    let scene = Scene { dir, tree, store };
    scene.write("f", b"fits");
    fs::File::create(scene.src("large")).unwrap().set_len(200 << 20).unwrap();
    scene.mirror("large"); // all hole
    fs::write(scene.src("full"), vec![1; 150 << 20]).unwrap();
    let error = scene.put(scene.put_of("full")).unwrap_err();
    assert_eq!(error.problem, Problem::Stop(Exit::Failed), "{error}");
    assert_eq!(scene.temp_count(), 0, "the attempt was taken away");
    fs::write(scene.dest("foreign"), vec![1; (100 << 20) - 600_000]).unwrap();
    let error = scene.put(scene.put_of("f")).unwrap_err();
    assert_eq!(error.problem, Problem::Stop(Exit::Failed));
    assert!(error.to_string().contains("dest") && error.to_string().contains("tmpfs"), "{error}");
    drop(scene.store);
    assert_eq!(refusal(setup(scene.dir.path())).problem, Problem::Stop(Exit::Failed));
}

#[test]
fn reading_alone_changes_nothing_and_waits_for_nobody() {
    let scene = scene();
    let receipt = scene.write("f", b"");
    let reader = DirStore::new(setup(scene.dir.path()));
    wait(reader.open()).unwrap();
    assert_eq!(wait(reader.newest(&p("f"))).unwrap().unwrap().object, receipt.object);
    assert_eq!(wait(reader.list(&RelPath::root(), None)).unwrap().objects.len(), 2);
    drop((reader, scene.store));
    fs::remove_dir_all(scene.dir.path().join("dest/.longshore")).unwrap();
    let reader = DirStore::new(setup(scene.dir.path()));
    wait(reader.open()).unwrap();
    assert!(!scene.dir.path().join("dest/.longshore").exists());
}

#[test]
fn what_a_killed_run_left_is_cleaned_however_deep_it_is() {
    let scene = scene();
    drop(scene.store);
    let tmp = scene.dir.path().join("dest/.longshore/tmp");
    fs::write(tmp.join("6-abc-1"), b"half").unwrap();
    fs::create_dir_all(tmp.join("6-abc-2/a/b/c/d")).unwrap();
    fs::write(tmp.join("6-abc-2/a/b/f"), b"").unwrap();
    symlink("/etc", tmp.join("6-abc-2/a/l")).unwrap();
    begin(setup(scene.dir.path())).unwrap();
    assert_eq!(fs::read_dir(&tmp).unwrap().count(), 0);
    assert!(Path::new("/etc/passwd").exists());
}

#[test]
fn the_trash_loses_its_oldest_day_and_nothing_under_a_clock_gone_wrong() {
    const DAY: i64 = 86_400 * 1_000_000_000;
    let scene = scene();
    drop(scene.store);
    let now = SystemClock.wall_ns();
    let trash = scene.dir.path().join("dest/.longshore/trash");
    for age in [50, 40, 10] {
        fs::create_dir_all(trash.join(format!("{}-run{age}/d", clock::show(now - age * DAY)))).unwrap();
        fs::write(trash.join(format!("{}-run{age}/d/f", clock::show(now - age * DAY))), b"").unwrap();
    }
    let run_at = |wall_ns: i64| {
        let clock = Arc::new(FakeClock(AtomicI64::new(wall_ns)));
        begin(Setup { clock, ..setup(scene.dir.path()) }).unwrap();
        fs::read_dir(&trash).unwrap().count()
    };
    assert_eq!(run_at(now + 3_650 * DAY), 3, "ten years ahead of the last run");
    assert_eq!(run_at(now - DAY), 3, "before the last run");
    let later = SystemClock.wall_ns() + 1_000_000_000;
    assert_eq!(run_at(later), 2, "one day a run");
    assert_eq!(run_at(later + 1_000_000_000), 1);
    assert_eq!(run_at(later + 2_000_000_000), 1, "the rest is young");
    assert_eq!(fs::read_dir(scene.dir.path().join("dest/.longshore/tmp")).unwrap().count(), 0);
}

#[test]
fn a_run_of_weeks_names_its_trash_by_the_day() {
    let scene = scene();
    drop(scene.store);
    let fake = Arc::new(FakeClock(AtomicI64::new(SystemClock.wall_ns())));
    let clock: Arc<dyn Clock> = Arc::clone(&fake) as _;
    let store = begin(Setup { clock, ..setup(scene.dir.path()) }).unwrap();
    let scene = Scene { store, ..scene };
    for _ in 0..2 {
        scene.write("f", b"x");
        scene.remove("f", Kind::File).unwrap();
        fake.0.fetch_add(9 * 86_400 * 1_000_000_000, Ordering::Relaxed);
    }
    assert_eq!(fs::read_dir(scene.dest(".longshore/trash")).unwrap().count(), 2);
}
