//! Whose request it is, by address: for the limits of an address, and for whoever logs it.

use std::{
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, PoisonError},
};

use axum::{
    extract::{Request, State as Shared},
    http::StatusCode,
    middleware::Next,
    response::{IntoResponse, Response},
};

use super::{
    answer::{Code, Refusal},
    state::State,
};
use crate::{
    address::limits::{AddressPermit, TooMany},
    metrics::label,
    strangers::Place,
};

/// The other end of a request's connection; an extension of each request.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Its address, or what the PROXY protocol says.
    pub address: IpAddr,
    /// Its place; `None` in tests.
    pub place: Option<Arc<Place>>,
}

impl Default for Peer {
    /// Of a request in a test.
    fn default() -> Self {
        Self { address: IpAddr::V6(Ipv6Addr::UNSPECIFIED), place: None }
    }
}

/// A request that counts as one of its address's handshakes until its caller is known; an extension of each request.
#[derive(Clone, Debug, Default)]
pub(super) struct Judging {
    permit: Arc<Mutex<Option<AddressPermit>>>,
    place: Option<Arc<Place>>,
}

impl Judging {
    /// The caller has shown a valid token or key.
    pub(super) fn is_known(&self) {
        drop(self.permit.lock().unwrap_or_else(PoisonError::into_inner).take());
        if let Some(place) = &self.place {
            place.is_known();
        }
    }
}

/// The refusal of an address that has too many of something.
pub(super) fn too_many(of: TooMany) -> Refusal {
    Refusal::overloaded(match of {
        TooMany::Connections => "this address has as many connections to this edge as it may",
        TooMany::Handshakes => "too many requests of this address are being judged; wait a little",
    })
}

/// Notes the client's address and judges it by its limits. A failure of an address that has too many of them is answered
/// late.
pub(super) async fn layer(Shared(state): Shared<Arc<State>>, mut request: Request, next: Next) -> Response {
    let Peer { address: peer, place } = request.extensions().get::<Peer>().cloned().unwrap_or_default();
    let address = state.addresses.client(peer, request.headers());
    // Requests of many clients follow each other on a proxy's connection, which is none of theirs.
    let permit = if address.0 == peer { Ok(None) } else { state.addresses.handshake(address) };
    let permit = match permit {
        Ok(permit) => permit,
        Err(many) => {
            state.metrics.refused.get_or_create(&label(many.label())).inc();
            return too_many(many).into_response();
        }
    };
    let judging = Judging { permit: Arc::new(Mutex::new(permit)), place };
    request.extensions_mut().insert(address);
    request.extensions_mut().insert(judging.clone());
    let response = next.run(request).await;
    if response.extensions().get::<Code>().is_some_and(|code| code.is_of_a_stranger()) {
        if let Some(pause) = state.addresses.failed(address) {
            tokio::time::sleep(pause).await;
        }
    } else if response.status() == StatusCode::OK {
        judging.is_known();
    }
    response
}
