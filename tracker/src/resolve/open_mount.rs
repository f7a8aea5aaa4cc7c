//! A view of a whole filesystem, open for a moment: to mark it, and to open its handles.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use hashbrown::HashMap;
use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags};
use rustix::io::Errno;
use rustix::mount::{self, FsMountFlags, FsOpenFlags, MountAttrFlags, OpenTreeFlags};
use shared::entry::Handle;
use shared::identity::Identity;

use crate::intake::sys;
use crate::mounts::{self, Mount};
use crate::roots;

/// Of these it is known that mounting the device again gives the filesystem that is mounted already.
const MOUNTED_ONCE: [&str; 3] = ["btrfs", "ext4", "xfs"];
/// BTRFS_FS_TREE_OBJECTID: the subvolume that holds all others.
const BTRFS_TOP: &str = "5";

#[derive(Debug, thiserror::Error)]
pub enum MountError {
    #[error("Cannot read the mounts: {0}")]
    Mountinfo(io::Error),
    #[error("no mount shows the whole filesystem")]
    NotWhole,
    #[error("no mount shows the whole {fs}, and it cannot be mounted for the moment of a look: {}", hindrance.why)]
    NotPrivate { fs: String, hindrance: Hindrance },
}

/// Why a filesystem cannot be mounted once more.
#[derive(Debug)]
pub struct Hindrance {
    pub why: String,
    /// It may be otherwise the next time.
    pub passing: bool,
}

impl Hindrance {
    fn lasting(why: String) -> Hindrance {
        Hindrance { why, passing: false }
    }

    fn of(op: &str, device: &Path, e: Errno) -> Hindrance {
        let device = device.display();
        match e {
            Errno::PERM | Errno::ACCESS => Hindrance::lasting(format!(
                "{op} {device}: {e}. Needed are CAP_SYS_ADMIN and, in a unit, DeviceAllow=block-* r and fsopen, fsconfig and fsmount in SystemCallFilter"
            )),
            Errno::NOSYS => Hindrance::lasting(format!("{op}: {e}. This kernel is older than 5.2")),
            e => Hindrance { why: format!("{op} {device}: {e}"), passing: true },
        }
    }
}

/// A view of the whole filesystem. Open only while a batch is resolved: it makes umount(8) fail.
#[derive(Debug)]
pub struct OpenMount {
    /// Directories that were asked for names: many events of one come together.
    pub(super) asked: HashMap<Handle, OwnedFd>,
    // In this order they are closed. A view of our own must never outlive the mount it was made beside: it would keep
    // the filesystem in use after an unmount that seemed to succeed.
    fd: OwnedFd,
    beside: Option<OwnedFd>,
    point: Vec<u8>,
}

impl OpenMount {
    /// Opens a mount of the whole superblock `dev`, and checks that it is the one that mountinfo names, not one on
    /// top of it. Where only parts are mounted, as subvolumes of btrfs are, all of it is mounted beside one of them:
    /// read-only, attached nowhere, seen by nobody else, and gone when this is closed.
    pub fn open(dev: u64) -> Result<OpenMount, MountError> {
        let all = mounts::read().map_err(MountError::Mountinfo)?;
        for mount in mounts::whole(&all, dev) {
            if let Some(fd) = open_verified(mount) {
                let point = mount.point.as_os_str().as_bytes().to_vec();
                return Ok(OpenMount { asked: HashMap::new(), fd, beside: None, point });
            }
        }
        let of_it = || all.iter().filter(|m| m.dev == dev && MOUNTED_ONCE.contains(&m.fs.as_str()));
        for mount in of_it() {
            let Some(held) = open_verified(mount) else { continue };
            // From here on it stays mounted. Before, another one could have got its number.
            let now = mounts::read().map_err(MountError::Mountinfo)?;
            if mounts::superblock(&now, Some(mount.id)) != Some(dev) {
                continue;
            }
            let private = mount_whole(mount, &held);
            let fd =
                private.map_err(|hindrance| MountError::NotPrivate { fs: mount.fs.clone(), hindrance })?;
            let point = b"/".to_vec();
            return Ok(OpenMount { asked: HashMap::new(), fd, beside: Some(held), point });
        }
        Err(MountError::NotWhole)
    }

    /// At the top of the filesystem.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    pub fn top(&self) -> io::Result<Handle> {
        sys::name_to_handle(self.fd(), c"")
    }

    /// The same view without what is mounted on its directories. False if that is how it is already, or cannot be.
    pub fn uncover(&mut self) -> bool {
        if self.beside.is_some() {
            return false;
        }
        let flags =
            OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
        let Ok(fd) = mount::open_tree(&self.fd, c"", flags).and_then(|tree| top_of(&tree)) else {
            return false;
        };
        self.beside = Some(std::mem::replace(&mut self.fd, fd));
        self.point = b"/".to_vec();
        true
    }

    /// The path within the filesystem of an open file; `None` if it is too long or lies nowhere.
    pub(super) fn path_of(&self, fd: BorrowedFd<'_>) -> Option<Vec<u8>> {
        let link = format!("/proc/self/fd/{}", fd.as_raw_fd());
        let path = std::fs::read_link(link).ok()?.into_os_string().into_vec();
        let below = if self.point == b"/" { &path[..] } else { path.strip_prefix(self.point.as_slice())? };
        below.strip_prefix(b"/").map(<[u8]>::to_vec)
    }

    /// True if this path leads to this very object.
    pub(super) fn leads_to(&self, path: &[u8], handle: &Handle) -> bool {
        let Ok(path) = CString::new(path) else { return false };
        sys::name_to_handle(self.fd(), &path).is_ok_and(|found| &found == handle)
    }
}

