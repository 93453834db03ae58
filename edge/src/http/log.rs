//! Logs and counts each request, and writes refusals of credentials down for the audit. A path can contain a token, so
//! only the route's template is logged, never a header or query.

use std::{net::IpAddr, sync::Arc};

use axum::{
    extract::{MatchedPath, Request, State as Shared},
    http::{Method, StatusCode},
    middleware::Next,
    response::Response,
};
use tokio::time::Instant;

use super::{
    answer::{Code, Refusal},
    operation::Operation,
    socket,
    state::State,
};
use crate::{address::ClientAddress, audit::Refused, metrics::label};

/// The business that a refused request was for, where its path does not say it.
#[derive(Clone, Debug)]
pub(super) struct OfBusiness(pub(super) String);

/// Logs the request and counts a refusal by its code; the socket counts its own refusals.
pub(super) async fn layer(Shared(state): Shared<Arc<State>>, request: Request, next: Next) -> Response {
    let started = Instant::now();
    let method = request.method().clone();
    let route = request.extensions().get::<MatchedPath>().cloned();
    let address = request.extensions().get::<ClientAddress>().map(|address| address.0);
    let named = business_of(&state, request.uri().path());
    let response = next.run(request).await;
    let route = route.as_ref().map_or("none", MatchedPath::as_str);
    let code = response.extensions().get::<Code>().map(|code| code.label());
    let is_socket = route == socket::PATH || socket::BARE_PATHS.contains(&route);
    if let Some(code) = code.filter(|_| !is_socket) {
        state.metrics.refused.get_or_create(&label(code)).inc();
    }
    if let Some(refusal) = response.extensions().get::<Refusal>() {
        let business = response.extensions().get::<OfBusiness>().map(|of| of.0.clone()).or(named);
        audit(&state, route, refusal, business.as_deref(), address);
    }
    line(&method, route, response.status(), code, started);
    response
}

/// Logs a request. `code`: of a refusal.
pub(super) fn line(method: &Method, route: &str, status: StatusCode, code: Option<&str>, started: Instant) {
    tracing::debug!(%method, route, status = status.as_u16(), code, elapsed = ?started.elapsed(), "request");
}

/// The business that a path begins with, if it is one of this edge: anything else may be a secret in the wrong place.
fn business_of(state: &State, path: &str) -> Option<String> {
    let name = path.trim_start_matches('/').split('/').next().filter(|name| !name.is_empty())?;
    state.catalog.get(name).map(|business| business.name().to_owned())
}

fn audit(state: &State, route: &str, refusal: &Refusal, business: Option<&str>, address: Option<IpAddr>) {
    let Some(operation) =
        Operation::ALL.into_iter().find(|one| one.path() == route || one.other_paths().contains(&route))
    else {
        return;
    };
    let Refusal { code, description, .. } = refusal;
    let quotes_caller = [Code::BadRequest, Code::InvalidIdentity, Code::UnknownBusiness, Code::BusinessNotHere];
    let detail = Some(&**description).filter(|_| !quotes_caller.contains(code));
    let of_credentials = [StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN].contains(&code.status());
    // What is wrong with a message is between its sender and the edge; who gets a session is not.
    if !of_credentials && !matches!(operation, Operation::Token | Operation::Connect | Operation::Revoke) {
        return;
    }
    let (action, reason) = (operation.action(), reason(*code));
    state.sockets.audit.refused(&Refused { action, business, address, reason, detail });
}

/// The stable word of a code: as in metrics, but the three kinds of missing credentials are told apart.
pub(super) fn reason(code: Code) -> &'static str {
    match code {
        Code::NoCredential => "no_credential",
        Code::InvalidToken => "invalid_token",
        Code::UnknownApiKey => "unknown_api_key",
        other => other.label(),
    }
}
