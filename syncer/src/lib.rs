//! The syncer as a library, so that tests and benches reach its parts.

pub mod leg;
pub mod tree;
