//! The real program on real directories: started, asked, killed, and cleaned up after on every way out.
#![allow(dead_code, reason = "each test binary uses its part")]
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use rustix::process::{Pid, Signal};

const PATIENCE: Duration = Duration::from_secs(60);
pub const NOBODY: u32 = 65534;

/// One line of `tracker pending -0`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pending {
    pub root: String,
    pub scope: String,
    pub path: Vec<u8>,
}

pub struct World {
    pub dir: tempfile::TempDir,
    pub config: PathBuf,
    program: PathBuf,
    uid: Option<u32>,
    /// Set in the environment of `tracker run`.
    pub env: Vec<(&'static str, &'static str)>,
    /// Nobody reads what the tracker says.
    pub deaf: bool,
    /// A shell script that ends with `exec "$@"`, in a user namespace of its own.
    pub namespace: Option<&'static str>,
    /// It sees mounts of its own, and not those that others make meanwhile.
    pub own_mounts: bool,
    running: Option<Running>,
}

struct Running {
    child: Child,
    notices: Receiver<String>,
    lines: Receiver<String>,
}

impl World {
    /// A world with these roots; its state lies in a temporary directory.
    pub fn new(roots: &[(&str, &Path)]) -> World {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("longshore.toml");
        let world = World {
            config,
            program: PathBuf::from(env!("CARGO_BIN_EXE_tracker")),
            uid: None,
            env: Vec::new(),
            deaf: false,
            namespace: None,
            own_mounts: false,
            running: None,
            dir,
        };
        world.configure(&world.dir.path().join("state"), roots, "");
        world
    }

    /// A world with one root in its own temporary directory.
    pub fn with_root() -> (World, PathBuf) {
        let world = World::new(&[]);
        let root = world.dir.path().join("root");
        std::fs::create_dir(&root).unwrap();
        world.configure(&world.dir.path().join("state"), &[("a", &root)], "");
        (world, root)
    }

    /// Everything belongs to nobody, and the program runs as nobody.
    pub fn unprivileged(mut self) -> World {
        let program = self.dir.path().join("tracker");
        // Not by this process: a child of another test could hold the copy open for writing, and it could not be run.
        must(Command::new("cp").arg(&self.program).arg(&program));
        self.program = program;
        self.uid = Some(NOBODY);
        let mut todo = vec![self.dir.path().to_owned()];
        while let Some(path) = todo.pop() {
            std::os::unix::fs::chown(&path, Some(NOBODY), Some(NOBODY)).unwrap();
            if path.is_dir() {
                todo.extend(std::fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
            }
        }
        self
    }

    pub fn configure(&self, state: &Path, roots: &[(&str, &Path)], more: &str) {
        let mut text = format!(
            "state_dir = \"{}\"\nruntime_dir = \"{}\"\n",
            state.display(),
            self.dir.path().join("run").display()
        );
        for (name, path) in roots {
            text += &format!("[[root]]\nname = \"{name}\"\npath = \"{}\"\n", path.display());
        }
        std::fs::write(&self.config, text + more).unwrap();
    }

    pub fn command<S: AsRef<OsStr>>(&self, args: &[S]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(args)
            .env("LONGSHORE_CONFIG", &self.config)
            .env_remove("RUST_LOG")
            .env_remove("NOTIFY_SOCKET");
        if let Some(uid) = self.uid {
            command.uid(uid).gid(uid);
        }
        command
    }

    /// A command that must end by itself.
    pub fn run(&self, args: &[&str]) -> Output {
        self.output(self.command(args))
    }

    /// With a limit, so that a program that should have refused does not hang the test.
    pub fn output(&self, mut command: Command) -> Output {
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let pid = Pid::from_child(&child);
        let (done, ended) = channel::<()>();
        let guard = std::thread::spawn(move || {
            if ended.recv_timeout(PATIENCE * 2) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                rustix::process::kill_process(pid, Signal::KILL).ok();
            }
        });
        let mut out = Output { status: Default::default(), stdout: Vec::new(), stderr: Vec::new() };
        let (mut stdout, mut stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        let errors = std::thread::spawn(move || {
            let mut bytes = Vec::new();
            stderr.read_to_end(&mut bytes).unwrap();
            bytes
        });
        stdout.read_to_end(&mut out.stdout).unwrap();
        out.stderr = errors.join().unwrap();
        out.status = child.wait().unwrap();
        drop(done);
        guard.join().unwrap();
        out
    }

    /// Standard output of a command that must succeed.
    pub fn ok(&self, args: &[&str]) -> Vec<u8> {
        let out = self.run(args);
        assert!(out.status.success(), "{args:?}: {out:?}");
        out.stdout
    }

    /// Starts the tracker and waits until it says that it is ready.
    pub fn start(&mut self) {
        let socket = self.dir.path().join("notify");
        std::fs::remove_file(&socket).ok();
        let notify = UnixDatagram::bind(&socket).unwrap();
        std::fs::set_permissions(&socket, std::os::unix::fs::PermissionsExt::from_mode(0o666)).unwrap();
        let mut command = self.command(&["run"]);
        if let Some(script) = self.namespace {
            command = Command::new("unshare");
            command
                .args(["--user", "--map-root-user", "sh", "-c", script, "sh"])
                .arg(&self.program)
                .arg("run");
            command.env("LONGSHORE_CONFIG", &self.config);
        }
        if self.own_mounts {
            command = Command::new("unshare");
            command.args(["--mount", "--propagation", "private"]).arg(&self.program).arg("run");
            command.env("LONGSHORE_CONFIG", &self.config);
        }
        command.envs(self.env.iter().copied());
        command.env("NOTIFY_SOCKET", &socket).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let stderr = child.stderr.take().unwrap();
        let (sender, lines) = channel();
        let read = (!self.deaf).then_some(stderr);
        std::thread::spawn(move || {
            let Some(stderr) = read else { return };
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                eprintln!("[tracker] {line}");
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        // Taken at once, as a service manager does: the tracker waits for that.
        let (sender, notices) = channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 1024];
            while let Ok(n) = notify.recv(&mut buffer) {
                let lines = String::from_utf8_lossy(&buffer[..n]).into_owned();
                if lines.contains("STOPPING=1") | sender.send(lines).is_err() {
                    break;
                }
            }
        });
        self.running = Some(Running { child, notices, lines });
        self.wait_for_notice("READY=1");
    }

