//! The fanotify source: one group and one filesystem mark for all roots of a filesystem.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use shared::entry::{Cause, Handle, Mask, Scope};
use shared::journal::RootState;
use shared::limits;

use super::records::{self, Named, Record, Records};
use super::{Checked, EventSource, Kind, PlaceError, RootSeen, Taken, sys};
use crate::batch::Batch;
use crate::event_to_entry as entry;
use crate::mounts::{self, Mount};
use crate::resolve::doubts::{DoubtState, Doubts, Turn};
use crate::resolve::tree::{Anchors, Place};
use crate::resolve::{Lost, NameOf, OpenMount, Resolver};
use crate::roots::{Found, OpenRoot, OwnDir, TrackedRoot};

/// No unlimited queue: whoever holds it open would have no bound on memory. Overflow is a gap.
const GROUP_FLAGS: u32 = libc::FAN_CLASS_NOTIF
    | libc::FAN_REPORT_DFID_NAME
    | libc::FAN_REPORT_FID
    | libc::FAN_REPORT_TARGET_FID
    | libc::FAN_UNLIMITED_MARKS
    | libc::FAN_CLOEXEC
    | libc::FAN_NONBLOCK;

/// No *_SELF: they only double events that name a parent, and on overlayfs a lookup of what is deleted makes one.
const MARK_MASK: u64 = libc::FAN_CREATE
    | libc::FAN_DELETE
    | libc::FAN_MODIFY
    | libc::FAN_CLOSE_WRITE
    | libc::FAN_ATTRIB
    | libc::FAN_RENAME
    | libc::FAN_ONDIR;

/// More than the longest event: less room than this at the end of a read says nothing about the queue.
const EVENT_BYTES_MAX: usize = 4096;
/// FIONREAD counts this many bytes for each event, whatever its length (measured on 6.18).
const FIONREAD_BYTES_PER_EVENT: u64 = 24;
const QUEUE_MAX_FILE: &str = "/proc/sys/fs/fanotify/max_queued_events";
const QUEUE_MAX_DEFAULT: u64 = 16_384;

pub struct Fanotify {
    group: OwnedFd,
    roots: Vec<TrackedRoot>,
    /// Device number of the superblock; that of files differs from it on btrfs.
    dev: u64,
    fs: String,
    anchors: Vec<Option<Handle>>,
    resolver: Resolver,
    doubts: Doubts,
    buffer: Vec<u8>,
    filled: usize,
    queue_max: u64,
    last_error: Option<(i32, u32)>,
}

