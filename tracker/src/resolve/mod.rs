//! From a directory handle to paths in the roots: the cache tree first, the kernel where it does not know.

pub mod doubts;
mod open_mount;
pub mod tree;

use std::ffi::CString;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;

use hashbrown::HashMap;
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use shared::entry::Handle;

use crate::intake::records::HandleRef;
use crate::intake::sys;
pub use open_mount::{MountError, OpenMount};
use tree::{Anchors, Place, Tree};

/// How often a directory's name and parent are asked for while others move it about.
const LINK_TRIES: usize = 4;

/// Directories kept open for names in a batch.
const ASKED_MAX: usize = 64;

/// Why a directory has no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lost {
    /// The kernel does not know the handle any more (ESTALE, which EIO arrives as too), or has it deleted.
    Gone,
    /// The kernel knows it and gives it no place.
    Stale,
    /// No mount shows the whole filesystem any more.
    NoMount,
}

#[derive(Default)]
pub struct Resolver {
    pub tree: Tree,
    dev: u64,
    mount: Option<OpenMount>,
    /// Directories of this batch that were asked for names: many events of one come together.
    asked: HashMap<Handle, OwnedFd>,
}

impl Resolver {
    /// For a filesystem that was just marked.
    pub fn reset(&mut self, dev: u64, anchors: Anchors) {
        self.dev = dev;
        self.release();
        self.tree.reset(anchors);
    }

    /// Gives up the mount: to be called when a batch is done.
    pub fn release(&mut self) {
        self.asked.clear();
        self.mount = None;
    }

    fn mount(&mut self) -> Result<&OpenMount, Lost> {
        if self.mount.is_none() {
            self.mount = Some(OpenMount::open(self.dev).map_err(|_| Lost::NoMount)?);
        }
        self.mount.as_ref().ok_or(Lost::NoMount)
    }

    pub fn place(&mut self, dir: HandleRef<'_>) -> Result<Arc<Place>, Lost> {
        if let Some(place) = self.tree.locate(dir) {
            return Ok(place);
        }
        // Twice: a full cache forgets, and what the first answer was to be joined to with it.
        for _ in 0..2 {
            self.learn(&dir.to_handle())?;
            if let Some(place) = self.tree.locate(dir) {
                return Ok(place);
            }
        }
        Err(Lost::Stale)
    }

    /// Asks the kernel where a directory lies now, and all above it up to one that is known. That is later than the
    /// event: sound, because a rename since then is still queued and brings entries for both its names. A rename of
    /// any of them after its link was proven is in an event not yet read, which detaches it again.
    fn learn(&mut self, dir: &Handle) -> Result<(), Lost> {
        self.mount()?;
        let Resolver { tree, mount: Some(mount), .. } = self else { return Err(Lost::NoMount) };
        let links = match Climb::links(tree, mount, dir) {
            (Err(_), COVERED) if mount.uncover() => Climb::links(tree, mount, dir).0?,
            (links, _) => links?,
        };
        for link in links.into_iter().rev() {
            if !tree.put(&link.dir, &link.parent, &link.name) {
                break;
            }
        }
        Ok(())
    }

    /// The directory and a name that a file has now, by its own handle.
    pub fn name_of(&mut self, target: HandleRef<'_>) -> Result<NameOf, Lost> {
        let mount = self.mount()?;
        let target = target.to_handle();
        let fd = match sys::open_by_handle(mount.fd(), &target, libc::O_PATH) {
            Ok(fd) => fd,
            Err(e) if e.raw_os_error() == Some(libc::ESTALE) => return Ok(NameOf::Stale),
            Err(_) => return Ok(NameOf::Unknown),
        };
        let links = rustix::fs::fstat(&fd).map_or(u64::MAX, |s| s.st_nlink);
        if links == 0 {
            return Ok(NameOf::None);
        }
        let path = mount.path_of(fd.as_fd()).filter(|p| mount.leads_to(p, &target));
        let Some(mut path) = path else { return Ok(NameOf::Unknown) };
        let Some(name) = cut_name(&mut path) else { return Ok(NameOf::Unknown) };
        let dir = if path.is_empty() { b".".to_vec() } else { path };
        let dir = CString::new(dir).ok().and_then(|d| sys::name_to_handle(mount.fd(), &d).ok());
        Ok(dir.map_or(NameOf::Unknown, |dir| NameOf::Known { dir, name, only: links == 1 }))
    }

    /// True unless it is certain that a file has no more than one name.
    pub fn may_have_names(&mut self, target: HandleRef<'_>) -> Result<bool, Lost> {
        let mount = self.mount()?;
        Ok(match sys::open_by_handle(mount.fd(), &target.to_handle(), libc::O_PATH) {
            Ok(fd) => rustix::fs::fstat(&fd).map_or(true, |s| s.st_nlink > 1),
            Err(e) => e.raw_os_error() != Some(libc::ESTALE),
        })
    }

    /// Whether the directory has this name and it is this object.
    pub fn has(&mut self, dir: HandleRef<'_>, name: &[u8], target: HandleRef<'_>) -> Result<bool, Lost> {
        if !self.asked.contains_key(&dir) {
            let flags = libc::O_PATH | libc::O_DIRECTORY;
            let Ok(fd) = sys::open_by_handle(self.mount()?.fd(), &dir.to_handle(), flags) else {
                return Ok(false);
            };
            if self.asked.len() >= ASKED_MAX {
                self.asked.clear();
            }
            self.asked.insert(dir.to_handle(), fd);
        }
        let found = CString::new(name).ok().zip(self.asked.get(&dir));
        let found = found.and_then(|(name, dir)| sys::name_to_handle(dir.as_fd(), &name).ok());
        Ok(found.is_some_and(|found| HandleRef::from(&found) == target))
    }
}

