//! The machine that the programs run on: what outlives them until it goes down. Disks, what is mounted where, clocks,
//! the kernel's groups.

mod groups;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use shared::entry::Handle;
use shared::identity::Identity;
use shared::path::RelPath;

use crate::disk::{Disk, Errno, FsKind, Id, Kind, Listing};
use crate::store::Content;
pub use groups::{GroupId, Groups};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DiskId(pub usize);

/// One mount of a whole disk.
#[derive(Debug, Clone)]
pub struct Mount {
    /// Never given twice.
    pub id: u64,
    pub disk: DiskId,
    pub point: PathBuf,
    pub dev: u64,
    pub read_only: bool,
}

/// A directory that a path leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub disk: DiskId,
    pub dir: Id,
    pub mount: u64,
    /// As files say it.
    pub dev: u64,
}

pub struct Machine {
    disks: BTreeMap<DiskId, Slot>,
    /// The newest last: it covers those before it at its point.
    mounts: Vec<Mount>,
    groups: Groups,
    boots: u64,
    boot_ns: i64,
    wall_ns: i64,
    next_mount: u64,
    next_dev: u64,
    /// Counts what poll(2) on mountinfo tells of.
    mounts_changed: u64,
}

struct Slot {
    disk: Disk,
    /// Device number of this attachment.
    dev: u64,
    /// Descriptors that programs hold open on it.
    held: u32,
    /// Where it belongs, if it is one of the world's own.
    home: Option<PathBuf>,
}

/// The system's own disk: the directories that others are mounted on.
const SYSTEM: DiskId = DiskId(usize::MAX);
/// Inode number of a file, as device numbers go: 8 bits of major, 8 of minor.
const FIRST_DEV: u64 = 0x700;

impl Machine {
    pub fn new(wall_ns: i64) -> Machine {
        let system = Disk::new(FsKind::Ext4, "00000000-0000-4000-b000-000000000000", wall_ns);
        let slot = Slot { disk: system, dev: FIRST_DEV, held: 0, home: None };
        Machine {
            disks: BTreeMap::from([(SYSTEM, slot)]),
            mounts: Vec::new(),
            groups: Groups::default(),
            boots: 1,
            boot_ns: 1_000_000_000,
            wall_ns,
            next_mount: 100,
            next_dev: FIRST_DEV + 1,
            mounts_changed: 0,
        }
    }

    pub fn set_queue_max(&mut self, max: usize) {
        self.groups.queue_max = max;
    }

    pub fn groups(&mut self) -> &mut Groups {
        &mut self.groups
    }

    pub fn queue_max(&self) -> usize {
        self.groups.queue_max
    }

    pub fn any_queued(&self) -> bool {
        self.groups.any_queued()
    }

    pub fn boot_id(&self) -> String {
        format!("boot-{}", self.boots)
    }

    pub fn boot_ns(&self) -> i64 {
        self.boot_ns
    }

    pub fn wall_ns(&self) -> i64 {
        self.wall_ns
    }

    pub fn go_by(&mut self, ns: i64) {
        self.boot_ns += ns;
        self.wall_ns += ns;
    }

    pub fn wait_until(&mut self, boot_ns: i64) {
        self.go_by((boot_ns - self.boot_ns).max(0));
    }

    /// Somebody sets the clock.
    pub fn jump(&mut self, ns: i64) {
        self.wall_ns = self.wall_ns.saturating_add(ns);
    }

    /// A disk of the world, mounted at its place.
    pub fn add_disk(&mut self, id: DiskId, disk: Disk, home: &Path) {
        let path = as_path(home);
        self.system().mkdir_all(&path, 0o755).expect("the system's disk takes a directory");
        let dev = self.new_dev();
        self.disks.insert(id, Slot { disk, dev, held: 0, home: Some(home.to_owned()) });
        self.mount(id);
    }

    fn system(&mut self) -> &mut Disk {
        &mut self.slot_mut(SYSTEM).disk
    }

    fn new_dev(&mut self) -> u64 {
        self.next_dev += 1;
        self.next_dev - 1
    }

    fn slot(&self, id: DiskId) -> &Slot {
        &self.disks[&id]
    }

