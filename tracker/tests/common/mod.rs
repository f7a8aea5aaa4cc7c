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
    /// A program and its arguments that start `tracker run`: in a namespace of its own, say.
    pub wrapper: Vec<String>,
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
            wrapper: Vec::new(),
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

    /// What a shell does before it becomes the tracker, in namespaces of its own: `unshare` says which.
    pub fn unshared(&mut self, namespaces: &[&str], script: &str) {
        let script = format!("{script} exec \"$@\"");
        let words = [&["unshare"], namespaces, &["sh", "-ec", &script, "sh"]].concat();
        self.wrapper = words.into_iter().map(str::to_owned).collect();
    }

    /// Everything belongs to nobody, and the program runs as nobody.
    pub fn unprivileged(self) -> World {
        let mut world = self.owned_by(NOBODY);
        world.uid = Some(NOBODY);
        world
    }

    /// Everything belongs to this user, who runs the tracker with the two capabilities of its unit.
    pub fn with_capabilities(self, uid: u32) -> World {
        let caps = "-all,+sys_admin,+dac_read_search";
        let words = format!(
            "setpriv --reuid {uid} --regid {uid} --clear-groups --inh-caps {caps} --ambient-caps {caps} --bounding-set {caps} --no-new-privs"
        );
        let mut world = self.owned_by(uid);
        world.wrapper = words.split(' ').map(str::to_owned).collect();
        world
    }

    fn owned_by(mut self, uid: u32) -> World {
        let program = self.dir.path().join("tracker");
        // Not by this process: a child of another test could hold the copy open for writing, and it could not be run.
        must(Command::new("cp").arg(&self.program).arg(&program));
        self.program = program;
        let mut todo = vec![self.dir.path().to_owned()];
        while let Some(path) = todo.pop() {
            std::os::unix::fs::chown(&path, Some(uid), Some(uid)).unwrap();
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
        if let Some((wrapper, args)) = self.wrapper.split_first() {
            command = Command::new(wrapper);
            command.args(args).arg(&self.program).arg("run").env("LONGSHORE_CONFIG", &self.config);
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

    /// Waits for an end that nobody asked for, and returns the exit code.
    pub fn wait(&mut self) -> i32 {
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
        self.claim_in(&self.dir.path().join("state"));
    }

    /// The same, with the state in this directory.
    pub fn claim_in(&self, state: &Path) {
        use shared::journal::{CatalogFacts, Journal};
        let mut journal = Journal::open(&state.join("journal.db")).unwrap();
        let facts =
            CatalogFacts { catalog_id: [1; 16], journal_id: Some(journal.id()), acked: 0, revision: 0 };
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
    /// Attached as long as this lives, mounted or not.
    pub device: Option<PathBuf>,
    pub options: String,
    dir: tempfile::TempDir,
}

fn must(command: &mut Command) -> String {
    let out = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(out.status.success(), "{command:?}: {out:?}");
    String::from_utf8_lossy(&out.stdout).trim().to_owned()
}

/// A program with these arguments, which must succeed.
pub fn call<S: AsRef<OsStr>>(program: &str, args: &[S]) {
    must(Command::new(program).args(args));
}

impl Mounted {
    /// A new filesystem in an image file, on a loop device.
    pub fn image(fs: &str) -> Mounted {
        Mounted::image_of(fs, if fs == "ext4" { 64 << 20 } else { 400 << 20 })
    }

    /// With room for so many bytes.
    pub fn image_of(fs: &str, size: u64) -> Mounted {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image");
        std::fs::File::create(&image).unwrap().set_len(size).unwrap();
        let quiet = if fs == "ext4" { "-F" } else { "-f" };
        must(Command::new(format!("mkfs.{fs}")).arg("-q").arg(quiet).arg(&image));
        let device = must(Command::new("losetup").args(["--find", "--show"]).arg(&image));
        let point = dir.path().join("mnt");
        let mounted = Mounted { point, device: Some(device.into()), options: "rw".to_owned(), dir };
        std::fs::create_dir(&mounted.point).unwrap();
        mounted.mount();
        mounted
    }

    pub fn tmpfs(size: &str) -> Mounted {
        let dir = tempfile::tempdir().unwrap();
        let point = dir.path().join("mnt");
        std::fs::create_dir(&point).unwrap();
        let mounted = Mounted { point, device: None, options: format!("size={size}"), dir };
        mounted.mount();
        mounted
    }

    pub fn mount(&self) {
        let mut command = Command::new("mount");
        command.arg("-o").arg(&self.options);
        match &self.device {
            Some(device) => command.arg(device),
            None => command.args(["-t", "tmpfs", "none"]),
        };
        must(command.arg(&self.point));
    }

    /// The same device, mounted otherwise.
    pub fn with_options(mut self, options: &str) -> Mounted {
        self.options = options.to_owned();
        self.mount();
        self
    }

    /// The image file behind it.
    pub fn image_file(&self) -> PathBuf {
        self.dir.path().join("image")
    }

    pub fn umount(&self) {
        must(Command::new("umount").arg(&self.point));
    }

    /// True if nothing in the kernel uses the device any more, as a checking program wants it.
    pub fn is_free(&self) -> bool {
        use std::os::unix::fs::OpenOptionsExt as _;
        let exclusive = rustix::fs::OFlags::EXCL.bits() as i32;
        let device = self.device.as_ref().unwrap();
        std::fs::OpenOptions::new().read(true).custom_flags(exclusive).open(device).is_ok()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Lazily, so that a test that failed half-way leaves nothing behind.
        while Command::new("umount").arg("-l").arg(&self.point).output().is_ok_and(|o| o.status.success()) {}
        if let Some(device) = &self.device {
            Command::new("losetup").arg("--detach").arg(device).output().ok();
        }
    }
}

/// Something mounted at a directory for one test.
pub struct Bind(pub PathBuf);

impl Bind {
    pub fn new(from: &Path, to: &Path) -> Bind {
        Bind::with(&["--bind"], from, to)
    }

    /// With other options than that of a bind mount.
    pub fn with(options: &[&str], from: &Path, to: &Path) -> Bind {
        must(Command::new("mount").args(options).arg(from).arg(to));
        Bind(to.to_owned())
    }
}

impl Drop for Bind {
    fn drop(&mut self) {
        Command::new("umount").arg("-l").arg(&self.0).output().ok();
    }
}
