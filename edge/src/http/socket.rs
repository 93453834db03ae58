//! `GET /socket/{token}`: checks the ticket and upgrades.
//!
//! A browser can't read the HTTP status of a refused upgrade: it sees 1006 and retries a dead URL forever. So under
//! `wirepost.v1` a refusal completes the upgrade and closes with a code that says what to do; otherwise it is an HTTP
//! answer in the usual form.

pub mod handshake;

use std::sync::Arc;

use axum::{
    Extension,
    extract::{Path, Query, Request, State as Shared, rejection::QueryRejection},
    http::HeaderMap,
    response::{IntoResponse, Response},
};
use serde::Deserialize;
use wirepost_core::{Cursor, edge_config::Delivery, frames::CloseCode, frames::SUBPROTOCOL};

use self::handshake::Handshake;
use super::{
    answer::{Code, Refusal},
    origin,
    state::State,
};
use crate::{
    broker::Position,
    business::Business,
    catalog::Absent,
    clock,
    compression::Compression,
    identity::ticket,
    metrics::label,
    push::catch_up::StartAt,
    socket::{session::Session, wire::Wire, write_progress::WriteProgress},
};

/// Path of the socket.
pub(super) const PATH: &str = "/socket/{token}";
/// Room above `messageBytes` for control frames (a `refresh` carries a token, a `received` up to 256 ids), and for
/// answering a slightly too large message with a nack instead of 1009.
const MESSAGE_ROOM: usize = 64 << 10;

/// Query of the upgrade.
#[derive(Debug, Deserialize)]
pub(super) struct Params {
    cursor: Option<String>,
}

/// The handler.
pub(super) async fn socket(
    Shared(state): Shared<Arc<State>>,
    Path(token): Path<String>,
    params: Result<Query<Params>, QueryRejection>,
    written: Option<Extension<WriteProgress>>,
    request: Request,
) -> Response {
    // Absent only if a test calls without a listener.
    let Extension(written) = written.unwrap_or_default();
    let (mut request, _) = request.into_parts();
    let mut handshake = match Handshake::of(&mut request, SUBPROTOCOL) {
        Ok(handshake) => handshake,
        Err(refusal) => return refusal.into_response(),
    };
    let Ok(Query(params)) = params else {
        let description = "the query can't be read; it may hold one cursor";
        return Refusal::new(Code::BadRequest, description).into_response();
    };
    let control = handshake.protocol().is_some();
    let tasks = state.connections.clone();
    let (ticket, hub, business) = match admit(&state, &token, &request.headers) {
        Ok(admitted) => admitted,
        Err((code, refusal)) => {
            let kind = if refusal.code == Code::Origin { Code::Origin.label() } else { "socket" };
            state.metrics.refused.get_or_create(&label(kind)).inc();
            if !control {
                return refusal.into_response();
            }
            let wire = |upgraded| Wire::new(upgraded, 0, Compression::default());
            return handshake.complete(&tasks, move |upgraded| wire(upgraded).close(code));
        }
    };
    let key = state.sockets.limiter.key(&ticket.business, &ticket.unique_id);
    if let Err(wait) = state.sockets.limiter.connect(key, business.config.limits.connections_per_id) {
        state.metrics.refused.get_or_create(&label("connect_rate")).inc();
        return Refusal::overloaded(format!("this identity connects too often, wait {} ms", wait.as_millis()))
            .into_response();
    }
    // After the ticket: a caller without one uses no permit, and raises no alarm about the limit.
    let Some(permit) = state.connection_limit.permit() else {
        state.metrics.refused.get_or_create(&label("connection_limit")).inc();
        return Refusal::overloaded("this edge has as many connections as it may").into_response();
    };
    let compression = if state.settings.compression.covers(business.name()) {
        handshake.compress(&request.headers)
    } else {
        Compression::default()
    };
    let start = begin(&business, params.cursor.as_deref());
    let limit = business.config.limits.message_bytes + MESSAGE_ROOM;
    let session = Session {
        shared: Arc::clone(&state.sockets),
        number: permit.number,
        key,
        hub,
        ticket,
        start,
        control,
        compression,
        written,
    };
    handshake.complete(&tasks, move |upgraded| async move {
        session.run(Wire::new(upgraded, limit, compression)).await;
        drop(permit);
    })
}

type Admitted = (ticket::Ticket, Arc<crate::push::hub::Hub>, Arc<Business>);

fn admit(state: &State, token: &str, headers: &HeaderMap) -> Result<Admitted, (CloseCode, Refusal)> {
    if state.sockets.drain.has_begun() {
        return Err((CloseCode::Drain, Refusal::overloaded("this edge is shutting down; connect again")));
    }
    let ticket = ticket::open(&state.keys, token, clock::now_ms())
        .map_err(|error| (CloseCode::SessionOver, Refusal::unauthorized(format!("{error}; get a new token"))))?;
    let Some(hub) = state.catalog.hub(&ticket.business) else {
        // An edge of this installation signed the ticket, so it knew the business: if this edge never did, it lags
        // behind.
        return Err(match state.catalog.why_absent(&ticket.business) {
            Absent::Removed => (CloseCode::BusinessRemoved, Refusal::absent(&ticket.business, Absent::Removed)),
            Absent::NotYet | Absent::Unknown => (CloseCode::NotHere, Refusal::not_here(&ticket.business)),
        });
    };
    let business = hub.business();
    if !business.config.client_types.contains(&ticket.client_type) {
        let reason = format!("client type {:?} is not declared any more", ticket.client_type);
        return Err((CloseCode::SessionOver, Refusal::unauthorized(reason)));
    }
    if !origin::allowed(state, &business, headers) {
        return Err((CloseCode::Revoked, Refusal::origin()));
    }
    Ok((ticket, hub, business))
}

/// Where a connection starts: after its cursor, if that can belong to this business.
fn begin(business: &Business, cursor: Option<&str>) -> StartAt {
    let Some(text) = cursor.filter(|text| !text.is_empty()) else { return StartAt::Now };
    match text.parse::<Cursor>() {
        Ok(cursor)
            if cursor.business == business.name()
                && cursor.partition == 0
                && business.config.delivery == Delivery::Durable =>
        {
            StartAt::After(Position { offset: cursor.offset, fingerprint: cursor.fingerprint })
        }
        Ok(_) | Err(_) => StartAt::UnknownCursor,
    }
}