    fn slot_mut(&mut self, id: DiskId) -> &mut Slot {
        self.disks.get_mut(&id).expect("a disk that was added")
    }

    /// The device number of an attached disk.
    pub fn dev(&self, id: DiskId) -> u64 {
        self.slot(id).dev
    }

    pub fn disk(&self, id: DiskId) -> &Disk {
        &self.slot(id).disk
    }

    /// Changes something on a disk; who marked it is told.
    pub fn act<T>(
        &mut self,
        id: DiskId,
        work: impl FnOnce(&mut Disk) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        let (now_ns, watched) = (self.wall_ns, self.groups.is_watched(id));
        let slot = self.disks.get_mut(&id).ok_or(Errno::NODEV)?;
        slot.disk.now_ns = now_ns;
        slot.disk.watched = watched;
        let done = work(&mut slot.disk);
        let events = slot.disk.take_events();
        if !events.is_empty() {
            self.groups.tell(id, slot.disk.kind, events);
        }
        done
    }

    // What is mounted.

    pub fn mounts(&self) -> impl Iterator<Item = &Mount> {
        self.mounts.iter()
    }

    pub fn mounts_changed(&self) -> u64 {
        self.mounts_changed
    }

    pub fn is_mount_point(&self, path: &Path) -> bool {
        self.mounts.iter().any(|mount| mount.point == path)
    }

    pub fn is_mounted(&self, id: DiskId) -> bool {
        self.mounts.iter().any(|mount| mount.disk == id)
    }

    /// At its home, over whatever is mounted there.
    pub fn mount(&mut self, id: DiskId) {
        let Some(point) = self.slot(id).home.clone() else { return };
        self.mount_at(id, point);
    }

    fn mount_at(&mut self, disk: DiskId, point: PathBuf) {
        let (id, dev) = (self.next_mount, self.slot(disk).dev);
        self.next_mount += 1;
        self.mounts.push(Mount { id, disk, point, dev, read_only: false });
        self.mounts_changed += 1;
    }

    /// The topmost mount at a point. EBUSY while somebody holds something open there.
    pub fn umount(&mut self, point: &Path) -> Result<(), Errno> {
        let at = self.mounts.iter().rposition(|mount| mount.point == point).ok_or(Errno::INVAL)?;
        let disk = self.mounts[at].disk;
        if self.slot(disk).held > 0 || self.disk(disk).is_held() {
            return Err(Errno::BUSY);
        }
        self.take_down(at);
        Ok(())
    }

    /// It is seen no more; what is held open lives on.
    pub fn umount_lazily(&mut self, point: &Path) -> Result<(), Errno> {
        let at = self.mounts.iter().rposition(|mount| mount.point == point).ok_or(Errno::INVAL)?;
        self.take_down(at);
        Ok(())
    }

    fn take_down(&mut self, at: usize) {
        let disk = self.mounts.remove(at).disk;
        self.mounts_changed += 1;
        if !self.is_mounted(disk) {
            self.groups.unmark_disk(disk);
            let slot = self.slot_mut(disk);
            if !slot.disk.dead {
                slot.disk.sync();
            }
        }
    }

    /// It is pulled out while it is mounted: the mount stays, dead.
    pub fn vanish(&mut self, id: DiskId) {
        self.slot_mut(id).disk.dead = true;
    }

    /// It is plugged in, in its place, under a number of its own; what was mounted there is not any more.
    pub fn bring_back(&mut self, id: DiskId) {
        let Some(point) = self.slot(id).home.clone() else { return };
        let alone = self.mounts.iter().filter(|mount| mount.point == point).map(|mount| mount.disk);
        if !self.disk(id).dead && alone.eq([id]) {
            return;
        }
        while let Some(at) = self.mounts.iter().rposition(|mount| mount.point == point) {
            self.take_down(at);
        }
        let dev = self.new_dev();
        let slot = self.slot_mut(id);
        if slot.disk.dead {
            // What had not reached it is lost.
            slot.disk.dead = false;
            slot.disk.power_cut();
        }
        slot.dev = dev;
        slot.held = 0;
        self.mount(id);
    }

