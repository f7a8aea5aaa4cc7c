//! The tracker while nothing happens: who wakes it, and what it writes. Its status lies in memory, as when installed.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::Context as _;
use tests::mount::LoopFs;
use tests::programs::{Daemon, call};

use crate::listeners::configure;
use crate::measure::{MEMORY, cpu_of, number};

/// Of the process, now.
struct Snapshot {
    /// Times each thread went to sleep of its own will.
    sleeps: BTreeMap<String, u64>,
    io: BTreeMap<&'static str, u64>,
    cpu_s: f64,
}

pub fn measure(seconds: u64, inside: bool) -> anyhow::Result<()> {
    if !inside {
        // Every mount on the machine is a reason for a probe: it shall see only its own.
        let status = Command::new("unshare")
            .args(["--mount", "--propagation", "private"])
            .arg(std::env::current_exe()?)
            .args(["idle", "--inside", "--seconds", &seconds.to_string()])
            .status()?;
        anyhow::ensure!(status.success(), "the measurement failed");
        return Ok(());
    }
    let disk = LoopFs::new("ext4").map_err(anyhow::Error::msg)?;
    let state = tempfile::tempdir()?;
    let runtime = tempfile::tempdir_in(MEMORY).context("a directory in memory")?;
    let config = configure(&disk.path(), &state.path().join("state"), runtime.path())?;
    let daemon = Daemon::start(&config);
    let flushed = call("tracker", &config, &["flush"]);
    anyhow::ensure!(flushed.status.success(), "flush: {}", tests::programs::text(&flushed));
    // What the beginning itself changed is in the status after this.
    std::thread::sleep(Duration::from_secs(3));
    let before = Snapshot::of(daemon.pid())?;
    std::thread::sleep(Duration::from_secs(seconds)); // the length of the measurement itself
    let after = Snapshot::of(daemon.pid())?;
    println!("| {seconds} s without any change | |\n| --- | --- |");
    for (thread, count) in &after.sleeps {
        println!(
            "| wake-ups of the thread `{thread}` | {} |",
            count - before.sleeps.get(thread).unwrap_or(&0)
        );
    }
    for (what, count) in &after.io {
        println!("| {what} | {} |", count - before.io[what]);
    }
    println!("| CPU ms | {:.2} |", (after.cpu_s - before.cpu_s) * 1e3);
    Ok(())
}

/// Keys of proc_pid_io(5), and what they count.
const IO: [(&str, &str); 3] = [
    ("read_bytes:", "bytes read from disks"),
    ("write_bytes:", "bytes written to disks"),
    ("wchar:", "bytes written anywhere (the status in memory, wake-ups between threads)"),
];

impl Snapshot {
    fn of(pid: u32) -> anyhow::Result<Snapshot> {
        let mut sleeps = BTreeMap::new();
        for task in fs::read_dir(format!("/proc/{pid}/task"))? {
            let status = fs::read_to_string(task?.path().join("status"))?;
            let name =
                status.lines().next().unwrap_or_default().trim_start_matches("Name:").trim().to_owned();
            *sleeps.entry(name).or_default() += number(&status, "voluntary_ctxt_switches:")?;
        }
        let io = fs::read_to_string(format!("/proc/{pid}/io"))?;
        let io = IO.iter().map(|(key, what)| Ok((*what, number(&io, key)?)));
        Ok(Snapshot { sleeps, io: io.collect::<anyhow::Result<_>>()?, cpu_s: cpu_of(pid)? })
    }
}
