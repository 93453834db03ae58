//! `POST /peers`: what other edges ask. Only what an edge with the same keys has signed, for this process and not before,
//! is answered, and the answer is signed too; clients and services never get here.
//!
//! A question is judged by its header: nothing of a stranger's body is read. A long one is read only while it has a
//! place, and each within a second.

use std::{net::SocketAddr, sync::Arc};

use axum::{
    Extension, Router,
    body::{Body, Bytes, to_bytes},
    extract::{ConnectInfo, State as Shared},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::post,
};
use tokio::time::timeout;

use crate::{
    clock,
    http::state::State,
    identity::peer_seal::{self, Purpose, Seal},
    peers::{ANSWER_TIMEOUT, Asked, PATH, SEAL, TO, Told},
    presence,
};

/// Largest question who is here: the identities of the largest call, escaped.
const MAX_QUESTION: usize = 4 << 20;
/// Largest question how this edge is.
const MAX_HELLO: usize = 1 << 10;

/// Longest name of a process.
const MAX_PROCESS: usize = 64;

/// The route.
pub(super) fn router(state: Arc<State>) -> Router {
    Router::new().route(PATH, post(answer)).with_state(state)
}

async fn answer(
    Shared(state): Shared<Arc<State>>,
    from: Option<Extension<ConnectInfo<SocketAddr>>>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let answer = async {
        let text = headers.get(SEAL).and_then(|seal| seal.to_str().ok()).unwrap_or_default();
        let now = clock::now_ms();
        let opened = |purpose| peer_seal::open(&state.keys, purpose, text, now);
        let hello = opened(Purpose::Anyone);
        let seal = hello.or_else(|| opened(Purpose::Process(&state.instance)));
        let seal = seal.filter(|seal| state.peers.spend(seal, now)).ok_or_else(|| {
            if is_for_another_process(&state, text, &headers, now) { misdirected(&state) } else { forged(&state) }
        })?;
        let answer = if hello.is_some() {
            let body = read(&state, &seal, &headers, body, MAX_HELLO).await?;
            load(&state, from, &body)?
        } else {
            let _place = state.peers.answering().ok_or(StatusCode::SERVICE_UNAVAILABLE)?;
            let body = read(&state, &seal, &headers, body, MAX_QUESTION).await?;
            present(&state, &body).await?
        };
        let digest = peer_seal::digest(&answer);
        Ok((peer_seal::seal(&state.keys, Purpose::AnswerTo(text), digest, clock::now_ms()), answer))
    };
    let answer: Result<(String, Vec<u8>), StatusCode> = answer.await;
    match answer {
        Ok((seal, answer)) => {
            let seal = (header::HeaderName::from_static(SEAL), seal.as_str());
            ([(header::CONTENT_TYPE, "application/json"), seal], answer).into_response()
        }
        Err(status) => status.into_response(),
    }
}

/// Whether an edge of ours has put this question to another process. That was here before this one, if nobody plays with
/// it: edges know of each other within a second that they have begun anew.
fn is_for_another_process(state: &State, seal: &str, headers: &HeaderMap, now: i64) -> bool {
    let process = headers.get(TO).and_then(|process| process.to_str().ok());
    let process = process.filter(|process| process.len() <= MAX_PROCESS && **process != *state.instance);
    process.is_some_and(|process| peer_seal::open(&state.keys, Purpose::Process(process), seal, now).is_some())
}

fn misdirected(state: &State) -> StatusCode {
    state.metrics.misdirected_questions.inc();
    StatusCode::MISDIRECTED_REQUEST
}

fn forged(state: &State) -> StatusCode {
    state.metrics.forged_questions.inc();
    StatusCode::FORBIDDEN
}

/// The body that was sealed, of at most so many bytes.
async fn read(state: &State, seal: &Seal, headers: &HeaderMap, body: Body, most: usize) -> Result<Bytes, StatusCode> {
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
    if announced.is_none_or(|announced| announced > most) {
        return Err(StatusCode::PAYLOAD_TOO_LARGE);
    }
    let body = timeout(ANSWER_TIMEOUT, to_bytes(body, most)).await.map_err(|_| StatusCode::REQUEST_TIMEOUT)?;
    let body = body.map_err(|_| StatusCode::BAD_REQUEST)?;
    if seal.is_for(&body) { Ok(body) } else { Err(forged(state)) }
}

fn load(state: &State, from: Option<Extension<ConnectInfo<SocketAddr>>>, body: &[u8]) -> Result<Vec<u8>, StatusCode> {
    let Asked::Load { instance, at } = parse(body)? else { return Err(StatusCode::BAD_REQUEST) };
    let seen = from.map(|Extension(ConnectInfo(from))| SocketAddr::new(from.ip().to_canonical(), at.port()));
    let at = if at.ip().is_unspecified() { seen } else { Some(at) };
    if let Some(at) = at {
        state.peers.has_asked(at, &instance);
    }
    serde_json::to_vec(&state.load()).map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)
}

async fn present(state: &State, body: &[u8]) -> Result<Vec<u8>, StatusCode> {
    let Asked::Presence(question) = parse(body)? else { return Err(StatusCode::BAD_REQUEST) };
    let edge = &state.settings.edge;
    let part = presence::look(&state.catalog, edge, &question).await;
    let told = Told { edge: edge.clone(), instance: state.instance.clone(), part };
    serde_json::to_vec(&told).map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)
}

fn parse(body: &[u8]) -> Result<Asked, StatusCode> {
    // Of a newer version, else.
    serde_json::from_slice(body).map_err(|_| StatusCode::BAD_REQUEST)
}
