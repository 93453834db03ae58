//! The admin port: probes and metrics.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::IntoResponse,
    routing::get,
};

use crate::{leader::Leadership, metrics::Metrics};

/// OpenMetrics, as [`Metrics::encode`] writes it.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What this process still waits for before it is of use. A standby replica is ready; a broker that is away is reported in conditions.
#[derive(Debug, Default)]
pub struct Readiness(Mutex<BTreeSet<&'static str>>);

impl Readiness {
    /// Something more is awaited.
    pub fn add(&self, part: &'static str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(part);
    }

    /// It is there.
    pub fn done(&self, part: &'static str) {
        if self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(part) {
            tracing::info!(part, "ready");
        }
    }

    fn pending(&self) -> Vec<&'static str> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect()
    }
}

#[derive(Debug)]
struct Shared {
    readiness: Arc<Readiness>,
    metrics: Arc<Metrics>,
    leadership: Leadership,
}

/// The admin routes.
pub fn router(readiness: Arc<Readiness>, metrics: Arc<Metrics>, leadership: Leadership) -> Router {
    Router::new()
        .route("/livez", get(async || "ok\n"))
        .route("/readyz", get(readyz))
        .route("/metrics", get(numbers))
        .with_state(Arc::new(Shared { readiness, metrics, leadership }))
}

async fn readyz(State(shared): State<Arc<Shared>>) -> impl IntoResponse {
    let pending = shared.readiness.pending();
    if pending.is_empty() {
        (StatusCode::OK, "ok\n".to_owned())
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, format!("pending: {}\n", pending.join(", ")))
    }
}

async fn numbers(State(shared): State<Arc<Shared>>) -> impl IntoResponse {
    // As it is at this moment: whoever compares replicas must never see two.
    shared.metrics.leader.set(shared.leadership.holds().into());
    ([(header::CONTENT_TYPE, OPEN_METRICS)], shared.metrics.encode())
}
