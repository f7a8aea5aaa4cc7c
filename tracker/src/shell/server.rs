//! The control socket: one thread per connection, one request each.

use std::collections::BTreeMap;
use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use crossbeam_channel::Receiver;
use shared::clock::{Clock as _, SystemClock};
use shared::config::Config;
use shared::control::{self, AddedPath, Answer, Canary, Request};
use shared::database::DatabaseError;
use shared::entry::{Cause, Mask, Scope};
use shared::journal::{Change, Coalesce, Commit, Journal, RootRow};
use shared::limits;

use super::peer::{Door, Peer};
use super::slot::{Common, Flusher, SlotHandle};
use crate::rate::Rates;

/// Connections served at once.
const CONNECTIONS_MAX: usize = 64;
const _: () = assert!(CONNECTIONS_MAX <= limits::WAITING_MAX, "whoever is served may wait");
/// A watcher hears of new entries at most this often.
const WATCH_INTERVAL: Duration = Duration::from_millis(250);
/// How long a connection may take to send its request, or to take an answer.
const PEER_TIMEOUT: Duration = Duration::from_secs(30);

pub struct Server {
    socket: PathBuf,
    roots: BTreeMap<String, RootRow>,
    /// Empty once the tracker stops: the last to close a journal folds its log into it.
    journal: Mutex<Option<Own>>,
    common: Common,
    door: Door,
    asked: Mutex<Asked>,
    slots: OnceLock<Vec<Flusher>>,
    connections: Arc<AtomicUsize>,
    /// Held as long as the process lives.
    _lock: File,
}

/// The server's own connection to the journal, and what it remembers of what it wrote.
struct Own {
    journal: Journal,
    remembered: Coalesce,
}

/// What each user has asked for.
struct Asked {
    paths: Rates,
    flushes: Rates,
}

impl Server {
    pub fn new(
        config: &Config,
        roots: BTreeMap<String, RootRow>,
        journal: Journal,
        common: Common,
        door: Door,
        lock: File,
    ) -> Server {
        let paths = Rates::new(limits::ADD_PATHS_PER_SECOND, limits::ADD_PATHS_MAX as u64);
        let flushes = Rates::new(limits::FLUSHES_PER_SECOND, limits::FLUSH_BURST);
        Server {
            socket: config.control_path(),
            roots,
            journal: Mutex::new(Some(Own { journal, remembered: Coalesce::default() })),
            common,
            door,
            asked: Mutex::new(Asked { paths, flushes }),
            slots: OnceLock::new(),
            connections: Arc::default(),
            _lock: lock,
        }
    }

    /// Who may ask is decided by the mode of the socket, and by what the kernel says of each peer: the modes may have
    /// been loosened.
    pub fn listen(self, slots: &[SlotHandle]) -> io::Result<Arc<Server>> {
        match std::fs::remove_file(&self.socket) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let listener = UnixListener::bind(&self.socket)?;
        std::fs::set_permissions(&self.socket, Permissions::from_mode(0o660))?;
        self.slots.get_or_init(|| slots.iter().map(SlotHandle::flusher).collect());
        let server = Arc::new(self);
        let accepting = Arc::clone(&server);
        std::thread::Builder::new().name("control".into()).spawn(move || accepting.accept(&listener))?;
        Ok(server)
    }

    pub fn close(&self) {
        if let Err(e) = std::fs::remove_file(&self.socket) {
            tracing::debug!("{}: {e}", self.socket.display());
        }
    }

    fn journal(&self) -> MutexGuard<'_, Option<Own>> {
        // A panic inside a transaction rolled it back.
        self.journal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the session and closes the journal.
    pub fn end_session(&self, session: i64, now_ns: i64) -> Result<(), DatabaseError> {
        match self.journal().take() {
            Some(mut own) => own.journal.end_session(session, now_ns),
            None => Ok(()),
        }
    }

    /// Keeps the journal small.
    pub fn tidy(&self) -> Result<(), DatabaseError> {
        let mut own = self.journal();
        own.as_mut().map_or(Ok(()), |own| self.common.bound.tidy(&mut own.journal))
    }

    /// Makes the reserve anew if it is spent and there is room.
    pub fn regain_room(&self) {
        if !self.common.room.regain() {
            return;
        }
        let text = "there is room on the disk with the journal again";
        tracing::info!("{text}");
        let mut own = self.journal();
        let Some(Own { journal, .. }) = own.as_mut() else { return };
        if let Err(e) = journal.add_history(SystemClock.wall_ns(), "disk-full", None, text) {
            tracing::warn!("{e}");
        }
    }

    pub fn collapses(&self) -> u64 {
        self.common.bound.collapses()
    }

    pub fn check_place(&self) -> Result<(), DatabaseError> {
        self.journal().as_ref().map_or(Ok(()), |own| own.journal.check_place())
    }

