//! From a directory handle to paths in the roots: the cache tree first, the kernel where it does not know.

pub mod doubts;
pub mod tree;

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, StatxFlags};
use rustix::io::Errno;
use shared::entry::Handle;

use crate::intake::sys;
use crate::mounts;
use crate::roots;
use tree::{Anchors, Place, Tree};

/// What `readlink` of /proc/self/fd adds to the path of what is deleted, and what a real name may end in too.
const DELETED: &[u8] = b" (deleted)";

/// Why a directory has no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lost {
    /// The kernel does not know the handle any more (ESTALE, which EIO arrives as too), or gives it no name.
    Stale,
    /// No mount shows the whole filesystem any more.
    NoMount,
}

/// A mount of the whole filesystem. Open only while a batch is resolved: it makes umount(8) fail.
#[derive(Debug)]
pub struct OpenMount {
    fd: OwnedFd,
    point: Vec<u8>,
}

impl OpenMount {
    /// Opens a mount of the whole superblock `dev` and checks that it is the one that mountinfo names, not one on
    /// top of it.
    pub fn open(dev: u64) -> io::Result<OpenMount> {
        let all = mounts::read()?;
        for mount in mounts::whole(&all, dev) {
            let Ok(fd) = roots::open_dir(&mount.point) else { continue };
            let wanted = StatxFlags::BASIC_STATS | StatxFlags::MNT_ID;
            let Ok(stat) = rustix::fs::statx(&fd, c"", AtFlags::EMPTY_PATH, wanted) else { continue };
            if stat.stx_mnt_id == mount.id {
                return Ok(OpenMount { fd, point: mount.point.as_os_str().as_bytes().to_vec() });
            }
        }
        Err(io::Error::new(io::ErrorKind::NotFound, "no mount shows the whole filesystem"))
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    pub fn top(&self) -> io::Result<Handle> {
        sys::name_to_handle(self.fd(), c"")
    }

    /// The path within the filesystem of an open file; `None` if it is too long or lies nowhere.
    fn path_of(&self, fd: BorrowedFd<'_>) -> Option<Vec<u8>> {
        let link = format!("/proc/self/fd/{}", fd.as_raw_fd());
        let path = std::fs::read_link(link).ok()?.into_os_string().into_vec();
        let below = if self.point == b"/" { &path[..] } else { path.strip_prefix(self.point.as_slice())? };
        below.strip_prefix(b"/").map(<[u8]>::to_vec)
    }

    /// True if this path leads to this very object.
    fn leads_to(&self, path: &[u8], handle: &Handle) -> bool {
        let Ok(path) = CString::new(path) else { return false };
        sys::name_to_handle(self.fd(), &path).is_ok_and(|found| &found == handle)
    }
}

#[derive(Default)]
pub struct Resolver {
    pub tree: Tree,
    dev: u64,
    mount: Option<OpenMount>,
}

impl Resolver {
    /// For a filesystem that was just marked.
    pub fn reset(&mut self, dev: u64, anchors: Anchors) {
        self.dev = dev;
        self.mount = None;
        self.tree.reset(anchors);
    }

    /// Gives up the mount: to be called when a batch is done.
    pub fn release(&mut self) {
        self.mount = None;
    }

    fn mount(&mut self) -> Result<&OpenMount, Lost> {
        if self.mount.is_none() {
            self.mount = Some(OpenMount::open(self.dev).map_err(|_| Lost::NoMount)?);
        }
        self.mount.as_ref().ok_or(Lost::NoMount)
    }

    pub fn place(&mut self, dir: &Handle) -> Result<Place, Lost> {
        match self.tree.locate(dir) {
            Place::Unknown => {
                self.learn(dir)?;
                match self.tree.locate(dir) {
                    Place::Unknown => Err(Lost::Stale),
                    known => Ok(known),
                }
            }
            known => Ok(known),
        }
    }

