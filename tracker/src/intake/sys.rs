//! The system calls that no crate wraps as they are needed here. The only unsafe code of this crate.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};

use shared::entry::Handle;

/// Longest handle the kernel makes (MAX_HANDLE_SZ of linux/exportfs.h).
const HANDLE_BYTES_MAX: usize = 128;

/// `struct file_handle` of open_by_handle_at(2), with room for the longest.
#[repr(C)]
struct RawHandle {
    bytes: u32,
    kind: i32,
    data: [u8; HANDLE_BYTES_MAX],
}

fn fd_or_error(fd: i64) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the system call has just made this descriptor for us, so nobody else owns it; it fits an int.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// A descriptor that was passed to this process at its start (sd_listen_fds(3)), to be taken once.
pub fn inherited(fd: RawFd) -> OwnedFd {
    // SAFETY: sd_listen_fds(3) gives it to this process alone, and it was just found to be open.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// fanotify_init(2).
pub fn fanotify_init(flags: u32) -> io::Result<OwnedFd> {
    let event_flags = (libc::O_RDONLY | libc::O_LARGEFILE | libc::O_CLOEXEC) as libc::c_uint;
    // SAFETY: takes two integers and no memory.
    fd_or_error(i64::from(unsafe { libc::fanotify_init(flags, event_flags) }))
}

/// fanotify_mark(2) on an open file or its mount or filesystem.
pub fn fanotify_mark(group: BorrowedFd<'_>, flags: u32, mask: u64, on: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: a null path means the descriptor itself; the kernel reads no memory of ours.
    let rc = unsafe { libc::fanotify_mark(group.as_raw_fd(), flags, mask, on.as_raw_fd(), std::ptr::null()) };
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// name_to_handle_at(2) of `name` in `dir`, or of `dir` itself when the name is empty. Links are not followed.
pub fn name_to_handle(dir: BorrowedFd<'_>, name: &CStr) -> io::Result<Handle> {
    let flags = if name.is_empty() { libc::AT_EMPTY_PATH } else { 0 };
    let mut raw = RawHandle { bytes: HANDLE_BYTES_MAX as u32, kind: 0, data: [0; HANDLE_BYTES_MAX] };
    let mut mount_id: libc::c_int = 0;
    // SAFETY: `raw` is laid out as the kernel's struct with `bytes` bytes of room behind its head, the name is
    // NUL-terminated, and all pointers live through the call.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_name_to_handle_at,
            dir.as_raw_fd(),
            name.as_ptr(),
            std::ptr::from_mut(&mut raw),
            std::ptr::from_mut(&mut mount_id),
            flags,
        )
    };
    if rc < 0 {
        return Err(io::Error::last_os_error());
    }
    let len = (raw.bytes as usize).min(HANDLE_BYTES_MAX);
    Ok(Handle { kind: raw.kind, bytes: raw.data[..len].to_vec() })
}

/// open_by_handle_at(2). `mount` must be a real descriptor: O_PATH gives EBADF (measured on 6.18).
pub fn open_by_handle(mount: BorrowedFd<'_>, handle: &Handle, flags: i32) -> io::Result<OwnedFd> {
    if handle.bytes.len() > HANDLE_BYTES_MAX {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut raw =
        RawHandle { bytes: handle.bytes.len() as u32, kind: handle.kind, data: [0; HANDLE_BYTES_MAX] };
    raw.data[..handle.bytes.len()].copy_from_slice(&handle.bytes);
    // SAFETY: `raw` is laid out as the kernel's struct, holds `bytes` valid bytes and lives through the call.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_open_by_handle_at,
            mount.as_raw_fd(),
            std::ptr::from_mut(&mut raw),
            flags | libc::O_CLOEXEC,
        )
    };
    fd_or_error(fd)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd as _;

    #[test]
    fn a_name_and_its_open_directory_have_the_same_handle() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("d")).unwrap();
        let top = std::fs::File::open(dir.path()).unwrap();
        let open = std::fs::File::open(dir.path().join("d")).unwrap();
        let by_name = name_to_handle(top.as_fd(), c"d").unwrap();
        assert_eq!(by_name, name_to_handle(open.as_fd(), c"").unwrap());
        assert_ne!(by_name, name_to_handle(top.as_fd(), c"").unwrap());
    }

    #[test]
    fn a_handle_too_long_for_the_kernel_is_refused() {
        let here = std::fs::File::open("/").unwrap();
        let handle = Handle { kind: 1, bytes: vec![0; HANDLE_BYTES_MAX + 1] };
        assert!(open_by_handle(here.as_fd(), &handle, 0).is_err());
    }
}
