//! Times that a sender gave in another unit than milliseconds.

use std::fmt;

/// A unit that was used instead of milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimeUnit {
    /// Seconds.
    Seconds,
    /// Microseconds.
    Microseconds,
    /// Nanoseconds.
    Nanoseconds,
}

impl TimeUnit {
    /// The unit of a number that makes no sense as milliseconds, but is a time between 2001 and 2100 in another unit.
    /// Other unusual values, such as the largest integer for "never", are accepted as they are.
    pub fn of(value: i64) -> Option<Self> {
        const FROM: i64 = 978_307_200;
        const TO: i64 = 4_102_444_800;
        [(Self::Seconds, 1), (Self::Microseconds, 1_000_000), (Self::Nanoseconds, 1_000_000_000)]
            .into_iter()
            .find_map(|(unit, per_second)| (FROM..TO).contains(&(value / per_second)).then_some(unit))
    }
}

impl fmt::Display for TimeUnit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Seconds => "seconds",
            Self::Microseconds => "microseconds",
            Self::Nanoseconds => "nanoseconds",
        })
    }
}

/// The message for a sender whose push had expired before it was accepted.
pub fn expired(at: i64, taken: i64) -> String {
    match TimeUnit::of(at) {
        Some(unit) => format!("expiresAt {at} is in {unit}; give milliseconds since the epoch, such as {taken}"),
        None => format!(
            "expiresAt {at} had passed when the message was taken, at {taken} (ms since the epoch); check the sender's clock"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_795_580_691_435;

    #[test]
    fn a_time_in_another_unit_is_recognized() {
        for (value, unit) in [
            (NOW / 1000, Some(TimeUnit::Seconds)),
            (NOW * 1000, Some(TimeUnit::Microseconds)),
            (NOW * 1_000_000, Some(TimeUnit::Nanoseconds)),
            (NOW, None),
            (1, None),
            (i64::MAX, None),
            ((1 << 53) - 1, None),
        ] {
            assert_eq!(TimeUnit::of(value), unit, "{value}");
        }
    }

    #[test]
    fn seconds_are_named() {
        assert!(expired(NOW / 1000, NOW).contains("in seconds"));
        assert!(expired(NOW - 1, NOW).contains("clock"));
    }
}
