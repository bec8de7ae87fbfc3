//! The control socket: HTTP and JSON on a Unix socket, server and client. docs/control.md describes it.
//!
//! Who can connect is a matter of the file's permissions: its owner, root, and the members of `agent.socket_group`. Who can
//! change anything is decided by the peer's credentials: root and the agent's own user. The server answers nothing
//! itself: it passes a [`crate::view::Request`] to the poll thread, which owns everything. Server side called by `agent`, client side
//! by `cli`.

mod client;
mod enforce;
mod handover;
mod readers;
mod routes;
mod server;

use std::time::Duration;

use axum::http::HeaderName;
use serde::{Deserialize, Serialize};

pub use self::client::{
    add_allow, add_verdict, add_verdicts, breaker, get_allowed, get_config, get_features, get_flows, get_log,
    get_metrics, get_status, get_verdict, get_verdicts, load, mode, reload, remove_allow, remove_verdicts,
};
pub use self::handover::{hand_over, listener};
pub use self::server::{Access, ControlSocket, SharedPolicy};

/// The poll thread answers within one poll; a client that waited this long is told so.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// The client's limit, larger so that the server's message arrives.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(10);
/// Loading a model takes as long as model.load_timeout (at most 10 minutes) and a build.
const LOAD_TIMEOUT: Duration = Duration::from_secs(15 * 60);

/// In an answer with a page of flows: where the next one begins.
const CURSOR: HeaderName = HeaderName::from_static("sensor-cursor");
/// In the answer to a change that was made: why it would not survive a restart.
const NOT_KEPT: HeaderName = HeaderName::from_static("sensor-not-kept");

#[derive(Debug, Serialize, Deserialize)]
struct Failure {
    error: String,
}

#[cfg(test)]
mod tests;
