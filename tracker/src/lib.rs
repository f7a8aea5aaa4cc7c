//! The tracker as a library, so that tests and benches reach its parts.

pub mod args;
pub mod batch;
pub mod commands;
pub mod daemon;
pub mod event_to_entry;
pub mod generation;
pub mod host;
pub mod intake;
pub mod linked;
pub mod meter;
pub mod mounts;
pub mod rate;
pub mod resolve;
pub mod roots;
pub mod shell;
#[cfg(test)]
mod testing;
