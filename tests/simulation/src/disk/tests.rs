//! What a disk does, by itself.

use super::*;

fn disk(kind: FsKind) -> Disk {
    let mut disk = Disk::new(kind, "7f5e508d-0000-4000-8000-000000000001", 1_000);
    disk.watched = true;
    disk
}

/// What was told since the last time, in short.
fn told(disk: &mut Disk) -> Vec<(u64, String)> {
    let name = |event: Event| {
        let at = event.at.map(|at| String::from_utf8_lossy(&at.name).into_owned()).unwrap_or_default();
        let to = event.to.map(|to| format!(">{}", String::from_utf8_lossy(&to.name))).unwrap_or_default();
        (event.mask, at + &to)
    };
    disk.take_events().into_iter().map(name).collect()
}

fn tell(mask: u64, name: &str) -> (u64, String) {
    (mask, name.to_owned())
}

#[test]
fn ext4_gives_the_number_of_what_is_deleted_to_the_next_and_btrfs_does_not() {
    for (kind, same) in [(FsKind::Ext4, true), (FsKind::Btrfs, false)] {
        let mut disk = disk(kind);
        let first = disk.create(b"a", 0o644).unwrap();
        let handle = disk.handle_of(first);
        disk.unlink(b"a").unwrap();
        let second = disk.create(b"b", 0o644).unwrap();
        assert_eq!(first.ino == second.ino, same);
        assert_eq!(disk.open_by_handle(&handle), Err(Errno::STALE));
        assert_eq!(disk.open_by_handle(&disk.handle_of(second)), Ok(second));
    }
}

#[test]
fn what_is_deleted_and_open_is_found_without_a_name_and_keeps_its_number() {
    let mut disk = disk(FsKind::Ext4);
    disk.put(b"a", b"old").unwrap();
    let fd = disk.open(b"a", How::WRITE).unwrap();
    let id = disk.opened_id(fd).unwrap();
    disk.unlink(b"a").unwrap();
    assert_ne!(disk.create(b"b", 0o644).unwrap().ino, id.ino);
    assert_eq!(disk.stat(disk.open_by_handle(&disk.handle_of(id)).unwrap()).unwrap().nlink, 0);
    told(&mut disk);
    disk.write(fd, 0, b"new").unwrap();
    disk.close(fd).unwrap();
    assert_eq!(told(&mut disk), [tell(libc::FAN_MODIFY, "a"), tell(libc::FAN_CLOSE_WRITE, "a")]);
    assert_eq!(disk.open_by_handle(&disk.handle_of(id)), Err(Errno::STALE));
}

#[test]
fn an_open_file_follows_its_name_and_a_replaced_one_keeps_it() {
    let mut disk = disk(FsKind::Xfs);
    disk.put(b"a", b"1").unwrap();
    disk.put(b"b", b"2").unwrap();
    let (a, b) = (disk.open(b"a", How::WRITE).unwrap(), disk.open(b"b", How::WRITE).unwrap());
    told(&mut disk);
    disk.rename(b"a", b"b").unwrap();
    assert_eq!(told(&mut disk), [tell(libc::FAN_RENAME, "a>b"), tell(libc::FAN_ATTRIB, "")]);
    disk.rename(b"b", b"c").unwrap();
    told(&mut disk);
    disk.write(a, 0, b"x").unwrap();
    disk.write(b, 0, b"y").unwrap();
    assert_eq!(told(&mut disk), [tell(libc::FAN_MODIFY, "c"), tell(libc::FAN_MODIFY, "b")]);
    assert_eq!(disk.read_at(b"c").unwrap(), b"x");
}

#[test]
fn a_power_cut_goes_back_to_the_last_sync_as_a_whole() {
    let mut disk = disk(FsKind::Btrfs);
    disk.put(b"a", b"old").unwrap();
    disk.sync();
    disk.put(b"a", b"new").unwrap();
    let lost = disk.create(b"b", 0o644).unwrap();
    let fd = disk.open(b"a", How::READ).unwrap();
    disk.power_cut();
    assert_eq!((disk.read_at(b"a").unwrap(), disk.lookup(b"b")), (b"old".to_vec(), Err(Errno::NOENT)));
    assert_eq!(disk.close(fd), Err(Errno::BADF));
    assert_eq!(disk.create(b"c", 0o644).unwrap(), lost, "btrfs gives number and generation once more");
}

