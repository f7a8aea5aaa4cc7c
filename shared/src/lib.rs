//! What tracker and syncer agree on, and nothing else: byte paths, configuration, the journal and its rules of
//! order, disk identity, the control socket and the files both read. Knows neither of the two programs.

pub mod clock;
pub mod config;
pub mod control;
pub mod database;
pub mod entry;
pub mod exit;
pub mod files;
pub mod identity;
pub mod journal;
pub mod kill;
pub mod limits;
pub mod path;
pub mod rules;
pub mod status;
mod sys;