    /// Asks the kernel where a directory lies now, and all above it up to one that is known. That is later than the
    /// event: sound, because a rename since then is still queued and brings entries for both its names.
    fn learn(&mut self, dir: &Handle) -> Result<(), Lost> {
        let tree_top = |tree: &Tree, h: &Handle| tree.is_top(h) || tree.knows(h);
        self.mount()?;
        let Resolver { tree, mount: Some(mount), .. } = self else { return Err(Lost::NoMount) };
        let mut fd = sys::open_by_handle(mount.fd(), dir, libc::O_PATH | libc::O_DIRECTORY)
            .map_err(|_| Lost::Stale)?;
        let mut handle = dir.clone();
        let mut path = mount.path_of(fd.as_fd());
        if path.as_ref().is_some_and(|p| p.ends_with(DELETED) && !mount.leads_to(p, &handle)) {
            return Err(Lost::Stale);
        }
        let mut chain: Vec<(Handle, Vec<u8>)> = Vec::new();
        while !tree_top(tree, &handle) {
            let parent = up(fd.as_fd()).map_err(|_| Lost::Stale)?;
            let parent_handle = sys::name_to_handle(parent.as_fd(), c"").map_err(|_| Lost::Stale)?;
            let name = match path.as_mut() {
                Some(path) => cut_name(path).ok_or(Lost::Stale)?,
                // Longer than PATH_MAX: the parent's listing has the name.
                None => find_name(parent.as_fd(), fd.as_fd(), &handle).ok_or(Lost::Stale)?,
            };
            chain.push((handle, name));
            (fd, handle) = (parent, parent_handle);
            if path.is_none() {
                path = mount.path_of(fd.as_fd());
            }
        }
        let mut parent = handle;
        for (handle, name) in chain.into_iter().rev() {
            if !tree.put(&handle, &parent, &name) {
                return Err(Lost::Stale);
            }
            parent = handle;
        }
        Ok(())
    }

    /// The directory and name that a file has now, by its own handle.
    pub fn name_of(&mut self, target: &Handle) -> Result<NameOf, Lost> {
        let mount = self.mount()?;
        let fd = match sys::open_by_handle(mount.fd(), target, libc::O_PATH) {
            Ok(fd) => fd,
            Err(e) if e.raw_os_error() == Some(libc::ESTALE) => return Ok(NameOf::Stale),
            Err(_) => return Ok(NameOf::Unknown),
        };
        if rustix::fs::fstat(&fd).is_ok_and(|s| s.st_nlink == 0) {
            return Ok(NameOf::None);
        }
        let path = mount.path_of(fd.as_fd()).filter(|p| mount.leads_to(p, target));
        let Some(mut path) = path else { return Ok(NameOf::Unknown) };
        let Some(name) = cut_name(&mut path) else { return Ok(NameOf::Unknown) };
        let dir = if path.is_empty() { b".".to_vec() } else { path };
        let dir = CString::new(dir).ok().and_then(|d| sys::name_to_handle(mount.fd(), &d).ok());
        Ok(dir.map_or(NameOf::Unknown, |dir| NameOf::Known { dir, name }))
    }

    /// True if the directory has this name and it is this object.
    pub fn has(&mut self, dir: &Handle, name: &[u8], target: &Handle) -> bool {
        let Ok(mount) = self.mount() else { return false };
        let Ok(fd) = sys::open_by_handle(mount.fd(), dir, libc::O_PATH | libc::O_DIRECTORY) else {
            return false;
        };
        let Ok(name) = CString::new(name) else { return false };
        sys::name_to_handle(fd.as_fd(), &name).is_ok_and(|found| &found == target)
    }
}

/// What a file is called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NameOf {
    Known {
        dir: Handle,
        name: Vec<u8>,
    },
    /// It has no name at all: never had one, or lost the last.
    None,
    /// The kernel does not know it any more, unless the disk fails.
    Stale,
    /// It may have one.
    Unknown,
}

/// The parent directory, never across a mount: what another mount covers has no way up here.
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
mod tests {
    use super::*;

    #[test]
    fn names_are_cut_off_from_the_end() {
        let mut path = b"a/b c/d".to_vec();
        assert_eq!(cut_name(&mut path).unwrap(), b"d");
        assert_eq!(cut_name(&mut path).unwrap(), b"b c");
        assert_eq!(path, b"a");
        assert_eq!(cut_name(&mut path).unwrap(), b"a");
        assert_eq!(cut_name(&mut path), None);
    }

    #[test]
    fn a_directory_is_found_by_its_handle_in_its_parents_listing() {
        let dir = tempfile::tempdir().unwrap();
        let sub = dir.path().join("sub\n\u{1}");
        std::fs::create_dir(&sub).unwrap();
        let (parent, child) = (std::fs::File::open(dir.path()).unwrap(), std::fs::File::open(&sub).unwrap());
        let handle = sys::name_to_handle(child.as_fd(), c"").unwrap();
        assert_eq!(find_name(parent.as_fd(), child.as_fd(), &handle).unwrap(), b"sub\n\x01");
    }
}
