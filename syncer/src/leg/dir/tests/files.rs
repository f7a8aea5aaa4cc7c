//! Content and attributes.

use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::sync::atomic::AtomicBool;

use rustix::fs::{CWD, FileType, Mode};
use sha1::Digest;

use super::*;
use crate::tree::SourceFile;
use crate::tree::testing::{is_root, without_rights};

fn sha1(bytes: &[u8]) -> Option<crate::leg::Sha1> {
    Some(sha1::Sha1::digest(bytes).into())
}

fn data_map(path: &Path) -> Vec<Range<u64>> {
    let tree = ProvenTree::open(path.parent().unwrap()).unwrap();
    let file = tree.open(&p(path.file_name().unwrap().to_str().unwrap())).unwrap();
    let mut out: Vec<Range<u64>> = Vec::new();
    while let Some(range) = file.next_data(out.last().map_or(0, |r| r.end)).unwrap() {
        out.push(range);
    }
    out
}

#[test]
fn a_file_arrives_with_content_hash_owner_mode_and_time() {
    let scene = scene();
    let content: Vec<u8> = (0..3_000_000u32).map(|n| (n % 251) as u8).collect();
    fs::write(scene.src("f"), &content).unwrap();
    let root = rustix::process::geteuid().is_root();
    if root {
        std::os::unix::fs::chown(scene.src("f"), Some(1234), Some(2345)).unwrap();
    }
    rustix::fs::chmodat(CWD, scene.src("f"), Mode::from_raw_mode(0o4751), AtFlags::empty()).unwrap();
    let time = File::options().append(true).open(scene.src("f")).unwrap();
    time.set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_nanos(1_234_567_890_123_456_789))
        .unwrap();
    let receipt = scene.mirror("f");
    assert_eq!(receipt.sha1, sha1(&content));
    assert_eq!(fs::read(scene.dest("f")).unwrap(), content);
    let (from, to) = (fs::metadata(scene.src("f")).unwrap(), fs::metadata(scene.dest("f")).unwrap());
    assert_eq!((from.mode(), from.uid(), from.gid()), (to.mode(), to.uid(), to.gid()));
    assert_eq!((to.mtime(), to.mtime_nsec()), (1_234_567_890, 123_456_789));
    assert_eq!((scene.temp_count(), scene.store.unset_count()), (0, 0));
}

#[test]
fn a_time_before_1970_is_kept() {
    let scene = scene();
    fs::write(scene.src("f"), b"").unwrap();
    let mut put = scene.put_of("f");
    put.stat.mtime_ns = -1_500_000_000;
    scene.put(put).unwrap();
    assert_eq!(scene.newest("f").unwrap().mtime_ns, Some(-1_500_000_000));
}

#[test]
fn holes_stay_holes_and_count_as_zeros_in_the_hash() {
    let scene = scene();
    let file = File::create(scene.src("f")).unwrap();
    file.set_len(40 << 20).unwrap();
    for at in [1 << 20, 9 << 20, 30 << 20] {
        file.write_at(&[7; 70_000], at).unwrap();
    }
    file.sync_all().unwrap();
    let receipt = scene.mirror("f");
    let content = fs::read(scene.src("f")).unwrap();
    assert_eq!(receipt.sha1, sha1(&content));
    assert_eq!(fs::read(scene.dest("f")).unwrap(), content);
    assert_eq!(data_map(&scene.dest("f")), data_map(&scene.src("f")));
    assert_eq!(data_map(&scene.dest("f")).len(), 3);
}

#[test]
fn a_small_file_is_written_from_what_was_read_already() {
    let scene = scene();
    let mut content = vec![0; 100_000];
    content[50_000] = 1;
    fs::write(scene.src("f"), &content).unwrap();
    let mut put = scene.put_of("f");
    let What::File(body) = &mut put.what else { unreachable!() };
    body.small = Some((content.clone().into(), [9; 20]));
    fs::write(scene.src("f"), b"changed since").unwrap();
    assert_eq!(scene.put(put).unwrap().sha1, Some([9; 20]));
    assert_eq!(fs::read(scene.dest("f")).unwrap(), content);
    let data = data_map(&scene.dest("f"));
    assert_eq!((data.len(), data[0].clone()), (1, 49_152..53_248));
}

/// A file that somebody writes to while it is read.
struct Restless {
    file: Arc<dyn SourceFile>,
    disturb: Box<dyn Fn() + Send + Sync>,
    disturbed: AtomicBool,
}

impl SourceFile for Restless {
    fn stat(&self) -> &Stat {
        self.file.stat()
    }
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        if !self.disturbed.swap(true, Ordering::Relaxed) {
            (self.disturb)();
        }
        self.file.read_at(buffer, offset)
    }
    fn next_data(&self, from: u64) -> io::Result<Option<Range<u64>>> {
        self.file.next_data(from)
    }
    fn unchanged(&self) -> io::Result<bool> {
        self.file.unchanged()
    }
}

