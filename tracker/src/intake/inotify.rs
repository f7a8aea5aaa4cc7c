//! The inotify source: a watch on every directory of the roots, where fanotify is refused. A directory created or
//! moved in is an entry for all of it, because what happened inside before its watch was set is unknown.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;

use inotify::{EventMask, Inotify as Kernel, WatchDescriptor, WatchMask};
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use shared::entry::{Cause, Mask, Scope};
use shared::journal::{Change, RootState};
use shared::path::RelPath;

use super::watches::Watches;
use super::{Checked, EventSource, Kind, PlaceError, RootSeen, Taken};
use crate::batch::Batch;
use crate::host::Linux;
use crate::roots::{Found, OpenRoot, OwnDir, TrackedRoot};

const READ_BYTES: usize = 64 * 1024;
/// Directories that cannot be watched, before the whole root counts as such.
const BLIND_DIRS_MAX: usize = 1_000;
const LIMIT_REACHED: &str = "fs.inotify.max_user_watches is used up: directories are not watched, and each flush asks for a look at the whole root. Raise it with sysctl and restart the tracker";

/// One event, kept until the batch is translated.
struct Seen {
    wd: WatchDescriptor,
    mask: EventMask,
    name: Vec<u8>,
}

/// What is known not to be watched.
#[derive(Default)]
struct Blind {
    everything: Option<String>,
    dirs: BTreeSet<(usize, RelPath)>,
    /// What lies under a mount. It is watched once nothing covers it any more.
    covered: BTreeSet<(usize, RelPath)>,
    /// Watched again, but not looked at since.
    uncovered: BTreeSet<(usize, RelPath)>,
}

pub struct Inotify {
    kernel: Kernel,
    roots: Vec<TrackedRoot>,
    own: Vec<OwnDir>,
    watches: Watches<WatchDescriptor>,
    /// Watch of each root's directory, with its device and inode number.
    tops: Vec<Option<(WatchDescriptor, u64, u64)>>,
    events: Vec<Seen>,
    blind: Blind,
    buffer: Vec<u8>,
}

impl Inotify {
    /// Watches every directory of the roots that are there.
    pub fn place(roots: &[TrackedRoot], own: &[OwnDir]) -> Result<(Inotify, Vec<RootSeen>), PlaceError> {
        let (open, seen) = open_roots(roots);
        if open.iter().all(Option::is_none) {
            return Err(PlaceError::Absent(seen));
        }
        let mut source = Inotify {
            kernel: init()?,
            roots: roots.to_vec(),
            own: own.to_vec(),
            watches: Watches::default(),
            tops: vec![None; roots.len()],
            events: Vec::new(),
            blind: Blind::default(),
            buffer: vec![0; READ_BYTES],
        };
        source.watch_roots(&open);
        Ok((source, seen))
    }

    /// All roots first, then what lies below each: a walk that comes through an outer root to an inner one must know
    /// it, because the inner one's rules may let in what the outer one's leave out.
    fn watch_roots(&mut self, open: &[Option<OpenRoot>]) {
        let mut tops = Vec::new();
        for (root, open) in open.iter().enumerate() {
            let Some(open) = open else { continue };
            match self.watch(&open.fd) {
                Ok(wd) => {
                    self.watches.put_root(wd.clone(), root);
                    self.tops[root] = Some((wd.clone(), open.attachment.dev, open.identity.inode));
                    tops.push((&open.fd, wd));
                }
                Err(e) => self.blind_spot(&[(root, RelPath::root())], e),
            }
        }
        for (top, wd) in tops {
            self.watch_below(top, wd, RelPath::root());
        }
    }

    /// Everything anew, after events were lost.
    fn rebuild(&mut self) {
        match init() {
            Ok(kernel) => self.kernel = kernel,
            Err(e) => {
                self.blind.everything = Some(e.to_string());
                return;
            }
        }
        self.watches = Watches::default();
        self.tops.fill(None);
        self.events.clear();
        self.blind = Blind::default();
        let (open, _) = open_roots(&self.roots);
        self.watch_roots(&open);
    }

    /// Through /proc, so that what is listed afterwards is what is watched.
    fn watch(&self, dir: &OwnedFd) -> io::Result<WatchDescriptor> {
        let mask = WatchMask::CREATE
            | WatchMask::DELETE
            | WatchMask::MODIFY
            | WatchMask::CLOSE_WRITE
            | WatchMask::ATTRIB
            | WatchMask::MOVED_FROM
            | WatchMask::MOVED_TO
            | WatchMask::ONLYDIR;
        self.kernel.watches().add(format!("/proc/self/fd/{}", dir.as_raw_fd()), mask)
    }

