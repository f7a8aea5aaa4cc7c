//! The syncer on one thread, in a runtime without time and I/O: the same tree and the same answers make the same calls
//! of the store and the same writes of the databases.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::cell::RefCell;
use std::fs;
use std::path::Path;
use std::rc::Rc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use sha1::{Digest as _, Sha1};
use shared::clock::Clock;
use shared::config::Config;
use shared::exit::Exit;
use shared::journal::{Journal, RootState};
use shared::path::RelPath;
use simulation::database::{self, Answer};
use syncer::catalog::Catalog;
use syncer::leg::{Calls, Holds, Listed, Page, Problem, Put, Receipt, Remove, Store, StoreError, What};
use syncer::report::Report;
use syncer::run::{Parts, Run, Threads, Tracker, Wish};
use syncer::tree::Tree;
use syncer::tree::proven::ProvenTree;

/// A clock that stands still.
#[derive(Default)]
struct Stands(AtomicI64);

impl Clock for Stands {
    fn wall_ns(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }

    fn boot_ns(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }
}

struct NoTracker;

impl Tracker for NoTracker {
    fn flush(&self) -> Result<(), String> {
        Ok(())
    }

    fn probed_boot_ns(&self) -> Option<i64> {
        None
    }
}

/// Remembers every call in words, answers each after some turns of the others, and refuses at first.
#[derive(Default)]
struct Recorder {
    calls: Mutex<Vec<String>>,
    refuses: bool,
}

impl Recorder {
    async fn say(&self, call: String) {
        let turns = call.bytes().map(usize::from).sum::<usize>() % 5;
        let threads = fs::read_dir("/proc/self/task").unwrap().count();
        self.calls.lock().unwrap().push(format!("{call} begins beside {threads} threads"));
        for _ in 0..turns {
            tokio::task::yield_now().await;
        }
        self.calls.lock().unwrap().push(format!("{call} ends"));
    }
}

#[async_trait]
impl Store for Recorder {
    fn holds(&self) -> Holds {
        Holds { all_kinds: true, attributes: true, hard_links: true, writers: false, nanoseconds: true }
    }

    async fn open(&self) -> Result<(), StoreError> {
        self.say("open".into()).await;
        Ok(())
    }

    fn identity(&self) -> String {
        "recorder".into()
    }

    async fn prepare(&self) -> Result<(), StoreError> {
        self.say("prepare".into()).await;
        Ok(())
    }

    async fn put(&self, put: Put) -> Result<Receipt, StoreError> {
        let (kind, sha1) = match &put.what {
            What::File(body) => {
                let mut content = vec![0; put.stat.size as usize];
                let filled = body.file.read_at(&mut content, 0).unwrap();
                ("file", Some(Sha1::digest(&content[..filled]).into()))
            }
            What::Dir => ("dir", None),
            What::Symlink { .. } => ("symlink", None),
            What::Special => ("special", None),
            What::HardLink { .. } => ("link", None),
            What::Attributes => ("attributes", None),
        };
        self.say(format!("put {} {kind}", put.dest)).await;
        if self.refuses && kind == "file" && put.dest.as_bytes().ends_with(b"3") {
            let problem = Problem::TryLater(None);
            return Err(StoreError::new("put", &put.dest, problem, "not now"));
        }
        Ok(Receipt { object: format!("object {}", put.dest), sha1 })
    }

    async fn remove(&self, remove: Remove) -> Result<(), StoreError> {
        self.say(format!("remove {}", remove.dest)).await;
        Ok(())
    }

    async fn sync(&self) -> Result<(), StoreError> {
        self.say("sync".into()).await;
        Ok(())
    }

    async fn list(&self, top: &RelPath, page: Option<String>) -> Result<Page, StoreError> {
        self.say(format!("list {top} {page:?}")).await;
        Ok(Page::default())
    }

    async fn newest(&self, dest: &RelPath) -> Result<Option<Listed>, StoreError> {
        self.say(format!("newest {dest}")).await;
        Ok(None)
    }

    fn calls(&self) -> Calls {
        Calls::default()
    }

    fn notes(&self) -> Vec<String> {
        Vec::new()
    }
}

