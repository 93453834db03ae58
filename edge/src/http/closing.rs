//! A draining edge asks callers to close their kept-alive connections: their next call goes elsewhere, and none hits a
//! connection that is just being closed (RFC 9112, section 9.6).

use std::sync::Arc;

use axum::{
    extract::{Request, State as Shared},
    http::{HeaderValue, StatusCode, header},
    middleware::Next,
    response::Response,
};

use wirepost_runtime::readiness::DRAINING;

use super::state::State;

/// Adds `Connection: close` from the moment at which the edge is no longer ready.
pub(super) async fn layer(Shared(state): Shared<Arc<State>>, request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    // An upgrade uses that header itself.
    if response.status() != StatusCode::SWITCHING_PROTOCOLS && state.readiness.waits_for(DRAINING) {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}
