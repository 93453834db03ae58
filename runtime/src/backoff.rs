//! Pauses between attempts: their bound doubles up to a maximum, and each is drawn from zero to that bound ("full jitter").
//!
//! With full jitter, clients that failed together do the least work in all until they succeed: see the simulation in
//! <https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/>.

use std::time::Duration;

/// A bound of zero would never grow.
const LEAST: Duration = Duration::from_millis(1);

/// Pauses between attempts. An iterator without an end.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    bound: Duration,
}

impl Backoff {
    /// The first pause is at most `first`, every later one at most twice its predecessor's bound, and none longer than `longest`.
    /// Bounds below 1 ms count as 1 ms; a `first` above `longest` counts as `longest`.
    pub fn new(first: Duration, longest: Duration) -> Self {
        let longest = longest.max(LEAST);
        let first = first.clamp(LEAST, longest);
        Self { first, longest, bound: first }
    }

    /// The longest that the next pause may be.
    pub fn bound(&self) -> Duration {
        self.bound
    }

    /// The pause before the next attempt.
    pub fn next_pause(&mut self) -> Duration {
        let bound = self.bound;
        self.bound = bound.saturating_mul(2).min(self.longest);
        bound.mul_f64(rand::random_range(0.0..=1.0))
    }

    /// The attempt succeeded: the next failure begins with a short pause again.
    pub fn reset(&mut self) {
        self.bound = self.first;
    }

    /// What the attempt began has lasted this long. It counts as a success from the longest pause on: what fails right after each attempt
    /// would otherwise be tried in a tight loop.
    pub fn lasted(&mut self, duration: Duration) {
        if duration >= self.longest {
            self.reset();
        }
    }
}

impl Iterator for Backoff {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        Some(self.next_pause())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: Duration = Duration::from_millis(100);
    const LONGEST: Duration = Duration::from_secs(1);

    /// The longest of many pauses at each step.
    fn bounds() -> Vec<u128> {
        let mut bounds = vec![0; 7];
        for _ in 0..2000 {
            for (bound, pause) in bounds.iter_mut().zip(Backoff::new(FIRST, LONGEST)) {
                *bound = pause.as_millis().max(*bound);
            }
        }
        bounds
    }

    #[test]
    fn bounds_double_up_to_the_longest_and_pauses_use_all_of_them() {
        for (seen, bound) in bounds().into_iter().zip([100, 200, 400, 800, 1000, 1000, 1000]) {
            assert!(seen <= bound && seen >= bound * 9 / 10, "{seen} of {bound}");
        }
        let shortest = (0..2000).map(|_| Backoff::new(FIRST, LONGEST).next_pause()).min();
        assert!(shortest < Some(FIRST / 10), "{shortest:?}");
    }

    #[test]
    fn a_success_that_lasted_begins_again_with_a_short_pause() {
        let mut backoff = Backoff::new(FIRST, LONGEST);
        let grown = |backoff: &mut Backoff| backoff.take(10).count();
        grown(&mut backoff);
        backoff.lasted(LONGEST / 2);
        assert_eq!(backoff.bound, LONGEST);
        backoff.lasted(LONGEST);
        assert_eq!(backoff.bound, FIRST);
        grown(&mut backoff);
        backoff.reset();
        assert!(backoff.next_pause() <= FIRST);
    }

    #[test]
    fn bounds_that_contradict_each_other_are_made_to_fit() {
        assert!(Backoff::new(LONGEST, FIRST).take(9).all(|pause| pause <= FIRST));
        assert_eq!(Backoff::new(Duration::ZERO, Duration::ZERO).longest, LEAST);
    }
}
