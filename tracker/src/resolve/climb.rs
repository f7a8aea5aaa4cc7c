//! What a view of a whole filesystem answers by handles, from the kernel.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use shared::entry::Handle;

use super::{Link, Lost, NameOf, OpenMount};
use crate::host::View;
use crate::intake::records::HandleRef;
use crate::intake::sys;

/// How often a directory's name and parent are asked for while others move it about.
const LINK_TRIES: usize = 4;

/// Directories kept open for names in a batch.
const ASKED_MAX: usize = 64;

impl View for OpenMount {
    /// Without CAP_DAC_READ_SEARCH events still arrive, with handles nobody can open.
    fn top(&self) -> io::Result<Handle> {
        let top = OpenMount::top(self)?;
        sys::open_by_handle(self.fd(), &top, libc::O_PATH)?;
        Ok(top)
    }

    fn links(&mut self, dir: &Handle, is_known: impl Fn(HandleRef<'_>) -> bool) -> Result<Vec<Link>, Lost> {
        match Climb::links(self, dir, &is_known) {
            (Err(_), COVERED) if self.uncover() => Climb::links(self, dir, &is_known).0,
            (links, _) => links,
        }
    }

    fn name_of(&mut self, target: &Handle) -> NameOf {
        let fd = match sys::open_by_handle(self.fd(), target, libc::O_PATH) {
            Ok(fd) => fd,
            Err(e) if e.raw_os_error() == Some(libc::ESTALE) => return NameOf::Stale,
            Err(_) => return NameOf::Unknown,
        };
        let links = rustix::fs::fstat(&fd).map_or(u64::MAX, |s| s.st_nlink);
        if links == 0 {
            return NameOf::None;
        }
        let path = self.path_of(fd.as_fd()).filter(|p| self.leads_to(p, target));
        let Some(mut path) = path else { return NameOf::Unknown };
        let Some(name) = cut_name(&mut path) else { return NameOf::Unknown };
        let dir = if path.is_empty() { b".".to_vec() } else { path };
        let dir = CString::new(dir).ok().and_then(|d| sys::name_to_handle(self.fd(), &d).ok());
        dir.map_or(NameOf::Unknown, |dir| NameOf::Known { dir, name, only: links == 1 })
    }

    fn may_have_names(&mut self, target: &Handle) -> bool {
        match sys::open_by_handle(self.fd(), target, libc::O_PATH) {
            Ok(fd) => rustix::fs::fstat(&fd).map_or(true, |s| s.st_nlink > 1),
            Err(e) => e.raw_os_error() != Some(libc::ESTALE),
        }
    }

    fn has(&mut self, dir: HandleRef<'_>, name: &[u8], target: HandleRef<'_>) -> bool {
        if !self.asked.contains_key(&dir) {
            let flags = libc::O_PATH | libc::O_DIRECTORY;
            let Ok(fd) = sys::open_by_handle(self.fd(), &dir.to_handle(), flags) else { return false };
            if self.asked.len() >= ASKED_MAX {
                self.asked.clear();
            }
            self.asked.insert(dir.to_handle(), fd);
        }
        let found = CString::new(name).ok().zip(self.asked.get(&dir));
        let found = found.and_then(|(name, dir)| sys::name_to_handle(dir.as_fd(), &name).ok());
        found.is_some_and(|found| HandleRef::from(&found) == target)
    }
}

/// The way from a directory to the top, while others may move what it leads through.
pub(super) struct Climb<'a> {
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
    /// All links up to what is known; and whether the way led through a directory that another mount covers.
    fn links(
        mount: &'a OpenMount,
        dir: &Handle,
        is_known: &impl Fn(HandleRef<'_>) -> bool,
    ) -> (Result<Vec<Link>, Lost>, bool) {
        let mut climb = match Climb::start(mount, dir) {
            Ok(climb) => climb,
            Err(lost) => return (Err(lost), false),
        };
        let mut links = Vec::new();
        while !is_known((&climb.handle).into()) {
            match climb.step() {
                Ok(link) => links.push(link),
                Err(lost) => return (Err(lost), climb.covered),
            }
        }
        (Ok(links), climb.covered)
    }

    pub(super) fn start(mount: &'a OpenMount, dir: &Handle) -> Result<Climb<'a>, Lost> {
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
    pub(super) fn step(&mut self) -> Result<Link, Lost> {
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

/// The parent directory, never across a mount: from what another one covers there is no way up.
fn up(fd: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat2(fd, c"..", flags, Mode::empty(), ResolveFlags::NO_XDEV)
}

/// Takes the last component off a path.
pub(super) fn cut_name(path: &mut Vec<u8>) -> Option<Vec<u8>> {
    let at = path.iter().rposition(|&b| b == b'/');
    let name = path.split_off(at.map_or(0, |at| at + 1));
    if let Some(at) = at {
        path.truncate(at);
    }
    (!name.is_empty()).then_some(name)
}

/// The name of an open directory in its parent, by its inode number and then its handle.
pub(super) fn find_name(parent: BorrowedFd<'_>, child: BorrowedFd<'_>, handle: &Handle) -> Option<Vec<u8>> {
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
