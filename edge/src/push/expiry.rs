//! When a push ends. One rule for pushes by HTTP, by AMQP and from clients: its time to live runs from the moment when the broker (or an
//! edge) *took* it, never from what a sender's clock says.

use std::fmt;

use wirepost_core::{Envelope, EnvelopeError};

use super::audience::Rejection;

/// A unit in which a time was written instead of milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Seconds.
    Seconds,
    /// Microseconds.
    Microseconds,
    /// Nanoseconds.
    Nanoseconds,
}

impl Unit {
    /// The unit of a number that makes no sense as milliseconds, but is a moment of the years 2001 to 2100 in another unit. Other odd values,
    /// such as the largest integer for "never", are taken as they are.
    pub fn of(value: i64) -> Option<Self> {
        const FROM: i64 = 978_307_200;
        const TO: i64 = 4_102_444_800;
        [(Self::Seconds, 1), (Self::Microseconds, 1_000_000), (Self::Nanoseconds, 1_000_000_000)]
            .into_iter()
            .find_map(|(unit, per_second)| (FROM..TO).contains(&(value / per_second)).then_some(unit))
    }
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Seconds => "seconds",
            Self::Microseconds => "microseconds",
            Self::Nanoseconds => "nanoseconds",
        })
    }
}

/// Whether `timestamp` is in milliseconds.
///
/// # Errors
/// The unit that it is plainly in.
pub fn check_timestamp(envelope: &Envelope<'_>) -> Result<(), EnvelopeError> {
    wrong_unit("timestamp", envelope.timestamp.and_then(Unit::of))
}

/// Until when a push may be delivered: the earlier of its `expiresAt` and what the route allows from `taken` on; `None` = no end. All in ms
/// since the epoch.
///
/// # Errors
/// [`Rejection::Expired`] where that was over when it was taken; [`Rejection::Invalid`] where `expiresAt` is in micro- or nanoseconds, which
/// would be an end that never comes.
pub fn end(envelope: &Envelope<'_>, ttl_seconds: Option<u64>, taken: i64) -> Result<Option<i64>, Rejection> {
    if let Some(asked) = envelope.expires_at {
        let unit = Unit::of(asked).filter(|unit| *unit != Unit::Seconds);
        wrong_unit("expiresAt", unit).map_err(|error| Rejection::Invalid(error.to_string()))?;
        if asked <= taken {
            return Err(Rejection::Expired { at: asked, taken });
        }
    }
    let by_route = ttl_seconds.map(|ttl| {
        let ttl = i64::try_from(ttl).unwrap_or(i64::MAX).saturating_mul(1000);
        taken.saturating_add(ttl)
    });
    Ok([envelope.expires_at, by_route].into_iter().flatten().min())
}

/// Whether a ClientToClient message that ended at `at` can have come by an edge, which stamps its sender and refuses what is over or in
/// seconds. What a service published as one gets no such credit.
pub fn was_taken_from_client(envelope: &Envelope<'_>, at: i64) -> bool {
    envelope.from_unique_id.is_some() && envelope.from_client_type.is_some() && Unit::of(at).is_none()
}

/// What a sender reads whose push was over before it was taken.
pub fn sentence(at: i64, taken: i64) -> String {
    match Unit::of(at) {
        Some(unit) => format!("expiresAt {at} is in {unit}; give milliseconds since the epoch, such as {taken}"),
        None => format!(
            "expiresAt {at} had passed when the message was taken, at {taken} (ms since the epoch); check the sender's clock"
        ),
    }
}

fn wrong_unit(field: &'static str, unit: Option<Unit>) -> Result<(), EnvelopeError> {
    match unit {
        None => Ok(()),
        Some(unit) => {
            Err(EnvelopeError::Field { field, problem: format!("is in {unit}; give milliseconds since the epoch") })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_795_580_691_435;

    #[test]
    fn a_time_in_another_unit_is_known_as_such() {
        for (value, unit) in [
            (NOW / 1000, Some(Unit::Seconds)),
            (NOW * 1000, Some(Unit::Microseconds)),
            (NOW * 1_000_000, Some(Unit::Nanoseconds)),
            (NOW, None),
            (1, None),
            (i64::MAX, None),
            ((1 << 53) - 1, None),
        ] {
            assert_eq!(Unit::of(value), unit, "{value}");
        }
    }

    #[test]
    fn time_to_live_runs_from_when_the_message_was_taken() {
        let push = |timestamp, expires_at| Envelope { timestamp, expires_at, ..Envelope::default() };
        for timestamp in [None, Some(1), Some(NOW - 660_000), Some(NOW + 660_000), Some(i64::MAX)] {
            assert_eq!(end(&push(timestamp, None), Some(600), NOW), Ok(Some(NOW + 600_000)), "{timestamp:?}");
            assert_eq!(end(&push(timestamp, None), None, NOW), Ok(None));
            assert_eq!(end(&push(timestamp, Some(NOW + 5)), Some(600), NOW), Ok(Some(NOW + 5)));
            assert_eq!(end(&push(timestamp, Some(i64::MAX)), Some(600), NOW), Ok(Some(NOW + 600_000)));
        }
        for expires_at in [1, NOW / 1000, NOW - 1, NOW] {
            let expired = Rejection::Expired { at: expires_at, taken: NOW };
            assert_eq!(end(&push(None, Some(expires_at)), Some(600), NOW), Err(expired));
        }
        assert!(matches!(end(&push(None, Some(NOW * 1000)), None, NOW), Err(Rejection::Invalid(_))));
    }

    #[test]
    fn only_what_an_edge_can_have_stamped_counts_as_taken_in_time() {
        let stamped = Envelope {
            from_unique_id: Some("alice".into()),
            from_client_type: Some("app".into()),
            ..Envelope::default()
        };
        assert!(was_taken_from_client(&stamped, NOW - 1));
        assert!(!was_taken_from_client(&stamped, NOW / 1000), "no edge takes seconds");
        assert!(!was_taken_from_client(&Envelope::default(), NOW - 1), "from a service");
    }

    #[test]
    fn seconds_are_named() {
        assert!(sentence(NOW / 1000, NOW).contains("in seconds"));
        assert!(sentence(NOW - 1, NOW).contains("clock"));
    }
}
