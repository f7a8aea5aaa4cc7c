//! Carrying out the operations of a batch: reading and hashing beside the requests, which are under way at the same
//! time, with memory bounded by the bytes of small files in flight.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use sha1::{Digest as _, Sha1 as Sha1Hasher};
use shared::entry::Handle;
use shared::exit::Exit;
use shared::journal::Class;
use shared::limits;
use shared::path::RelPath;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::batch::{Action, Op};
use super::source::Ground;
use super::threads::Threads;
use crate::catalog::{NO_TIME, Origin, Row};
use crate::examine::{self, Verdict};
use crate::leg::{Body, Holds, Problem, Put, Sha1, Store, StoreError, What};
use crate::tree::{Kind, SourceFile, Stat, Tree, TreeError, Xattrs};

/// What the progress bar and the report count; only ever added to.
#[derive(Debug, Default)]
pub struct Progress {
    pub files: AtomicU64,
    pub bytes: AtomicU64,
    pub others: AtomicU64,
    pub unchanged: AtomicU64,
    pub removed: AtomicU64,
}

/// Why an operation did not come to a receipt.
#[derive(Debug, Clone)]
pub struct Failure {
    pub class: Class,
    pub reason: String,
    /// The leg as a whole cannot go on.
    pub stop: Option<Exit>,
    /// It may have taken effect: its intent stays.
    pub outcome_unknown: bool,
    /// The destination's own word on when to try again.
    pub wait: Option<Duration>,
}

/// An operation and the row it left, or why there is none.
pub struct Outcome {
    pub op: Op,
    pub result: Result<Done, Failure>,
}

/// The row to write, and whether the destination changed for it.
pub struct Done {
    pub row: Row,
    pub sent: bool,
}

pub struct Sender {
    pub store: Arc<dyn Store>,
    /// Where each root of the run lies below the leg's top.
    pub prefixes: Vec<RelPath>,
    pub transfers: usize,
    pub threads: Threads,
    pub progress: Arc<Progress>,
    /// In KiB.
    pub memory: Arc<Semaphore>,
    /// Set when the run is to stop: nothing further is started, and what was not started has no outcome.
    pub stop: Arc<AtomicBool>,
}

/// The budget of [`Sender::memory`].
pub fn memory_budget() -> Arc<Semaphore> {
    Arc::new(Semaphore::new((limits::SMALL_FILES_IN_FLIGHT_BYTES / 1024) as usize))
}

impl Sender {
    /// Sends operations that do not depend on one another, so many at a time.
    pub async fn send_all(&self, ops: Vec<Op>, grounds: &[Option<Ground>]) -> Vec<Outcome> {
        let mut outcomes = Vec::with_capacity(ops.len());
        let mut running = JoinSet::new();
        let mut stopped: Option<Failure> = None;
        for op in ops {
            while running.len() >= self.transfers {
                collect(&mut outcomes, &mut stopped, running.join_next().await);
            }
            if self.stop.load(Ordering::Relaxed) {
                break;
            }
            if let Some(failure) = &stopped {
                outcomes.push(Outcome { op, result: Err(failure.clone()) });
                continue;
            }
            let Some(ground) = grounds[op.root].clone() else { continue };
            let one = One {
                store: self.store.clone(),
                holds: self.store.holds(),
                tree: ground.tree,
                prefix: self.prefixes[op.root].clone(),
                threads: self.threads,
                progress: self.progress.clone(),
                memory: self.memory.clone(),
            };
            running.spawn(async move {
                let result = one.send(&op).await;
                Outcome { op, result }
            });
        }
        while let Some(joined) = running.join_next().await {
            collect(&mut outcomes, &mut stopped, Some(joined));
        }
        outcomes
    }

    /// Sends operations one after the other: directories, parents first.
    pub async fn send_in_order(&self, ops: Vec<Op>, grounds: &[Option<Ground>]) -> Vec<Outcome> {
        let mut outcomes = Vec::with_capacity(ops.len());
        for op in ops {
            let (op, lost) = without_directory(vec![op], &outcomes);
            outcomes.extend(self.send_all(op, grounds).await);
            outcomes.extend(lost);
        }
        outcomes
    }
}

