//! The storm: processes that create, write, close, rename and delete files, each in a directory of its own.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rustix::time::{ClockId, clock_gettime};

/// The machine has two cores.
pub const PROCESSES: usize = 2;
/// A paced load does this many cycles at once, so that waking costs less than working.
const PACE_CYCLES: u64 = 4;

/// What all processes of a storm did and cost.
pub struct Storm {
    pub cycles: u64,
    pub seconds: f64,
    pub cpu_s: f64,
}

impl Storm {
    pub fn rate(&self) -> f64 {
        self.cycles as f64 / self.seconds
    }

    pub fn cpu_us_per_cycle(&self) -> f64 {
        self.cpu_s * 1e6 / self.cycles as f64
    }
}

/// The directories are there before anybody listens.
pub fn prepare(top: &Path) -> anyhow::Result<()> {
    for n in 0..PROCESSES {
        fs::create_dir_all(top.join(format!("t{n}")))?;
    }
    Ok(())
}

/// `rate` is of all processes together; 0 is as fast as they can.
pub fn run(top: &Path, seconds: u64, rate: u64) -> anyhow::Result<Storm> {
    let exe = std::env::current_exe()?;
    let spawn = |n: usize| {
        let mut command = Command::new(&exe);
        command.arg("work").arg(top.join(format!("t{n}"))).arg(seconds.to_string());
        command.arg((rate / PROCESSES as u64).to_string()).stdout(Stdio::piped()).spawn()
    };
    let children: Vec<Child> = (0..PROCESSES).map(spawn).collect::<Result<_, _>>()?;
    let mut storm = Storm { cycles: 0, seconds: 0.0, cpu_s: 0.0 };
    for child in children {
        let output = child.wait_with_output()?;
        anyhow::ensure!(output.status.success(), "a process of the storm failed");
        let text = String::from_utf8(output.stdout)?;
        let numbers: Vec<f64> = text.split_whitespace().filter_map(|n| n.parse().ok()).collect();
        let [cycles, seconds, cpu_s] = numbers[..] else { anyhow::bail!("the storm said {text:?}") };
        storm.cycles += cycles as u64;
        storm.seconds = storm.seconds.max(seconds);
        storm.cpu_s += cpu_s;
    }
    Ok(storm)
}

/// One process; prints cycles, seconds, CPU seconds.
pub fn work(dir: &Path, seconds: u64, rate: u64) -> anyhow::Result<()> {
    let begun = Instant::now();
    let cpu = cpu_s();
    let end = begun + Duration::from_secs(seconds);
    let mut cycle: u64 = 0;
    while Instant::now() < end {
        for _ in 0..PACE_CYCLES {
            turn(dir, cycle).with_context(|| format!("cycle {cycle} in {}", dir.display()))?;
            cycle += 1;
        }
        if rate > 0 {
            // The pace is that of the load itself, and nothing is waited for.
            let due = begun + Duration::from_secs_f64(cycle as f64 / rate as f64);
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
        }
    }
    println!("{cycle} {} {}", begun.elapsed().as_secs_f64(), cpu_s() - cpu);
    Ok(())
}

/// Create, write 100 bytes, close, rename, and delete the one before last.
fn turn(dir: &Path, cycle: u64) -> std::io::Result<()> {
    let (new, kept) = (dir.join(format!("n{cycle}")), dir.join(format!("k{cycle}")));
    fs::write(&new, [7; 100])?;
    fs::rename(&new, &kept)?;
    if cycle >= 2 {
        fs::remove_file(dir.join(format!("k{}", cycle - 2)))?;
    }
    Ok(())
}

/// CPU time of this process so far.
pub fn cpu_s() -> f64 {
    let t = clock_gettime(ClockId::ProcessCPUTime);
    t.tv_sec as f64 + t.tv_nsec as f64 / 1e9
}
