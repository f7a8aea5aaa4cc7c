//! A few threads that list directories and look at their names ahead of the reader, in the order in which it will ask.
//! Without them everything works the same, one directory after the other.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CString;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use shared::limits;
use shared::path::RelPath;
use shared::rules::Rules;

use super::listing::{Block, Bounds, Listing, why};
use crate::tree::{Dir, Tree};

/// Where names begin: at this key of a directory that goes on, or in the directory that has it.
pub type Place = (Vec<u8>, Begin);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Begin {
    At,
    In,
}

pub struct Ahead {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    tree: Arc<dyn Tree>,
    rules: Arc<Rules>,
    bounds: Bounds,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    queued: BTreeMap<Place, Task>,
    running: BTreeSet<Place>,
    done: BTreeMap<Place, Block>,
    /// Names in `done`.
    names: usize,
    over: bool,
}

enum Task {
    /// A directory, through its open parent or from the root.
    Open {
        path: RelPath,
        parent: Option<Arc<dyn Dir>>,
    },
    Rest(Box<Listing>),
}

impl Ahead {
    pub fn new(tree: Arc<dyn Tree>, rules: Arc<Rules>, bounds: Bounds, top: RelPath) -> Ahead {
        let queued = BTreeMap::from([((top.dir_key(), Begin::In), Task::Open { path: top, parent: None })]);
        let state = Mutex::new(State { queued, ..State::default() });
        let shared = Shared { tree, rules, bounds, state, changed: Condvar::new() };
        Ahead { shared: Arc::new(shared), threads: Vec::new() }
    }

    /// The names that begin at this place, which a block before named.
    pub fn take(&mut self, place: &Place) -> Block {
        let mut state = self.shared.lock();
        loop {
            if let Some(block) = state.done.remove(place) {
                state.names -= block.len();
                self.shared.changed.notify_all();
                return block;
            }
            if let Some(task) = state.queued.remove(place) {
                drop(state);
                let (block, next) = self.shared.carry_out(task);
                self.shared.lock().queued.extend(next);
                self.shared.changed.notify_all();
                self.start_threads();
                return block;
            }
            assert!(
                state.running.contains(place),
                "a thread that lists directories ended in the midst of one"
            );
            state = self.shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Not before there is something to do beside the reader's own next block.
    fn start_threads(&mut self) {
        if !self.threads.is_empty() || self.shared.lock().queued.len() < 2 {
            return;
        }
        for _ in 0..self.shared.bounds.threads {
            let shared = Arc::clone(&self.shared);
            let thread = std::thread::Builder::new().name("walk".into()).spawn(move || shared.serve());
            match thread {
                Ok(thread) => self.threads.push(thread),
                Err(e) => tracing::debug!("one directory after the other: {e}"),
            }
        }
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        self.shared.lock().over = true;
        self.shared.changed.notify_all();
        // They hold directories open, which must not outlive the walk.
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread that lists directories ended in the midst of one");
            }
        }
    }
}

/// Takes its task off the list of what is running, by a panic too.
struct Running<'a> {
    shared: &'a Shared,
    place: Place,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.shared.lock().running.remove(&self.place);
        self.shared.changed.notify_all();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(&self) {
        let mut state = self.lock();
        while !state.over {
            let full = state.names >= limits::WALK_NAMES_AHEAD || state.done.len() >= limits::WALK_DIRS_AHEAD;
            let Some((place, task)) = (if full { None } else { state.queued.pop_first() }) else {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            state.running.insert(place.clone());
            drop(state);
            let running = Running { shared: self, place };
            let (block, next) = self.carry_out(task);
            let mut done = self.lock();
            done.names += block.len();
            done.done.insert(running.place.clone(), block);
            done.queued.extend(next);
            drop(done);
            drop(running);
            state = self.lock();
        }
    }

    /// The next block, and what can be done after it.
    fn carry_out(&self, task: Task) -> (Block, Vec<(Place, Task)>) {
        let path = match &task {
            Task::Open { path, .. } => path.clone(),
            Task::Rest(listing) => listing.path().clone(),
        };
        match self.look(task) {
            Ok(done) => done,
            // Gone since its name was seen: whoever misses what was in it looks.
            Err(e) if e.kind() == io::ErrorKind::NotFound => (Block::empty(path), Vec::new()),
            Err(e) => (Block::failed(path, why(&e)), Vec::new()),
        }
    }

    fn look(&self, task: Task) -> io::Result<(Block, Vec<(Place, Task)>)> {
        let listing = match task {
            Task::Rest(listing) => *listing,
            Task::Open { path, parent } => {
                let dir = match (parent, path.name()) {
                    (Some(parent), Some(name)) => parent.dir(&CString::new(name)?)?,
                    _ => self.tree.dir(&path).map_err(|e| e.source)?,
                };
                Listing::new(dir, path, self.bounds)?
            }
        };
        let dir = Arc::clone(listing.dir());
        let (block, rest) = listing.block(&self.rules, self.bounds)?;
        // A descriptor for each level down is more than a process may have, somewhere.
        let parent = (block.path.components().count() < limits::WALK_LEVELS_OPEN).then_some(dir);
        let mut next = Vec::new();
        for (name, key) in block.dirs() {
            let path = block.path.child(name).map_err(io::Error::other)?;
            next.push(((key, Begin::In), Task::Open { path, parent: parent.clone() }));
        }
        let rest = rest.map(Box::new).map(Task::Rest);
        next.extend(block.then.clone().map(|key| (key, Begin::At)).zip(rest));
        Ok((block, next))
    }
}