impl Fanotify {
    /// Marks the filesystem of the roots. Roots that are not there or not what they should be are left for later.
    pub fn place(roots: &[TrackedRoot], own: &[OwnDir]) -> Result<(Fanotify, Vec<RootSeen>), PlaceError> {
        let all = mounts::read().map_err(|source| PlaceError::Io { op: "read mountinfo", source })?;
        let (open, seen) = open_roots(roots, &all);
        let Some(first) = open.iter().flatten().next() else { return Err(PlaceError::Absent(seen)) };
        let dev = superblock(first, &all);
        let fs = first.identity.fs.clone();
        let group = sys::fanotify_init(GROUP_FLAGS).map_err(refused)?;
        let mount = OpenMount::open(dev).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => PlaceError::Refused { reason: partly_mounted(&fs) },
            _ => PlaceError::Io { op: "find a mount of the filesystem", source: e },
        })?;
        mark(&group, mount.fd())?;
        let top = mount.top().map_err(refused)?;
        // Without CAP_DAC_READ_SEARCH events still arrive, with handles nobody can open.
        sys::open_by_handle(mount.fd(), &top, libc::O_PATH).map_err(refused)?;
        let anchors: Vec<Option<Handle>> =
            open.iter().map(|o| o.as_ref().and_then(|o| o.handle.clone())).collect();
        let own = own.iter().filter(|o| o.superblock == dev).filter_map(|o| o.handle.clone()).collect();
        let mut resolver = Resolver::default();
        resolver.reset(dev, Anchors { top: Some(top), roots: anchors.clone(), own });
        let queue_max = std::fs::read_to_string(QUEUE_MAX_FILE).ok().and_then(|t| t.trim().parse().ok());
        let source = Fanotify {
            group,
            roots: roots.to_vec(),
            dev,
            fs,
            anchors,
            resolver,
            doubts: Doubts::default(),
            buffer: vec![0; limits::INTAKE_BATCH_BYTES],
            filled: 0,
            queue_max: queue_max.unwrap_or(QUEUE_MAX_DEFAULT),
            last_error: None,
        };
        Ok((source, seen))
    }

    fn is_marked(&self) -> bool {
        let path = format!("/proc/self/fdinfo/{}", self.group.as_raw_fd());
        std::fs::read_to_string(path).is_ok_and(|text| marks(&text, self.dev))
    }

    fn event(&mut self, record: &Record<'_>, batch: &mut Batch, read: u64) -> Result<(), Lost> {
        if let Some(error) = record.error {
            self.note_error(error, batch);
            return Ok(());
        }
        let mask = entry::mask_of(record.mask);
        let target = record.target.map(records::HandleRef::to_handle);
        let scope = entry::scope_of(mask, entry::is_subvolume(&self.fs, target.as_ref()));
        let mut made = false;
        for named in [record.from, record.at, record.to].into_iter().flatten() {
            made |= self.name(&named, target.as_ref(), mask, scope, batch, read)?;
        }
        if let (None, None, None, Some(target)) = (record.from, record.at, record.to, &target) {
            // Each link and unlink changes the link count, an event of its own without a name. A file that is gone
            // had its last name taken away by an event that has one.
            let link_count = mask == Mask::ATTRIB;
            made |= self.nameless(target, mask, scope, link_count, batch)?;
        }
        if let (true, Some(target)) = (mask.contains(Mask::ONDIR), target) {
            self.follow_directory(record, mask, target);
        }
        batch.dropped += u64::from(!made);
        Ok(())
    }

    /// The changes of one name. False if it is not ours; a doubt is ours.
    fn name(
        &mut self,
        named: &Named<'_>,
        target: Option<&Handle>,
        mask: Mask,
        scope: Scope,
        batch: &mut Batch,
        read: u64,
    ) -> Result<bool, Lost> {
        let dir = named.dir.to_handle();
        let only_content = !mask.intersects(Mask::CREATE | Mask::DELETE | Mask::RENAME);
        if let (true, Some(target)) = (only_content && entry::looks_nameless(named.name), target)
            && !self.resolver.has(&dir, named.name, target)
        {
            // A file that is gone lost each name it had in an event of its own. In a directory without a place
            // "gone" may be the disk failing. The other way round is no proof: a place may come from the cache.
            let has_place = self.resolver.place(&dir).is_ok();
            return self.nameless(target, mask, scope, has_place, batch);
        }
        match self.resolver.place(&dir) {
            Ok(place) => Ok(self.push(&place, named.name, mask, scope, batch)),
            // The link count of a directory that a rename replaced, above all, for which no deletion is ever told.
            // Whatever ended this directory took its name away, by a DELETE or a RENAME to it: the entry of that
            // name covers this, and all that happened inside before.
            Err(Lost::Gone) if named.name == b"." && mask.difference(Mask::ONDIR) == Mask::ATTRIB => {
                self.doubts.settle(&dir);
                Ok(false)
            }
            Err(Lost::Gone | Lost::Stale) => Ok(self.doubts.raise(dir, read)),
            Err(Lost::NoMount) => Err(Lost::NoMount),
        }
    }

    /// A file whose event has no usable name: made with O_TMPFILE, or reached by an NFS handle.
    fn nameless(
        &mut self,
        target: &Handle,
        mask: Mask,
        scope: Scope,
        stale_is_gone: bool,
        batch: &mut Batch,
    ) -> Result<bool, Lost> {
        match self.resolver.name_of(target)? {
            // A name it gets later comes with an event of its own, and so did the end of each it had.
            NameOf::None => Ok(false),
            NameOf::Stale if stale_is_gone => Ok(false),
            NameOf::Known { dir, name } => match self.resolver.place(&dir) {
                Ok(place) => Ok(self.push(&place, &name, mask, scope, batch)),
                Err(Lost::NoMount) => Err(Lost::NoMount),
                Err(Lost::Gone | Lost::Stale) => Ok(self.by_handle(target, mask, batch)),
            },
            NameOf::Stale | NameOf::Unknown => Ok(self.by_handle(target, mask, batch)),
        }
    }

    fn push(&self, place: &Place, name: &[u8], mask: Mask, scope: Scope, batch: &mut Batch) -> bool {
        let Place::In(spots) = place else { return false };
        let mut made = false;
        for change in entry::changes(&self.roots, spots, name, mask, scope) {
            batch.push(change);
            made = true;
        }
        made
    }

    fn by_handle(&self, target: &Handle, mask: Mask, batch: &mut Batch) -> bool {
        entry::by_handle(&self.roots, target, mask).for_each(|change| batch.push(change));
        true
    }

    /// Keeps the cache and the doubts right after an event of a directory. No event says where it lies now: the
    /// names in a RENAME may be older than those of the RENAME behind it, with which a later one was merged, and
    /// behind an overflow a later one may be missing.
    fn follow_directory(&mut self, record: &Record<'_>, mask: Mask, target: Handle) {
        if mask.contains(Mask::DELETE) {
            self.resolver.tree.remove(&target);
            self.doubts.bury(target);
        } else if record.to.is_some() {
            self.resolver.tree.detach(&target);
            self.doubts.settle(&target);
        }
    }

    fn note_error(&mut self, error: (i32, u32), batch: &mut Batch) {
        let known = self.last_error.replace(error).is_some_and(|last| last.0 == error.0);
        let text = format!(
            "the filesystem reports an error of its own: {} ({} times)",
            Errno::from_raw_os_error(error.0),
            error.1
        );
        if !known {
            tracing::error!("{text}");
        }
        batch.error = Some(text);
    }

    /// Everything remembered came from a stream that broke.
    fn forget(&mut self) {
        self.resolver.tree.clear();
        self.doubts.forget();
    }
}

