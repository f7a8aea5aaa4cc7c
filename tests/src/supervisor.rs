//! A service manager for one tracker: it hears what the tracker says, keeps its descriptors by name, kills it, and
//! passes them on to the next one (sd_pid_notify_with_fds(3), sd_listen_fds(3)).

use std::fs::{self, File};
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use command_fds::{CommandFdExt as _, FdMapping};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::process::{Pid, Signal, kill_process};
use shared::config::Config;
use shared::control::{self, Request};
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(60);
/// First descriptor that is passed (SD_LISTEN_FDS_START).
const FIRST_FD: i32 = 3;

type Store = Arc<Mutex<Vec<(String, OwnedFd)>>>;

pub struct Supervisor {
    program: PathBuf,
    config: PathBuf,
    /// Holds the socket and the log.
    dir: TempDir,
    store: Store,
    notices: Receiver<String>,
    child: Option<Child>,
    /// Set for the next start.
    pub env: Vec<(&'static str, String)>,
    turns: u64,
}

impl Supervisor {
    pub fn new(program: &Path, config: &Path) -> Supervisor {
        let dir = tempfile::tempdir().unwrap();
        let socket = UnixDatagram::bind(dir.path().join("notify")).unwrap();
        let (store, (sender, notices)) = (Store::default(), channel());
        let kept = Arc::clone(&store);
        std::thread::spawn(move || while take_message(&socket, &kept, &sender) {});
        Supervisor {
            program: program.to_owned(),
            config: config.to_owned(),
            dir,
            store,
            notices,
            child: None,
            env: Vec::new(),
            turns: 0,
        }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("notify")
    }

    /// What the tracker said so far, in all its lives.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    pub fn config(&self) -> Config {
        Config::load(&self.config).unwrap()
    }

    /// Starts the tracker with what is in the store, and does not wait.
    pub fn spawn(&mut self) {
        assert!(self.child.is_none(), "one at a time");
        self.settle();
        let log = File::options().create(true).append(true).open(self.dir.path().join("log")).unwrap();
        let (mut names, mut mappings) = (Vec::new(), Vec::new());
        for (name, fd) in self.store.lock().unwrap().iter() {
            names.push(name.clone());
            let child_fd = FIRST_FD + mappings.len() as i32;
            mappings.push(FdMapping { parent_fd: fd.try_clone().unwrap(), child_fd });
        }
        let mut command = Command::new("sh");
        command
            .args(["-c", "LISTEN_PID=$$ exec \"$0\" \"$@\""])
            .arg(&self.program)
            .arg("--config")
            .arg(&self.config)
            .arg("run")
            .env_remove("RUST_LOG")
            .env("NOTIFY_SOCKET", self.socket())
            .envs(self.env.iter().map(|(k, v)| (*k, v.as_str())))
            .stderr(log);
        if !names.is_empty() {
            command.env("LISTEN_FDS", names.len().to_string()).env("LISTEN_FDNAMES", names.join(":"));
        }
        command.fd_mappings(mappings).unwrap();
        self.child = Some(command.spawn().unwrap());
    }

    /// Starts it and waits until it is ready.
    pub fn start(&mut self) {
        self.spawn();
        self.ready();
    }

    pub fn ready(&mut self) {
        assert!(self.is_ready(), "the tracker ended instead of becoming ready:\n{}", self.log());
    }

    /// False if it ended before it was ready.
    pub fn is_ready(&mut self) -> bool {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.notices.recv_timeout(Duration::from_millis(10)) {
                Ok(notice) if notice == "READY=1" => return true,
                Ok(_) => {}
                Err(_) if self.has_ended() => return false,
                Err(_) => assert!(Instant::now() < deadline, "it is not ready:\n{}", self.log()),
            }
        }
    }

    pub fn has_ended(&mut self) -> bool {
        self.child.as_mut().unwrap().try_wait().unwrap().is_some()
    }

    /// Returns when everything that happened before is in the journal.
    pub fn flush(&self) {
        let done = control::ask(&self.config().control_path(), &Request::Flush, PATIENCE);
        done.unwrap_or_else(|e| panic!("{e}\n{}", self.log()));
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(self.child.as_ref().unwrap()), signal).unwrap();
    }

    /// SIGKILL, whatever it is doing. What it had sent is heard.
    pub fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.wait();
    }

    /// SIGTERM, and its end.
    pub fn stop(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.wait()
    }

    pub fn wait(&mut self) -> ExitStatus {
        let status = self.child.take().unwrap().wait().unwrap();
        self.settle();
        status
    }

    /// Waits until every message sent before is taken in; old notices go.
    fn settle(&mut self) {
        self.turns += 1;
        let mark = format!("SETTLED={}", self.turns);
        UnixDatagram::unbound().unwrap().send_to(mark.as_bytes(), self.socket()).unwrap();
        while self.notices.recv_timeout(PATIENCE).unwrap() != mark {}
    }

    /// The names in the store, in order.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> =
            self.store.lock().unwrap().iter().map(|(name, _)| name.clone()).collect();
        names.sort();
        names
    }

    /// A stored descriptor whose name begins so.
    pub fn stored(&self, begin: &str) -> OwnedFd {
        let store = self.store.lock().unwrap();
        store.iter().find(|(name, _)| name.starts_with(begin)).unwrap().1.try_clone().unwrap()
    }

    /// Another one under the name of this one, before all or behind them.
    pub fn add_twin(&self, of: &str, twin: OwnedFd, first: bool) {
        let mut store = self.store.lock().unwrap();
        let name = store.iter().find(|(name, _)| name.starts_with(of)).unwrap().0.clone();
        let at = if first { 0 } else { store.len() };
        store.insert(at, (name, twin));
    }

    /// Their order says nothing.
    pub fn reverse_the_store(&self) {
        self.store.lock().unwrap().reverse();
    }

    /// As `systemctl stop` does: nothing is kept.
    pub fn empty_the_store(&self) {
        self.store.lock().unwrap().clear();
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            eprintln!("{}", self.log());
        }
        let _ = UnixDatagram::unbound().map(|s| s.send_to(b"END=1", self.socket()));
    }
}

/// False at the end.
fn take_message(socket: &UnixDatagram, store: &Store, notices: &Sender<String>) -> bool {
    let mut bytes = [0; 4096];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let received = match recvmsg(socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC) {
        Ok(received) => received.bytes,
        Err(rustix::io::Errno::INTR) => return true,
        Err(_) => return false,
    };
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    let text = String::from_utf8_lossy(&bytes[..received]).into_owned();
    let name = text.lines().find_map(|line| line.strip_prefix("FDNAME=")).unwrap_or("stored").to_owned();
    for line in text.lines() {
        match line {
            "FDSTORE=1" => store.lock().unwrap().extend(fds.drain(..).map(|fd| (name.clone(), fd))),
            "FDSTOREREMOVE=1" => store.lock().unwrap().retain(|(n, _)| *n != name),
            // Closing what came with it is the answer.
            "BARRIER=1" => fds.clear(),
            "END=1" => return false,
            other => {
                if notices.send(other.to_owned()).is_err() {
                    return false;
                }
            }
        }
    }
    true
}
