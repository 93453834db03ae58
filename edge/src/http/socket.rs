//! `GET /socket/{token}`, or `GET /socket` with the token among the subprotocols: checks the ticket and upgrades.
//!
//! A browser can't read the HTTP status of a refused upgrade: it sees 1006 and retries a dead URL forever. So under
//! `wirepost.v1` a refusal completes the upgrade and closes with a code that says what to do; otherwise it is an HTTP
//! answer in the usual form. A refused caller remains a [stranger](crate::strangers) until its connection ends.

pub mod direct;
pub mod handshake;

use std::sync::Arc;

use axum::{
    Extension,
    extract::{Path, Query, Request, State as Shared, rejection::QueryRejection},
    http::{HeaderMap, header::SEC_WEBSOCKET_PROTOCOL},
    response::{IntoResponse, Response},
};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use wirepost_core::{
    Cursor,
    edge_config::Delivery,
    frames::{CloseCode, SUBPROTOCOL, TOKEN_PROTOCOL},
};

use self::handshake::Handshake;
use super::{
    addresses::{self, Peer},
    answer::{Code, Refusal},
    log::OfBusiness,
    origin::{self, Page},
    state::State,
};
use crate::{
    address::{ClientAddress, limits::AddressPermit},
    broker::Position,
    business::{Business, share::ShareOfConnection},
    catalog::Absent,
    clock,
    compression::Compression,
    identity::ticket::{self, Ticket},
    metrics::label,
    push::{catch_up::StartAt, hub::Hub},
    revocation::gate::Spent,
    socket::{
        connection_limit::{ConnectionPermit, Full},
        flood::IdentityKey,
        session::Session,
        wire::Wire,
        write_progress::WriteProgress,
    },
    strangers::Place,
};

/// Path of the socket, with a token.
pub(super) const PATH: &str = "/socket/{token}";
/// Paths of the socket whose token is among the subprotocols: what proxies log holds none.
pub(super) const BARE_PATHS: [&str; 2] = ["/socket", "/socket/"];
/// What a path with a token begins with.
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
    path: Option<Path<String>>,
    params: Result<Query<Params>, QueryRejection>,
    written: Option<Extension<WriteProgress>>,
    peer: Option<Extension<Peer>>,
    address: ClientAddress,
    request: Request,
) -> Response {
    // Absent only if a test calls without a listener.
    let (Extension(written), Extension(Peer { place, .. })) = (written.unwrap_or_default(), peer.unwrap_or_default());
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
    let Some(token) = path.map(|Path(token)| token).or_else(|| offered_token(&request.headers)) else {
        let description =
            "a token is missing: offer it as subprotocol wirepost.token.<token>, or connect to /socket/<token>";
        return Refusal::new(Code::BadRequest, description).into_response();
    };

    let admitted = match Admitted::by(&state, &token, &request.headers) {
        Ok(admitted) => admitted,
        Err(rejected) => {
            if let Some(business) = &rejected.foreign_to {
                origin::tell(&state, business, &request.headers);
            }
            return rejected.answer(&state, handshake, place);
        }
    };
    // Charged also where nothing is free for it.
    let permits = match admitted.charge(&state).and_then(|()| admitted.permits(&state, address)) {
        Ok(permits) => permits,
        Err((kind, refusal)) => {
            state.metrics.refused.get_or_create(&label(kind)).inc();
            return admitted.refused(refusal);
        }
    };
    if let Err(spent) = admitted.spend(&state) {
        let rejected = (CloseCode::SessionOver, Refusal::unauthorized(format!("{spent}; get a new token")));
        let business = Some(admitted.business.name().to_owned());
        return Rejected { business, ..rejected.into() }.answer(&state, handshake, place);
    }
    if let Some(place) = &place {
        place.leave();
    }
    let compression =
        if admitted.may_compress(&state) { handshake.compress(&request.headers) } else { Compression::default() };
    let limit = admitted.largest_message();
    let session = admitted.session(&state, &permits, &params, control, compression, written);
    handshake.complete(&state.connections, move |upgraded| async move {
        session.run(Wire::new(TokioIo::new(upgraded), limit, compression)).await;
        drop(permits);
    })
}

/// The token that a request offers as a subprotocol.
fn offered_token(headers: &HeaderMap) -> Option<String> {
    let mut offered = handshake::members(headers, SEC_WEBSOCKET_PROTOCOL);
    offered.find_map(|protocol| protocol.strip_prefix(TOKEN_PROTOCOL).map(str::to_owned))
}

/// Whoever has a valid ticket for a business that is here.
struct Admitted {
    ticket: Ticket,
    /// The page's, if the business declares it.
    origin: Option<Box<str>>,
    key: IdentityKey,
    hub: Arc<Hub>,
    business: Arc<Business>,
}

/// What a connection takes of the limits, until it ends.
struct Permits {
    /// Whose connection it is.
    of: ClientAddress,
    connection: ConnectionPermit,
    _address: Option<AddressPermit>,
    _of_business: ShareOfConnection,
}

/// Whoever has not.
struct Rejected {
    code: CloseCode,
    refusal: Refusal,
    /// The origin is none of this business.
    foreign_to: Option<Arc<Business>>,
    /// The business of the ticket, if that was good.
    business: Option<String>,
}

impl From<(CloseCode, Refusal)> for Rejected {
    fn from((code, refusal): (CloseCode, Refusal)) -> Self {
        Self { code, refusal, foreign_to: None, business: None }
    }
}

