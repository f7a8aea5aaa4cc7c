//! The command line, as it is typed.

use std::path::PathBuf;

use clap::{Args as ClapArgs, Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(name = "syncer", version, about = "Brings the mirrors of tracked trees up to date")]
pub struct Args {
    #[command(flatten)]
    pub common: Common,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, ClapArgs)]
pub struct Common {
    /// The configuration file
    #[arg(long, global = true, env = "LONGSHORE_CONFIG", default_value = shared::config::DEFAULT_PATH)]
    pub config: PathBuf,
    /// Say more (twice: every step)
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// Say only what went wrong
    #[arg(short, long, global = true)]
    pub quiet: bool,
    /// Print JSON
    #[arg(long, global = true)]
    pub json: bool,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Sync once: what changed since the last run, and what is still owed
    Run {
        /// Only this leg (repeatable; without it every leg in turn)
        #[arg(long = "leg", value_name = "NAME")]
        legs: Vec<String>,
        /// Say what would be done; nothing is written anywhere
        #[arg(long)]
        dry_run: bool,
        /// Compare everything with the destination's own listing
        #[arg(long)]
        full: bool,
        /// Let up to N deletes that wait pass the guard, this once
        #[arg(long, value_name = "N")]
        allow_deletes: Option<u64>,
    },
    /// Sync now, and again whenever something changed, until stopped
    Watch {
        /// Only this leg (repeatable; without it every leg)
        #[arg(long = "leg", value_name = "NAME")]
        legs: Vec<String>,
    },
    /// Where each leg stands: last run, what is pending, owed, held
    Status {
        /// Only this leg (repeatable)
        #[arg(long = "leg", value_name = "NAME")]
        legs: Vec<String>,
    },
    /// The configuration
    Config {
        #[command(subcommand)]
        command: ConfigCommand,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Subcommand)]
pub enum ConfigCommand {
    /// Check the configuration file
    Check,
    /// Show the configuration as it is understood
    Show,
}
