//! Runs worlds: so many seeds, or for so long, on all cores; prints what failed, and how to see it again.

use std::ops::Range;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use simulation::campaign::{self, Budget, Summary};
use simulation::script::Script;
use simulation::world;

/// Runs deterministic worlds of tracker and syncer, and looks whether what must always hold does.
#[derive(Parser)]
struct Args {
    /// Seeds FROM..TO, each of which is one world.
    #[arg(long, value_parser = range, default_value = "0..500")]
    seeds: Range<u64>,
    /// Goes on with the seeds behind until so many minutes are over.
    #[arg(long)]
    minutes: Option<f64>,
    /// Ends with the first world that fails.
    #[arg(long)]
    stop_at_first: bool,
    /// One line of JSON at the end, and nothing else on standard output.
    #[arg(long)]
    json: bool,
    /// Plays a script again instead of drawing worlds.
    #[arg(long, value_name = "FILE")]
    replay: Option<PathBuf>,
    /// Writes a shortened script of each world that fails into this directory.
    #[arg(long, value_name = "DIR")]
    shrink: Option<PathBuf>,
    /// Prints each step and what it led to.
    #[arg(long)]
    trace: bool,
    /// Worlds at the same time; as many as there are cores unless it is said.
    #[arg(long)]
    jobs: Option<usize>,
}

fn range(text: &str) -> Result<Range<u64>, String> {
    let number = |text: &str| text.parse::<u64>().map_err(|e| format!("`{text}`: {e}"));
    match text.split_once("..") {
        Some((from, to)) => Ok(number(from)?..number(to)?),
        None => number(text).map(|seed| seed..seed + 1),
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    if args.trace {
        // What the programs say of themselves, too; RUST_LOG=debug for each of their steps.
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        tracing_subscriber::fmt().without_time().with_env_filter(filter).init();
    }
    if let Some(file) = &args.replay {
        return replay(file, args.trace);
    }
    let budget = Budget {
        seeds: args.seeds.clone(),
        until: args.minutes.map(|minutes| Instant::now() + Duration::from_secs_f64(minutes * 60.0)),
        stop_at_first: args.stop_at_first,
        trace: args.trace,
        jobs: args.jobs.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from)),
    };
    let summary = campaign::run(&budget, |failure| {
        if !args.json {
            eprintln!("seed {}: {}: {}", failure.seed, failure.invariant, failure.message);
        }
    });
    say(&summary, args.json);
    if let Some(dir) = &args.shrink {
        for failure in &summary.failures {
            let file = dir.join(format!("{}-{}.script", failure.invariant, failure.seed));
            let script = campaign::shortened(failure);
            match std::fs::write(&file, script) {
                Ok(()) => eprintln!("simulate --replay {}", file.display()),
                Err(e) => eprintln!("simulate: {}: {e}", file.display()),
            }
        }
    }
    if summary.failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn say(summary: &Summary, json: bool) {
    if json {
        println!("{}", serde_json::to_string(summary).expect("plain data"));
    } else {
        println!("{}", summary.text());
    }
}

fn replay(file: &std::path::Path, trace: bool) -> ExitCode {
    let script = std::fs::read_to_string(file).and_then(|text| Script::parse(&text));
    let script = match script {
        Ok(script) => script,
        Err(e) => {
            eprintln!("simulate: {}: {e}", file.display());
            return ExitCode::from(2);
        }
    };
    let lived = world::replay(&script, trace);
    match lived.violation {
        Some(violation) => {
            println!("{violation}");
            ExitCode::FAILURE
        }
        None => {
            println!("{} steps, nothing failed, trace {:016x}", lived.steps, lived.trace);
            ExitCode::SUCCESS
        }
    }
}
