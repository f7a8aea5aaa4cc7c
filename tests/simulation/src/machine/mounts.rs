//! What is mounted where. A mount is attached to a directory of the mount above it, so that a path leads to what the
//! kernel would find: what is mounted last covers what was there.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use super::{Device, Machine};
use crate::disk::{Disk, Errno, FsKind, Id};

/// STATX_MNT_ID_UNIQUE: never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MountId(pub u64);

#[derive(Debug, Clone)]
pub struct Mount {
    pub dev: u64,
    /// The directory of the disk that it shows.
    pub top: Id,
    /// The path that it was mounted at.
    pub point: Vec<u8>,
    /// Its number in mountinfo, which a later one can get.
    pub number: u64,
    /// The directory that it covers. `None` of `/`, and after a lazy unmount.
    at: Option<(MountId, Id)>,
}

/// What is mounted at a boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FstabLine {
    pub uuid: String,
    pub point: Vec<u8>,
    /// Directory or subvolume of the disk; empty for all of it.
    pub part: Vec<u8>,
}

/// An open directory of a program, which makes an unmount fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hold(u64);

#[derive(Debug)]
pub(super) struct Held {
    pub pid: u32,
    spot: Spot,
}

/// Where a path leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spot {
    pub mount: MountId,
    pub dev: u64,
    pub id: Id,
}

/// The lowest number in mountinfo, and the lowest device number.
const FIRST_NUMBER: u64 = 20;
const FIRST_DEV: u64 = 1;

impl Machine {
    /// Gives a disk the lowest device number that is free.
    pub fn plug(&mut self, disk: Disk) -> u64 {
        let mut free = FIRST_DEV..;
        let dev = free.find(|dev| !self.devices.contains_key(dev)).unwrap_or(u64::MAX);
        self.devices.insert(dev, Device { disk, superblock: None });
        dev
    }

    /// The device is gone. What is still mounted of it is dead from now on. Gives the disk as it is, which can be put in
    /// again, or a clone of it.
    pub fn unplug(&mut self, dev: u64) -> Option<Disk> {
        let device = self.devices.get_mut(&dev)?;
        let mut medium = device.disk.clone();
        if device.superblock.is_some() {
            device.disk.dead = true;
            medium.power_cut();
        } else {
            self.devices.remove(&dev);
        }
        Some(medium)
    }

    pub(super) fn mount_root(&mut self) {
        let Some((&dev, device)) = self.devices.first_key_value() else { return };
        let top = device.disk.top();
        self.attach(dev, top, b"/", None);
    }

    /// Mounts a disk, or a part of it, on a directory; over what is mounted there.
    pub fn mount(&mut self, dev: u64, point: &[u8], part: &[u8]) -> Result<MountId, Errno> {
        let at = self.resolve(point)?;
        let device = self.devices.get(&dev).ok_or(Errno::NODEV)?;
        if device.disk.dead {
            return Err(Errno::IO);
        }
        // A clone, or the disk itself under another number, beside what is left of it.
        let is_same = |other: &Device| other.superblock.is_some() && other.disk.uuid == device.disk.uuid;
        let beside = self.devices.iter().any(|(number, other)| *number != dev && is_same(other));
        if device.disk.kind != FsKind::Ext4 && beside {
            return Err(Errno::INVAL);
        }
        let top = device.disk.lookup(part)?;
        let is_dir = |dev: u64, id: Id| {
            self.devices.get(&dev).is_some_and(|d| d.disk.inode(id).is_ok_and(|inode| inode.is_dir()))
        };
        if !is_dir(dev, top) || !is_dir(at.dev, at.id) {
            return Err(Errno::NOTDIR);
        }
        Ok(self.attach(dev, top, point, Some((at.mount, at.id))))
    }

    /// Shows a directory at another place, too.
    pub fn bind(&mut self, of: &[u8], point: &[u8]) -> Result<MountId, Errno> {
        let (of, at) = (self.resolve(of)?, self.resolve(point)?);
        Ok(self.attach(of.dev, of.id, point, Some((at.mount, at.id))))
    }

