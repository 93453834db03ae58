//! Client → server and client → client: checks and stamps what a client sent, and prepares it for publishing.

use std::{sync::Arc, time::Duration};

use wirepost_core::{
    Envelope, EnvelopeError, SendType,
    content::ContentError,
    contract::headers,
    envelope::MAX_ID,
    frames::{MAX_RECEIPTS, NackCode},
};

use super::admission;
use crate::{
    broker::{Publication, PublishError},
    business::{Business, check_pool::Busy},
    push::{
        across, audience,
        check::{self, PushRefusal},
        expiry,
        rejection::Rejection,
    },
};

/// When a client is to repeat what the broker did not take: an edge needs about as long to find another connection.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Why a message is not accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nack {
    /// The message's id, where it could be read.
    pub id: Option<String>,
    /// The code.
    pub code: NackCode,
    /// An explanation.
    pub reason: String,
    /// Whether it may have arrived all the same.
    pub may_have_arrived: bool,
    /// How long to wait before a retry, if known.
    pub retry_after_ms: Option<u64>,
}

impl Nack {
    /// A refusal: nothing was sent.
    pub fn new(id: Option<&str>, code: NackCode, reason: impl Into<String>) -> Self {
        Self { id: id.map(str::to_owned), code, reason: reason.into(), may_have_arrived: false, retry_after_ms: None }
    }

    /// The edge could not check it in time.
    pub fn busy(id: Option<&str>, busy: Busy) -> Self {
        let retry_after_ms = Some(Busy::RETRY_AFTER.as_millis() as u64);
        Self { retry_after_ms, ..Self::new(id, NackCode::Overloaded, busy.to_string()) }
    }

    /// The answer to the client for the broker's error.
    pub fn of_publish(id: &str, error: &PublishError) -> Self {
        let (code, may_have_arrived, retry_after) = match error {
            PublishError::Overloaded { retry_after } => (NackCode::BrokerUnavailable, false, *retry_after),
            PublishError::Unavailable(_) | PublishError::Refused(_) | PublishError::Unrouted(_) => {
                (NackCode::BrokerUnavailable, false, RETRY_AFTER)
            }
            PublishError::Unknown(_) => (NackCode::Timeout, true, RETRY_AFTER),
        };
        let retry_after_ms = Some(retry_after.as_millis() as u64);
        Self { may_have_arrived, retry_after_ms, ..Self::new(Some(id), code, error.to_string()) }
    }

    /// The answer to bytes that are not an envelope.
    pub fn of_envelope(bytes: &[u8], error: &EnvelopeError) -> Self {
        Self::new(Envelope::readable_id(bytes).as_deref(), NackCode::InvalidEnvelope, error.to_string())
    }
}

/// A message ready to publish, with its id.
#[derive(Debug)]
pub struct Prepared {
    /// The id: the client's, or a new one.
    pub id: String,
    /// What to publish: one message for each queue, each with its own confirm, so that a lost binding is noticed.
    pub publications: Vec<Publication>,
    /// How often the broker stores it: for each queue, or for each business whose clients get it.
    pub copies: usize,
}

/// Who sends.
#[derive(Clone, Copy, Debug)]
pub struct Sender<'a> {
    /// `uniqueId`.
    pub unique_id: &'a str,
    /// `clientType`.
    pub client_type: &'a str,
}

/// Checks and stamps what `sender` sent, at `now` (ms since the epoch).
///
/// # Errors
/// A [`Nack`]; nothing was sent.
pub fn prepare(business: &Business, sender: Sender<'_>, envelope: Envelope<'_>, now: i64) -> Result<Prepared, Nack> {
    let id = envelope.id.as_deref().map(str::to_owned);
    let nack = |code, reason: String| Nack::new(id.as_deref(), code, reason);
    identity(business, sender, &envelope).map_err(|reason| nack(NackCode::IdentityMismatch, reason))?;
    let Some(message_type) = envelope.message_type.as_deref().map(str::to_owned) else {
        return Err(nack(NackCode::InvalidEnvelope, "field messageType is missing".into()));
    };
    if audience::is_reserved(&message_type) {
        return Err(nack(NackCode::NotAllowed, Rejection::Reserved(message_type).to_string()));
    }
    expiry::check_timestamp(&envelope).map_err(|error| nack(NackCode::InvalidEnvelope, error.to_string()))?;
    let Some(route) = business.client_route(envelope.send_type, &message_type) else {
        return Err(nack(
            NackCode::UnknownRoute,
            format!("no route of {} takes {message_type:?} from clients", business.name()),
        ));
    };
    let to: Vec<String> = across::named(&envelope).map(str::to_owned).collect();
    let to: Vec<&str> = to.iter().map(String::as_str).collect();
    let (exchange, to_headers) = match route.config.send_type {
        SendType::ClientToClient => {
            if across::is_for(business.name(), &envelope) {
                audience::audience(route, &envelope).map_err(|why| nack(NackCode::NotAllowed, why.to_string()))?;
                expiry::end(&envelope, route.config.ttl_seconds, now)
                    .map_err(|why| nack(code_of(&why), why.to_string()))?;
            }
            // All or nothing: an ack means that every business that it names has it.
            for other in to.iter().filter(|other| **other != business.name()) {
                accepted(business, other, &envelope, now).map_err(|nacked| Nack { id: id.clone(), ..nacked })?;
            }
            check::route_to(business, &to)
        }
        SendType::ClientToServer | SendType::ServerToClient => {
            if !to.is_empty() {
                let reason = "businesses is for messages to clients; a service has queues of its own business alone";
                return Err(nack(NackCode::NotAllowed, reason.into()));
            }
            (Arc::clone(&business.receive_exchange), Vec::new())
        }
    };
    let queues = admission::queues(business, route, sender.client_type, &envelope)
        .map_err(|(code, reason)| nack(code, reason))?;
    let id = id.unwrap_or_else(|| uuid::Uuid::now_v7().to_string());
    let timestamp = envelope.timestamp.unwrap_or(now);
    let body = Envelope {
        id: Some(id.as_str().into()),
        send_type: Some(route.config.send_type),
        business_type: Some(business.name().into()),
        from_unique_id: Some(sender.unique_id.into()),
        from_client_type: Some(sender.client_type.into()),
        timestamp: Some(timestamp),
        ..envelope
    }
    .to_vec();
    if route.config.send_type == SendType::ClientToClient {
        // Every edge would skip it: it must not be acknowledged.
        let others = to.iter().filter(|other| **other != business.name()).filter_map(|other| business.peers.get(other));
        let here = to.is_empty() || to.contains(&business.name());
        let too_large = |business: &Business| check::fits(business, body.len()).err();
        let refusal =
            others.map(|other| too_large(&other)).chain([here.then(|| too_large(business)).flatten()]).flatten().next();
        if let Some(why) = refusal {
            return Err(Nack::new(Some(&id), NackCode::TooLarge, why.to_string()));
        }
    }
    let publication = Publication {
        exchange,
        routing_key: message_type.clone(),
        queue: None,
        message_id: id.clone(),
        body: body.into(),
        timestamp,
        headers: to_headers
            .into_iter()
            .chain([
                (headers::MESSAGE_TYPE.into(), message_type),
                (headers::FROM_CLIENT_TYPE.into(), sender.client_type.to_owned()),
                (headers::FROM_UNIQUE_ID.into(), sender.unique_id.to_owned()),
            ])
            .collect(),
    };
    let publications: Vec<_> = queues.into_iter().map(|queue| Publication { queue, ..publication.clone() }).collect();
    let copies = publications.len().max(to.len());
    Ok(Prepared { id, publications, copies })
}

