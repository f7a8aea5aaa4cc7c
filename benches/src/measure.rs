//! What a finished child process cost, by the kernel's own accounting (GNU time reads its rusage).

use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, bail};

#[derive(Debug, Clone, Copy)]
pub struct Cost {
    pub wall_s: f64,
    /// User and system time together.
    pub cpu_s: f64,
    pub rss_mb: f64,
}

/// Runs a command to its end under GNU time; it must succeed.
pub fn run(command: &[&str], env: &[(String, String)]) -> anyhow::Result<Cost> {
    let report = tempfile::NamedTempFile::new()?;
    let begun = Instant::now();
    let output = Command::new("/usr/bin/time")
        .args(["-f", "%U %S %M", "-o"])
        .arg(report.path())
        .args(command)
        .envs(env.iter().map(|(k, v)| (k, v)))
        .output()
        .context("GNU time is needed: apt-get install time")?;
    let wall_s = begun.elapsed().as_secs_f64();
    if !output.status.success() {
        bail!(
            "{command:?} failed: {}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    let text = std::fs::read_to_string(report.path())?;
    let numbers: Vec<f64> = text.split_whitespace().filter_map(|n| n.parse().ok()).collect();
    let [user, system, kib] = numbers[..] else { bail!("GNU time said {text:?}") };
    Ok(Cost { wall_s, cpu_s: user + system, rss_mb: kib / 1024.0 })
}

/// User and system time that a running process has used so far, in seconds (proc_pid_stat(5), 100 ticks a second).
pub fn cpu_of(pid: u32) -> anyhow::Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let after_name = stat.rsplit_once(')').context("no name in stat")?.1;
    let fields: Vec<&str> = after_name.split_whitespace().collect();
    let ticks: f64 = fields[11].parse::<f64>()? + fields[12].parse::<f64>()?;
    Ok(ticks / rustix::param::clock_ticks_per_second() as f64)
}

/// Peak resident memory of a running process in MB.
pub fn rss_of(pid: u32) -> anyhow::Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find(|l| l.starts_with("VmHWM:")).context("no VmHWM")?;
    let kib: f64 = line.split_whitespace().nth(1).context("no number")?.parse()?;
    Ok(kib / 1024.0)
}
