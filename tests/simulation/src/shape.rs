//! What a world consists of: disks, roots, legs. Drawn from its seed, and the first line of its script.

use serde::{Deserialize, Serialize};

use crate::random::Random;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Shape {
    pub disks: Vec<DiskShape>,
    pub roots: Vec<RootShape>,
    pub legs: Vec<LegShape>,
    /// Rows above which the journal is collapsed.
    pub max_entries: u64,
    /// Events above which the kernel's queue overflows.
    pub queue_max: usize,
    /// Without a service manager nothing of the tracker outlives it.
    pub keeps: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DiskShape {
    pub fs: Fs,
    /// What its times are rounded down to, in nanoseconds.
    pub tick_ns: i64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fs {
    Ext4,
    Xfs,
    Btrfs,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RootShape {
    pub disk: usize,
    /// Below the mount point of its disk; empty for all of it.
    pub below: String,
    /// The configuration has its identity.
    pub identity: bool,
    pub exclude: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LegShape {
    pub kind: LegKind,
    pub roots: Vec<usize>,
    /// Deletes that pass the guard without being allowed.
    pub guard: u64,
    pub transfers: usize,
    /// It seldom runs.
    pub lags: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LegKind {
    B2,
    Dir,
}

impl Shape {
    /// Where a root lies.
    pub fn root_path(&self, root: usize) -> Vec<u8> {
        let RootShape { disk, below, .. } = &self.roots[root];
        let between = if below.is_empty() { "" } else { "/" };
        format!("/d{disk}{between}{below}").into_bytes()
    }

    pub fn drawn(random: &mut Random) -> Shape {
        let disks: Vec<DiskShape> = (0..1 + random.below(2)).map(|_| DiskShape::drawn(random)).collect();
        let mut roots = Vec::new();
        for disk in 0..disks.len() {
            // Two roots of one disk, now and then one within the other.
            let places: &[&str] = [&[""][..], &["a"], &["a", "b"], &["", "a"]][random.below(4) as usize];
            for below in places {
                let exclude = if random.one_in(3) { vec!["*.tmp".to_owned()] } else { Vec::new() };
                let (below, identity) = ((*below).to_owned(), random.below(4) > 0);
                roots.push(RootShape { disk, below, identity, exclude });
            }
        }
        let legs = (0..1 + random.below(3)).map(|_| LegShape::drawn(random, roots.len())).collect();
        let max_entries = [40, 200, 10_000][random.below(3) as usize];
        let queue_max = [30, 300, 16_384][random.below(3) as usize];
        Shape { disks, roots, legs, max_entries, queue_max, keeps: random.below(4) > 0 }
    }
}

impl DiskShape {
    fn drawn(random: &mut Random) -> DiskShape {
        let fs = [Fs::Ext4, Fs::Xfs, Fs::Btrfs][random.below(3) as usize];
        let tick_ns = [1, 4_000_000, 1_000_000_000][random.below(3) as usize];
        DiskShape { fs, tick_ns }
    }
}

impl LegShape {
    fn drawn(random: &mut Random, roots: usize) -> LegShape {
        let kind = [LegKind::B2, LegKind::Dir][random.below(2) as usize];
        let mut list: Vec<usize> = (0..roots).filter(|_| random.below(4) > 0).collect();
        if list.is_empty() {
            list.push(random.below(roots as u64) as usize);
        }
        let (guard, transfers) = (2 + random.below(20), 1 + random.below(4) as usize);
        LegShape { kind, roots: list, guard, transfers, lags: random.one_in(5) }
    }
}
