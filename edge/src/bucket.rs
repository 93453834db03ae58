//! A rate limit as a leaky bucket: units drain at a steady rate, and a burst fits in. The caller passes the time.

use std::time::Duration;

use tokio::time::Instant;

/// How fast a bucket empties, and how much fits in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Time in which one unit drains.
    pub per_unit: Duration,
    /// Units that fit in.
    pub burst: u32,
}

impl Rate {
    /// `per_second` units a second, at least one; a burst of at least one.
    pub fn per_second(per_second: u32, burst: u32) -> Self {
        Self { per_unit: Duration::from_secs(1) / per_second.max(1), burst: burst.max(1) }
    }

    /// Time in which a full bucket empties.
    pub fn full(self) -> Duration {
        self.per_unit * self.burst
    }
}

/// One bucket; empty at first.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bucket {
    /// When it is empty; `None` or past = it is empty now.
    empty_at: Option<Instant>,
}

impl Bucket {
    /// Adds units, whether they fit or not; what would take longer than `max_wait` to fit is dropped. Some: the bucket
    /// overflows until then.
    pub fn add(&mut self, units: u32, rate: Rate, max_wait: Duration, now: Instant) -> Option<Instant> {
        let empty_at = self.empty_at.map_or(now, |at| at.max(now)) + rate.per_unit * units;
        let empty_at = empty_at.min(now + rate.full() + max_wait);
        self.empty_at = Some(empty_at);
        empty_at.checked_sub(rate.full()).filter(|until| *until > now)
    }

    /// Adds one unit if it fits.
    ///
    /// # Errors
    /// How long to wait until it fits; nothing is added.
    pub fn try_add(&mut self, rate: Rate, now: Instant) -> Result<(), Duration> {
        let before = *self;
        match self.add(1, rate, rate.per_unit, now) {
            None => Ok(()),
            Some(until) => {
                // Under a rate that has changed meanwhile it is at most full, or a former debt would last for its former time.
                self.empty_at = before.empty_at.map(|at| at.min(now + rate.full()));
                Err(until - now)
            }
        }
    }

    /// Whether more is in it than fits.
    pub fn overflows(self, rate: Rate, now: Instant) -> bool {
        self.empty_at.is_some_and(|at| at > now + rate.full())
    }

    /// Whether nothing is in it.
    pub fn is_empty(self, now: Instant) -> bool {
        self.empty_at.is_none_or(|at| at <= now)
    }

    /// The fuller one of two.
    #[must_use]
    pub fn fuller(self, other: Self) -> Self {
        Self { empty_at: self.empty_at.max(other.empty_at) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_the_burst_the_rate_limits() {
        let rate = Rate::per_second(50, 200);
        let (mut bucket, now) = (Bucket::default(), Instant::now());
        let max_wait = Duration::from_secs(10);
        for _ in 0..200 {
            assert_eq!(bucket.add(1, rate, max_wait, now), None);
        }
        assert_eq!(bucket.add(1, rate, max_wait, now), Some(now + rate.per_unit));
        let later = now + rate.per_unit * 201;
        assert!(bucket.is_empty(later));
        assert_eq!(bucket.add(200, rate, max_wait, later), None, "the whole burst fits again");
    }

    #[test]
    fn a_debt_of_a_former_rate_lasts_no_longer_than_todays_burst() {
        let (mut bucket, now) = (Bucket::default(), Instant::now());
        let (slow, fast) = (Rate::per_second(1, 600), Rate::per_second(100, 100));
        for _ in 0..600 {
            assert_eq!(bucket.try_add(slow, now), Ok(()));
        }
        let wait = bucket.try_add(fast, now).unwrap_err();
        assert_eq!(bucket.try_add(fast, now + wait), Ok(()));
    }

    #[test]
    fn a_refused_unit_is_not_added() {
        let rate = Rate::per_second(10, 2);
        let (mut bucket, now) = (Bucket::default(), Instant::now());
        assert_eq!([bucket.try_add(rate, now), bucket.try_add(rate, now)], [Ok(()), Ok(())]);
        for _ in 0..100 {
            assert_eq!(bucket.try_add(rate, now), Err(Duration::from_millis(100)));
        }
        let later = now + Duration::from_millis(100);
        assert_eq!(bucket.try_add(rate, later), Ok(()));
        assert!(bucket.try_add(rate, later).is_err());
    }
}
