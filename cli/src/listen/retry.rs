//! Whether and when to reconnect (docs/protocol.md, Reconnecting).

use std::time::Duration;

use tokio::time::Instant;
use wirepost_core::frames::CloseCode;
use wirepost_runtime::backoff::Backoff;

use super::connection::End;

/// Bound of the first wait; it doubles with each further one.
const FIRST_WAIT: Duration = Duration::from_millis(500);
/// Bound of every wait.
const MAX_WAIT: Duration = Duration::from_secs(30);
/// The same when only a corrected declaration would help.
const FIRST_SLOW_WAIT: Duration = Duration::from_secs(30);
/// See [`FIRST_SLOW_WAIT`].
const MAX_SLOW_WAIT: Duration = Duration::from_mins(15);
/// A connection that lasted this long counts as a success; without this rule short ones would reconnect in a tight
/// loop.
const STABLE_AFTER: Duration = Duration::from_secs(5);

/// What to do after a connection ended or failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Reconnect with the resume token.
    Resume,
    /// Reconnect with a new token.
    NewToken,
    /// The same as `Resume`, but slowly: a declaration refuses us, and may be restored or corrected.
    Slowly,
    /// Don't reconnect.
    Stop,
}

/// By the close code.
pub(super) fn after_close(end: &End) -> Next {
    let End::Closed { code, .. } = end else {
        return Next::Resume;
    };
    let is = |known: CloseCode| *code == known.code();
    if is(CloseCode::SessionOver) {
        Next::NewToken
    } else if is(CloseCode::Revoked) || is(CloseCode::BusinessRemoved) {
        Next::Slowly
    } else if is(CloseCode::Replaced) {
        Next::Stop
    } else {
        Next::Resume
    }
}

/// By the HTTP status of a refused upgrade.
pub(super) fn after_refusal(status: u16) -> Next {
    match status {
        401 => Next::NewToken,
        408 | 429 => Next::Resume,
        400..500 => Next::Slowly,
        _ => Next::Resume,
    }
}

/// By the HTTP status of a failed token call.
pub(super) fn after_token_refusal(status: u16) -> Next {
    match after_refusal(status) {
        // There is no other credential to try.
        Next::NewToken => Next::Slowly,
        next => next,
    }
}

/// How long to wait, with jitter: the clients of a dead edge must not come back at the same time.
#[derive(Debug)]
pub(super) struct Waits {
    fast: Backoff,
    /// For the random half of the wait.
    slow: Backoff,
    since: Option<Instant>,
}

impl Waits {
    pub(super) fn new() -> Self {
        Self {
            fast: Backoff::new(FIRST_WAIT, MAX_WAIT),
            slow: Backoff::new(FIRST_SLOW_WAIT / 2, MAX_SLOW_WAIT / 2),
            since: None,
        }
    }

    /// A connection was established.
    pub(super) fn connected(&mut self) {
        self.since = Some(Instant::now());
    }

    /// How long to wait before the next attempt; `retry_after` is that of the refusal.
    pub(super) fn next_wait(&mut self, next: Next, retry_after: Option<Duration>) -> Duration {
        if self.since.take().is_some_and(|since| since.elapsed() >= STABLE_AFTER) {
            self.fast.reset();
            self.slow.reset();
        }
        let wait = match next {
            Next::Slowly => self.slow.bound() + self.slow.next_pause(),
            Next::Resume | Next::NewToken | Next::Stop => self.fast.next_pause(),
        };
        // Added: clients with the same `Retry-After` would otherwise return at the same moment.
        wait + retry_after.unwrap_or_default().min(MAX_SLOW_WAIT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn close_codes_are_obeyed() {
        for (code, next) in [
            (3000, Next::NewToken),
            (3003, Next::Slowly),
            (4009, Next::Stop),
            (4010, Next::Slowly),
            (4008, Next::Resume),
            (1012, Next::Resume),
            (1013, Next::Resume),
            (1006, Next::Resume),
            (4999, Next::Resume),
        ] {
            assert_eq!(after_close(&End::Closed { code, reason: String::new() }), next, "{code}");
        }
        assert_eq!(after_close(&End::Lost("reset".into())), Next::Resume);
    }

    #[test]
    fn no_refusal_stops_reconnecting() {
        for status in 100..1000 {
            assert_ne!(after_refusal(status), Next::Stop, "{status}");
            assert!(matches!(after_token_refusal(status), Next::Resume | Next::Slowly), "{status}");
        }
        for status in [408, 429, 500, 503, 504] {
            assert_eq!((after_refusal(status), after_token_refusal(status)), (Next::Resume, Next::Resume), "{status}");
        }
        for status in [400, 403, 404, 426] {
            assert_eq!(after_refusal(status), Next::Slowly, "{status}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn waits_grow_to_a_bound_and_restart_after_a_connection_that_lasted() {
        let mut waits = Waits::new();
        for _ in 0..100 {
            assert!(waits.next_wait(Next::Resume, None) <= MAX_WAIT);
            let slow = waits.next_wait(Next::Slowly, None);
            assert!(slow >= FIRST_SLOW_WAIT / 2 && slow <= MAX_SLOW_WAIT);
        }
        assert!(waits.next_wait(Next::Slowly, None) >= MAX_SLOW_WAIT / 2);
        waits.connected();
        tokio::time::advance(STABLE_AFTER).await;
        assert!(waits.next_wait(Next::Resume, None) <= FIRST_WAIT);
        let asked = Duration::from_secs(7);
        let wait = waits.next_wait(Next::Slowly, Some(asked));
        assert!(wait >= asked + FIRST_SLOW_WAIT / 2 && wait <= asked + FIRST_SLOW_WAIT);
        assert!(waits.next_wait(Next::Resume, Some(Duration::MAX)) <= MAX_SLOW_WAIT + MAX_WAIT);
    }
}
