//! The disks of a world: which of them belongs where, what becomes of it, and what stands on it for whoever looks past
//! the programs.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use shared::entry::Handle;
use shared::path::RelPath;

use crate::disk::{Disk, Errno, FsKind, Id, Kind, Listing, Stat};
use crate::machine::{FstabLine, Machine, Spot};
use crate::store::Content;

/// The processes of people: not those of programs, which count from `PROGRAMS` on.
pub const PEOPLE: u32 = 7;
pub const PROGRAMS: u32 = 1_000;

/// What a boot takes.
const BOOT_NS: i64 = 20_000_000_000;

/// The world's own disks, and others that somebody mounts in their places.
pub struct Disks {
    own: Vec<Own>,
    strangers: Vec<Stranger>,
    /// Never goes back: no two strangers are the same.
    strangers_seen: usize,
}

struct Own {
    point: Vec<u8>,
    medium: Medium,
}

/// Where a disk of the world is.
enum Medium {
    /// In the machine, under this number.
    In(u64),
    /// Pulled out.
    Out(Box<Disk>),
}

struct Stranger {
    dev: u64,
    /// The disk in whose place it is.
    at: usize,
}

impl Disks {
    /// Puts the disks into a machine, and mounts each where it belongs.
    pub fn new(disks: Vec<(PathBuf, Disk)>, wall_ns: i64) -> (Disks, Machine) {
        let mut system = Disk::new(FsKind::Ext4, "00000000-0000-4000-b000-000000000000", wall_ns);
        for (point, _) in &disks {
            let path = point.as_os_str().as_bytes();
            system.mkdir_all(&path[1..], 0o755).expect("a new disk takes a directory");
        }
        system.sync();
        let mut machine = Machine::new(system, wall_ns);
        machine.pass_time(BOOT_NS);
        let mut own = Vec::new();
        for (point, disk) in disks {
            let point = point.into_os_string().into_encoded_bytes();
            machine.fstab.push(FstabLine { uuid: disk.uuid.clone(), point: point.clone(), part: Vec::new() });
            let dev = machine.plug(disk);
            machine.mount(dev, &point, b"").expect("a new disk can be mounted");
            own.push(Own { point, medium: Medium::In(dev) });
        }
        (Disks { own, strangers: Vec::new(), strangers_seen: 0 }, machine)
    }

    pub fn count(&self) -> usize {
        self.own.len()
    }

    fn dev(&self, disk: usize) -> Option<u64> {
        match self.own[disk].medium {
            Medium::In(dev) => Some(dev),
            Medium::Out(_) => None,
        }
    }

    /// Where it belongs, if it is in the machine and not mounted already.
    pub fn mount(&self, machine: &mut Machine, disk: usize) {
        let Some(dev) = self.dev(disk) else { return };
        if machine.mountinfo().iter().all(|mount| mount.dev != dev) {
            // Refused as long as what is left of its last time is in use.
            let _ = machine.mount(dev, &self.own[disk].point, b"");
        }
    }

    /// Whatever is mounted last in its place. One that is in use stays.
    pub fn umount(&self, machine: &mut Machine, disk: usize) {
        let _ = machine.umount(&self.own[disk].point);
    }

    pub fn umount_lazily(&self, machine: &mut Machine, disk: usize) {
        let _ = machine.umount_lazily(&self.own[disk].point);
    }

    /// It is pulled out while it is mounted: the mount stays, dead.
    pub fn vanish(&mut self, machine: &mut Machine, disk: usize) {
        if let Some(medium) = self.dev(disk).and_then(|dev| machine.unplug(dev)) {
            self.own[disk].medium = Medium::Out(Box::new(medium));
        }
    }

    /// It is plugged in, under another number if what is left of it is still there, and mounted where it belongs; what
    /// was mounted there is not any more.
    pub fn bring_back(&mut self, machine: &mut Machine, disk: usize) {
        if self.is_alone(machine, disk) {
            return self.pull_strangers(machine, disk);
        }
        if let Medium::Out(medium) = &self.own[disk].medium {
            let mut medium = medium.clone();
            medium.read_only = false;
            let dev = machine.plug(*medium);
            self.own[disk].medium = Medium::In(dev);
        }
        self.clear(machine, disk);
        self.mount(machine, disk);
    }