#[test]
fn what_fails_changes_nothing_and_tells_nothing() {
    let mut disk = disk(FsKind::Ext4);
    disk.mkdir_all(b"d/e", 0o755).unwrap();
    disk.put(b"f", b"").unwrap();
    told(&mut disk);
    let before = format!("{:?}", disk.state);
    assert_eq!(disk.create(b"f", 0o644), Err(Errno::EXIST));
    assert_eq!(disk.create(b"f/x", 0o644), Err(Errno::NOTDIR));
    assert_eq!(disk.create(b"no/x", 0o644), Err(Errno::NOENT));
    assert_eq!(disk.unlink(b"d"), Err(Errno::ISDIR));
    assert_eq!(disk.rmdir(b"d"), Err(Errno::NOTEMPTY));
    assert_eq!(disk.rmdir(b"f"), Err(Errno::NOTDIR));
    assert_eq!(disk.rename(b"d", b"d/e/d"), Err(Errno::INVAL));
    assert_eq!(disk.rename(b"d/e", b"d"), Err(Errno::NOTEMPTY));
    assert_eq!(disk.rename(b"d", b"f"), Err(Errno::NOTDIR));
    assert_eq!(disk.rename(b"f", b"d"), Err(Errno::ISDIR));
    assert_eq!(disk.link(b"d", b"x"), Err(Errno::PERM));
    assert_eq!(disk.create(&[b'x'; 256], 0o644), Err(Errno::NAMETOOLONG));
    disk.full = true;
    assert_eq!(disk.create(b"x", 0o644), Err(Errno::NOSPC));
    disk.read_only = true;
    assert_eq!(disk.unlink(b"f"), Err(Errno::ROFS));
    assert_eq!(format!("{:?}", disk.state), before);
    assert_eq!(told(&mut disk), []);
}

#[test]
fn a_removed_tree_is_told_one_by_one_and_a_subvolume_by_one_event() {
    let mut disk = disk(FsKind::Btrfs);
    disk.make_subvolume(b"s").unwrap();
    disk.mkdir(b"s/d", 0o755).unwrap();
    disk.put(b"s/d/f", b"x").unwrap();
    disk.sync();
    let copy = disk.snapshot(b"s", b"t").unwrap();
    assert_eq!(disk.lookup(b"t/d/f").unwrap().root, copy.root);
    told(&mut disk);
    disk.remove_all(b"t/d").unwrap();
    let dir = libc::FAN_DELETE | libc::FAN_ONDIR;
    let file = [tell(libc::FAN_ATTRIB, ""), tell(libc::FAN_DELETE, "f")];
    assert_eq!(told(&mut disk), [&file[..], &[tell(dir, "d")]].concat());
    disk.delete_subvolume(b"s").unwrap();
    assert_eq!(told(&mut disk), [tell(dir, "s")]);
    assert_eq!(disk.lookup(b"s/d/f"), Err(Errno::NOENT));
    assert_eq!(disk.all().count(), 2);
}

#[test]
fn handles_are_those_of_the_kernel() {
    let id = Id { root: 257, ino: 300, generation: 7 };
    assert_eq!(id.handle(FsKind::Btrfs).bytes[8..16], 257u64.to_le_bytes());
    assert_eq!(Id::of_handle(FsKind::Btrfs, &id.handle(FsKind::Btrfs)), Some(id));
    assert_eq!(Id::of_handle(FsKind::Ext4, &id.handle(FsKind::Btrfs)), None);
    let id = Id { root: 0, ..id };
    for kind in [FsKind::Ext4, FsKind::Xfs] {
        assert_eq!(Id::of_handle(kind, &id.handle(kind)), Some(id));
    }
}

#[test]
fn times_have_the_grain_of_the_filesystem() {
    let mut disk = disk(FsKind::Ext4);
    disk.grain_ns = 4_000_000;
    disk.now_ns = 9_999_999;
    disk.put(b"a", b"x").unwrap();
    assert_eq!(disk.stat_at(b"a").unwrap().mtime_ns, 8_000_000);
}
