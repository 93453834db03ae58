//! A queue in memory, consumed with manual acknowledgements.

use std::collections::VecDeque;

use crate::Publication;

/// Messages that fit into a queue without `max-length`; further publishes are refused, as with overflow `reject-publish`.
const DEFAULT_MAX_LENGTH: usize = 10_000;

/// A message in a queue.
#[derive(Clone, Debug)]
pub(super) struct QueuedMessage {
    pub(super) publication: Publication,
    /// How often it came back unacknowledged.
    pub(super) deliveries: u32,
}

/// Ready messages and limits; what is with a consumer is counted in `unacked`.
#[derive(Debug, Default)]
pub(super) struct Queue {
    ready: VecDeque<QueuedMessage>,
    unacked: usize,
    max_length: Option<usize>,
    delivery_limit: Option<u32>,
    dead_letter_exchange: Option<String>,
}

impl Queue {
    pub(super) fn configure(
        &mut self,
        max_length: Option<usize>,
        delivery_limit: Option<u32>,
        dead_letter_exchange: Option<String>,
    ) {
        self.max_length = max_length;
        self.delivery_limit = delivery_limit;
        self.dead_letter_exchange = dead_letter_exchange;
    }

    pub(super) fn is_full(&self) -> bool {
        self.len() >= self.max_length.unwrap_or(DEFAULT_MAX_LENGTH)
    }

    pub(super) fn len(&self) -> usize {
        self.ready.len() + self.unacked
    }

    pub(super) fn push(&mut self, publication: Publication) {
        self.ready.push_back(QueuedMessage { publication, deliveries: 0 });
    }

    pub(super) fn take(&mut self) -> Option<QueuedMessage> {
        let stored = self.ready.pop_front()?;
        self.unacked += 1;
        Some(stored)
    }

    pub(super) fn acked(&mut self) {
        self.unacked = self.unacked.saturating_sub(1);
    }

    /// Gives up a message that its consumer refused for good; it is returned with the exchange for dead letters, if the queue has one.
    pub(super) fn reject(&mut self, stored: QueuedMessage) -> Option<(String, Publication)> {
        self.acked();
        self.dead_letter_exchange.clone().map(|exchange| (exchange, stored.publication))
    }

    /// Puts a message back in front; beyond the delivery limit it is returned with the exchange for dead letters instead.
    pub(super) fn requeue(&mut self, mut stored: QueuedMessage) -> Option<(String, Publication)> {
        self.acked();
        stored.deliveries += 1;
        if self.delivery_limit.is_some_and(|limit| stored.deliveries > limit) {
            return self.dead_letter_exchange.clone().map(|exchange| (exchange, stored.publication));
        }
        self.ready.push_front(stored);
        None
    }
}
