//! What a machine does, by itself.

use super::*;
use crate::disk::{Errno, FsKind};
use shared::entry::Handle;
use tracker::intake::records::count;

const PID: u32 = 7;

/// A machine with an ext4 disk mounted at /mnt, and its device number.
fn machine() -> (Machine, u64) {
    let mut machine = Machine::new(Disk::new(FsKind::Ext4, "system", 1), 1_000);
    machine.act(1, 1, |disk| ["mnt", "bind"].map(|dir| disk.mkdir(dir.as_bytes(), 0o755).unwrap())).unwrap();
    machine.act(1, 1, Disk::sync).unwrap();
    let dev = machine.plug(Disk::new(FsKind::Ext4, "data", 1));
    machine.fstab = vec![FstabLine { uuid: "data".to_owned(), point: b"/mnt".to_vec(), part: Vec::new() }];
    machine.mount(dev, b"/mnt", b"").unwrap();
    (machine, dev)
}

fn put(machine: &mut Machine, path: &[u8]) -> Result<(), Errno> {
    let (dev, path) = machine.place(path)?;
    machine.act(PID, dev, |disk| disk.put(&path, b"x")).unwrap()
}

fn queued(machine: &Machine, group: GroupId) -> u64 {
    machine.queue(group).map_or(0, Queue::len)
}

#[test]
fn an_unmount_takes_the_mark_and_says_nothing() {
    let (mut machine, dev) = machine();
    let group = machine.new_group(PID, 100);
    machine.mark(group, dev).unwrap();
    put(&mut machine, b"/mnt/a").unwrap();
    assert_eq!(queued(&machine, group), 1);
    let hold = machine.hold(PID, b"/mnt").unwrap();
    assert_eq!(machine.umount(b"/mnt"), Err(Errno::BUSY));
    machine.release(hold);
    machine.umount(b"/mnt").unwrap();
    assert!(!machine.fdinfo(group).unwrap().contains("sdev"));
    machine.mount(dev, b"/mnt", b"").unwrap();
    put(&mut machine, b"/mnt/b").unwrap();
    assert!(!machine.is_marked(group, dev));
    assert_eq!(count(&machine.read(group, 4096).unwrap()), 1);
}

#[test]
fn what_is_written_beneath_a_mount_goes_to_the_system_disk() {
    let (mut machine, dev) = machine();
    machine.umount(b"/mnt").unwrap();
    put(&mut machine, b"/mnt/a").unwrap();
    machine.mount(dev, b"/mnt", b"").unwrap();
    assert_eq!(machine.resolve(b"/mnt/a"), Err(Errno::NOENT));
    assert!(machine.disk(1).unwrap().lookup(b"mnt/a").is_ok());
}

#[test]
fn of_stacked_mounts_the_last_one_is_seen_and_the_other_comes_back() {
    let (mut machine, dev) = machine();
    put(&mut machine, b"/mnt/lower").unwrap();
    let old = machine.unplug(dev).unwrap();
    assert!(old.lookup(b"lower").is_err(), "it was not written out");
    let again = machine.plug(old);
    assert_ne!(again, dev);
    machine.mount(again, b"/mnt", b"").unwrap();
    put(&mut machine, b"/mnt/upper").unwrap();
    assert_eq!(machine.mountinfo().len(), 3);
    machine.umount(b"/mnt").unwrap();
    assert_eq!(machine.resolve(b"/mnt").unwrap().dev, dev);
    assert_eq!(put(&mut machine, b"/mnt/dead"), Err(Errno::IO));
    machine.umount(b"/mnt").unwrap();
    assert!(machine.disk(dev).is_none());
}

#[test]
fn a_lazy_unmount_leaves_the_mark_to_what_is_open() {
    let (mut machine, dev) = machine();
    let group = machine.new_group(PID, 100);
    machine.mark(group, dev).unwrap();
    let hold = machine.hold(PID, b"/mnt").unwrap();
    machine.umount_lazily(b"/mnt").unwrap();
    assert_eq!(machine.resolve(b"/mnt").unwrap().dev, 1);
    assert!(machine.is_marked(group, dev));
    machine.act(PID, dev, |disk| disk.put(b"a", b"x")).unwrap().unwrap();
    assert_eq!(queued(&machine, group), 1);
    machine.release(hold);
    assert!(!machine.is_marked(group, dev));
}

