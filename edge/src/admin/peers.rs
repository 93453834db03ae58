//! `POST /peers`: what other edges ask. Only what an edge with the same keys has signed is answered, and the answer is
//! signed too; clients and services never get here.

use std::{net::SocketAddr, sync::Arc};

use axum::{
    Extension, Router,
    body::Bytes,
    extract::{ConnectInfo, DefaultBodyLimit, State as Shared},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::post,
};

use crate::{
    clock,
    http::state::State,
    identity::peer_seal::{self, Sealed},
    peers::{Asked, PATH, SEAL, Told},
    presence,
};

/// Largest question: the identities of the largest call, escaped.
const MAX_QUESTION: usize = 4 << 20;

/// The route.
pub(super) fn router(state: Arc<State>) -> Router {
    Router::new().route(PATH, post(answer)).layer(DefaultBodyLimit::max(MAX_QUESTION)).with_state(state)
}

async fn answer(
    Shared(state): Shared<Arc<State>>,
    from: Option<Extension<ConnectInfo<SocketAddr>>>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let seal = headers.get(SEAL).and_then(|seal| seal.to_str().ok()).unwrap_or_default();
    if !peer_seal::is_good(&state.keys, Sealed::Question(&body), seal, clock::now_ms()) {
        state.metrics.forged_questions.inc();
        return StatusCode::FORBIDDEN.into_response();
    }
    // Of a newer version, else.
    let Ok(asked) = serde_json::from_slice::<Asked>(&body) else { return StatusCode::BAD_REQUEST.into_response() };
    let answer = match asked {
        Asked::Load { instance, at } => {
            let seen = from.map(|Extension(ConnectInfo(from))| SocketAddr::new(from.ip().to_canonical(), at.port()));
            let at = if at.ip().is_unspecified() { seen } else { Some(at) };
            if let Some(at) = at {
                state.peers.heard_of(at, &instance);
            }
            serde_json::to_vec(&state.load())
        }
        Asked::Presence(question) => {
            let Some(_place) = state.peers.answering() else {
                return StatusCode::SERVICE_UNAVAILABLE.into_response();
            };
            let edge = &state.settings.edge;
            let part = presence::look(&state.catalog, edge, &question).await;
            serde_json::to_vec(&Told { edge: edge.clone(), instance: state.instance.clone(), part })
        }
    };
    let Ok(answer) = answer else { return StatusCode::INTERNAL_SERVER_ERROR.into_response() };
    let seal = peer_seal::seal(&state.keys, Sealed::Answer(seal, &answer), clock::now_ms());
    ([(header::CONTENT_TYPE, "application/json"), (header::HeaderName::from_static(SEAL), seal.as_str())], answer)
        .into_response()
}