    /// It is mounted where it belongs, and nothing over or under it.
    fn is_alone(&self, machine: &Machine, disk: usize) -> bool {
        let point = Path::new(OsStr::from_bytes(&self.own[disk].point));
        let mounts = machine.mountinfo();
        let there = mounts.iter().filter(|mount| mount.point == point).map(|mount| mount.dev);
        self.dev(disk).is_some_and(|dev| there.eq([dev]))
    }

    /// Nothing is mounted in its place any more, and others than it are pulled out.
    fn clear(&mut self, machine: &mut Machine, disk: usize) {
        let point = &self.own[disk].point;
        while machine.is_mount_point(point) {
            if machine.umount(point).is_err() && machine.umount_lazily(point).is_err() {
                break;
            }
        }
        self.pull_strangers(machine, disk);
    }

    fn pull_strangers(&mut self, machine: &mut Machine, disk: usize) {
        for stranger in self.strangers.extract_if(.., |stranger| stranger.at == disk) {
            machine.unplug(stranger.dev);
        }
    }

    /// An empty disk is mounted over whatever is mounted there.
    pub fn swap(&mut self, machine: &mut Machine, disk: usize) {
        self.strangers_seen += 1;
        let uuid = format!("00000000-0000-4000-a000-{:012}", self.strangers_seen);
        let stranger = Disk::new(self.kind(machine, disk), &uuid, machine.wall_ns);
        self.mount_over(machine, disk, stranger);
    }

    fn kind(&self, machine: &Machine, disk: usize) -> FsKind {
        match &self.own[disk].medium {
            Medium::In(dev) => machine.disk(*dev).map_or(FsKind::Ext4, |disk| disk.kind),
            Medium::Out(medium) => medium.kind,
        }
    }

    /// A copy as of the last sync is mounted over it; or in its place, where the filesystem refuses two that have the same
    /// UUID.
    pub fn clone_disk(&mut self, machine: &mut Machine, disk: usize) {
        let copy = match &self.own[disk].medium {
            Medium::In(dev) => machine.disk(*dev).cloned(),
            Medium::Out(medium) => Some((**medium).clone()),
        };
        let Some(mut copy) = copy else { return };
        copy.power_cut();
        if !self.mount_over(machine, disk, copy.clone()) {
            self.clear(machine, disk);
            self.mount_over(machine, disk, copy);
        }
    }

    fn mount_over(&mut self, machine: &mut Machine, at: usize, stranger: Disk) -> bool {
        let dev = machine.plug(stranger);
        let mounted = machine.mount(dev, &self.own[at].point, b"").is_ok();
        if mounted {
            self.strangers.push(Stranger { dev, at });
        } else {
            machine.unplug(dev);
        }
        mounted
    }

    pub fn set_read_only(&self, machine: &mut Machine, disk: usize, read_only: bool) {
        if let Some(dev) = self.dev(disk) {
            machine.act(PEOPLE, dev, |disk| disk.read_only = read_only);
        }
    }

    pub fn sync(&self, machine: &mut Machine, disk: usize) {
        if let Some(dev) = self.dev(disk) {
            machine.act(PEOPLE, dev, Disk::sync);
        }
    }

    /// The machine comes up with its own disks; in order or after a power cut.
    pub fn boot(&mut self, machine: &mut Machine, in_order: bool) {
        for stranger in self.strangers.drain(..) {
            machine.unplug(stranger.dev);
        }
        (0..self.own.len()).for_each(|disk| self.set_read_only(machine, disk, false));
        if in_order {
            machine.reboot()
        } else {
            machine.power_cut()
        }
        machine.pass_time(BOOT_NS);
    }
}

/// What somebody sees who looks past the programs.
impl Machine {
    pub fn spot(&self, path: &Path) -> Result<Spot, Errno> {
        self.resolve(path.as_os_str().as_bytes())
    }

    /// Whether a path lies on the disk that belongs there, or one that nothing tells from it, and it works.
    pub fn is_home(&self, path: &Path) -> bool {
        let dev = self.spot(path).map(|spot| spot.dev);
        dev.is_ok_and(|dev| self.is_disk_of(dev, path) && self.disk(dev).is_some_and(|disk| !disk.dead))
    }

    /// Whether this is the disk that belongs to a path, or nothing tells it from that.
    pub fn is_disk_of(&self, dev: u64, path: &Path) -> bool {
        let is_at = |line: &&FstabLine| path.starts_with(OsStr::from_bytes(&line.point));
        let line = self.fstab.iter().find(is_at);
        line.zip(self.disk(dev)).is_some_and(|(line, disk)| line.uuid == disk.uuid)
    }

