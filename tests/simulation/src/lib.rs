//! A deterministic world: one seed is one world, on one thread, without real time and without real I/O but SQLite's.
//! Tracker and syncer are the real ones; what they ask of a machine and of a destination is simulated.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

pub mod database;
pub mod disk;
pub mod fate;
pub mod machine;
pub mod random;
pub mod store;
