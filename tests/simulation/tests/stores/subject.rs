//! The stores that are compared, each with a world of its own, and their answers in a form that can be.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex};

use b2_emulator::Emulator;
use b2_emulator::options::Options;
use b2_emulator::version::Action;
use sha1::Digest as _;
use shared::clock::{Clock, SystemClock};
use shared::config::B2Leg;
use shared::path::RelPath;
use simulation::fate::{Fate, Fault};
use simulation::store::b2::SimB2;
use simulation::store::bucket::Bucket;
use simulation::store::dir::{self, SimDir};
use simulation::store::directory::Directory;
use simulation::store::{Shared, Watch, lock, shared};
use syncer::credentials::Credentials;
use syncer::leg::b2::store::B2Store;
use syncer::leg::dir::{DirStore, Setup};
use syncer::leg::{Body, Listed, Put, Remove, Store, StoreError, What};
use syncer::tree::{Kind, SourceFile, Stat, Xattrs};
use tempfile::TempDir;
use tokio::runtime::Runtime;

pub const MTIME_NS: i64 = 1_700_000_000_123_456_789;
const BUCKET: &str = "bucket-1";
const WRITER: &str = "writer-1";

/// Nothing happens but the faults that were asked for, each once.
#[derive(Default)]
pub struct Calm(pub Mutex<Vec<Fault>>);

impl Fate for Calm {
    fn pass(&self, _: &'static str) {}

    fn strikes(&self, fault: Fault) -> bool {
        let mut faults = self.0.lock().unwrap();
        let at = faults.iter().position(|f| *f == fault);
        at.map(|at| faults.remove(at)).is_some()
    }

    fn pick(&self, _: u64) -> u64 {
        0
    }
}

/// Stands, so that all runs of a history put what they replace in the same place of the trash.
struct Noon;

impl Clock for Noon {
    fn wall_ns(&self) -> i64 {
        1_795_176_000 * 1_000_000_000
    }

    fn boot_ns(&self) -> i64 {
        SystemClock.boot_ns()
    }
}

pub enum World {
    SimB2 { bucket: Shared<Bucket>, fate: Arc<Calm>, watch: Watch },
    B2 { emulator: Box<Emulator> },
    SimDir { place: Shared<Directory>, fate: Arc<Calm> },
    Dir { temp: TempDir },
}

pub struct Subject {
    pub world: World,
    pub prefix: String,
    pub store: Arc<dyn Store>,
    /// Objects in the order they were first seen.
    known: Vec<String>,
}

pub fn p(path: impl AsRef<[u8]>) -> RelPath {
    RelPath::parse(path.as_ref()).unwrap()
}

pub fn wait<T>(work: impl Future<Output = T>) -> T {
    static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Runtime::new().unwrap());
    RUNTIME.block_on(work)
}

pub fn all() -> [Subject; 4] {
    let ([a, b], [c, d]) = (buckets(""), directories());
    [a, b, c, d]
}

/// The simulated one and the real one.
pub fn buckets(prefix: &str) -> [Subject; 2] {
    let emulator = Box::new(Emulator::start(Options::default()).unwrap());
    let id = emulator.create_bucket(BUCKET).unwrap();
    let bucket = shared(Bucket::new(&id));
    let simulated = World::SimB2 { bucket, fate: Arc::default(), watch: Watch::silent() };
    [simulated, World::B2 { emulator }].map(|world| Subject::new(world, prefix))
}

/// The simulated one and the real one.
pub fn directories() -> [Subject; 2] {
    let temp = tempfile::tempdir().unwrap();
    fs::create_dir(temp.path().join("dest")).unwrap();
    let place = shared(Directory::new("0000-0001", MTIME_NS));
    [World::SimDir { place, fate: Arc::default() }, World::Dir { temp }].map(|world| Subject::new(world, ""))
}

impl World {
    /// A store as another run would make it.
    pub fn store(&self, prefix: &str, writer: &str) -> Arc<dyn Store> {
        let (prefix, clock) = (p(prefix), Arc::new(Noon));
        match self {
            World::SimB2 { bucket, fate, watch } => {
                Arc::new(SimB2::new(bucket.clone(), &prefix, writer, clock, fate.clone(), watch.clone()))
            }
            World::B2 { emulator } => {
                let (key_id, key) = emulator.key();
                let credentials = Credentials { key_id, key: key.into(), source: "the test".into() };
                let endpoint = emulator.endpoint();
                let leg = B2Leg { bucket: BUCKET.into(), prefix, endpoint, key_files: None };
                Arc::new(B2Store::new(&leg, credentials, writer, 4).unwrap())
            }
            World::SimDir { place, fate } => {
                let setup = dir::Setup { run: 7, trash_days: 30, clock };
                Arc::new(SimDir::new(place.clone(), setup, fate.clone(), Watch::silent()))
            }
            World::Dir { temp } => {
                let destination = temp.path().join("dest");
                let setup = Setup { destination, run: 7, trash_days: 30, sources: Vec::new(), clock };
                Arc::new(DirStore::new(setup))
            }
        }
    }
}

