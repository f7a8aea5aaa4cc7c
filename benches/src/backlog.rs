//! A tracker whose entries nobody fetches: its memory, its journal, and what it costs to ask for what waits.

use std::fs::{self, File};
use std::path::Path;

use tests::mount::LoopFs;
use tests::programs::{Daemon, call, program};

use crate::listeners::configure;
use crate::measure::{self, MEMORY, number};

pub fn measure(entries: u64) -> anyhow::Result<()> {
    let disk = LoopFs::new_in("ext4", Path::new(MEMORY)).map_err(anyhow::Error::msg)?;
    let work = tempfile::tempdir()?;
    let state = work.path().join("state");
    let config = configure(&disk.path(), &state, &work.path().join("run"))?;
    add_leg(&config, &work.path().join("mirror"), entries)?;
    let daemon = Daemon::start(&config);
    let synced = call("syncer", &config, &["run"]);
    anyhow::ensure!(synced.status.success(), "run: {}", tests::programs::text(&synced));
    let path_bytes = touch(&disk.path(), entries)?;
    let flushed = call("tracker", &config, &["flush"]);
    anyhow::ensure!(flushed.status.success(), "flush: {}", tests::programs::text(&flushed));
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid()))?;
    let mib = |key: &str| anyhow::Ok(number(&status, key)? as f64 / 1024.0);
    println!("| {entries} paths of {:.0} bytes on average | |", path_bytes as f64 / entries as f64);
    println!("| --- | --- |");
    println!("| tracker, resident now, MiB | {:.1} |", mib("VmRSS:")?);
    println!("| tracker, resident at most, MiB | {:.1} |", mib("VmHWM:")?);
    let size = |name: &str| fs::metadata(state.join(name)).map_or(0, |m| m.len());
    println!("| write-ahead log, MiB | {:.1} |", size("journal.db-wal") as f64 / 1_048_576.0);
    ask(&config, &["stats", "--json"])?;
    ask(&config, &["pending", "-0"])?;
    let pending = call("tracker", &config, &["pending", "-0"]).stdout;
    let rows = pending.iter().filter(|&&b| b == 0).count();
    println!("| entries | {rows} |");
    anyhow::ensure!(daemon.stop() == Some(0), "the tracker did not end well");
    // The log is in it now.
    println!("| journal bytes per entry | {:.0} |", size("journal.db") as f64 / rows as f64);
    Ok(())
}

/// One for which all entries are kept.
fn add_leg(config: &Path, mirror: &Path, entries: u64) -> anyhow::Result<()> {
    fs::create_dir(mirror)?;
    let leg = format!(
        "[[leg]]\nname = \"lag\"\nkind = \"dir\"\nroots = [\"space\"]\npath = \"{}\"\n",
        mirror.display()
    );
    let rest = fs::read_to_string(config)?;
    fs::write(config, format!("max_entries = {}\n{rest}{leg}", 2 * entries))?;
    Ok(())
}

/// What a question costs, the journal at its fullest.
fn ask(config: &Path, args: &[&str]) -> anyhow::Result<()> {
    let (program, config) = (program("tracker").display().to_string(), config.display().to_string());
    let command: Vec<&str> = [program.as_str(), "--config", &config].iter().chain(args).copied().collect();
    let cost = measure::run(&command, &[])?;
    println!("| `tracker {}`: CPU s, peak RSS MB | {:.2}, {:.0} |", args.join(" "), cost.cpu_s, cost.rss_mb);
    Ok(())
}

/// Names as a project tree has them, each made and deleted: the entry stays, the file takes no room. Returns the bytes
/// of all their paths.
fn touch(top: &Path, entries: u64) -> anyhow::Result<u64> {
    const IN_DIR: u64 = 200;
    let mut bytes = 0;
    let mut dir = String::new();
    for n in 0..entries {
        if n % IN_DIR == 0 {
            let number = n / IN_DIR;
            dir = format!("projects/archive-{:03}/photos-and-video/{number:05}-holidays", number / 50);
            fs::create_dir_all(top.join(&dir))?;
        }
        let name = format!("{dir}/IMG_{n:08}.jpeg");
        bytes += name.len() as u64;
        let path = top.join(name);
        File::create(&path)?;
        fs::remove_file(&path)?;
    }
    Ok(bytes)
}