fn restless(scene: &Scene, disturb: impl Fn(&Path) + Send + Sync + 'static) -> Put {
    let mut put = scene.put_of("f");
    let path = scene.src("f");
    let What::File(body) = &mut put.what else { unreachable!() };
    let file = Arc::clone(&body.file);
    let disturb = Box::new(move || disturb(&path));
    body.file = Arc::new(Restless { file, disturb, disturbed: AtomicBool::new(false) });
    put
}

#[test]
fn a_file_that_moves_while_it_is_read_leaves_the_old_version_and_no_temporary_file() {
    let disturbances: [fn(&Path); 3] = [
        |path| {
            File::options().append(true).open(path).unwrap().write_at(b"more", 2_000_000).map(drop).unwrap()
        },
        |path| File::options().write(true).open(path).unwrap().set_len(10).unwrap(),
        |path| File::options().write(true).open(path).unwrap().write_at(b"x", 0).map(drop).unwrap(),
    ];
    for disturb in disturbances {
        let scene = scene();
        let old = scene.write("f", b"old");
        fs::write(scene.src("f"), vec![1; 2_000_000]).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(20));
        let error = scene.put(restless(&scene, disturb)).unwrap_err();
        assert_eq!(error.problem, Problem::Busy, "{error}");
        assert_eq!(fs::read(scene.dest("f")).unwrap(), b"old");
        assert_eq!(scene.newest("f").unwrap().object, old.object);
        assert_eq!((scene.temp_count(), scene.trashed()), (0, trash(&[])));
    }
}

#[test]
fn a_file_of_another_size_than_was_looked_at_is_busy() {
    let scene = scene();
    fs::write(scene.src("f"), b"12345").unwrap();
    let mut put = scene.put_of("f");
    put.stat.size = 4;
    assert_eq!(scene.put(put).unwrap_err().problem, Problem::Busy);
    assert!(scene.newest("f").is_none());
}

#[test]
fn extended_attributes_and_acls_arrive_and_strange_ones_go() {
    let scene = scene();
    fs::write(scene.src("f"), b"").unwrap();
    xattr::set(scene.src("f"), "user.mine", b"1").unwrap();
    // Version 2; user::rw-, user:1234:r--, group::r--, mask::r--, other::---
    let entry = |tag: u16, perm: u16, id: u32| {
        [&tag.to_le_bytes()[..], &perm.to_le_bytes(), &id.to_le_bytes()].concat()
    };
    let none = u32::MAX;
    let acl = [
        2u32.to_le_bytes().to_vec(),
        entry(1, 6, none),
        entry(2, 4, 1234),
        entry(4, 4, none),
        entry(0x10, 4, none),
        entry(0x20, 0, none),
    ]
    .concat();
    xattr::set(scene.src("f"), "system.posix_acl_access", &acl).unwrap();
    // What files made in the destination would inherit.
    fs::create_dir(scene.src("d")).unwrap();
    scene.mirror("d");
    xattr::set(scene.dest("d"), "system.posix_acl_default", &acl).unwrap();
    xattr::set(scene.dest(".longshore/tmp"), "system.posix_acl_default", &acl).unwrap();
    scene.mirror("f");
    assert_eq!(xattr::get(scene.dest("f"), "system.posix_acl_access").unwrap(), Some(acl.clone()));
    assert_eq!(xattr::get(scene.dest("f"), "user.mine").unwrap(), Some(b"1".to_vec()));
    scene.write("d/g", b"");
    assert_eq!(xattr::list(scene.dest("d/g")).unwrap().count(), 0);
    scene.put(attributes(scene.put_of("d"))).unwrap();
    assert_eq!(xattr::list(scene.dest("d")).unwrap().count(), 0);

    xattr::remove(scene.src("f"), "user.mine").unwrap();
    scene.put(attributes(scene.put_of("f"))).unwrap();
    assert_eq!(xattr::get(scene.dest("f"), "user.mine").unwrap(), None);
    assert_eq!(scene.store.unset_count(), 0);
}