    fn accept(self: &Arc<Server>, listener: &UnixListener) {
        for stream in listener.incoming() {
            let stream = match stream {
                Ok(stream) => stream,
                Err(e) => {
                    tracing::warn!("The control socket failed: {e}");
                    // Out of descriptors, say: not in a hot loop.
                    std::thread::sleep(WATCH_INTERVAL);
                    continue;
                }
            };
            let Some(seat) = Seat::take(&self.connections) else {
                refuse(&stream, &Refusal::later("too many connections at once"));
                continue;
            };
            let server = Arc::clone(self);
            let serve = move || {
                let _seat = seat;
                if let Err(e) = server.serve(&stream) {
                    tracing::debug!("A control connection ended: {e}");
                }
            };
            if let Err(e) = std::thread::Builder::new().name("peer".into()).spawn(serve) {
                tracing::warn!("Cannot serve a control connection: {e}");
            }
        }
    }

    fn serve(&self, stream: &UnixStream) -> io::Result<()> {
        stream.set_write_timeout(Some(PEER_TIMEOUT))?;
        let peer = Peer::of(stream)?;
        if !self.door.admits(&peer) {
            let who = "only root, the tracker's user and the group of its state directory may ask";
            refuse(stream, &Refusal::wrong(who.to_owned()));
            return Ok(());
        }
        let done = match control::read_request(stream, PEER_TIMEOUT)? {
            Request::Flush => self.grant("flushes", peer.uid, 1).and_then(|()| {
                let late = "it did not get through to every filesystem in time, or is stopping";
                self.flush().ok_or_else(|| Refusal::later(late))
            }),
            Request::Add { paths } => {
                self.grant("paths", peer.uid, paths.len() as u64).and_then(|()| self.add(paths))
            }
            Request::Canary => {
                return control::write_line(stream, &Answer::Canaries { roots: self.canaries() });
            }
            Request::Watch => return self.watch(stream),
        };
        match done {
            Ok(head) => control::write_line(stream, &Answer::Done { head }),
            Err(refusal) => {
                refuse(stream, &refusal);
                Ok(())
            }
        }
    }

    /// Each user may ask for so much.
    fn grant(&self, what: &str, uid: u32, count: u64) -> Result<(), Refusal> {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        let rates = if what == "paths" { &mut asked.paths } else { &mut asked.flushes };
        rates.take(uid, count, SystemClock.boot_ns()).map_err(|wait| {
            let seconds = wait.as_nanos().div_ceil(1_000_000_000);
            Refusal::later(format!("too many {what} from this user, try again in {seconds} s"))
        })
    }

    /// The barrier over all filesystems: the head once each has committed what happened before.
    fn flush(&self) -> Option<u64> {
        let waiting: Vec<Receiver<u64>> = self.slots.get()?.iter().map(Flusher::flush).collect();
        let deadline = std::time::Instant::now() + limits::FLUSH_TIMEOUT;
        let mut head = self.common.heads.get();
        for answer in waiting {
            head = head.max(answer.recv_deadline(deadline).ok()?);
        }
        Some(head)
    }

    /// Of every filesystem that answers in time.
    fn canaries(&self) -> Vec<Canary> {
        let waiting: Vec<_> = self.slots.get().into_iter().flatten().map(Flusher::canary).collect();
        let deadline = std::time::Instant::now() + limits::CANARY_TIMEOUT;
        waiting.into_iter().filter_map(|answer| answer.recv_deadline(deadline).ok()).flatten().collect()
    }

    fn add(&self, paths: Vec<AddedPath>) -> Result<u64, Refusal> {
        if paths.len() > limits::ADD_PATHS_MAX {
            let (count, max) = (paths.len(), limits::ADD_PATHS_MAX);
            return Err(Refusal::wrong(format!("{count} paths at once, at most {max}")));
        }
        let mut commit = Commit::default();
        for added in paths {
            let Some(root) = self.roots.get(&added.root) else {
                return Err(Refusal::wrong(format!("there is no root named `{}`", added.root)));
            };
            commit.changes.push(Change {
                root: root.id,
                path: added.path,
                handle: None,
                scope: if added.subtree { Scope::Subtree } else { Scope::SelfOnly },
                cause: Cause::External,
                mask: Mask::UNKNOWN,
            });
        }
        let now = SystemClock.wall_ns();
        let mut own = self.journal();
        let Some(Own { journal, remembered }) = own.as_mut() else {
            return Err(Refusal::later("it is stopping"));
        };
        let appended = journal.append(remembered, &commit, now);
        let appended = appended.map_err(|e| Refusal::later(e.to_string()))?;
        self.common.heads.publish(appended.head);
        self.common.bound.after_commit(journal, &appended);
        Ok(appended.head)
    }

