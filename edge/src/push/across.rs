//! Messages from one business to the clients of another. The one place of this rule: pushes by HTTP, by AMQP and from
//! clients pass it at the edge that publishes them, and again at each edge that reads them for the other business.
//!
//! The broker says whose a message is ([`Origin`](crate::broker::Origin)), so none can pretend to be another business's
//! own, and what comes from another business goes to no third one.

use wirepost_core::Envelope;

use super::{
    audience::{self, Audience},
    check, expiry,
    rejection::Rejection,
};
use crate::{
    broker::Record,
    business::{Business, Route},
};

/// Businesses for which a message is checked at once, where each check is light.
const LIGHT_BUSINESSES: usize = 4;

/// Whether a message is for the clients of the business that it belongs to.
pub fn is_for(business: &str, envelope: &Envelope<'_>) -> bool {
    envelope.businesses.is_empty() || envelope.businesses.iter().any(|named| named == business)
}

/// The businesses that a message names, each once.
pub fn named<'e>(envelope: &'e Envelope<'_>) -> impl Iterator<Item = &'e str> {
    let all = &envelope.businesses;
    all.iter().enumerate().filter(|(i, name)| !all[..*i].contains(name)).map(|(_, name)| name.as_ref())
}

/// The route and the audience among the clients of `business` of a message that belongs to the business `from`.
///
/// # Errors
/// [`Rejection`]: a retry does not help.
pub fn judge<'b>(
    business: &'b Business,
    from: &str,
    envelope: &Envelope<'_>,
) -> Result<(&'b Route, Audience), Rejection> {
    let message_type = envelope.message_type.as_deref().unwrap_or_default();
    if audience::is_reserved(message_type) {
        return Err(Rejection::Reserved(message_type.to_owned()));
    }
    if !envelope.businesses.iter().any(|named| named == business.name()) || !business.accepts(from, message_type) {
        return Err(not_accepted(business.name(), envelope));
    }
    let route =
        audience::direction(envelope).and_then(|direction| business.route(direction, message_type)).ok_or_else(
            || Rejection::NoRouteThere { by: business.name().to_owned(), message_type: message_type.to_owned() },
        )?;
    let audience = audience::audience(route, envelope)?;
    Ok((route, audience))
}

/// The refusal of a business that does not accept a message.
pub fn not_accepted(by: &str, envelope: &Envelope<'_>) -> Rejection {
    let message_type = envelope.message_type.as_deref().unwrap_or_default().to_owned();
    Rejection::NotAccepted { by: by.to_owned(), message_type }
}

/// The other businesses that a message of `business` names and that do not get it, with the reason: as far as this edge
/// knows them.
pub fn refused(business: &Business, record: &Record, envelope: &Envelope<'_>) -> Vec<(String, Rejection)> {
    let others = named(envelope).filter(|other| *other != business.name());
    let refused = others.filter_map(|other| {
        let judged = judge_copy(business, other, record, envelope);
        let copied = || {
            if record.origin.names(other) { Ok(()) } else { Err(Rejection::NotCopied { business: other.to_owned() }) }
        };
        let why = judged.and_then(|()| copied()).err()?;
        Some((other.to_owned(), why))
    });
    refused.collect()
}

fn judge_copy(business: &Business, other: &str, record: &Record, envelope: &Envelope<'_>) -> Result<(), Rejection> {
    if !business.is_accepted_by(other) {
        return Err(not_accepted(other, envelope));
    }
    let Some(other) = business.peers.get(other) else { return Ok(()) };
    let (route, _) = judge(&other, business.name(), envelope)?;
    expiry::of_record(envelope, &route.config, record.timestamp)?;
    check::fits(&other, record.body.len())
}

/// Whether checking the content of a message may take long, by the routes of any business that it is for: see
/// [`Business::is_heavy`].
pub fn is_heavy(business: &Business, envelope: &Envelope<'_>) -> bool {
    let of = |business: &Business| business.is_heavy(envelope.message_type.as_deref(), envelope.content);
    of(business)
        // Many light checks take as long as a heavy one.
        || envelope.businesses.len() > LIGHT_BUSINESSES
        || envelope
            .businesses
            .iter()
            .filter(|other| business.is_accepted_by(other))
            .any(|other| business.peers.get(other).is_some_and(|other| of(&other)))
}
