//! What tests of files need: mounts that are undone on every way out, and a thread without rights.

use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::mount::UnmountFlags;
use rustix::thread::CapabilitySet;

/// False with one line of output without root; in CI a test may not be skipped.
pub(crate) fn is_root(test: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    assert!(root || std::env::var("CI").as_deref() != Ok("true"), "{test} needs root");
    if !root {
        eprintln!("skipped, needs root: {test}");
    }
    root
}

/// A mount that ends with the test, however that ends.
pub(crate) struct Mounted(PathBuf);

impl Mounted {
    pub fn new(args: &[&str], at: &Path) -> Mounted {
        let status = Command::new("mount").args(args).arg(at).status().unwrap();
        assert!(status.success(), "mount {args:?}");
        Mounted(at.to_owned())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, UnmountFlags::DETACH);
    }
}

/// Runs `work` on a thread that may do nothing an ordinary user may not. A failed assertion there fails the test.
pub(crate) fn without_rights<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let mut sets = rustix::thread::capabilities(None).unwrap();
            sets.effective = CapabilitySet::empty();
            rustix::thread::set_capabilities(None, sets).unwrap();
            work()
        });
        thread.join().unwrap()
    })
}