fn collect(
    outcomes: &mut Vec<Outcome>,
    stopped: &mut Option<Failure>,
    joined: Option<Result<Outcome, tokio::task::JoinError>>,
) {
    match joined {
        Some(Ok(outcome)) => {
            if let Err(failure) = &outcome.result
                && failure.stop.is_some()
            {
                stopped.get_or_insert_with(|| Failure { outcome_unknown: false, ..failure.clone() });
            }
            outcomes.push(outcome);
        }
        // A panic in a transfer is a defect: it must not pass for a path that had nothing to do.
        Some(Err(e)) => std::panic::resume_unwind(e.into_panic()),
        None => {}
    }
}

/// What lies in a directory that is new at the destination and was not made: it cannot be, for the same reason. And
/// what is left.
pub fn without_directory(ops: Vec<Op>, outcomes: &[Outcome]) -> (Vec<Op>, Vec<Outcome>) {
    let is_new = |op: &Op| op.action == Action::MakeDir && op.row.as_ref().is_none_or(|r| !r.has_object());
    let not_made = |o: &&Outcome| o.result.is_err() && is_new(&o.op);
    let not_made: Vec<&Outcome> = outcomes.iter().filter(not_made).collect();
    let (mut left, mut lost) = (Vec::with_capacity(ops.len()), Vec::new());
    for op in ops {
        let around = not_made.iter().find(|o| o.op.root == op.root && op.path.is_within(&o.op.path));
        match around.copied() {
            Some(Outcome { op: dir, result: Err(failure) }) => {
                let reason = format!("{} was not made", dir.path);
                let failure = Failure { reason, stop: None, outcome_unknown: false, ..failure.clone() };
                lost.push(Outcome { op, result: Err(failure) });
            }
            _ => left.push(op),
        }
    }
    (left, lost)
}

/// Links, sorted by what became of the name they follow.
#[derive(Default)]
pub struct Links {
    /// To be made.
    pub make: Vec<Op>,
    /// The content turned out to be what the destination has, and the link stands.
    pub stand: Vec<Outcome>,
    /// The leader was not sent: a link would be one to what it was before.
    pub orphans: Vec<Op>,
}

pub fn sort_links(links: Vec<Op>, outcomes: &[Outcome]) -> Links {
    let leaders: HashMap<(usize, &RelPath), &Outcome> =
        outcomes.iter().map(|o| ((o.op.root, &o.op.path), o)).collect();
    let mut sorted = Links::default();
    for op in links {
        let Action::LinkTo(to) = &op.action else { continue };
        let own = op.row.as_ref().filter(|row| row.has_object());
        match (leaders.get(&(op.root, to)).map(|o| &o.result), own) {
            (Some(Err(_)), _) => sorted.orphans.push(op),
            (Some(Ok(done)), Some(own)) if !done.sent && own.is_of(&op.stat, done.row.handle.as_ref()) => {
                let row = Row { stat: op.stat, object: own.object.clone(), ..done.row.clone() };
                sorted.stand.push(Outcome { op, result: Ok(Done { row, sent: false }) });
            }
            _ => sorted.make.push(op),
        }
    }
    sorted
}

/// One operation under way.
struct One {
    store: Arc<dyn Store>,
    holds: Holds,
    tree: Arc<dyn Tree>,
    prefix: RelPath,
    threads: Threads,
    progress: Arc<Progress>,
    memory: Arc<Semaphore>,
}

/// What was read of a path before it is sent.
struct Prepared {
    stat: Stat,
    body: Option<Body>,
    target: Vec<u8>,
    xattrs: Xattrs,
    handle: Option<Handle>,
    /// Of an adopted file that is too new to be settled: what a later look is compared with.
    adopted: Option<Sha1>,
    /// Of content that turned out to be what the row says.
    same: Option<(Sha1, Verdict)>,
    looked_ns: i64,
}

impl One {
    async fn send(&self, op: &Op) -> Result<Done, Failure> {
        let kib = match &op.action {
            Action::Content { .. } if op.stat.size <= limits::SMALL_FILE_BYTES => {
                op.stat.size.div_ceil(1024) as u32
            }
            _ => 0,
        };
        // Never closed, so it cannot fail.
        let _memory = self.memory.clone().acquire_many_owned(kib).await.ok();
        let (tree, holds, job) = (self.tree.clone(), self.holds, op.clone());
        let prepared = self.threads.work(move || prepare(&*tree, holds, &job)).await?;
        self.put(op, prepared).await
    }