impl Subject {
    fn new(world: World, prefix: &str) -> Subject {
        let store = world.store(prefix, WRITER);
        wait(store.open()).unwrap();
        wait(store.prepare()).unwrap();
        Subject { world, prefix: prefix.to_owned(), store, known: Vec::new() }
    }

    /// For messages.
    pub fn name(&self) -> &'static str {
        match self.world {
            World::SimB2 { .. } => "simulated B2",
            World::B2 { .. } => "B2",
            World::SimDir { .. } => "simulated directory",
            World::Dir { .. } => "directory",
        }
    }

    /// The run ends, and another one begins.
    pub fn next_run(&mut self) {
        self.store = self.world.store(&self.prefix, WRITER);
        wait(self.store.open()).unwrap();
        wait(self.store.prepare()).unwrap();
    }

    pub fn put(&mut self, put: Put) -> String {
        let dir = matches!(put.what, What::Dir) || put.stat.kind == Kind::Dir;
        match wait(self.store.put(put)) {
            Ok(receipt) => {
                let object = if dir { "dir".into() } else { self.number(&receipt.object) };
                format!("{object} {:?}", receipt.sha1.map(|sha1| sha1[0]))
            }
            Err(error) => told(&error),
        }
    }

    pub fn remove(&mut self, path: &str, kind: Kind) -> String {
        let remove = Remove { dest: p(path), kind, object: String::new() };
        wait(self.store.remove(remove)).map_or_else(|e| told(&e), |()| "removed".into())
    }

    pub fn newest(&mut self, path: &RelPath) -> String {
        match wait(self.store.newest(path)) {
            Ok(found) => found.map_or("nothing".into(), |object| self.describe(&object)),
            Err(error) => told(&error),
        }
    }

    /// All pages below a path.
    pub fn list(&mut self, top: &str) -> String {
        match self.objects(top) {
            Ok(objects) => objects.iter().map(|o| self.describe(o) + "\n").collect(),
            Err(error) => told(&error),
        }
    }

    pub fn objects(&self, top: &str) -> Result<Vec<Listed>, StoreError> {
        let (mut objects, mut token) = (Vec::new(), None);
        loop {
            let page = wait(self.store.list(&p(top), token))?;
            objects.extend(page.objects);
            token = page.next;
            if token.is_none() {
                return Ok(objects);
            }
        }
    }

    /// Sizes and times of directories differ between filesystems, and their inodes may be used again.
    fn describe(&mut self, listed: &Listed) -> String {
        let Listed { dest, name, object, kind, size, mtime_ns, sha1, writer } = listed;
        if kind.is_dir() {
            return format!("{dest:?} {name} dir");
        }
        let object = self.number(object);
        format!("{dest:?} {name} {object} {kind} {size} {mtime_ns:?} {:?} {writer:?}", sha1.map(|s| s[0]))
    }

    fn number(&mut self, object: &str) -> String {
        let at = self.known.iter().position(|known| known == object).unwrap_or_else(|| {
            self.known.push(object.to_owned());
            self.known.len() - 1
        });
        format!("#{at}")
    }

    /// All that is left in the end, with all that is kept of what was before.
    pub fn remains(&self) -> Vec<String> {
        match &self.world {
            World::SimB2 { bucket, .. } => versions(&lock(bucket)),
            World::B2 { emulator } => emulator
                .versions(BUCKET)
                .iter()
                .map(|version| {
                    let hidden = version.action == Action::Hide;
                    let sha1 = if hidden { String::new() } else { version.content_sha1.clone() };
                    let info = |key: &str| version.info.get(key).cloned();
                    let (time, writer) = (info("src_last_modified_millis"), info("longshore_writer"));
                    format!("{} {sha1} {time:?} {writer:?}", version.name)
                })
                .collect(),
            World::SimDir { place, .. } => tree(&lock(place)),
            World::Dir { temp } => {
                let mut found = BTreeMap::new();
                walk(&temp.path().join("dest"), Path::new(""), &mut found);
                found.into_iter().map(|(name, what)| format!("{name} {what}")).collect()
            }
        }
    }
}

