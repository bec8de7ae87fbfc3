//! `/metrics` and `/healthz` over TCP, and the connections that the control socket shares.
//!
//! Nothing here can hold the agent up: connections are bounded ([`connections`]), and request bodies are not read. Started
//! by `agent` on its tokio runtime.

pub(crate) mod connections;
mod hosts;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use axum::Router;
use axum::extract::State;
use axum::http::header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde_json::json;
use tokio::net::TcpListener;

use self::connections::{Class, Guest};
pub use self::hosts::Hosts;
use crate::metrics::{Metrics, text};

/// Whether the poll thread lives: it says so at every poll.
#[derive(Debug)]
pub struct Health {
    started: Instant,
    /// Nanoseconds from `started` to the last poll, 0 = none yet.
    last_ns: AtomicU64,
    /// Nanoseconds.
    stale_after: AtomicU64,
}

impl Health {
    /// `stale_after`: the lease, after which the programs do not obey the agent any more.
    pub fn new(now: Instant, stale_after: Duration) -> Health {
        let stale_after = AtomicU64::new(nanos(stale_after));
        Health { started: now, last_ns: AtomicU64::new(0), stale_after }
    }

    /// Another lease.
    pub fn set_stale_after(&self, stale_after: Duration) {
        self.stale_after.store(nanos(stale_after), Ordering::Relaxed);
    }

    fn stale_after(&self) -> Duration {
        Duration::from_nanos(self.stale_after.load(Ordering::Relaxed))
    }

    /// Called at each poll.
    pub fn tick(&self, now: Instant) {
        let ns = nanos(now.saturating_duration_since(self.started));
        self.last_ns.store(ns.max(1), Ordering::Relaxed);
    }

    /// Time since the last poll; `None` before the first.
    pub fn age(&self, now: Instant) -> Option<Duration> {
        match self.last_ns.load(Ordering::Relaxed) {
            0 => None,
            ns => Some(now.saturating_duration_since(self.started).saturating_sub(Duration::from_nanos(ns))),
        }
    }

