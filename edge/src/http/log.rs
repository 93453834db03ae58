//! Logs and counts each request. A path can contain a token, so only the route's template is logged, never a header or
//! query.

use std::sync::Arc;

use axum::{
    extract::{MatchedPath, Request, State as Shared},
    http::{Method, StatusCode},
    middleware::Next,
    response::Response,
};
use tokio::time::Instant;

use super::{answer::Code, socket, state::State};
use crate::metrics::label;

/// Logs the request and counts a refusal by its code; the socket counts its own refusals.
pub(super) async fn layer(Shared(state): Shared<Arc<State>>, request: Request, next: Next) -> Response {
    let started = Instant::now();
    let method = request.method().clone();
    let route = request.extensions().get::<MatchedPath>().cloned();
    let response = next.run(request).await;
    let route = route.as_ref().map_or("none", MatchedPath::as_str);
    let code = response.extensions().get::<Code>().map(|code| code.label());
    let is_socket = route == socket::PATH || socket::BARE_PATHS.contains(&route);
    if let Some(code) = code.filter(|_| !is_socket) {
        state.metrics.refused.get_or_create(&label(code)).inc();
    }
    line(&method, route, response.status(), code, started);
    response
}

/// Logs a request. `code`: of a refusal.
pub(super) fn line(method: &Method, route: &str, status: StatusCode, code: Option<&str>, started: Instant) {
    tracing::debug!(%method, route, status = status.as_u16(), code, elapsed = ?started.elapsed(), "request");
}
