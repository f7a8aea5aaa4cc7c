//! The syncer as a library, so that tests and benches reach its parts.

pub mod args;
pub mod catalog;
pub mod commands;
pub mod credentials;
mod dry;
pub mod examine;
pub mod guard;
pub mod leg;
pub mod live;
pub mod report;
pub mod run;
mod status;
pub mod tree;
pub mod walk;
mod watch;