#[test]
fn file_capabilities_survive_the_change_of_owner() {
    if !is_root("file_capabilities_survive_the_change_of_owner") {
        return;
    }
    let scene = scene();
    fs::write(scene.src("f"), b"").unwrap();
    std::os::unix::fs::chown(scene.src("f"), Some(1234), Some(1234)).unwrap();
    // VFS_CAP_REVISION_2, CAP_NET_BIND_SERVICE permitted.
    let capability = [0, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    xattr::set(scene.src("f"), "security.capability", &capability).unwrap();
    scene.mirror("f");
    assert_eq!(xattr::get(scene.dest("f"), "security.capability").unwrap(), Some(capability.to_vec()));
    assert_eq!(fs::metadata(scene.dest("f")).unwrap().uid(), 1234);
}

#[test]
fn new_attributes_leave_the_content_and_give_a_receipt_the_listing_agrees_with() {
    let scene = scene();
    scene.write("f", b"content");
    fs::create_dir(scene.src("d")).unwrap();
    scene.mirror("d");
    let ino = fs::metadata(scene.dest("f")).unwrap().ino();
    for path in ["f", "d"] {
        let mode = Mode::from_raw_mode(0o2750);
        rustix::fs::chmodat(CWD, scene.src(path), mode, AtFlags::empty()).unwrap();
        let mut put = attributes(scene.put_of(path));
        put.stat.mtime_ns = 42;
        let receipt = scene.put(put).unwrap();
        let listed = scene.newest(path).unwrap();
        assert_eq!((listed.object, listed.mtime_ns), (receipt.object, Some(42)));
        assert_eq!(fs::metadata(scene.dest(path)).unwrap().mode() & 0o7777, 0o2750);
    }
    assert_eq!(fs::metadata(scene.dest("f")).unwrap().ino(), ino);
    assert_eq!(scene.trashed(), trash(&[]));
}

#[test]
fn symlinks_and_special_files_arrive_as_such() {
    let scene = scene();
    symlink("/etc/passwd", scene.src("l")).unwrap();
    rustix::fs::mknodat(CWD, scene.src("fifo"), FileType::Fifo, Mode::RWXU, 0).unwrap();
    rustix::fs::mknodat(CWD, scene.src("socket"), FileType::Socket, Mode::RWXU, 0).unwrap();
    let mut names = vec!["l", "fifo", "socket"];
    if is_root("symlinks_and_special_files_arrive_as_such: device") {
        let null = rustix::fs::makedev(1, 3);
        rustix::fs::mknodat(CWD, scene.src("null"), FileType::CharacterDevice, Mode::RWXU, null).unwrap();
        std::os::unix::fs::lchown(scene.src("l"), Some(1234), Some(1234)).unwrap();
        names.push("null");
    }
    for name in names {
        let receipt = scene.mirror(name);
        assert_eq!(scene.newest(name).unwrap().object, receipt.object);
        let (from, to) =
            (fs::symlink_metadata(scene.src(name)).unwrap(), fs::symlink_metadata(scene.dest(name)).unwrap());
        let key = |m: &fs::Metadata| (m.mode(), m.uid(), m.rdev(), m.mtime(), m.mtime_nsec());
        assert_eq!(key(&from), key(&to), "{name}");
    }
    assert_eq!(fs::read_link(scene.dest("l")).unwrap(), Path::new("/etc/passwd"));
    assert_eq!(scene.store.unset_count(), 0);
}

#[test]
fn without_rights_the_content_arrives_and_the_rest_is_counted() {
    if !is_root("without_rights_the_content_arrives_and_the_rest_is_counted") {
        return;
    }
    let scene = scene();
    fs::write(scene.src("f"), b"content").unwrap();
    fs::create_dir(scene.src("d")).unwrap();
    std::os::unix::fs::chown(scene.src("f"), Some(1234), Some(1234)).unwrap();
    rustix::fs::chmodat(CWD, scene.src("f"), Mode::from_raw_mode(0o4755), AtFlags::empty()).unwrap();
    rustix::fs::chmodat(CWD, scene.src("d"), Mode::from_raw_mode(0o500), AtFlags::empty()).unwrap();
    let (file, dir, set_dir) = (scene.put_of("f"), scene.put_of("d"), attributes(scene.put_of("d")));
    let mut device = scene.put_of("f");
    device.stat.kind = Kind::BlockDevice;
    device.what = What::Special;
    device.dest = p("device");
    drop(scene.store);
    let store = DirStore::new(setup(scene.dir.path()));
    without_rights(|| {
        store.inner.open().unwrap();
        store.inner.prepare().unwrap();
        store.inner.put(&file).unwrap();
        store.inner.put(&dir).unwrap();
        store.inner.put(&set_dir).unwrap();
        let error = store.inner.put(&device).unwrap_err();
        assert_eq!(error.problem, Problem::Unfit);
        assert!(error.to_string().contains("CAP_MKNOD"), "{error}");
    });
    let mode = |path: &str| fs::metadata(scene.dir.path().join("dest").join(path)).unwrap().mode() & 0o7777;
    assert_eq!(mode("f"), 0o755, "setuid of another owner than meant");
    assert_eq!(mode("d"), 0o700, "a directory that can be filled again");
    assert_eq!(store.unset_count(), 1);
}
