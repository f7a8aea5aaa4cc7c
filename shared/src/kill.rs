//! Places at which a test kills the program, and parts that it may switch off. Without the feature `kill-points`,
//! which no package enables, the places do nothing, and the parts cannot be switched off.

/// Here a test may kill this process: `LONGSHORE_KILL=NAME:N` does it the Nth time.
#[cfg(feature = "kill-points")]
pub fn point(name: &str) {
    use std::sync::atomic::{AtomicU32, Ordering};
    static PASSED: AtomicU32 = AtomicU32::new(0);
    let Ok(wanted) = std::env::var("LONGSHORE_KILL") else { return };
    let (wanted, times) = wanted.split_once(':').unwrap_or((&wanted, "1"));
    if wanted == name && times.parse() == Ok(PASSED.fetch_add(1, Ordering::Relaxed) + 1) {
        let killed = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        unreachable!("nothing outlives a SIGKILL: {killed:?}");
    }
}

/// True if a test has switched this part off: `LONGSHORE_WITHOUT=PART`.
#[cfg(feature = "kill-points")]
pub fn without(part: &str) -> bool {
    std::env::var("LONGSHORE_WITHOUT").is_ok_and(|p| p == part)
}

#[cfg(not(feature = "kill-points"))]
#[inline(always)]
pub fn point(_name: &str) {}
