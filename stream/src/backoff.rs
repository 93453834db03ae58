//! Pauses between attempts: doubling from a minimum to a maximum, jittered.

use std::time::Duration;

/// The pause before the next attempt.
#[derive(Debug)]
pub(crate) struct Backoff {
    minimum: Duration,
    maximum: Duration,
    current: Duration,
}

impl Backoff {
    /// A minimum above the maximum counts as the maximum; at least 1 ms.
    pub(crate) fn new((minimum, maximum): (Duration, Duration)) -> Self {
        let maximum = maximum.max(Duration::from_millis(1));
        let minimum = minimum.clamp(Duration::from_millis(1), maximum);
        Self { minimum, maximum, current: minimum }
    }

    /// Draws the pause from the upper half of the current step and doubles the step.
    pub(crate) fn pause(&mut self) -> Duration {
        let step = self.current;
        self.current = (step * 2).min(self.maximum);
        step.mul_f64(rand::random_range(0.5..=1.0))
    }

    pub(crate) fn reset(&mut self) {
        self.current = self.minimum;
    }

    pub(crate) const fn maximum(&self) -> Duration {
        self.maximum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_within_their_bounds_and_begin_anew() {
        let mut backoff = Backoff::new((Duration::from_millis(100), Duration::from_secs(1)));
        for step in [100, 200, 400, 800, 1000, 1000] {
            let pause = backoff.pause().as_millis();
            assert!((step / 2..=step).contains(&pause), "{pause} of {step}");
        }
        backoff.reset();
        assert!(backoff.pause() <= Duration::from_millis(100));
    }
}