    fn attach(&mut self, dev: u64, top: Id, point: &[u8], at: Option<(MountId, Id)>) -> MountId {
        self.mounts_changed += 1;
        let (id, superblock) = (MountId(self.number()), self.number());
        if let Some(device) = self.devices.get_mut(&dev) {
            device.superblock.get_or_insert(superblock);
        }
        let is_free = |number: &u64| self.mounts.values().all(|mount| mount.number != *number);
        let number = (FIRST_NUMBER..).find(is_free).unwrap_or(u64::MAX);
        self.mounts.insert(id, Mount { dev, top, point: point.to_vec(), number, at });
        id
    }

    /// Takes away what is mounted last at a path. EBUSY while anything is open or mounted on it.
    pub fn umount(&mut self, point: &[u8]) -> Result<(), Errno> {
        let id = self.mounted_at(point)?;
        let dev = self.mounts[&id].dev;
        let is_last = self.mounts.values().filter(|mount| mount.dev == dev).count() == 1;
        let has_open = self.devices.get(&dev).is_some_and(|device| device.disk.is_held());
        if self.is_used(id) || (is_last && has_open) {
            return Err(Errno::BUSY);
        }
        self.mounts.remove(&id);
        self.mounts_changed += 1;
        self.reap(dev);
        Ok(())
    }

    /// Away from the path at once, with what is mounted on it; what is open goes on until it is closed.
    pub fn umount_lazily(&mut self, point: &[u8]) -> Result<(), Errno> {
        let mut todo = vec![self.mounted_at(point)?];
        self.mounts_changed += 1;
        while let Some(id) = todo.pop() {
            todo.extend(
                self.mounts.iter().filter(|(_, m)| m.at.is_some_and(|at| at.0 == id)).map(|(id, _)| *id),
            );
            if let Some(mount) = self.mounts.get_mut(&id) {
                mount.at = None;
                let dev = mount.dev;
                self.reap(dev);
            }
        }
        Ok(())
    }

    /// Opens a directory.
    pub fn hold(&mut self, pid: u32, path: &[u8]) -> Result<Hold, Errno> {
        let spot = self.resolve(path)?;
        let disk = &self.devices.get(&spot.dev).ok_or(Errno::NODEV)?.disk;
        if disk.dead && disk.kind != FsKind::Ext4 {
            return Err(Errno::IO);
        }
        if !disk.inode(spot.id)?.is_dir() {
            return Err(Errno::NOTDIR);
        }
        let hold = Hold(self.number());
        self.holds.insert(hold, Held { pid, spot });
        Ok(hold)
    }

    /// Where an open directory is.
    pub fn held(&self, hold: Hold) -> Option<Spot> {
        self.holds.get(&hold).map(|held| held.spot)
    }

    pub fn release(&mut self, hold: Hold) {
        if let Some(held) = self.holds.remove(&hold) {
            self.reap(held.spot.dev);
        }
    }

    /// Opens a directory through which all of a filesystem can be reached. What another mount covers cannot be opened.
    pub fn hold_whole(&mut self, pid: u32, dev: u64) -> Result<Hold, Errno> {
        let of_it = self.mounts.iter().filter(|(_, mount)| mount.dev == dev);
        let all: Vec<(MountId, Vec<u8>)> = of_it.map(|(id, mount)| (*id, mount.point.clone())).collect();
        for (id, point) in all {
            if self.resolve(&point).is_ok_and(|spot| spot.mount == id) {
                return self.hold(pid, &point);
            }
        }
        Err(Errno::NODEV)
    }

    /// A superblock that nothing uses any more ends, and the marks on it with it.
    fn reap(&mut self, dev: u64) {
        let Some(device) = self.devices.get_mut(&dev) else { return };
        let held = |id: &MountId| self.holds.values().any(|held| held.spot.mount == *id);
        let is_open = device.disk.is_held();
        let detached = |mount: &Mount| mount.at.is_none() && mount.point != b"/";
        self.mounts.retain(|id, mount| mount.dev != dev || !detached(mount) || is_open || held(id));
        if self.mounts.values().any(|mount| mount.dev == dev) {
            return;
        }
        if let Some(superblock) = device.superblock.take() {
            self.groups.values_mut().for_each(|group| group.unmark(superblock));
        }
        if device.disk.dead {
            self.devices.remove(&dev);
        } else {
            device.disk.settle();
        }
    }

    /// After files of a disk were closed: an end that a lazy unmount left to them.
    pub fn closed(&mut self, dev: u64) {
        self.reap(dev);
    }

