//! Program runs of two CPUs at once: one is measured while the other is at work all the time. Used by `scaling` and `cpus`.
//!
//! Invariant: there is a number only if the other CPU handled packets until after the measured one's last.

use std::ops::Range;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use sensor::bpf::load::{Hook, Runner};
use sensor_tests::cpus::stay_on;

use crate::subjects::run_on;

/// By how much the other CPU begins first: longer than the kernel waits where test runs of an XDP program begin.
const AHEAD: Duration = Duration::from_millis(60);
/// Packets of the other CPU for that time.
const AHEAD_PACKETS: u32 = 500_000;

/// Attempts to make until one gives a number; a text for when none did.
pub(crate) const ATTEMPTS: Range<u32> = 1..8;
pub(crate) const IN_VAIN: &str = "two CPUs were never busy at once: something else keeps them busy";

/// What came of an attempt.
pub(crate) struct Attempt {
    /// Of a packet of the measured CPU; `None` if it was not shown that the other one was at work all the time.
    pub(crate) ns: Option<f64>,
    /// Packets of both CPUs.
    pub(crate) sent: u64,
}

/// Runs the first of two frames on its CPU, which is measured, while the other CPU runs the other frame. The other one sends
/// twice as many packets with each attempt, [`ATTEMPTS`] by number.
///
/// The kernel waits when a program of XDP begins and ends its test runs, but not where another CPU has the same program in
/// test runs: so the other begins first and is to end last.
///
/// # Errors
/// If a run fails.
pub(crate) fn beside(
    runner: Runner<'_>,
    hook: Hook,
    [(frame, cpu), (other_frame, other_cpu)]: [(&mut Vec<u8>, usize); 2],
    packets: u32,
    attempt: u32,
) -> Result<Attempt> {
    let other_packets = packets.saturating_add(AHEAD_PACKETS).saturating_mul(1 << attempt);
    let begun = Barrier::new(2);
    let (ns, ended, other_at_work) = thread::scope(|scope| {
        let other = scope.spawn(|| {
            let placed = stay_on(other_cpu);
            begun.wait();
            placed?;
            let begun = Instant::now();
            let (ns, _) = run_on(runner, hook, other_frame, other_packets)?;
            // Not when the call came back: that waits after the last packet.
            Ok::<_, anyhow::Error>(begun + Duration::from_nanos((ns * f64::from(other_packets)) as u64))
        });
        begun.wait();
        thread::sleep(AHEAD);
        let own = stay_on(cpu).and_then(|()| run_on(runner, hook, frame, packets));
        let ended = Instant::now();
        let other_at_work = other.join().map_err(|_| anyhow!("the other CPU's thread panicked"))??;
        Ok::<_, anyhow::Error>((own?.0, ended, other_at_work))
    })?;
    let sent = u64::from(packets) + u64::from(other_packets);
    Ok(Attempt { ns: (other_at_work > ended).then_some(ns), sent })
}
