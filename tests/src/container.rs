//! A machine of its own under a real systemd, in systemd-nspawn: this machine's files with changes of its own, taken
//! away on every exit path.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::mount::UnmountFlags;
use tempfile::TempDir;

const BOOT_PATIENCE: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(100);
/// What nspawn withholds otherwise.
const CALLS: &str = "fanotify_init fanotify_mark open_by_handle_at name_to_handle_at";

pub struct Container {
    nspawn: Option<Child>,
    name: String,
    top: Overlay,
}

/// This machine's files below, what is changed on top of them in memory.
struct Overlay {
    dir: TempDir,
}

impl Overlay {
    fn new() -> Result<Overlay, String> {
        let overlay = Overlay { dir: tempfile::tempdir().map_err(|e| e.to_string())? };
        let (memory, root) = (overlay.dir.path().join("memory"), overlay.root());
        for dir in [&memory, &root] {
            fs::create_dir(dir).map_err(|e| e.to_string())?;
        }
        must(Command::new("mount").args(["-t", "tmpfs", "none"]).arg(&memory))?;
        for dir in ["upper", "work"] {
            fs::create_dir(memory.join(dir)).map_err(|e| e.to_string())?;
        }
        let options = format!("lowerdir=/,upperdir={0}/upper,workdir={0}/work", memory.display());
        must(Command::new("mount").args(["-t", "overlay", "overlay", "-o", &options]).arg(&root))?;
        Ok(overlay)
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        for dir in ["root", "memory"] {
            let _ = rustix::mount::unmount(self.dir.path().join(dir), UnmountFlags::DETACH);
        }
    }
}

fn must(command: &mut Command) -> Result<Output, String> {
    let output = command.output().map_err(|e| format!("{command:?}: {e}"))?;
    if output.status.success() {
        return Ok(output);
    }
    Err(format!("{command:?}: {}", crate::programs::text(&output)))
}

impl Container {
    /// Needs root. Nothing runs yet: [`Container::root`] is to be filled first. `Err` where it cannot be made.
    pub fn new() -> Result<Container, String> {
        must(Command::new("systemd-nspawn").arg("--version"))?;
        let name = format!("longshore-{}", std::process::id());
        Ok(Container { nspawn: None, name, top: Overlay::new()? })
    }

    /// Where its root directory lies here.
    pub fn root(&self) -> PathBuf {
        self.top.root()
    }

    /// Boots it, with the directory `shared` at `at`.
    pub fn boot(&mut self, shared: &Path, at: &str) {
        fs::create_dir_all(self.root().join(at.trim_start_matches('/'))).unwrap();
        let nspawn = Command::new("systemd-nspawn")
            .args(["--register=no", "--keep-unit", "--private-network", "--link-journal=no"])
            .args(["--capability=all", "--console=pipe", "--quiet", "--boot"])
            .arg(format!("--machine={}", self.name))
            .arg(format!("--system-call-filter={CALLS}"))
            .arg(format!("--bind={}:{at}", shared.display()))
            .arg("--directory")
            .arg(self.root())
            // No more of this machine's services than that.
            .args(["--", "--unit=basic.target"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        self.nspawn = Some(nspawn);
        let deadline = Instant::now() + BOOT_PATIENCE;
        loop {
            // Degraded, too: not every service of a real machine works in a container.
            let state = self.init().map(|_| self.run(&["systemctl", "is-system-running"]));
            let state =
                state.map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned()).unwrap_or_default();
            if state == "running" || state == "degraded" {
                return;
            }
            assert!(Instant::now() < deadline, "it does not boot: {state}");
            std::thread::sleep(POLL);
        }
    }

    /// Its first process, by our number.
    fn init(&self) -> Option<u32> {
        let nspawn = self.nspawn.as_ref()?.id();
        let children = fs::read_to_string(format!("/proc/{nspawn}/task/{nspawn}/children")).ok()?;
        children.split_whitespace().next()?.parse().ok()
    }

    /// Runs a command inside.
    pub fn run(&self, command: &[&str]) -> Output {
        let init = self.init().expect("it runs").to_string();
        Command::new("nsenter").args(["--target", &init, "--all"]).args(command).output().unwrap()
    }

    /// A command that must succeed; its standard output.
    pub fn must(&self, command: &[&str]) -> String {
        let output = self.run(command);
        assert!(output.status.success(), "{command:?}: {}", crate::programs::text(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Tries until the command succeeds.
    pub fn until(&self, command: &[&str]) {
        let deadline = Instant::now() + BOOT_PATIENCE;
        while !self.run(command).status.success() {
            assert!(Instant::now() < deadline, "{command:?} does not succeed");
            std::thread::sleep(POLL);
        }
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        // With its first process all others end.
        let init = self.init().and_then(|init| rustix::process::Pid::from_raw(init as i32));
        if let Some(init) = init {
            let _ = rustix::process::kill_process(init, rustix::process::Signal::KILL);
        }
        if let Some(nspawn) = &mut self.nspawn {
            let _ = nspawn.wait();
        }
        let _ = fs::remove_dir_all(Path::new("/run/systemd/nspawn/propagate").join(&self.name));
    }
}
