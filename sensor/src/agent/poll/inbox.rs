//! Requests of the control socket, for which the poll thread waits until its next poll is due: it sleeps until one of the two
//! comes, whichever is first, and does not wake to look. A timer of the runtime would wake one of its threads for each poll, and
//! that thread this one.

use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use crate::view::Request;

/// Ends the sleep of a thread.
struct Alarm(Thread);

impl Wake for Alarm {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// What a thread that runs no tasks receives from one that does.
pub(super) struct Inbox {
    requests: mpsc::Receiver<Request>,
    waker: Waker,
}

impl Inbox {
    /// Of the thread that calls this.
    pub(super) fn new(requests: mpsc::Receiver<Request>) -> Inbox {
        Inbox { requests, waker: Waker::from(Arc::new(Alarm(std::thread::current()))) }
    }

    /// The next request, if there is one or one comes within `wait`.
    pub(super) fn next(&mut self, wait: Duration) -> Option<Request> {
        let until = Instant::now() + wait;
        loop {
            if let Poll::Ready(Some(request)) = self.requests.poll_recv(&mut Context::from_waker(&self.waker)) {
                return Some(request);
            }
            // Nobody can ask any more, or has not yet. Sleeps may end early.
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            std::thread::park_timeout(left);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::oneshot;

    fn request() -> Request {
        Request::Status { reply: oneshot::channel().0 }
    }

    #[test]
    fn a_request_ends_the_wait_and_silence_does_not() {
        let (sender, requests) = mpsc::channel(4);
        let mut inbox = Inbox::new(requests);
        let wait = Duration::from_millis(50);
        let begun = Instant::now();
        assert!(inbox.next(wait).is_none() && begun.elapsed() >= wait, "{:?}", begun.elapsed());
        let asking = std::thread::spawn(move || {
            std::thread::sleep(wait);
            sender.blocking_send(request()).expect("somebody listens");
            sender.blocking_send(request()).expect("somebody listens");
        });
        let long = Duration::from_secs(60);
        assert!(inbox.next(long).is_some() && inbox.next(long).is_some());
        assert!(begun.elapsed() < long / 2);
        asking.join().expect("sent");
        // Nobody is left to ask: what is waited for is the time alone.
        let begun = Instant::now();
        assert!(inbox.next(wait).is_none() && begun.elapsed() >= wait);
        assert!(inbox.next(Duration::ZERO).is_none());
    }
}