    /// What stands at a path below a directory of a disk.
    pub fn below(&self, dev: u64, top: Id, path: &RelPath) -> Option<(&Disk, Id)> {
        let disk = self.disk(dev)?;
        let mut at = top;
        for name in path.components() {
            at = disk.child(at, name).ok()?;
        }
        Some((disk, at))
    }

    /// What stands at a path below a root.
    pub fn seen_at(&self, root: &Path, path: &RelPath) -> Option<(u64, Id)> {
        let spot = self.spot(root).ok()?;
        let (_, id) = self.below(spot.dev, spot.id, path)?;
        Some((spot.dev, id))
    }

    pub fn handle_at(&self, root: &Path, path: &RelPath) -> Option<Handle> {
        let (dev, id) = self.seen_at(root, path)?;
        Some(self.disk(dev)?.handle_of(id))
    }

    /// Content and time of a file.
    pub fn content_at(&self, root: &Path, path: &RelPath) -> Option<(Vec<u8>, i64)> {
        let (dev, id) = self.seen_at(root, path)?;
        let inode = self.disk(dev)?.inode(id).ok()?;
        (inode.kind == Kind::File).then(|| (inode.content.bytes(), inode.mtime_ns))
    }

    /// A directory and everything below it, by `each`, which says whether to enter.
    pub fn walk(&self, root: &Path, each: &mut dyn FnMut(&RelPath, &Stat, Id, &Disk) -> bool) {
        let Ok(Spot { dev, id: top, .. }) = self.spot(root) else { return };
        let Some(disk) = self.disk(dev) else { return };
        if let Ok(stat) = disk.stat(top) {
            each(&RelPath::root(), &stat, top, disk);
        }
        let mut todo = vec![(RelPath::root(), top)];
        while let Some((path, dir)) = todo.pop() {
            for (name, id, _) in disk.list(dir, Listing::Whole).0 {
                let (Ok(path), Ok(stat)) = (path.child(&name), disk.stat(id)) else { continue };
                let enters = id.root == top.root && each(&path, &stat, id, disk);
                if enters && stat.kind.is_dir() {
                    todo.push((path, id));
                }
            }
        }
    }
}

/// The hash of a file's content, or of where a link leads.
pub fn content_hash(disk: &Disk, id: Id) -> u128 {
    let bytes = disk.inode(id).map(|inode| inode.content.bytes()).unwrap_or_default();
    let sha1 = Content::of(bytes).sha1;
    u128::from_be_bytes(*sha1.first_chunk().expect("20 bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn world(kind: FsKind) -> (Disks, Machine) {
        Disks::new(vec![(PathBuf::from("/d0"), Disk::new(kind, "own", 1))], 1)
    }

    #[test]
    fn whatever_became_of_a_disk_it_comes_back_alone() {
        type Change = fn(&mut Disks, &mut Machine);
        let changes: [Change; 6] = [
            |disks, machine| disks.umount(machine, 0),
            |disks, machine| disks.umount_lazily(machine, 0),
            |disks, machine| disks.vanish(machine, 0),
            |disks, machine| disks.swap(machine, 0),
            |disks, machine| disks.clone_disk(machine, 0),
            |disks, machine| disks.boot(machine, false),
        ];
        for kind in [FsKind::Ext4, FsKind::Xfs, FsKind::Btrfs] {
            for (one, other) in (0..36).map(|n| (n / 6, n % 6)) {
                let (mut disks, mut machine) = world(kind);
                changes[one](&mut disks, &mut machine);
                changes[other](&mut disks, &mut machine);
                disks.bring_back(&mut machine, 0);
                assert!(machine.is_home(Path::new("/d0")), "{kind:?}: {one}, {other}");
                assert!(disks.is_alone(&machine, 0), "{kind:?}: {one}, {other}");
                assert_eq!(machine.devs().len(), 2, "{kind:?}: {one}, {other}");
            }
        }
    }

    #[test]
    fn what_is_plugged_in_beside_what_is_left_of_it_gets_another_number() {
        let (mut disks, mut machine) = world(FsKind::Ext4);
        let dev = machine.spot(Path::new("/d0")).unwrap().dev;
        disks.vanish(&mut machine, 0);
        disks.bring_back(&mut machine, 0);
        assert_ne!(machine.spot(Path::new("/d0")).unwrap().dev, dev);
    }
}
