//! A slot over a machine that a test made up: one filesystem, one root, a queue in memory, and no thread, descriptor or
//! clock of the real one. Through a start, a kill and the start after it.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use crossbeam_channel::{Receiver, Sender, unbounded};
use shared::clock::Clock;
use shared::config::Config;
use shared::entry::{Cause, Handle, Scope};
use shared::identity::{Attachment, Identity};
use shared::journal::{Change, Entry, Generation, Journal};
use tracker::generation::Whole;
use tracker::host::{Host, Memory, Placed, View};
use tracker::intake::PlaceError;
use tracker::intake::buffer::{TOTAL_BYTES, Unfit, WORDS};
use tracker::intake::fanotify::{GROUP_FLAGS, MARK_MASK};
use tracker::intake::records::HandleRef;
use tracker::mounts::Mount;
use tracker::resolve::{Link, Lost, MountError, NameOf};
use tracker::roots::{OpenRoot, OwnDir, Standing, TrackedRoot};
use tracker::shell::Report;
use tracker::shell::begin;
use tracker::shell::room::{Reserve, Room};
use tracker::shell::slot::{Common, Slot, SlotHandle, Turn};

fn handle(bytes: &[u8]) -> Handle {
    Handle { kind: 1, bytes: bytes.to_vec() }
}

fn top() -> Handle {
    handle(b"the  top")
}

fn root() -> Handle {
    handle(b"the root")
}

/// Events that were not read yet.
type Queue = Arc<Mutex<VecDeque<Vec<u8>>>>;

struct Group {
    queue: Queue,
    is_marked: Arc<Mutex<bool>>,
}

#[derive(Clone)]
enum Kept {
    Group(Queue, Arc<Mutex<bool>>),
    Memory(Arc<Vec<AtomicU64>>, Arc<Mutex<Vec<u8>>>),
}

/// The stores after which the tracker is killed.
#[derive(Clone, Default)]
struct Fuse(Arc<Mutex<Option<u32>>>);

impl Fuse {
    fn burn(&self) {
        let mut left = self.0.lock().unwrap();
        *left = left.map(|left| left.saturating_sub(1));
        if left.take_if(|left| *left == 0).is_some() {
            drop(left);
            std::panic::resume_unwind(Box::new("killed"));
        }
    }
}

/// Bytes that go home when their user dies.
struct Bytes {
    fuse: Fuse,
    words: Arc<Vec<AtomicU64>>,
    home: Arc<Mutex<Vec<u8>>>,
    bytes: Vec<u8>,
}

impl Drop for Bytes {
    fn drop(&mut self) {
        *self.home.lock().unwrap() = std::mem::take(&mut self.bytes);
    }
}

impl Memory for Bytes {
    fn size(&self) -> usize {
        self.bytes.len()
    }

    fn word(&self, word: usize) -> u64 {
        self.words[word].load(Ordering::Relaxed)
    }

    fn set_word(&self, word: usize, value: u64) {
        self.fuse.burn();
        self.words[word].store(value, Ordering::Relaxed);
    }

    fn bytes(&self, range: Range<usize>) -> &[u8] {
        &self.bytes[range]
    }

    fn behind(&self, at: u64) -> &[u8] {
        &self.bytes[at as usize..]
    }

    fn store(&mut self, at: usize, bytes: &[u8]) {
        self.fuse.burn();
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn clear(&mut self, range: Range<usize>) {
        self.fuse.burn();
        self.bytes[range].fill(0);
    }

    fn lock(&self) -> io::Result<()> {
        Ok(())
    }
}

/// The root lies in the top directory, and nothing else is a directory.
struct OneRoot;

impl View for OneRoot {
    fn top(&self) -> io::Result<Handle> {
        Ok(top())
    }

    fn links(&mut self, dir: &Handle, is_known: impl Fn(HandleRef<'_>) -> bool) -> Result<Vec<Link>, Lost> {
        match dir {
            dir if is_known(dir.into()) => Ok(Vec::new()),
            dir if *dir == root() => Ok(vec![Link { dir: root(), parent: top(), name: b"r".to_vec() }]),
            _ => Err(Lost::Gone),
        }
    }

    fn name_of(&mut self, _file: &Handle) -> NameOf {
        NameOf::None
    }

    fn may_have_names(&mut self, _file: &Handle) -> bool {
        false
    }

    fn has(&mut self, _dir: HandleRef<'_>, _name: &[u8], _file: HandleRef<'_>) -> bool {
        true
    }
}

#[derive(Clone, Default)]
struct Time(Arc<AtomicI64>);

impl Clock for Time {
    fn wall_ns(&self) -> i64 {
        self.boot_ns()
    }