/// Whether the clients of another business may get a client's message.
fn accepted(business: &Business, other: &str, envelope: &Envelope<'_>, now: i64) -> Result<(), Nack> {
    if !business.is_accepted_by(other) {
        return Err(Nack::new(None, NackCode::NotAccepted, across::not_accepted(other, envelope).to_string()));
    }
    let Some(other) = business.peers.get(other) else {
        let nack = Nack::new(None, NackCode::Overloaded, PushRefusal::NotHere(other.to_owned()).to_string());
        return Err(Nack { retry_after_ms: Some(RETRY_AFTER.as_millis() as u64), ..nack });
    };
    let rejected = |why: Rejection| Nack::new(None, code_of(&why), format!("business {:?}: {why}", other.name()));
    // Without a direction of its own it has that of its business's route.
    let envelope = &Envelope { send_type: Some(SendType::ClientToClient), ..envelope.clone() };
    let (route, _) = across::judge(&other, business.name(), envelope).map_err(rejected)?;
    expiry::end(envelope, route.config.ttl_seconds, now).map_err(rejected)?;
    route.check_share(envelope.content, envelope.businesses.len()).map_err(|unfit| {
        let code = match unfit {
            ContentError::Mismatch(_) => NackCode::SchemaMismatch,
            ContentError::TooComplex => NackCode::TooComplex,
        };
        Nack::new(None, code, format!("business {:?}: {unfit}", other.name()))
    })
}

fn code_of(why: &Rejection) -> NackCode {
    match why {
        Rejection::Expired { .. } => NackCode::Expired,
        Rejection::NotAccepted { .. } | Rejection::NoRouteThere { .. } => NackCode::NotAccepted,
        Rejection::Invalid(_) => NackCode::InvalidEnvelope,
        _ => NackCode::NotAllowed,
    }
}

/// Checks the ids of a receipt: impossible ids are not passed on.
///
/// # Errors
/// Why it is refused.
pub fn receipt(ids: &[String]) -> Result<(), String> {
    if ids.is_empty() || ids.len() > MAX_RECEIPTS {
        return Err(format!("{} ids in one receipt, 1 to {MAX_RECEIPTS} are taken", ids.len()));
    }
    match ids.iter().find(|id| id.is_empty() || id.len() > MAX_ID) {
        Some(id) => Err(format!("an id of {} bytes, 1 to {MAX_ID} are taken", id.len())),
        None => Ok(()),
    }
}

/// The token decides who the sender is. A value that contradicts it is refused, not corrected, so that a mistake in the
/// client shows.
fn identity(business: &Business, sender: Sender<'_>, envelope: &Envelope<'_>) -> Result<(), String> {
    for (field, claimed, actual) in [
        ("fromUniqueId", envelope.from_unique_id.as_deref(), sender.unique_id),
        ("fromClientType", envelope.from_client_type.as_deref(), sender.client_type),
        ("businessType", envelope.business_type.as_deref(), business.name()),
    ] {
        if claimed.is_some_and(|claimed| claimed != actual) {
            return Err(format!("{field} is not this connection's; leave it out"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_receipt_names_messages() {
        let ids = |count: usize, bytes: usize| vec!["m".repeat(bytes); count];
        for good in [ids(1, 1), ids(MAX_RECEIPTS, MAX_ID)] {
            assert_eq!(receipt(&good), Ok(()));
        }
        for bad in [ids(0, 0), ids(MAX_RECEIPTS + 1, 1), ids(1, 0), ids(1, MAX_ID + 1)] {
            assert!(receipt(&bad).is_err(), "{bad:?}");
        }
    }
}
