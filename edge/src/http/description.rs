//! `GET /{business}/asyncapi.json`: what clients and services exchange with the business, generated from the current
//! declaration. For the business's services; where its declaration allows that, everybody and pages of any origin get what
//! clients need.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, State as Shared},
    http::{HeaderMap, HeaderValue, header},
    response::{IntoResponse, Response},
};
use wirepost_core::asyncapi::{Part, asyncapi};

use super::{
    answer::{Code, Refusal},
    caller::{self, Credential},
    public_url::public_url,
    state::State,
};

/// The handler. It returns the bare document, not in the form of other answers: tools read it by its URL.
pub(super) async fn describe(
    Shared(state): Shared<Arc<State>>,
    Path(business): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let business = state.business(&business)?;
    let public = business.config.auth.public_description;
    let credential = Credential::of(&headers).ok();
    let part = match credential {
        Some(credential) if credential.is_service(&business) => Part::All,
        // A credential that is none of the business's is no reason to show less than to a stranger.
        _ if public => Part::Clients,
        Some(_) => return Err(caller::unknown_api_key()),
        None => return Err(not_public()),
    };
    let base = public_url(&state.settings, &headers)?;
    let document = asyncapi(&business.config, &base, part);
    let answer = [(header::CACHE_CONTROL, "no-cache"), (header::VARY, "x-api-key, authorization")];
    let mut response = (answer, Json(document)).into_response();
    if public {
        response.headers_mut().insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    }
    Ok(response)
}

fn not_public() -> Refusal {
    Refusal::new(
        Code::NoCredential,
        "the description of this business is for its services: send an API key, or set auth.publicDescription in its WsBusiness",
    )
}