    fn boot_ns(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }
}

#[derive(Clone, Default)]
struct Machine {
    time: Time,
    fuse: Fuse,
    /// Of the group that was made last.
    queue: Arc<Mutex<Queue>>,
    store: Arc<Mutex<BTreeMap<String, Kept>>>,
}

const DEV: (u32, u32) = (7, 1);

impl Host for Machine {
    type Dir = PathBuf;
    type Group = Group;
    type Memory = Bytes;
    type View = OneRoot;
    type Kept = Kept;

    fn clock(&self) -> Arc<dyn Clock> {
        Arc::new(self.time.clone())
    }

    fn boot_id(&self) -> io::Result<String> {
        Ok("this boot".to_owned())
    }

    fn is_dir(&self, path: &Path) -> io::Result<bool> {
        self.open_dir(path).map(|_| true)
    }

    fn open_dir(&self, path: &Path) -> io::Result<PathBuf> {
        if path == Path::new("/r") { Ok(path.to_owned()) } else { Err(io::ErrorKind::NotFound.into()) }
    }

    fn identify(&self, fd: PathBuf) -> Result<OpenRoot<PathBuf>, String> {
        let identity = Identity { fs: "ext4".into(), uuid: None, subvolume: None, inode: 2, btime_ns: None };
        let attachment = Attachment { dev: rustix::fs::makedev(DEV.0, DEV.1), mount_id: None };
        Ok(OpenRoot { fd, attachment, identity, handle: Some(root()) })
    }

    fn standing(&self, _path: &Path) -> Option<Standing> {
        Some(Standing { mount: 1, dev: DEV, inode: 2 })
    }

    fn is_mount_point(&self, _path: &Path) -> bool {
        false
    }

    fn mounts(&self) -> io::Result<Vec<Mount>> {
        Ok(Vec::new())
    }

    fn own_dir(&self, _path: &Path) -> io::Result<OwnDir> {
        Err(io::ErrorKind::NotFound.into())
    }

    fn view(&self, _dev: u64) -> Result<OneRoot, MountError> {
        Ok(OneRoot)
    }

    fn new_group(&self) -> Result<Group, PlaceError> {
        let queue = Queue::default();
        *self.queue.lock().unwrap() = Arc::clone(&queue);
        Ok(Group { queue, is_marked: Arc::default() })
    }

    fn mark(&self, group: &Group, _on: &OneRoot) -> io::Result<()> {
        *group.is_marked.lock().unwrap() = true;
        Ok(())
    }

    fn fdinfo(&self, group: &Group) -> io::Result<String> {
        let sdev = (u64::from(DEV.0) << 20) | u64::from(DEV.1);
        let mark = format!("fanotify sdev:{sdev:x} mflags:0 mask:{MARK_MASK:x}\n");
        let mark = if *group.is_marked.lock().unwrap() { mark } else { String::new() };
        Ok(format!("fanotify flags:{GROUP_FLAGS:x}\n{mark}"))
    }

    fn queue_max(&self) -> u64 {
        16
    }

    fn queued(&self, group: &Group) -> io::Result<u64> {
        Ok(group.queue.lock().unwrap().len() as u64)
    }

    fn read(&self, group: &Group, memory: &mut Bytes, range: Range<usize>) -> io::Result<usize> {
        let bytes = group.queue.lock().unwrap().drain(..).collect::<Vec<_>>().concat();
        if bytes.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        assert!(bytes.len() <= range.len());
        memory.bytes[range][..bytes.len()].copy_from_slice(&bytes);
        Ok(bytes.len())
    }

    fn read_aside(&self, _group: &Group, _into: &mut [u8]) -> io::Result<usize> {
        Err(io::ErrorKind::WouldBlock.into())
    }

    fn fd<'g>(&self, _group: &'g Group) -> Option<BorrowedFd<'g>> {
        None
    }

    fn ring(&self, _group: &Group, _dir: &PathBuf, _dev: u64) -> io::Result<Handle> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn unmark_dirs(&self, _group: &Group, _any: &OneRoot) -> io::Result<()> {
        Ok(())
    }

    fn place_instead(&self, _roots: &[TrackedRoot], _own: &[OwnDir]) -> Result<Placed<Bytes>, PlaceError> {
        Err(PlaceError::Refused { reason: "there is nothing else here".to_owned() })
    }

    fn new_memory(&self) -> io::Result<Bytes> {
        let words = (0..WORDS).map(|_| AtomicU64::new(0)).collect();
        let (fuse, words) = (self.fuse.clone(), Arc::new(words));
        Ok(Bytes { fuse, words, home: Arc::default(), bytes: vec![0; TOTAL_BYTES] })
    }