impl Rejected {
    /// A close frame under the subprotocol, else an HTTP answer.
    fn answer(self, state: &State, handshake: Handshake, place: Option<Arc<Place>>) -> Response {
        let Self { code, refusal, foreign_to: _, business } = self;
        let kind = if refusal.code == Code::Origin { Code::Origin.label() } else { "socket" };
        state.metrics.refused.get_or_create(&label(kind)).inc();
        let mut response = if handshake.protocol().is_some() {
            let mut response = handshake.complete(&state.connections, move |upgraded| async move {
                let closing = Wire::new(TokioIo::new(upgraded), 0, Compression::default()).close(code);
                match place {
                    Some(place) => tokio::select! { () = closing => {} () = place.gives_way() => {} },
                    None => closing.await,
                }
            });
            refusal.note(&mut response);
            response
        } else {
            refusal.into_response()
        };
        if let Some(business) = business {
            response.extensions_mut().insert(OfBusiness(business));
        }
        response
    }
}

impl Admitted {
    /// Judges a ticket. Changes nothing: the same request may be judged again.
    fn by(state: &State, token: &str, headers: &HeaderMap) -> Result<Self, Rejected> {
        if state.sockets.drain.has_begun() {
            let refusal = Refusal::overloaded("this edge is shutting down; connect again");
            return Err((CloseCode::Drain, refusal).into());
        }
        let now = clock::now_ms();
        let over = |reason: &str| (CloseCode::SessionOver, Refusal::unauthorized(format!("{reason}; get a new token")));
        let ticket = ticket::open(&state.keys, token, now).map_err(|error| over(&error.to_string()))?;
        let business = ticket.business.clone();
        Self::with(state, ticket, headers, now).map_err(|rejected| Rejected { business: Some(business), ..rejected })
    }

    /// Judges a ticket that an edge has signed.
    fn with(state: &State, mut ticket: Ticket, headers: &HeaderMap, now: i64) -> Result<Self, Rejected> {
        let over = |reason: &str| (CloseCode::SessionOver, Refusal::unauthorized(format!("{reason}; get a new token")));
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
        let Some(page) = origin::judge(state, &business, headers) else {
            let foreign_to = Some(business);
            return Err(Rejected { code: CloseCode::Revoked, refusal: Refusal::origin(), foreign_to, business: None });
        };
        let grant = &mut ticket.grant;
        if grant.origin != 0 && grant.origin != page.digest() {
            let refusal = Refusal::new(Code::Origin, "this token was made for pages of another origin");
            return Err((CloseCode::Revoked, refusal).into());
        }
        grant.origin = page.digest();
        if !business.admits(grant) {
            return Err(over("what this session was let in by is not declared any more").into());
        }
        ticket.session_ends_at = business.session_end(grant, ticket.session_ends_at);
        if now >= ticket.session_ends_at {
            return Err(over("sessions of this business have become shorter, and this one is over").into());
        }
        state.sockets.gate.judge(&ticket).map_err(|spent| over(&spent.to_string()))?;
        let origin = match page {
            Page::Any => None,
            Page::Declared(origin) => Some(origin.into()),
        };
        let key = state.sockets.limiter.key(&ticket.business, &ticket.unique_id);
        Ok(Self { ticket, origin, key, hub, business })
    }

    /// Uses the ticket up. Last: nothing fails after it.
    ///
    /// # Errors
    /// Another request has just used it.
    fn spend(&self, state: &State) -> Result<(), Spent> {
        state.sockets.gate.spend(&self.ticket, clock::now_ms())
    }

    /// Charges the identity for connecting.
    ///
    /// # Errors
    /// A label for metrics, and the answer: it connects too often, and is not charged.
    fn charge(&self, state: &State) -> Result<(), (&'static str, Refusal)> {
        let connections = self.business.config.limits.connections_per_id;
        state.sockets.limiter.connect(self.key, connections).map_err(|wait| {
            let description = format!("this identity connects too often, wait {} ms", wait.as_millis());
            ("connect_rate", Refusal::overloaded(description))
        })
    }

    /// Takes what a connection needs of the limits.
    ///
    /// # Errors
    /// As above.
    fn permits(&self, state: &State, address: ClientAddress) -> Result<Permits, (&'static str, Refusal)> {
        let share = &self.hub.share;
        let of_business = share.connection(&self.business.config.limits.per_edge).ok_or_else(|| {
            let description = "this business has as many connections to this edge as it may";
            ("business_connections", Refusal::overloaded(description))
        })?;
        // Its own is counted already.
        let own = share.connections().saturating_sub(1);
        let connection = state.connection_limit.permit(own, state.catalog.count()).map_err(|full| match full {
            Full::Edge => ("connection_limit", Refusal::overloaded("this edge has as many connections as it may")),
            Full::Share => {
                let description = "the last connections of this edge are for businesses that have fewer";
                ("edge_share", Refusal::overloaded(description))
            }
        })?;
        let of_address =
            state.addresses.connection(address).map_err(|many| (many.label(), addresses::too_many(many)))?;
        Ok(Permits { of: address, connection, _address: of_address, _of_business: of_business })
    }

    /// The answer to one that is refused all the same.
    fn refused(&self, refusal: Refusal) -> Response {
        let mut response = refusal.into_response();
        response.extensions_mut().insert(OfBusiness(self.business.name().to_owned()));
        response
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
        permits: &Permits,
        params: &Params,
        control: bool,
        compression: Compression,
        written: WriteProgress,
    ) -> Session {
        Session {
            shared: Arc::clone(&state.sockets),
            address: permits.of,
            number: permits.connection.number,
            key: self.key,
            start: begin(&self.business, params.cursor.as_deref()),
            hub: self.hub,
            ticket: self.ticket,
            origin: self.origin,
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
