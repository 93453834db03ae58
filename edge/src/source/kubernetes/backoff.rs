//! What a watch waits after a failure.

use std::time::Duration;

use kube::runtime::utils::{Backoff, ResetTimerBackoff};

const MIN_DELAY: Duration = Duration::from_millis(500);
/// After an API server was away two tries fail: the one that finds it away, and the one whose place it has forgotten.
const MAX_DELAY: Duration = Duration::from_secs(5);

/// How long without a failure until delays are short again. The watch's own resets count for nothing: it makes one before each try.
const RESET_AFTER: Duration = Duration::from_secs(30);

/// For a watch.
pub(super) fn after_failures() -> ResetTimerBackoff<Delays> {
    ResetTimerBackoff::new(Delays::default(), RESET_AFTER)
}

/// Longer each time, but never so long that a server that is back goes unnoticed; with jitter, since all edges lose it at once.
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
    fn pauses_grow_to_a_bound_and_begin_again() {
        let mut delay = Delays::default();
        let delays: Vec<Duration> = delay.by_ref().take(20).collect();
        assert!(delays[0] <= MIN_DELAY && delays[19] >= MAX_DELAY / 2, "{delays:?}");
        assert!(delays.iter().all(|delay| *delay <= MAX_DELAY), "{delays:?}");
        delay.reset();
        assert!(delay.next().unwrap() <= MIN_DELAY);
    }
}
