//! Which connection reads the stream next: one at a time for each business, in the order of their offsets.
//!
//! The clients of a dead edge return together, each with a cursor of its own, and a page serves every cursor within it. Read in the order of
//! arrival, each cursor below all earlier ones costs a read of its own, about 100 ms on a busy broker: the last of 20 clients waited for two
//! seconds. Read upwards, one page serves all that are close together.
//!
//! Reads go in sweeps: a client that comes during one joins the next, so that no client waits longer than two.
//! *Bound*: one entry for each connection that waits; one whose connection has gone leaves when its turn comes.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::sync::oneshot;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct ReadQueue(Arc<Mutex<Queue>>, AtomicBool);

#[derive(Debug, Default)]
struct Queue {
    reading: bool,
    /// The sweep that newcomers join.
    sweep: u64,
    /// Tells apart those that wait for the same offset.
    arrivals: u64,
    /// By sweep, offset and arrival.
    waiting: BTreeMap<(u64, u64, u64), oneshot::Sender<ReadPermit>>,
}

/// The right to read. The next connection gets it when this one is dropped.
#[derive(Debug)]
pub(super) struct ReadPermit(Arc<Mutex<Queue>>);

impl ReadQueue {
    /// Whether the last read brought nothing in good time.
    pub(super) fn is_silent(&self) -> bool {
        self.1.load(Ordering::Relaxed)
    }

    /// Notes how the last read went.
    pub(super) fn set_silent(&self, silent: bool) {
        self.1.store(silent, Ordering::Relaxed);
    }

    /// Waits for the right to read from `offset`.
    ///
    /// *Cancel safety*: a dropped wait gives up its place.
    pub(super) async fn permit(&self, offset: u64) -> ReadPermit {
        let permit = {
            let mut queue = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if !queue.reading {
                queue.reading = true;
                return ReadPermit(Arc::clone(&self.0));
            }
            queue.arrivals += 1;
            let key = (queue.sweep, offset, queue.arrivals);
            let (sender, receiver) = oneshot::channel();
            queue.waiting.insert(key, sender);
            receiver
        };
        #[expect(clippy::expect_used)]
        permit.await.expect("a sender leaves the queue only to send a permit, and `self` keeps the queue")
    }
}

impl Queue {
    /// Who reads next; none: nobody waits.
    fn next(&mut self) -> Option<oneshot::Sender<ReadPermit>> {
        loop {
            let ((sweep, ..), sender) = self.waiting.pop_first()?;
            self.sweep = self.sweep.max(sweep + 1);
            if !sender.is_closed() {
                return Some(sender);
            }
        }
    }
}

impl Drop for ReadPermit {
    fn drop(&mut self) {
        let next = {
            let mut queue = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let next = queue.next();
            queue.reading = next.is_some();
            next
        };
        if let Some(next) = next {
            // A connection that went at this very moment returns the permit, whose drop passes it on.
            drop(next.send(Self(Arc::clone(&self.0))));
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn a_sweep_goes_upwards_and_newcomers_join_the_next() {
        let queue = ReadQueue::default();
        let mut permit = queue.permit(50).await;
        let wait = |offset| {
            let mut wait = Box::pin(queue.permit(offset));
            assert!(wait.as_mut().now_or_never().is_none());
            (offset, wait)
        };
        let mut waits: Vec<_> = [30, 90, 10, 60].map(wait).into();
        let mut order = Vec::new();
        while !waits.is_empty() {
            drop(permit);
            let granted =
                waits.iter_mut().enumerate().find_map(|(index, (_, wait))| Some((index, wait.now_or_never()?)));
            let index;
            (index, permit) = granted.unwrap();
            order.push(waits.swap_remove(index).0);
            if order.len() == 1 {
                waits.extend([95, 5].map(wait));
            }
        }
        assert_eq!(order, [10, 30, 60, 90, 5, 95]);
    }

    #[tokio::test]
    async fn a_client_that_gives_up_is_passed_over() {
        let queue = ReadQueue::default();
        let permit = queue.permit(1).await;
        let mut gone: Vec<_> = (2..100_000).map(|offset| Box::pin(queue.permit(offset))).collect();
        let mut stays = Box::pin(queue.permit(100_000));
        for wait in gone.iter_mut().chain([&mut stays]) {
            assert!(wait.as_mut().now_or_never().is_none());
        }
        drop(gone);
        drop(permit);
        drop(stays.now_or_never().unwrap());
        assert!(queue.permit(5).now_or_never().is_some(), "nobody reads any more");
    }
}