    /// Another disk is mounted over whatever is mounted at the home of this one.
    pub fn mount_stranger(&mut self, at: DiskId, stranger: Disk) {
        let Some(point) = self.slot(at).home.clone() else { return };
        let (id, dev) = (DiskId(1_000 + self.next_mount as usize), self.new_dev());
        self.disks.insert(id, Slot { disk: stranger, dev, held: 0, home: None });
        self.mount_at(id, point);
    }

    pub fn set_read_only(&mut self, id: DiskId, read_only: bool) {
        self.slot_mut(id).disk.read_only = read_only;
        self.mounts.iter_mut().filter(|mount| mount.disk == id).for_each(|m| m.read_only = read_only);
    }

    pub fn sync_disk(&mut self, id: DiskId) {
        let slot = self.slot_mut(id);
        if !slot.disk.dead {
            slot.disk.sync();
        }
    }

    /// A program holds something open on it.
    pub fn hold(&mut self, id: DiskId) {
        self.slot_mut(id).held += 1;
    }

    pub fn let_go(&mut self, id: DiskId) {
        if let Some(slot) = self.disks.get_mut(&id) {
            slot.held = slot.held.saturating_sub(1);
        }
    }

    /// What is held open on the disks, all together.
    pub fn held_count(&self) -> u32 {
        self.disks.values().map(|slot| slot.held).sum()
    }

    // Paths.

    /// The disk that a path leads to, and the path on it.
    pub fn find(&self, path: &[u8]) -> Result<(DiskId, Vec<u8>), Errno> {
        let under = |mount: &&Mount| {
            let point = as_bytes(&mount.point);
            path == point || (path.starts_with(point) && path.get(point.len()) == Some(&b'/'))
        };
        match self.mounts.iter().rev().find(under) {
            Some(mount) => {
                let rest = &path[as_bytes(&mount.point).len()..];
                Ok((mount.disk, rest.strip_prefix(b"/").unwrap_or(rest).to_vec()))
            }
            None => Ok((SYSTEM, path.strip_prefix(b"/").unwrap_or(path).to_vec())),
        }
    }

    /// The directory at a path.
    pub fn place(&self, path: &Path) -> Result<Place, Errno> {
        let (disk, below) = self.find(as_bytes(path))?;
        let dir = self.disk(disk).lookup(&below)?;
        if !self.disk(disk).inode(dir)?.is_dir() {
            return Err(Errno::NOTDIR);
        }
        let point = |mount: &&Mount| mount.disk == disk && path.starts_with(&mount.point);
        let mount = self.mounts.iter().rev().find(point).map_or(1, |mount| mount.id);
        Ok(Place { disk, dir, mount, dev: self.slot(disk).dev })
    }

    /// A directory is opened: its disk is asked.
    pub fn open_dir(&self, place: &Place) -> Result<(), Errno> {
        let disk = self.disk(place.disk);
        if disk.dead && disk.kind != FsKind::Ext4 { Err(Errno::IO) } else { Ok(()) }
    }

    pub fn identity(&self, place: &Place) -> Result<Identity, Errno> {
        let disk = self.disk(place.disk);
        let stat = disk.stat(place.dir)?;
        Ok(Identity {
            fs: disk.kind.name().to_owned(),
            uuid: Some(disk.uuid.clone()),
            subvolume: (disk.kind == FsKind::Btrfs).then_some(place.dir.root),
            inode: stat.ino,
            btime_ns: stat.btime_ns,
        })
    }

    /// Something is mounted on this directory.
    pub fn is_covered(&self, disk: DiskId, dir: Id) -> bool {
        disk == SYSTEM
            && self.mounts.iter().any(|mount| self.disk(SYSTEM).lookup(&as_path(&mount.point)) == Ok(dir))
    }

    // What an oracle asks.

    /// Whether a path lies on the disk that belongs there, or one that nothing tells from it, and it works.
    pub fn is_home(&self, path: &Path) -> bool {
        let found = self.find(as_bytes(path));
        found.is_ok_and(|(disk, _)| self.is_disk_of(disk, path) && !self.disk(disk).dead)
    }

    /// Whether this is the disk that belongs to a path, or nothing tells it from that.
    pub fn is_disk_of(&self, disk: DiskId, path: &Path) -> bool {
        let home = self.disks.values().find(|slot| slot.home.as_ref().is_some_and(|h| path.starts_with(h)));
        let disk = self.disk(disk);
        home.is_some_and(|home| home.disk.uuid == disk.uuid)
    }

