//! Pushes whose receipts are awaited: those of a route with `receiptsWithinSeconds` that name an identity. Tags and "*" name
//! nobody, so nobody could be missing.

use super::{
    admit::{Admitted, admit},
    audience::Recipients,
    entry::id_of,
    expiry,
};
use crate::{broker::Record, business::Business};

/// What a push is known by once its time is up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Followed {
    /// Its id.
    pub id: String,
    /// Whose receipt is awaited.
    pub unique_id: String,
    /// Its type.
    pub message_type: String,
    /// What its route allows.
    pub within_seconds: u64,
    /// Where it stands.
    pub offset: u64,
    /// When the time is up, ms since the epoch. It runs from when the broker stored it: every reader finds the same.
    pub due: i64,
}

/// Whether somebody's receipt of this record is awaited. A copy of another business's message counts as the own ones.
pub fn followed(business: &Business, record: &Record) -> Option<Followed> {
    // The reader reports what is wrong with it.
    let Admitted { envelope, route, audience, .. } = admit(business, record, &mut Vec::new()).ok()??;
    let within_seconds = route.config.receipts_within_seconds.filter(|_| route.config.receipts)?;
    expiry::of_record(&envelope, &route.config, record.timestamp).ok()?;
    let Recipients::Identity { id: unique_id, .. } = audience.recipients else { return None };
    let within = i64::try_from(within_seconds).unwrap_or(i64::MAX).saturating_mul(1000);
    Some(Followed {
        id: envelope.id.map_or_else(|| id_of(record), std::borrow::Cow::into_owned),
        unique_id,
        message_type: envelope.message_type.map(std::borrow::Cow::into_owned).unwrap_or_default(),
        within_seconds,
        offset: record.position.offset,
        due: record.timestamp.saturating_add(within),
    })
}
