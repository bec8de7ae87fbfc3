//! The control socket: `GET /v1/status`, `GET /v1/flows?sort=&limit=`, `GET /v1/features?id=` and `POST
//! /v1/model` over HTTP on a Unix socket, server and client.
//!
//! Only the socket's owner can connect (mode 0600). The server answers nothing itself: it passes a [`Request`] to the
//! poll thread, which owns the table. Server side called by `agent`, client side by `cli`.

mod handover;

use std::fs::{self, DirBuilder, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};

pub use self::handover::{hand_over, listener};
use crate::view::{FeaturesView, FlowView, ModelView, Request, SortKey, StatusView};

/// The poll thread answers within one poll; a client that waited this long is told so.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// The client's limit, larger so that the server's message arrives.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(10);
/// Loading a model takes as long as model.load_timeout (at most 10 minutes) and a build.
const LOAD_TIMEOUT: Duration = Duration::from_secs(15 * 60);

/// The bound socket. Dropping it removes the file, if it still is this one.
#[derive(Debug)]
pub struct ControlSocket {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode: another agent may have taken the name since.
    identity: (u64, u64),
}

impl ControlSocket {
    /// Binds the socket: creates its directory, removes what a dead agent left. Needs a tokio runtime.
    ///
    /// # Errors
    /// Another agent answers there, the path is something else than a socket, or it cannot be created.
    pub async fn bind(path: &Path) -> Result<ControlSocket> {
        if let Some(directory) = path.parent() {
            DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(directory)
                .with_context(|| format!("cannot create {}, the directory of agent.socket", directory.display()))?;
        }
        remove_stale(path).await?;
        let listener =
            UnixListener::bind(path).with_context(|| format!("cannot create the control socket {}", path.display()))?;
        fs::set_permissions(path, Permissions::from_mode(0o600))
            .with_context(|| format!("cannot restrict the control socket {} to its owner", path.display()))?;
        let metadata = fs::symlink_metadata(path).with_context(|| format!("the control socket {}", path.display()))?;
        Ok(ControlSocket { listener, path: path.to_owned(), identity: (metadata.dev(), metadata.ino()) })
    }

    /// Serves until the task is dropped; the file goes with it.
    pub async fn serve(self, requests: mpsc::Sender<Request>) {
        let router = Router::new()
            .route("/v1/status", get(status))
            .route("/v1/flows", get(flows))
            .route("/v1/features", get(features))
            .route("/v1/model", post(load_model))
            .with_state(requests.clone())
            .merge(handover::router(requests));
        crate::http::accept_loop(&self.listener, router).await;
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        let ours = |metadata: fs::Metadata| (metadata.dev(), metadata.ino()) == self.identity;
        if fs::symlink_metadata(&self.path).is_ok_and(ours) {
            // Left behind, it is only stale: the next start removes it.
            let _ = fs::remove_file(&self.path);
        }
    }
}

async fn remove_stale(path: &Path) -> Result<()> {
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("cannot look at {} (agent.socket)", path.display())),
    };
    if !metadata.file_type().is_socket() {
        bail!("{} (agent.socket) exists and is not a socket; remove it or choose another path", path.display());
    }
    match UnixStream::connect(path).await {
        Ok(stream) => {
            let pid = stream.peer_cred().ok().and_then(|peer| peer.pid());
            let pid = pid.map_or_else(|| "unknown pid".to_owned(), |pid| format!("pid {pid}"));
            bail!("another sensor agent is running with this socket ({pid}): {}", path.display())
        }
        Err(error) if matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::NotFound) => {
            match fs::remove_file(path) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    Err(error).with_context(|| format!("cannot remove the stale socket {}", path.display()))
                }
                _ => Ok(()),
            }
        }
        Err(error) => Err(error).with_context(|| format!("cannot tell whether an agent uses {}", path.display())),
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Failure {
    error: String,
}

fn failure(code: StatusCode, error: &str) -> Response {
    (code, Json(Failure { error: error.to_owned() })).into_response()
}

async fn ask<T: Serialize>(
    requests: &mpsc::Sender<Request>,
    request: impl FnOnce(oneshot::Sender<T>) -> Request,
) -> Response {
    match exchange_within(ANSWER_TIMEOUT, requests, request).await {
        Ok(value) => Json(value).into_response(),
        Err(response) => response,
    }
}

/// The poll thread's answer, or that of a failure.
async fn exchange_within<T>(
    limit: Duration,
    requests: &mpsc::Sender<Request>,
    request: impl FnOnce(oneshot::Sender<T>) -> Request,
) -> Result<T, Response> {
    let (reply, answer) = oneshot::channel();
    let exchange = async {
        requests.send(request(reply)).await.ok()?;
        answer.await.ok()
    };
    match tokio::time::timeout(limit, exchange).await {
        Ok(Some(value)) => Ok(value),
        Ok(None) => Err(failure(StatusCode::SERVICE_UNAVAILABLE, "the agent is stopping")),
        Err(_) => Err(failure(StatusCode::GATEWAY_TIMEOUT, "the poll thread did not answer in time; see its log")),
    }
}

