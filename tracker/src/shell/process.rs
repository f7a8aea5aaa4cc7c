//! What this process itself takes of the machine, and what others are called.

use rustix::time::{ClockId, clock_gettime};

/// Resident memory; 0 if it cannot be told.
pub fn rss_bytes() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").ok().and_then(|text| resident_pages(&text));
    pages.unwrap_or(0) * rustix::param::page_size() as u64
}

/// The second number of proc_pid_statm(5).
fn resident_pages(statm: &str) -> Option<u64> {
    statm.split_whitespace().nth(1)?.parse().ok()
}

/// CPU time of all threads so far.
pub fn cpu_ns() -> u64 {
    let t = clock_gettime(ClockId::ProcessCPUTime);
    t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64
}

/// The name of a process as the kernel has it; `None` if it is gone.
pub fn name_of(pid: u32) -> Option<String> {
    let name = std::fs::read(format!("/proc/{pid}/comm")).ok()?;
    Some(shared::path::escape(name.trim_ascii_end()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_resident_pages_are_the_second_number() {
        assert_eq!(resident_pages("4001 1200 900 10 0 500 0\n"), Some(1200));
        for bad in ["", "4001", "4001 x"] {
            assert_eq!(resident_pages(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn this_process_has_memory_time_and_a_name() {
        assert!(rss_bytes() > 100_000);
        let before = cpu_ns();
        while cpu_ns() == before {}
        assert!(name_of(std::process::id()).is_some_and(|name| !name.is_empty()));
        assert_eq!(name_of(u32::MAX), None);
    }
}