    /// Watches all directories below an open and watched one. `above` is its path from `top`, which is the directory
    /// itself when `above` is empty.
    fn watch_below(&mut self, top: &OwnedFd, wd: WatchDescriptor, above: RelPath) {
        let dev = match rustix::fs::fstat(top) {
            Ok(stat) => stat.st_dev,
            Err(e) => return self.blind_at(&wd, &e.into()),
        };
        let mut todo = vec![(wd, above)];
        while let Some((wd, path)) = todo.pop() {
            if self.blind.everything.is_some() {
                return;
            }
            let names = match open_below(top, &path).and_then(|dir| directories_in(&dir)) {
                Ok(names) => names,
                Err(e) => {
                    self.blind_at(&wd, &e);
                    continue;
                }
            };
            for name in names {
                let Ok(child) = path.child(&name) else { continue };
                match self.watch_child(top, dev, &wd, &child, &name) {
                    Ok(Some(child_wd)) => todo.push((child_wd, child)),
                    Ok(None) => {}
                    Err(e) => self.blind_spot(&self.places(&wd, &name), e),
                }
            }
        }
    }

    /// Watches one directory and puts it below its parent; `None` if there is nothing to go into.
    fn watch_child(
        &mut self,
        top: &OwnedFd,
        dev: u64,
        parent: &WatchDescriptor,
        path: &RelPath,
        name: &[u8],
    ) -> io::Result<Option<WatchDescriptor>> {
        let excluded = |(root, path): &(usize, RelPath)| self.roots[*root].rules.excludes(path, true);
        if self.places(parent, name).iter().all(excluded) {
            return Ok(None);
        }
        let dir = open_below(top, path)?;
        let stat = rustix::fs::fstat(&dir)?;
        if stat.st_dev != dev || self.own.iter().any(|o| (o.dev, o.inode) == (stat.st_dev, stat.st_ino)) {
            return Ok(None);
        }
        let wd = self.watch(&dir)?;
        self.watches.put(wd.clone(), parent.clone(), name);
        Ok(Some(wd))
    }

    /// Where a name in a watched directory lies, in every root that holds it.
    fn places(&self, parent: &WatchDescriptor, name: &[u8]) -> Vec<(usize, RelPath)> {
        let spots = self.watches.spots(parent).into_iter();
        spots.filter_map(|s| Some((s.root, s.path.child(name).ok()?))).collect()
    }

    fn blind_at(&mut self, wd: &WatchDescriptor, error: &io::Error) {
        let at: Vec<_> = self.watches.spots(wd).into_iter().map(|s| (s.root, s.path)).collect();
        self.blind_spot(&at, io::Error::new(error.kind(), error.to_string()));
    }

    /// A directory that cannot be watched. One that is gone needs no watch: its event follows.
    fn blind_spot(&mut self, at: &[(usize, RelPath)], error: io::Error) {
        match Errno::from_io_error(&error) {
            // What is no directory any more is none either.
            Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
            Some(Errno::XDEV) => self.blind.covered.extend(at.iter().cloned()),
            // A want of the moment: the next check places all watches anew, with a gap.
            Some(Errno::MFILE | Errno::NFILE | Errno::NOMEM) => {
                at.iter().for_each(|(root, _)| self.tops[*root] = None);
            }
            Some(Errno::NOSPC) => self.blind.everything = Some(LIMIT_REACHED.to_owned()),
            _ => {
                if error.kind() != io::ErrorKind::NotFound {
                    self.blind.dirs.extend(at.iter().cloned());
                }
                if self.blind.dirs.len() > BLIND_DIRS_MAX {
                    self.blind.everything =
                        Some(format!("more than {BLIND_DIRS_MAX} directories cannot be watched: {error}"));
                }
            }
        }
    }

    /// Watches what a mount covered before, and remembers that nobody saw what had happened there.
    fn watch_uncovered(&mut self, open: &[Option<OpenRoot>]) {
        for (root, path) in std::mem::take(&mut self.blind.covered) {
            let Some(top) = &open[root] else {
                self.blind.covered.insert((root, path));
                continue;
            };
            let found = match open_below(&top.fd, &path) {
                Err(e) if Errno::from_io_error(&e) == Some(Errno::XDEV) => {
                    self.blind.covered.insert((root, path));
                    continue;
                }
                found => found.and_then(|_| self.watch_again(root, &path, top)),
            };
            if found.is_err() {
                // It is not where it was: all watches are placed anew, with a gap.
                self.tops[root] = None;
            }
            self.blind.uncovered.insert((root, path));
        }
    }

