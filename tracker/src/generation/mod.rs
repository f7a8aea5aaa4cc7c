//! A gap over a btrfs root, worked off by what the filesystem itself remembers: every inode carries the number of the
//! transaction that last touched it, so that a search of the subvolume's tree gives what changed since a number that
//! was read while nothing was missing. Costs what changed, not what exists.

pub mod items;
mod paths;
pub(crate) mod search;
mod sys;

use std::io;
use std::time::Duration;

use shared::database::DatabaseError;
use shared::entry::{Cause, Scope};
use shared::journal::{Commit, Generation, Journal, RootId};
use shared::limits;

use crate::host::Host;
use crate::roots::{Found, OpenRoot, OwnDir, TrackedRoot};
use items::Damaged;

/// Why a whole root has to be looked at.
#[derive(Debug, thiserror::Error)]
pub enum Whole {
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
    host: &impl Host,
    commit: &mut Commit,
    roots: &[TrackedRoot],
    own: &[OwnDir],
    journal: &Journal,
    rested: bool,
) -> Vec<String> {
    let clock = host.clock();
    let mut notes = Vec::new();
    for gap in std::mem::take(&mut commit.changes) {
        let whole = gap.scope == Scope::Subtree && gap.path.is_root() && gap.cause.is_gap();
        let root = roots.iter().find(|r| whole && r.id == gap.root && is_btrfs(r));
        let Some((root, Found::Ok(open))) = root.map(|r| (r, r.look(host))) else {
            commit.changes.push(gap);
            continue;
        };
        let now = host.generation(&open);
        let recorded = journal.generation(root.id).ok().flatten();
        let void = recorded.map(|recorded| Generation { mount: Some(NO_MOUNT), ..recorded });
        commit.generations.extend(now.as_ref().ok().copied().or(void).map(|fresh| (root.id, fresh)));
        let begun = clock.boot_ns();
        let found = now.and_then(|now| {
            let since = since(gap.cause, recorded, now)?;
            if !rested {
                return Err(Whole::TooSoon);
            }
            Ok((since, host.changes_since(root, &open, own, since)?))
        });
        match found {
            Ok((since, changes)) => {
                notes.push(format!(
                    "{}: {} paths changed since generation {since}, found in {} ms",
                    root.name,
                    changes.len(),
                    (clock.boot_ns() - begun) / 1_000_000
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
pub fn bind(host: &impl Host, roots: &[TrackedRoot], journal: &mut Journal) -> Result<(), DatabaseError> {
    for (root, open) in present(host, roots) {
        journal.bind_generation(root.id, host.mount_number(&open).unwrap_or(NO_MOUNT))?;
    }
    Ok(())
}

/// At an orderly end: what was committed of these roots is put on their disk, so that a later mount has it. A root for
/// which that fails, or that is not there, is looked at as a whole after its next mount.
pub fn make_last(host: &impl Host, roots: &[TrackedRoot], journal: &mut Journal) {
    for (root, open) in present(host, roots) {
        let Some(mount) = host.mount_number(&open) else { continue };
        if let Err(e) = host.sync(&open.fd) {
            tracing::warn!("cannot sync {}: {e}", root.path.display());
        } else if let Err(e) = journal.make_generation_last(root.id, mount) {
            tracing::warn!("{e}");
        }
    }
}

/// The roots of filesystems with generations, as far as they are there.
fn present<'r, H: Host>(
    host: &'r H,
    roots: &'r [TrackedRoot],
) -> impl Iterator<Item = (&'r TrackedRoot, OpenRoot<H::Dir>)> {
    roots.iter().filter(|root| is_btrfs(root)).filter_map(|root| match root.look(host) {
        Found::Ok(open) => Some((root, open)),
        Found::Not { .. } => None,
    })
}

/// What the kernel gives to none.
const NO_MOUNT: u64 = 0;

fn is_btrfs(root: &TrackedRoot) -> bool {
    root.expected.as_ref().is_some_and(|identity| identity.fs == "btrfs")
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
    pub fn complete(&mut self, host: &impl Host, roots: &[TrackedRoot], now_ns: i64) {
        if self.drained {
            self.ready = std::mem::take(&mut self.read);
        }
        if self.read.is_empty() {
            let fresh = present(host, roots);
            let fresh = fresh.filter_map(|(root, open)| Some((root.id, host.generation(&open).ok()?)));
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
