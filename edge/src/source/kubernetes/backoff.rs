//! The delays of a watch after failures.

use std::time::Duration;

use kube::runtime::utils::{Backoff, ResetTimerBackoff};

const MIN_DELAY: Duration = Duration::from_millis(500);
/// After an outage of the API server two attempts fail: one that finds it unreachable, and one whose position it no
/// longer has.
const MAX_DELAY: Duration = Duration::from_secs(5);
/// Time without a failure after which delays are short again. The watch's own resets are ignored: it makes one before
/// each attempt.
const RESET_AFTER: Duration = Duration::from_secs(30);

/// For a watch.
pub(super) fn after_failures() -> ResetTimerBackoff<Delays> {
    ResetTimerBackoff::new(Delays::default(), RESET_AFTER)
}

/// Longer each time, but never so long that a recovered server goes unnoticed; with jitter, since all edges lose it at
/// the same time.
#[derive(Debug)]
pub(super) struct Delays(wirepost_runtime::backoff::Backoff);

impl Default for Delays {
    fn default() -> Self {
        Self(wirepost_runtime::backoff::Backoff::new(MIN_DELAY, MAX_DELAY))
    }
}

impl Iterator for Delays {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        self.0.next()
    }
}

impl Backoff for Delays {
    fn reset(&mut self) {
        self.0.reset();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_to_a_bound_and_start_again() {
        let mut delays = Delays::default();
        assert!(delays.by_ref().take(20).all(|delay| delay <= MAX_DELAY));
        assert_eq!(delays.0.bound(), MAX_DELAY);
        delays.reset();
        assert!(delays.next().unwrap() <= MIN_DELAY);
    }
}
