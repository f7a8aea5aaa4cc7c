//! The kill campaign: the tracker is killed some hundred or thousand times under a storm, and nothing may be lost.
#![allow(clippy::unwrap_used, reason = "a harness: a panic is how it fails")]

use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};
use tests::campaign::{Plan, run};
use tests::storm;

/// Kills the tracker over and over under a storm of file operations, and checks that no change is lost. Needs root.
#[derive(Parser)]
struct Args {
    /// How often
    #[arg(long, default_value_t = 100)]
    kills: u64,
    /// Of the storm and of the moments
    #[arg(long)]
    seed: Option<u64>,
    /// Switch a part of the tracker off: then changes must be lost
    #[arg(long)]
    without: Option<Part>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Part {
    /// What a read that was cut short left is thrown away
    Recovery,
    /// The buffer ends with the process, like memory of its own
    Buffer,
}

#[derive(Subcommand)]
enum Command {
    /// One process of the storm
    #[command(hide = true)]
    Worker { top: PathBuf, number: u64, seed: u64, log: PathBuf },
}

fn main() {
    let args = Args::parse();
    if let Some(Command::Worker { top, number, seed, log }) = args.command {
        return storm::work(&top, number, seed, &log);
    }
    // Where the part that is missing would have been needed.
    let control = args.without.map(|part| match part {
        Part::Recovery => ("recovery", "read"),
        Part::Buffer => ("buffer", "published"),
    });
    let figures = run(Plan {
        kills: args.kills,
        seed: args.seed.unwrap_or_else(rand::random),
        control,
        worker: std::env::current_exe().unwrap(),
    });
    println!("{figures}");
    for line in figures.missing.iter().chain(&figures.gaps).chain(&figures.different).take(20) {
        println!("  {line}");
    }
    let lost = !figures.missing.is_empty() || !figures.different.is_empty();
    let as_it_should = if control.is_some() { lost } else { !lost && figures.gaps.is_empty() };
    std::process::exit(i32::from(!as_it_should));
}
