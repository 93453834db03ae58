//! `GET /socket/{token}`: checks the ticket and upgrades.
//!
//! A browser can't read the HTTP status of a refused upgrade: it sees 1006 and retries a dead URL for ever. So under `wirepost.v1` a refusal
//! completes the upgrade and closes with a code that says what to do; without it, it is HTTP with the body of the token call.

use std::sync::Arc;

use axum::{
    Extension,
    extract::{
        Path, Query, State as Shared, WebSocketUpgrade,
        rejection::QueryRejection,
        ws::{CloseFrame, Message, WebSocket, rejection::WebSocketUpgradeRejection},
    },
    http::{HeaderMap, header},
    response::{IntoResponse, Response},
};
use serde::Deserialize;
use wirepost_core::{Cursor, edge_config::Delivery, frames::CloseCode, frames::SUBPROTOCOL};

use super::session::Session;
use crate::{
    broker::Position,
    business::Business,
    catalog::Absent,
    clock,
    http::{
        answer::{Code, Refusal},
        origin,
    },
    identity::ticket,
    listener::Written,
    metrics::label,
    push::catch_up::From,
    state::State,
};

/// Read buffer of a socket, and the most that one read takes. Small, because it is the largest part of an idle connection's memory: the
/// library's default of 128 KiB costs 134 KiB a connection in all, and messages of clients are small.
const READ_BUFFER: usize = 1 << 10;
/// Bytes gathered into one write.
const WRITE_BUFFER: usize = 16 << 10;
/// Bound of what the WebSocket itself buffers beyond that: one frame, and no frame is larger than the largest `pushBytes` that a
/// declaration may name.
const MAX_WRITE_BUFFER: usize = 32 << 20;
/// Room above `messageBytes` for control frames (a `refresh` carries a token, a `received` up to 256 ids), and for answering a message that
/// is somewhat too large with a nack instead of 1009.
const MESSAGE_ROOM: usize = 64 << 10;

/// Largest message that is read from a client that is refused: nothing but its close frame is of use.
const REFUSED_MESSAGE: usize = 4 << 10;

/// Query of the upgrade.
#[derive(Debug, Deserialize)]
pub struct Params {
    cursor: Option<String>,
}

/// The buffers of every socket.
pub fn with_buffers(upgrade: WebSocketUpgrade) -> WebSocketUpgrade {
    upgrade.read_buffer_size(READ_BUFFER).write_buffer_size(WRITE_BUFFER).max_write_buffer_size(MAX_WRITE_BUFFER)
}

