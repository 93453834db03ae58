//! The calls of the page, for what a browser can't do itself. Those that change something are POST, with JSON or
//! nothing as their body; answers have the form of the edge's.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, Query, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{
        IntoResponse, Response,
        sse::{Event, KeepAlive, Sse},
    },
    routing::{get, post},
};
use futures_util::{StreamExt, stream};
use serde::Deserialize;
use serde_json::json;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use wirepost_core::frames::{CloseCode, ServerFrame};

use super::{
    Playground,
    desk::{Update, VIEWERS, Verdict, Viewer},
};
use crate::edge::{Answer, CallError};

/// Largest body of a call; the edge refuses smaller ones.
const MAX_BODY: usize = 2 << 20;
/// How often a silent stream of notices shows that it lives.
const ALIVE: Duration = Duration::from_secs(15);
/// What a drained client is given to move; it chooses a moment of the first half.
const DRAIN_WITHIN: Duration = Duration::from_secs(2);

/// The calls below `/playground/api/`.
pub(super) fn router(playground: Arc<Playground>, closing: CancellationToken) -> Router {
    let notices = move |State(playground): Shared, headers: HeaderMap| {
        std::future::ready(notices(&playground, &headers, closing.clone()))
    };
    Router::new()
        .route("/playground/api/state", get(async |State(playground): Shared| Json(playground.describe())))
        .route("/playground/api/notices", get(notices))
        .route("/playground/api/token", post(token))
        .route("/playground/api/push", post(push))
        .route("/playground/api/origin", post(origin))
        .route("/playground/api/deciding", post(deciding))
        .route("/playground/api/verdict", post(verdict))
        .route("/playground/api/drain", post(drain))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(playground)
}

type Shared = State<Arc<Playground>>;

/// Server-sent events: `hello`, then notices.
fn notices(playground: &Playground, headers: &HeaderMap, closing: CancellationToken) -> Response {
    let desk = &playground.desk;
    let run = desk.run();
    let seen = headers.get("last-event-id").and_then(|id| id.to_str().ok()?.split_once('-'));
    let after = seen.filter(|(of, _)| *of == run.to_string()).and_then(|(_, number)| number.parse().ok());
    let Some(viewer) = desk.view(after) else {
        let description = format!("{VIEWERS} pages are open already; close one");
        return refuse(StatusCode::SERVICE_UNAVAILABLE, &description);
    };
    let hello = json!({"kind": "hello", "run": run, "deciding": viewer.deciding});
    let hello = stream::iter([Event::default().data(hello.to_string())]);
    let more = stream::unfold(viewer, move |mut viewer: Viewer| async move {
        let event = match viewer.next().await? {
            Update::Missed(count) => Event::default().data(json!({"kind": "missed", "count": count}).to_string()),
            Update::Notice(numbered) => {
                let text = serde_json::to_string(&*numbered).unwrap_or_default();
                Event::default().id(format!("{run}-{}", numbered.number)).data(text)
            }
        };
        Some((event, viewer))
    });
    let events = hello.chain(more).map(Ok::<_, Infallible>).take_until(closing.cancelled_owned());
    Sse::new(events).keep_alive(KeepAlive::new().interval(ALIVE)).into_response()
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct TokenQuery {
    business: String,
    unique_id: String,
    client_type: String,
    #[serde(default)]
    tags: String,
}

/// The token call, made with the business's API key.
async fn token(State(playground): Shared, Query(query): Query<TokenQuery>) -> Response {
    let TokenQuery { business, unique_id, client_type, tags } = query;
    let credential = playground.credential(&business);
    let query = [("uniqueId", unique_id.as_str()), ("clientType", &client_type), ("tags", &tags)];
    pass_on(playground.edge.token(&business, &credential, &query).await)
}

#[derive(Deserialize)]
struct PushQuery {
    business: String,
}

/// The messages call; the body is passed on as it is.
async fn push(State(playground): Shared, Query(PushQuery { business }): Query<PushQuery>, body: String) -> Response {
    pass_on(playground.edge.push(&business, &playground.key(&business), body).await)
}

#[derive(Deserialize)]
struct OriginQuery {
    business: String,
    origin: String,
}

/// Whether the edge lets pages of this origin in: its answer to a token call of such a page.
async fn origin(State(playground): Shared, Query(OriginQuery { business, origin }): Query<OriginQuery>) -> Response {
    if HeaderValue::from_str(&origin).is_err() {
        return refuse(StatusCode::BAD_REQUEST, "an origin is like https://shop.example");
    }
    let answer = playground.edge.called_from(&business, &playground.credential(&business), &origin).await;
    match answer {
        // The key is right, so nothing else is forbidden. It is what was asked, so no error of this call.
        Ok(answer @ Answer { status: StatusCode::FORBIDDEN, .. }) => {
            pass_on(Ok(Answer { status: StatusCode::OK, ..answer }))
        }
        Ok(Answer { status: StatusCode::NOT_FOUND, .. }) | Err(_) => pass_on(answer),
        // Let in, even though it did not say whose ticket it wants.
        Ok(_) => done(),
    }
}

#[derive(Deserialize)]
struct DecidingQuery {
    on: bool,
}

async fn deciding(State(playground): Shared, Query(DecidingQuery { on }): Query<DecidingQuery>) -> Response {
    playground.desk.set_deciding(on);
    done()
}

#[derive(Deserialize)]
struct VerdictQuery {
    message: u64,
    verdict: Verdict,
}

async fn verdict(State(playground): Shared, Query(VerdictQuery { message, verdict }): Query<VerdictQuery>) -> Response {
    if playground.desk.give(message, verdict) {
        return done();
    }
    refuse(StatusCode::NOT_FOUND, "this message does not wait for a decision any more")
}

#[derive(Deserialize)]
struct DrainQuery {
    business: String,
    connection: String,
}

/// Asks one connection to move, as an edge that shuts down does, and closes it a little later.
async fn drain(State(playground): Shared, Query(query): Query<DrainQuery>) -> Response {
    let hub = playground.state.catalog.hub(&query.business);
    let Some(mailbox) = hub.and_then(|hub| hub.connection(&query.connection)) else {
        return refuse(StatusCode::NOT_FOUND, "this connection has ended");
    };
    let within = u64::try_from(DRAIN_WITHIN.as_millis() / 2).unwrap_or_default();
    mailbox.control(ServerFrame::Drain { reconnect_within_ms: within }.to_text());
    sleep(DRAIN_WITHIN).await;
    mailbox.outbound.close(CloseCode::Drain);
    done()
}

fn done() -> Response {
    Json(json!({"result": 0, "description": "ok"})).into_response()
}

fn refuse(status: StatusCode, description: &str) -> Response {
    (status, Json(json!({"result": u32::from(status.as_u16()) * 100, "description": description}))).into_response()
}

/// The edge's answer as it is.
fn pass_on(answer: Result<Answer, CallError>) -> Response {
    match answer {
        Ok(Answer { result, description, data, status, retry_after }) => {
            let body = Json(json!({"result": result, "description": description, "data": data}));
            let mut response = (status, body).into_response();
            if let Some(retry_after) = retry_after {
                response.headers_mut().insert(header::RETRY_AFTER, retry_after.as_secs().into());
            }
            response
        }
        Err(error) => refuse(StatusCode::BAD_GATEWAY, &error.to_string()),
    }
}
