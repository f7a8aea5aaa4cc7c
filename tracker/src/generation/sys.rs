//! The ioctls of btrfs that tell generations and search a subvolume's tree (linux/btrfs.h). The search needs
//! CAP_SYS_ADMIN.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use super::items::{ITEM_BYTES_MAX, Key};

/// Bytes of items that one search returns at most; a leaf holds up to 64 KiB.
pub const SEARCH_BYTES: usize = 128 * 1024;

/// `struct btrfs_ioctl_search_args_v2` with `struct btrfs_ioctl_search_key` in it, and a buffer.
#[repr(C)]
pub struct Search {
    tree_id: u64,
    min_objectid: u64,
    max_objectid: u64,
    min_offset: u64,
    max_offset: u64,
    min_transid: u64,
    max_transid: u64,
    min_type: u32,
    max_type: u32,
    nr_items: u32,
    unused: [u32; 9],
    buf_size: u64,
    buf: [u8; SEARCH_BYTES],
}

/// `struct btrfs_ioctl_fs_info_args`, up to the field we read; 1,024 bytes in all.
#[repr(C)]
struct FsInfo {
    before: [u64; 6],
    flags: u64,
    generation: u64,
    rest: [u64; 120],
}

/// `struct btrfs_ioctl_get_subvol_info_args`, 504 bytes, of which we read the UUID.
#[repr(C)]
struct SubvolInfo {
    before: [u64; 37],
    uuid: [u8; 16],
    rest: [u64; 24],
}

/// `_IOC(dir, 0x94, nr, size)` of asm-generic/ioctl.h.
const fn ioc(dir: u64, nr: u64, size: usize) -> u64 {
    (dir << 30) | ((size as u64) << 16) | (0x94 << 8) | nr
}
const READ: u64 = 2;
const READ_WRITE: u64 = 3;
/// The size counts no buffer.
const SEARCH_HEAD_BYTES: usize = size_of::<Search>() - SEARCH_BYTES;
const BTRFS_IOC_TREE_SEARCH_V2: u64 = ioc(READ_WRITE, 17, SEARCH_HEAD_BYTES);
const BTRFS_IOC_FS_INFO: u64 = ioc(READ, 31, size_of::<FsInfo>());
const BTRFS_IOC_GET_SUBVOL_INFO: u64 = ioc(READ, 60, size_of::<SubvolInfo>());
/// BTRFS_FS_INFO_FLAG_GENERATION (Linux 5.10).
const FLAG_GENERATION: u64 = 1 << 1;

fn ioctl<T>(fd: BorrowedFd<'_>, request: u64, arg: &mut T) -> io::Result<()> {
    // SAFETY: each caller pairs the request with the type whose size is encoded in it (a search says besides how long
    // the buffer behind its head is), all types are `repr(C)` and valid for any bit pattern, and the kernel writes
    // within them.
    let rc = unsafe { libc::ioctl(fd.as_raw_fd(), request as _, std::ptr::from_mut(arg)) };
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

impl Search {
    pub fn new() -> Box<Search> {
        Box::new(Search {
            tree_id: 0, // that of the open file
            min_objectid: 0,
            max_objectid: 0,
            min_offset: 0,
            max_offset: u64::MAX,
            min_transid: 0,
            max_transid: u64::MAX,
            min_type: 0,
            max_type: 0,
            nr_items: 0,
            unused: [0; 9],
            buf_size: SEARCH_BYTES as u64,
            buf: [0; SEARCH_BYTES],
        })
    }

    /// Items from one key to another (both included) in leaves written in `since` or later: how many, and their bytes.
    pub fn run(&mut self, fd: BorrowedFd<'_>, from: Key, to: Key, since: u64) -> io::Result<(u32, &[u8])> {
        (self.min_objectid, self.min_type, self.min_offset) = (from.objectid, from.kind.into(), from.offset);
        (self.max_objectid, self.max_type, self.max_offset) = (to.objectid, to.kind.into(), to.offset);
        self.min_transid = since;
        self.nr_items = u32::MAX;
        self.buf_size = SEARCH_BYTES as u64;
        ioctl(fd, BTRFS_IOC_TREE_SEARCH_V2, self)?;
        Ok((self.nr_items, &self.buf))
    }
}

/// The transaction that the filesystem is in, or was in last.
pub fn generation(fd: BorrowedFd<'_>) -> io::Result<u64> {
    let mut info = FsInfo { before: [0; 6], flags: FLAG_GENERATION, generation: 0, rest: [0; 120] };
    ioctl(fd, BTRFS_IOC_FS_INFO, &mut info)?;
    if info.flags & FLAG_GENERATION == 0 {
        return Err(io::ErrorKind::Unsupported.into());
    }
    Ok(info.generation)
}

/// The UUID of the subvolume that holds the open directory (Linux 4.18).
pub fn subvolume_uuid(fd: BorrowedFd<'_>) -> io::Result<[u8; 16]> {
    let mut info = SubvolInfo { before: [0; 37], uuid: [0; 16], rest: [0; 24] };
    ioctl(fd, BTRFS_IOC_GET_SUBVOL_INFO, &mut info)?;
    Ok(info.uuid)
}

const _: () = assert!(SEARCH_HEAD_BYTES == 112);
const _: () = assert!(SEARCH_BYTES > ITEM_BYTES_MAX, "else a search without an end could be taken for one");
const _: () = assert!(size_of::<FsInfo>() == 1024);
const _: () = assert!(size_of::<SubvolInfo>() == 504);