impl EventSource for Fanotify {
    fn kind(&self) -> Kind {
        Kind::Fanotify
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.group.as_fd()
    }

    fn queued(&self) -> u64 {
        // An error would make a flush wait for nothing: the queue read to its end answers it too.
        rustix::io::ioctl_fionread(&self.group).map_or(u64::MAX, |n| n.div_ceil(FIONREAD_BYTES_PER_EVENT))
    }

    fn read(&mut self) -> io::Result<Option<Taken>> {
        let end = self.buffer.len().min(self.filled + limits::INTAKE_READ_BYTES);
        let room = &mut self.buffer[self.filled..end];
        let size = room.len();
        match rustix::io::read(&self.group, &mut *room) {
            Ok(0) | Err(Errno::AGAIN | Errno::INTR) => Ok(None),
            Ok(bytes) => {
                let events = records::count(&room[..bytes]);
                self.filled += bytes;
                Ok(Some(Taken { events, bytes, drained: size - bytes >= EVENT_BYTES_MAX }))
            }
            Err(e) => Err(e.into()),
        }
    }

    fn translate(&mut self, batch: &mut Batch, read: u64, now_ns: i64) {
        let buffer = std::mem::take(&mut self.buffer);
        for record in Records::new(&buffer[..self.filled]) {
            let lost = match &record {
                // Before any lookup: nothing else is known of this event.
                Ok(record) if record.is_overflow() => {
                    batch.overflows += 1;
                    Some(Cause::Overflow)
                }
                Ok(record) => self.event(record, batch, read).is_err().then_some(Cause::Unresolved),
                Err(damaged) => {
                    tracing::error!("{damaged}");
                    Some(Cause::Damaged)
                }
            };
            if let Some(cause) = lost {
                self.forget();
                batch.gap(&self.roots, cause);
            }
            if lost == Some(Cause::Unresolved) {
                // Nothing of this batch resolves, and the gap covers all of it.
                break;
            }
        }
        self.buffer = buffer;
        self.filled = 0;
        self.resolver.release();
        self.doubts.passed(read, self.queue_max, now_ns);
    }

    fn check(&mut self) -> Checked {
        let all = mounts::read().unwrap_or_default();
        let (open, roots) = open_roots(&self.roots, &all);
        let watched = |(root, open): (usize, &Option<OpenRoot>)| match open {
            Some(open) => {
                open.handle.is_some()
                    && open.handle == self.anchors[root]
                    && superblock(open, &all) == self.dev
            }
            None => true,
        };
        let intact = self.is_marked() && open.iter().enumerate().all(watched);
        Checked { intact, roots }
    }

