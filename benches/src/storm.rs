//! The tracker under a storm on ext4, side by side with nobody, a reader that only discards, and peers. The listeners
//! take turns in rounds, in another order each time; what is told are medians, and ratios within one round.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tests::mount::LoopFs;

use crate::listeners::{ALL, Kind, Listener};
use crate::measure::{MEMORY, Queue, cpu_of, median, rss_of};
use crate::workload::{self, Storm};

/// One turn of one listener.
struct Turn {
    storm: Storm,
    events: f64,
    cpu_s: f64,
    rss_mb: f64,
    backlog: u64,
    overflows: Option<f64>,
}

pub fn compare(seconds: u64, rounds: usize, rate: u64) -> anyhow::Result<()> {
    let mut kinds = ALL.to_vec();
    for kind in ALL {
        if let Some(why) = kind.missing() {
            println!("{why}\n");
            kinds.retain(|k| *k != kind);
        }
    }
    let disk = LoopFs::new_in("ext4", Path::new(MEMORY)).map_err(anyhow::Error::msg)?;
    for rate in [0, rate].into_iter().take(if rate == 0 { 1 } else { 2 }) {
        let mut turns: BTreeMap<Kind, Vec<Turn>> = BTreeMap::new();
        for round in 0..rounds {
            for at in 0..kinds.len() {
                let kind = kinds[(at + round) % kinds.len()];
                let top = disk.path().join(format!("{rate}-{round}-{at}"));
                turns.entry(kind).or_default().push(turn(kind, &top, seconds, rate)?);
            }
        }
        show(&turns, rate);
    }
    Ok(())
}

fn turn(kind: Kind, top: &Path, seconds: u64, rate: u64) -> anyhow::Result<Turn> {
    let work = tempfile::tempdir()?;
    workload::prepare(top)?;
    let listener = Listener::start(kind, top, work.path())?;
    let pid = listener.pid();
    let queue = pid.map(Queue::of).transpose()?;
    let before = pid.map_or(Ok(0.0), cpu_of)?;
    let over = AtomicBool::new(false);
    let (storm, backlog) = std::thread::scope(|scope| {
        let sampler = scope.spawn(|| largest(queue.as_ref(), &over));
        let storm = workload::run(top, seconds, rate);
        over.store(true, Ordering::Relaxed);
        (storm, sampler.join().expect("the sampler does not panic"))
    });
    listener.settle(queue.as_ref())?;
    let cpu_s = pid.map_or(Ok(0.0), cpu_of)? - before;
    let rss_mb = pid.map_or(Ok(0.0), rss_of)?;
    drop(queue);
    let said = listener.end()?;
    Ok(Turn { storm: storm?, events: said.events, cpu_s, rss_mb, backlog, overflows: said.overflows })
}

/// Once a second: each look holds up those who write.
fn largest(queue: Option<&Queue>, over: &AtomicBool) -> u64 {
    let mut largest = 0;
    while !over.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(990)); // the interval of the samples
        largest = largest.max(queue.and_then(|q| q.events().ok()).unwrap_or(0));
    }
    largest
}

fn show(turns: &BTreeMap<Kind, Vec<Turn>>, rate: u64) {
    let load = if rate == 0 { "as fast as they can".to_owned() } else { format!("{rate} cycles a second") };
    println!("{} processes, {load}:\n", workload::PROCESSES);
    println!(
        "| listener | storm CPU µs per cycle | to nobody | to discard | cycles/s | to nobody | to discard | events/s | listener CPU µs per event | per cycle | backlog | overflows | RSS MB |"
    );
    println!("|{}", " --- |".repeat(13));
    for (kind, of_kind) in turns {
        let of = |figure: fn(&Turn) -> f64| median(of_kind.iter().map(figure).collect());
        let to = |other: Kind, figure: fn(&Turn) -> f64| {
            let pairs = of_kind.iter().zip(&turns[&other]);
            median(pairs.map(|(own, other)| figure(own) / figure(other)).collect())
        };
        let ratios = |figure: fn(&Turn) -> f64| {
            format!("{:.2} | {:.2}", to(Kind::Nobody, figure), to(Kind::Discard, figure))
        };
        print!("| {} ", kind.name());
        print!("| {:.1} | {} ", of(cpu_per_cycle), ratios(cpu_per_cycle));
        print!("| {:.0} | {} ", of(cycles_per_s), ratios(cycles_per_s));
        if *kind == Kind::Nobody {
            println!("| | | | | | |");
            continue;
        }
        let overflows: Option<f64> = of_kind.iter().map(|t| t.overflows).sum();
        println!(
            "| {:.0} | {:.2} | {:.2} | {} | {} | {:.0} |",
            of(|t| t.events / t.storm.seconds),
            of(|t| t.cpu_s * 1e6 / t.events),
            of(|t| t.cpu_s * 1e6 / t.storm.cycles as f64),
            of_kind.iter().map(|t| t.backlog).max().unwrap_or(0),
            overflows.map_or("not told".to_owned(), |n| n.to_string()),
            of(|t| t.rss_mb),
        );
    }
    println!();
}

fn cpu_per_cycle(turn: &Turn) -> f64 {
    turn.storm.cpu_us_per_cycle()
}

fn cycles_per_s(turn: &Turn) -> f64 {
    turn.storm.rate()
}