    /// What stands at a path below a root.
    pub fn stat_at(&self, root: &Path, path: &RelPath) -> Option<(DiskId, Id)> {
        let place = self.place(root).ok()?;
        let mut at = place.dir;
        for name in path.components() {
            at = self.disk(place.disk).child(at, name).ok()?;
        }
        Some((place.disk, at))
    }

    /// What stands at a path below a directory of a disk.
    pub fn kind_below(&self, disk: DiskId, top: Id, path: &RelPath) -> Option<Kind> {
        let mut at = top;
        for name in path.components() {
            at = self.disk(disk).child(at, name).ok()?;
        }
        Some(self.disk(disk).inode(at).ok()?.kind)
    }

    pub fn handle_at(&self, root: &Path, path: &RelPath) -> Option<Handle> {
        let (disk, id) = self.stat_at(root, path)?;
        Some(self.disk(disk).handle_of(id))
    }

    /// Content and time of a file.
    pub fn content_at(&self, root: &Path, path: &RelPath) -> Option<(Vec<u8>, i64)> {
        let (disk, id) = self.stat_at(root, path)?;
        let inode = self.disk(disk).inode(id).ok()?;
        (inode.kind == Kind::File).then(|| (inode.content.bytes(), inode.mtime_ns))
    }

    /// A directory and everything below it, by `each`, which says whether to enter.
    pub fn walk(&self, root: &Path, each: &mut dyn FnMut(&RelPath, &crate::disk::Stat, Id, &Disk) -> bool) {
        let Ok(place) = self.place(root) else { return };
        let disk = self.disk(place.disk);
        if let Ok(stat) = disk.stat(place.dir) {
            each(&RelPath::root(), &stat, place.dir, disk);
        }
        let mut todo = vec![(RelPath::root(), place.dir)];
        while let Some((path, dir)) = todo.pop() {
            for (name, id, _) in disk.list(dir, Listing::Whole).0 {
                let (Ok(path), Ok(stat)) = (path.child(&name), disk.stat(id)) else { continue };
                let enters = id.root == place.dir.root && each(&path, &stat, id, disk);
                if enters && stat.kind.is_dir() {
                    todo.push((path, id));
                }
            }
        }
    }

    // The machine goes down.

    /// Without a warning: what had not reached the disks is lost.
    pub fn power_cut(&mut self) {
        for slot in self.disks.values_mut() {
            slot.disk.power_cut();
        }
        self.boot();
    }

    /// In order.
    pub fn reboot(&mut self) {
        for slot in self.disks.values_mut().filter(|slot| !slot.disk.dead) {
            slot.disk.settle();
        }
        self.boot();
    }

    /// The disks that are there are mounted where they belong.
    fn boot(&mut self) {
        self.groups.clear();
        self.mounts.clear();
        self.boots += 1;
        self.go_by(20_000_000_000);
        self.boot_ns = 1_000_000_000;
        self.disks.retain(|id, slot| *id == SYSTEM || slot.home.is_some());
        let ids: Vec<DiskId> = self.disks.keys().copied().filter(|id| *id != SYSTEM).collect();
        for id in ids {
            let dev = self.new_dev();
            let slot = self.slot_mut(id);
            slot.held = 0;
            slot.dev = dev;
            slot.disk.read_only = false;
            if !slot.disk.dead {
                self.mount(id);
            }
        }
    }
}

impl Machine {
    /// The hash of a file's content, or of where a link leads.
    pub fn content_hash(disk: &Disk, id: Id) -> u128 {
        let bytes = disk.inode(id).map(|inode| inode.content.bytes()).unwrap_or_default();
        let sha1 = Content::of(bytes).sha1;
        u128::from_be_bytes(*sha1.first_chunk().expect("20 bytes"))
    }
}

fn as_bytes(path: &Path) -> &[u8] {
    use std::os::unix::ffi::OsStrExt as _;
    path.as_os_str().as_bytes()
}

/// As a disk takes it.
fn as_path(path: &Path) -> Vec<u8> {
    as_bytes(path).strip_prefix(b"/").unwrap_or_default().to_vec()
}
