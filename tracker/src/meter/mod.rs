//! What one filesystem's thread is measured by, beyond plain counters. Pure: times are arguments. Everything is fed
//! per batch, and of a large batch a sample, so that an event costs next to nothing.

mod busiest;
mod histogram;

use std::collections::BTreeMap;

use shared::entry::Cause;
use shared::journal::{Change, RootId};
use shared::path::RelPath;
use shared::status::{Latency, TopDir, TopProcess};

use busiest::Busiest;
use histogram::Histogram;

/// Changes of one batch that are looked at for the busiest directories.
const SAMPLES_MAX: usize = 256;
/// How many of the busiest are told.
const TOLD: usize = 10;

#[derive(Debug, Default)]
pub struct Meter {
    commits: Histogram,
    /// Directories of each root, with its name.
    dirs: BTreeMap<RootId, (String, Busiest<Vec<u8>>)>,
    processes: Busiest<u32>,
    /// Of the processes last told: one that ended keeps its name.
    names: BTreeMap<u32, String>,
    /// State of the generator that draws the samples.
    draw: u64,
}

impl Meter {
    pub fn new(roots: impl Iterator<Item = (RootId, String)>) -> Meter {
        let dirs = roots.map(|(id, name)| (id, (name, Busiest::default()))).collect();
        Meter { dirs, ..Meter::default() }
    }

    pub fn commit(&mut self, took_ns: i64) {
        self.commits.record((took_ns / 1_000).max(0) as u64);
    }

    pub fn latency(&self) -> Latency {
        Latency {
            p50_us: self.commits.percentile(50),
            p90_us: self.commits.percentile(90),
            p99_us: self.commits.percentile(99),
            max_us: self.commits.max(),
        }
    }

    /// The changes of one batch, for the directories they lie in.
    pub fn changes(&mut self, now_ns: i64, changes: &[Change]) {
        let stride = changes.len().div_ceil(SAMPLES_MAX);
        let mut at = 0;
        while let Some(change) = changes.get(at) {
            if let (Cause::Event, Some((_, dirs))) = (change.cause, self.dirs.get_mut(&change.root)) {
                let path = change.path.as_bytes();
                let cut = path.iter().rposition(|&b| b == b'/').unwrap_or(0);
                dirs.add(now_ns, &path[..cut], stride as u64);
            }
            at += self.step(stride);
        }
    }

    /// Uneven steps of this length on average: a rhythm in the events must not hide half of them.
    fn step(&mut self, stride: usize) -> usize {
        if stride <= 1 {
            return 1;
        }
        self.draw = self.draw.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        1 + (self.draw >> 33) as usize % (2 * stride - 1)
    }

    /// So many events of one batch were made by these processes.
    pub fn writers(&mut self, now_ns: i64, writers: &[(u32, u64)]) {
        writers.iter().for_each(|(pid, events)| self.processes.add(now_ns, pid, *events));
    }

    pub fn top_dirs(&self, now_ns: i64) -> Vec<TopDir> {
        let mut all = Vec::new();
        for (name, dirs) in self.dirs.values() {
            for (dir, changes) in dirs.top(now_ns, TOLD) {
                let Ok(path) = RelPath::parse(&dir) else { continue };
                all.push(TopDir { root: name.clone(), path, changes });
            }
        }
        all.sort_by(|a, b| {
            b.changes.cmp(&a.changes).then_with(|| (&a.root, &a.path).cmp(&(&b.root, &b.path)))
        });
        all.truncate(TOLD);
        all
    }

    /// Only those told are asked for their names.
    pub fn top_processes(&mut self, now_ns: i64, name_of: impl Fn(u32) -> Option<String>) -> Vec<TopProcess> {
        let known = std::mem::take(&mut self.names);
        let told = self.processes.top(now_ns, TOLD).into_iter().map(|(pid, events)| {
            let name = name_of(pid).or_else(|| known.get(&pid).cloned()).unwrap_or_default();
            TopProcess { pid, name, events }
        });
        let told: Vec<TopProcess> = told.collect();
        self.names = told.iter().map(|p| (p.pid, p.name.clone())).collect();
        told
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shared::entry::{Mask, Scope};

    fn change(root: i64, path: &str) -> Change {
        Change {
            root: RootId(root),
            path: RelPath::parse(path.as_bytes()).unwrap(),
            handle: None,
            scope: Scope::SelfOnly,
            cause: Cause::Event,
            mask: Mask::MODIFY,
        }
    }

    fn meter() -> Meter {
        Meter::new([(RootId(1), "a".to_owned()), (RootId(2), "b".to_owned())].into_iter())
    }

    fn told(meter: &Meter) -> Vec<(String, String, u64)> {
        let show = |t: TopDir| (t.root, t.path.to_string(), t.changes);
        meter.top_dirs(0).into_iter().map(show).collect()
    }

    #[test]
    fn a_small_batch_is_counted_whole() {
        let mut meter = meter();
        let paths = [(1, "x/f"), (1, "x/g"), (2, "x/f"), (1, "top"), (3, "not/known")];
        let mut changes: Vec<Change> = paths.iter().map(|(root, path)| change(*root, path)).collect();
        changes.push(Change::gap(RootId(1), Cause::Overflow));
        meter.changes(0, &changes);
        let row = |root: &str, path: &str, n| (root.to_owned(), path.to_owned(), n);
        let shown = RelPath::root().to_string();
        assert_eq!(told(&meter), [row("a", "x", 2), row("a", &shown, 1), row("b", "x", 1)]);
    }

    #[test]
    fn a_large_batch_is_sampled_and_a_rhythm_in_it_hides_nothing() {
        let mut meter = meter();
        let name = |n: usize| format!("{}/f{n}", if n.is_multiple_of(2) { "even" } else { "odd" });
        let changes: Vec<Change> = (0..20_000).map(|n| change(1, &name(n))).collect();
        meter.changes(0, &changes);
        let told = told(&meter);
        assert_eq!(told.len(), 2);
        for (_, dir, count) in told {
            assert!((7_000..13_000).contains(&count), "{dir}: {count}");
        }
    }

    #[test]
    fn who_writes_most_is_told_first() {
        let mut meter = meter();
        meter.writers(0, &[(7, 10), (8, 300)]);
        meter.writers(1, &[(7, 20)]);
        let row = |pid, name: &str, events| TopProcess { pid, name: name.to_owned(), events };
        let told = meter.top_processes(2, |pid| (pid == 8).then(|| "cp".to_owned()));
        assert_eq!(told, [row(8, "cp", 300), row(7, "", 30)]);
        let ended = meter.top_processes(3, |_| None);
        assert_eq!(ended[0], row(8, "cp", 300), "its name is known from before");
    }
}
