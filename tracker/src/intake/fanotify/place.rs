//! Marking a filesystem and checking that the mark is still there.

use std::io;

use rustix::io::Errno;
use shared::entry::Handle;
use shared::journal::RootState;
use shared::kill;

use super::Fanotify;
use super::adopt::root_marks;
use super::links::Links;
use crate::host::{Host, View as _};
use crate::intake::buffer::Buffer;
use crate::intake::keep::Keep;
use crate::intake::{Checked, PlaceError, RootSeen};
use crate::mounts::{self, Mount};
use crate::resolve::doubts::Doubts;
use crate::resolve::tree::{Anchors, Tree};
use crate::resolve::{MountError, Resolver};
use crate::roots::{Found, OpenRoot, OwnDir, TrackedRoot};

/// No unlimited queue: whoever holds it open would have no bound on memory. Overflow is a gap.
pub const GROUP_FLAGS: u32 = libc::FAN_CLASS_NOTIF
    | libc::FAN_REPORT_DFID_NAME
    | libc::FAN_REPORT_FID
    | libc::FAN_REPORT_TARGET_FID
    | libc::FAN_UNLIMITED_MARKS
    | libc::FAN_CLOEXEC
    | libc::FAN_NONBLOCK;

/// No *_SELF: they only double events that name a parent, and on overlayfs a lookup of what is deleted makes one.
pub const MARK_MASK: u64 = libc::FAN_CREATE
    | libc::FAN_DELETE
    | libc::FAN_MODIFY
    | libc::FAN_CLOSE_WRITE
    | libc::FAN_ATTRIB
    | libc::FAN_RENAME
    | libc::FAN_ONDIR;

impl<H: Host> Fanotify<H> {
    /// Marks the filesystem of the roots. Roots that are not there or not what they should be are left for later.
    pub fn place(
        host: &H,
        roots: &[TrackedRoot],
        own: &[OwnDir],
        keep: &mut Keep<H>,
    ) -> Result<(Fanotify<H>, Vec<RootSeen>), PlaceError> {
        let found = Roots::look(host, roots)?;
        let group = host.new_group()?;
        let marks = root_marks(roots, &found.handles());
        let seen = found.seen.clone();
        // In this order: group and buffer are kept before there is anything to lose.
        let mark_it = |keep: &mut Keep<H>, group: &H::Group, view: &H::View| {
            let buffer = keep
                .keep(group, &marks)
                .map_err(|source| PlaceError::Io { op: "make the intake buffer", source })?;
            host.mark(group, view).map_err(refused)?;
            kill::point("placing");
            Ok(buffer)
        };
        let mut source = found.into_source(host, group, roots, own, keep, mark_it)?;
        source.prove()?;
        Ok((source, seen))
    }

    pub(super) fn is_marked(&self) -> bool {
        self.host.fdinfo(&self.group).is_ok_and(|text| marks(&text, self.dev))
    }

