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
pub(super) struct Delays(Duration);

impl Default for Delays {
    fn default() -> Self {
        Self(MIN_DELAY)
    }
}

impl Iterator for Delays {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let delay = self.0;
        self.0 = (delay * 2).min(MAX_DELAY);
        Some(delay.mul_f64(0.5 + 0.5 * rand::random::<f64>()))
    }
}

impl Backoff for Delays {
    fn reset(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_to_a_bound_and_start_again() {
        let mut delay = Delays::default();
        let delays: Vec<Duration> = delay.by_ref().take(20).collect();
        assert!(delays[0] <= MIN_DELAY && delays[19] >= MAX_DELAY / 2, "{delays:?}");
        assert!(delays.iter().all(|delay| *delay <= MAX_DELAY), "{delays:?}");
        delay.reset();
        assert!(delay.next().unwrap() <= MIN_DELAY);
    }
}
