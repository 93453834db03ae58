//! `GET /socket/{token}`: checks the ticket and upgrades.
//!
//! A browser can't read the HTTP status of a refused upgrade: it sees 1006 and retries a dead URL forever. So under
//! `wirepost.v1` a refusal completes the upgrade and closes with a code that says what to do; otherwise it is an HTTP
//! answer in the usual form.

pub mod direct;
pub mod handshake;

use std::{sync::Arc, time::Duration};

use axum::{
    Extension,
    extract::{Path, Query, Request, State as Shared, rejection::QueryRejection},
    http::HeaderMap,
    response::{IntoResponse, Response},
};
use hyper_util::rt::TokioIo;
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
    identity::ticket::{self, Ticket},
    metrics::label,
    push::{catch_up::StartAt, hub::Hub},
    socket::{
        connection_limit::ConnectionPermit, flood::IdentityKey, session::Session, wire::Wire,
        write_progress::WriteProgress,
    },
};

/// Path of the socket.
pub(super) const PATH: &str = "/socket/{token}";
/// What it begins with.
const PREFIX: &str = "/socket/";
/// Room above `messageBytes` for control frames (a `refresh` carries a token, a `received` up to 256 ids), and for
/// answering a slightly too large message with a nack instead of 1009.
const MESSAGE_ROOM: usize = 64 << 10;

/// Query of the upgrade.
#[derive(Debug, Default, Deserialize)]
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
    let admitted = match Admitted::by(&state, &token, &request.headers) {
        Ok(admitted) => admitted,
        Err(Rejected { code, refusal, foreign_to }) => {
            if let Some(business) = foreign_to {
                origin::tell(&state, &business, &request.headers);
            }
            let kind = if refusal.code == Code::Origin { Code::Origin.label() } else { "socket" };
            state.metrics.refused.get_or_create(&label(kind)).inc();
            if !control {
                return refusal.into_response();
            }
            let wire = |upgraded| Wire::new(TokioIo::new(upgraded), 0, Compression::default());
            return handshake.complete(&tasks, move |upgraded| wire(upgraded).close(code));
        }
    };
    if let Err(wait) = admitted.charge(&state) {
        state.metrics.refused.get_or_create(&label("connect_rate")).inc();
        return Refusal::overloaded(format!("this identity connects too often, wait {} ms", wait.as_millis()))
            .into_response();
    }
    // After the ticket: a caller without one uses no permit, and raises no alarm about the limit.
    let Some(permit) = state.connection_limit.permit() else {
        state.metrics.refused.get_or_create(&label("connection_limit")).inc();
        return Refusal::overloaded("this edge has as many connections as it may").into_response();
    };
    let compression =
        if admitted.may_compress(&state) { handshake.compress(&request.headers) } else { Compression::default() };
    let limit = admitted.largest_message();
    let session = admitted.session(&state, &permit, &params, control, compression, written);
    handshake.complete(&tasks, move |upgraded| async move {
        session.run(Wire::new(TokioIo::new(upgraded), limit, compression)).await;
        drop(permit);
    })
}

/// Whoever has a valid ticket for a business that is here.
struct Admitted {
    ticket: Ticket,
    key: IdentityKey,
    hub: Arc<Hub>,
    business: Arc<Business>,
}

/// Whoever has not.
struct Rejected {
    code: CloseCode,
    refusal: Refusal,
    /// The origin is none of this business.
    foreign_to: Option<Arc<Business>>,
}

impl From<(CloseCode, Refusal)> for Rejected {
    fn from((code, refusal): (CloseCode, Refusal)) -> Self {
        Self { code, refusal, foreign_to: None }
    }
}

impl Admitted {
    /// Judges a ticket. Changes nothing: the same request may be judged again.
    fn by(state: &State, token: &str, headers: &HeaderMap) -> Result<Self, Rejected> {
        if state.sockets.drain.has_begun() {
            let refusal = Refusal::overloaded("this edge is shutting down; connect again");
            return Err((CloseCode::Drain, refusal).into());
        }
        let ticket = ticket::open(&state.keys, token, clock::now_ms())
            .map_err(|error| (CloseCode::SessionOver, Refusal::unauthorized(format!("{error}; get a new token"))))?;
        let Some(hub) = state.catalog.hub(&ticket.business) else {
            // An edge of this installation signed the ticket, so it knew the business: if this edge never did, it lags
            // behind.
            let rejected = match state.catalog.why_absent(&ticket.business) {
                Absent::Removed => (CloseCode::BusinessRemoved, Refusal::absent(&ticket.business, Absent::Removed)),
                Absent::NotYet | Absent::Unknown => (CloseCode::NotHere, Refusal::not_here(&ticket.business)),
            };
            return Err(rejected.into());
        };
        let business = hub.business();
        if !business.config.client_types.contains(&ticket.client_type) {
            let reason = format!("client type {:?} is not declared any more", ticket.client_type);
            return Err((CloseCode::SessionOver, Refusal::unauthorized(reason)).into());
        }
        if !origin::passes(state, &business, headers) {
            let foreign_to = Some(business);
            return Err(Rejected { code: CloseCode::Revoked, refusal: Refusal::origin(), foreign_to });
        }
        let key = state.sockets.limiter.key(&ticket.business, &ticket.unique_id);
        Ok(Self { ticket, key, hub, business })
    }

    /// Charges the identity for connecting.
    ///
    /// # Errors
    /// How long to wait: it connects too often, and is not charged.
    fn charge(&self, state: &State) -> Result<(), Duration> {
        state.sockets.limiter.connect(self.key, self.business.config.limits.connections_per_id)
    }

    fn may_compress(&self, state: &State) -> bool {
        state.settings.compression.covers(self.business.name())
    }

    fn largest_message(&self) -> usize {
        self.business.config.limits.message_bytes + MESSAGE_ROOM
    }

    fn session(
        self,
        state: &State,
        permit: &ConnectionPermit,
        params: &Params,
        control: bool,
        compression: Compression,
        written: WriteProgress,
    ) -> Session {
        Session {
            shared: Arc::clone(&state.sockets),
            number: permit.number,
            key: self.key,
            start: begin(&self.business, params.cursor.as_deref()),
            hub: self.hub,
            ticket: self.ticket,
            control,
            compression,
            written,
        }
    }
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
