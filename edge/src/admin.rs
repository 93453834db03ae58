//! The admin port: probes, metrics, and what is loaded. Bound apart from the public one and never exposed with it.

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    Json, Router,
    extract::State as Shared,
    http::{StatusCode, header},
    response::IntoResponse,
    routing::get,
};
use serde::Serialize;

use crate::{broker::Health, state::State};

/// OpenMetrics, as `Metrics::encode` writes it.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The admin routes.
pub fn router(state: Arc<State>) -> Router {
    Router::new()
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .route("/configz", get(configz))
        .with_state(state)
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
    let lag = state.catalog.lags().into_values().max().unwrap_or_default();
    state.metrics.reader_lag.set(i64::try_from(lag).unwrap_or(i64::MAX));
    ([(header::CONTENT_TYPE, OPEN_METRICS)], state.metrics.encode(&state.broker.counters()))
}

/// What is loaded; the operator compares it with what it wrote.
#[derive(Serialize)]
struct Configz {
    edge: String,
    version: &'static str,
    broker: &'static str,
    /// Business → hash of its configuration in use.
    businesses: BTreeMap<String, String>,
    /// Business → messages that its reader is behind the broker.
    lags: BTreeMap<String, u64>,
}

async fn configz(Shared(state): Shared<Arc<State>>) -> Json<Configz> {
    Json(Configz {
        edge: state.settings.edge.clone(),
        lags: state.catalog.lags(),
        version: env!("CARGO_PKG_VERSION"),
        broker: match *state.broker.health().borrow() {
            Health::Up => "up",
            Health::Blocked(_) => "blocked",
            Health::Away(_) => "away",
        },
        businesses: state.catalog.hashes(),
    })
}
