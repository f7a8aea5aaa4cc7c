//! Appending to the journal: distinct paths, and one path again and again, per transaction of a thousand.

use std::hint::black_box;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use shared::entry::{Cause, Mask, Scope};
use shared::journal::{CatalogFacts, Change, Coalesce, Commit, Journal, RootId};
use shared::limits;
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

/// A journal at its default bound, with one leg that has read nothing.
fn lagging(dir: &std::path::Path) -> Journal {
    let mut journal = Journal::create_or_open(&dir.join("journal.db")).expect("a journal");
    let facts = CatalogFacts { catalog_id: [1; 16], journal_id: Some(journal.id()), acked: 0, revision: 0 };
    journal.attach_leg("leg", &facts, &[], 0).expect("a leg");
    let mut set = Coalesce::default();
    for first in (0..limits::ENTRIES_MAX as usize).step_by(BATCH) {
        journal.append(&mut set, &commit(first, BATCH), 0).expect("an append");
    }
    journal
}

fn collapse(c: &mut Criterion) {
    let mut group = c.benchmark_group("journal collapse");
    group.sample_size(10);
    group.bench_function("500,000 entries", |b| {
        b.iter_batched(
            || {
                let dir = tempfile::tempdir().expect("a directory");
                (lagging(dir.path()), dir)
            },
            |(mut journal, dir)| {
                let done =
                    journal.bound(&["leg".to_owned()], limits::ENTRIES_MAX - 1, 0).expect("a collapse");
                assert_eq!(done.collapses, 1);
                (journal, dir)
            },
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

criterion_group!(benches, append, collapse);
criterion_main!(benches);