/// Directories in each other, files, links and symbolic links; of long ago, so that every look settles them.
fn fill(top: &Path) {
    for d in 0..12 {
        let dir = top.join(format!("d{}/e{d}", d % 4));
        fs::create_dir_all(&dir).unwrap();
        for f in 0..20 {
            let file = dir.join(format!("file-{f}"));
            fs::write(&file, format!("{d} {f}").repeat(f)).unwrap();
            let long_ago = SystemTime::UNIX_EPOCH + Duration::from_secs(1_600_000_000);
            fs::File::open(file).unwrap().set_modified(long_ago).unwrap();
        }
        fs::hard_link(dir.join("file-7"), top.join(format!("other-{d}"))).unwrap();
        std::os::unix::fs::symlink("file-1", dir.join("symlink")).unwrap();
    }
}

fn config(source: &Path, state: &Path) -> Config {
    let (source, state) = (source.display(), state.display());
    let text = format!(
        "state_dir = \"{state}\"\nruntime_dir = \"{state}\"\n[[root]]\nname = \"space\"\npath = \"{source}\"\n
         [[leg]]\nname = \"copy\"\nkind = \"dir\"\nroots = [\"space\"]\npath = \"/nowhere\"\n"
    );
    Config::parse(Path::new("test.toml"), &text).unwrap()
}

fn run(config: &Config, clock: &Arc<Stands>, store: &Arc<Recorder>) -> Report {
    let leg = config.leg("copy").unwrap();
    let store = Arc::clone(store);
    let parts = Parts {
        config: config.clone(),
        leg: leg.clone(),
        journal: Journal::open(&config.journal_path()).unwrap(),
        catalog: Catalog::open(&config.state_dir.join("catalog.db")).unwrap(),
        open_tree: Box::new(|root| {
            let tree = ProvenTree::open(&root.path).map_err(|e| e.to_string())?;
            let identity = tree.identity().clone();
            Ok((Arc::new(tree) as Arc<dyn Tree>, identity))
        }),
        make_store: Box::new(move |_| Ok(Arc::clone(&store) as Arc<dyn Store>)),
        tracker: Box::new(NoTracker),
        clock: Arc::clone(clock) as Arc<dyn Clock>,
        threads: Threads::One,
        progress: Arc::default(),
        stop: Arc::default(),
        wish: Wish::default(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(Run::new(parts, None).run())
}

/// Mirrors the tree with a fresh state, once with refusals and a day later without; says everything that happened.
fn story(source: &Path) -> Vec<String> {
    let state = database::scratch();
    let _disk = database::attach(state.path());
    let config = config(source, state.path());
    let (acts, dir) = (Rc::new(RefCell::new(Vec::new())), state.path().canonicalize().unwrap());
    let list = Rc::clone(&acts);
    database::ask(move |op| {
        list.borrow_mut().push(format!("{:?} of {}", op.act, op.path.strip_prefix(&dir).unwrap().display()));
        Answer::Go
    });
    let mut journal = Journal::create_or_open(&config.journal_path()).unwrap();
    for row in journal.put_roots(&config.roots, 0).unwrap() {
        journal.set_root_state(row.id, RootState::Ok, "test", 0).unwrap();
    }
    drop(journal);
    let mut told = Vec::new();
    let now = 1_800_000_000_000_000_000;
    for (day, refuses) in [(0, true), (1, false)] {
        let clock = Arc::new(Stands(AtomicI64::new(now + day * 86_400_000_000_000)));
        let store = Arc::new(Recorder { refuses, ..Recorder::default() });
        let report = run(&config, &clock, &store);
        assert_eq!(report.exit, if refuses { Exit::Partial } else { Exit::Ok }, "{report:?}");
        told.append(&mut store.calls.lock().unwrap());
    }
    assert!(told.iter().any(|call| call == "put d1/e1/file-13 file ends"), "{told:?}");
    told.append(&mut acts.borrow_mut());
    told
}

#[test]
fn the_same_tree_makes_the_same_calls_and_the_same_writes() {
    let dir = database::scratch();
    fill(dir.path());
    let first = story(dir.path());
    let second = story(dir.path());
    assert!(first.len() > 900, "{}", first.len());
    let differs = first.iter().zip(&second).position(|(a, b)| a != b);
    assert_eq!(differs.map(|at| (&first[at], &second[at])), None);
    assert_eq!(first.len(), second.len());
}
