//! What the service manager hears from the agent (`sd_notify`): that it is ready, what it does, that it lives, that it
//! stops.
//!
//! Without `NOTIFY_SOCKET` in the environment nothing is sent. Called by [`super::run`] and [`super::serve`]; the poll
//! thread owns a [`Watchdog`].

use std::time::{Duration, Instant};

use sd_notify::NotifyState;

use crate::config::Config;

/// Time between two status texts that differ in numbers only.
const STATUS_INTERVAL: Duration = Duration::from_secs(10);
/// What a step of the start takes at most beside a model's check: another agent ends, programs are loaded and attached.
const STEP: Duration = Duration::from_secs(60);

/// The start goes on; the next message comes within the time that the check of a model may take.
pub fn starting(config: &Config, what: &str) {
    let micros = u32::try_from((config.model.load_timeout + STEP).as_micros()).unwrap_or(u32::MAX);
    send(&[NotifyState::ExtendTimeoutUsec(micros), NotifyState::Status(what)]);
}

/// Everything is attached, and the first poll ran.
pub fn ready() {
    send(&[NotifyState::Ready]);
}

/// The agent ends because of this.
pub fn stopping(reason: &str) {
    send(&[NotifyState::Stopping, NotifyState::Status(&format!("stopping because of {reason}"))]);
}

/// The agent could not start, or not stop.
pub fn failed(error: &anyhow::Error) {
    send(&[NotifyState::Status(&format!("failed: {error:#}"))]);
}

fn send(state: &[NotifyState]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!("the service manager cannot be told: {error}");
    }
}

/// Tells the service manager that the poll thread makes progress, and what it does.
pub struct Watchdog {
    /// Time between two signs of life; `None`: nobody waits for them.
    interval: Option<Duration>,
    fed: Option<Instant>,
    /// What was last said, and when. `None`: nobody listens.
    status: Option<(String, Instant)>,
}

impl Watchdog {
    /// As the environment asks for.
    pub fn new(config: &Config) -> Watchdog {
        let limit = sd_notify::watchdog_enabled();
        let silence = config.model.max_inference.min(config.agent.lease / 2);
        if let Some(limit) = limit.filter(|limit| *limit < silence * 2) {
            tracing::warn!(
                "the service manager's watchdog ({} s) is shorter than twice a legal call of a model ({} s): raise \
                 WatchdogSec",
                limit.as_secs_f64(),
                silence.as_secs_f64()
            );
        }
        let listens = std::env::var_os("NOTIFY_SOCKET").is_some();
        Watchdog::every(limit.map(|limit| limit / 4), listens)
    }

    fn every(interval: Option<Duration>, listens: bool) -> Watchdog {
        Watchdog { interval, fed: None, status: listens.then(|| (String::new(), Instant::now())) }
    }

    /// The poll thread got on; called wherever it renews the lease.
    pub fn feed(&mut self) {
        if self.is_due(Instant::now()) {
            send(&[NotifyState::Watchdog]);
        }
    }

    fn is_due(&mut self, now: Instant) -> bool {
        let Some(interval) = self.interval else { return false };
        let due = self.fed.is_none_or(|fed| now.saturating_duration_since(fed) >= interval);
        if due {
            self.fed = Some(now);
        }
        due
    }

    /// Once a second. `state` is said when it changes, `numbers` with it or every ten seconds.
    pub fn status(&mut self, state: impl FnOnce() -> String, numbers: impl FnOnce() -> String) {
        let Some((said, when)) = &mut self.status else { return };
        let state = state();
        if *said == state && when.elapsed() < STATUS_INTERVAL {
            return;
        }
        send(&[NotifyState::Status(&format!("{state}: {}", numbers()))]);
        (*said, *when) = (state, Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_watchdog_is_fed_four_times_in_its_limit_and_not_at_each_poll() {
        let begun = Instant::now();
        let mut watchdog = Watchdog::every(Some(Duration::from_secs(5)), false);
        let polls = (0..200).map(|poll| begun + Duration::from_millis(100 * poll));
        assert_eq!(polls.filter(|now| watchdog.is_due(*now)).count(), 4, "in 20 s");
        assert!(!Watchdog::every(None, false).is_due(begun), "nobody waits");
    }

    #[test]
    fn nobody_who_does_not_listen_is_told() {
        let mut watchdog = Watchdog::every(None, false);
        watchdog.status(|| unreachable!("not even put together"), || unreachable!("nor this"));
    }
}
