//! The ioctls that name a mounted filesystem. The only unsafe code of this crate.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// `struct fsuuid2` of linux/fs.h.
#[repr(C)]
struct FsUuid2 {
    len: u8,
    uuid: [u8; 16],
}

/// `struct btrfs_ioctl_fs_info_args` of linux/btrfs.h, up to the field we read; 1,024 bytes in all.
#[repr(C)]
struct BtrfsFsInfo {
    max_id: u64,
    num_devices: u64,
    fsid: [u8; 16],
    rest: [u8; 1024 - 32],
}

/// `struct btrfs_ioctl_ino_lookup_args` of linux/btrfs.h.
#[repr(C)]
struct BtrfsInoLookup {
    treeid: u64,
    objectid: u64,
    name: [u8; 4080],
}

/// `struct xfs_fsop_geom_v1` of xfs_fs.h: 112 bytes, the UUID at 64.
#[repr(C, align(8))]
struct XfsGeometryV1 {
    before: [u8; 64],
    uuid: [u8; 16],
    after: [u8; 32],
}

/// `_IOC(dir, type, nr, size)` of asm-generic/ioctl.h.
const fn ioc(dir: u64, kind: u8, nr: u8, size: usize) -> u64 {
    (dir << 30) | ((size as u64) << 16) | ((kind as u64) << 8) | nr as u64
}
const READ: u64 = 2;
const READ_WRITE: u64 = 3;
const FS_IOC_GETFSUUID: u64 = ioc(READ, 0x15, 0, size_of::<FsUuid2>());
const BTRFS_IOC_FS_INFO: u64 = ioc(READ, 0x94, 31, size_of::<BtrfsFsInfo>());
const BTRFS_IOC_INO_LOOKUP: u64 = ioc(READ_WRITE, 0x94, 18, size_of::<BtrfsInoLookup>());
const XFS_IOC_FSGEOMETRY_V1: u64 = ioc(READ, b'X', 100, size_of::<XfsGeometryV1>());
/// BTRFS_FIRST_FREE_OBJECTID: the inode number of every subvolume's root.
const BTRFS_SUBVOLUME_ROOT: u64 = 256;

/// Runs one ioctl that fills (or reads and fills) `arg`.
fn ioctl<T>(fd: BorrowedFd<'_>, request: u64, arg: &mut T) -> io::Result<()> {
    // SAFETY: each caller pairs the request with the type whose size is encoded in it, all types are `repr(C)` and
    // valid for any bit pattern, and the kernel writes at most that size.
    let rc = unsafe { libc::ioctl(fd.as_raw_fd(), request as _, std::ptr::from_mut(arg)) };
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The UUID in the mounted superblock (Linux 6.9; ext4 6.0). btrfs and others answer ENOTTY.
pub fn generic_uuid(fd: BorrowedFd<'_>) -> io::Result<[u8; 16]> {
    let mut arg = FsUuid2 { len: 0, uuid: [0; 16] };
    ioctl(fd, FS_IOC_GETFSUUID, &mut arg)?;
    if arg.len == 16 { Ok(arg.uuid) } else { Err(io::ErrorKind::Unsupported.into()) }
}

pub fn btrfs_uuid(fd: BorrowedFd<'_>) -> io::Result<[u8; 16]> {
    let mut arg = BtrfsFsInfo { max_id: 0, num_devices: 0, fsid: [0; 16], rest: [0; 992] };
    ioctl(fd, BTRFS_IOC_FS_INFO, &mut arg)?;
    Ok(arg.fsid)
}

/// The id of the subvolume that holds the open file.
pub fn btrfs_subvolume(fd: BorrowedFd<'_>) -> io::Result<u64> {
    let mut arg = BtrfsInoLookup { treeid: 0, objectid: BTRFS_SUBVOLUME_ROOT, name: [0; 4080] };
    ioctl(fd, BTRFS_IOC_INO_LOOKUP, &mut arg)?;
    Ok(arg.treeid)
}

pub fn xfs_uuid(fd: BorrowedFd<'_>) -> io::Result<[u8; 16]> {
    let mut arg = XfsGeometryV1 { before: [0; 64], uuid: [0; 16], after: [0; 32] };
    ioctl(fd, XFS_IOC_FSGEOMETRY_V1, &mut arg)?;
    Ok(arg.uuid)
}

const _: () = assert!(size_of::<FsUuid2>() == 17);
const _: () = assert!(size_of::<BtrfsFsInfo>() == 1024);
const _: () = assert!(size_of::<BtrfsInoLookup>() == 4096);
const _: () = assert!(size_of::<XfsGeometryV1>() == 112);
