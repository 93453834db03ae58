//! Which pushes of a stream are for clients of the business, and for which.

use wirepost_core::{Envelope, contract::marker::BEGIN};

use super::{
    across,
    audience::{self, Audience},
    entry::Rejected,
    rejection::Rejection,
};
use crate::{
    broker::{MessageDefect, Origin, Record},
    business::{Business, Route},
};

/// A push with valid recipients; it may have expired, and nothing has looked at its content.
pub(super) struct Admitted<'a> {
    pub(super) envelope: Envelope<'a>,
    /// The business that it belongs to.
    pub(super) owner: &'a str,
    pub(super) route: &'a Route,
    pub(super) audience: Audience,
}

/// Reads a record. `None`: nobody here is meant. Other businesses that it names may have reasons of their own.
///
/// # Errors
/// Why it has no valid recipients, with its id where that could be read.
pub(super) fn admit<'a>(
    business: &'a Business,
    record: &'a Record,
    rejections: &mut Vec<Rejected>,
) -> Result<Option<Admitted<'a>>, (Option<String>, Rejection)> {
    let max = business.config.limits.push_bytes;
    if record.body.len() > max {
        return Err((None, Rejection::TooLarge { bytes: record.body.len(), max }));
    }
    if let Some(defect @ MessageDefect::Unreadable(_)) = &record.defect {
        return Err((None, Rejection::Unreadable(defect.to_string())));
    }
    let envelope = Envelope::parse(&record.body).map_err(|error| {
        let why = record.defect.as_ref().map_or_else(|| error.to_string(), ToString::to_string);
        (Envelope::readable_id(&record.body).map(Into::into), Rejection::Invalid(why))
    })?;
    if is_marker(&envelope) {
        return Ok(None);
    }
    let id = || envelope.id.as_deref().map(str::to_owned);
    let rejected = |why| (id(), why);
    let owner = record.origin.business.as_deref().unwrap_or(business.name());
    if let Some(other) = envelope.business_type.as_deref().filter(|other| *other != owner) {
        return Err(rejected(Rejection::OtherBusiness(other.to_owned())));
    }
    let (route, audience) = if record.origin.business.is_some() {
        across::judge(business, owner, &envelope).map_err(rejected)?
    } else {
        let others = across::refused(business, record, &envelope);
        rejections.extend(others.into_iter().map(|(by, why)| Rejected {
            id: id(),
            why,
            refused_by: Some(by),
            of: None,
        }));
        if !across::is_for(business.name(), &envelope) {
            return Ok(None);
        }
        // It came here only because the broker found nobody whom its headers name.
        let Origin { shared, to, .. } = &record.origin;
        if *shared && !to.is_empty() && !record.origin.names(business.name()) {
            return Err(rejected(Rejection::NotCopied { business: business.name().to_owned() }));
        }
        let route = audience::route(business, &envelope).map_err(rejected)?;
        (route, audience::audience(route, &envelope).map_err(rejected)?)
    };
    Ok(Some(Admitted { envelope, owner, route, audience }))
}

/// Whether it is a marker: the type and nothing to deliver. A push with that message type is not a marker.
fn is_marker(envelope: &Envelope<'_>) -> bool {
    envelope.message_type.as_deref() == Some(BEGIN) && !envelope.has_audience() && envelope.content.is_none()
}