    fn watch_again(&mut self, root: usize, path: &RelPath, top: &OpenRoot) -> io::Result<()> {
        let (parent, name) = path.parent().zip(path.name()).ok_or(io::ErrorKind::InvalidInput)?;
        let (wd, _, _) = self.tops[root].as_ref().ok_or(io::ErrorKind::NotFound)?;
        let wd = self.watches.find(wd, &parent).ok_or(io::ErrorKind::NotFound)?;
        if let Some(child) = self.watch_child(&top.fd, top.attachment.dev, &wd, path, name)? {
            self.watch_below(&top.fd, child, path.clone());
        }
        Ok(())
    }

    fn gap_uncovered(&mut self, batch: &mut Batch) {
        for (root, path) in std::mem::take(&mut self.blind.uncovered) {
            batch.push(Change { path, ..Change::gap(self.roots[root].id, Cause::Remount) });
        }
    }

    fn event(&mut self, seen: &Seen, moved: &mut Vec<WatchDescriptor>, batch: &mut Batch) {
        if seen.mask.contains(EventMask::IGNORED) {
            self.watches.remove(&seen.wd);
            return;
        }
        let mask = mask_of(seen.mask);
        batch.kinds.count(mask);
        let name: &[u8] = if seen.name.is_empty() { b"." } else { &seen.name };
        // Of a directory that left the roots there is none. If it comes back, the entry of the name it comes back to
        // is behind this event, and for all of it.
        let spots = self.watches.spots(&seen.wd);
        let is_dir = mask.contains(Mask::ONDIR) && !seen.name.is_empty();
        if is_dir && seen.mask.intersects(EventMask::MOVED_FROM | EventMask::DELETE) {
            moved.extend(self.watches.detach(&seen.wd, name));
        }
        if is_dir && seen.mask.intersects(EventMask::MOVED_TO | EventMask::CREATE) {
            self.watch_new(&seen.wd, &spots, name);
        }
        let whole = is_dir && mask.intersects(Mask::CREATE | Mask::DELETE | Mask::RENAME);
        let scope = if whole { Scope::Subtree } else { Scope::SelfOnly };
        let before = batch.len();
        for spot in &spots {
            batch.push_name(&self.roots[spot.root], &spot.path, name, mask, scope);
        }
        batch.dropped += u64::from(batch.len() == before && spots.is_empty());
    }

    /// Watches a directory that came to a name, before its entry is committed.
    fn watch_new(&mut self, parent: &WatchDescriptor, spots: &[crate::resolve::tree::Spot], name: &[u8]) {
        let mut not_looked_at = Vec::new();
        let mut failed = None;
        // From the outermost root on; where that one shows something else just then, another may show the directory.
        for spot in spots.iter().rev() {
            let Ok(path) = spot.path.child(name) else { return };
            let Found::Ok(open) = self.roots[spot.root].look(&Linux::default()) else {
                not_looked_at.push(spot.root);
                continue;
            };
            match self.watch_child(&open.fd, open.attachment.dev, parent, &path, name) {
                Ok(Some(wd)) => return self.watch_below(&open.fd, wd, path),
                Ok(None) => return,
                Err(e) => failed = Some(e),
            }
        }
        // It may come back with the directory in it: the next check then places all watches anew, with a gap.
        not_looked_at.into_iter().for_each(|root| self.tops[root] = None);
        if let Some(e) = failed {
            self.blind_spot(&self.places(parent, name), e);
        }
    }

    /// Watches on what moved out of the roots are given up.
    fn give_up(&mut self, moved: Vec<WatchDescriptor>) {
        for wd in moved {
            if !self.watches.is_loose(&wd) {
                continue;
            }
            for gone in self.watches.remove_tree(&wd) {
                if let Err(e) = self.kernel.watches().remove(gone) {
                    tracing::trace!("a watch was gone already: {e}");
                }
            }
        }
    }
}

