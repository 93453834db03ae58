//! `GET /{business}/asyncapi.json`: what clients may send and receive, generated from the current declaration. For the
//! business's services, or for everybody and pages of any origin where its declaration allows that.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, State as Shared},
    http::{HeaderMap, HeaderValue, header},
    response::{IntoResponse, Response},
};

use super::{
    answer::{Code, Refusal},
    caller::{self, Credential},
    public_url::public_url,
    state::State,
};

/// The handler. It returns the bare document, not in the form of other answers: tools read it by its URL.
pub(super) async fn asyncapi(
    Shared(state): Shared<Arc<State>>,
    Path(business): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let business = state.business(&business)?;
    let public = business.config.auth.public_description;
    if !public {
        let credential = Credential::of(&headers).map_err(|_| not_public())?;
        if !credential.is_service(&business) {
            return Err(caller::unknown_api_key());
        }
    }
    let base = public_url(&state.settings, &headers)?;
    let document = wirepost_core::asyncapi::asyncapi(&business.config, &base);
    let mut response = ([(header::CACHE_CONTROL, "no-cache")], Json(document)).into_response();
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
