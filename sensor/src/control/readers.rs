//! Who only reads waits for others who do, and never for longer than an answer may take; administrators do not wait for
//! them.
//!
//! Invariant: at most [`AT_ONCE`] requests of readers are with the poll thread or have an answer in memory that was not
//! sent, and at most one list of flows of each class. Called by [`super::routes`].

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::header::RETRY_AFTER;
use axum::http::{HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::Response;
use hyper::body::{Frame, SizeHint};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::ANSWER_TIMEOUT;
use super::routes::failure;

/// Requests of readers at a time.
const AT_ONCE: usize = 4;

/// The places.
#[derive(Clone, Debug)]
pub(super) struct Places {
    readers: Arc<Semaphore>,
    /// Lists of flows: of readers, of administrators.
    lists: [Arc<Semaphore>; 2],
}

impl Default for Places {
    fn default() -> Places {
        let semaphore = |places| Arc::new(Semaphore::new(places));
        Places { readers: semaphore(AT_ONCE), lists: [semaphore(1), semaphore(1)] }
    }
}

impl Places {
    /// Answers a request when it has its places. They are free again when the answer was sent, or whoever asked hangs
    /// up.
    pub(super) async fn answer(&self, is_administrator: bool, request: Request, next: Next) -> Response {
        let list = (request.uri().path() == "/v1/flows").then(|| &self.lists[usize::from(is_administrator)]);
        let reader = (!is_administrator).then_some(&self.readers);
        let mut held = Vec::new();
        // A list's place first: those who wait for one take no other.
        for semaphore in list.into_iter().chain(reader) {
            match tokio::time::timeout(ANSWER_TIMEOUT, semaphore.clone().acquire_owned()).await {
                Ok(Ok(permit)) => held.push(permit),
                _ => return busy(),
            }
        }
        next.run(request).await.map(|body| Body::new(Held { body, _places: held }))
    }
}

fn busy() -> Response {
    let mut answer = failure(StatusCode::SERVICE_UNAVAILABLE, "others are reading; try again in a second");
    answer.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
    answer
}

/// An answer that holds its places until it was sent.
struct Held {
    body: Body,
    _places: Vec<OwnedSemaphorePermit>,
}

impl hyper::body::Body for Held {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
