//! The routes of enforcement: verdicts, the never-drop list, the mode, the breaker.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::{Path, Query, State};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, mpsc, oneshot};

use super::routes::{exchange_within, failure};
use super::server::SharedPolicy;
use super::{ANSWER_TIMEOUT, NOT_KEPT};
use crate::allow::item::Item;
use crate::config::Mode;
use crate::host::{self, Items};
use crate::store::Unkept;
use crate::view::{EnforceRequest, Kept, NewAllow, NewVerdict, NewVerdicts, Peer, Request, Which};

/// Sessions are looked for at most this often: a look reads through every connection of the kernel, tens of
/// milliseconds of CPU, which a list of verdicts that is added one by one cannot pay each time.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// How long the answer to a change waits for the disk.
const KEPT_TIMEOUT: Duration = Duration::from_secs(3);

/// When the last look was, and what it found; nothing is looked for unless it is wanted.
type Look = (Instant, Option<Items>);

/// What of a change the disk did not take.
type Part = fn(Unkept) -> Option<String>;
const SETTINGS: Part = |unkept| unkept.settings;
const VERDICTS: Part = |unkept| unkept.verdicts;

#[derive(Clone)]
struct Door {
    requests: mpsc::Sender<Request>,
    policy: SharedPolicy,
    sessions: Arc<Mutex<Option<Look>>>,
}

pub(super) fn router(requests: mpsc::Sender<Request>, policy: SharedPolicy) -> Router {
    Router::new()
        .route("/v1/verdicts", get(verdicts).post(add))
        .route("/v1/verdicts/batch", post(add_many))
        .route("/v1/verdicts/remove", post(remove))
        .route("/v1/verdicts/{id}", get(verdict).delete(remove_one))
        .route("/v1/allow", get(allowed).post(allow))
        .route("/v1/allow/remove", post(disallow))
        .route("/v1/mode", get(mode).put(set_mode))
        .route("/v1/breaker", get(breaker))
        .route("/v1/breaker/reset", post(reset))
        .with_state(Door { requests, policy, sessions: Arc::default() })
}

impl Door {
    /// The poll thread's answer as HTTP. `refused`: the status of a reason why not.
    async fn ask<T: Serialize>(
        &self,
        refused: StatusCode,
        request: impl FnOnce(oneshot::Sender<Result<T, String>>) -> EnforceRequest,
    ) -> Response {
        match exchange_within(ANSWER_TIMEOUT, &self.requests, |reply| Request::Enforce(request(reply))).await {
            Ok(Ok(value)) => Json(value).into_response(),
            Ok(Err(reason)) => failure(refused, &reason),
            Err(response) => response,
        }
    }

    /// As [`Door::ask`], for a change: the answer comes when the disk has it or has refused it, and says so. `part`:
    /// where it is kept.
    async fn change<T: Serialize>(
        &self,
        part: Part,
        refused: StatusCode,
        request: impl FnOnce(oneshot::Sender<Result<T, String>>) -> EnforceRequest,
    ) -> Response {
        match exchange_within(ANSWER_TIMEOUT, &self.requests, |reply| Request::Enforce(request(reply))).await {
            Ok(Ok(value)) => {
                let not_kept = self.not_kept(part).await;
                // A header takes no other characters.
                let plain = |c: char| if c == ' ' || c.is_ascii_graphic() { c } else { '?' };
                let header = not_kept.as_deref().map(|reason| reason.chars().map(plain).collect::<String>());
                let header = header.and_then(|reason| HeaderValue::from_str(&reason).ok());
                let mut response = Json(Kept { value, not_kept }).into_response();
                response.headers_mut().extend(header.map(|reason| (NOT_KEPT, reason)));
                response
            }
            Ok(Err(reason)) => failure(refused, &reason),
            Err(response) => response,
        }
    }

    /// Why a change that was made would not survive a restart.
    async fn not_kept(&self, part: Part) -> Option<String> {
        let ask = |reply| Request::Enforce(EnforceRequest::Kept { reply });
        let answer = exchange_within(KEPT_TIMEOUT, &self.requests, ask).await;
        let Ok(Ok(kept)) = answer else { return Some("the agent did not say".to_owned()) };
        match tokio::time::timeout(KEPT_TIMEOUT, kept?).await {
            Ok(Ok(unkept)) => part(unkept),
            Ok(Err(_)) => Some("the agent is stopping, or has too many changes to write".to_owned()),
            Err(_) => Some(format!("the disk did not take it within {} s", KEPT_TIMEOUT.as_secs())),
        }
    }

