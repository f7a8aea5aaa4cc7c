//! The configuration and the machine that a shape describes.

use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use shared::config::Config;

use crate::disk::{Disk, FsKind};
use crate::disks::Disks;
use crate::machine::Machine;
use crate::oracle::requests::Place;
use crate::shape::{DiskShape, Fs, LegKind, Shape};

/// A world begins at this time, in nanoseconds since 1970.
pub const BEGINNING_NS: i64 = 1_800_000_000_000_000_000;

pub fn machine(shape: &Shape) -> (Disks, Machine) {
    let mut disks = Vec::new();
    for (number, disk) in shape.disks.iter().enumerate() {
        let DiskShape { fs, tick_ns } = disk;
        let kind = match fs {
            Fs::Ext4 => FsKind::Ext4,
            Fs::Xfs => FsKind::Xfs,
            Fs::Btrfs => FsKind::Btrfs,
        };
        let uuid = format!("00000000-0000-4000-8000-{number:012}");
        let mut disk = Disk::new(kind, &uuid, BEGINNING_NS);
        disk.grain_ns = *tick_ns;
        for root in shape.roots.iter().filter(|root| root.disk == number) {
            disk.mkdir_all(root.below.as_bytes(), 0o755).expect("a new disk takes a directory");
        }
        disk.sync();
        disks.push((PathBuf::from(format!("/d{number}")), disk));
    }
    Disks::new(disks, BEGINNING_NS)
}

/// The text is checked like any other.
pub fn config(shape: &Shape, dir: &Path, machine: &Machine) -> Config {
    let mut text = format!("state_dir = \"{0}\"\nruntime_dir = \"{0}/run\"\n", dir.display());
    for at in 0..shape.roots.len() {
        text += &root(shape, at, machine);
    }
    for (at, leg) in shape.legs.iter().enumerate() {
        let roots =
            leg.roots.iter().map(|root| format!("{{ root = \"r{root}\", prefix = \"{}\" }}", prefix(*root)));
        let roots = roots.collect::<Vec<_>>().join(", ");
        text += &format!("[[leg]]\nname = \"l{at}\"\nroots = [{roots}]\ntransfers = {}\n", leg.transfers);
        text += &format!("guard = {{ deletes = {}, delete_percent = 0.0 }}\n", leg.guard);
        text += &match leg.kind {
            LegKind::B2 => format!("kind = \"b2\"\nbucket = \"bucket-{at}\"\n"),
            LegKind::Dir => format!("kind = \"dir\"\npath = \"/mirror{at}\"\n"),
        };
    }
    let mut config =
        Config::parse(Path::new("longshore.toml"), &text).expect("a shape is a good configuration");
    // Fewer than anybody would allow: a world is small.
    config.max_entries = shape.max_entries;
    config
}

fn root(shape: &Shape, at: usize, machine: &Machine) -> String {
    let root = &shape.roots[at];
    let path = PathBuf::from(std::ffi::OsString::from_vec(shape.root_path(at)));
    let exclude = serde_json::to_string(&root.exclude).expect("plain data");
    let mut text =
        format!("[[root]]\nname = \"r{at}\"\npath = \"{}\"\nexclude = {exclude}\n", path.display());
    if root.identity {
        let identity = machine.spot(&path).and_then(|spot| machine.identity(spot));
        let (identity, _) = identity.expect("the disks are mounted");
        let uuid = identity.uuid.unwrap_or_default();
        text +=
            &format!("identity = {{ fs = \"{}\", uuid = \"{uuid}\", inode = {}", identity.fs, identity.inode);
        text += &identity.subvolume.map_or_else(String::new, |id| format!(", subvolume = {id}"));
        text += &identity.btime_ns.map_or_else(String::new, |ns| format!(", btime_ns = {ns}"));
        text += " }\n";
    }
    text
}

/// Where a root lies at its destinations.
fn prefix(root: usize) -> String {
    format!("p/r{root}")
}

/// The roots of a leg, for the oracle.
pub fn places(config: &Config, leg: usize) -> Vec<Place> {
    let place = |leg_root: &shared::config::LegRoot| Place {
        name: leg_root.root.to_string(),
        path: config.root(&leg_root.root).expect("it was checked").path.clone(),
        prefix: leg_root.prefix.clone(),
    };
    config.legs[leg].roots.iter().map(place).collect()
}