    async fn put(&self, op: &Op, prepared: Prepared) -> Result<Done, Failure> {
        let Prepared { stat, body, target, xattrs, handle, adopted, same, looked_ns } = prepared;
        let old_object = op.row.as_ref().map(|r| r.object.clone()).unwrap_or_default();
        let old_sha1 = op.row.as_ref().and_then(|r| r.sha1);
        if let Some((sha1, Verdict::Refresh)) = same {
            self.progress.unchanged.fetch_add(1, Ordering::Relaxed);
            let row = examine::made_row(&stat, Some(sha1), old_object, handle, looked_ns);
            return Ok(Done { row, sent: false });
        }
        let attributes_only = same.is_some() || op.action == Action::Attributes;
        let what = match (&op.action, body) {
            _ if attributes_only => What::Attributes,
            (Action::MakeDir, _) => What::Dir,
            (Action::Symlink, _) => What::Symlink { target },
            (Action::LinkTo(leader), _) => What::HardLink { to: self.prefix.join(leader) },
            (_, Some(body)) => What::File(body),
            (_, None) => What::Special,
        };
        let (is_file, size) = (matches!(what, What::File(_)), stat.size);
        let dest = self.prefix.join(&op.path);
        let receipt = self.store.put(Put { dest, what, stat, xattrs }).await.map_err(Failure::of_store)?;
        let counter = if is_file { &self.progress.files } else { &self.progress.others };
        counter.fetch_add(1, Ordering::Relaxed);
        if is_file {
            self.progress.bytes.fetch_add(size, Ordering::Relaxed);
        }
        let kept = if attributes_only { old_sha1 } else { None };
        let sha1 = receipt.sha1.or(same.map(|(sha1, _)| sha1)).or(adopted).or(kept);
        let mut row = examine::made_row(&stat, sha1, receipt.object, handle, looked_ns);
        if op.action == Action::MakeDir {
            row.stat.mtime_ns = NO_TIME; // its attributes follow, with a receipt of their own
        }
        if op.action == Action::Attributes {
            // An equal stat proves the content only as far as it did before. An adopted object was equal by size and
            // time, which is all that is asked of it.
            row.settled &= op.row.as_ref().is_some_and(|r| r.settled || r.origin != Origin::Made);
        }
        Ok(Done { row, sent: true })
    }
}

/// Reads what the operation needs. Blocking.
fn prepare(tree: &dyn Tree, holds: Holds, op: &Op) -> Result<Prepared, Failure> {
    let looked_ns = tree.now_ns();
    let mut prepared = Prepared {
        stat: op.stat,
        body: None,
        target: Vec::new(),
        xattrs: Xattrs::new(),
        handle: tree.handle(&op.path),
        adopted: None,
        same: None,
        looked_ns,
    };
    if holds.attributes {
        prepared.xattrs = tree.xattrs(&op.path).map_err(Failure::of_tree)?;
    }
    match &op.action {
        Action::Symlink => prepared.target = tree.read_link(&op.path).map_err(Failure::of_tree)?,
        Action::Content { compare } => {
            let file = tree.open(&op.path).map_err(Failure::of_tree)?;
            prepared.stat = *file.stat();
            let row = op.row.as_ref().filter(|_| *compare);
            let small = if prepared.stat.size <= limits::SMALL_FILE_BYTES {
                Some(read_small(&*file).map_err(|e| Failure::of_read(op, &e))?)
            } else {
                None
            };
            let sha1 = match (&small, row) {
                (Some((_, sha1)), _) => Some(*sha1),
                (None, Some(_)) => Some(hash(&*file).map_err(|e| Failure::of_read(op, &e))?),
                (None, None) => None,
            };
            if (small.is_some() || sha1.is_some())
                && !file.unchanged().map_err(|e| Failure::of_read(op, &e))?
            {
                return Err(Failure::busy());
            }
            if let (Some(row), Some(sha1)) = (row, sha1) {
                let verdict =
                    examine::after_read(row, &prepared.stat, prepared.handle.as_ref(), &sha1, op.mask, holds);
                if verdict != Verdict::Send {
                    prepared.same = Some((sha1, verdict));
                }
            }
            prepared.body = Some(Body { file, small });
        }
        Action::Attributes if adopts_unsettled(op, looked_ns) => {
            let file = tree.open(&op.path).map_err(Failure::of_tree)?;
            prepared.adopted = Some(hash(&*file).map_err(|e| Failure::of_read(op, &e))?);
        }
        _ => {}
    }
    Ok(prepared)
}