/// The top of a mount, unless another one covers it or it is gone.
fn open_verified(mount: &Mount) -> Option<OwnedFd> {
    let fd = roots::open_dir(&mount.point).ok()?;
    let stat = rustix::fs::statx(&fd, c"", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID).ok()?;
    (stat.stx_mnt_id == mount.id).then_some(fd)
}

/// A real descriptor, which open_by_handle_at(2) wants; the mount's own is O_PATH.
fn top_of(tree: &OwnedFd) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(tree, c".", flags, Mode::empty())
}

/// Mounts the whole filesystem of which `held` is a part, for as long as the result is open.
fn mount_whole(part: &Mount, held: &OwnedFd) -> Result<OwnedFd, Hindrance> {
    let device = device_of(part, held).map_err(Hindrance::lasting)?;
    let failed = |op: &'static str| {
        let device = &device;
        move |e| Hindrance::of(op, device, e)
    };
    let context =
        mount::fsopen(part.fs.as_str(), FsOpenFlags::FSOPEN_CLOEXEC).map_err(failed("prepare to mount"))?;
    let configure = || {
        mount::fsconfig_set_string(&context, c"source", device.as_path())?;
        if part.fs == "btrfs" {
            mount::fsconfig_set_string(&context, c"subvolid", BTRFS_TOP)?;
        }
        // A mount of btrfs that may write would make all of it writable; the others want to be told what is.
        if part.fs == "btrfs" || part.read_only {
            mount::fsconfig_set_flag(&context, c"ro")?;
        }
        mount::fsconfig_create(&context)
    };
    configure().map_err(failed("mount"))?;
    let harmless = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let tree = mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, harmless);
    let top = tree.and_then(|tree| top_of(&tree)).map_err(failed("open the mount of"))?;
    if is_same(&top, held) {
        return Ok(top);
    }
    Err(Hindrance::lasting(format!("{} holds another filesystem", device.display())))
}

/// True if the directory `held` is found, as the very object of the running kernel, in the filesystem of `top`. A
/// UUID could be that of a copy.
fn is_same(top: &OwnedFd, held: &OwnedFd) -> bool {
    let found = sys::name_to_handle(held.as_fd(), c"")
        .and_then(|handle| sys::open_by_handle(top.as_fd(), &handle, libc::O_PATH | libc::O_DIRECTORY));
    let stat = |fd: &OwnedFd| rustix::fs::fstat(fd).map(|s| (s.st_dev, s.st_ino)).ok();
    found.is_ok_and(|found| stat(&found).is_some() && stat(&found) == stat(held))
}

/// A device node of the mounted filesystem, by the numbers of its devices.
fn device_of(part: &Mount, held: &OwnedFd) -> Result<PathBuf, String> {
    let numbers = if part.fs == "btrfs" { btrfs_devices(held)? } else { vec![part.dev] };
    // Its own name for the device first: btrfs takes over any other it is given, and shows that to all.
    let mut nodes = vec![part.source.clone()];
    for number in &numbers {
        let (major, minor) = (rustix::fs::major(*number), rustix::fs::minor(*number));
        let told =
            std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/uevent")).unwrap_or_default();
        let name = told.lines().find_map(|line| line.strip_prefix("DEVNAME="));
        nodes.extend(name.map(|name| Path::new("/dev").join(name)));
        nodes.push(PathBuf::from(format!("/dev/block/{major}:{minor}")));
    }
    let fits = |node: &PathBuf| {
        std::fs::metadata(node).is_ok_and(|m| m.file_type().is_block_device() && numbers.contains(&m.rdev()))
    };
    nodes.into_iter().find(fits).ok_or_else(|| {
        format!(
            "its device {} cannot be reached (PrivateDevices=yes in a unit hides it)",
            part.source.display()
        )
    })
}

/// The numbers of all devices that a mounted btrfs is made of.
fn btrfs_devices(part: &OwnedFd) -> Result<Vec<u64>, String> {
    let (identity, _) = Identity::of(part).map_err(|e| e.to_string())?;
    let uuid = identity.uuid.ok_or("it tells no UUID")?;
    let dir = format!("/sys/fs/btrfs/{uuid}/devices");
    let listed = std::fs::read_dir(&dir).map_err(|e| format!("{dir}: {e}"))?;
    let number = |entry: io::Result<std::fs::DirEntry>| {
        let text = std::fs::read_to_string(entry.ok()?.path().join("dev")).ok()?;
        let (major, minor) = text.trim().split_once(':')?;
        Some(rustix::fs::makedev(major.parse().ok()?, minor.parse().ok()?))
    };
    Ok(listed.filter_map(number).collect())
}
