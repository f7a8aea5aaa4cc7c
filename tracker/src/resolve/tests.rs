//! Places asked of the real kernel, while the test moves what the way leads through.

use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use shared::limits;

use super::climb::{Climb, cut_name, find_name};
use super::*;
use crate::host::Linux;
use crate::intake::sys;

#[test]
fn names_are_cut_off_from_the_end() {
    let mut path = b"a/b c/d".to_vec();
    assert_eq!(cut_name(&mut path).unwrap(), b"d");
    assert_eq!(cut_name(&mut path).unwrap(), b"b c");
    assert_eq!(path, b"a");
    assert_eq!(cut_name(&mut path).unwrap(), b"a");
    assert_eq!(cut_name(&mut path), None);
}

#[test]
fn a_directory_is_found_by_its_handle_in_its_parents_listing() {
    let dir = tempfile::tempdir().unwrap();
    let sub = dir.path().join("sub\n\u{1}");
    std::fs::create_dir(&sub).unwrap();
    let (parent, child) = (std::fs::File::open(dir.path()).unwrap(), std::fs::File::open(&sub).unwrap());
    let handle = sys::name_to_handle(child.as_fd(), c"").unwrap();
    assert_eq!(find_name(parent.as_fd(), child.as_fd(), &handle).unwrap(), b"sub\n\x01");
}

/// A tree of directories on the filesystem of the temporary directory.
struct World {
    mount: OpenMount,
    root: PathBuf,
    _dir: tempfile::TempDir,
}

