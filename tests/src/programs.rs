//! The real programs as a user runs them: built, started, waited for by their own word, and ended by their own id.

use std::io::{BufRead as _, BufReader, Lines, Read as _};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

/// The directory with `tracker` and `syncer` of this build, made if they are older than their source.
fn bin_dir() -> &'static Path {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    DIR.get_or_init(|| build(&["--bins", "-p", "tracker", "-p", "syncer"]))
}

/// The tracker with its kill points, a program of its own beside the real one.
pub fn killable() -> PathBuf {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    let what = ["--bin", "tracker-killable", "-p", "tracker", "--features", "kill-points"];
    DIR.get_or_init(|| build(&what)).join("tracker-killable")
}

fn build(what: &[&str]) -> PathBuf {
    // target/debug/deps/test-name, or target/release/bench-name
    let exe = std::env::current_exe().unwrap();
    let mut dir = exe.parent().unwrap();
    if dir.ends_with("deps") {
        dir = dir.parent().unwrap();
    }
    let mut build = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    build.args(["build", "--quiet"]).args(what);
    if dir.ends_with("release") {
        build.arg("--release");
    }
    let status = build.current_dir(env!("CARGO_MANIFEST_DIR")).status().unwrap();
    assert!(status.success(), "the programs do not build");
    dir.to_owned()
}

pub fn program(name: &str) -> PathBuf {
    bin_dir().join(name)
}

/// A call of a program, with the configuration.
pub fn call(name: &str, config: &Path, args: &[&str]) -> Output {
    Command::new(program(name)).arg("--config").arg(config).args(args).output().unwrap()
}

pub fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// A tracker under supervision.
pub struct Daemon {
    child: Child,
}

impl Daemon {
    /// Starts `tracker run` and returns when it said READY=1.
    pub fn start(config: &Path) -> Daemon {
        Self::start_as(config, None)
    }

    /// As another user, where one is given.
    pub fn start_as(config: &Path, uid: Option<u32>) -> Daemon {
        let dir = tempfile::tempdir().unwrap();
        let socket_path = dir.path().join("notify");
        let socket = UnixDatagram::bind(&socket_path).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let mut command = Command::new(program("tracker"));
        command
            .arg("--config")
            .arg(config)
            .arg("run")
            .env("NOTIFY_SOCKET", &socket_path)
            .stderr(Stdio::piped());
        if let Some(uid) = uid {
            use std::os::unix::fs::PermissionsExt as _;
            std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
            std::fs::set_permissions(&socket_path, std::fs::Permissions::from_mode(0o777)).unwrap();
            command.uid(uid).gid(uid);
        }
        let mut daemon = Daemon { child: command.spawn().unwrap() };
        let mut message = [0; 4096];
        loop {
            match socket.recv(&mut message) {
                Ok(n) if message[..n].windows(7).any(|w| w == b"READY=1") => return daemon,
                Ok(_) => {}
                Err(e) => {
                    daemon.signal(Signal::KILL);
                    let mut said = String::new();
                    let _ = daemon.child.stderr.take().unwrap().read_to_string(&mut said);
                    panic!("the tracker did not become ready: {e}\n{said}");
                }
            }
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        let _ = kill_process(pid, signal);
    }

    /// SIGTERM, and its exit code.
    pub fn stop(mut self) -> Option<i32> {
        self.signal(Signal::TERM);
        self.child.wait().unwrap().code()
    }

    /// SIGKILL.
    pub fn kill(mut self) {
        self.signal(Signal::KILL);
        self.child.wait().unwrap();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
        let _ = self.child.wait();
    }
}

/// A `syncer watch`, ended by its own id.
pub struct Watch {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Watch {
    pub fn start(config: &Path) -> Watch {
        let mut command = Command::new(program("syncer"));
        command.arg("--config").arg(config).arg("watch").stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Watch { child, lines }
    }

    /// Waits until it has said of each of the legs that it is done with something.
    pub fn synced(&mut self, legs: &[&str]) {
        let mut waiting = legs.to_vec();
        while !waiting.is_empty() {
            let line = self.lines.next().expect("it goes on").unwrap();
            waiting.retain(|leg| !line.starts_with(&format!("{leg}: done")));
        }
    }

    pub fn stop(mut self) -> Option<i32> {
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
        self.child.wait().unwrap().code()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
