//! One flag that SIGINT, SIGTERM and SIGHUP raise, so that programs return from `main` and their guards clean up.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::signal::unix::{SignalKind, signal};

/// Shared by everything that loops; raised once, never lowered.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// A flag that only [`Stop::raise`] raises.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A flag that the first signal raises too. From here on signals no longer end the process: poll the flag.
    ///
    /// # Errors
    /// If the handlers cannot be installed.
    pub fn on_signals() -> Result<Self> {
        let stop = Self::new();
        let raised = stop.clone();
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the signal thread")?;
        let (ready, wait) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            runtime.block_on(async {
                let streams = (|| -> std::io::Result<_> {
                    Ok((
                        signal(SignalKind::interrupt())?,
                        signal(SignalKind::terminate())?,
                        signal(SignalKind::hangup())?,
                    ))
                })();
                let (mut int, mut term, mut hup) = match streams {
                    Ok(streams) => {
                        let _ = ready.send(Ok(()));
                        streams
                    }
                    Err(error) => {
                        let _ = ready.send(Err(error));
                        return;
                    }
                };
                loop {
                    tokio::select! { _ = int.recv() => {}, _ = term.recv() => {}, _ = hup.recv() => {} }
                    raised.raise();
                }
            });
        });
        wait.recv().context("the signal thread ended")?.context("install the signal handlers")?;
        Ok(stop)
    }

    /// Raises the flag.
    pub fn raise(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether it was raised.
    #[must_use]
    pub fn is_raised(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Sleeps for `time`, or less when the flag is raised. Returns whether to go on.
    #[must_use]
    pub fn sleep(&self, time: Duration) -> bool {
        let deadline = Instant::now() + time;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if self.is_raised() || left.is_zero() {
                return !self.is_raised();
            }
            std::thread::sleep(left.min(Duration::from_millis(20)));
        }
    }
}