async fn status(State(requests): State<mpsc::Sender<Request>>) -> Response {
    ask(&requests, |reply| Request::Status { reply }).await
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FlowsQuery {
    #[serde(default)]
    sort: SortKey,
    #[serde(default)]
    limit: usize,
}

async fn flows(State(requests): State<mpsc::Sender<Request>>, Query(query): Query<FlowsQuery>) -> Response {
    let FlowsQuery { sort, limit } = query;
    ask(&requests, |reply| Request::Flows { sort, limit, reply }).await
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FeaturesQuery {
    id: String,
}

async fn features(State(requests): State<mpsc::Sender<Request>>, Query(query): Query<FeaturesQuery>) -> Response {
    let ask = exchange_within(ANSWER_TIMEOUT, &requests, |reply| Request::Features { id: query.id, reply });
    match ask.await {
        Ok(Some(view)) => Json(view).into_response(),
        Ok(None) => failure(StatusCode::NOT_FOUND, "there is no such flow any more; `sensor flows --json` has the ids"),
        Err(response) => response,
    }
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct LoadQuery {
    path: PathBuf,
    #[serde(default)]
    shadow: bool,
}

async fn load_model(State(requests): State<mpsc::Sender<Request>>, Json(query): Json<LoadQuery>) -> Response {
    let LoadQuery { path, shadow } = query;
    match exchange_within(LOAD_TIMEOUT, &requests, |reply| Request::Load { path, shadow, reply }).await {
        Ok(Ok(view)) => Json(view).into_response(),
        Ok(Err(reason)) => failure(StatusCode::UNPROCESSABLE_ENTITY, &reason),
        Err(response) => response,
    }
}

/// Asks the agent behind a socket for the features of a flow.
///
/// # Errors
/// As [`get_status`], or there is no such flow.
pub async fn get_features(socket: &Path, id: &str) -> Result<FeaturesView> {
    // An id is digits and a hyphen; anything else could change the query.
    let plain = id.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-');
    anyhow::ensure!(plain, "{id:?} is no flow; `sensor flows --json` has the ids");
    fetch(socket, &format!("/v1/features?id={id}")).await
}

/// Has the agent behind a socket load a model file; returns when it is in use.
///
/// # Errors
/// As [`get_status`], or the model was refused.
pub async fn load(socket: &Path, path: PathBuf, shadow: bool) -> Result<ModelView> {
    let body = serde_json::to_vec(&LoadQuery { path, shadow }).context("the path is not UTF-8")?;
    let request = hyper::Request::post("/v1/model").header("content-type", "application/json");
    answer(socket, request, body.into(), LOAD_TIMEOUT + CLIENT_TIMEOUT).await
}

/// Asks the agent behind a socket for its status.
///
/// # Errors
/// No agent answers there, or not in time.
pub async fn get_status(socket: &Path) -> Result<StatusView> {
    fetch(socket, "/v1/status").await
}

/// Asks the agent behind a socket for its largest flows (`limit` 0 = all).
///
/// # Errors
/// As [`get_status`].
pub async fn get_flows(socket: &Path, sort: SortKey, limit: usize) -> Result<Vec<FlowView>> {
    fetch(socket, &format!("/v1/flows?sort={}&limit={limit}", sort.name())).await
}

async fn fetch<T: DeserializeOwned>(socket: &Path, path: &str) -> Result<T> {
    answer(socket, hyper::Request::get(path), Bytes::new(), CLIENT_TIMEOUT).await
}

async fn answer<T: DeserializeOwned>(
    socket: &Path,
    request: hyper::http::request::Builder,
    body: Bytes,
    limit: Duration,
) -> Result<T> {
    tokio::time::timeout(limit, exchange(socket, request, body))
        .await
        .map_err(|_| anyhow!("the agent at {} did not answer within {} s", socket.display(), limit.as_secs()))?
}

async fn exchange<T: DeserializeOwned>(
    socket: &Path,
    request: hyper::http::request::Builder,
    body: Bytes,
) -> Result<T> {
    let stream = UnixStream::connect(socket).await.map_err(|error| match error.kind() {
        ErrorKind::NotFound | ErrorKind::ConnectionRefused => {
            anyhow!(
                "no agent answers at {}; start one with `sensor run`, or name its socket with --socket",
                socket.display()
            )
        }
        ErrorKind::PermissionDenied => {
            anyhow!("{} belongs to another user; run this command as the agent's user (root)", socket.display())
        }
        _ => anyhow!(error).context(format!("cannot connect to {}", socket.display())),
    })?;
    let broken = || format!("the agent at {} broke the connection off", socket.display());
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.with_context(broken)?;
    let request = request.header("host", "sensor").body(Full::new(body))?;
    let transfer = async {
        let response = sender.send_request(request).await?;
        let status = response.status();
        Ok::<_, hyper::Error>((status, response.into_body().collect().await?.to_bytes()))
    };
    tokio::pin!(connection);
    tokio::pin!(transfer);
    // The connection does the work; the transfer is over before it, or with it.
    let (status, body) = tokio::select! {
        biased;
        result = &mut transfer => result.with_context(broken)?,
        result = &mut connection => { result.with_context(broken)?; transfer.await.with_context(broken)? }
    };
    if !status.is_success() {
        let reason = serde_json::from_slice::<Failure>(&body)
            .map_or_else(|_| String::from_utf8_lossy(&body).into_owned(), |failure| failure.error);
        bail!("the agent at {} answered {status}: {reason}", socket.display());
    }
    serde_json::from_slice(&body)
        .with_context(|| format!("the agent at {} is of another version than this command", socket.display()))
}

#[cfg(test)]
mod tests;
