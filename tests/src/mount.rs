//! Loop-mounted filesystems, undone on every exit path.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

/// A filesystem of its own on an image file, mounted below a temporary directory.
pub struct LoopFs {
    dir: TempDir,
    mounted: bool,
}

/// The kinds the end-to-end tests run on.
pub const KINDS: [&str; 3] = ["ext4", "xfs", "btrfs"];

fn run(program: &str, args: &[&str]) -> Result<Output, String> {
    let out = Command::new(program).args(args).output().map_err(|e| format!("{program}: {e}"))?;
    if out.status.success() {
        return Ok(out);
    }
    Err(format!("{program} {args:?}: {}", String::from_utf8_lossy(&out.stderr)))
}

/// xfs wants 300 MiB.
const USUAL_BYTES: u64 = 400 << 20;

impl LoopFs {
    /// Needs root, loop devices and the mkfs program of the kind.
    pub fn new(kind: &str) -> Result<LoopFs, String> {
        LoopFs::made(kind, &std::env::temp_dir(), USUAL_BYTES)
    }

    /// With its image below `place`: in memory, no other job on the disk is measured with it.
    pub fn new_in(kind: &str, place: &Path) -> Result<LoopFs, String> {
        LoopFs::made(kind, place, USUAL_BYTES)
    }

    /// On an image of so many bytes, of which only what is written takes room.
    pub fn sized(kind: &str, bytes: u64) -> Result<LoopFs, String> {
        LoopFs::made(kind, &std::env::temp_dir(), bytes)
    }

    fn made(kind: &str, place: &Path, bytes: u64) -> Result<LoopFs, String> {
        let dir = tempfile::tempdir_in(place).map_err(|e| e.to_string())?;
        let image = dir.path().join("image");
        let file = std::fs::File::create(&image).map_err(|e| e.to_string())?;
        file.set_len(bytes).map_err(|e| e.to_string())?;
        drop(file);
        let image = image.display().to_string();
        match kind {
            "ext4" => run("mkfs.ext4", &["-q", "-F", &image])?,
            other => run(&format!("mkfs.{other}"), &["-q", &image])?,
        };
        std::fs::create_dir(dir.path().join("mnt")).map_err(|e| e.to_string())?;
        let mut fs = LoopFs { dir, mounted: false };
        fs.mount()?;
        Ok(fs)
    }

    pub fn path(&self) -> PathBuf {
        self.dir.path().join("mnt")
    }

    /// The file that the filesystem lies in.
    pub fn image(&self) -> PathBuf {
        self.dir.path().join("image")
    }

    pub fn mount(&mut self) -> Result<(), String> {
        let image = self.image().display().to_string();
        run("mount", &["-o", "loop", &image, &self.path().display().to_string()])?;
        self.mounted = true;
        Ok(())
    }

    /// Mounted as it is, with other options.
    pub fn remount(&self, options: &str) -> Result<(), String> {
        run("mount", &["-o", &format!("remount,{options}"), &self.path().display().to_string()]).map(drop)
    }

    /// A plain umount: it fails if anybody holds the filesystem.
    pub fn unmount(&mut self) -> Result<(), String> {
        run("umount", &[&self.path().display().to_string()])?;
        self.mounted = false;
        Ok(())
    }
}

impl Drop for LoopFs {
    fn drop(&mut self) {
        if self.mounted {
            // Lazily, so that a program a failed test left behind cannot keep the mount.
            let _ = run("umount", &["-l", &self.path().display().to_string()]);
        }
    }
}

/// True if this machine can make and mount the kind; otherwise the test is skipped with the reason.
pub fn available(kind: &str) -> bool {
    if !crate::is_root() {
        crate::skip(&format!("mounting {kind} needs root"));
        return false;
    }
    let program = format!("/usr/sbin/mkfs.{kind}");
    if !Path::new(&program).exists() && !Path::new(&format!("/sbin/mkfs.{kind}")).exists() {
        crate::skip(&format!("mkfs.{kind} is not installed"));
        return false;
    }
    true
}
