//! The admin port: probes, metrics, and what is loaded. Bound apart from the public one and never exposed with it.

use std::sync::Arc;

use axum::{
    Router,
    extract::State as Shared,
    http::{StatusCode, header},
    response::IntoResponse,
    routing::get,
};
use tokio_util::sync::CancellationToken;

use crate::{broker::Health, state::State};

mod configz;

/// OpenMetrics, as `Metrics::encode` writes it.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The admin routes. At `closing` those that wait for a change get their answer.
pub fn router(state: Arc<State>, closing: CancellationToken) -> Router {
    let configz = configz::router(Arc::clone(&state), closing);
    Router::new()
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(state)
        .merge(configz)
}

/// Looks at the process alone: it answers, so it need not be restarted. Whatever else is wrong, a restart would only cut clients off.
async fn livez() -> &'static str {
    "ok\n"
}

async fn readyz(Shared(state): Shared<Arc<State>>) -> impl IntoResponse {
    let pending = state.readiness.pending();
    if pending.is_empty() {
        (StatusCode::OK, "ok\n".to_owned())
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, format!("pending: {}\n", pending.join(", ")))
    }
}

async fn metrics(Shared(state): Shared<Arc<State>>) -> impl IntoResponse {
    // Labels come from closed sets: the worst reader is a number here, each business's own is in /configz.
    state.metrics.read(state.catalog.readings().into_values());
    state.metrics.broker_up.set((*state.broker.health().borrow() == Health::Up).into());
    ([(header::CONTENT_TYPE, OPEN_METRICS)], state.metrics.encode(&state.broker.counters()))
}