    fn is_used(&self, id: MountId) -> bool {
        self.mounts.values().any(|mount| mount.at.is_some_and(|at| at.0 == id))
            || self.holds.values().any(|held| held.spot.mount == id)
    }

    /// The last mount at a path.
    fn mounted_at(&self, point: &[u8]) -> Result<MountId, Errno> {
        let spot = self.resolve(point)?;
        let mount = &self.mounts[&spot.mount];
        if mount.top == spot.id && mount.at.is_some() { Ok(spot.mount) } else { Err(Errno::INVAL) }
    }

    pub fn is_mount_point(&self, path: &[u8]) -> bool {
        self.mounted_at(path).is_ok()
    }

    /// Where a path from `/` leads.
    pub fn resolve(&self, path: &[u8]) -> Result<Spot, Errno> {
        let (&root, mount) = self.mounts.first_key_value().ok_or(Errno::NOENT)?;
        let mut spot = self.covered(Spot { mount: root, dev: mount.dev, id: mount.top });
        for name in path.split(|&b| b == b'/').filter(|name| !name.is_empty()) {
            let disk = &self.devices.get(&spot.dev).ok_or(Errno::NODEV)?.disk;
            if disk.dead && disk.kind != FsKind::Ext4 {
                return Err(Errno::IO);
            }
            spot = self.covered(Spot { id: disk.child(spot.id, name)?, ..spot });
        }
        Ok(spot)
    }

    pub fn mounts_changed(&self) -> u64 {
        self.mounts_changed
    }

    /// Whether something is mounted on this directory of this mount.
    pub fn is_covered(&self, spot: Spot) -> bool {
        self.mounts.values().any(|mount| mount.at == Some((spot.mount, spot.id)))
    }

    /// What is mounted last on this directory of this mount.
    fn covered(&self, mut spot: Spot) -> Spot {
        let on = |spot: &Spot| {
            let here = (spot.mount, spot.id);
            self.mounts.iter().find(|(_, mount)| mount.at == Some(here)).map(|(id, mount)| (*id, mount))
        };
        while let Some((id, mount)) = on(&spot) {
            spot = Spot { mount: id, dev: mount.dev, id: mount.top };
        }
        spot
    }

    /// The disk that a path leads to, and the path on it. The last name need not be there yet.
    pub fn place(&self, path: &[u8]) -> Result<(u64, Vec<u8>), Errno> {
        let on_disk = |spot: Spot| {
            let disk = &self.devices.get(&spot.dev).ok_or(Errno::NODEV)?.disk;
            Ok((spot.dev, disk.path_of(spot.id)?))
        };
        let end = path.iter().rposition(|&b| b != b'/').map_or(0, |at| at + 1);
        let at = path[..end].iter().rposition(|&b| b == b'/').map_or(0, |at| at + 1);
        // Only what is mounted there makes a difference to the way through the directory.
        let dir = self.resolve(&path[..at])?;
        match self.resolve(&path[..end]) {
            Ok(spot) if spot.mount != dir.mount || end == 0 => on_disk(spot),
            _ => on_disk(dir).map(|(dev, dir)| (dev, crate::disk::join(&dir, &path[at..end]))),
        }
    }

    /// The lines of mountinfo, in the order in which they were mounted. Not what was unmounted lazily.
    pub fn mountinfo(&self) -> Vec<tracker::mounts::Mount> {
        let line = |mount: &Mount| {
            let disk = &self.devices.get(&mount.dev)?.disk;
            let path = |bytes: &[u8]| PathBuf::from(OsStr::from_bytes(bytes));
            let root = disk.path_of(mount.top).ok()?;
            Some(tracker::mounts::Mount {
                id: mount.number,
                dev: mount.dev,
                root: path(&[b"/", &root[..]].concat()),
                point: path(&mount.point),
                fs: disk.kind.name().to_owned(),
                source: PathBuf::from(format!("/dev/sd{}", mount.dev)),
                read_only: disk.read_only,
            })
        };
        let attached = self.mounts.values().filter(|mount| mount.at.is_some() || mount.point == b"/");
        attached.filter_map(line).collect()
    }

    pub fn mount_of(&self, id: MountId) -> Option<&Mount> {
        self.mounts.get(&id)
    }
}
