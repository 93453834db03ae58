//! Keeps a broken exchange of one business from breaking the connections of all businesses.
//!
//! A message can make the broker close the whole connection. Measured on 4.3.6: the first stream of a broker, declared within a second
//! before a `kill -9`, is listed as running afterwards and answers every publish with 506 RESOURCE_ERROR, forever. The broker does not report
//! which message it was, so every exchange with a publish in flight is suspected, and a confirmed publish clears its exchange. Suspects are
//! tried one by one on each connection. Messages to an exchange that is suspected several times without a confirm are refused; from time to
//! time one of them is tried.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;
use wirepost_amqp::Error;

/// Publishes are refused after this many suspicions without a confirm in between.
const LIMIT: u32 = 3;
/// First and longest time between two attempts after that.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// Most suspects; further ones are not recorded.
const CAPACITY: usize = 1024;
/// AMQP's reply code when an administrator closes the connection, or the broker shuts down.
const CONNECTION_FORCED: u16 = 320;

/// Exchanges under suspicion. Written by all lanes.
#[derive(Debug, Default)]
pub(super) struct Breakers {
    /// How many there are: almost always none, and then no lock is taken.
    suspects: AtomicUsize,
    by_target: Mutex<HashMap<String, Breaker>>,
    /// Exchanges to which no events are sent for a while, and until when.
    events: Mutex<HashMap<Arc<str>, Instant>>,
    /// How many of these there are.
    muted: AtomicUsize,
}

#[derive(Debug)]
struct Breaker {
    suspicions: u32,
    retry_at: Instant,
}

impl Breakers {
    /// Whether there are suspects.
    pub(super) fn any(&self) -> bool {
        self.suspects.load(Ordering::Relaxed) > 0
    }

    /// Whether this exchange is one.
    pub(super) fn is_suspect(&self, target: &str) -> bool {
        self.any() && self.lock().contains_key(target)
    }

    /// Whether a message may be sent to this exchange; if not, why. After a pause it lets one message through, which starts the next pause.
    pub(super) fn check(&self, target: &str) -> Result<(), String> {
        if !self.any() {
            return Ok(());
        }
        let mut breakers = self.lock();
        let Some(breaker) = breakers.get_mut(target) else { return Ok(()) };
        let now = Instant::now();
        if breaker.suspicions < LIMIT {
            return Ok(());
        }
        if now < breaker.retry_at {
            return Err(format!(
                "publishing to {target} made the broker close the connection; it is tried again later"
            ));
        }
        let pause = BACKOFF.0 * 2u32.saturating_pow(breaker.suspicions - LIMIT).min(1 << 10);
        breaker.retry_at = now + pause.min(BACKOFF.1);
        Ok(())
    }

    /// The connection ended with this error while messages to these exchanges were in flight.
    pub(super) fn ended<'a>(&self, targets: impl Iterator<Item = &'a Arc<str>>, error: &Error) {
        if matches!(error, Error::Closed { code, .. } if *code != CONNECTION_FORCED) {
            for target in targets {
                self.suspect(target, &error.to_string());
            }
        }
    }

    /// The connection ended with this error while events to these exchanges were unanswered. None is sent to them for a while: only time
    /// clears an exchange.
    pub(super) fn ended_events(&self, exchanges: Vec<Arc<str>>, error: &Error) {
        if !matches!(error, Error::Closed { code, .. } if *code != CONNECTION_FORCED) {
            return;
        }
        let now = Instant::now();
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        events.retain(|_, until| now < *until);
        for exchange in exchanges {
            if events.len() < CAPACITY {
                // Spread, so that the exchange at fault is soon tried alone.
                events.insert(exchange, now + BACKOFF.1.mul_f64(rand::random_range(1.0..2.0)));
            }
        }
        self.muted.store(events.len(), Ordering::Relaxed);
    }

    /// Whether events may be sent to this exchange.
    pub(super) fn takes_events(&self, exchange: &str, now: Instant) -> bool {
        self.muted.load(Ordering::Relaxed) == 0
            || self
                .events
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .get(exchange)
                .is_none_or(|until| *until <= now)
    }

    fn suspect(&self, target: &str, reason: &str) {
        let mut breakers = self.lock();
        if let Some(breaker) = breakers.get_mut(target) {
            breaker.suspicions += 1;
            if breaker.suspicions == LIMIT {
                tracing::error!(
                    target,
                    reason,
                    "publishing to this exchange makes the broker close the connection; messages to it are refused from now on"
                );
            }
        } else if breakers.len() < CAPACITY {
            breakers.insert(target.to_owned(), Breaker { suspicions: 1, retry_at: Instant::now() });
        }
        self.suspects.store(breakers.len(), Ordering::Relaxed);
    }

    /// The broker answered a message to this exchange.
    pub(super) fn passed(&self, target: &str) {
        if !self.any() {
            return;
        }
        let mut breakers = self.lock();
        breakers.remove(target);
        self.suspects.store(breakers.len(), Ordering::Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Breaker>> {
        self.by_target.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn only_what_never_passes_is_refused_and_tried_again_now_and_then() {
        let breakers = Breakers::default();
        let (guilty, innocent) = ("guilty", "innocent");
        for _ in 0..LIMIT {
            for suspect in [guilty, innocent] {
                breakers.check(suspect).unwrap();
                breakers.suspect(suspect, "506");
            }
            breakers.passed(innocent);
        }
        breakers.check(innocent).unwrap();
        breakers.check(guilty).unwrap();
        breakers.check(guilty).unwrap_err();
        tokio::time::advance(BACKOFF.0).await;
        breakers.check(guilty).unwrap();
        breakers.check(guilty).unwrap_err();
        breakers.passed(guilty);
        breakers.check(guilty).unwrap();
    }
}
