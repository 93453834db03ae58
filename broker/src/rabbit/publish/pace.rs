//! How fast the broker answers messages to one exchange, and what follows from that: how many messages may be in flight, and how many may
//! be on their way before clients are held back.
//!
//! The rate is measured while the broker limits it: messages wait, or the window is full. Otherwise it would be the rate of the clients. It
//! is forgotten some seconds later, because the broker may be faster or slower under the next load.

use std::time::Duration;

use tokio::time::Instant;

/// Length of a measurement, counted while messages are in flight.
const SAMPLE: Duration = Duration::from_millis(100);
/// How long a measured rate counts.
const MEMORY: Duration = Duration::from_secs(5);
/// Weights of a new sample against the known rate, if it is lower and if it is higher: pauses of the broker are short, and a recovery should
/// show immediately.
const WEIGHT: (f64, f64) = (0.2, 0.5);
/// The part of the best rate that is left after each sample that is worse: half after a second.
const FADE: f64 = 0.93;
/// Samples after which the best rate is certain enough.
const SURE: u32 = 5;
/// Most messages in flight on a channel. RabbitMQ reads nothing more from a *connection* when a channel of it has used up its credit, and a
/// channel gets none while a quorum queue does not answer (a leader that hangs, no majority): 200 to 400 messages, and 32 that the queue
/// takes unanswered. Beyond 232 such a queue would stop all other exchanges of the lane (measured: between 225 and 240).
pub(super) const MAX_WINDOW: usize = 224;
/// Bytes in flight on a channel, before the last message. What one business has in flight is written to the broker's disk before what another
/// one sends: with 224 messages of 64 kB, a neighbour's ack took 365 ms (`wirepost-bench floods`).
pub(super) const WINDOW_BYTES: u64 = 256 << 10;
/// Messages in flight: what the broker answers within this time, and bounds.
const WINDOW_TIME: f64 = 0.25;
const WINDOW: (usize, usize) = (16, MAX_WINDOW);
/// Before the first measurement.
const FIRST_WINDOW: usize = 128;
/// Messages on their way: what the broker answers within this time. More would wait without making the broker any faster.
const LIMIT_TIME: f64 = 0.35;
const FIRST_LIMIT: usize = 1024;
/// Messages of one sender before the next one is served: what the broker answers within this time, and the most. It answers them together,
/// so that a sender is woken once, and writes once, for all of them.
const TURN_TIME: f64 = 0.002;
const MAX_TURN: f64 = 16.0;
const FIRST_TURN: u8 = 4;

/// See the module.
#[derive(Debug)]
pub(super) struct Pace {
    /// Messages per second, and when that was measured.
    rate: Option<(f64, Instant)>,
    /// The same without the pauses of the broker, and the number of its samples.
    best: (f64, u32),
    /// The sample that is being taken: its time so far, and the messages answered in it.
    busy: Duration,
    answered: u32,
    saturated: bool,
    /// Since when messages have been in flight, as far as not counted in `busy`.
    since: Option<Instant>,
}

impl Pace {
    pub(super) fn new() -> Self {
        Self { rate: None, best: (0.0, 0), busy: Duration::ZERO, answered: 0, saturated: true, since: None }
    }

    /// Records what has happened since the last call. `answered`: messages that the broker has answered; `in_flight`: messages that it has
    /// not answered yet; `saturated`: there would be more of them if the window allowed it.
    pub(super) fn note(&mut self, now: Instant, answered: u32, in_flight: usize, saturated: bool) {
        if let Some(since) = self.since {
            self.busy += now.saturating_duration_since(since);
        }
        self.since = (in_flight > 0).then_some(now);
        self.answered += answered;
        self.saturated &= saturated;
        if self.busy < SAMPLE {
            return;
        }
        let sample = f64::from(self.answered) / self.busy.as_secs_f64();
        let known = self.rate(now);
        let (best, samples) = if known.is_some() { self.best } else { (0.0, 0) };
        let rate = match known {
            None if self.saturated => Some(sample),
            Some(rate) if sample > rate => Some(rate + (sample - rate) * WEIGHT.1),
            Some(rate) if self.saturated => Some(rate + (sample - rate) * WEIGHT.0),
            _ => None,
        };
        if let Some(rate) = rate {
            self.rate = Some((rate, now));
            self.best = (sample.max(best * FADE), samples + 1);
        }
        (self.busy, self.answered, self.saturated) = (Duration::ZERO, 0, true);
    }

