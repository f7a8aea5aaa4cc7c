//! What a process costs, by the kernel's own accounting, and how much waits in its queue of events.

use std::os::fd::OwnedFd;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, bail};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags};

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

/// CPU time that all threads of a running process have used so far, in seconds: by the scheduler's own account in
/// nanoseconds, where /proc/PID/stat has hundredths of a second.
pub fn cpu_of(pid: u32) -> anyhow::Result<f64> {
    let mut ns = 0;
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = std::fs::read_to_string(task?.path().join("schedstat"))?;
        ns += text.split_whitespace().next().context("no number")?.parse::<u64>()?;
    }
    Ok(ns as f64 / 1e9)
}

/// Peak resident memory of a running process in MB.
pub fn rss_of(pid: u32) -> anyhow::Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    Ok(number(&status, "VmHWM:")? as f64 / 1024.0)
}

/// The number behind a key at the beginning of a line.
pub fn number(text: &str, key: &str) -> anyhow::Result<u64> {
    let rest = text.lines().find_map(|l| l.strip_prefix(key)).with_context(|| format!("no {key}"))?;
    Ok(rest.split_whitespace().next().with_context(|| format!("no number at {key}"))?.parse()?)
}

/// A tmpfs that each Linux has.
pub const MEMORY: &str = "/dev/shm";

/// The middle one.
pub fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    match figures.len() {
        0 => f64::NAN,
        n if n % 2 == 0 => (figures[n / 2 - 1] + figures[n / 2]) / 2.0,
        n => figures[n / 2],
    }
}

/// Another process's fanotify or inotify descriptor, to see how much is queued there.
pub struct Queue {
    fd: OwnedFd,
    bytes_per_event: u64,
}

impl Queue {
    pub fn of(pid: u32) -> anyhow::Result<Queue> {
        for entry in std::fs::read_dir(format!("/proc/{pid}/fd"))? {
            let entry = entry?;
            let target = std::fs::read_link(entry.path())?;
            let bytes_per_event = match target.to_str() {
                // FIONREAD counts 24 for each event, whatever its length (measured on 6.18).
                Some("anon_inode:[fanotify]") => 24,
                // struct inotify_event and a name of less than 16 bytes.
                Some("anon_inode:inotify") => 32,
                _ => continue,
            };
            let number = entry.file_name().to_str().and_then(|n| n.parse().ok()).context("no number")?;
            let pid = Pid::from_raw(pid.cast_signed()).context("no process id")?;
            let process = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
            let fd = rustix::process::pidfd_getfd(&process, number, PidfdGetfdFlags::empty())?;
            return Ok(Queue { fd, bytes_per_event });
        }
        anyhow::bail!("process {pid} listens to nothing")
    }

    /// Walks the queue under the lock that writers wait for.
    pub fn events(&self) -> anyhow::Result<u64> {
        Ok(rustix::io::ioctl_fionread(&self.fd)? / self.bytes_per_event)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_or_between_the_two_middle_ones() {
        assert_eq!(median(vec![9.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 9.0]), 3.0);
        assert!(median(Vec::new()).is_nan());
    }

    #[test]
    fn a_number_stands_behind_its_key_alone() {
        let text = "VmHWMx: 1\nVmHWM:\t  2048 kB\n";
        assert_eq!(number(text, "VmHWM:").unwrap(), 2048);
        assert!(number(text, "VmRSS:").is_err() && number("a:\n", "a:").is_err());
    }
}
