//! The admin port: probes, metrics, and what is loaded.

use std::sync::Arc;

use axum::Router;
use tokio_util::sync::CancellationToken;
use wirepost_runtime::admin;

use crate::{broker::Health, http::state::State, push::reading};

mod configz;
mod peers;

/// The admin routes. At `closing` requests that wait for a change are answered.
pub fn router(state: &Arc<State>, closing: CancellationToken) -> Router {
    let metrics = {
        let state = Arc::clone(state);
        move || metrics(&state)
    };
    admin::routes(state.readiness.clone(), metrics)
        .merge(configz::router(Arc::clone(state), closing))
        .merge(peers::router(Arc::clone(state)))
}

fn metrics(state: &State) -> String {
    // Labels come from closed sets: the largest lag is a metric; the lag of each business is in /configz.
    reading::report(state.catalog.readings().into_values(), &state.metrics);
    state.metrics.broker_up.set((*state.broker.health().borrow() == Health::Up).into());
    state.metrics.encode()
}
