//! Who listens while the storm goes on: started, waited for until it listens, measured, and ended by its own id.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use anyhow::Context as _;
use tempfile::TempDir;
use tests::programs::{Daemon, call};

use crate::measure::{MEMORY, Queue};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Nobody,
    Discard,
    Tracker,
    Inotifywait,
    Fatrace,
}

pub const ALL: [Kind; 5] = [Kind::Nobody, Kind::Discard, Kind::Tracker, Kind::Inotifywait, Kind::Fatrace];

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Kind::Nobody => "nobody",
            Kind::Discard => "a reader that discards",
            Kind::Tracker => "tracker",
            Kind::Inotifywait => "inotifywait -r -m",
            Kind::Fatrace => "fatrace -c",
        }
    }

    /// Why this one cannot take part.
    pub fn missing(self) -> Option<String> {
        let program = match self {
            Kind::Inotifywait => "inotifywait",
            Kind::Fatrace => "fatrace",
            _ => return None,
        };
        let there = Command::new(program).arg("--help").output().is_ok();
        (!there).then(|| format!("{program} is not installed and left out"))
    }
}

pub enum Listener {
    Nobody,
    Discard {
        child: Child,
        stdin: ChildStdin,
        stdout: BufReader<ChildStdout>,
    },
    Tracker {
        daemon: Daemon,
        config: PathBuf,
        _runtime: TempDir,
    },
    /// A peer that writes one line for each event.
    Peer {
        child: Child,
        log: PathBuf,
    },
}

/// What a listener says of itself in the end.
pub struct Said {
    pub events: f64,
    /// Where it is told.
    pub overflows: Option<f64>,
}

impl Listener {
    /// `work` is for its own files and lies on another filesystem.
    pub fn start(kind: Kind, top: &Path, work: &Path) -> anyhow::Result<Listener> {
        match kind {
            Kind::Nobody => Ok(Listener::Nobody),
            Kind::Discard => discard(top),
            Kind::Tracker => tracker(top, work),
            Kind::Inotifywait => inotifywait(top, work),
            Kind::Fatrace => fatrace(top, work),
        }
    }

    pub fn pid(&self) -> Option<u32> {
        match self {
            Listener::Nobody => None,
            Listener::Discard { child, .. } | Listener::Peer { child, .. } => Some(child.id()),
            Listener::Tracker { daemon, .. } => Some(daemon.pid()),
        }
    }

    /// Until everything that was queued is worked off.
    pub fn settle(&self, queue: Option<&Queue>) -> anyhow::Result<()> {
        if let Listener::Tracker { config, .. } = self {
            let flushed = call("tracker", config, &["flush"]);
            anyhow::ensure!(flushed.status.success(), "flush: {}", tests::programs::text(&flushed));
        }
        while queue.map_or(Ok(0), Queue::events)? > 0 {
            std::thread::sleep(Duration::from_millis(20)); // others have no word for it
        }
        Ok(())
    }

    pub fn end(self) -> anyhow::Result<Said> {
        match self {
            Listener::Nobody => Ok(Said { events: 0.0, overflows: None }),
            Listener::Discard { mut child, stdin, mut stdout } => {
                drop(stdin);
                let mut line = String::new();
                stdout.read_line(&mut line)?;
                child.wait()?;
                let numbers: Vec<f64> = line.split_whitespace().filter_map(|n| n.parse().ok()).collect();
                let [events, overflows] = numbers[..] else { anyhow::bail!("the reader said {line:?}") };
                Ok(Said { events, overflows: Some(overflows) })
            }
            Listener::Tracker { daemon, config, .. } => {
                let stats = settled_stats(&config)?;
                drop(daemon);
                let sum = |field: &str| -> f64 {
                    let filesystems = stats["status"]["filesystems"].as_array();
                    filesystems.into_iter().flatten().filter_map(|f| f[field].as_f64()).sum()
                };
                Ok(Said { events: sum("events_read"), overflows: Some(sum("overflows")) })
            }
            Listener::Peer { mut child, log } => {
                child.kill()?;
                child.wait()?;
                let events = fs::read(&log)?.iter().filter(|&&b| b == b'\n').count() as f64;
                Ok(Said { events, overflows: None })
            }
        }
    }
}

