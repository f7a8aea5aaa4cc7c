//! `cargo run --release -p benches -- sync|storm|rescan`: figures side by side with peers, in one run on one machine,
//! as tables for RESULTS.md. Ratios and client CPU are what counts; wall times depend on the machine and its load.

mod measure;
mod rescan;
mod storm;
mod sync;
mod tree;

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
    /// The tracker under a storm of file operations on ext4, beside inotifywait and beside nobody
    Storm {
        /// Seconds of storm per row
        #[arg(long, default_value_t = 10)]
        seconds: u64,
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
}

fn main() -> anyhow::Result<()> {
    match Args::parse().figure {
        Figure::Sync { dirs, alone } => sync::compare(dirs, alone),
        Figure::Storm { seconds } => storm::compare(seconds),
        Figure::Rescan { dirs, kinds, rounds } => rescan::compare(dirs, &kinds, rounds),
    }
}
