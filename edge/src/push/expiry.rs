//! When a push expires. One rule for pushes by HTTP, by AMQP and from clients: its time to live starts when the broker
//! (or an edge) *accepted* it, and never depends on a sender's clock.

use wirepost_core::{Envelope, EnvelopeError, SendType, edge_config::RouteConfig};

use super::{rejection::Rejection, time_unit::TimeUnit};

/// Whether `timestamp` is in milliseconds.
///
/// # Errors
/// It is in another unit.
pub fn check_timestamp(envelope: &Envelope<'_>) -> Result<(), EnvelopeError> {
    wrong_unit("timestamp", envelope.timestamp.and_then(TimeUnit::of))
}

/// Until when a push may be delivered: its `expiresAt`, or `taken` plus the route's time to live if that is earlier;
/// `None` = forever. All in ms since the epoch.
///
/// # Errors
/// [`Rejection::Expired`] if it had expired when it was accepted; [`Rejection::Invalid`] if `expiresAt` is in micro- or
/// nanoseconds, which would never be reached.
pub fn end(envelope: &Envelope<'_>, ttl_seconds: Option<u64>, taken: i64) -> Result<Option<i64>, Rejection> {
    if let Some(asked) = envelope.expires_at {
        let unit = TimeUnit::of(asked).filter(|unit| *unit != TimeUnit::Seconds);
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

/// [`end`] for a message of this route as it is read; `taken`: when the broker stored it.
///
/// # Errors
/// As [`end`].
pub fn of_record(envelope: &Envelope<'_>, route: &RouteConfig, taken: i64) -> Result<Option<i64>, Rejection> {
    match end(envelope, route.ttl_seconds, taken) {
        // An edge accepted it from the client in time; that it has expired since is what the client asked for.
        Err(Rejection::Expired { at, .. })
            if route.send_type == SendType::ClientToClient && was_taken_from_client(envelope, at) =>
        {
            Ok(Some(at))
        }
        end => end,
    }
}

/// Whether a ClientToClient message that expired at `at` can have come through an edge, which stamps the sender and
/// refuses expired messages and seconds. A message that a service published as ClientToClient can't.
fn was_taken_from_client(envelope: &Envelope<'_>, at: i64) -> bool {
    envelope.from_unique_id.is_some() && envelope.from_client_type.is_some() && TimeUnit::of(at).is_none()
}

fn wrong_unit(field: &'static str, unit: Option<TimeUnit>) -> Result<(), EnvelopeError> {
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
    fn time_to_live_starts_when_the_message_is_accepted() {
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
    fn only_messages_stamped_by_an_edge_count_as_accepted_in_time() {
        let stamped = Envelope {
            from_unique_id: Some("alice".into()),
            from_client_type: Some("app".into()),
            ..Envelope::default()
        };
        assert!(was_taken_from_client(&stamped, NOW - 1));
        assert!(!was_taken_from_client(&stamped, NOW / 1000), "no edge accepts seconds");
        assert!(!was_taken_from_client(&Envelope::default(), NOW - 1), "from a service");
    }
}