/// In the order of b2_list_file_versions.
fn versions(bucket: &Bucket) -> Vec<String> {
    let mut lines = Vec::new();
    for name in bucket.names() {
        for version in bucket.versions(name).iter().rev() {
            let (mut sha1, mut time, mut writer) = (String::new(), None, None);
            if let Some(object) = &version.object {
                sha1 = hex(&object.content.sha1);
                time = object.mtime_ms.map(|ms| ms.to_string());
                writer.clone_from(&object.writer);
            }
            lines.push(format!("{name} {sha1} {time:?} {writer:?}"));
        }
    }
    lines
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A run's name in the trash holds the time.
fn without_stamp(path: &str) -> String {
    match path.strip_prefix(".longshore/trash/") {
        Some(below) => format!("trash/{}", below.get(20..).unwrap_or_default()),
        None => path.to_owned(),
    }
}

fn tree(directory: &Directory) -> Vec<String> {
    let mut found = BTreeMap::new();
    for (path, stat, node) in directory.everything() {
        let what = match stat.kind {
            Kind::File => hex(&node.content.as_ref().unwrap().sha1),
            Kind::Symlink => String::from_utf8_lossy(&node.target).into_owned(),
            _ => String::new(),
        };
        let name = without_stamp(&String::from_utf8_lossy(path.as_bytes()));
        let set = (stat.mode, stat.mtime_ns, stat.uid, stat.nlink);
        found.insert(name.clone(), line(&name, stat.kind, set, &what));
    }
    found.into_iter().map(|(name, what)| format!("{name} {what}")).collect()
}

fn walk(top: &Path, below: &Path, found: &mut BTreeMap<String, String>) {
    let path: PathBuf = top.join(below);
    let meta = fs::symlink_metadata(&path).unwrap();
    let (kind, what) = match meta.file_type() {
        t if t.is_dir() => (Kind::Dir, String::new()),
        t if t.is_symlink() => (Kind::Symlink, fs::read_link(&path).unwrap().to_string_lossy().into_owned()),
        t if t.is_fifo() => (Kind::Fifo, String::new()),
        _ => (Kind::File, hex(&sha1::Sha1::digest(fs::read(&path).unwrap()))),
    };
    let time = meta.mtime() * 1_000_000_000 + meta.mtime_nsec();
    let set = (meta.mode() & 0o7777, time, meta.uid(), meta.nlink());
    let name = without_stamp(&below.to_string_lossy());
    found.insert(name.clone(), line(&name, kind, set, &what));
    if kind.is_dir() {
        for entry in fs::read_dir(&path).unwrap() {
            walk(top, &below.join(entry.unwrap().file_name()), found);
        }
    }
}

/// A directory's own time is the clock's, and how many links it has is the filesystem's own business; the mode of the
/// top is as it was made.
fn line(name: &str, kind: Kind, set: (u32, i64, u32, u64), what: &str) -> String {
    let (mode, time, uid, nlink) = set;
    match kind {
        Kind::Dir if name.is_empty() => "top".into(),
        Kind::Dir => format!("dir {mode:o} {uid}"),
        kind => format!("{kind} {mode:o} {time} {uid} {nlink} {what}"),
    }
}

fn told(error: &StoreError) -> String {
    let StoreError { op, object, problem, outcome_unknown, .. } = error;
    format!("cannot {op} {object}: {problem:?}, unknown {outcome_unknown}")
}

/// A source in memory, which may move, shrink or fail while it is read.
pub struct Source {
    pub stat: Stat,
    pub bytes: Vec<u8>,
    pub manner: Manner,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    Still,
    Moves,
    Shrinks,
    Fails,
}

impl SourceFile for Source {
    fn stat(&self) -> &Stat {
        &self.stat
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let end = if self.manner == Manner::Shrinks { self.bytes.len() / 2 } else { self.bytes.len() };
        let rest = self.bytes[..end].get(offset as usize..).unwrap_or_default();
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        if self.manner == Manner::Fails { Err(io::Error::from_raw_os_error(5)) } else { Ok(count) }
    }

    fn next_data(&self, from: u64) -> io::Result<Option<Range<u64>>> {
        let size = self.bytes.len() as u64;
        Ok((from < size).then_some(from..size))
    }

    fn unchanged(&self) -> io::Result<bool> {
        Ok(self.manner == Manner::Still)
    }
}

pub fn stat(kind: Kind, size: usize, mtime_ns: i64) -> Stat {
    let me = fs::metadata("/proc/self").unwrap();
    Stat {
        kind,
        size: size as u64,
        mtime_ns,
        ctime_ns: mtime_ns,
        btime_ns: None,
        ino: 1,
        mode: if kind.is_dir() { 0o755 } else { 0o640 },
        uid: me.uid(),
        gid: me.gid(),
        nlink: 1,
        rdev: 0,
    }
}

pub fn of(dest: &str, kind: Kind, mtime_ns: i64, what: What) -> Put {
    Put { dest: p(dest), what, stat: stat(kind, 0, mtime_ns), xattrs: Xattrs::new() }
}

/// Read before, as the run does it.
pub fn small(dest: impl AsRef<[u8]>, bytes: &[u8], mtime_ns: i64) -> Put {
    let put = streamed(dest, bytes, mtime_ns, Manner::Still);
    let What::File(body) = put.what else { unreachable!() };
    let read = (bytes.to_vec().into(), sha1::Sha1::digest(bytes).into());
    Put { what: What::File(Body { small: Some(read), ..body }), ..put }
}

pub fn streamed(dest: impl AsRef<[u8]>, bytes: &[u8], mtime_ns: i64, manner: Manner) -> Put {
    let stat = stat(Kind::File, bytes.len(), mtime_ns);
    let file = Arc::new(Source { stat, bytes: bytes.to_vec(), manner });
    Put { dest: p(dest), what: What::File(Body { file, small: None }), stat, xattrs: Xattrs::new() }
}
