//! What tests inside this crate have together.

/// False with one line of output without root; in CI a test may not be skipped.
pub(crate) fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    assert!(root || std::env::var("CI").as_deref() != Ok("true"), "this test needs root");
    if !root {
        eprintln!("skipped: needs root");
    }
    root
}
