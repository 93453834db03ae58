//! An unfinished message: whether it may be read, and until when.
//!
//! Bytes that arrive are a sign of life, so a slow line is not a dead one. An unfinished message ends with 4008 if
//! nothing of it arrived for the read timeout, or if it is slower than [`SLOWEST`] on average: it has a deadline that
//! depends on its size.

use std::{
    task::{Context, Poll, ready},
    time::Duration,
};

use futures_util::{FutureExt, future::BoxFuture};
use tokio::time::Instant;
use wirepost_core::frames::CloseCode;

use super::inbound::{InboundPermit, LONGEST_WAIT};

/// Bytes a second that a message must have on average, after one read timeout.
const SLOWEST: u64 = 1 << 10;

/// See the module.
pub struct IncomingMessage {
    begun: Instant,
    /// When it last grew.
    grown: Instant,
    bytes: usize,
    room: Admission,
}

enum Admission {
    NotNeeded,
    Awaited(BoxFuture<'static, InboundPermit>),
    Given(InboundPermit),
}

impl Default for IncomingMessage {
    /// It starts now.
    fn default() -> Self {
        let now = Instant::now();
        Self { begun: now, grown: now, bytes: 0, room: Admission::NotNeeded }
    }
}

impl IncomingMessage {
    /// This many bytes of it have arrived.
    pub fn note(&mut self, bytes: usize) {
        if bytes > self.bytes {
            self.bytes = bytes;
            self.grown = Instant::now();
            if let Admission::Given(admission) = &self.room {
                admission.note(bytes);
            }
        }
    }

    /// It is large, and not read before this future is ready.
    pub fn await_room(&mut self, admission: impl Future<Output = InboundPermit> + Send + 'static) {
        self.begun = Instant::now();
        self.room = Admission::Awaited(admission.boxed());
    }

    /// Whether it waits for room.
    pub fn awaits_room(&self) -> bool {
        matches!(self.room, Admission::Awaited(_))
    }

    /// Ready when it has room; its deadline starts then.
    pub fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Admission::Awaited(admission) = &mut self.room {
            self.room = Admission::Given(ready!(admission.as_mut().poll(cx)));
            self.begun = Instant::now();
            self.grown = self.begun;
        }
        Poll::Ready(())
    }

    /// When it is given up, and the close code of the connection then.
    pub fn due(&self, read_timeout: Duration) -> (Instant, CloseCode) {
        if self.awaits_room() {
            return (self.begun + LONGEST_WAIT, CloseCode::Overloaded);
        }
        let in_all = read_timeout + Duration::from_secs(self.bytes as u64 / SLOWEST);
        ((self.grown + read_timeout).min(self.begun + in_all), CloseCode::TooSlow)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(30);

    #[tokio::test(start_paused = true)]
    async fn a_slow_message_gets_time_and_a_trickle_does_not() {
        let begun = Instant::now();
        let (mut slow, mut trickle) = (IncomingMessage::default(), IncomingMessage::default());
        for second in 1..=600 {
            tokio::time::sleep(Duration::from_secs(1)).await;
            slow.note(second * 1500);
            trickle.note(second * 100);
            assert!(slow.due(TIMEOUT).0 > Instant::now(), "given up after {second} s");
        }
        let (due, code) = trickle.due(TIMEOUT);
        assert!(due - begun < Duration::from_secs(90), "{:?}", due - begun);
        assert_eq!(code, CloseCode::TooSlow);
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_that_stops_growing_is_given_up_whatever_its_size() {
        let mut upload = IncomingMessage::default();
        upload.note(1 << 20);
        let since = Instant::now();
        tokio::time::sleep(Duration::from_secs(20)).await;
        upload.note(1 << 20);
        assert_eq!(upload.due(TIMEOUT).0, since + TIMEOUT);
    }
}
