//! Holds a connection back while the broker is slower than its clients: its socket is not read before its turn.

use std::task::Context;

use futures_util::FutureExt;

use crate::broker::Turn;

/// The connection's place in the line, if it has to wait.
#[derive(Default)]
pub(super) struct Line(Option<Turn>);

impl Line {
    /// Whether a message may be read now; `ask` asks the broker for a turn. If not, the task is woken when it is the
    /// connection's turn. A turn counts for this call only: a client that sends nothing then does not keep one for
    /// later.
    pub(super) fn may_publish(&mut self, ask: impl FnOnce() -> Option<Turn>, cx: &mut Context<'_>) -> bool {
        let turn = match &mut self.0 {
            Some(turn) => turn,
            none => match ask() {
                Some(turn) => none.insert(turn),
                None => return true,
            },
        };
        let ready = turn.poll_unpin(cx).is_ready();
        if ready {
            self.0 = None;
        }
        ready
    }

    /// Leaves the line: nothing could be read anyway, and a turn that is not used would keep others waiting.
    pub(super) fn leave(&mut self) {
        self.0 = None;
    }

    /// Whether the socket is not read for this reason.
    pub(super) fn is_waiting(&self) -> bool {
        self.0.is_some()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures_util::task::noop_waker;
    use tokio::sync::Semaphore;

    use super::*;

    #[test]
    fn nothing_is_read_before_the_turn_and_a_turn_counts_once() {
        let waker = noop_waker();
        let cx = &mut Context::from_waker(&waker);
        let turns = Arc::new(Semaphore::new(0));
        let ask = || {
            let turns = Arc::clone(&turns);
            Some(async move { turns.acquire().await.unwrap().forget() }.boxed())
        };
        let mut line = Line::default();
        assert!(line.may_publish(|| None, cx) && !line.is_waiting());
        assert!(!line.may_publish(ask, cx) && line.is_waiting());
        assert!(!line.may_publish(|| panic!("it is in the line already"), cx));
        turns.add_permits(1);
        assert!(line.may_publish(ask, cx) && !line.is_waiting());
        assert!(!line.may_publish(ask, cx));
    }
}
