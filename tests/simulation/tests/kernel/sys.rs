//! The system call that no crate wraps. The only unsafe code of this test.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::io::Errno;

/// truncate(2): unlike ftruncate(2) it opens nothing, whose end would be an event.
pub fn truncate(path: &Path, size: u64) -> Result<(), Errno> {
    let path = CString::new(path.as_os_str().as_bytes()).unwrap();
    // SAFETY: the path is NUL-terminated and lives through the call.
    let rc = unsafe { libc::truncate(path.as_ptr(), size as i64) };
    let error = std::io::Error::last_os_error();
    if rc == 0 { Ok(()) } else { Err(Errno::from_io_error(&error).unwrap()) }
}
