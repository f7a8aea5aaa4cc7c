//! Taking a variable out of the environment. The only unsafe code of the credentials.
#![allow(unsafe_code)]

use std::ffi::OsString;

/// The variable's value; it is no longer there for children, nor for the next caller.
///
/// # Panics
/// If a second thread runs, which only a mistake in `main` can cause. Where /proc cannot be read, the variable stays.
pub(super) fn take_var(name: &str) -> Option<OsString> {
    let value = std::env::var_os(name)?;
    if let Ok(threads) = std::fs::read_dir("/proc/self/task") {
        assert_eq!(threads.count(), 1, "the environment is taken before any thread starts");
        // SAFETY: this is the only thread, so nothing reads the environment at the same time.
        unsafe { std::env::remove_var(name) };
    }
    Some(value)
}
