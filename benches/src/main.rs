//! `cargo run --release -p benches --bin compare -- sync|storm|backlog|idle|rescan`: figures side by side with peers, in one
//! run on one machine, as tables for RESULTS.md. Ratios and CPU are what counts; wall times depend on the machine and
//! its load.

mod backlog;
mod discard;
mod idle;
mod listeners;
mod measure;
mod rescan;
mod storm;
mod sync;
mod tree;
mod workload;

use std::path::PathBuf;

use clap::{Parser, Subcommand};

#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    figure: Figure,
}

#[derive(Subcommand)]
enum Figure {
    /// First upload of a tree, and runs without changes, beside rclone and the b2 command line
    Sync {
        /// Directories of 100 files of 1 to 8 KB; five files of 20 MB come on top
        #[arg(long, default_value_t = 200)]
        dirs: usize,
        /// Leave the peers out
        #[arg(long)]
        alone: bool,
    },
    /// The tracker under a storm of file operations on ext4, beside nobody, a reader that discards, and peers
    Storm {
        /// Seconds of storm for each listener
        #[arg(long, default_value_t = 8)]
        seconds: u64,
        /// How often each listener has its turn
        #[arg(long, default_value_t = 3)]
        rounds: usize,
        /// Cycles a second of the paced load that follows the full storm; 0 leaves it out
        #[arg(long, default_value_t = 2_000)]
        rate: u64,
    },
    /// A gap over a root in which nothing changed, beside find
    Rescan {
        /// Directories of 100 files
        #[arg(long, default_value_t = 2_000)]
        dirs: usize,
        /// Filesystems, each on a loop device
        #[arg(long, value_delimiter = ',', default_value = "ext4,xfs,btrfs")]
        kinds: Vec<String>,
        /// Runs of each, interleaved
        #[arg(long, default_value_t = 3)]
        rounds: usize,
    },
    /// Memory and journal of the tracker when very much waits
    Backlog {
        #[arg(long, default_value_t = 500_000)]
        entries: u64,
    },
    /// What the tracker does while nothing happens
    Idle {
        #[arg(long, default_value_t = 60)]
        seconds: u64,
        /// The mounts are this process's own already
        #[arg(long, hide = true)]
        inside: bool,
    },
    /// One process of the storm
    #[command(hide = true)]
    Work { dir: PathBuf, seconds: u64, rate: u64 },
    /// The reader that discards
    #[command(hide = true)]
    Discard { dir: PathBuf },
}

fn main() -> anyhow::Result<()> {
    match Args::parse().figure {
        Figure::Sync { dirs, alone } => sync::compare(dirs, alone),
        Figure::Rescan { dirs, kinds, rounds } => rescan::compare(dirs, &kinds, rounds),
        Figure::Storm { seconds, rounds, rate } => storm::compare(seconds, rounds, rate),
        Figure::Backlog { entries } => backlog::measure(entries),
        Figure::Idle { seconds, inside } => idle::measure(seconds, inside),
        Figure::Work { dir, seconds, rate } => workload::work(&dir, seconds, rate),
        Figure::Discard { dir } => discard::read(&dir),
    }
}
