//! The tracker under a storm: two threads create, write, rename and delete files on ext4 as fast as they can, and
//! whoever listens pays what it pays.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tests::programs::{Daemon, call};

use crate::measure::{cpu_of, rss_of};

/// Threads of the storm; the machine has two cores.
const THREADS: usize = 2;

/// What the storm itself did and cost.
struct Storm {
    cycles: u64,
    seconds: f64,
    cpu_s: f64,
}

pub fn compare(seconds: u64) -> anyhow::Result<()> {
    println!(
        "| listener | cycles/s | storm CPU µs per cycle | events/s | entries/s | listener CPU µs per event | RSS MB | overflows |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- | --- |");
    for round in 0..2 {
        nobody(round, seconds)?;
        tracker(round, seconds)?;
        inotifywait(round, seconds)?;
    }
    Ok(())
}

fn area() -> anyhow::Result<tempfile::TempDir> {
    Ok(tempfile::tempdir()?)
}

fn nobody(round: usize, seconds: u64) -> anyhow::Result<()> {
    let dir = area()?;
    let storm = run_storm(dir.path(), seconds)?;
    println!("| nobody ({round}) | {:.0} | {:.1} | | | | | |", storm.rate(), storm.cpu_per_cycle());
    Ok(())
}

fn tracker(round: usize, seconds: u64) -> anyhow::Result<()> {
    let dir = area()?;
    let source = dir.path().join("source");
    fs::create_dir(&source)?;
    let config = dir.path().join("longshore.toml");
    let base = dir.path().display();
    fs::write(
        &config,
        format!(
            "state_dir = \"{base}/state\"\nruntime_dir = \"{base}/run\"\n[[root]]\nname = \"space\"\npath = \"{base}/source\"\n"
        ),
    )?;
    let daemon = Daemon::start(&config);
    let before = cpu_of(daemon.pid())?;
    let storm = run_storm(&source, seconds)?;
    let flushed = call("tracker", &config, &["flush"]);
    anyhow::ensure!(flushed.status.success(), "flush: {}", tests::programs::text(&flushed));
    let cpu = cpu_of(daemon.pid())? - before;
    let rss = rss_of(daemon.pid())?;
    let stats = settled_stats(&config)?;
    let sum = |field: &str| -> f64 {
        let filesystems = stats["status"]["filesystems"].as_array();
        filesystems.into_iter().flatten().filter_map(|f| f[field].as_f64()).sum()
    };
    let (events, entries) = (sum("events_read"), sum("entries"));
    println!(
        "| tracker ({round}) | {:.0} | {:.1} | {:.0} | {:.0} | {:.2} | {rss:.0} | {:.0} |",
        storm.rate(),
        storm.cpu_per_cycle(),
        events / storm.seconds,
        entries / storm.seconds,
        cpu * 1e6 / events,
        sum("overflows")
    );
    Ok(())
}

/// The counters in the status file lag up to a second: read until they stand.
fn settled_stats(config: &Path) -> anyhow::Result<serde_json::Value> {
    let mut before = serde_json::Value::Null;
    loop {
        let output = call("tracker", config, &["stats", "--json"]);
        let stats: serde_json::Value =
            serde_json::from_slice(&output.stdout).context("tracker stats --json")?;
        if stats["status"]["filesystems"] == before {
            return Ok(stats);
        }
        before = stats["status"]["filesystems"].clone();
        std::thread::sleep(Duration::from_millis(1_500));
    }
}

/// What the replaced scripts ran: one line per event into a file.
fn inotifywait(round: usize, seconds: u64) -> anyhow::Result<()> {
    let dir = area()?;
    let (source, log) = (dir.path().join("source"), dir.path().join("log"));
    fs::create_dir(&source)?;
    let spawned = Command::new("inotifywait")
        .args(["-m", "-r", "-e", "create,modify,moved_to,delete", "--format", "%w%f"])
        .arg(&source)
        .stdout(fs::File::create(&log)?)
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut child) = spawned else {
        println!("| inotifywait is not installed | | | | | | | |");
        return Ok(());
    };
    wait_for_watches(&mut child)?;
    let storm = run_storm(&source, seconds)?;
    let (cpu, rss) = (cpu_of(child.id())?, rss_of(child.id())?);
    let events = fs::read(&log)?.iter().filter(|&&b| b == b'\n').count() as f64;
    child.kill()?;
    child.wait()?;
    println!(
        "| inotifywait ({round}) | {:.0} | {:.1} | {:.0} | | {:.2} | {rss:.0} | not said |",
        storm.rate(),
        storm.cpu_per_cycle(),
        events / storm.seconds,
        cpu * 1e6 / events
    );
    Ok(())
}

/// It says so on standard error when its watches stand.
fn wait_for_watches(child: &mut Child) -> anyhow::Result<()> {
    use std::io::BufRead as _;
    let stderr = child.stderr.take().context("standard error")?;
    for line in std::io::BufReader::new(stderr).lines() {
        if line?.contains("Watches established") {
            return Ok(());
        }
    }
    anyhow::bail!("inotifywait did not begin");
}

fn run_storm(top: &Path, seconds: u64) -> anyhow::Result<Storm> {
    let before = cpu_of(std::process::id())?;
    let begun = Instant::now();
    let over = AtomicBool::new(false);
    let cycles = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..THREADS)
            .map(|t| {
                scope.spawn({
                    let over = &over;
                    move || work(top, t, over)
                })
            })
            .collect();
        std::thread::sleep(Duration::from_secs(seconds)); // the length of the measurement itself
        over.store(true, Ordering::Relaxed);
        workers.into_iter().map(|w| w.join().expect("a worker does not panic")).sum::<anyhow::Result<u64>>()
    })?;
    let seconds = begun.elapsed().as_secs_f64();
    Ok(Storm { cycles, seconds, cpu_s: cpu_of(std::process::id())? - before })
}

/// One cycle: create, write 100 bytes, close, rename, and delete the one before last.
fn work(top: &Path, thread: usize, over: &AtomicBool) -> anyhow::Result<u64> {
    let dir = top.join(format!("t{thread}"));
    fs::create_dir(&dir)?;
    let mut cycle = 0;
    while !over.load(Ordering::Relaxed) {
        let (new, kept) = (dir.join(format!("n{cycle}")), dir.join(format!("k{cycle}")));
        fs::write(&new, [7; 100])?;
        fs::rename(&new, &kept)?;
        if cycle >= 2 {
            fs::remove_file(dir.join(format!("k{}", cycle - 2)))?;
        }
        cycle += 1;
    }
    Ok(cycle)
}

impl Storm {
    fn rate(&self) -> f64 {
        self.cycles as f64 / self.seconds
    }

    fn cpu_per_cycle(&self) -> f64 {
        self.cpu_s * 1e6 / self.cycles as f64
    }
}
