//! Whether and when to come back.

use std::time::Duration;

use rand::RngExt;
use tokio::time::Instant;
use wirepost_core::frames::CloseCode;

use super::connection::End;

/// Bound of the first wait; each further one doubles it.
const FIRST: Duration = Duration::from_millis(500);
/// Bound of every wait.
const LONGEST: Duration = Duration::from_secs(30);
/// A connection that lasted this long counts as a success: what ends sooner would otherwise come back in a tight loop.
const LASTED: Duration = Duration::from_secs(5);

/// What to do after a connection ended, or none came about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Come back as before.
    Resume,
    /// Come back with a new token.
    NewToken,
    /// Don't come back.
    Stop,
}

/// By the close code (docs/protocol.md).
pub(super) fn after_close(end: &End) -> Next {
    let End::Closed { code, .. } = end else {
        return Next::Resume;
    };
    let is = |known: CloseCode| *code == known.code();
    if is(CloseCode::SessionOver) {
        Next::NewToken
    } else if is(CloseCode::Revoked) || is(CloseCode::Replaced) || is(CloseCode::BusinessRemoved) {
        Next::Stop
    } else {
        Next::Resume
    }
}

/// Waits by full jitter: a random time up to a bound that doubles, so that the clients of a dead edge do not come all at once.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    failures: u32,
    since: Option<Instant>,
}

impl Backoff {
    /// A connection came about.
    pub(super) fn connected(&mut self) {
        self.since = Some(Instant::now());
    }

    /// How long to wait before the next attempt.
    pub(super) fn next_wait(&mut self) -> Duration {
        if self.since.take().is_some_and(|since| since.elapsed() >= LASTED) {
            self.failures = 0;
        }
        let bound = FIRST.saturating_mul(2u32.saturating_pow(self.failures)).min(LONGEST);
        self.failures = self.failures.saturating_add(1);
        bound.mul_f64(rand::rng().random_range(0.0..1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn close_codes_are_obeyed() {
        for (code, next) in [
            (3000, Next::NewToken),
            (3003, Next::Stop),
            (4009, Next::Stop),
            (4010, Next::Stop),
            (4008, Next::Resume),
            (1012, Next::Resume),
            (1013, Next::Resume),
            (1006, Next::Resume),
        ] {
            assert_eq!(after_close(&End::Closed { code, reason: String::new() }), next, "{code}");
        }
        assert_eq!(after_close(&End::Lost("reset".into())), Next::Resume);
    }

    #[tokio::test(start_paused = true)]
    async fn waits_grow_to_a_bound_and_begin_anew_after_a_connection_that_lasted() {
        let mut backoff = Backoff::default();
        for _ in 0..100 {
            assert!(backoff.next_wait() <= LONGEST);
        }
        backoff.connected();
        tokio::time::advance(LASTED).await;
        assert!(backoff.next_wait() <= FIRST);
    }
}