/// The name of a directory in its parent.
#[derive(Debug, PartialEq, Eq)]
struct Link {
    dir: Handle,
    parent: Handle,
    name: Vec<u8>,
}

/// The way from a directory to the top, while others may move what it leads through.
struct Climb<'a> {
    mount: &'a OpenMount,
    fd: OwnedFd,
    handle: Handle,
    /// Read once for many links, so each is proven: a directory that moved meanwhile would give its name to another.
    path: Option<Vec<u8>>,
    /// A mount was met on the way.
    covered: bool,
}

/// Of a way that led through a directory which another mount covers.
const COVERED: bool = true;

impl<'a> Climb<'a> {
    /// All links up to what the tree knows; and whether the way led through a directory that another mount covers.
    fn links(tree: &Tree, mount: &'a OpenMount, dir: &Handle) -> (Result<Vec<Link>, Lost>, bool) {
        let mut climb = match Climb::start(mount, dir) {
            Ok(climb) => climb,
            Err(lost) => return (Err(lost), false),
        };
        let mut links = Vec::new();
        while !tree.is_top((&climb.handle).into()) && !tree.knows((&climb.handle).into()) {
            match climb.step() {
                Ok(link) => links.push(link),
                Err(lost) => return (Err(lost), climb.covered),
            }
        }
        (Ok(links), climb.covered)
    }

    fn start(mount: &'a OpenMount, dir: &Handle) -> Result<Climb<'a>, Lost> {
        let fd = match sys::open_by_handle(mount.fd(), dir, libc::O_PATH | libc::O_DIRECTORY) {
            Ok(fd) => fd,
            Err(e) if e.raw_os_error() == Some(libc::ESTALE) => return Err(Lost::Gone),
            Err(_) => return Err(Lost::Stale),
        };
        // Deleted, and held open by somebody.
        if rustix::fs::fstat(&fd).is_ok_and(|s| s.st_nlink == 0) {
            return Err(Lost::Gone);
        }
        let path = mount.path_of(fd.as_fd());
        Ok(Climb { mount, fd, handle: dir.clone(), path, covered: false })
    }

    /// One link, proven.
    fn step(&mut self) -> Result<Link, Lost> {
        for _ in 0..LINK_TRIES {
            let parent = up(self.fd.as_fd()).map_err(|e| {
                self.covered |= e == Errno::XDEV;
                Lost::Stale
            })?;
            let parent_handle = sys::name_to_handle(parent.as_fd(), c"").map_err(|_| Lost::Stale)?;
            let name = match self.path.as_mut() {
                Some(path) => cut_name(path),
                // Longer than PATH_MAX: the parent's listing has the name.
                None => find_name(parent.as_fd(), self.fd.as_fd(), &self.handle),
            };
            if let Some(name) = name
                && self.is_proven(parent.as_fd(), &name)
            {
                let dir = std::mem::replace(&mut self.handle, parent_handle.clone());
                self.fd = parent;
                if self.path.is_none() {
                    self.path = self.mount.path_of(self.fd.as_fd());
                }
                return Ok(Link { dir, parent: parent_handle, name });
            }
            self.path = self.mount.path_of(self.fd.as_fd());
        }
        Err(Lost::Stale)
    }

    /// True if the directory has this name in `parent`.
    fn is_proven(&mut self, parent: BorrowedFd<'_>, name: &[u8]) -> bool {
        let Ok(c_name) = CString::new(name) else { return false };
        if sys::name_to_handle(parent, &c_name).is_ok_and(|found| found == self.handle) {
            return true;
        }
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let open = rustix::fs::openat2(parent, &c_name, flags, Mode::empty(), ResolveFlags::NO_XDEV);
        self.covered |= open.err() == Some(Errno::XDEV);
        false
    }
}

/// What a file is called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NameOf {
    Known {
        dir: Handle,
        name: Vec<u8>,
        /// It has no other.
        only: bool,
    },
    /// It has no name at all: never had one, or lost the last.
    None,
    /// The kernel does not know it any more, unless the disk fails.
    Stale,
    /// It may have one.
    Unknown,
}

/// The parent directory, never across a mount: from what another one covers there is no way up.
fn up(fd: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat2(fd, c"..", flags, Mode::empty(), ResolveFlags::NO_XDEV)
}

/// Takes the last component off a path.
fn cut_name(path: &mut Vec<u8>) -> Option<Vec<u8>> {
    let at = path.iter().rposition(|&b| b == b'/');
    let name = path.split_off(at.map_or(0, |at| at + 1));
    if let Some(at) = at {
        path.truncate(at);
    }
    (!name.is_empty()).then_some(name)
}

/// The name of an open directory in its parent, by its inode number and then its handle.
fn find_name(parent: BorrowedFd<'_>, child: BorrowedFd<'_>, handle: &Handle) -> Option<Vec<u8>> {
    let inode = rustix::fs::fstat(child).ok()?.st_ino;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let listing = rustix::fs::openat(parent, c".", flags, Mode::empty()).ok()?;
    for entry in rustix::fs::Dir::read_from(&listing).ok()? {
        let entry = entry.ok()?;
        let name = entry.file_name();
        let is_dots = name == c"." || name == c"..";
        if !is_dots
            && entry.ino() == inode
            && sys::name_to_handle(parent, name).is_ok_and(|found| &found == handle)
        {
            return Some(name.to_bytes().to_vec());
        }
    }
    None
}

#[cfg(test)]
mod tests;
