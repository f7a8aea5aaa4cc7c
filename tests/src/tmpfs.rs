//! An empty filesystem over a directory, taken away on every exit path.

use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::mount::UnmountFlags;

/// It stays until this is dropped.
pub struct Tmpfs(PathBuf);

impl Tmpfs {
    /// Needs root.
    pub fn over(dir: &Path) -> Tmpfs {
        Tmpfs::sized(dir, "50%")
    }

    /// With room for so much only.
    pub fn sized(dir: &Path, size: &str) -> Tmpfs {
        let size = format!("size={size}");
        let status =
            Command::new("mount").args(["-t", "tmpfs", "-o", &size, "none"]).arg(dir).status().unwrap();
        assert!(status.success(), "mounting over {}", dir.display());
        Tmpfs(dir.to_owned())
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, UnmountFlags::DETACH);
    }
}