    /// Whether the last poll is recent enough for the lease to hold.
    pub fn is_fresh(&self, now: Instant) -> bool {
        self.age(now).is_some_and(|age| age < self.stale_after())
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// What the endpoints show.
#[derive(Clone, Debug)]
pub struct HttpState {
    /// The metrics.
    pub metrics: Arc<Metrics>,
    /// The poll thread's sign of life.
    pub health: Arc<Health>,
    /// Names that are answered to.
    pub hosts: Arc<Hosts>,
}

/// Listens where `[metrics] listen` says.
///
/// # Errors
/// The address is in use or not this host's; the message names the setting.
pub async fn bind(address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| {
        format!("cannot listen on {address} for /metrics; change metrics.listen or --metrics-listen (\"\" for none)")
    })
}

/// Serves until the task is dropped.
pub async fn serve(listener: TcpListener, state: HttpState) {
    let hosts = from_fn_with_state(state.hosts.clone(), hosts::known);
    let router = Router::new().route("/metrics", get(metrics)).route("/healthz", get(healthz)).with_state(state);
    let router = router.layer(hosts);
    connections::serve(&listener, |_| Guest { router: router.clone(), class: Class::Other }).await;
}

async fn metrics(State(state): State<HttpState>, headers: HeaderMap) -> Response {
    // The poll thread renews the lease; when it hangs, somebody else has to say that the lease has run out.
    state.metrics.lease(state.health.is_fresh(Instant::now()));
    let accept = headers.get(ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let (kind, body) = if text::accepts_open_metrics(accept) {
        (text::OPEN_METRICS, state.metrics.open_metrics())
    } else {
        (text::PROMETHEUS, state.metrics.prometheus())
    };
    ([(CONTENT_TYPE, kind), (CACHE_CONTROL, "no-store")], body).into_response()
}

async fn healthz(State(HttpState { health, .. }): State<HttpState>) -> Response {
    let now = Instant::now();
    let (code, status) =
        if health.is_fresh(now) { (StatusCode::OK, "ok") } else { (StatusCode::SERVICE_UNAVAILABLE, "stale") };
    let body = json!({
        "status": status,
        "last_poll_seconds": health.age(now).map(|age| age.as_secs_f64()),
        "stale_after_seconds": health.stale_after().as_secs_f64(),
    });
    (code, [(CACHE_CONTROL, "no-store")], axum::Json(body)).into_response()
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt, Empty};
    use hyper::body::Bytes;
    use hyper_util::rt::TokioIo;
    use tokio::net::TcpStream;

    use super::*;

    async fn get(address: SocketAddr, path: &str, accept: &str) -> (StatusCode, String, String) {
        get_as("127.0.0.1:9469", address, path, accept).await
    }

    async fn get_as(host: &str, address: SocketAddr, path: &str, accept: &str) -> (StatusCode, String, String) {
        let stream = TcpStream::connect(address).await.expect("connects");
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("HTTP");
        tokio::spawn(connection);
        let request = hyper::Request::get(path).header("host", host).header(ACCEPT, accept).body(Empty::<Bytes>::new());
        let response = sender.send_request(request.expect("request")).await.expect("answer");
        let kind = response.headers().get(CONTENT_TYPE).map(|kind| kind.to_str().expect("text").to_owned());
        let status = response.status();
        let body = response.into_body().collect().await.expect("body").to_bytes();
        (status, kind.unwrap_or_default(), String::from_utf8(body.to_vec()).expect("UTF-8"))
    }

    #[tokio::test]
    async fn endpoints() {
        let listener = bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let state = HttpState {
            metrics: Arc::new(Metrics::new()),
            health: Arc::new(Health::new(Instant::now(), Duration::from_secs(5))),
            hosts: Arc::new(Hosts::new(&[])),
        };
        let server = tokio::spawn(serve(listener, state.clone()));

        let (status, _, body) = get(address, "/healthz", "*/*").await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{body}");
        state.health.tick(Instant::now());
        let (status, _, body) = get(address, "/healthz", "*/*").await;
        assert_eq!(status, StatusCode::OK);
        assert!(body.contains("\"status\":\"ok\""), "{body}");

        let (status, kind, body) = get(address, "/metrics", "*/*").await;
        assert_eq!((status, kind.as_str()), (StatusCode::OK, text::PROMETHEUS));
        assert!(body.contains("# TYPE sensor_scored_flows_total counter") && !body.contains("# EOF"), "{body}");
        let (_, kind, body) = get(address, "/metrics", "application/openmetrics-text;version=1.0.0").await;
        assert_eq!(kind, text::OPEN_METRICS);
        assert!(body.ends_with("# EOF\n") && body.contains("# TYPE sensor_scored_flows counter"), "{body}");

        assert_eq!(get(address, "/", "*/*").await.0, StatusCode::NOT_FOUND);
        let (status, _, body) = get_as("rebound.example.org", address, "/metrics", "*/*").await;
        assert_eq!(status, StatusCode::MISDIRECTED_REQUEST);
        assert!(body.contains("metrics.allowed_hosts") && !body.contains("sensor_"), "{body}");
        let error = bind(address).await.expect_err("in use").to_string();
        assert!(error.contains("metrics.listen"), "{error}");
        server.abort();
    }

    #[test]
    fn health_goes_stale() {
        let start = Instant::now();
        let health = Health::new(start, Duration::from_secs(5));
        assert!(!health.is_fresh(start), "not before the first poll");
        health.tick(start);
        assert!(health.is_fresh(start + Duration::from_secs(4)));
        assert!(!health.is_fresh(start + Duration::from_secs(6)));
        health.tick(start + Duration::from_secs(6));
        assert!(health.is_fresh(start + Duration::from_secs(7)));
    }
}
