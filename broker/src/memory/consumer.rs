//! A consumer of a queue with manual acknowledgements, as a business service has one.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use super::{Inner, queue::QueuedMessage};
use crate::{Health, Publication};

/// Takes messages of one queue. Dropping it requeues nothing: each delivery does that on its own.
#[derive(Debug)]
pub struct MemoryConsumer {
    inner: Arc<Inner>,
    queue: String,
    prefetch: usize,
    unacked: Arc<AtomicUsize>,
}

/// A message that is with a consumer: back in the queue when dropped without [`MemoryDelivery::ack`].
#[derive(Debug)]
pub struct MemoryDelivery {
    inner: Arc<Inner>,
    queue: String,
    stored: Option<QueuedMessage>,
    unacked: Arc<AtomicUsize>,
    publication: Publication,
    redelivered: bool,
    rejected: bool,
}

impl MemoryConsumer {
    pub(super) fn new(inner: Arc<Inner>, queue: &str, prefetch: usize) -> Self {
        Self { inner, queue: queue.to_owned(), prefetch: prefetch.max(1), unacked: Arc::default() }
    }

    /// The next message; waits for one, and while `prefetch` messages are unacknowledged. Cancel safe.
    pub async fn recv(&mut self) -> MemoryDelivery {
        let stored = self
            .inner
            .wait_for(&self.queue, |world, health| {
                if matches!(health, Health::Away(_)) || self.unacked.load(Ordering::Acquire) >= self.prefetch {
                    return None;
                }
                world.queues.get_mut(&self.queue)?.take()
            })
            .await;
        self.unacked.fetch_add(1, Ordering::AcqRel);
        MemoryDelivery {
            inner: self.inner.clone(),
            queue: self.queue.clone(),
            publication: stored.publication.clone(),
            redelivered: stored.deliveries > 0,
            rejected: false,
            stored: Some(stored),
            unacked: self.unacked.clone(),
        }
    }
}

impl MemoryDelivery {
    /// What was published.
    pub fn publication(&self) -> &Publication {
        &self.publication
    }

    /// Whether it was delivered before.
    pub fn redelivered(&self) -> bool {
        self.redelivered
    }

    /// Done with it: it is gone from the queue.
    pub fn ack(mut self) {
        self.stored = None;
    }

    /// Refuses it for good: it goes to the dead letters, or away where its queue has none.
    pub fn reject(mut self) {
        self.rejected = true;
    }
}

impl Drop for MemoryDelivery {
    fn drop(&mut self) {
        self.unacked.fetch_sub(1, Ordering::AcqRel);
        let mut world = self.inner.world();
        let dead = match (world.queues.get_mut(&self.queue), self.stored.take()) {
            (Some(queue), Some(stored)) if self.rejected => queue.reject(stored),
            (Some(queue), Some(stored)) => queue.requeue(stored),
            (Some(queue), None) => {
                queue.acked();
                None
            }
            (None, _) => None,
        };
        if let Some((exchange, mut publication)) = dead {
            publication.exchange = exchange.into();
            // A dead-letter exchange without a queue loses the message, as the broker's does.
            let _ = self.inner.route(&mut world, &publication, false);
        }
        world.wake(&self.queue);
    }
}