    fn drained(&mut self, now_ns: i64) {
        self.doubts.drained(now_ns);
    }

    fn doubt_state(&self) -> DoubtState {
        self.doubts.state()
    }

    fn doubt_count(&self) -> usize {
        self.doubts.len()
    }

    fn doubt_turn(&mut self, now_ns: i64) -> Turn {
        self.doubts.turn(now_ns)
    }
}

/// Every root that is there and lies on the filesystem of the first one; and what was seen of each.
fn open_roots(roots: &[TrackedRoot], all: &[Mount]) -> (Vec<Option<OpenRoot>>, Vec<RootSeen>) {
    let mut dev = None;
    let mut open = Vec::new();
    let mut seen = Vec::new();
    for (root, tracked) in roots.iter().enumerate() {
        let (state, why, fd) = match tracked.look() {
            Found::Ok(o) if *dev.get_or_insert(superblock(&o, all)) == superblock(&o, all) => {
                (RootState::Ok, String::new(), Some(o))
            }
            Found::Ok(_) => {
                let why = "it lies on another filesystem than before; restart the tracker".to_owned();
                (RootState::Stacked, why, None)
            }
            Found::Not { state, why } => (state, why, None),
        };
        open.push(fd);
        seen.push(RootSeen { root, state, why });
    }
    (open, seen)
}

/// The device number of the superblock that a root lies on, by its mount.
pub fn superblock(root: &OpenRoot, all: &[Mount]) -> u64 {
    mounts::superblock(all, root.attachment.mount_id).unwrap_or(root.attachment.dev)
}

fn mark(group: &OwnedFd, on: BorrowedFd<'_>) -> Result<(), PlaceError> {
    let flags = libc::FAN_MARK_ADD | libc::FAN_MARK_FILESYSTEM;
    let with_errors = MARK_MASK | libc::FAN_FS_ERROR;
    sys::fanotify_mark(group.as_fd(), flags, with_errors, on)
        .or_else(|_| sys::fanotify_mark(group.as_fd(), flags, MARK_MASK, on))
        .map_err(refused)
}

fn partly_mounted(fs: &str) -> String {
    if fs == "btrfs" {
        "only subvolumes of this btrfs are mounted, and those cannot be marked (EXDEV)".to_owned()
    } else {
        "no mount shows the whole filesystem".to_owned()
    }
}

/// What the kernel never does for this filesystem, user or version is a refusal. Whatever else fails may pass: to go
/// on with inotify then would be for ever.
fn refused(e: io::Error) -> PlaceError {
    let (name, why) = match Errno::from_io_error(&e) {
        Some(Errno::PERM) => ("EPERM", "fanotify needs CAP_SYS_ADMIN and CAP_DAC_READ_SEARCH"),
        Some(Errno::NODEV) => ("ENODEV", "this filesystem gives fanotify no identity, as FUSE does"),
        Some(Errno::OPNOTSUPP) => {
            ("EOPNOTSUPP", "this filesystem has no file handles for fanotify, as overlayfs by default")
        }
        Some(Errno::XDEV) => ("EXDEV", "a btrfs subvolume cannot be marked"),
        Some(Errno::INVAL) => ("EINVAL", "this kernel is older than 5.17"),
        Some(Errno::NOSYS) => ("ENOSYS", "this kernel has no fanotify"),
        Some(Errno::MFILE) => {
            return PlaceError::Io { op: "use fanotify, fs.fanotify.max_user_groups is used up", source: e };
        }
        _ => return PlaceError::Io { op: "use fanotify", source: e },
    };
    PlaceError::Refused { reason: format!("{why} ({name})") }
}

/// True if the fdinfo of a group shows a mark on the filesystem `dev` (proc_pid_fdinfo(5)).
fn marks(fdinfo: &str, dev: u64) -> bool {
    // The kernel prints its own number, with 20 bits for the minor.
    let sdev = (u64::from(rustix::fs::major(dev)) << 20) | u64::from(rustix::fs::minor(dev));
    let text = format!("{sdev:x}");
    fdinfo
        .lines()
        .filter(|line| line.starts_with("fanotify "))
        .flat_map(str::split_whitespace)
        .any(|field| field.strip_prefix("sdev:") == Some(text.as_str()))
}

#[cfg(test)]
mod tests;
