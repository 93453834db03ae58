//! Batches that the reader has handed out, until their messages may be settled.

use std::collections::VecDeque;

use tokio::sync::mpsc;

/// Batches handed out, by the tags of their first and last message, in order. They are settled in this order, so that one acknowledgement
/// of several covers exactly its batch.
#[derive(Debug, Default)]
pub(super) struct Unsettled(VecDeque<((u64, u64), Option<bool>)>);

impl Unsettled {
    pub(super) fn push(&mut self, range: (u64, u64)) {
        self.0.push_back((range, None));
    }

    /// Notes an outcome, by the last tag; gives what can be settled now.
    pub(super) fn settle(&mut self, (tag, done): (u64, bool)) -> Vec<((u64, u64), bool)> {
        if let Some(batch) = self.0.iter_mut().find(|batch| batch.0.1 == tag) {
            batch.1 = Some(done);
        }
        let mut ready = Vec::new();
        while let Some((range, Some(done))) = self.0.front().copied() {
            self.0.pop_front();
            ready.push((range, done));
        }
        ready
    }
}

/// Reports to the reader that a batch is done, or was dropped undone.
pub(super) struct BatchToken {
    pub(super) tag: u64,
    pub(super) done: bool,
    pub(super) settle: mpsc::Sender<(u64, bool)>,
}

impl BatchToken {
    pub(super) fn into_done(self) -> Box<dyn FnOnce() + Send> {
        Box::new(move || {
            // By value: a closure that only named the field would take a copy of it.
            let mut token = self;
            token.done = true;
        })
    }
}

impl Drop for BatchToken {
    fn drop(&mut self) {
        // Fails when the reader has reconnected: the broker delivers the batch again.
        let _ = self.settle.try_send((self.tag, self.done));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_are_settled_in_their_order() {
        let mut unsettled = Unsettled::default();
        for range in [(1, 3), (4, 5), (6, 9)] {
            unsettled.push(range);
        }
        assert_eq!(unsettled.settle((5, true)), []);
        assert_eq!(unsettled.settle((3, false)), [((1, 3), false), ((4, 5), true)]);
        assert_eq!(unsettled.settle((9, true)), [((6, 9), true)]);
    }

    #[test]
    fn a_batch_token_reports_done_or_dropped_once() {
        let (settle, mut settled) = mpsc::channel(2);
        let token = |tag| BatchToken { tag, done: false, settle: settle.clone() }.into_done();
        token(1)();
        drop(token(2));
        assert_eq!(settled.try_recv(), Ok((1, true)));
        assert_eq!(settled.try_recv(), Ok((2, false)));
        assert!(settled.try_recv().is_err());
    }
}
