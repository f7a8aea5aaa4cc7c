//! The command line.

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use shared::config::DEFAULT_PATH;

#[derive(Debug, Parser)]
#[command(
    name = "tracker",
    version,
    about = "Records every changed path of the tracked trees in a crash-safe journal"
)]
pub struct Args {
    #[command(flatten)]
    pub common: Common,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Clone, clap::Args)]
pub struct Common {
    /// The configuration.
    #[arg(long, global = true, value_name = "FILE", env = "LONGSHORE_CONFIG", default_value = DEFAULT_PATH)]
    pub config: PathBuf,
    /// Say more (twice: everything).
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// Say nothing but errors.
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
}

/// What the output of `pending` means. Each word stands first in its line.
const PENDING: &str = "\
Scopes:
  self      this path
  subtree   this path and all below it
  names     this path, and which names are in it: some are new or gone
  handle    a file without a usable name: its handle in hex is the PATH
  full      all of the root and of the destination's listing (only with --leg)

Keys of an object of --json:
  schema      1; within it keys only get added
  root        the name of the root
  scope       one of the above
  path        within the root; empty for the root itself, and with a handle
  path_b64    in the place of path, in Base64, if that is not UTF-8
  handle      of a file without a usable name, in hex
  cause       of what the leg put off, its class; else event, external (by
              `tracker add`), generation (btrfs), or the cause of a gap
  deferred    whether the leg put it off
  seq         its place in the journal; of what was put off, that of its newest cause
  at_ns       since when, in nanoseconds since 1970
  attempts    of what was put off, how often it was tried
  last_error  of what was put off, what went wrong";

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Track the roots until SIGTERM.
    Run,
    /// What the tracker sees and what is waiting in the journal. Ends with 75 if it does not run.
    Stats {
        /// One JSON object.
        #[arg(long)]
        json: bool,
        /// Every two seconds, until `q` or Ctrl-C. On a pipe one block after the other, with --json one object per line.
        #[arg(long)]
        watch: bool,
    },
    /// Whether every root is the disk it should be, and watched. It has the kernel tell of each root, which writes
    /// nothing. Ends with 0 if all is well, with 5 if a root is not, and with 75 if the tracker is down or hangs.
    Health {
        /// One JSON object.
        #[arg(long)]
        json: bool,
    },
    /// The paths that wait to be looked at.
    #[command(after_help = PENDING)]
    Pending {
        /// Only what this leg has not done yet in its roots, with what it put off.
        #[arg(long, value_name = "NAME")]
        leg: Option<String>,
        /// Records ROOT<TAB>SCOPE<TAB>PATH, each ended by NUL. PATH is within ROOT, and empty for ROOT itself. What a leg
        /// put off is not marked.
        #[arg(short = '0', long = "null", conflicts_with = "json")]
        null: bool,
        /// One JSON object per line.
        #[arg(long)]
        json: bool,
    },
    /// Have paths looked at again. All are added, or none. Ends with 75 if the tracker cannot take them just then.
    Add {
        /// The root that relative paths are in.
        #[arg(long, value_name = "NAME")]
        root: Option<String>,
        /// Everything below, too.
        #[arg(long)]
        subtree: bool,
        /// Read paths, each ended by NUL, from a file; `-` is standard input.
        #[arg(long, value_name = "FILE", conflicts_with = "paths")]
        from0: Option<PathBuf>,
        #[arg(value_name = "PATH", required_unless_present = "from0")]
        paths: Vec<PathBuf>,
    },
    /// Wait until everything that happened before is in the journal.
    Flush,
    /// Print the configuration of a root, with the identity of the disk it is on.
    Identify {
        /// The directory is meant to be a part of its parent's filesystem, not a disk that may be missing.
        #[arg(long)]
        subdir: bool,
        #[arg(value_name = "PATH")]
        path: PathBuf,
    },
    /// Check, back up or shrink the journal, also while the tracker runs.
    Journal {
        #[command(subcommand)]
        what: JournalCommand,
    },
    /// Check or show the configuration.
    Config {
        #[command(subcommand)]
        what: ConfigCommand,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub enum JournalCommand {
    /// Say whether it is whole. Ends with 1 if it is not.
    Check {
        /// One JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Write a consistent copy. A leg that finds such a copy restored compares everything once.
    Backup {
        /// Replace FILE if it exists.
        #[arg(long)]
        force: bool,
        /// One JSON object.
        #[arg(long)]
        json: bool,
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Give back to the disk what it does not use any more. Needs room for a copy of it.
    Vacuum {
        /// One JSON object.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Subcommand)]
pub enum ConfigCommand {
    /// Check it; nothing is printed if it is good.
    Check,
    /// Print what it means, defaults included.
    Show,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }
}
