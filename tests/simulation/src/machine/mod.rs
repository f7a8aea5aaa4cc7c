//! What outlives programs until a reboot: clocks, disks, what is mounted where, fanotify groups, and what the service
//! manager keeps. Plain data; the bytes it gives out are those of the kernel.

mod asks;
mod group;
mod mounts;
mod queue;
mod store;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use crate::disk::Disk;

pub use asks::UpLink;
pub use group::{Group, GroupId};
pub use mounts::{FstabLine, Hold, Mount, MountId, Spot};
pub use queue::Queue;
pub use store::{Kept, Mapped, Memory};

/// A disk at a device number, which is that of its superblock while it is mounted.
#[derive(Debug)]
struct Device {
    disk: Disk,
    /// Never reused: marks are on this. `None` while it is not mounted.
    superblock: Option<u64>,
}

#[derive(Debug)]
pub struct Machine {
    pub boot_ns: i64,
    pub wall_ns: i64,
    /// What is mounted at a boot, in this order.
    pub fstab: Vec<FstabLine>,
    boots: u64,
    devices: BTreeMap<u64, Device>,
    mounts: BTreeMap<MountId, Mount>,
    holds: BTreeMap<Hold, mounts::Held>,
    groups: BTreeMap<GroupId, Group>,
    store: BTreeMap<String, Kept>,
    /// Never goes back: unique numbers of mounts, superblocks, groups and holds.
    count: u64,
    /// Counts what poll(2) on mountinfo tells of.
    mounts_changed: u64,
}

impl Machine {
    /// With a disk for `/`.
    pub fn new(system: Disk, wall_ns: i64) -> Machine {
        let mut machine = Machine {
            boot_ns: 0,
            wall_ns,
            fstab: Vec::new(),
            boots: 0,
            devices: BTreeMap::new(),
            mounts: BTreeMap::new(),
            holds: BTreeMap::new(),
            groups: BTreeMap::new(),
            store: BTreeMap::new(),
            count: 0,
            mounts_changed: 0,
        };
        machine.plug(system);
        machine.boot();
        machine
    }

    pub fn boot_id(&self) -> String {
        format!("00000000-0000-4000-8000-{:012x}", self.boots)
    }

    /// Both clocks go on.
    pub fn pass_time(&mut self, ns: i64) {
        self.boot_ns += ns;
        self.wall_ns += ns;
    }

    /// Somebody sets the clock.
    pub fn jump(&mut self, ns: i64) {
        self.wall_ns = self.wall_ns.saturating_add(ns);
    }

    pub fn wait_until(&mut self, boot_ns: i64) {
        self.pass_time((boot_ns - self.boot_ns).max(0));
    }

    fn number(&mut self) -> u64 {
        self.count += 1;
        self.count
    }

    /// An operation of a process on a disk: at the time of the wall clock, and told to whoever marked it.
    pub fn act<T>(&mut self, pid: u32, dev: u64, op: impl FnOnce(&mut Disk) -> T) -> Option<T> {
        let device = self.devices.get_mut(&dev)?;
        let superblock = device.superblock;
        let marked = |group: &Group| superblock.is_some_and(|superblock| group.is_on(superblock));
        device.disk.now_ns = self.wall_ns;
        device.disk.watched = self.groups.values().any(marked);
        let result = op(&mut device.disk);
        let kind = device.disk.kind;
        for event in device.disk.events.drain(..) {
            for group in self.groups.values_mut().filter(|group| marked(group)) {
                group.queue.push(event.clone(), pid, kind);
            }
        }
        Some(result)
    }

    pub fn disk(&self, dev: u64) -> Option<&Disk> {
        self.devices.get(&dev).map(|device| &device.disk)
    }

    /// Device numbers of all disks.
    pub fn devs(&self) -> Vec<u64> {
        self.devices.keys().copied().collect()
    }

    /// Everything of a process that was killed or ended, but what the service manager keeps. Open files of disks are
    /// closed by whoever opened them.
    pub fn end_process(&mut self, pid: u32) {
        let held = self.holds.iter().filter(|(_, held)| held.pid == pid).map(|(hold, _)| *hold);
        for hold in held.collect::<Vec<Hold>>() {
            self.release(hold);
        }
        self.end_groups_of(pid);
    }

    /// An orderly one: everything is written out.
    pub fn reboot(&mut self) {
        self.devices.values_mut().for_each(|device| device.disk.settle());
        self.boot();
    }

    /// What was not written out is lost.
    pub fn power_cut(&mut self) {
        self.devices.values_mut().for_each(|device| device.disk.power_cut());
        self.boot();
    }

    fn boot(&mut self) {
        self.boots += 1;
        self.boot_ns = 0;
        self.mounts.clear();
        self.holds.clear();
        self.groups.clear();
        self.store.clear();
        self.devices.retain(|_, device| !device.disk.dead);
        self.devices.values_mut().for_each(|device| device.superblock = None);
        self.mount_root();
        for line in self.fstab.clone() {
            // One whose disk is not there is left out, as with `nofail`.
            let dev = self.devices.iter().find(|(_, d)| d.disk.uuid == line.uuid).map(|(dev, _)| *dev);
            if let Some(dev) = dev {
                let _ = self.mount(dev, &line.point, &line.part);
            }
        }
    }
}
