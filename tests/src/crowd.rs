//! A crowd of clients: threads that repeat jobs of [`crate::clients`] with pauses, and count how they went.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use anyhow::Result;

use crate::rng::Rng;
use crate::stop::Stop;

/// How the jobs of a crowd went.
#[derive(Debug, Default)]
pub struct Tally {
    ok: AtomicU64,
    failed: AtomicU64,
    bytes: AtomicU64,
    errors: Mutex<Vec<String>>,
}

/// A tally at one moment.
#[derive(Clone, Copy, Debug, Default)]
pub struct Count {
    /// Jobs that succeeded.
    pub ok: u64,
    /// Jobs that failed.
    pub failed: u64,
    /// Bytes that the successful jobs moved.
    pub bytes: u64,
}

impl Tally {
    /// The counts now.
    #[must_use]
    pub fn count(&self) -> Count {
        let load = |value: &AtomicU64| value.load(Ordering::Relaxed);
        Count { ok: load(&self.ok), failed: load(&self.failed), bytes: load(&self.bytes) }
    }

    /// What the first failures said, at most 20.
    #[must_use]
    pub fn errors(&self) -> Vec<String> {
        self.errors.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn add(&self, outcome: Result<Option<u64>>) {
        match outcome {
            Ok(None) => {}
            Ok(Some(bytes)) => {
                self.ok.fetch_add(1, Ordering::Relaxed);
                self.bytes.fetch_add(bytes, Ordering::Relaxed);
            }
            Err(error) => {
                self.failed.fetch_add(1, Ordering::Relaxed);
                let mut errors = self.errors.lock().unwrap_or_else(PoisonError::into_inner);
                if errors.len() < 20 {
                    errors.push(format!("{error:#}"));
                }
            }
        }
    }
}

/// Threads that repeat jobs until they are told to stop or the crowd is dropped.
#[derive(Debug, Default)]
pub struct Crowd {
    stop: Stop,
    /// How the jobs went; shared, so that it can be read after the crowd is gone.
    pub tally: Arc<Tally>,
    threads: Vec<JoinHandle<()>>,
}

impl Crowd {
    /// An empty crowd.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a client that repeats `job` with a pause of `pause_ms` milliseconds, drawn anew each time.
    pub fn join(
        &mut self,
        mut rng: Rng,
        pause_ms: Range<u64>,
        mut job: impl FnMut(&mut Rng, &Stop) -> Result<Option<u64>> + Send + 'static,
    ) {
        let (stop, tally) = (self.stop.clone(), Arc::clone(&self.tally));
        self.threads.push(std::thread::spawn(move || {
            // Clients do not start in step.
            while stop.sleep(rng.millis(pause_ms.clone())) {
                tally.add(job(&mut rng, &stop));
            }
        }));
    }

    /// Ends the crowd, half-done jobs included (they count neither way), and returns the counts.
    pub fn disperse(&mut self) -> Count {
        self.stop.raise();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                self.tally.failed.fetch_add(1, Ordering::Relaxed);
            }
        }
        self.tally.count()
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.disperse();
    }
}