    /// Sessions of operators now (or within the last [`LOOK_INTERVAL`]): whoever acts must not cut off the session that is
    /// typed in.
    async fn sessions(&self) -> Option<Items> {
        let mut last = self.sessions.lock().await;
        if let Some((at, found)) = &*last
            && at.elapsed() < LOOK_INTERVAL
        {
            return found.clone();
        }
        // Whoever panicked left a whole policy behind.
        let policy = self.policy.read().unwrap_or_else(PoisonError::into_inner).clone();
        let at = Instant::now();
        let found = tokio::task::spawn_blocking(move || host::sessions(&policy)).await.ok().flatten();
        *last = Some((at, found.clone()));
        found
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ListQuery {
    #[serde(default)]
    limit: usize,
}

async fn verdicts(State(door): State<Door>, Query(ListQuery { limit }): Query<ListQuery>) -> Response {
    door.ask(StatusCode::UNPROCESSABLE_ENTITY, |reply| EnforceRequest::Verdicts { limit, reply }).await
}

async fn verdict(State(door): State<Door>, Path(id): Path<u64>) -> Response {
    door.ask(StatusCode::NOT_FOUND, |reply| EnforceRequest::Verdict { id, reply }).await
}

async fn add(State(door): State<Door>, Extension(by): Extension<Peer>, Json(new): Json<NewVerdict>) -> Response {
    let sessions = door.sessions().await;
    let request = |reply| EnforceRequest::Add { new, by, sessions, reply };
    door.change(VERDICTS, StatusCode::UNPROCESSABLE_ENTITY, request).await
}

async fn add_many(State(door): State<Door>, Extension(by): Extension<Peer>, Json(new): Json<NewVerdicts>) -> Response {
    let sessions = door.sessions().await;
    let request = |reply| EnforceRequest::AddMany { new, by, sessions, reply };
    door.change(VERDICTS, StatusCode::UNPROCESSABLE_ENTITY, request).await
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Change {
    pub(super) which: Which,
}

async fn remove(
    State(door): State<Door>,
    Extension(by): Extension<Peer>,
    Json(Change { which }): Json<Change>,
) -> Response {
    door.change(VERDICTS, StatusCode::NOT_FOUND, |reply| EnforceRequest::Remove { which, by, reply }).await
}

async fn remove_one(State(door): State<Door>, Extension(by): Extension<Peer>, Path(id): Path<u64>) -> Response {
    let which = Which::Id(id);
    door.change(VERDICTS, StatusCode::NOT_FOUND, |reply| EnforceRequest::Remove { which, by, reply }).await
}

async fn allowed(State(door): State<Door>) -> Response {
    door.ask(StatusCode::UNPROCESSABLE_ENTITY, |reply| EnforceRequest::Allowed { reply }).await
}

async fn allow(State(door): State<Door>, Extension(by): Extension<Peer>, Json(new): Json<NewAllow>) -> Response {
    door.change(SETTINGS, StatusCode::UNPROCESSABLE_ENTITY, |reply| EnforceRequest::Allow { new, by, reply }).await
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ItemQuery {
    pub(super) item: Item,
}

async fn disallow(
    State(door): State<Door>,
    Extension(by): Extension<Peer>,
    Json(ItemQuery { item }): Json<ItemQuery>,
) -> Response {
    door.change(SETTINGS, StatusCode::NOT_FOUND, |reply| EnforceRequest::Disallow { item, by, reply }).await
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ModeBody {
    pub(super) mode: Mode,
}

async fn mode(State(door): State<Door>, Extension(by): Extension<Peer>) -> Response {
    let request = |reply| EnforceRequest::Mode { to: None, by, sessions: None, reply };
    door.ask(StatusCode::UNPROCESSABLE_ENTITY, request).await
}

async fn set_mode(
    State(door): State<Door>,
    Extension(by): Extension<Peer>,
    Json(ModeBody { mode }): Json<ModeBody>,
) -> Response {
    let sessions = door.sessions().await;
    let request = |reply| EnforceRequest::Mode { to: Some(mode), by, sessions, reply };
    door.change(SETTINGS, StatusCode::UNPROCESSABLE_ENTITY, request).await
}

async fn breaker(State(door): State<Door>, Extension(by): Extension<Peer>) -> Response {
    door.ask(StatusCode::UNPROCESSABLE_ENTITY, |reply| EnforceRequest::Breaker { reset: false, by, reply }).await
}

async fn reset(State(door): State<Door>, Extension(by): Extension<Peer>) -> Response {
    door.change(SETTINGS, StatusCode::UNPROCESSABLE_ENTITY, |reply| EnforceRequest::Breaker { reset: true, by, reply })
        .await
}
