//! Whoever adds it all up from outside: all the time while packets come ([`Checker`]), and what the agent's own metrics say of it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use sensor::bpf::balance::{Balance, Sample, elsewhere, seen};
use sensor_common::counter::{Cause, Hook};
use sensor_tests::agent::Agent;
use sensor_tests::checks::Must as _;

use crate::scene::Scene;

/// Adds everything up all the time, until it is told to stop.
pub(crate) struct Checker {
    begun: Instant,
    stop: Arc<AtomicBool>,
    found: Arc<Mutex<Vec<String>>>,
    thread: JoinHandle<Samples>,
}

/// How many looks there were.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Samples {
    pub(crate) checked: u64,
    /// The agent stood still with a record in its hands, or an interface came or went.
    pub(crate) skipped: u64,
    /// The largest difference between the two sums: what moved during one look.
    pub(crate) moved: u64,
}

impl Checker {
    pub(crate) fn start(balance: &Arc<Balance>) -> Checker {
        let (stop, found) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let thread = std::thread::spawn({
            let (balance, stop, found) = (balance.clone(), stop.clone(), found.clone());
            move || {
                let mut samples = Samples::default();
                while !stop.load(Ordering::Relaxed) {
                    match balance.sample().must("read the maps") {
                        None => samples.skipped += 1,
                        Some(sample) => {
                            samples.checked += 1;
                            samples.moved = samples.moved.max(sample.at_most().abs_diff(sample.at_least()));
                            if let Err(error) = sample.check() {
                                let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
                                if found.is_empty() {
                                    // Whatever else fails, this came first.
                                    eprintln!("out of balance while packets come: {error}");
                                }
                                found.push(error);
                            }
                        }
                    }
                    // The other CPU's work is what is being looked at.
                    std::thread::sleep(Duration::from_millis(20));
                }
                samples
            }
        });
        Checker { begun: Instant::now(), stop, found, thread }
    }

    pub(crate) fn end(self, what: &str) -> Samples {
        self.stop.store(true, Ordering::Relaxed);
        let samples = self.thread.join().expect("the checker ends");
        let found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        assert!(found.is_empty(), "{what}: {} of {samples:?} are wrong, the first: {}", found.len(), found[0]);
        assert!(samples.checked >= 10 && samples.skipped <= samples.checked, "{what}: {samples:?}");
        eprintln!("{what}: {samples:?} in {:.1?}", self.begun.elapsed());
        samples
    }
}

/// Frames that were received.
pub(crate) fn ingress(sample: &Sample) -> u64 {
    sample.counters[0].seen[Hook::Ingress as usize].iter().map(|volume| volume.packets).sum()
}

pub(crate) fn unrecorded(sample: &Sample, cause: Cause) -> u64 {
    sample.counters[0].unrecorded[cause as usize]
}

/// The agent's own metrics tell the same story as the maps.
pub(crate) fn metrics_agree(agent: &Agent, scene: &Scene, balance: &Balance) {
    let deadline = Instant::now() + Duration::from_secs(8);
    loop {
        scene.lasting.send();
        // The agent publishes once a second, and releases flows meanwhile.
        for _ in 0..8 {
            std::thread::sleep(Duration::from_millis(200));
            let (sample, metrics) = (balance.sample().must("read the maps"), agent.metrics().must("scrape"));
            let Some(Sample { counters: [counters, ..], books, .. }) = sample else { continue };
            let dropped = metrics.sum("sensor_packets_total", &[("action", "drop")]);
            let said = [
                metrics.sum("sensor_packets_total", &[]),
                metrics.sum("sensor_loss_packets_total", &[]) + dropped,
                metrics.sum("sensor_ended_packets_total", &[]),
            ];
            let found = [seen(&counters), elsewhere(&counters), books.released + books.evicted];
            if said == found.map(|number| number as f64) {
                return;
            }
            assert!(Instant::now() < deadline, "seen, elsewhere and ended: metrics say {said:?}, maps {found:?}");
        }
    }
}
