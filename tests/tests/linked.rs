//! Files with names that a leg does not know: what is written through those reaches its destination too, with the
//! real tracker and real runs.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use shared::config::Config;
use shared::entry::{Handle, Mask, Scope};
use shared::exit::Exit;
use shared::journal::{Entry, Journal, RootId};
use shared::limits;
use syncer::credentials::Environment;
use syncer::live;
use syncer::report::Report;
use syncer::run::{Parts, Run};
use tempfile::TempDir;
use tests::dir_leg::{LEG, mirrored, same, world};
use tests::mount::{KINDS, LoopFs, available};
use tests::played::{Bent, Later};
use tests::programs::{Daemon, call, text};
use tests::world::{ROOT, WRITTEN, World, note};

/// A disk with the roots `a` (of which `*.tmp` is left out) and `b`, a directory outside both, a leg on both roots
/// and one on `b` alone, and a tracker.
struct Scene {
    dir: TempDir,
    config: Config,
    _daemon: Daemon,
    /// Unmounted after the tracker ended.
    disk: LoopFs,
}

impl Scene {
    /// With these files in it, and all of it at the destinations.
    fn new(kind: &str, fill: impl FnOnce(&Path)) -> Scene {
        let dir = tempfile::tempdir().unwrap();
        let disk = LoopFs::new(kind).unwrap();
        for name in ["a", "b", "outside"] {
            fs::create_dir(disk.path().join(name)).unwrap();
        }
        for name in ["both", "only-b"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        let (base, top) = (dir.path().display(), disk.path().display().to_string());
        let text = format!(
            r#"
state_dir = "{base}/state"
runtime_dir = "{base}/run"
[[root]]
name = "a"
path = "{top}/a"
exclude = ["*.tmp"]
[[root]]
name = "b"
path = "{top}/b"
[[leg]]
name = "both"
kind = "dir"
roots = [{{ root = "a", prefix = "a" }}, {{ root = "b", prefix = "b" }}]
path = "{base}/both"
[[leg]]
name = "only-b"
kind = "dir"
roots = ["b"]
path = "{base}/only-b"
"#
        );
        let file = dir.path().join("longshore.toml");
        fs::write(&file, &text).unwrap();
        fill(&disk.path());
        let daemon = Daemon::start(&file);
        let scene = Scene { config: Config::parse(&file, &text).unwrap(), dir, _daemon: daemon, disk };
        for leg in ["both", "only-b"] {
            assert_eq!(scene.run(leg).exit, Exit::Ok);
        }
        scene
    }

    fn path(&self, name: &str) -> PathBuf {
        self.disk.path().join(name)
    }

    fn write(&self, name: &str, content: &str) {
        fs::write(self.path(name), content).unwrap();
    }

    fn link(&self, from: &str, to: &str) {
        fs::hard_link(self.path(from), self.path(to)).unwrap();
    }

    /// What a leg has at a path below its top.
    fn mirrored(&self, path: &str) -> String {
        fs::read_to_string(self.dir.path().join(path)).unwrap_or_else(|e| format!("{path}: {e}"))
    }

    fn flush(&self) {
        flush(&self.config_file());
    }

    fn config_file(&self) -> PathBuf {
        self.dir.path().join("longshore.toml")
    }

    /// A run for which everything is old enough that nothing is owed for its age alone.
    fn run(&self, leg: &str) -> Report {
        self.run_as(leg, |parts| Bent::ahead().over(parts))
    }

    fn run_as(&self, leg: &str, change: impl FnOnce(&mut Parts)) -> Report {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        let leg = self.config.leg(leg).unwrap();
        let catalog = live::catalog_path(&self.config, leg);
        let (progress, stop) = (Arc::default(), Arc::default());
        let environment = Environment::default();
        let mut parts = live::parts(&self.config, leg, &environment, progress, stop, &catalog).unwrap();
        change(&mut parts);
        runtime.block_on(Run::new(parts, None).run())
    }

    /// A run in whose middle, after a file was read and before anything is written down of it, `work` happens once,
    /// and the tracker has heard of it.
    fn run_amid(&self, leg: &str, work: impl Fn() + Send + Sync + 'static) -> Report {
        let (config, once) = (self.config_file(), std::sync::Once::new());
        let after_read = move || {
            once.call_once(|| {
                work();
                flush(&config);
            })
        };
        self.run_as(leg, |parts| {
            Bent { after_read: Some(Arc::new(after_read)), ..Bent::ahead() }.over(parts);
        })
    }

    /// A run at a time when all that is owed is due.
    fn run_later(&self, leg: &str) -> Report {
        self.run_as(leg, |parts| {
            // Later than every wait before something owed is tried again.
            parts.clock = Arc::new(Later(limits::BACKOFF_MAX));
            Bent::ahead().over(parts);
        })
    }

    fn journal(&self) -> Journal {
        Journal::open(&self.config.journal_path()).unwrap()
    }

    fn root(&self, name: &str) -> RootId {
        self.journal().roots().unwrap().iter().find(|r| r.name == name).unwrap().id
    }

    /// How many files are published for a root.
    fn published(&self, root: &str) -> usize {
        let mut files = BTreeSet::new();
        self.journal().linked(&[self.root(root)], |_, file| files.extend(file.cloned())).unwrap();
        files.len()
    }
}

fn flush(config: &Path) {
    let output = call("tracker", config, &["flush"]);
    assert!(output.status.success(), "{}", text(&output));
}

fn put(top: &Path, name: &str, content: &str) {
    fs::write(top.join(name), content).unwrap();
}

/// More files than a leg can publish.
fn too_many() -> BTreeSet<Handle> {
    let handle = |n: u64| Handle { kind: 1, bytes: n.to_le_bytes().to_vec() };
    (0..=limits::LINKED_FILES_MAX as u64).map(handle).collect()
}

/// One scene on ext4.
fn scene(fill: impl FnOnce(&Path)) -> Option<Scene> {
    available("ext4").then(|| Scene::new("ext4", fill))
}

#[test]
fn what_is_written_through_a_name_outside_all_roots_or_left_out_or_in_another_root_arrives() {
    for kind in KINDS.into_iter().filter(|kind| available(kind)) {
        let scene = Scene::new(kind, |top| {
            for (name, other) in [("a/f", "outside/g"), ("a/h", "a/h.tmp"), ("b/k", "a/k")] {
                put(top, name, "old");
                fs::hard_link(top.join(name), top.join(other)).unwrap();
            }
        });
        scene.write("outside/g", "through a name outside");
        scene.write("a/h.tmp", "through a name that is left out");
        scene.write("a/k", "through a name in another root");
        for leg in ["both", "only-b"] {
            let report = scene.run(leg);
            assert_eq!(report.exit, Exit::Ok, "{kind}: {}", report.text());
        }
        assert_eq!(scene.mirrored("both/a/f"), "through a name outside", "{kind}");
        assert_eq!(scene.mirrored("both/a/h"), "through a name that is left out", "{kind}");
        for leg in ["both/b/k", "both/a/k", "only-b/k"] {
            assert_eq!(scene.mirrored(leg), "through a name in another root", "{kind}");
        }
    }
}

#[test]
fn a_name_made_elsewhere_later_is_noticed_and_forgotten_with_the_name() {
    let Some(scene) = scene(|top| put(top, "b/f", "old")) else { return };
    assert_eq!(scene.published("b"), 0);
    scene.link("b/f", "outside/g");
    scene.run("only-b");
    assert_eq!(scene.published("b"), 1);
    scene.write("outside/g", "new");
    scene.run("only-b");
    assert_eq!(scene.mirrored("only-b/f"), "new");
    fs::remove_file(scene.path("outside/g")).unwrap();
    scene.run("only-b");
    assert_eq!(scene.published("b"), 0);
}

#[test]
fn a_name_that_leaves_the_root_alone_or_with_its_directory_still_counts() {
    let fill = |top: &Path| {
        fs::create_dir(top.join("b/d")).unwrap();
        for (name, other) in [("b/f", "b/f2"), ("b/h", "b/d/h2")] {
            put(top, name, "old");
            fs::hard_link(top.join(name), top.join(other)).unwrap();
        }
    };
    let Some(scene) = scene(fill) else { return };
    assert_eq!(scene.published("b"), 0, "all names are known");
    fs::rename(scene.path("b/f2"), scene.path("outside/f2")).unwrap();
    fs::rename(scene.path("b/d"), scene.path("outside/d")).unwrap();
    scene.run("only-b");
    assert_eq!(scene.published("b"), 2);
    scene.write("outside/f2", "new");
    scene.write("outside/d/h2", "newer");
    scene.run("only-b");
    assert_eq!((scene.mirrored("only-b/f"), scene.mirrored("only-b/h")), ("new".into(), "newer".into()));
}

#[test]
fn what_is_written_between_the_look_at_a_file_and_its_publication_is_found_by_the_second_look() {
    let Some(scene) = scene(|top| put(top, "b/f", "old")) else { return };
    scene.link("b/f", "outside/g");
    scene.write("b/f", "first");
    let g = scene.path("outside/g");
    let report = scene.run_amid("only-b", move || fs::write(&g, "second, unseen").unwrap());
    assert_eq!((report.exit, report.deferred), (Exit::Ok, 1), "{}", report.text());
    assert_eq!(scene.mirrored("only-b/f"), "first", "it was read before");
    let report = scene.run_later("only-b");
    assert_eq!((report.exit, report.deferred), (Exit::Ok, 0), "{}", report.text());
    assert_eq!(scene.mirrored("only-b/f"), "second, unseen");
}

#[test]
fn what_is_written_through_another_name_during_the_first_upload_of_a_file_arrives() {
    let Some(scene) = scene(|_| ()) else { return };
    scene.write("b/new", "first");
    scene.link("b/new", "outside/g");
    let g = scene.path("outside/g");
    scene.run_amid("only-b", move || fs::write(&g, "second").unwrap());
    assert_eq!(scene.mirrored("only-b/new"), "first", "it was read before");
    scene.run_later("only-b");
    assert_eq!(scene.mirrored("only-b/new"), "second");
}

#[test]
fn what_is_written_through_a_name_that_is_gone_by_now_arrives() {
    let fill = |top: &Path| {
        for name in ["b/f", "b/h", "b/k"] {
            put(top, name, "old");
        }
        fs::hard_link(top.join("b/h"), top.join("b/h2")).unwrap();
    };
    let Some(scene) = scene(fill) else { return };
    // Through a name no run ever saw, in the root and outside; and through one that is at the destination.
    for (name, other) in [("b/f", "b/f2"), ("b/k", "outside/k2")] {
        scene.link(name, other);
    }
    for other in ["b/f2", "outside/k2", "b/h2"] {
        scene.write(other, "through a name that is gone");
        fs::remove_file(scene.path(other)).unwrap();
    }
    let report = scene.run("only-b");
    assert_eq!(report.exit, Exit::Ok, "{}", report.text());
    for name in ["f", "h", "k"] {
        assert_eq!(scene.mirrored(&format!("only-b/{name}")), "through a name that is gone");
    }
}

#[test]
fn beyond_the_bound_every_file_with_more_than_one_name_counts_until_there_is_room() {
    let Some(scene) = scene(|top| put(top, "b/f", "old")) else { return };
    let (mut journal, root) = (scene.journal(), scene.root("b"));
    journal.publish_linked("only-b", root, &too_many(), &BTreeSet::new()).unwrap();
    assert!(journal.has_too_many_linked("only-b", root).unwrap());
    scene.link("b/f", "outside/g");
    scene.write("outside/g", "new");
    scene.flush();
    let (head, _) = journal.head_and_floor().unwrap();
    let rows = journal.read(0, head, limits::READ_ROWS_MAX).unwrap();
    let told =
        |row: &Entry| (row.root, row.scope) == (root, Scope::Handle) && row.mask.contains(Mask::MODIFY);
    assert!(rows.iter().any(told), "{rows:?}");
    let report = scene.run("only-b");
    assert_eq!(report.exit, Exit::Ok, "{}", report.text());
    assert_eq!(scene.mirrored("only-b/f"), "new");
    assert!(!journal.has_too_many_linked("only-b", root).unwrap());
    assert_eq!(scene.published("b"), 1);
}

#[test]
fn a_run_that_goes_on_counts_once_in_an_hour_whether_there_is_room_again() {
    let world = mirrored();
    let file = world.source().join("a/file");
    let mut journal = Journal::open(&world.config.journal_path()).unwrap();
    let leg_has_too_many = |journal: &Journal| journal.has_too_many_linked("copy", world.root).unwrap();
    let mut written = 0;
    let mut crowd_and_write = |journal: &mut Journal| {
        journal.publish_linked("copy", world.root, &too_many(), &BTreeSet::new()).unwrap();
        written += 1;
        fs::write(&file, "x".repeat(written)).unwrap();
        note(journal, world.root, "a/file", Scope::SelfOnly, WRITTEN);
    };
    let mut counted = Vec::new();
    world.watch("copy", |report, _| {
        assert_eq!(report.exit, Exit::Ok, "{}", report.text());
        counted.push(!leg_has_too_many(&journal));
        crowd_and_write(&mut journal);
        counted.len() < 3
    });
    assert_eq!(counted, [true, true, false], "before, at first, and within the hour");
    assert!(leg_has_too_many(&journal));
    world.run("copy");
    assert!(!leg_has_too_many(&journal), "another run counts anew");
}

#[test]
fn a_young_file_is_read_once_more_when_it_is_published() {
    let Some(scene) = scene(|_| ()) else { return };
    scene.write("outside/g", "young");
    scene.link("outside/g", "b/f");
    let report = scene.run_as("only-b", |_| ());
    assert_eq!((report.exit, report.deferred), (Exit::Ok, 1), "{}", report.text());
    let report = scene.run_later("only-b");
    assert_eq!((report.exit, report.deferred, report.files_sent), (Exit::Ok, 0, 0), "{}", report.text());
}

#[test]
fn a_young_file_with_an_unknown_name_is_sent_as_often_as_it_is_written() {
    let Some(scene) = scene(|_| ()) else { return };
    scene.write("outside/g", "young");
    scene.link("outside/g", "b/f");
    for content in ["first", "second", "third one"] {
        scene.write("outside/g", content);
        let report = scene.run_as("only-b", |_| ());
        assert_eq!((report.exit, report.files_sent), (Exit::Ok, 1), "{}", report.text());
        assert_eq!(scene.mirrored("only-b/f"), content);
    }
}

/// So many files with so many names each, a directory for each name: more paths than a batch has.
const CROWD: (usize, usize) = (1_000, 6);

fn crowd(top: &Path) {
    for n in 0..CROWD.1 {
        fs::create_dir_all(top.join(format!("d{n}"))).unwrap();
        for file in 0..CROWD.0 {
            let (first, name) = (top.join(format!("d0/{file}")), top.join(format!("d{n}/{file}")));
            if n == 0 { fs::write(name, "x").unwrap() } else { fs::hard_link(first, name).unwrap() }
        }
    }
}

fn settled(world: &World) -> Report {
    let report = world.run_as("copy", |parts| Bent::ahead().over(parts));
    assert_eq!(report.exit, Exit::Ok, "{}", report.text());
    report
}

#[test]
fn a_rescan_looks_once_at_each_name_of_an_unchanged_file() {
    let mut world = world();
    crowd(&world.source().join("t"));
    // The root, the tree and its directories.
    let all = (CROWD.0 * CROWD.1 + CROWD.1 + 2) as u64;
    let first = settled(&world).tally.examined;
    assert!(first <= all * 3 / 2, "at first, {first} of {all}");
    for (path, paths) in [("", all), ("t", all - 1)] {
        world.saw(path, Scope::Subtree, Mask::UNKNOWN);
        let tally = settled(&world).tally;
        assert_eq!((tally.examined, tally.same), (paths, paths), "below `{path}`");
    }
}

#[test]
fn what_one_batch_brings_of_other_names_is_bounded_and_nothing_is_left_out() {
    let mut world = world();
    let top = world.source();
    crowd(&top);
    settled(&world);
    for file in 0..CROWD.0 {
        fs::write(top.join(format!("d3/{file}")), "changed").unwrap();
        world.saw(&format!("d3/{file}"), Scope::SelfOnly, WRITTEN);
    }
    settled(&world);
    same(&world);
}

#[test]
fn a_name_that_was_owed_when_a_run_was_cut_off_is_looked_at_for_the_other_one_again() {
    for (path, scope) in [("d/x", Scope::SelfOnly), ("d", Scope::Subtree)] {
        let mut world = world();
        let top = world.source();
        fs::create_dir(top.join("d")).unwrap();
        put(&top, "d/x", "old");
        fs::hard_link(top.join("d/x"), top.join("y")).unwrap();
        settled(&world);
        put(&top, "d/x", "written through x");
        world.saw(path, scope, WRITTEN);
        let report = world.run_as("copy", |parts| {
            let stop = parts.stop.clone();
            let after_read: Arc<dyn Fn() + Send + Sync> =
                Arc::new(move || stop.store(true, Ordering::Relaxed));
            Bent { unknown: Some("y"), after_read: Some(after_read), ..Bent::ahead() }.over(parts);
        });
        assert!(report.aborted && report.files_sent == 1, "{}", report.text());
        assert_eq!(report.deferred, 0, "what was owed is forgotten");
        settled(&world);
        for name in ["copy/d/x", "copy/y"] {
            assert_eq!(fs::read_to_string(world.path(name)).unwrap(), "written through x", "{name}, {scope}");
        }
    }
}

#[test]
fn what_a_rule_leaves_out_or_another_journal_never_heard_of_is_published_before_an_unchanged_file_is_passed_over()
 {
    let mut world = world();
    let top = world.source();
    put(&top, "f", "old");
    fs::hard_link(top.join("f"), top.join("f.tmp")).unwrap();
    settled(&world);
    let published = |world: &World| {
        let mut files = 0;
        world.journal.linked(&[world.root], |_, file| files += usize::from(file.is_some())).unwrap();
        files
    };
    assert_eq!(published(&world), 0);
    world.configure(&format!("{ROOT}exclude = [\"*.tmp\"]\n{LEG}"));
    settled(&world);
    assert_eq!(published(&world), 1);
    world.lose_journal();
    settled(&world);
    assert_eq!(published(&world), 1);
}

#[test]
fn a_young_file_is_read_once_more_after_its_publication_although_the_run_was_cut_off() {
    let mut world = world();
    let top = world.source();
    put(&top, "f", "young");
    assert_eq!(world.run("copy").exit, Exit::Ok);
    fs::hard_link(top.join("f"), world.path("outside")).unwrap();
    world.saw("f", Scope::SelfOnly, Mask::ATTRIB);
    let report = world.run_as("copy", |parts| {
        let stop = parts.stop.clone();
        let at_xattrs: Arc<dyn Fn() + Send + Sync> = Arc::new(move || stop.store(true, Ordering::Relaxed));
        Bent { at_xattrs: Some(at_xattrs), ..Bent::default() }.over(parts);
    });
    assert!(report.aborted, "{}", report.text());
    let report = world.run_as("copy", |parts| parts.clock = Arc::new(Later(limits::BACKOFF_MAX)));
    assert_eq!((report.exit, report.found_unchanged, report.deferred), (Exit::Ok, 1, 0), "{}", report.text());
}