    fn take_kept(&self, name: &str) -> Option<Kept> {
        self.store.lock().unwrap().get(name).cloned()
    }

    fn group_of(&self, kept: Kept) -> Group {
        let Kept::Group(queue, is_marked) = kept else { panic!("this is no group") };
        Group { queue, is_marked }
    }

    fn memory_of(&self, kept: Kept) -> Result<Bytes, Unfit> {
        let Kept::Memory(words, home) = kept else { panic!("this is no memory") };
        let bytes = std::mem::take(&mut *home.lock().unwrap());
        Ok(Bytes { fuse: self.fuse.clone(), words, home, bytes })
    }

    fn discard_rest(&self) -> Vec<String> {
        Vec::new()
    }

    fn keep_group(&self, name: &str, group: &Group) {
        let kept = Kept::Group(Arc::clone(&group.queue), Arc::clone(&group.is_marked));
        self.store.lock().unwrap().insert(name.to_owned(), kept);
    }

    fn keep_memory(&self, name: &str, memory: &Bytes) {
        let kept = Kept::Memory(Arc::clone(&memory.words), Arc::clone(&memory.home));
        self.store.lock().unwrap().insert(name.to_owned(), kept);
    }

    fn let_go(&self, name: &str) {
        self.store.lock().unwrap().remove(name);
    }

    fn barrier(&self) {}

    fn generation(&self, _root: &OpenRoot<PathBuf>) -> Result<Generation, Whole> {
        Err(Whole::NotAsked)
    }

    fn mount_number(&self, _root: &OpenRoot<PathBuf>) -> Option<u64> {
        None
    }

    fn changes_since(
        &self,
        _root: &TrackedRoot,
        _open: &OpenRoot<PathBuf>,
        _own: &[OwnDir],
        _since: u64,
    ) -> Result<Vec<Change>, Whole> {
        Err(Whole::NotAsked)
    }

    fn sync(&self, _dir: &PathBuf) -> io::Result<()> {
        Ok(())
    }
}

/// A disk that is never full.
struct Endless;

impl std::fmt::Display for Endless {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("nothing")
    }
}

impl Reserve for Endless {
    fn fill(&self) -> io::Result<()> {
        Ok(())
    }

    fn empty(&self) -> io::Result<()> {
        Ok(())
    }

    fn free_bytes(&self) -> io::Result<u64> {
        Ok(u64::MAX)
    }
}

/// The event of a file that was made in the root.
fn created(name: &str) -> Vec<u8> {
    let dir = root();
    let mut body = vec![0; 8];
    body.extend((dir.bytes.len() as u32).to_ne_bytes());
    body.extend(dir.kind.to_ne_bytes());
    body.extend(&dir.bytes);
    body.extend(name.as_bytes());
    body.resize((body.len() + 1).next_multiple_of(4), 0);
    let info_bytes = 4 + body.len();
    let mut event = ((24 + info_bytes) as u32).to_ne_bytes().to_vec();
    event.extend([3, 0, 24, 0]);
    event.extend(libc::FAN_CREATE.to_ne_bytes());
    event.extend((-1i32).to_ne_bytes());
    event.extend(0i32.to_ne_bytes());
    event.extend([2, 0]);
    event.extend((info_bytes as u16).to_ne_bytes());
    event.extend(body);
    event
}

struct World {
    machine: Machine,
    config: Config,
    reports: (Sender<Report>, Receiver<Report>),
    _dir: tempfile::TempDir,
}

impl World {
    fn new() -> World {
        let dir = tempfile::tempdir().unwrap();
        let text = format!(
            "state_dir = \"{0}/state\"\nruntime_dir = \"{0}/run\"\n[[root]]\nname = \"r\"\npath = \"/r\"\n",
            dir.path().display()
        );
        let config = Config::parse(Path::new("test.toml"), &text).unwrap();
        std::fs::create_dir(&config.state_dir).unwrap();
        World { machine: Machine::default(), config, reports: unbounded(), _dir: dir }
    }

    fn start(&self) -> (Slot<Machine>, SlotHandle) {
        let (host, config) = (&self.machine, &self.config);
        let common = Common::new(config, host.clock(), Room::make(Endless).unwrap());
        let tracked = begin::tracked_roots(config, host).unwrap();
        let mut journal = self.journal();
        let begun = begin::begin(config, host, tracked, &mut journal, &common, &self.reports.0).unwrap();
        let [parts] = <[_; 1]>::try_from(begun.parts).ok().expect("one filesystem");
        Slot::new(parts, None)
    }

    fn journal(&self) -> Journal {
        Journal::create_or_open(&self.config.journal_path()).unwrap()
    }

