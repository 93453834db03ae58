//! Holds a connection back while the broker is slower than its clients: its socket is not read before its turn, and then
//! for a few messages.

use std::task::{Context, Poll};

use futures_util::FutureExt;

use crate::broker::Turn;

/// The connection's place in the line, if it has to wait.
#[derive(Default)]
pub(super) struct Line {
    turn: Option<Turn>,
    /// Reads that are left of its turn.
    left: u8,
}

impl Line {
    /// Whether a message may be read now; `ask` asks the broker for a turn. If not, the task is woken when it is the
    /// connection's turn. A turn counts for a number of calls, whether they bring a message or not: a client that sends
    /// nothing then keeps hardly anything for later.
    pub(super) fn may_publish(&mut self, ask: impl FnOnce() -> Option<Turn>, cx: &mut Context<'_>) -> bool {
        if self.left > 0 {
            self.left -= 1;
            return true;
        }
        let turn = match &mut self.turn {
            Some(turn) => turn,
            none => match ask() {
                Some(turn) => none.insert(turn),
                None => return true,
            },
        };
        let Poll::Ready(messages) = turn.poll_unpin(cx) else { return false };
        *self = Self { turn: None, left: messages.saturating_sub(1) };
        true
    }

    /// Leaves the line: nothing could be read anyway, and a turn that is not used would keep others waiting.
    pub(super) fn leave(&mut self) {
        *self = Self::default();
    }

    /// Whether the socket is not read for this reason.
    pub(super) fn is_waiting(&self) -> bool {
        self.turn.is_some()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures_util::task::noop_waker;
    use tokio::sync::Semaphore;

    use super::*;

    #[test]
    fn nothing_is_read_before_the_turn_and_a_turn_is_for_few_messages() {
        let waker = noop_waker();
        let cx = &mut Context::from_waker(&waker);
        let turns = Arc::new(Semaphore::new(0));
        let ask = || {
            let turns = Arc::clone(&turns);
            let turn = async move {
                turns.acquire().await.unwrap().forget();
                3
            };
            Some(turn.boxed())
        };
        let mut line = Line::default();
        assert!(line.may_publish(|| None, cx) && !line.is_waiting());
        assert!(!line.may_publish(ask, cx) && line.is_waiting());
        assert!(!line.may_publish(|| panic!("it is in the line already"), cx));
        turns.add_permits(1);
        for _ in 0..3 {
            assert!(line.may_publish(ask, cx) && !line.is_waiting());
        }
        assert!(!line.may_publish(ask, cx) && line.is_waiting());
    }
}
