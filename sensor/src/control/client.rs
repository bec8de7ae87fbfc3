//! The commands' side of the socket.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use axum::http::HeaderName;
use http_body_util::{BodyExt, Full};
use hyper::Method;
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::enforce::{Change, ItemQuery, ModeBody};
use super::routes::LoadQuery;
use super::{CLIENT_TIMEOUT, CURSOR, Failure, LOAD_TIMEOUT, NOT_KEPT};
use crate::allow::Entry;
use crate::allow::item::Item;
use crate::config::Mode;
use crate::verdicts::Verdict;
use crate::view::{
    BatchView, BreakerView, ConfigView, FeaturesView, FlowView, Kept, MAX_FLOWS, ModeView, ModelView, NewAllow,
    NewVerdict, NewVerdicts, ReloadView, SortKey, StatusView, VerdictList, VerdictView, Which, sort_flows,
};

/// Asks the agent behind a socket for its verdicts, the newest `limit` of them (0 = all).
///
/// # Errors
/// As [`get_status`].
pub async fn get_verdicts(socket: &Path, limit: usize) -> Result<VerdictList> {
    fetch(socket, &format!("/v1/verdicts?limit={limit}")).await
}

/// Asks for one verdict.
///
/// # Errors
/// As [`get_status`], or there is none with this number.
pub async fn get_verdict(socket: &Path, id: u64) -> Result<VerdictView> {
    fetch(socket, &format!("/v1/verdicts/{id}")).await
}

/// Enters a verdict.
///
/// # Errors
/// As [`get_status`], or it was refused.
pub async fn add_verdict(socket: &Path, new: &NewVerdict) -> Result<Kept<VerdictView>> {
    change(socket, Method::POST, "/v1/verdicts", new).await
}

/// Enters many verdicts, at most [`crate::view::MAX_BATCH`].
///
/// # Errors
/// As [`get_status`]; what was refused is in the answer.
pub async fn add_verdicts(socket: &Path, new: &NewVerdicts) -> Result<Kept<BatchView>> {
    change(socket, Method::POST, "/v1/verdicts/batch", new).await
}

/// Takes verdicts back; those that are gone.
///
/// # Errors
/// As [`get_status`], or there is none.
pub async fn remove_verdicts(socket: &Path, which: Which) -> Result<Kept<Vec<Verdict>>> {
    change(socket, Method::POST, "/v1/verdicts/remove", &Change { which }).await
}

/// Asks for the never-drop list.
///
/// # Errors
/// As [`get_status`].
pub async fn get_allowed(socket: &Path) -> Result<Vec<Entry>> {
    fetch(socket, "/v1/allow").await
}

/// Puts something on the never-drop list.
///
/// # Errors
/// As [`get_status`].
pub async fn add_allow(socket: &Path, new: &NewAllow) -> Result<Kept<Entry>> {
    change(socket, Method::POST, "/v1/allow", new).await
}

/// Takes something off the never-drop list.
///
/// # Errors
/// As [`get_status`], or no operator has put it there.
pub async fn remove_allow(socket: &Path, item: Item) -> Result<Kept<Item>> {
    change(socket, Method::POST, "/v1/allow/remove", &ItemQuery { item }).await
}

/// The mode, after a change to `to` if there is one.
///
/// # Errors
/// As [`get_status`].
pub async fn mode(socket: &Path, to: Option<Mode>) -> Result<Kept<ModeView>> {
    match to {
        Some(mode) => change(socket, Method::PUT, "/v1/mode", &ModeBody { mode }).await,
        None => fetch(socket, "/v1/mode").await.map(unchanged),
    }
}

/// The breaker, after a reset if that is asked for.
///
/// # Errors
/// As [`get_status`].
pub async fn breaker(socket: &Path, reset: bool) -> Result<Kept<BreakerView>> {
    if reset {
        return change(socket, Method::POST, "/v1/breaker/reset", &()).await;
    }
    fetch(socket, "/v1/breaker").await.map(unchanged)
}

fn unchanged<T>(value: T) -> Kept<T> {
    Kept { value, not_kept: None }
}

