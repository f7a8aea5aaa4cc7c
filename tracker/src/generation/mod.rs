//! A gap over a btrfs root, worked off by what the filesystem itself remembers: every inode carries the number of the
//! transaction that last touched it, so that a search of the subvolume's tree gives what changed since a number that
//! was read while nothing was missing. Costs what changed, not what exists.

pub mod items;
mod paths;
mod sys;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::fs::MetadataExt as _;
use std::time::{Duration, Instant};

use shared::database::DatabaseError;
use shared::entry::{Cause, Mask, Scope};
use shared::journal::{Change, Commit, Generation, Journal, RootId};
use shared::limits;
use shared::path::RelPath;

use crate::roots::{Found, OpenRoot, OwnDir, TrackedRoot};
use items::{
    Damaged, FIRST_INODE, INODE_EXTREF, INODE_ITEM, INODE_REF, ITEM_BYTES_MAX, Inode, Items, Key, LAST_INODE,
    Name,
};
use paths::Paths;
use sys::Search;

/// Why a whole root has to be looked at.
#[derive(Debug, thiserror::Error)]
enum Whole {
    /// A filesystem without generations, or a gap that they cannot close.
    #[error("generations do not tell")]
    NotAsked,
    #[error("the last search was a moment ago")]
    TooSoon,
    #[error("{0}")]
    Unproven(&'static str),
    #[error("more than {} paths changed", limits::GENERATION_PATHS_MAX)]
    TooMany,
    #[error(transparent)]
    Damaged(#[from] Damaged),
    #[error("cannot {op}: {source}")]
    Io { op: &'static str, source: io::Error },
}

/// Puts what changed in the place of each gap over a whole root, where the filesystem can tell, and records from when
/// on it has to be asked the next time. The mark stands already: what changes from here on has its event. Returns for
/// people how each gap of a filesystem with generations is worked off. Without `rested` the gaps stay as they are.
pub fn work_off(
    commit: &mut Commit,
    roots: &[TrackedRoot],
    own: &[OwnDir],
    journal: &Journal,
    rested: bool,
) -> Vec<String> {
    let mut notes = Vec::new();
    for gap in std::mem::take(&mut commit.changes) {
        let whole = gap.scope == Scope::Subtree && gap.path.is_root() && gap.cause.is_gap();
        let root = roots.iter().find(|r| whole && r.id == gap.root && is_btrfs(r));
        let Some((root, Found::Ok(open))) = root.map(|r| (r, r.look())) else {
            commit.changes.push(gap);
            continue;
        };
        let now = now(&open);
        let recorded = journal.generation(root.id).ok().flatten();
        let void = recorded.map(|recorded| Generation { mount: Some(NO_MOUNT), ..recorded });
        commit.generations.extend(now.as_ref().ok().copied().or(void).map(|fresh| (root.id, fresh)));
        let begun = Instant::now();
        let found = now.and_then(|now| {
            let since = since(gap.cause, recorded, now)?;
            if !rested {
                return Err(Whole::TooSoon);
            }
            Ok((since, changes_since(root, &open, own, since)?))
        });
        match found {
            Ok((since, changes)) => {
                notes.push(format!(
                    "{}: {} paths changed since generation {since}, found in {} ms",
                    root.name,
                    changes.len(),
                    begun.elapsed().as_millis()
                ));
                commit.changes.extend(changes);
            }
            Err(why) => {
                if !matches!(why, Whole::NotAsked) {
                    notes.push(format!("{}: all of it, {why}", root.name));
                }
                commit.changes.push(gap);
            }
        }
    }
    notes
}

/// For a start without a gap: what an orderly end made last was all that was committed, and from now on there is more,
/// on the present mount.
pub fn bind(roots: &[TrackedRoot], journal: &mut Journal) -> Result<(), DatabaseError> {
    for (root, open) in present(roots) {
        journal.bind_generation(root.id, mount(&open).unwrap_or(NO_MOUNT))?;
    }
    Ok(())
}

/// At an orderly end: what was committed of these roots is put on their disk, so that a later mount has it. A root for
/// which that fails, or that is not there, is looked at as a whole after its next mount.
pub fn make_last(roots: &[TrackedRoot], journal: &mut Journal) {
    for (root, open) in present(roots) {
        let Some(mount) = mount(&open) else { continue };
        if let Err(e) = rustix::fs::syncfs(&open.fd) {
            tracing::warn!("cannot sync {}: {e}", root.path.display());
        } else if let Err(e) = journal.make_generation_last(root.id, mount) {
            tracing::warn!("{e}");
        }
    }
}

/// The roots of filesystems with generations, as far as they are there.
fn present(roots: &[TrackedRoot]) -> impl Iterator<Item = (&TrackedRoot, OpenRoot)> {
    roots.iter().filter(|root| is_btrfs(root)).filter_map(|root| match root.look() {
        Found::Ok(open) => Some((root, open)),
        Found::Not { .. } => None,
    })
}

/// Which mount of the filesystem this is: its directory in sysfs comes with the first mount and goes with the last, and
/// the kernel never gives its inode number again until the next boot. The numbers of mounts themselves would not do:
/// each start of a service with a view of its own has others.
fn mount(open: &OpenRoot) -> Option<u64> {
    let uuid = open.identity.uuid.as_ref()?;
    Some(std::fs::metadata(format!("/sys/fs/btrfs/{uuid}")).ok()?.ino())
}

/// What the kernel gives to none.
const NO_MOUNT: u64 = 0;

fn is_btrfs(root: &TrackedRoot) -> bool {
    root.expected.as_ref().is_some_and(|identity| identity.fs == "btrfs")
}

/// The subvolume, its root directory, and the transaction that the filesystem is in.
fn now(open: &OpenRoot) -> Result<Generation, Whole> {
    let io = |op| move |source| Whole::Io { op, source };
    let subvolume = sys::subvolume_uuid(open.fd.as_fd()).map_err(io("read the subvolume's UUID"))?;
    if subvolume == [0; 16] {
        return Err(Whole::Unproven("the subvolume has no UUID"));
    }
    let generation = sys::generation(open.fd.as_fd()).map_err(io("read the generation"))?;
    let mount = mount(open).ok_or(Whole::Unproven("its mount cannot be told from a later one"))?;
    Ok(Generation { subvolume, inode: open.identity.inode, generation, mount: Some(mount) })
}

/// From which generation on a search finds everything that the gap stands for. Only where the disk is the same, and
/// nothing happened but that events were lost or nobody listened.
fn since(cause: Cause, recorded: Option<Generation>, now: Generation) -> Result<u64, Whole> {
    use Cause::{Adoption, Boot, Damaged, DiskFull, Overflow, Poison, Start, Unresolved};
    if !matches!(cause, Start | Boot | Overflow | Unresolved | Damaged | Poison | DiskFull | Adoption) {
        return Err(Whole::NotAsked);
    }
    let Some(recorded) = recorded else { return Err(Whole::Unproven("no generation was recorded yet")) };
    if recorded.subvolume != now.subvolume {
        Err(Whole::Unproven("it is another subvolume than before"))
    } else if recorded.inode != now.inode {
        Err(Whole::Unproven("its top is another directory than before"))
    } else if recorded.mount.is_some() && recorded.mount != now.mount {
        Err(Whole::Unproven("it may have been mounted anew since, with less than it had"))
    } else if recorded.generation > now.generation {
        Err(Whole::Unproven("its generation is older than before"))
    } else {
        Ok(recorded.generation)
    }
}

/// What changed below a root since the recorded generation.
fn changes_since(
    root: &TrackedRoot,
    open: &OpenRoot,
    own: &[OwnDir],
    since: u64,
) -> Result<Vec<Change>, Whole> {
    let fd = open.fd.as_fd();
    // Changes of inodes stand in memory for a while before they stand in the tree.
    rustix::fs::syncfs(fd).map_err(|e| Whole::Io { op: "sync the filesystem", source: e.into() })?;
    let mut search = Search::new();
    let inodes = changed_inodes(&mut search, fd, since)?;
    let own = own.iter().filter(|o| o.dev == open.attachment.dev).map(|o| o.inode).collect();
    let mut paths = Paths::new(open.identity.inode, own, |inode| names_of(&mut search, fd, inode));
    let mut changes = Vec::new();
    for (number, inode) in inodes {
        let at = if inode.is_dir { paths.dir(number)?.into_iter().collect() } else { paths.names(number)? };
        let kept = at.into_iter().filter(|path| !root.rules.excludes(path, inode.is_dir));
        changes.extend(kept.map(|path| change(root.id, path, inode.is_dir)));
        if changes.len() > limits::GENERATION_PATHS_MAX {
            return Err(Whole::TooMany);
        }
    }
    Ok(changes)
}

/// A directory was touched because of its names, or of itself; what is in it speaks for itself.
fn change(root: RootId, path: RelPath, is_dir: bool) -> Change {
    let scope = if is_dir { Scope::Names } else { Scope::SelfOnly };
    Change { root, path, handle: None, scope, cause: Cause::Generation, mask: Mask::UNKNOWN }
}

/// The inodes that a transaction from `since` on touched, and that still have a name.
fn changed_inodes(
    search: &mut Search,
    fd: BorrowedFd<'_>,
    since: u64,
) -> Result<BTreeMap<u64, Inode>, Whole> {
    let mut changed = BTreeMap::new();
    let from = Key { objectid: FIRST_INODE, kind: 0, offset: 0 };
    let to = Key { objectid: LAST_INODE, kind: u8::MAX, offset: u64::MAX };
    each_item(search, fd, from, to, since, |item| {
        if item.key.kind == INODE_ITEM {
            let inode = items::inode(item.data)?;
            if inode.transid >= since && inode.nlink > 0 {
                changed.insert(item.key.objectid, inode);
            }
        }
        if changed.len() > limits::GENERATION_PATHS_MAX { Err(Whole::TooMany) } else { Ok(()) }
    })?;
    Ok(changed)
}

fn names_of(search: &mut Search, fd: BorrowedFd<'_>, inode: u64) -> Result<Vec<Name>, Whole> {
    let mut names = Vec::new();
    let from = Key { objectid: inode, kind: INODE_REF, offset: 0 };
    let to = Key { objectid: inode, kind: INODE_EXTREF, offset: u64::MAX };
    each_item(search, fd, from, to, 0, |item| {
        names.extend(items::names(&item)?);
        Ok(())
    })?;
    Ok(names)
}

fn each_item(
    search: &mut Search,
    fd: BorrowedFd<'_>,
    from: Key,
    to: Key,
    since: u64,
    mut each: impl FnMut(items::Item<'_>) -> Result<(), Whole>,
) -> Result<(), Whole> {
    let mut from = Some(from);
    while let Some(begin) = from.filter(|from| *from <= to) {
        let found = search.run(fd, begin, to, since);
        let (count, bytes) =
            found.map_err(|source| Whole::Io { op: "search the subvolume's tree", source })?;
        if count == 0 {
            break;
        }
        let mut last = begin;
        let mut items = Items::new(count, bytes);
        for item in &mut items {
            let item = item?;
            last = item.key;
            each(item)?;
        }
        // With room for any further item there is none.
        from = last.next().filter(|_| items.room() < ITEM_BYTES_MAX);
    }
    Ok(())
}

/// A number is recorded only when it is so old: an event may be late by as long as a process rests between its change
/// and its word of it.
const AGE: Duration = Duration::from_secs(5);

/// After a search the next one waits for so many times as long as that took.
const REST: i64 = 20;

/// Nothing is read from the kernel's queue during a search. Where more is lost meanwhile, one search must not follow
/// another without end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pace {
    until_ns: i64,
}

impl Pace {
    pub fn is_rested(&self, now_ns: i64) -> bool {
        now_ns >= self.until_ns
    }

    pub fn searched(&mut self, begun_ns: i64, ended_ns: i64) {
        self.until_ns = ended_ns + REST * (ended_ns - begun_ns);
    }
}

/// The generations that may be recorded because everything that happened before them is committed.
#[derive(Debug, Default)]
pub struct Generations {
    read: Vec<(RootId, Generation)>,
    read_ns: i64,
    /// Everything that was queued when they had their age has been read.
    drained: bool,
    ready: Vec<(RootId, Generation)>,
}

impl Generations {
    /// The queue was empty at this time.
    pub fn drained(&mut self, now_ns: i64) {
        self.drained |= now_ns.saturating_sub(self.read_ns) >= AGE.as_nanos() as i64;
    }

    /// Everything read is committed, and it is known what every event was about. May touch the roots' disk.
    pub fn complete(&mut self, roots: &[TrackedRoot], now_ns: i64) {
        if self.drained {
            self.ready = std::mem::take(&mut self.read);
        }
        if self.read.is_empty() {
            let fresh = present(roots).filter_map(|(root, open)| Some((root.id, now(&open).ok()?)));
            (self.read, self.read_ns, self.drained) = (fresh.collect(), now_ns, false);
        }
    }

    /// What the next commit may record; a gap in it has recorded something newer.
    pub fn take(&mut self, commit: &Commit) -> Vec<(RootId, Generation)> {
        let mut ready = std::mem::take(&mut self.ready);
        ready.retain(|(root, _)| commit.generations.iter().all(|(known, _)| known != root));
        ready
    }
}

#[cfg(test)]
mod tests;
