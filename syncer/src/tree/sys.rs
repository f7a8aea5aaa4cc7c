//! name_to_handle_at(2), which no crate of ours wraps. The only unsafe code of the local side.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use shared::entry::Handle;

/// `struct file_handle` of fcntl.h with room for the longest handle.
#[repr(C)]
struct FileHandle {
    bytes: libc::c_uint,
    kind: libc::c_int,
    handle: [u8; libc::MAX_HANDLE_SZ as usize],
}

/// The handle of an open file; an O_PATH fd will do.
pub fn handle(fd: BorrowedFd<'_>) -> io::Result<Handle> {
    let mut arg =
        FileHandle { bytes: libc::MAX_HANDLE_SZ as u32, kind: 0, handle: [0; libc::MAX_HANDLE_SZ as usize] };
    let mut mount_id: libc::c_int = 0;
    // SAFETY: `arg` is laid out as the kernel's struct and says how many bytes follow its head, the path is a
    // NUL-terminated constant, and all three outlive the call.
    let rc = unsafe {
        libc::name_to_handle_at(
            fd.as_raw_fd(),
            c"".as_ptr(),
            std::ptr::from_mut(&mut arg).cast(),
            &mut mount_id,
            libc::AT_EMPTY_PATH,
        )
    };
    if rc < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Handle { kind: arg.kind, bytes: arg.handle[..arg.bytes as usize].to_vec() })
}

const _: () = assert!(size_of::<FileHandle>() == 8 + 128);

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use crate::tree::Tree;
    use crate::tree::proven::ProvenTree;
    use shared::path::RelPath;

    #[test]
    fn a_leased_file_is_refused_at_once_instead_of_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let file = std::fs::File::create(dir.path().join("f")).unwrap();
        let fd = file.as_raw_fd();
        const F_SETSIG: libc::c_int = 10; // asm-generic/fcntl.h
        // SAFETY: `fd` is open, and both commands take an integer. SIGURG is ignored where nobody handles it.
        let rc = unsafe {
            libc::fcntl(fd, F_SETSIG, libc::SIGURG) | libc::fcntl(fd, libc::F_SETLEASE, libc::F_WRLCK)
        };
        assert_eq!(rc, 0);
        let tree = ProvenTree::open(dir.path()).unwrap();
        let error = tree.open(&RelPath::parse(b"f").unwrap()).err().unwrap();
        assert_eq!(error.source.kind(), std::io::ErrorKind::WouldBlock);
        drop(file);
    }
}