    fn happens(&self, name: &str) {
        self.machine.queue.lock().unwrap().lock().unwrap().push_back(created(name));
    }

    fn all_is_read(&self) -> bool {
        self.machine.queue.lock().unwrap().lock().unwrap().is_empty()
    }

    /// Takes turns until this is so. Time passes only while there is nothing else to do.
    fn drive(&self, slot: &mut Slot<Machine>, mut until: impl FnMut(Turn) -> bool) {
        for _ in 0..1_000 {
            let turn = slot.turn();
            if until(turn) {
                return;
            }
            let now = &self.machine.time.0;
            match turn {
                Turn::Went => {}
                Turn::Naps(time) => _ = now.fetch_add(time.as_nanos() as i64, Ordering::Relaxed),
                Turn::Waits { listen, .. } if listen && !self.all_is_read() => slot.woken(true),
                Turn::Waits { until_ns: Some(until), .. } => now.store(until, Ordering::Relaxed),
                Turn::Waits { until_ns: None, .. } | Turn::Ended { .. } => panic!("it waits for ever"),
            }
        }
        panic!("it does not get there");
    }

    fn flush(&self, slot: &mut Slot<Machine>, handle: &SlotHandle) -> u64 {
        let head = handle.flusher().flush();
        let mut answer = None;
        self.drive(slot, |_| {
            answer = head.try_recv().ok();
            answer.is_some()
        });
        answer.unwrap()
    }

    fn entries(&self) -> Vec<(String, Scope, Cause)> {
        let entries = self.journal().read(0, i64::MAX as u64, 100).unwrap();
        let shown = |e: Entry| (e.path.to_string(), e.scope, e.cause);
        entries.into_iter().map(shown).collect()
    }

    fn told(&self) -> Vec<Report> {
        self.reports.1.try_iter().filter(|report| *report != Report::Changed).collect()
    }
}

#[test]
fn a_slot_lives_through_a_start_a_kill_and_an_adoption_on_a_machine_that_is_made_up() {
    let world = World::new();
    let (mut slot, handle) = world.start();
    world.drive(&mut slot, |turn| turn == Turn::Waits { until_ns: None, listen: true });
    let gaps = [Cause::Rules, Cause::Start].map(|cause| (".".to_owned(), Scope::Subtree, cause));
    assert_eq!(world.entries(), gaps, "of a root that is new, and of a start that proved nothing");
    assert_eq!(world.told(), [Report::Ready]);

    world.happens("f");
    assert_eq!(world.flush(&mut slot, &handle), 3);
    let of = |name: &str| (name.to_owned(), Scope::SelfOnly, Cause::Event);
    assert_eq!(world.entries()[2..], [of("f")]);
    handle.probe();
    world.drive(&mut slot, |turn| matches!(turn, Turn::Waits { .. }));
    assert_eq!(world.told(), [Report::Probed(0); 2], "a flush looks, too");

    world.happens("g");
    slot.woken(true);
    world.drive(&mut slot, |_| world.all_is_read());
    // Killed: it was read, and the journal does not have it.
    drop((slot, handle));
    assert_eq!(world.entries()[2..], [of("f")]);

    world.happens("h");
    let (mut slot, handle) = world.start();
    world.flush(&mut slot, &handle);
    assert_eq!(world.entries()[2..], [of("f"), of("g"), of("h")]);
    let said = world.journal().history(1).unwrap().remove(0).text;
    assert!(said.contains("after the tracker was killed: adopted, 1 events"), "{said}");
    assert!(said.ends_with("no gap"), "{said}");
    handle.stop();
    world.drive(&mut slot, |turn| turn == Turn::Ended { clean: true });
}

#[test]
fn a_kill_before_any_store_of_a_buffer_loses_nothing_and_opens_no_gap() {
    for stores in 1.. {
        let world = World::new();
        let (mut slot, handle) = world.start();
        world.drive(&mut slot, |turn| turn == Turn::Waits { until_ns: None, listen: true });
        world.happens("f");
        *world.machine.fuse.0.lock().unwrap() = Some(stores);
        let life = AssertUnwindSafe(|| world.flush(&mut slot, &handle));
        if std::panic::catch_unwind(life).is_ok() {
            assert!(stores > 10, "the fuse must have been of another buffer");
            return;
        }
        drop((slot, handle));
        world.happens("g");
        let (mut slot, handle) = world.start();
        world.flush(&mut slot, &handle);
        let paths: Vec<String> = world.entries().into_iter().skip(2).map(|(path, ..)| path).collect();
        assert!(paths == ["f", "g"] || paths == ["f", "f", "g"], "{stores}: {paths:?}");
    }
}
