//! Against real filesystems.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::process::Command;

use rustix::fs::{Mode, OFlags};

use super::*;
use crate::tree::Kind;
use crate::tree::testing::{Mounted, is_root, without_rights};

fn p(path: &str) -> RelPath {
    RelPath::parse(path.as_bytes()).unwrap()
}

fn tree() -> (tempfile::TempDir, ProvenTree) {
    let dir = tempfile::tempdir().unwrap();
    let tree = ProvenTree::open(dir.path()).unwrap();
    (dir, tree)
}

type Listed = Vec<(Vec<u8>, io::Result<Stat>)>;

fn list(tree: &ProvenTree, path: &RelPath) -> Result<Listed, TreeError> {
    let dir = tree.dir(path)?;
    let mut out = Vec::new();
    dir.names(&mut |name, _| out.push((name.to_bytes().to_vec(), dir.stat(name)))).unwrap();
    Ok(out)
}

fn found(look: Look) -> Stat {
    match look {
        Look::Found(stat) => stat,
        other => panic!("{other:?}"),
    }
}

fn unknown(look: Look) -> String {
    match look {
        Look::Unknown(why) => why,
        other => panic!("{other:?}"),
    }
}

fn elsewhere(look: Look) -> String {
    match look {
        Look::Elsewhere(why) => why,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_stands_there_is_told_as_lstat_tells_it() {
    let (dir, tree) = tree();
    fs::create_dir(dir.path().join("a")).unwrap();
    fs::write(dir.path().join("a/f"), b"12345").unwrap();
    symlink("nowhere", dir.path().join("a/l")).unwrap();
    let (meta, stat) = (fs::metadata(dir.path().join("a/f")).unwrap(), found(tree.look(&p("a/f"))));
    assert_eq!((stat.kind, stat.size, stat.ino), (Kind::File, 5, meta.ino()));
    assert_eq!(stat.mtime_ns, meta.mtime() * 1_000_000_000 + meta.mtime_nsec());
    assert_eq!(stat.mode, meta.mode() & 0o7777);
    assert_eq!(found(tree.look(&p("a/l"))).kind, Kind::Symlink);
    assert_eq!(found(tree.look(&RelPath::root())).ino, tree.identity().inode);
    assert_eq!(tree.read_link(&p("a/l")).unwrap(), b"nowhere");
    assert!((tree.now_ns() - stat.ctime_ns).abs() < 10_000_000_000);
}

#[test]
fn absence_is_witnessed_at_the_first_component_that_is_not_there() {
    let (dir, tree) = tree();
    fs::create_dir_all(dir.path().join("a/b")).unwrap();
    fs::write(dir.path().join("a/f"), b"").unwrap();
    assert_eq!(tree.look(&p("a/b/c/d")), Look::Gone { at: p("a/b/c") });
    assert_eq!(tree.look(&p("a/f/x/y")), Look::Gone { at: p("a/f") });
    assert_eq!(tree.look(&p("a/b/x")), Look::Gone { at: p("a/b/x") });
}

#[test]
fn a_remembered_directory_never_witnesses_an_absence() {
    let (dir, tree) = tree();
    fs::create_dir_all(dir.path().join("a/b")).unwrap();
    fs::write(dir.path().join("a/b/old"), b"").unwrap();
    found(tree.look(&p("a/b/old")));
    fs::rename(dir.path().join("a/b"), dir.path().join("a/away")).unwrap();
    fs::create_dir(dir.path().join("a/b")).unwrap();
    fs::write(dir.path().join("a/b/new"), b"").unwrap();
    // The remembered a/b is a/away now, where `new` is not.
    found(tree.look(&p("a/b/new")));
    assert_eq!(tree.look(&p("a/b/old")), Look::Gone { at: p("a/b/old") });
}

#[test]
fn a_symlink_in_the_place_of_a_directory_is_not_followed() {
    let (dir, tree) = tree();
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("f"), b"secret").unwrap();
    fs::create_dir(dir.path().join("inside")).unwrap();
    fs::write(dir.path().join("inside/f"), b"").unwrap();
    symlink(outside.path(), dir.path().join("out")).unwrap();
    symlink("inside", dir.path().join("in")).unwrap();
    symlink("inside/f", dir.path().join("file")).unwrap();
    for link in ["out", "in"] {
        let below = p(&format!("{link}/f"));
        assert_eq!(tree.look(&below), Look::Gone { at: p(link) });
        assert!(tree.open(&below).is_err());
        assert!(list(&tree, &p(link)).is_err());
        assert!(tree.xattrs(&below).is_err());
    }
    assert!(tree.open(&p("file")).is_err());
}

#[test]
fn a_root_that_is_a_symlink_is_refused() {
    let (dir, _) = tree();
    symlink(dir.path(), dir.path().join("link")).unwrap();
    let error = ProvenTree::open(&dir.path().join("link")).err().unwrap();
    assert!(error.to_string().contains("link"), "{error}");
}

#[test]
fn a_directory_that_may_not_be_entered_is_unknown_and_not_gone() {
    let (dir, tree) = tree();
    fs::create_dir_all(dir.path().join("shut")).unwrap();
    fs::set_permissions(dir.path().join("shut"), fs::Permissions::from_mode(0o000)).unwrap();
    without_rights(|| {
        let why = unknown(tree.look(&p("shut/x")));
        assert!(why.contains("shut/x") && why.contains("ermission denied"), "{why}");
        assert!(list(&tree, &p("shut")).is_err());
    });
    let long = p(&"n".repeat(300));
    unknown(tree.look(&long));
}

#[test]
fn nothing_is_concluded_from_a_root_that_was_removed() {
    let (dir, tree) = tree();
    assert_eq!(tree.check(), Ok(()));
    fs::remove_dir(dir.path()).unwrap();
    unknown(tree.look(&p("x")));
    assert!(tree.check().is_err());
    fs::create_dir(dir.path()).unwrap();
    let why = tree.check().unwrap_err();
    assert!(why.contains("expected") && why.contains("seen"), "{why}");
}

#[test]
fn a_mount_below_the_root_is_neither_entered_nor_gone() {
    if !is_root("a_mount_below_the_root_is_neither_entered_nor_gone") {
        return;
    }
    let (dir, tree) = tree();
    for name in ["tmpfs", "bind", "plain"] {
        fs::create_dir(dir.path().join(name)).unwrap();
    }
    fs::write(dir.path().join("plain/f"), b"").unwrap();
    let _one = Mounted::new(&["-t", "tmpfs", "none"], &dir.path().join("tmpfs"));
    let plain = dir.path().join("plain");
    // The same device: only the mount tells it.
    let _two = Mounted::new(&["--bind", plain.to_str().unwrap()], &dir.path().join("bind"));
    fs::write(dir.path().join("tmpfs/f"), b"").unwrap();
    for name in ["tmpfs", "bind"] {
        for path in [name, &format!("{name}/f"), &format!("{name}/nothing")] {
            let why = elsewhere(tree.look(&p(path)));
            assert!(why.starts_with(name) && why.contains("mounted"), "{why}");
        }
        assert!(list(&tree, &p(name)).is_err());
        assert!(tree.open(&p(&format!("{name}/f"))).is_err());
    }
    for (name, stat) in list(&tree, &RelPath::root()).unwrap() {
        assert_eq!(stat.is_ok(), name == b"plain", "{name:?}");
    }
}

#[test]
fn another_subvolume_is_neither_entered_nor_gone() {
    let has_btrfs = Command::new("mkfs.btrfs").arg("--version").output().is_ok();
    if !is_root("another_subvolume_is_neither_entered_nor_gone") {
        return;
    }
    if !has_btrfs {
        eprintln!("skipped, needs mkfs.btrfs: another_subvolume_is_neither_entered_nor_gone");
        return;
    }
    let (dir, _) = tree();
    let image = dir.path().join("image");
    fs::File::create(&image).unwrap().set_len(128 << 20).unwrap();
    assert!(Command::new("mkfs.btrfs").arg("-q").arg(&image).output().unwrap().status.success());
    let at = dir.path().join("disk");
    fs::create_dir(&at).unwrap();
    let _mounted = Mounted::new(&["-o", "loop", image.to_str().unwrap()], &at);
    let made = Command::new("btrfs").args(["subvolume", "create"]).arg(at.join("sub")).output().unwrap();
    assert!(made.status.success());
    fs::write(at.join("sub/f"), b"").unwrap();
    let tree = ProvenTree::open(&at).unwrap();
    for path in ["sub", "sub/f", "sub/nothing"] {
        let why = elsewhere(tree.look(&p(path)));
        assert!(why.starts_with("sub: ") && why.contains("subvolume"), "{why}");
    }
    assert!(list(&tree, &RelPath::root()).unwrap()[0].1.is_err());
    assert!(tree.handle(&RelPath::root()).is_some());
    drop(tree);
}

#[test]
fn any_name_that_is_not_a_path_can_be_listed_and_opened() {
    let (dir, tree) = tree();
    let names: [&[u8]; 6] = [b"\xff\xfe", b"new\nline", b" ", b"-rf", b"a\\b", "ü".as_bytes()];
    for name in names {
        fs::write(dir.path().join(OsStr::from_bytes(name)), name).unwrap();
    }
    let mut listed: Vec<Vec<u8>> =
        list(&tree, &RelPath::root()).unwrap().into_iter().map(|(name, _)| name).collect();
    listed.sort();
    let mut expected = names.map(|n| n.to_vec());
    expected.sort();
    assert_eq!(listed, expected);
    for name in names {
        let file = tree.open(&RelPath::parse(name).unwrap()).unwrap();
        let mut buffer = [0; 20];
        let got = file.read_at(&mut buffer, 0).unwrap();
        assert_eq!(&buffer[..got], name);
    }
}

#[test]
fn paths_beyond_path_max_are_reached() {
    let (dir, tree) = tree();
    let name = "d".repeat(200);
    let mut at = rustix::fs::open(dir.path(), OFlags::PATH, Mode::empty()).unwrap();
    let mut path = RelPath::root();
    for _ in 0..100 {
        rustix::fs::mkdirat(&at, &name, Mode::RWXU).unwrap();
        at = rustix::fs::openat(&at, &name, OFlags::PATH, Mode::empty()).unwrap();
        path = path.child(name.as_bytes()).unwrap();
    }
    let file = path.child(b"f").unwrap();
    let made = rustix::fs::openat(&at, "f", OFlags::CREATE | OFlags::WRONLY, Mode::RWXU).unwrap();
    File::from(made).write_at(b"deep", 0).unwrap();
    assert!(file.as_bytes().len() > 4096 * 4);
    for _ in 0..2 {
        assert_eq!(found(tree.look(&file)).size, 4);
        assert_eq!(list(&tree, &path).unwrap().len(), 1);
        assert!(tree.open(&file).is_ok());
        assert_eq!(tree.xattrs(&file).unwrap(), []);
        let absent = path.child(b"x").unwrap();
        assert_eq!(tree.look(&absent), Look::Gone { at: absent });
        tree.release();
    }
}

#[test]
fn only_regular_files_are_opened_and_nothing_blocks() {
    let (dir, tree) = tree();
    let fifo = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(CWD, dir.path().join("fifo"), fifo, Mode::RWXU, 0).unwrap();
    let error = tree.open(&p("fifo")).err().unwrap();
    assert!(error.to_string().contains("fifo"), "{error}");
    assert!(tree.open(&RelPath::root()).is_err());
    assert_eq!(tree.open(&p("x")).err().unwrap().source.kind(), io::ErrorKind::NotFound);
}

#[test]
fn holes_are_told_and_a_change_is_noticed() {
    let (dir, tree) = tree();
    let file = File::create(dir.path().join("f")).unwrap();
    file.set_len(10 << 20).unwrap();
    file.write_at(&[1; 4096], 4 << 20).unwrap();
    let open = tree.open(&p("f")).unwrap();
    assert_eq!(open.stat().size, 10 << 20);
    assert_eq!(open.next_data(0).unwrap(), Some(4 << 20..(4 << 20) + 4096));
    assert_eq!(open.next_data((4 << 20) + 4096).unwrap(), None);
    assert_eq!(open.next_data(20 << 20).unwrap(), None);
    assert!(open.unchanged().unwrap());
    std::thread::sleep(std::time::Duration::from_millis(20));
    file.write_at(&[2], 0).unwrap();
    assert!(!open.unchanged().unwrap());
}

#[test]
fn extended_attributes_and_handles_are_read_without_following() {
    let (dir, tree) = tree();
    fs::write(dir.path().join("f"), b"").unwrap();
    symlink("f", dir.path().join("l")).unwrap();
    xattr::set(dir.path().join("f"), "user.b", b"2").unwrap();
    xattr::set(dir.path().join("f"), "user.a", b"1").unwrap();
    let expected = [(b"user.a".to_vec(), b"1".to_vec()), (b"user.b".to_vec(), b"2".to_vec())];
    assert_eq!(tree.xattrs(&p("f")).unwrap(), expected);
    assert_eq!(tree.xattrs(&p("l")).unwrap(), []);
    if rustix::process::geteuid().is_root() {
        xattr::set(dir.path().join("l"), "trusted.own", b"3").unwrap();
        assert_eq!(tree.xattrs(&p("l")).unwrap(), [(b"trusted.own".to_vec(), b"3".to_vec())]);
    }
    let (file, link) = (tree.handle(&p("f")).unwrap(), tree.handle(&p("l")).unwrap());
    assert_ne!(file, link);
    fs::rename(dir.path().join("f"), dir.path().join("g")).unwrap();
    assert_eq!(tree.handle(&p("g")), Some(file));
}

#[test]
fn every_thread_gets_its_own_answer() {
    let (dir, tree) = tree();
    for top in 0..4 {
        fs::create_dir_all(dir.path().join(format!("{top}/x/y"))).unwrap();
        fs::write(dir.path().join(format!("{top}/x/y/f")), vec![0; top]).unwrap();
    }
    std::thread::scope(|scope| {
        for top in 0..4 {
            let tree = &tree;
            scope.spawn(move || {
                for _ in 0..500 {
                    assert_eq!(found(tree.look(&p(&format!("{top}/x/y/f")))).size, top as u64);
                    assert_eq!(tree.look(&p(&format!("{top}/z"))), Look::Gone { at: p(&format!("{top}/z")) });
                }
            });
        }
    });
}
