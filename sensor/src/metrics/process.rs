//! The agent's own CPU time and memory, read at each scrape.

use rustix::time::{ClockId, clock_gettime};

/// User and system CPU time of this process, in seconds.
pub(super) fn cpu_seconds() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// Resident memory of this process, in bytes; `None` without a readable /proc.
pub(super) fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

/// The same without `mapped` bytes of kernel maps: their pages are resident from the moment they are mapped.
pub(super) fn own_bytes(mapped: u64) -> Option<u64> {
    resident_bytes().map(|bytes| bytes.saturating_sub(mapped))
}
