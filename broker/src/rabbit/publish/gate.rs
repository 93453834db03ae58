//! Holds callers back while the broker can't keep up with the messages on their way, and admits them first come, first served.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
};

use tokio::sync::{Notify, futures::OwnedNotified};

/// Callers that wait to publish to one exchange.
#[derive(Debug, Default)]
pub(super) struct Gate {
    /// First in, first out.
    waiting: Arc<Notify>,
    held: AtomicUsize,
    /// Those of them that were admitted and have not noticed yet.
    admitted: AtomicUsize,
    /// Messages of a turn.
    turn: AtomicU8,
}

impl Gate {
    /// Joins the line behind all callers that wait already.
    pub(super) fn wait(self: &Arc<Self>) -> HeldTurn {
        let mut notified = Box::pin(self.waiting.clone().notified_owned());
        // From here on it is in the line, before it is polled for the first time.
        notified.as_mut().enable();
        self.held.fetch_add(1, Ordering::Relaxed);
        HeldTurn { notified, gate: self.clone() }
    }

    /// Callers that are held back.
    pub(super) fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    /// Admits as many callers as there is room for, each with `turn` messages, less those that were admitted and have not noticed yet.
    pub(super) fn admit(&self, room: usize, turn: u8) {
        self.turn.store(turn, Ordering::Relaxed);
        let callers = room.div_ceil(usize::from(turn.max(1)));
        let more = callers.min(self.held()).saturating_sub(self.admitted.load(Ordering::Relaxed));
        // Not a plain store: callers decrement it at the same time.
        self.admitted.fetch_add(more, Ordering::Relaxed);
        for _ in 0..more {
            self.waiting.notify_one();
        }
    }

    /// Resets the number of admitted callers: a turn that is given up with nobody behind it would count forever. Called from time to time;
    /// the price is that a few callers too many are admitted.
    pub(super) fn forget_admitted(&self) {
        self.admitted.store(0, Ordering::Relaxed);
    }
}

/// A position in the line; ready when the caller may go on, with so many messages.
#[derive(Debug)]
pub(super) struct HeldTurn {
    notified: Pin<Box<OwnedNotified>>,
    gate: Arc<Gate>,
}

impl Future for HeldTurn {
    type Output = u8;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<u8> {
        ready!(self.notified.as_mut().poll(cx));
        let less = |admitted: usize| admitted.checked_sub(1);
        let _ = self.gate.admitted.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        Poll::Ready(self.gate.turn.load(Ordering::Relaxed).max(1))
    }
}

impl Drop for HeldTurn {
    fn drop(&mut self) {
        self.gate.held.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn callers_are_let_in_in_the_order_in_which_they_came() {
        let gate = Arc::new(Gate::default());
        let mut turns: Vec<_> = (0..4).map(|_| Some(gate.wait())).collect();
        let ready = |turns: &mut Vec<Option<HeldTurn>>| {
            let mut ready = Vec::new();
            for (number, place) in turns.iter_mut().enumerate() {
                if let Some(messages) = place.as_mut().and_then(FutureExt::now_or_never) {
                    assert_eq!(messages, 4);
                    *place = None;
                    ready.push(number);
                }
            }
            ready
        };
        assert!(ready(&mut turns).is_empty());
        gate.admit(1, 4);
        // It has not been used yet.
        gate.admit(4, 4);
        assert_eq!(ready(&mut turns), [0]);
        assert_eq!(gate.held(), 3);
        gate.admit(1, 4);
        // The next one leaves; its turn passes on.
        turns[1] = None;
        assert_eq!(ready(&mut turns), [2]);
        gate.admit(100, 4);
        assert_eq!(ready(&mut turns), [3]);
        gate.admit(100, 4);
        let mut late = gate.wait();
        assert!((&mut late).now_or_never().is_none(), "nobody waited, so nothing was given away");
    }
}
