//! Connections of the HTTP endpoints: accepted at once and bounded in number, time and size of a request's head.
//!
//! Invariant: nobody is locked out by connections that do nothing. Whoever connects is accepted; if the places of its class
//! are taken, that of the oldest connection without a request is given up for it. Administrators have places of their
//! own, so that readers, however many and busy, do not take theirs. Called by [`super`] and [`crate::control`].

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use hyper::body::Incoming;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::task::AbortHandle;

/// Connections of one class at once.
const MAX_CONNECTIONS: usize = 32;
/// A client that sends no complete request head for this long is cut off (idle keep-alive connections too).
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// A connection ends after this long, whatever it does: a client that never reads cannot keep its place.
const CONNECTION_LIFETIME: Duration = Duration::from_secs(600);
/// Bytes of a request head, and of what is read ahead.
const MAX_HEAD_BYTES: usize = 16 * 1024;

/// Whose places a connection takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// May change something.
    Administrator,
    /// May not.
    Other,
}

/// What is served to a connection.
pub(crate) struct Guest {
    /// Its routes.
    pub(crate) router: Router,
    /// Its class.
    pub(crate) class: Class,
}

/// A listener of either kind.
pub(crate) trait Accept: Sync {
    /// Its connections.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;
    /// Waits for the next one.
    fn accept_stream(&self) -> impl Future<Output = std::io::Result<Self::Stream>> + Send;
}

impl Accept for TcpListener {
    type Stream = TcpStream;
    async fn accept_stream(&self) -> std::io::Result<TcpStream> {
        self.accept().await.map(|(stream, _)| stream)
    }
}

impl Accept for UnixListener {
    type Stream = UnixStream;
    async fn accept_stream(&self) -> std::io::Result<UnixStream> {
        self.accept().await.map(|(stream, _)| stream)
    }
}

/// A connection that is served.
struct Place {
    task: AbortHandle,
    /// A request is being answered.
    at_work: Arc<AtomicBool>,
}

/// Accepts and serves connections for ever, each in its own task. `guest_of` says what a connection is served.
pub(crate) async fn serve<A: Accept>(listener: &A, guest_of: impl Fn(&A::Stream) -> Guest) {
    let mut classes: [VecDeque<Place>; 2] = Default::default();
    loop {
        let stream = match listener.accept_stream().await {
            Ok(stream) => stream,
            Err(error) => {
                // Out of descriptors, or the peer has gone: neither ends the service, but the first must not spin.
                tracing::debug!(%error, "accept failed");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let Guest { router, class } = guest_of(&stream);
        let places = &mut classes[usize::from(class == Class::Administrator)];
        places.retain(|place| !place.task.is_finished());
        if places.len() >= MAX_CONNECTIONS {
            let silent = places.iter().position(|place| !place.at_work.load(Ordering::Relaxed));
            // All are at a request: then it is the newcomer that is hung up on.
            let Some(silent) = silent.and_then(|place| places.remove(place)) else { continue };
            silent.task.abort();
        }
        let at_work = Arc::<AtomicBool>::default();
        let task = tokio::spawn(connection(stream, router, at_work.clone())).abort_handle();
        places.push_back(Place { task, at_work });
    }
}

async fn connection(stream: impl AsyncRead + AsyncWrite + Unpin, router: Router, at_work: Arc<AtomicBool>) {
    let service = TowerToHyperService::new(router);
    let service = service_fn(|request: hyper::Request<Incoming>| {
        at_work.store(true, Ordering::Relaxed);
        let answer = service.call(request);
        async {
            let answer = answer.await;
            at_work.store(false, Ordering::Relaxed);
            answer
        }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(MAX_HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    // A client that hangs up or sends nonsense is its own affair.
    let _ = tokio::time::timeout(CONNECTION_LIFETIME, connection).await;
}
