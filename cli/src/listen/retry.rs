//! Whether and when to come back (docs/protocol.md, Reconnecting).

use std::time::Duration;

use tokio::time::Instant;
use wirepost_core::frames::CloseCode;
use wirepost_runtime::backoff::Backoff;

use super::connection::End;

/// Bound of the first wait; each further one doubles it.
const FIRST: Duration = Duration::from_millis(500);
/// Bound of every wait.
const LONGEST: Duration = Duration::from_secs(30);
/// The same where coming back is of no use before somebody puts a declaration right.
const FIRST_SLOW: Duration = Duration::from_secs(30);
/// See [`FIRST_SLOW`].
const LONGEST_SLOW: Duration = Duration::from_mins(15);
/// A connection that lasted this long counts as a success: what ends sooner would otherwise come back in a tight loop.
const LASTED: Duration = Duration::from_secs(5);

/// What to do after a connection ended, or none came about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Come back as before.
    Resume,
    /// Come back with a new token.
    NewToken,
    /// Come back as before, but slowly: what refuses us is a declaration, which may be there again or put right.
    Slowly,
    /// Don't come back.
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

/// By the HTTP status of a token call that brought no token.
pub(super) fn without_token(status: u16) -> Next {
    match after_refusal(status) {
        // There is no other credential to come back with.
        Next::NewToken => Next::Slowly,
        next => next,
    }
}

/// How long to wait, with jitter: the clients of a dead edge must not come back at the same time.
#[derive(Debug)]
pub(super) struct Waits {
    fast: Backoff,
    /// Half of the wait, at least: the other half is drawn.
    slow: Backoff,
    since: Option<Instant>,
}

impl Waits {
    pub(super) fn new() -> Self {
        Self { fast: Backoff::new(FIRST, LONGEST), slow: Backoff::new(FIRST_SLOW / 2, LONGEST_SLOW / 2), since: None }
    }

    /// A connection came about.
    pub(super) fn connected(&mut self) {
        self.since = Some(Instant::now());
    }

    /// How long to wait before the next attempt; `retry_after` is what the refusal asked for.
    pub(super) fn next_wait(&mut self, next: Next, retry_after: Option<Duration>) -> Duration {
        if self.since.take().is_some_and(|since| since.elapsed() >= LASTED) {
            self.fast.reset();
            self.slow.reset();
        }
        let wait = match next {
            Next::Slowly => self.slow.bound() + self.slow.next_pause(),
            Next::Resume | Next::NewToken | Next::Stop => self.fast.next_pause(),
        };
        // Added up: whoever was told the same time would else come back at the same time.
        wait + retry_after.unwrap_or_default().min(LONGEST_SLOW)
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
    fn no_refusal_ends_it_for_good() {
        for status in 100..1000 {
            assert_ne!(after_refusal(status), Next::Stop, "{status}");
            assert!(matches!(without_token(status), Next::Resume | Next::Slowly), "{status}");
        }
        for status in [408, 429, 500, 503, 504] {
            assert_eq!((after_refusal(status), without_token(status)), (Next::Resume, Next::Resume), "{status}");
        }
        for status in [400, 403, 404, 426] {
            assert_eq!(after_refusal(status), Next::Slowly, "{status}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn waits_grow_to_a_bound_and_begin_anew_after_a_connection_that_lasted() {
        let mut waits = Waits::new();
        for _ in 0..100 {
            assert!(waits.next_wait(Next::Resume, None) <= LONGEST);
            let slow = waits.next_wait(Next::Slowly, None);
            assert!(slow >= FIRST_SLOW / 2 && slow <= LONGEST_SLOW);
        }
        assert!(waits.next_wait(Next::Slowly, None) >= LONGEST_SLOW / 2);
        waits.connected();
        tokio::time::advance(LASTED).await;
        assert!(waits.next_wait(Next::Resume, None) <= FIRST);
        let asked = Duration::from_secs(7);
        let wait = waits.next_wait(Next::Slowly, Some(asked));
        assert!(wait >= asked + FIRST_SLOW / 2 && wait <= asked + FIRST_SLOW);
        assert!(waits.next_wait(Next::Resume, Some(Duration::MAX)) <= LONGEST_SLOW + LONGEST);
    }
}
