//! What a watch waits after a failure.

use std::time::Duration;

use kube::runtime::utils::{Backoff, ResetTimerBackoff};

const LEAST: Duration = Duration::from_millis(500);
/// After an API server was away two tries fail: the one that finds it away, and the one whose place it has forgotten.
const MOST: Duration = Duration::from_secs(5);

/// How long without a failure until pauses are short again. The watch's own resets count for nothing: it makes one before each try.
const CALM: Duration = Duration::from_secs(30);

/// For a watch.
pub(super) fn after_failures() -> ResetTimerBackoff<Pause> {
    ResetTimerBackoff::new(Pause::default(), CALM)
}

/// Longer each time, but never so long that a server that is back goes unnoticed; with jitter, since all edges lose it at once.
#[derive(Debug)]
pub(super) struct Pause(Duration);

impl Default for Pause {
    fn default() -> Self {
        Self(LEAST)
    }
}

impl Iterator for Pause {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let pause = self.0;
        self.0 = (pause * 2).min(MOST);
        Some(pause.mul_f64(0.5 + 0.5 * rand::random::<f64>()))
    }
}

impl Backoff for Pause {
    fn reset(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_bound_and_begin_again() {
        let mut pause = Pause::default();
        let pauses: Vec<Duration> = pause.by_ref().take(20).collect();
        assert!(pauses[0] <= LEAST && pauses[19] >= MOST / 2, "{pauses:?}");
        assert!(pauses.iter().all(|pause| *pause <= MOST), "{pauses:?}");
        pause.reset();
        assert!(pause.next().unwrap() <= LEAST);
    }
}