    fn watch(&self, stream: &UnixStream) -> io::Result<()> {
        let mut seen = self.common.heads.get();
        loop {
            match self.common.heads.above(seen, PEER_TIMEOUT) {
                Some(head) => {
                    control::write_line(stream, &Answer::Changed { head })?;
                    seen = head;
                    std::thread::sleep(WATCH_INTERVAL);
                }
                None if hung_up(stream) => return Ok(()),
                None => {}
            }
        }
    }
}

/// One of the connections served at once. Its place is free again however the thread that has it ends.
struct Seat(Arc<AtomicUsize>);

impl Seat {
    fn take(taken: &Arc<AtomicUsize>) -> Option<Seat> {
        let seat = Seat(Arc::clone(taken));
        (taken.fetch_add(1, Ordering::Relaxed) < CONNECTIONS_MAX).then_some(seat)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Why a request is not granted.
#[derive(Debug)]
struct Refusal {
    message: String,
    /// The tracker's state is the reason, not the request.
    retry: bool,
}

impl Refusal {
    fn later(message: impl Into<String>) -> Refusal {
        Refusal { message: message.into(), retry: true }
    }

    fn wrong(message: String) -> Refusal {
        Refusal { message, retry: false }
    }
}

fn refuse(stream: &UnixStream, refusal: &Refusal) {
    let answer = Answer::Refused { message: refusal.message.clone(), retry: refusal.retry };
    if let Err(e) = control::write_line(stream, &answer) {
        tracing::debug!("A refusal did not arrive: {e}");
    }
}

fn hung_up(stream: &UnixStream) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut fds = [PollFd::new(stream, PollFlags::IN)];
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut fds, Some(&at_once)).is_ok_and(|n| n > 0)
}

#[cfg(test)]
mod tests {
    use super::super::room::{ReserveFile, Room};
    use super::*;
    use shared::path::RelPath;

    fn server(dir: &std::path::Path) -> Server {
        let root = dir.join("root");
        std::fs::create_dir(&root).unwrap();
        let text = format!(
            "state_dir = \"{0}\"\nruntime_dir = \"{0}\"\n[[root]]\nname = \"a\"\npath = \"{1}\"\n",
            dir.join("state").display(),
            root.display()
        );
        let config = Config::parse(std::path::Path::new("x"), &text).unwrap();
        std::fs::create_dir(&config.state_dir).unwrap();
        let mut journal = Journal::create_or_open(&config.journal_path()).unwrap();
        let rows = journal.put_roots(&config.roots, 0).unwrap();
        let roots = rows.into_iter().map(|r| (r.name.clone(), r)).collect();
        let lock = File::create(config.lock_path()).unwrap();
        let room = Room::make(ReserveFile::in_dir(&config.state_dir)).unwrap();
        let common = Common::new(&config, Arc::new(SystemClock), room);
        let door = Door::of(&config.state_dir).unwrap();
        Server::new(&config, roots, journal, common, door, lock)
    }

    fn one(root: &str) -> Vec<AddedPath> {
        vec![AddedPath { root: root.to_owned(), path: RelPath::parse(b"x").unwrap(), subtree: false }]
    }

    #[test]
    fn only_what_the_request_itself_is_to_blame_for_is_refused_for_good() {
        let dir = tempfile::tempdir().unwrap();
        let server = server(dir.path());
        assert!(server.add(one("a")).is_ok());
        assert!(!server.add(one("z")).unwrap_err().retry);
        server.journal().take();
        assert!(server.add(one("a")).unwrap_err().retry, "it is stopping");
    }

    #[test]
    fn what_is_added_twice_before_anybody_reads_it_is_one_entry() {
        let dir = tempfile::tempdir().unwrap();
        let server = server(dir.path());
        let head = server.add(one("a")).unwrap();
        assert_eq!(server.add(one("a")).unwrap(), head);
    }

    #[test]
    fn a_user_who_asks_for_too_much_hears_when_to_come_back() {
        let dir = tempfile::tempdir().unwrap();
        let server = server(dir.path());
        server.grant("paths", 7, limits::ADD_PATHS_MAX as u64).unwrap();
        let refusal = server.grant("paths", 7, 50_000).unwrap_err();
        assert!(refusal.retry && refusal.message.contains("try again in 5 s"), "{}", refusal.message);
        server.grant("paths", 8, 50_000).unwrap();
        server.grant("flushes", 7, 1).unwrap();
    }

    #[test]
    fn a_connection_whose_thread_panicked_counts_no_more() {
        let taken = Arc::default();
        for _ in 0..2 {
            let seats: Vec<Seat> = (0..CONNECTIONS_MAX).map(|_| Seat::take(&taken).unwrap()).collect();
            assert!(Seat::take(&taken).is_none());
            let thread = std::thread::spawn(move || {
                let _seats = seats;
                panic!("as a peer's thread might");
            });
            assert!(thread.join().is_err());
        }
    }
}
