//! The harness of the end-to-end tests: real filesystems, real programs, and the comparison of two trees.
#![allow(clippy::unwrap_used, reason = "a harness: a panic is how a test fails")]

pub mod b2_leg;
pub mod campaign;
pub mod compare;
pub mod container;
pub mod dir_leg;
pub mod mount;
pub mod played;
pub mod programs;
pub mod storm;
pub mod struck;
pub mod supervisor;
pub mod sys;
pub mod tmpfs;
pub mod workload;
pub mod world;

/// Says on one line why a test cannot run here; in CI that is a failure.
pub fn skip(why: &str) {
    let ci = std::env::var("CI").is_ok_and(|v| v == "true");
    assert!(!ci, "skipped in CI: {why}");
    eprintln!("skipped: {why}");
}

/// True if this process may mount and mark.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}
