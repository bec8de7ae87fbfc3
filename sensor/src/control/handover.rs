//! `POST /v1/handover`: an agent that starts asks the one that runs to end and leave its pins.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use axum::routing::post;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use tokio::net::UnixStream;
use tokio::sync::mpsc;

use super::ANSWER_TIMEOUT;
use super::client::answer;
use super::routes::{exchange_within, failure};
use crate::view::{HandOverView, Request};

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct HandOverQuery {
    /// Process of the agent that takes over, for the log.
    pid: u32,
    /// Device and inode of the directory of pins that it wants.
    pins: [u64; 2],
}

pub(super) fn router(requests: mpsc::Sender<Request>) -> Router {
    Router::new().route("/v1/handover", post(serve)).with_state(requests)
}

async fn serve(State(requests): State<mpsc::Sender<Request>>, Json(query): Json<HandOverQuery>) -> Response {
    let HandOverQuery { pid, pins } = query;
    match exchange_within(ANSWER_TIMEOUT, &requests, |reply| Request::HandOver { pid, pins, reply }).await {
        Ok(Ok(view)) => Json(view).into_response(),
        Ok(Err(reason)) => failure(StatusCode::CONFLICT, &reason),
        Err(response) => response,
    }
}

/// Has the agent behind a socket end and leave its `pins` ([`crate::bpf::pins::Pins::identity`]) to this process.
///
/// # Errors
/// No agent answers there, or not within `limit`; or it has no pins, or others.
pub async fn hand_over(socket: &Path, pins: [u64; 2], limit: Duration) -> Result<HandOverView> {
    let body = serde_json::to_vec(&HandOverQuery { pid: std::process::id(), pins })?;
    let request = hyper::Request::post("/v1/handover").header("content-type", "application/json");
    answer(socket, request, body.into(), limit).await
}

/// The process that listens at a socket, and a connection that lasts as long as it: also one that hangs.
///
/// # Errors
/// Nobody listens there.
pub async fn listener(socket: &Path) -> Result<(UnixStream, Option<i32>)> {
    let stream =
        UnixStream::connect(socket).await.with_context(|| format!("nobody listens at {}", socket.display()))?;
    let pid = stream.peer_cred().context("credentials of the listener")?.pid();
    Ok((stream, pid))
}
