//! A deterministic world: one seed is one world, on one thread, without real time and without real I/O but SQLite's.
//! Tracker and syncer are the real ones; what they ask of a machine and of a destination is simulated.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

pub mod campaign;
pub mod chance;
pub mod database;
pub mod deeds;
pub mod disk;
pub mod disks;
pub mod fate;
pub mod faults;
pub mod hand;
pub mod host;
pub mod machine;
pub mod oracle;
pub mod plan;
pub mod planted;
pub mod random;
pub mod script;
pub mod seat;
pub mod shape;
pub mod shrink;
pub mod store;
pub mod tree;
pub mod users;
pub mod world;