impl World {
    /// `None` without the rights for it.
    fn new(dirs: &[&str]) -> Option<World> {
        if !crate::testing::is_root() {
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        for sub in dirs {
            std::fs::create_dir_all(dir.path().join(sub)).unwrap();
        }
        let mount = OpenMount::open(dev(dir.path())).unwrap();
        Some(World { mount, root: dir.path().to_owned(), _dir: dir })
    }

    fn handle(&self, path: &str) -> Handle {
        handle(&self.root.join(path))
    }

    fn rename(&self, from: &str, to: &str) {
        std::fs::rename(self.root.join(from), self.root.join(to)).unwrap();
    }

    fn resolver(&self, max: usize) -> Resolver<Linux> {
        let mut resolver = Resolver::new(Linux::default(), Tree::with_limit(max));
        let top = self.mount.top().unwrap();
        let roots = vec![Some(self.handle(""))];
        resolver.reset(dev(&self.root), Anchors { top: Some(top), roots, own: vec![] });
        resolver
    }
}

fn handle(path: &Path) -> Handle {
    sys::name_to_handle(std::fs::File::open(path).unwrap().as_fd(), c"").unwrap()
}

fn dev(path: &Path) -> u64 {
    rustix::fs::stat(path).unwrap().st_dev
}

fn path(place: Result<Arc<Place>, Lost>) -> String {
    let Ok(Place::In(spots)) = place.as_deref() else { panic!("{place:?}") };
    String::from_utf8(spots[0].path.as_bytes().to_vec()).unwrap()
}

#[test]
fn a_directory_that_moves_during_the_climb_gives_its_name_to_no_other() {
    let Some(world) = World::new(&["x/deep/b", "z"]) else { return };
    let (b, z, top) = (world.handle("x/deep/b"), world.handle("z"), world.handle(""));
    let mut climb = Climb::start(&world.mount, &b).unwrap();
    // The path that was read says x/deep/b.
    world.rename("x/deep/b", "z/b");
    assert_eq!(climb.step().unwrap(), Link { dir: b, parent: z.clone(), name: b"b".to_vec() });
    assert_eq!(climb.step().unwrap(), Link { dir: z, parent: top, name: b"z".to_vec() });
}

#[test]
fn a_directory_renamed_during_the_climb_is_found_by_its_new_name() {
    let Some(world) = World::new(&["x/b"]) else { return };
    let (b, x, top) = (world.handle("x/b"), world.handle("x"), world.handle(""));
    let mut climb = Climb::start(&world.mount, &b).unwrap();
    climb.step().unwrap();
    world.rename("x", "y");
    assert_eq!(climb.step().unwrap(), Link { dir: x, parent: top, name: b"y".to_vec() });
}

#[test]
fn a_directory_deleted_during_the_climb_has_no_place() {
    let Some(world) = World::new(&["x"]) else { return };
    let x = world.handle("x");
    let mut climb = Climb::start(&world.mount, &x).unwrap();
    std::fs::remove_dir(world.root.join("x")).unwrap();
    assert_eq!(climb.step(), Err(Lost::Stale));
    assert!(matches!(Climb::start(&world.mount, &x), Err(Lost::Gone)), "held open and deleted");
    drop(climb);
    assert!(matches!(Climb::start(&world.mount, &x), Err(Lost::Gone)));
}

#[test]
fn a_deleted_directory_is_not_taken_for_one_that_is_named_like_it() {
    let Some(world) = World::new(&["x/y", "x (deleted)/y"]) else { return };
    let (x, y) = (world.handle("x"), world.handle("x/y"));
    let mut climb = Climb::start(&world.mount, &y).unwrap();
    let _held = std::fs::File::open(world.root.join("x")).unwrap();
    std::fs::remove_dir_all(world.root.join("x")).unwrap();
    assert_eq!(
        climb.step(),
        Err(Lost::Stale),
        "x is still there for who holds it open, and says it is deleted"
    );
    drop(climb);
    let mut resolver = world.resolver(limits::HANDLE_CACHE_BYTES_MAX);
    // Mostly as gone; while much else happened on this filesystem the kernel was seen to answer otherwise.
    for gone in [&x, &y] {
        assert!(matches!(resolver.place(gone.into()), Err(Lost::Gone | Lost::Stale)));
    }
}

#[test]
fn a_file_that_is_gone_is_not_taken_for_one_that_is_named_like_it() {
    let Some(world) = World::new(&["d"]) else { return };
    let [f, other, alike] = ["d/f", "d/other", "d/f (deleted)"].map(|name| world.root.join(name));
    for file in [&f, &alike] {
        std::fs::write(file, "").unwrap();
    }
    let gone = handle(&f);
    let mut resolver = world.resolver(limits::HANDLE_CACHE_BYTES_MAX);
    let held = std::fs::File::open(&f).unwrap();
    std::fs::hard_link(&f, &other).unwrap();
    std::fs::remove_file(&f).unwrap();
    let found = resolver.name_of((&gone).into()).unwrap();
    let by_other = NameOf::Known { dir: world.handle("d"), name: b"other".to_vec(), only: true };
    assert!(found == by_other || found == NameOf::Unknown, "{found:?}");
    std::fs::remove_file(&other).unwrap();
    assert_eq!(resolver.name_of((&gone).into()).unwrap(), NameOf::None);
    drop(held);
    assert_eq!(resolver.name_of((&gone).into()).unwrap(), NameOf::Stale);
}

#[test]
fn a_name_that_looks_deleted_is_a_name() {
    let Some(world) = World::new(&["x (deleted)/y"]) else { return };
    let mut resolver = world.resolver(limits::HANDLE_CACHE_BYTES_MAX);
    assert_eq!(path(resolver.place((&world.handle("x (deleted)/y")).into())), "x (deleted)/y");
}

#[test]
fn a_path_too_long_to_be_told_is_put_together_from_listings() {
    let Some(world) = World::new(&[]) else { return };
    let name = "n".repeat(250);
    let mut dir = rustix::fs::open(&world.root, OFlags::RDONLY, Mode::empty()).unwrap();
    for _ in 0..20 {
        rustix::fs::mkdirat(&dir, &name, Mode::RWXU).unwrap();
        dir = rustix::fs::openat(&dir, &name, OFlags::RDONLY, Mode::empty()).unwrap();
    }
    let deepest = sys::name_to_handle(dir.as_fd(), c"").unwrap();
    assert_eq!(
        path(world.resolver(limits::HANDLE_CACHE_BYTES_MAX).place((&deepest).into())),
        vec![name; 20].join("/")
    );
}

#[test]
fn a_cache_that_is_full_forgets_and_still_answers() {
    let names: Vec<String> = (0..200).map(|n| format!("d{n}/sub")).collect();
    let dirs: Vec<&str> = names.iter().map(String::as_str).collect();
    let Some(world) = World::new(&dirs) else { return };
    let mut resolver = world.resolver(8_192);
    for dir in dirs {
        assert_eq!(path(resolver.place((&world.handle(dir)).into())), dir);
        assert!(resolver.tree.bytes() <= 8_192);
    }
}

#[test]
fn a_view_without_what_covers_it_shows_the_same() {
    let Some(world) = World::new(&["d"]) else { return };
    std::fs::write(world.root.join("d/f"), "").unwrap();
    let top = std::fs::File::open(world.root.join("d")).unwrap();
    let file = sys::name_to_handle(top.as_fd(), c"f").unwrap();
    let mut resolver = world.resolver(8_192);
    let before = resolver.name_of((&file).into()).unwrap();
    assert_eq!(before, NameOf::Known { dir: world.handle("d"), name: b"f".to_vec(), only: true });
    let mount = resolver.view.as_mut().unwrap();
    assert!(mount.uncover() && !mount.uncover(), "once");
    assert_eq!(resolver.name_of((&file).into()).unwrap(), before);
    assert_eq!(path(resolver.place((&world.handle("d")).into())), "d");
}