async fn change<T: DeserializeOwned>(
    socket: &Path,
    method: Method,
    path: &str,
    body: &impl Serialize,
) -> Result<Kept<T>> {
    let body = serde_json::to_vec(body).context("cannot write the request as JSON")?;
    let request = hyper::Request::builder().method(method).uri(path).header("content-type", "application/json");
    answer_kept(socket, request, body.into(), CLIENT_TIMEOUT).await
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

/// Has the agent behind a socket read its configuration again; returns when it is in force.
///
/// # Errors
/// As [`get_status`], or it was refused: then the one before it is in force.
pub async fn reload(socket: &Path) -> Result<ReloadView> {
    let request = hyper::Request::post("/v1/reload");
    answer(socket, request, Bytes::new(), LOAD_TIMEOUT + CLIENT_TIMEOUT).await
}

/// Asks the agent behind a socket for the configuration that is in force.
///
/// # Errors
/// As [`get_status`].
pub async fn get_config(socket: &Path) -> Result<ConfigView> {
    fetch(socket, "/v1/config").await
}

/// Asks the agent behind a socket for its metrics, in Prometheus text.
///
/// # Errors
/// As [`get_status`].
pub async fn get_metrics(socket: &Path) -> Result<String> {
    fetch(socket, "/v1/metrics").await
}

/// Asks the agent behind a socket for the last lines of its log.
///
/// # Errors
/// As [`get_status`].
pub async fn get_log(socket: &Path) -> Result<String> {
    fetch(socket, "/v1/log").await
}

/// Asks the agent behind a socket for its status.
///
/// # Errors
/// No agent answers there, or not in time.
pub async fn get_status(socket: &Path) -> Result<StatusView> {
    fetch(socket, "/v1/status").await
}

/// Asks the agent behind a socket for its largest flows (`limit` 0 = all). A list longer than [`MAX_FLOWS`] comes in
/// pages.
///
/// # Errors
/// As [`get_status`].
pub async fn get_flows(socket: &Path, sort: SortKey, limit: usize) -> Result<Vec<FlowView>> {
    if limit > 0 && limit <= MAX_FLOWS {
        return fetch(socket, &format!("/v1/flows?sort={}&limit={limit}", sort.name())).await;
    }
    let (mut flows, mut cursor) = (Vec::new(), Some("0".to_owned()));
    while let Some(from) = cursor {
        let request = hyper::Request::get(format!("/v1/flows?cursor={from}&limit={MAX_FLOWS}"));
        let (page, next): (Vec<FlowView>, _) =
            answer_with(socket, request, Bytes::new(), CLIENT_TIMEOUT, &CURSOR).await?;
        flows.extend(page);
        cursor = next;
    }
    sort_flows(&mut flows, sort, limit);
    Ok(flows)
}

pub(super) async fn fetch<T: DeserializeOwned>(socket: &Path, path: &str) -> Result<T> {
    answer(socket, hyper::Request::get(path), Bytes::new(), CLIENT_TIMEOUT).await
}

pub(super) async fn answer<T: DeserializeOwned>(
    socket: &Path,
    request: hyper::http::request::Builder,
    body: Bytes,
    limit: Duration,
) -> Result<T> {
    answer_kept(socket, request, body, limit).await.map(|kept| kept.value)
}

async fn answer_kept<T: DeserializeOwned>(
    socket: &Path,
    request: hyper::http::request::Builder,
    body: Bytes,
    limit: Duration,
) -> Result<Kept<T>> {
    let (value, not_kept) = answer_with(socket, request, body, limit, &NOT_KEPT).await?;
    Ok(Kept { value, not_kept })
}

/// An answer, and what stands in this header of it.
async fn answer_with<T: DeserializeOwned>(
    socket: &Path,
    request: hyper::http::request::Builder,
    body: Bytes,
    limit: Duration,
    header: &HeaderName,
) -> Result<(T, Option<String>)> {
    tokio::time::timeout(limit, exchange(socket, request, body, header))
        .await
        .map_err(|_| anyhow!("the agent at {} did not answer within {} s", socket.display(), limit.as_secs()))?
}

async fn exchange<T: DeserializeOwned>(
    socket: &Path,
    request: hyper::http::request::Builder,
    body: Bytes,
    header: &HeaderName,
) -> Result<(T, Option<String>)> {
    let stream = UnixStream::connect(socket).await.map_err(|error| match error.kind() {
        ErrorKind::NotFound | ErrorKind::ConnectionRefused => {
            anyhow!(
                "no agent answers at {}; start one with `sensor run`, or name its socket with --socket",
                socket.display()
            )
        }
        ErrorKind::PermissionDenied => {
            anyhow!(
                "{} is not for this user; run this command as root, as the agent's user, or (to read) as a member of \
                 agent.socket_group",
                socket.display()
            )
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
        let said = response.headers().get(header).and_then(|said| said.to_str().ok()).map(str::to_owned);
        Ok::<_, hyper::Error>((status, said, response.into_body().collect().await?.to_bytes()))
    };
    tokio::pin!(connection);
    tokio::pin!(transfer);
    // The connection does the work; the transfer is over before it, or with it.
    let (status, said, body) = tokio::select! {
        biased;
        result = &mut transfer => result.with_context(broken)?,
        result = &mut connection => { result.with_context(broken)?; transfer.await.with_context(broken)? }
    };
    if !status.is_success() {
        let reason = serde_json::from_slice::<Failure>(&body)
            .map_or_else(|_| String::from_utf8_lossy(&body).into_owned(), |failure| failure.error);
        bail!("the agent at {} answered {status}: {reason}", socket.display());
    }
    let value = serde_json::from_slice(&body)
        .with_context(|| format!("the agent at {} is of another version than this command", socket.display()))?;
    Ok((value, said))
}
