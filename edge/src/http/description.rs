//! `GET /{business}/asyncapi.json`: what clients may send and receive, generated from the current declaration. Public,
//! for any origin.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, State as Shared},
    http::{HeaderMap, header},
    response::{IntoResponse, Response},
};

use super::{answer::Refusal, public_url::public_url, state::State};

/// The handler. It returns the bare document, not in the form of other answers: tools read it by its URL.
pub(super) async fn asyncapi(
    Shared(state): Shared<Arc<State>>,
    Path(business): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let business = state.business(&business)?;
    let base = public_url(&state.settings, &headers)?;
    let document = wirepost_core::asyncapi::asyncapi(&business.config, &base);
    let headers = [(header::CACHE_CONTROL, "no-cache"), (header::ACCESS_CONTROL_ALLOW_ORIGIN, "*")];
    Ok((headers, Json(document)).into_response())
}