impl EventSource for Inotify {
    fn kind(&self) -> Kind {
        Kind::Inotify
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.kernel.as_fd())
    }

    /// Unknown: only the queue read to its end tells.
    fn queued(&self) -> u64 {
        u64::MAX
    }

    fn read(&mut self) -> io::Result<Option<Taken>> {
        let events = match self.kernel.read_events(&mut self.buffer) {
            Ok(events) => events,
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                return Ok(None);
            }
            Err(e) => return Err(e),
        };
        let before = self.events.len();
        self.events.extend(events.map(|e| Seen {
            wd: e.wd,
            mask: e.mask,
            name: e.name.map(|n| n.as_bytes().to_vec()).unwrap_or_default(),
        }));
        let new = &self.events[before..];
        let bytes = new.iter().map(|e| size_of::<Seen>() + e.name.len()).sum();
        Ok(Some(Taken { events: new.len() as u64, bytes, drained: false }))
    }

    fn translate(&mut self, batch: &mut Batch, _read: u64, _now_ns: i64) {
        let mut moved = Vec::new();
        for seen in std::mem::take(&mut self.events) {
            if seen.mask.contains(EventMask::Q_OVERFLOW) {
                // The watches stand before the gap is committed, and it covers the rest of this batch.
                self.rebuild();
                batch.overflows += 1;
                batch.gap(&self.roots, Cause::Overflow);
                moved.clear();
                break;
            }
            self.event(&seen, &mut moved, batch);
        }
        self.give_up(moved);
        self.gap_uncovered(batch);
        batch.error.clone_from(&self.blind.everything);
    }

    fn cached_dirs(&self) -> usize {
        self.watches.len()
    }

    fn check(&mut self) -> Checked {
        let (open, roots) = open_roots(&self.roots);
        self.watch_uncovered(&open);
        let watched = |(root, open): (usize, &Option<OpenRoot>)| match open {
            None => true,
            Some(open) => self.tops[root].as_ref().is_some_and(|(wd, dev, inode)| {
                self.watches.contains(wd) && (*dev, *inode) == (open.attachment.dev, open.identity.inode)
            }),
        };
        // Without any watch to be had, trying again at each probe would only walk the disk.
        let intact = self.blind.everything.is_some() || open.iter().enumerate().all(watched);
        Checked { intact, roots }
    }

    /// What a mount covers can only be seen to be free by a look.
    fn is_steady(&self) -> bool {
        let watched = |(wd, ..): &(WatchDescriptor, u64, u64)| self.watches.contains(wd);
        self.blind.covered.is_empty() && self.tops.iter().all(|top| top.as_ref().is_some_and(watched))
    }

    /// Until it can be watched, what is not watched is looked at anew for each flush.
    fn unseen(&mut self, batch: &mut Batch) {
        self.gap_uncovered(batch);
        if let Some(why) = &self.blind.everything {
            batch.gap(&self.roots, Cause::Unresolved);
            batch.error = Some(why.clone());
            return;
        }
        for (root, path) in &self.blind.dirs {
            let gap = Change::gap(self.roots[*root].id, Cause::Unresolved);
            batch.push(Change { path: path.clone(), ..gap });
        }
        if let Some((root, path)) = self.blind.dirs.first() {
            let (name, count) = (&self.roots[*root].name, self.blind.dirs.len());
            batch.error = Some(format!("{count} directories cannot be watched, the first in {name}: {path}"));
        }
    }
}

fn init() -> Result<Kernel, PlaceError> {
    Kernel::init().map_err(|source| PlaceError::Io { op: "start inotify", source })
}

fn open_roots(roots: &[TrackedRoot]) -> (Vec<Option<OpenRoot>>, Vec<RootSeen>) {
    let look = |(root, tracked): (usize, &TrackedRoot)| match tracked.look(&Linux::default()) {
        Found::Ok(open) => (Some(open), RootSeen { root, state: RootState::Ok, why: String::new() }),
        Found::Not { state, why } => (None, RootSeen { root, state, why }),
    };
    roots.iter().enumerate().map(look).unzip()
}

/// Never through a link, never onto another mount.
fn open_below(top: &OwnedFd, path: &RelPath) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let path = if path.is_root() { std::path::Path::new(".") } else { path.as_path() };
    Ok(rustix::fs::openat2(top, path, flags, Mode::empty(), resolve)?)
}

fn directories_in(dir: &OwnedFd) -> io::Result<Vec<Vec<u8>>> {
    let mut names = Vec::new();
    for found in rustix::fs::Dir::read_from(dir)? {
        let found = found?;
        let name = found.file_name().to_bytes();
        // Where the type is not told, opening it as a directory will.
        let may_be = matches!(found.file_type(), FileType::Directory | FileType::Unknown);
        if may_be && name != b"." && name != b".." {
            names.push(name.to_vec());
        }
    }
    Ok(names)
}

fn mask_of(inotify: EventMask) -> Mask {
    let pairs = [
        (EventMask::CREATE, Mask::CREATE),
        (EventMask::DELETE, Mask::DELETE),
        (EventMask::MODIFY, Mask::MODIFY),
        (EventMask::CLOSE_WRITE, Mask::CLOSE_WRITE),
        (EventMask::ATTRIB, Mask::ATTRIB),
        (EventMask::MOVED_FROM, Mask::RENAME),
        (EventMask::MOVED_TO, Mask::RENAME),
        (EventMask::ISDIR, Mask::ONDIR),
    ];
    let known = pairs.into_iter().filter(|(bit, _)| inotify.contains(*bit));
    known.fold(Mask::empty(), |all, (_, mask)| all | mask)
}

#[cfg(test)]
mod tests;