/// The handler.
pub async fn socket(
    Shared(state): Shared<Arc<State>>,
    Path(token): Path<String>,
    params: Result<Query<Params>, QueryRejection>,
    written: Option<Extension<Written>>,
    headers: HeaderMap,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Response {
    // Absent only where a test calls without a listener.
    let Extension(written) = written.unwrap_or_default();
    let upgrade = match upgrade {
        Ok(upgrade) => upgrade,
        Err(rejection) => {
            let description = format!("connect here with a WebSocket client: {rejection}");
            return Refusal::new(Code::UpgradeRequired, description).into_response();
        }
    };
    let Ok(Query(params)) = params else {
        let description = "the query can't be read; it may hold one cursor";
        return Refusal::new(Code::BadRequest, description).into_response();
    };
    let upgrade = with_buffers(upgrade).protocols([SUBPROTOCOL]);
    let control = upgrade.selected_protocol().is_some();
    let (ticket, hub, business) = match admit(&state, &token, &headers) {
        Ok(admitted) => admitted,
        Err((code, refusal)) => {
            state.metrics.refused.get_or_create(&label("socket")).inc();
            if !control {
                return refusal.into_response();
            }
            let refuse = move |socket| refuse(socket, code);
            let tasks = state.connections.clone();
            return upgrade
                .max_message_size(REFUSED_MESSAGE)
                .max_frame_size(REFUSED_MESSAGE)
                .on_upgrade(move |socket| tasks.track_future(refuse(socket)));
        }
    };
    let payer = state.charges.payer(&ticket.business, &ticket.unique_id);
    if let Err(wait) = state.charges.connect(payer, business.config.limits.connections_per_id) {
        state.metrics.refused.get_or_create(&label("connect_rate")).inc();
        return Refusal::overloaded(format!("this identity connects too often, wait {} ms", wait.as_millis()))
            .into_response();
    }
    // After the ticket: whoever holds none takes nobody's place, and raises no alarm for want of places.
    let Some(place) = state.places.take() else {
        state.metrics.refused.get_or_create(&label("connection_limit")).inc();
        return Refusal::overloaded("this edge has as many connections as it may").into_response();
    };
    let from = begin(&business, params.cursor.as_deref());
    let limit = business.config.limits.message_bytes + MESSAGE_ROOM;
    let tasks = state.connections.clone();
    let session = Session { number: place.number, payer, state, hub, ticket, from, control, written };
    upgrade.max_message_size(limit).max_frame_size(limit).on_upgrade(move |socket| {
        tasks.track_future(async move {
            session.run(socket).await;
            drop(place);
        })
    })
}

type Admitted = (ticket::Ticket, Arc<crate::push::hub::Hub>, Arc<Business>);

fn admit(state: &State, token: &str, headers: &HeaderMap) -> Result<Admitted, (CloseCode, Refusal)> {
    if state.drain.has_begun() {
        return Err((CloseCode::Drain, Refusal::overloaded("this edge is shutting down; connect again")));
    }
    let ticket = ticket::open(&state.keys, token, clock::now_ms())
        .map_err(|error| (CloseCode::SessionOver, Refusal::unauthorized(format!("{error}; get a new token"))))?;
    let Some(hub) = state.catalog.hub(&ticket.business) else {
        // An edge of this installation signed the ticket, and so knew the business: if this one never did, it lags behind.
        return Err(match state.catalog.why_absent(&ticket.business) {
            Absent::Gone => (CloseCode::BusinessRemoved, Refusal::absent(&ticket.business, Absent::Gone)),
            Absent::NotYet | Absent::Unknown => (CloseCode::NotHere, Refusal::not_here(&ticket.business)),
        });
    };
    let business = hub.business();
    if !business.config.client_types.contains(&ticket.client_type) {
        let reason = format!("client type {:?} is not declared any more", ticket.client_type);
        return Err((CloseCode::SessionOver, Refusal::unauthorized(reason)));
    }
    if !origin::allowed(&business.config.auth.allowed_origins, headers.get(header::ORIGIN)) {
        return Err((CloseCode::Revoked, Refusal::origin()));
    }
    Ok((ticket, hub, business))
}

/// Where a connection begins: its cursor's place, if it can be one of this business.
fn begin(business: &Business, cursor: Option<&str>) -> From {
    let Some(text) = cursor.filter(|text| !text.is_empty()) else { return From::Now };
    match text.parse::<Cursor>() {
        Ok(cursor)
            if cursor.business == business.name()
                && cursor.partition == 0
                && business.config.delivery == Delivery::Durable =>
        {
            From::After(Position { offset: cursor.offset, fingerprint: cursor.fingerprint })
        }
        Ok(_) | Err(_) => From::Foreign,
    }
}

async fn refuse(mut socket: WebSocket, code: CloseCode) {
    let frame = CloseFrame { code: code.code(), reason: code.reason().into() };
    let goodbye = async {
        if socket.send(Message::Close(Some(frame))).await.is_err() {
            return;
        }
        loop {
            match socket.recv().await {
                Some(Ok(_)) => {}
                // Perhaps a message that is not read: a socket dropped now would reset, and the peer might not see the code.
                Some(Err(_)) => std::future::pending().await,
                None => return,
            }
        }
    };
    let _ = tokio::time::timeout(super::driver::CLOSE_TIMEOUT, goodbye).await;
}