    /// Waits until the tracker has told the service manager this.
    pub fn wait_for_notice(&self, notice: &str) {
        let notices = &self.running.as_ref().unwrap().notices;
        loop {
            let lines = notices.recv_timeout(PATIENCE).unwrap_or_else(|e| panic!("no {notice}: {e}"));
            if lines.lines().any(|line| line == notice) {
                return;
            }
        }
    }

    pub fn signal(&self, signal: Signal) {
        let child = &self.running.as_ref().unwrap().child;
        rustix::process::kill_process(Pid::from_child(child), signal).unwrap();
    }

    pub fn pid(&self) -> u32 {
        self.running.as_ref().unwrap().child.id()
    }

    /// SIGTERM, and the exit code.
    pub fn stop(&mut self) -> i32 {
        self.signal(Signal::TERM);
        self.running.take().unwrap().child.wait().unwrap().code().unwrap()
    }

    pub fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.running.take().unwrap().child.wait().unwrap();
    }

    /// Waits until the tracker has said this on stderr.
    pub fn wait_for_line(&self, needle: &str) {
        let lines = &self.running.as_ref().unwrap().lines;
        loop {
            let line =
                lines.recv_timeout(PATIENCE).unwrap_or_else(|e| panic!("no line with {needle:?}: {e}"));
            if line.contains(needle) {
                return;
            }
        }
    }

    pub fn flush(&self) {
        self.ok(&["flush"]);
    }

    pub fn pending(&self) -> Vec<Pending> {
        let out = self.ok(&["pending", "-0"]);
        let records = out.split(|&b| b == 0).filter(|r| !r.is_empty());
        records
            .map(|record| {
                let mut fields = record.splitn(3, |&b| b == b'\t');
                let mut text = || String::from_utf8(fields.next().unwrap().to_vec()).unwrap();
                let (root, scope) = (text(), text());
                Pending { root, scope, path: fields.next().unwrap().to_vec() }
            })
            .collect()
    }

    /// Of the root `a`, in order, without the gaps every start begins with.
    pub fn changes(&self) -> Vec<(String, String)> {
        let shown = |p: Pending| (p.scope, String::from_utf8_lossy(&p.path).into_owned());
        self.pending().into_iter().filter(|p| p.root == "a" && !p.path.is_empty()).map(shown).collect()
    }

    pub fn has(&self, scope: &str, path: &[u8]) -> bool {
        self.pending().iter().any(|p| p.scope == scope && p.path == path)
    }

    /// (cause, path) of every entry.
    pub fn causes(&self) -> Vec<(String, String)> {
        let out = String::from_utf8(self.ok(&["pending", "--json"])).unwrap();
        let rows = out.lines().map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap());
        let text = |row: &serde_json::Value, key: &str| row[key].as_str().unwrap_or_default().to_owned();
        rows.map(|row| (text(&row, "cause"), text(&row, "path"))).collect()
    }

    pub fn cause_count(&self, cause: &str) -> usize {
        self.causes().iter().filter(|(c, _)| c == cause).count()
    }

    /// A leg claims all there is, so that nothing that stands in the journal covers what comes.
    pub fn claim(&self) {
        use shared::journal::{CatalogFacts, Journal};
        let mut journal = Journal::open(&self.dir.path().join("state/journal.db")).unwrap();
        let facts = CatalogFacts { catalog_id: [1; 16], journal_id: Some(journal.id()), acked: 0 };
        journal.attach_leg("test", &facts, &[], 0).unwrap();
        journal.claim("test").unwrap();
    }

    pub fn stats(&self) -> serde_json::Value {
        let out = self.run(&["stats", "--json"]);
        serde_json::from_slice(&out.stdout).unwrap_or_else(|e| panic!("{e}: {out:?}"))
    }

    pub fn root_state(&self) -> String {
        self.stats()["journal"]["roots"][0]["state"].as_str().unwrap().to_owned()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some(mut running) = self.running.take() {
            running.child.kill().ok();
            running.child.wait().ok();
        }
    }
}

