//! A gap over a whole root in which nothing changed: the rescan beside `find -printf` of the same tree, cold and warm.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use b2_emulator::Emulator;
use b2_emulator::options::Options;
use shared::limits;
use tests::mount::LoopFs;
use tests::programs::{Daemon, call, program, text};

use crate::measure::{Cost, run};
use crate::sync::configure;

const FILES_PER_DIR: usize = 100;
const IMAGE_BYTES: u64 = 4 << 30;

struct Ground {
    state: tempfile::TempDir,
    fs: LoopFs,
    b2: Emulator,
    config: PathBuf,
}

pub fn compare(dirs: usize, kinds: &[String], rounds: usize) -> anyhow::Result<()> {
    println!("{} files in {dirs} directories, the best of {rounds} runs each\n", dirs * FILES_PER_DIR);
    println!(
        "| filesystem | caches | find wall s | find CPU s | rescan wall s | rescan CPU s | wall ratio | CPU ratio | peak RSS MB | A/B/C |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |");
    let mut generations = Vec::new();
    for kind in kinds {
        let ground = Ground::new(kind, dirs)?;
        let daemon = Daemon::start(&ground.config);
        ground.sync()?;
        for cold in [true, false] {
            ground.row(kind, cold, rounds)?;
        }
        drop(daemon);
        if kind == "btrfs" {
            generations.push(ground.generation(dirs, true)?);
            generations.push(ground.generation(dirs, false)?);
        }
    }
    println!("\nA gap on btrfs in which one file of each directory changed\n");
    println!("| caches | changed | entries | search ms | syncer wall s | syncer CPU s | examined and sent |");
    println!("| --- | --- | --- | --- | --- | --- | --- |");
    generations.iter().for_each(|row| println!("{row}"));
    Ok(())
}

impl Ground {
    fn new(kind: &str, dirs: usize) -> anyhow::Result<Ground> {
        let dir = tempfile::tempdir()?;
        let fs = LoopFs::sized(kind, IMAGE_BYTES).map_err(anyhow::Error::msg)?;
        // Reading a file would change its inode.
        fs.remount("noatime").map_err(anyhow::Error::msg)?;
        let source = fs.path().join("source");
        plant(&source, dirs)?;
        // What is planted is of an older generation than what comes.
        rustix::fs::syncfs(std::fs::File::open(fs.path())?)?;
        std::fs::write(fs.path().join("outside"), "")?;
        let planted = Instant::now();
        let b2 = Emulator::start(Options::default()).context("the emulator")?;
        let config = configure(dir.path(), &source, &b2, "rescan")?;
        // Content that is read sooner after its last change is read again at the next look.
        std::thread::sleep((limits::SETTLE_AGE + Duration::from_secs(1)).saturating_sub(planted.elapsed()));
        Ok(Ground { state: dir, fs, b2, config })
    }

    fn sync(&self) -> anyhow::Result<Cost> {
        let (syncer, config) = (program("syncer").display().to_string(), self.config.display().to_string());
        run(&[&syncer, "--quiet", "--config", &config, "run"], &[])
    }

    /// What changes while no tracker runs, and what it costs at the next start.
    fn generation(&self, dirs: usize, cold: bool) -> anyhow::Result<String> {
        let source = self.fs.path().join("source");
        drop(Daemon::start(&self.config));
        for d in 0..dirs {
            let mut file = fs::File::options().append(true).open(source.join(format!("d{d:04}/f050.bin")))?;
            std::io::Write::write_all(&mut file, b"changed")?;
        }
        if cold {
            drop_caches()?;
        }
        let daemon = Daemon::start(&self.config);
        let journal = shared::journal::Journal::open(&self.state.path().join("state/journal.db"))?;
        let gap = journal.history(10)?.into_iter().find(|row| row.kind == "gap").context("no gap")?;
        let number = |after: &str| {
            let (_, rest) = gap.text.split_once(after)?;
            rest.split_whitespace().next()?.parse::<u64>().ok()
        };
        let told = number("; space: ").zip(number("found in "));
        let (entries, ms) = told.with_context(|| format!("all of it: {}", gap.text))?;
        let (syncer, config) = (program("syncer").display().to_string(), self.config.display().to_string());
        let report = tempfile::NamedTempFile::new()?;
        let said = format!("{syncer} --json --config {config} run > {}", report.path().display());
        let cost = run(&["sh", "-c", &said], &[])?;
        let report: serde_json::Value = serde_json::from_slice(&fs::read(report.path())?)?;
        drop(daemon);
        let caches = if cold { "cold" } else { "warm" };
        let seen = format!("{} / {}", report["examined"], report["files_sent"]);
        Ok(format!(
            "| {caches} | {dirs} | {entries} | {ms} | {:.2} | {:.2} | {seen} |",
            cost.wall_s, cost.cpu_s
        ))
    }

    fn row(&self, kind: &str, cold: bool, rounds: usize) -> anyhow::Result<()> {
        let source = self.fs.path().join("source").display().to_string();
        let (mut theirs, mut ours) = (Vec::new(), Vec::new());
        self.b2.reset();
        for _ in 0..rounds {
            if cold {
                drop_caches()?;
            }
            theirs.push(run(&["find", &source, "-fprintf", "/dev/null", "%p %s %T@ %C@ %i\n"], &[])?);
            let added = call("tracker", &self.config, &["add", "--subtree", &source]);
            anyhow::ensure!(added.status.success(), "{}", text(&added));
            if cold {
                drop_caches()?;
            }
            ours.push(self.sync()?);
        }
        let counters = self.b2.counters();
        let (find, rescan) = (best(&theirs), best(&ours));
        println!(
            "| {kind} | {} | {:.2} | {:.2} | {:.2} | {:.2} | {:.2} | {:.2} | {:.0} | {}/{}/{} |",
            if cold { "cold" } else { "warm" },
            find.wall_s,
            find.cpu_s,
            rescan.wall_s,
            rescan.cpu_s,
            rescan.wall_s / find.wall_s,
            rescan.cpu_s / find.cpu_s,
            rescan.rss_mb,
            counters.class_a,
            counters.class_b,
            counters.class_c,
        );
        Ok(())
    }
}

/// The least of each: what other jobs on the machine add is not ours.
fn best(costs: &[Cost]) -> Cost {
    let least = |of: fn(&Cost) -> f64| costs.iter().map(of).fold(f64::INFINITY, f64::min);
    Cost { wall_s: least(|c| c.wall_s), cpu_s: least(|c| c.cpu_s), rss_mb: least(|c| c.rss_mb) }
}

fn plant(top: &Path, dirs: usize) -> anyhow::Result<()> {
    for d in 0..dirs {
        let dir = top.join(format!("d{d:04}"));
        fs::create_dir_all(&dir)?;
        for f in 0..FILES_PER_DIR {
            fs::write(dir.join(format!("f{f:03}.bin")), [7; 100])?;
        }
    }
    Ok(())
}

/// The whole machine's: whoever else runs on it reads from the disk again, too.
fn drop_caches() -> anyhow::Result<()> {
    rustix::fs::sync();
    fs::write("/proc/sys/vm/drop_caches", "3").context("dropping the caches needs root")
}
