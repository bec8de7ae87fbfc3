//! The routes that show flows, features and the status, and load models; those of enforcement are in
//! [`super::enforce`]. Whatever changes something is for administrators only.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use axum::extract::{Query, Request as HttpRequest, State};
use axum::http::{HeaderValue, Method, StatusCode};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

use super::readers::Places;
use super::server::SharedPolicy;
use super::{ANSWER_TIMEOUT, CURSOR, Failure, LOAD_TIMEOUT, enforce, handover};
use crate::view::{FlowOrder, FlowPage, FlowsQuery, Peer, Request, SortKey};

/// Flows of an answer if nobody says how many.
const DEFAULT_FLOWS: usize = 1_000;
/// How long a list of flows may take: it is made between polls.
const LIST_TIMEOUT: Duration = Duration::from_secs(8);

/// All routes.
pub(super) fn router(requests: mpsc::Sender<Request>, policy: SharedPolicy) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/flows", get(flows))
        .route("/v1/features", get(features))
        .route("/v1/model", post(load_model))
        .route("/v1/reload", post(reload))
        .route("/v1/config", get(config))
        .route("/v1/log", get(log))
        .route("/v1/metrics", get(metrics))
        .with_state(requests.clone())
        .merge(handover::router(requests.clone()))
        .merge(enforce::router(requests, policy))
        .layer(from_fn_with_state(Places::default(), one_after_the_other))
        .layer(from_fn(administrators_change))
}

/// Reading is for everybody who can connect; all else for root and for the user that the agent runs as.
async fn administrators_change(Extension(peer): Extension<Peer>, request: HttpRequest, next: Next) -> Response {
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    if reads || is_administrator(peer) {
        return next.run(request).await;
    }
    let error = format!("uid {} may read here, and change nothing: that is for root and the agent's user", peer.uid);
    failure(StatusCode::FORBIDDEN, &error)
}

/// Readers have few places; see [`Places`].
async fn one_after_the_other(
    State(places): State<Places>,
    Extension(peer): Extension<Peer>,
    request: HttpRequest,
    next: Next,
) -> Response {
    places.answer(is_administrator(peer), request, next).await
}

pub(super) fn is_administrator(peer: Peer) -> bool {
    peer.uid == 0 || peer.uid == rustix::process::geteuid().as_raw()
}

pub(super) fn failure(code: StatusCode, error: &str) -> Response {
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
pub(super) async fn exchange_within<T>(
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
struct FlowsParameters {
    sort: Option<SortKey>,
    /// At most [`crate::view::MAX_FLOWS`].
    limit: Option<NonZeroUsize>,
    /// As they stand in the table, from here on.
    cursor: Option<usize>,
}

async fn flows(
    State(requests): State<mpsc::Sender<Request>>,
    Extension(by): Extension<Peer>,
    Query(FlowsParameters { sort, limit, cursor }): Query<FlowsParameters>,
) -> Response {
    let order = cursor.map_or(FlowOrder::Largest(sort.unwrap_or_default()), |from| FlowOrder::Table { from });
    if cursor.is_some() && sort.is_some() {
        return failure(StatusCode::BAD_REQUEST, "a list with a cursor has the order of the table: leave sort out");
    }
    let limit = limit.map_or(DEFAULT_FLOWS, NonZeroUsize::get);
    let query = FlowsQuery { order, limit, first: is_administrator(by) };
    match exchange_within(LIST_TIMEOUT, &requests, |reply| Request::Flows { query, reply }).await {
        Ok(FlowPage { flows, next }) => {
            let mut response = Json(flows).into_response();
            response.headers_mut().extend(next.map(|next| (CURSOR, HeaderValue::from(next))));
            response
        }
        Err(response) => response,
    }
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
pub(super) struct LoadQuery {
    pub(super) path: PathBuf,
    #[serde(default)]
    pub(super) shadow: bool,
}

async fn load_model(
    State(requests): State<mpsc::Sender<Request>>,
    Extension(by): Extension<Peer>,
    Json(query): Json<LoadQuery>,
) -> Response {
    let LoadQuery { path, shadow } = query;
    match exchange_within(LOAD_TIMEOUT, &requests, |reply| Request::Load { path, shadow, by, reply }).await {
        Ok(Ok(view)) => Json(view).into_response(),
        Ok(Err(reason)) => failure(StatusCode::UNPROCESSABLE_ENTITY, &reason),
        Err(response) => response,
    }
}

async fn reload(State(requests): State<mpsc::Sender<Request>>, Extension(by): Extension<Peer>) -> Response {
    match exchange_within(LOAD_TIMEOUT, &requests, |reply| Request::Reload { by, reply }).await {
        Ok(Ok(view)) => Json(view).into_response(),
        Ok(Err(reason)) => failure(StatusCode::UNPROCESSABLE_ENTITY, &reason),
        Err(response) => response,
    }
}

async fn config(State(requests): State<mpsc::Sender<Request>>) -> Response {
    ask(&requests, |reply| Request::Config { reply }).await
}

async fn metrics(State(requests): State<mpsc::Sender<Request>>) -> Response {
    ask(&requests, |reply| Request::Metrics { reply }).await
}

async fn log(State(requests): State<mpsc::Sender<Request>>) -> Response {
    ask(&requests, |reply| Request::Log { reply }).await
}
