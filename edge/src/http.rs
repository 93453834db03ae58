//! The public HTTP interface: token call, push call, description, and the WebSocket upgrade. Every answer except the
//! upgrade has the form of [`answer`].

use std::sync::Arc;

use axum::{Extension, Router, middleware::from_fn_with_state};

pub mod addresses;
pub mod answer;
pub mod description;
pub mod log_throttle;
pub mod operation;
pub mod origin;
pub mod socket;
pub mod state;

mod bodies;
mod caller;
mod closing;
mod log;
mod messages;
mod presence;
mod public_url;
mod sessions;
mod token;

use answer::{Code, Refusal};
use operation::Operation;
use state::State;

/// The public routes.
pub fn router(state: Arc<State>) -> Router {
    let serving = |checks_origin| {
        let operations = Operation::ALL.into_iter().filter(|one| one.checks_origin() == checks_origin);
        operations.fold(Router::new(), |router, one| {
            let paths = std::iter::once(one.path()).chain(one.other_paths().iter().copied());
            paths.fold(router, |router, path| router.route(path, one.handler()))
        })
    };
    let calls = serving(true)
        // Inside the layer, which also answers the method OPTIONS.
        .method_not_allowed_fallback(method_not_allowed)
        .route_layer(from_fn_with_state(Arc::clone(&state), origin::layer));
    serving(false)
        .merge(calls)
        .method_not_allowed_fallback(method_not_allowed)
        .fallback(async || {
            Refusal::new(
                Code::NotFound,
                "nothing is here; the calls are /{business}/websocket/token and /{business}/websocket/messages",
            )
        })
        .layer(from_fn_with_state(Arc::clone(&state), log::layer))
        .layer(from_fn_with_state(Arc::clone(&state), addresses::layer))
        .layer(from_fn_with_state(Arc::clone(&state), closing::layer))
        .layer(Extension(bodies::budget()))
        .with_state(state)
}

async fn method_not_allowed() -> Refusal {
    Refusal::new(Code::MethodNotAllowed, "this path has no such method")
}

#[cfg(test)]
mod tests;