fn adopts_unsettled(op: &Op, now_ns: i64) -> bool {
    let adopts = op.row.as_ref().is_some_and(|row| row.origin != Origin::Made && row.sha1.is_none());
    adopts && op.stat.kind == Kind::File && !examine::is_settled(&op.stat, now_ns)
}

fn read_small(file: &dyn SourceFile) -> io::Result<(Bytes, Sha1)> {
    let mut content = vec![0; file.stat().size as usize];
    let mut filled = 0;
    while filled < content.len() {
        match file.read_at(&mut content[filled..], filled as u64)? {
            0 => break, // truncated meanwhile: `unchanged` says so
            n => filled += n,
        }
    }
    content.truncate(filled);
    let sha1 = Sha1Hasher::digest(&content).into();
    Ok((content.into(), sha1))
}

fn hash(file: &dyn SourceFile) -> io::Result<Sha1> {
    let mut hasher = Sha1Hasher::new();
    let mut buffer = vec![0; 256 * 1024];
    let mut at = 0;
    loop {
        match file.read_at(&mut buffer, at)? {
            0 => return Ok(hasher.finalize().into()),
            n => {
                hasher.update(&buffer[..n]);
                at += n as u64;
            }
        }
    }
}

impl Outcome {
    /// Of a link whose leader was not sent.
    pub fn orphaned(op: Op) -> Outcome {
        let reason = "the file it is a name of was not sent".into();
        Outcome { op, result: Err(Failure::new(Class::Busy, reason)) }
    }
}

impl Failure {
    fn new(class: Class, reason: String) -> Failure {
        Failure { class, reason, stop: None, outcome_unknown: false, wait: None }
    }

    fn busy() -> Failure {
        Failure::new(Class::Busy, "it changed while it was read".into())
    }

    fn of_tree(e: TreeError) -> Failure {
        // Gone since the look: its own DELETE is on its way, and the next look will witness it.
        let class = if e.source.kind() == io::ErrorKind::NotFound { Class::InFlight } else { Class::Error };
        Failure::new(class, e.to_string())
    }

    fn of_read(op: &Op, e: &io::Error) -> Failure {
        Failure::new(Class::Error, format!("Cannot read {}: {e}", op.path))
    }

    pub fn of_store(e: StoreError) -> Failure {
        let outcome_unknown = e.outcome_unknown;
        let reason = e.to_string();
        let wait = if let Problem::TryLater(wait) = e.problem { wait } else { None };
        let (class, stop) = match e.problem {
            Problem::Stop(exit) => (Class::Error, Some(exit)),
            Problem::Busy => (Class::Busy, None),
            Problem::Vanished => (Class::InFlight, None),
            Problem::InTheWay => (Class::Kind, None),
            Problem::TryLater(_) | Problem::Unreadable | Problem::Unfit | Problem::Occupied => {
                (Class::Error, None)
            }
        };
        Failure { class, reason, stop, outcome_unknown, wait }
    }
}

#[cfg(test)]
mod tests {
    use shared::entry::Mask;

    use super::*;

    fn stat() -> Stat {
        Stat {
            kind: Kind::File,
            size: 1,
            mtime_ns: 0,
            ctime_ns: 0,
            btime_ns: None,
            ino: 7,
            mode: 0o644,
            uid: 0,
            gid: 0,
            nlink: 2,
            rdev: 0,
        }
    }

    fn row(object: &str, generation: u8) -> Row {
        let handle = Handle { kind: 1, bytes: vec![7, generation] };
        examine::made_row(&stat(), None, object.into(), Some(handle), 0)
    }

    fn op(path: &str, row: Option<Row>, action: Action) -> Op {
        let path = RelPath::parse(path.as_bytes()).unwrap();
        Op { root: 0, path, stat: stat(), row, action, mask: Mask::CREATE, seq: 1 }
    }

    #[test]
    fn a_name_whose_object_is_of_an_inode_that_is_gone_is_no_link_that_stands() {
        let unchanged = Done { row: row("new", 2), sent: false };
        let content = Action::Content { compare: true };
        let leader = [Outcome { op: op("a", Some(row("new", 2)), content), result: Ok(unchanged) }];
        let follower = |generation| {
            let to = Action::LinkTo(RelPath::parse(b"a").unwrap());
            sort_links(vec![op("p", Some(row("old", generation)), to)], &leader)
        };
        let reused = follower(1);
        assert_eq!((reused.make.len(), reused.stand.len()), (1, 0));
        let own = follower(2);
        assert_eq!((own.make.len(), own.stand.len()), (0, 1));
    }
}
