//! Time as an argument, so that decisions can be tested and simulated.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Wall time is for people and for `not_before`; durations come from CLOCK_BOOTTIME, which counts through suspend
/// and never jumps.
pub trait Clock: Send + Sync {
    /// Nanoseconds since 1970, UTC.
    fn wall_ns(&self) -> i64;
    /// Nanoseconds since boot, suspend included.
    fn boot_ns(&self) -> i64;
}

/// The machine's own clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn wall_ns(&self) -> i64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
    }

    fn boot_ns(&self) -> i64 {
        let t = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        t.tv_sec * 1_000_000_000 + t.tv_nsec
    }
}

/// A wall time for people, in UTC with seconds.
pub fn show(wall_ns: i64) -> String {
    match jiff::Timestamp::from_nanosecond(i128::from(wall_ns)) {
        Ok(t) => t.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        Err(_) => format!("{wall_ns} ns"),
    }
}

/// This boot's id, from the kernel (proc_sys_kernel(5)).
pub fn boot_id() -> std::io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_taken_from_the_clock_that_counts_through_suspend() {
        let now = || {
            let t = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
            t.tv_sec * 1_000_000_000 + t.tv_nsec
        };
        let (before, told, after) = (now(), SystemClock.boot_ns(), now());
        assert!((before..=after).contains(&told), "{before} {told} {after}");
    }
}
