//! An edge that is about to go says so to whoever keeps a connection to it: their next call goes elsewhere, and none meets a connection
//! that is just being closed (RFC 9112, section 9.6).

use std::sync::Arc;

use axum::{
    extract::{Request, State as Shared},
    http::{HeaderValue, StatusCode, header},
    middleware::Next,
    response::Response,
};

use wirepost_runtime::readiness::DRAINING;

use super::state::State;

/// Adds `Connection: close` from the moment at which the edge is not ready any more.
pub(super) async fn layer(Shared(state): Shared<Arc<State>>, request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    // A socket's upgrade has that header for itself.
    if response.status() != StatusCode::SWITCHING_PROTOCOLS && state.readiness.waits_for(DRAINING) {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}
