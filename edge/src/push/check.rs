//! What a business's service may push: an envelope checked against the declaration, completed, and ready to publish.

use std::{borrow::Cow, sync::Arc};

use wirepost_core::{Envelope, EnvelopeError, SendType, contract::headers};

use super::{across, audience, expiry, rejection::Rejection};
use crate::{
    broker::{Header, Publication},
    business::{Business, Route, check_pool::Busy},
};

/// A push ready to publish.
#[derive(Clone, Debug)]
pub struct Prepared {
    /// The envelope's id: the caller's, or a new one.
    pub id: String,
    /// What to publish.
    pub publication: Publication,
    /// What each business that it names says. Empty: it names none.
    pub businesses: Vec<(String, Result<(), PushRefusal>)>,
}

/// Why a push is refused. A retry does not help, unless stated.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PushRefusal {
    /// Not an envelope.
    #[error(transparent)]
    Envelope(#[from] EnvelopeError),
    /// No message type.
    #[error("field messageType is missing")]
    NoMessageType,
    /// A direction that no service pushes.
    #[error("field sendType must be ServerToClient or absent: a service speaks to clients")]
    Direction,
    /// This edge does not have the configuration of another business that it names. A retry helps.
    #[error("this edge does not have business {0:?}; another edge may")]
    NotHere(String),
    /// None of the businesses that it names takes it.
    #[error("none of the businesses takes it, see businesses")]
    ByAll(Vec<(String, PushRefusal)>),
    /// It breaks a rule for all pushes, by HTTP or AMQP.
    #[error(transparent)]
    Rejected(#[from] Rejection),
    /// The check did not run. A retry helps.
    #[error(transparent)]
    Busy(#[from] Busy),
}

impl PushRefusal {
    /// The envelope's field at fault, where one is.
    pub fn field(&self) -> Option<&'static str> {
        match self {
            Self::Envelope(EnvelopeError::Field { field, .. } | EnvelopeError::Duplicate(field)) => Some(field),
            Self::Envelope(_) | Self::Busy(_) => None,
            Self::NoMessageType => Some("messageType"),
            Self::Direction => Some("sendType"),
            Self::NotHere(_) | Self::ByAll(_) => Some("businesses"),
            Self::Rejected(rejection) => rejection.field(),
        }
    }
}

/// Checks a push of a service and adds what is missing: `id` (UUIDv7), `sendType`, `businessType`, `timestamp` (the
/// edge's clock) and `expiresAt` (from the route's `ttlSeconds`, where it is for one business). `businesses` becomes
/// those that take it.
///
/// # Errors
/// See [`PushRefusal`].
pub fn check_push(business: &Business, envelope: Envelope<'_>, now: i64) -> Result<Prepared, PushRefusal> {
    let Some(message_type) = envelope.message_type.as_deref().map(str::to_owned) else {
        return Err(PushRefusal::NoMessageType);
    };
    if envelope.send_type.is_some_and(|direction| direction != SendType::ServerToClient) {
        return Err(PushRefusal::Direction);
    }
    expiry::check_timestamp(&envelope)?;
    let mut verdicts = Vec::new();
    let mut envelope = envelope;
    if envelope.businesses.is_empty() {
        let route = route_here(business, &envelope)?;
        let expires_at = expiry::end(&envelope, route.config.ttl_seconds, now)?;
        route.check_content(envelope.content).map_err(Rejection::from)?;
        envelope.expires_at = expires_at;
    } else {
        let judged = across::named(&envelope).map(|to| (to.to_owned(), check_for(business, to, &envelope, now)));
        verdicts.extend(judged);
    }
    let id = envelope.id.as_deref().map_or_else(|| uuid::Uuid::now_v7().to_string(), str::to_owned);
    let timestamp = envelope.timestamp.unwrap_or(now);
    let mut completed = Envelope {
        id: Some(id.as_str().into()),
        send_type: Some(SendType::ServerToClient),
        business_type: Some(business.name().into()),
        timestamp: Some(timestamp),
        ..envelope
    };
    taken_by(&mut completed, &verdicts);
    let mut body = completed.to_vec();
    // As published, since every edge measures it again: what passes here must not be skipped there.
    if verdicts.is_empty() {
        fits(business, body.len())?;
    } else if refuse_too_large(business, &mut verdicts, body.len()) {
        taken_by(&mut completed, &verdicts);
        body = completed.to_vec();
    }
    let taking: Vec<&str> =
        verdicts.iter().filter(|(_, it)| it.is_ok()).map(|(business, _)| business.as_str()).collect();
    if taking.is_empty() && !verdicts.is_empty() {
        let refusal = |(business, verdict): (String, Result<(), PushRefusal>)| Some((business, verdict.err()?));
        return Err(PushRefusal::ByAll(verdicts.into_iter().filter_map(refusal).collect()));
    }
    let (exchange, to) = route_to(business, &taking);
    let publication = Publication {
        exchange,
        routing_key: message_type.clone(),
        queue: None,
        message_id: id.clone(),
        body: body.into(),
        timestamp,
        headers: to.into_iter().chain([(headers::MESSAGE_TYPE.into(), message_type)]).collect(),
    };
    Ok(Prepared { id, publication, businesses: verdicts })
}

/// The exchange for a message to the clients of these businesses, and the headers that lead it there. None: of the
/// sender's own.
pub fn route_to(business: &Business, businesses: &[&str]) -> (Arc<str>, Vec<Header>) {
    if businesses.iter().all(|to| *to == business.name()) {
        return (Arc::clone(&business.push_exchange), Vec::new());
    }
    let header = |to: &&str| (Cow::from(headers::to_business(to)), headers::TO_BUSINESS_VALUE.to_owned());
    (Arc::clone(&business.share_exchange), businesses.iter().map(header).collect())
}

/// Whether a message, as it is published, is small enough for a business.
///
/// # Errors
/// [`Rejection::TooLarge`].
pub fn fits(business: &Business, bytes: usize) -> Result<(), Rejection> {
    let max = business.config.limits.push_bytes;
    if bytes > max { Err(Rejection::TooLarge { bytes, max }) } else { Ok(()) }
}

fn route_here<'b>(business: &'b Business, envelope: &Envelope<'_>) -> Result<&'b Route, Rejection> {
    let route = audience::route(business, envelope)?;
    audience::audience(route, envelope)?;
    Ok(route)
}

/// Whether the clients of one of the businesses that a push names may get it.
fn check_for(business: &Business, to: &str, envelope: &Envelope<'_>, now: i64) -> Result<(), PushRefusal> {
    let check = |route: &Route| -> Result<(), PushRefusal> {
        expiry::end(envelope, route.config.ttl_seconds, now)?;
        Ok(route.check_share(envelope.content, envelope.businesses.len()).map_err(Rejection::from)?)
    };
    if to == business.name() {
        return check(route_here(business, envelope)?);
    }
    if let Some(other) = envelope.business_type.as_deref().filter(|other| *other != business.name()) {
        return Err(Rejection::OtherBusiness(other.to_owned()).into());
    }
    if !business.is_accepted_by(to) {
        return Err(across::not_accepted(to, envelope).into());
    }
    let other = business.peers.get(to).ok_or_else(|| PushRefusal::NotHere(to.to_owned()))?;
    let (route, _) = across::judge(&other, business.name(), envelope)?;
    check(route)
}

fn refuse_too_large(business: &Business, verdicts: &mut [(String, Result<(), PushRefusal>)], bytes: usize) -> bool {
    let mut any = false;
    for (to, verdict) in verdicts.iter_mut().filter(|(_, verdict)| verdict.is_ok()) {
        let fits = if to == business.name() {
            fits(business, bytes)
        } else {
            business.peers.get(to).map_or(Ok(()), |other| fits(&other, bytes))
        };
        if let Err(too_large) = fits {
            (*verdict, any) = (Err(too_large.into()), true);
        }
    }
    any
}

/// Names the businesses that take it, and no others.
fn taken_by(envelope: &mut Envelope<'_>, verdicts: &[(String, Result<(), PushRefusal>)]) {
    let taking = verdicts.iter().filter(|(_, verdict)| verdict.is_ok());
    envelope.businesses = taking.map(|(business, _)| business.clone().into()).collect();
}