    /// Messages per second, if measured recently.
    pub(super) fn rate(&self, now: Instant) -> Option<f64> {
        self.rate.filter(|(_, at)| now.saturating_duration_since(*at) < MEMORY).map(|(rate, _)| rate)
    }

    /// Messages that may be in flight.
    pub(super) fn window(&self, now: Instant) -> usize {
        self.rate(now).map_or(FIRST_WINDOW, |rate| ((rate * WINDOW_TIME) as usize).clamp(WINDOW.0, WINDOW.1))
    }

    /// Messages on their way from which on clients are held back.
    pub(super) fn limit(&self, now: Instant) -> usize {
        self.rate(now).map_or(FIRST_LIMIT, |rate| ((rate * LIMIT_TIME) as usize).max(2 * WINDOW.0))
    }

    /// Messages of one sender before the next one is served, at least one.
    pub(super) fn turn(&self, now: Instant) -> u8 {
        self.rate(now).map_or(FIRST_TURN, |rate| (rate * TURN_TIME).clamp(1.0, MAX_TURN) as u8)
    }

    /// How long the last of `load` messages waits for its answer. `None` until there are enough samples. Messages are refused because of it,
    /// so a short pause of the broker hardly changes it.
    pub(super) fn wait(&self, now: Instant, load: usize) -> Option<Duration> {
        let (best, samples) = self.best;
        let known = self.rate(now).is_some() && samples >= SURE && best >= 1.0;
        known.then(|| Duration::from_secs_f64(load as f64 / best))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `rate` answers a second for `seconds`, always with more to send.
    fn run(pace: &mut Pace, now: &mut Instant, rate: u32, seconds: u32, saturated: bool) {
        for _ in 0..seconds * 100 {
            *now += Duration::from_millis(10);
            pace.note(*now, rate / 100, 50, saturated);
        }
    }

    #[test]
    fn window_and_limit_follow_the_broker() {
        let (mut pace, mut now) = (Pace::new(), Instant::now());
        pace.note(now, 0, 50, true);
        assert_eq!((pace.window(now), pace.limit(now)), (FIRST_WINDOW, FIRST_LIMIT));
        assert_eq!(pace.wait(now, 1000), None);
        run(&mut pace, &mut now, 500, 2, true);
        assert!((120..=130).contains(&pace.window(now)), "{pace:?}");
        assert!((170..=180).contains(&pace.limit(now)), "{pace:?}");
        assert!(pace.wait(now, 1000).is_some_and(|wait| wait.as_secs_f64() > 1.9), "{pace:?}");
        run(&mut pace, &mut now, 100, 5, true);
        assert!((20..=40).contains(&pace.window(now)), "{pace:?}");
        assert_eq!(pace.turn(now), 1);
        run(&mut pace, &mut now, 20_000, 2, true);
        assert_eq!((pace.window(now), pace.turn(now)), (WINDOW.1, 16), "{pace:?}");
        now += MEMORY;
        assert_eq!((pace.window(now), pace.turn(now)), (FIRST_WINDOW, FIRST_TURN));
    }

    #[test]
    fn slow_clients_are_not_taken_for_a_slow_broker() {
        let (mut pace, mut now) = (Pace::new(), Instant::now());
        pace.note(now, 0, 50, false);
        run(&mut pace, &mut now, 100, 2, false);
        assert_eq!(pace.rate(now), None);
        run(&mut pace, &mut now, 500, 2, true);
        let before = pace.window(now);
        run(&mut pace, &mut now, 100, 2, false);
        assert_eq!(pace.window(now), before, "{pace:?}");
    }
}
