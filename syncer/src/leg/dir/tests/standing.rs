//! What stands at a name already: replaced, linked, removed, in the way.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::sync::atomic::AtomicBool;

use super::*;
use crate::tree::testing::{is_root, without_rights};

#[test]
fn the_trash_holds_what_was_replaced_and_what_was_removed() {
    let scene = scene();
    fs::create_dir(scene.src("d")).unwrap();
    scene.mirror("d");
    scene.write("d/f", b"one");
    scene.write("d/f", b"two");
    scene.write("d/f", b"three");
    scene.write("gone", b"once");
    scene.remove("gone", Kind::File).unwrap();
    let expected = trash(&[("d/f", b"one"), ("d/f", b"two"), ("gone", b"once")]);
    assert_eq!(scene.trashed(), expected);
    assert_eq!(fs::read(scene.dest("d/f")).unwrap(), b"three");
    assert!(scene.newest("gone").is_none());
    let runs: Vec<_> = fs::read_dir(scene.dest(".longshore/trash")).unwrap().collect();
    let name = runs[0].as_ref().unwrap().file_name().into_string().unwrap();
    assert!(name.starts_with("20") && name.contains("Z-run7"), "{name}");
    assert_eq!(fs::metadata(scene.dest(".longshore")).unwrap().mode() & 0o777, 0o700);
}

#[test]
fn a_file_and_later_a_directory_of_one_name_both_find_room_in_the_trash() {
    let scene = scene();
    scene.write("a", b"file");
    scene.remove("a", Kind::File).unwrap();
    fs::remove_file(scene.src("a")).unwrap();
    fs::create_dir(scene.src("a")).unwrap();
    scene.mirror("a");
    scene.write("a/x", b"below");
    scene.remove("a/x", Kind::File).unwrap();
    assert_eq!(scene.trashed(), trash(&[("a", b"file"), ("a/x", b"below")]));
}

#[test]
fn a_name_never_misses_while_it_is_replaced() {
    let scene = scene();
    scene.write("f", b"0");
    let (path, done) = (scene.dest("f"), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let looking = scope.spawn(|| {
            let mut count = 0u64;
            while !done.load(Ordering::Relaxed) {
                fs::symlink_metadata(&path).unwrap();
                count += 1;
            }
            count
        });
        for n in 1..200 {
            scene.write("f", n.to_string().as_bytes());
        }
        done.store(true, Ordering::Relaxed);
        assert!(looking.join().unwrap() > 0);
    });
    assert_eq!(scene.trashed().len(), 199);
    assert_eq!(scene.temp_count(), 0);
}

#[test]
fn kinds_that_replace_one_another_by_rename_do_so_and_others_are_in_the_way() {
    let scene = scene();
    scene.write("x", b"file");
    fs::remove_file(scene.src("x")).unwrap();
    symlink("target", scene.src("x")).unwrap();
    scene.mirror("x");
    assert_eq!(scene.newest("x").unwrap().kind, Kind::Symlink);
    assert_eq!(scene.trashed(), trash(&[("x", b"file")]));

    fs::remove_file(scene.src("x")).unwrap();
    fs::create_dir(scene.src("x")).unwrap();
    assert_eq!(scene.put(scene.put_of("x")).unwrap_err().problem, Problem::InTheWay);
    fs::write(scene.src("x/y"), b"").unwrap();
    let error = scene.put(scene.put_of("x/y")).unwrap_err();
    assert_eq!((error.problem, error.object.as_str()), (Problem::InTheWay, "x"), "a symlink is no parent");

    scene.remove("x", Kind::Symlink).unwrap();
    scene.mirror("x");
    scene.mirror("x/y");
    fs::remove_dir_all(scene.src("x")).unwrap();
    fs::write(scene.src("x"), b"file again").unwrap();
    assert_eq!(scene.put(scene.put_of("x")).unwrap_err().problem, Problem::InTheWay);
    assert_eq!(scene.temp_count(), 0);
    assert!(scene.newest("x/y").is_some());
}

#[test]
fn what_has_no_parent_yet_is_tried_later() {
    let scene = scene();
    fs::create_dir(scene.src("d")).unwrap();
    fs::write(scene.src("d/f"), b"").unwrap();
    let error = scene.put(scene.put_of("d/f")).unwrap_err();
    assert_eq!((error.problem, error.object.as_str()), (Problem::TryLater(None), "d"));
    // Our own directory is nobody's to put first.
    fs::write(scene.src("head"), b"1").unwrap();
    for _ in 0..2 {
        let put = Put { dest: p(".longshore/segments/head"), ..scene.put_of("head") };
        scene.put(put).unwrap();
    }
    assert_eq!(fs::read(scene.dest(".longshore/segments/head")).unwrap(), b"1");
    assert_eq!(scene.trashed(), trash(&[]));
}

