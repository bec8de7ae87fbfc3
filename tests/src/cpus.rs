//! CPUs for whoever measures on one, or lets two of them meet.

use anyhow::{Context, Result};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// The first two CPUs that this process may use; `None` if there are not so many.
///
/// # Errors
/// If the kernel does not say which.
pub fn first_two() -> Result<Option<[usize; 2]>> {
    let allowed = sched_getaffinity(None).context("ask which CPUs may be used")?;
    let mut usable = (0..CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu));
    Ok(usable.next().zip(usable.next()).map(|(first, second)| [first, second]))
}

/// Keeps the calling thread on one CPU.
///
/// # Errors
/// If it may not be used.
pub fn stay_on(cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(None, &set).with_context(|| format!("stay on CPU {cpu}"))
}