fn discard(top: &Path) -> anyhow::Result<Listener> {
    let mut child = Command::new(std::env::current_exe()?)
        .arg("discard")
        .arg(top)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let stdin = child.stdin.take().context("standard input")?;
    let mut stdout = BufReader::new(child.stdout.take().context("standard output")?);
    let mut ready = String::new();
    stdout.read_line(&mut ready)?;
    anyhow::ensure!(ready == "ready\n", "the reader that discards needs root");
    Ok(Listener::Discard { child, stdin, stdout })
}

/// A configuration with one root and no leg.
pub fn configure(top: &Path, state: &Path, runtime: &Path) -> anyhow::Result<PathBuf> {
    let config = state.with_extension("toml");
    let text = format!(
        "state_dir = \"{}\"\nruntime_dir = \"{}\"\n[[root]]\nname = \"space\"\npath = \"{}\"\n",
        state.display(),
        runtime.display(),
        top.display()
    );
    fs::write(&config, text)?;
    Ok(config)
}

fn tracker(top: &Path, work: &Path) -> anyhow::Result<Listener> {
    // As installed: the journal on a disk, the status in memory.
    let runtime = tempfile::tempdir_in(MEMORY)?;
    let config = configure(top, &work.join("state"), runtime.path())?;
    Ok(Listener::Tracker { daemon: Daemon::start(&config), config, _runtime: runtime })
}

/// The counters in the status file lag up to a second: read until they stand.
fn settled_stats(config: &Path) -> anyhow::Result<serde_json::Value> {
    let events = |stats: &serde_json::Value| stats["status"]["filesystems"][0]["events_read"].clone();
    let mut before = serde_json::Value::Null;
    loop {
        let output = call("tracker", config, &["stats", "--json"]);
        let stats: serde_json::Value =
            serde_json::from_slice(&output.stdout).context("tracker stats --json")?;
        if events(&stats) == before {
            return Ok(stats);
        }
        before = events(&stats);
        std::thread::sleep(Duration::from_millis(1_500)); // longer than the lag
    }
}

/// What home-made scripts run, with the kinds of events that the tracker asks for.
fn inotifywait(top: &Path, work: &Path) -> anyhow::Result<Listener> {
    let log = work.join("log");
    let mut child = Command::new("inotifywait")
        .args(["-m", "-r", "-e", "create,delete,modify,close_write,attrib,move", "--format", "%e %w%f"])
        .arg(top)
        .stdout(File::create(&log)?)
        .stderr(Stdio::piped())
        .spawn()?;
    let stderr = child.stderr.take().context("standard error")?;
    for line in BufReader::new(stderr).lines() {
        if line?.contains("Watches established") {
            return Ok(Listener::Peer { child, log });
        }
    }
    anyhow::bail!("inotifywait did not begin");
}

/// It asks for opens and reads too, and cannot be told otherwise. It does not say when it listens: its mark does.
fn fatrace(top: &Path, work: &Path) -> anyhow::Result<Listener> {
    let log = work.join("log");
    let child = Command::new("fatrace")
        .arg("-c")
        .current_dir(top)
        .stdout(File::create(&log)?)
        .stderr(Stdio::null())
        .spawn()?;
    let marked = || {
        let fds = fs::read_dir(format!("/proc/{}/fdinfo", child.id())).ok()?;
        fds.filter_map(|fd| fs::read_to_string(fd.ok()?.path()).ok()).find(|t| t.contains("sdev:"))
    };
    for _ in 0..500 {
        if marked().is_some() {
            return Ok(Listener::Peer { child, log });
        }
        std::thread::sleep(Duration::from_millis(10)); // between two looks
    }
    anyhow::bail!("fatrace did not begin");
}