#[test]
fn what_is_mounted_over_a_directory_hides_the_mounts_below_it() {
    let (mut machine, dev) = machine();
    machine.act(PID, dev, |disk| disk.mkdir_all(b"d/mnt", 0o755)).unwrap().unwrap();
    machine.bind(b"/mnt/d", b"/bind").unwrap();
    let other = machine.plug(Disk::new(FsKind::Xfs, "other", 1));
    machine.mount(other, b"/mnt/d/mnt", b"").unwrap();
    assert_eq!(machine.resolve(b"/mnt/d/mnt").unwrap().dev, other);
    assert_eq!(machine.resolve(b"/bind/mnt").unwrap().dev, dev);
    put(&mut machine, b"/bind/f").unwrap();
    assert!(machine.resolve(b"/mnt/d/f").is_ok());
    assert_eq!(machine.umount(b"/mnt"), Err(Errno::BUSY));
    let clone = machine.plug(Disk::new(FsKind::Ext4, "data", 1));
    machine.mount(clone, b"/mnt", b"").unwrap();
    assert_eq!(machine.resolve(b"/mnt/d/mnt"), Err(Errno::NOENT));
}

#[test]
fn what_the_service_manager_keeps_outlives_the_process_and_not_a_reboot() {
    let (mut machine, dev) = machine();
    let (kept, lost) = (machine.new_group(PID, 100), machine.new_group(PID, 100));
    machine.mark(kept, dev).unwrap();
    machine.keep("group", Kept::Group(kept));
    machine.end_process(PID);
    assert_eq!(machine.read(lost, 100), Err(Errno::BADF));
    put(&mut machine, b"/mnt/a").unwrap();
    assert_eq!(machine.take_kept(8, "group").unwrap().group(), Some(kept));
    assert_eq!(queued(&machine, kept), 1);
    let boot = machine.boot_id();
    machine.power_cut();
    assert_ne!(machine.boot_id(), boot);
    assert!(machine.take_kept(8, "group").is_none());
    assert_eq!(machine.resolve(b"/mnt/a"), Err(Errno::NOENT));
    assert_eq!(machine.resolve(b"/mnt").unwrap().dev, dev);
}

#[test]
fn a_failed_read_loses_an_event_only_where_the_kernel_does() {
    let (mut machine, dev) = machine();
    let group = machine.new_group(PID, 100);
    machine.mark(group, dev).unwrap();
    put(&mut machine, b"/mnt/a").unwrap();
    put(&mut machine, b"/mnt/b").unwrap();
    for (error, left) in [(Errno::IO, 2), (Errno::FAULT, 1)] {
        machine.fail_read(group, error);
        assert_eq!(machine.read(group, 4096), Err(error));
        assert_eq!(queued(&machine, group), left);
    }
}

#[test]
fn handles_lead_up_to_what_is_known() {
    let (mut machine, dev) = machine();
    machine.act(PID, dev, |disk| disk.mkdir_all(b"a/b", 0o755)).unwrap().unwrap();
    put(&mut machine, b"/mnt/a/b/f").unwrap();
    let handle = |machine: &Machine, path: &[u8]| {
        let disk = machine.disk(dev).unwrap();
        disk.handle_of(disk.lookup(path).unwrap())
    };
    let (top, b, f) = (handle(&machine, b""), handle(&machine, b"a/b"), handle(&machine, b"a/b/f"));
    let links = machine.links_up(dev, &b, |dir: &Handle| *dir == top).unwrap();
    assert_eq!(links.iter().map(|link| &*link.name).collect::<Vec<_>>(), [b"b", b"a"]);
    assert_eq!(machine.name_of(dev, &f, |_| 0).unwrap().unwrap(), (b.clone(), (*b"f")[..].into(), true));
    assert!(machine.has(dev, &b, b"f", &f));
    let (identity, attachment) = machine.identity(machine.resolve(b"/mnt").unwrap()).unwrap();
    assert_eq!((identity.inode, attachment.dev), (2, dev));
    machine.act(PID, dev, |disk| disk.remove_all(b"a")).unwrap().unwrap();
    assert_eq!(machine.links_up(dev, &b, |_| false), Err(Errno::STALE));
    assert_eq!(machine.name_of(dev, &f, |_| 0), Err(Errno::STALE));
}
