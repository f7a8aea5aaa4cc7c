//! Appending to the journal: distinct paths, and one path again and again, per transaction of a thousand.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use shared::entry::{Cause, Mask, Scope};
use shared::journal::{Change, Coalesce, Commit, Journal, RootId};
use shared::path::RelPath;

const BATCH: usize = 1_000;

fn commit(first: usize, distinct: usize) -> Commit {
    let change = |i: usize| Change {
        root: RootId(1),
        path: RelPath::parse(format!("some/directory/of/a/tree/file-{i:010}").as_bytes())
            .expect("a plain path"),
        handle: None,
        scope: Scope::SelfOnly,
        cause: Cause::Event,
        mask: Mask::MODIFY,
    };
    Commit { changes: (0..BATCH).map(|i| change(first + i % distinct)).collect(), ..Commit::default() }
}

fn append(c: &mut Criterion) {
    let mut group = c.benchmark_group("journal append");
    group.throughput(Throughput::Elements(BATCH as u64));
    for (name, distinct) in [("distinct", BATCH), ("one path", 1)] {
        let dir = tempfile::tempdir().expect("a directory");
        let mut journal = Journal::create_or_open(&dir.path().join("journal.db")).expect("a journal");
        let mut set = Coalesce::default();
        let mut next = 0;
        group.bench_function(BenchmarkId::from_parameter(name), |b| {
            b.iter(|| {
                let batch = commit(if distinct == 1 { 0 } else { next }, distinct);
                next += BATCH;
                black_box(journal.append(&mut set, &batch, 0).expect("an append"))
            });
        });
    }
    group.finish();
}

criterion_group!(benches, append);
criterion_main!(benches);