/// True if this test can use root's rights; else says so, and fails where a skip would go unseen.
pub fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        assert!(std::env::var_os("CI").is_none(), "this test needs root");
        eprintln!("skipped: needs root");
    }
    root
}

/// Something mounted for one test, unmounted whatever happens.
pub struct Mounted {
    pub point: PathBuf,
    image: Option<PathBuf>,
    options: String,
    _dir: tempfile::TempDir,
}

fn must(command: &mut Command) {
    let out = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(out.status.success(), "{command:?}: {out:?}");
}

impl Mounted {
    /// A new filesystem in an image file.
    pub fn image(fs: &str) -> Mounted {
        Mounted::image_with(fs, "loop")
    }

    pub fn image_with(fs: &str, options: &str) -> Mounted {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image");
        let size = if fs == "ext4" { 64 << 20 } else { 400 << 20 };
        std::fs::File::create(&image).unwrap().set_len(size).unwrap();
        let quiet = if fs == "ext4" { "-F" } else { "-f" };
        must(Command::new(format!("mkfs.{fs}")).arg("-q").arg(quiet).arg(&image));
        let mounted = Mounted {
            point: dir.path().join("mnt"),
            image: Some(image),
            options: options.to_owned(),
            _dir: dir,
        };
        std::fs::create_dir(&mounted.point).unwrap();
        mounted.mount();
        mounted
    }

    pub fn tmpfs(size: &str) -> Mounted {
        let dir = tempfile::tempdir().unwrap();
        let point = dir.path().join("mnt");
        std::fs::create_dir(&point).unwrap();
        let mounted = Mounted { point, image: None, options: format!("size={size}"), _dir: dir };
        mounted.mount();
        mounted
    }

    pub fn mount(&self) {
        let mut command = Command::new("mount");
        command.arg("-o").arg(&self.options);
        match &self.image {
            Some(image) => command.arg(image),
            None => command.args(["-t", "tmpfs", "none"]),
        };
        must(command.arg(&self.point));
    }

    /// The same image, mounted otherwise.
    pub fn with_options(mut self, options: &str) -> Mounted {
        self.options = options.to_owned();
        self.mount();
        self
    }

    pub fn umount(&self) {
        must(Command::new("umount").arg(&self.point));
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Lazily, so that a test that failed half-way leaves nothing behind.
        while Command::new("umount").arg("-l").arg(&self.point).output().is_ok_and(|o| o.status.success()) {}
    }
}

/// Mounts one directory at another for one test.
pub struct Bind(pub PathBuf);

impl Bind {
    pub fn new(from: &Path, to: &Path) -> Bind {
        must(Command::new("mount").arg("--bind").arg(from).arg(to));
        Bind(to.to_owned())
    }
}

impl Drop for Bind {
    fn drop(&mut self) {
        Command::new("umount").arg("-l").arg(&self.0).output().ok();
    }
}