#[test]
fn hard_links_are_one_inode_until_one_of_them_is_replaced() {
    let scene = scene();
    let first = scene.write("a", b"shared");
    fs::hard_link(scene.src("a"), scene.src("b")).unwrap();
    let link = |dest: &str, to: &str| {
        let put = Put { what: What::HardLink { to: p(to) }, ..scene.put_of(dest) };
        scene.put(put)
    };
    assert_eq!(link("b", "a").unwrap().object, first.object);
    assert_eq!(link("b", "a").unwrap().object, first.object, "linked already");
    let ino = |path: &str| fs::metadata(scene.dest(path)).unwrap().ino();
    assert_eq!((ino("a") == ino("b"), scene.temp_count()), (true, 0));
    assert_eq!(scene.trashed(), trash(&[]));

    // New content comes to one name; the other keeps the old until it is linked again.
    scene.write("a", b"new");
    assert_eq!(fs::read(scene.dest("b")).unwrap(), b"shared");
    link("b", "a").unwrap();
    assert_eq!(ino("a"), ino("b"));
    assert_eq!(scene.trashed(), trash(&[("a", b"shared"), ("b", b"shared")]));
    assert_eq!(scene.temp_count(), 0);

    fs::create_dir(scene.src("d")).unwrap();
    scene.mirror("d");
    assert_eq!(link("b", "d").unwrap_err().problem, Problem::InTheWay);
    assert_eq!(link("b", "none").unwrap_err().problem, Problem::TryLater(None));
}

#[test]
fn an_old_version_that_may_not_be_linked_still_reaches_the_trash() {
    if !is_root("an_old_version_that_may_not_be_linked_still_reaches_the_trash") {
        return;
    }
    let scene = scene();
    // Somebody else's file: no further link to it without rights (proc_sys_fs(5), protected_hardlinks).
    fs::write(scene.dest("f"), b"theirs").unwrap();
    std::os::unix::fs::chown(scene.dest("f"), Some(1234), Some(1234)).unwrap();
    fs::set_permissions(scene.dest("f"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(scene.src("f"), b"ours").unwrap();
    let put = scene.put_of("f");
    without_rights(|| scene.store.inner.put(&put).unwrap());
    assert_eq!(fs::read(scene.dest("f")).unwrap(), b"ours");
    assert_eq!(scene.trashed(), trash(&[("f", b"theirs")]));
    assert_eq!(scene.temp_count(), 0);
}

#[test]
fn what_is_gone_already_is_removed_and_what_is_of_another_kind_is_not() {
    let scene = scene();
    scene.remove("none", Kind::File).unwrap();
    scene.remove("none/below", Kind::Dir).unwrap();
    scene.write("f", b"");
    scene.remove("f/below", Kind::File).unwrap();
    assert_eq!(scene.remove("f", Kind::Dir).unwrap_err().problem, Problem::InTheWay);
    fs::create_dir(scene.src("d")).unwrap();
    scene.mirror("d");
    scene.write("d/f", b"");
    assert_eq!(scene.remove("d", Kind::File).unwrap_err().problem, Problem::InTheWay);
    assert_eq!(scene.remove("d", Kind::Dir).unwrap_err().problem, Problem::Occupied);
    scene.remove("d/f", Kind::File).unwrap();
    scene.remove("d", Kind::Dir).unwrap();
    assert!(scene.newest("d").is_none());
    // A directory made anew is not the remembered one.
    fs::create_dir(scene.src("d/sub")).unwrap();
    scene.mirror("d");
    scene.mirror("d/sub");
    scene.mirror("d/f");
    scene.remove("d/f", Kind::File).unwrap();
    assert!(scene.newest("d/f").is_none());
}

#[test]
fn a_symlink_planted_in_the_destination_leads_nowhere() {
    let scene = scene();
    let outside = scene.dir.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("f"), b"precious").unwrap();
    symlink(&outside, scene.dest("d")).unwrap();
    symlink(outside.join("f"), scene.dest("f")).unwrap();
    fs::create_dir(scene.src("d")).unwrap();
    fs::write(scene.src("d/f"), b"new").unwrap();
    assert_eq!(scene.put(scene.put_of("d/f")).unwrap_err().problem, Problem::InTheWay);
    scene.remove("d/f", Kind::File).unwrap();
    assert!(scene.newest("d/f").is_none());
    scene.write("f", b"new");
    let mut put = attributes(scene.put_of("f"));
    put.stat.mode = 0o600;
    scene.put(put).unwrap();
    assert_eq!(fs::read(outside.join("f")).unwrap(), b"precious");
    assert_eq!(fs::read(scene.dest("f")).unwrap(), b"new");
    let page = wait(scene.store.list(&RelPath::root(), None)).unwrap();
    let names: Vec<_> = page.objects.iter().map(|o| o.name.as_str()).collect();
    assert_eq!(names, [".", "d", "f"]);
}

#[test]
fn an_error_of_the_disk_does_not_say_whether_there_was_an_effect() {
    assert!(failed("make", "a", Errno::IO).outcome_unknown);
    assert!(
        !failed("make", "a", Errno::NOSPC).outcome_unknown
            && !failed("make", "a", Errno::EXIST).outcome_unknown
    );
}