    /// Whether every root is still what it was and marked.
    pub(super) fn look(&mut self) -> Checked {
        let all = self.host.mounts().unwrap_or_default();
        let (open, roots) = open_roots(&self.host, &self.roots, &all);
        let watched = |(root, open): (usize, &Option<OpenRoot<H::Dir>>)| match open {
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
}

/// By root.
type Open<D> = Vec<Option<OpenRoot<D>>>;

/// The roots of one filesystem, open while a source is made for them.
pub(super) struct Roots<D> {
    open: Open<D>,
    pub seen: Vec<RootSeen>,
    pub dev: u64,
    fs: String,
}

impl<D> Roots<D> {
    pub fn look<H: Host<Dir = D>>(host: &H, roots: &[TrackedRoot]) -> Result<Roots<D>, PlaceError> {
        let all = host.mounts().map_err(|source| PlaceError::Io { op: "read mountinfo", source })?;
        let (open, seen) = open_roots(host, roots, &all);
        let Some(first) = open.iter().flatten().next() else { return Err(PlaceError::Absent(seen)) };
        let (dev, fs) = (superblock(first, &all), first.identity.fs.clone());
        Ok(Roots { open, seen, dev, fs })
    }

    pub fn handles(&self) -> Vec<Option<Handle>> {
        self.open.iter().map(|o| o.as_ref().and_then(|o| o.handle.clone())).collect()
    }

    /// `buffer` marks the group, if it is a new one, and gives the buffer to read into.
    pub fn into_source<H: Host<Dir = D>>(
        self,
        host: &H,
        group: H::Group,
        roots: &[TrackedRoot],
        own: &[OwnDir],
        keep: &mut Keep<H>,
        buffer: impl FnOnce(&mut Keep<H>, &H::Group, &H::View) -> Result<Buffer<H::Memory>, PlaceError>,
    ) -> Result<Fanotify<H>, PlaceError> {
        let (dev, anchors) = (self.dev, self.handles());
        let view = host.view(dev).map_err(no_mount)?;
        let buffer = buffer(keep, &group, &view)?;
        let top = view.top().map_err(refused)?;
        let own = own.iter().filter(|o| o.superblock == dev).filter_map(|o| o.handle.clone()).collect();
        let mut resolver = Resolver::new(host.clone(), Tree::default());
        resolver.reset(dev, Anchors { top: Some(top), roots: anchors.clone(), own });
        Ok(Fanotify {
            host: host.clone(),
            group,
            roots: roots.to_vec(),
            dev,
            fs: self.fs,
            marks: root_marks(roots, &anchors),
            anchors,
            resolver,
            doubts: Doubts::default(),
            links: Links::default(),
            buffer: Some(buffer),
            queue_max: host.queue_max(),
            last_error: None,
            canaries: Vec::new(),
        })
    }
}

/// Every root that is there and lies on the filesystem of the first one; and what was seen of each.
pub(super) fn open_roots<H: Host>(
    host: &H,
    roots: &[TrackedRoot],
    all: &[Mount],
) -> (Open<H::Dir>, Vec<RootSeen>) {
    let mut dev = None;
    let mut open = Vec::new();
    let mut seen = Vec::new();
    for (root, tracked) in roots.iter().enumerate() {
        let (state, why, fd) = match tracked.look(host) {
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
pub fn superblock<D>(root: &OpenRoot<D>, all: &[Mount]) -> u64 {
    mounts::superblock(all, root.attachment.mount_id).unwrap_or(root.attachment.dev)
}

fn no_mount(e: MountError) -> PlaceError {
    match e {
        MountError::NotPrivate { ref hindrance, .. } if hindrance.passing => {
            PlaceError::Io { op: "open the whole filesystem", source: io::Error::other(e) }
        }
        MountError::NotWhole | MountError::NotPrivate { .. } => PlaceError::Refused { reason: e.to_string() },
        MountError::Mountinfo(source) => PlaceError::Io { op: "read mountinfo", source },
    }
}

/// What the kernel never does for this filesystem, user or version is a refusal. Whatever else fails may pass: to go
/// on with inotify then would be for ever.
pub(crate) fn refused(e: io::Error) -> PlaceError {
    let (name, why) = match Errno::from_io_error(&e) {
        Some(Errno::PERM) => ("EPERM", "fanotify needs CAP_SYS_ADMIN and CAP_DAC_READ_SEARCH"),
        Some(Errno::NODEV) => ("ENODEV", "this filesystem gives fanotify no identity, as FUSE does"),
        Some(Errno::OPNOTSUPP) => {
            ("EOPNOTSUPP", "this filesystem has no file handles for fanotify, as overlayfs by default")
        }
        Some(Errno::XDEV) => ("EXDEV", "a btrfs subvolume cannot be marked"),
        Some(Errno::INVAL) => ("EINVAL", "this kernel is older than 5.17"),
        Some(Errno::NOSYS) => ("ENOSYS", "this kernel has no fanotify"),
        _ => return PlaceError::Io { op: "use fanotify", source: e },
    };
    PlaceError::Refused { reason: format!("{why} ({name})") }
}

/// True if the fdinfo of a group shows a mark on the filesystem `dev` (proc_pid_fdinfo(5)).
pub(super) fn marks(fdinfo: &str, dev: u64) -> bool {
    // The kernel prints its own number, with 20 bits for the minor.
    let sdev = (u64::from(rustix::fs::major(dev)) << 20) | u64::from(rustix::fs::minor(dev));
    let text = format!("{sdev:x}");
    fdinfo
        .lines()
        // That of a single directory names its inode first.
        .filter_map(|line| line.strip_prefix("fanotify sdev:"))
        .any(|rest| rest.split_whitespace().next() == Some(text.as_str()))
}
