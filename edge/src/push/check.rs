//! What a business's service may push: an envelope checked against the declaration, completed, and ready to publish.

use std::sync::Arc;

use wirepost_core::{Envelope, EnvelopeError, SendType, contract::headers};

use super::{audience, expiry, rejection::Rejection};
use crate::{
    broker::Publication,
    business::{Business, check_pool::Busy},
};

/// A push ready to publish.
#[derive(Clone, Debug)]
pub struct Prepared {
    /// The envelope's id: the caller's, or a new one.
    pub id: String,
    /// What to publish.
    pub publication: Publication,
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
    /// Several businesses at once.
    #[error("field businesses is not served by this call; push to each business with its own key")]
    Businesses,
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
            Self::Businesses => Some("businesses"),
            Self::Rejected(rejection) => rejection.field(),
        }
    }
}

/// Checks a push of a service and adds what is missing: `id` (UUIDv7), `sendType`, `businessType`, `timestamp` (the
/// edge's clock) and `expiresAt` (from the route's `ttlSeconds`).
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
    if !envelope.businesses.is_empty() {
        return Err(PushRefusal::Businesses);
    }
    let route = audience::route(business, &envelope)?;
    audience::audience(route, &envelope)?;
    expiry::check_timestamp(&envelope)?;
    let expires_at = expiry::end(&envelope, route.config.ttl_seconds, now)?;
    route.check_content(envelope.content).map_err(Rejection::from)?;
    let id = envelope.id.as_deref().map_or_else(|| uuid::Uuid::now_v7().to_string(), str::to_owned);
    let timestamp = envelope.timestamp.unwrap_or(now);
    let completed = Envelope {
        id: Some(id.as_str().into()),
        send_type: Some(SendType::ServerToClient),
        business_type: Some(business.name().into()),
        timestamp: Some(timestamp),
        expires_at,
        ..envelope
    };
    let body = completed.to_vec();
    // As published, since every edge measures it again: what passes here must not be skipped there.
    let max = business.config.limits.push_bytes;
    if body.len() > max {
        return Err(Rejection::TooLarge { bytes: body.len(), max }.into());
    }
    let publication = Publication {
        exchange: Arc::clone(&business.push_exchange),
        routing_key: message_type.clone(),
        queue: None,
        message_id: id.clone(),
        body: body.into(),
        timestamp,
        headers: vec![(headers::MESSAGE_TYPE, message_type)],
    };
    Ok(Prepared { id, publication })
}
