//! What the service manager hears from the agent (`sd_notify`): that it is ready, what it does, that it lives, that it
//! stops.
//!
//! Without `NOTIFY_SOCKET` in the environment nothing is sent. A service manager that does not read holds nobody up: what
//! its socket does not take at once is dropped (only the word that the agent is ready is tried again). Called by [`super::run`] and [`super::serve`]; the poll
//! thread owns a [`Watchdog`].

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
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

/// Everything is attached, and the first poll ran. A socket that is full is tried again, for a second at most.
pub fn ready() {
    let mut tries = 0;
    while try_send(&[NotifyState::Ready]).is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock) && tries < 50 {
        std::thread::sleep(Duration::from_millis(20));
        tries += 1;
    }
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
    if let Err(error) = try_send(state) {
        tracing::debug!("the service manager cannot be told: {error}");
    }
}

/// The crate's own call waits for a socket that is full, which would stop the poll thread and with it the lease.
fn try_send(state: &[NotifyState]) -> io::Result<()> {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return Ok(()) };
    send_to(&path, state)
}

fn send_to(path: &OsStr, state: &[NotifyState]) -> io::Result<()> {
    let address = match path.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(path)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    let text: String = state.iter().map(|state| format!("{state}\n")).collect();
    socket.send_to_addr(text.as_bytes(), &address).map(drop)
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
    fn a_service_manager_that_does_not_read_holds_nobody_up() {
        let folder = tempfile::tempdir().expect("a directory");
        let path = folder.path().join("notify");
        let manager = UnixDatagram::bind(&path).expect("a socket");
        send_to(path.as_os_str(), &[NotifyState::Watchdog, NotifyState::Status("polling")]).expect("sent");
        let mut text = [0; 64];
        let length = manager.recv(&mut text).expect("a message");
        assert_eq!(&text[..length], b"WATCHDOG=1\nSTATUS=polling\n");
        let results = (0..100_000).map(|_| send_to(path.as_os_str(), &[NotifyState::Watchdog]));
        let full = results.filter_map(Result::err).next().expect("its queue has an end");
        assert_eq!(full.kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn nobody_who_does_not_listen_is_told() {
        let mut watchdog = Watchdog::every(None, false);
        watchdog.status(|| unreachable!("not even put together"), || unreachable!("nor this"));
    }
}
