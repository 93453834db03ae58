//! A feed on a queue of its own, bound to the push exchange: what is not acknowledged is delivered again.

use std::{collections::VecDeque, sync::Arc};

use bytes::Bytes;
use futures_util::{FutureExt, future::BoxFuture};
use wirepost_core::names;

use super::Inner;
use crate::{Feed, FeedEvent, Health, Origin, Position, Record, RecordBatch};

/// Records unacknowledged at most.
const PREFETCH: usize = 200;
/// Most bytes waiting in one queue; beyond them the oldest are dropped, and the feed reports a gap.
const MAX_BYTES: usize = 64 << 20;

/// The queue of one feed.
#[derive(Debug)]
pub(super) struct EdgeQueue {
    id: u64,
    ready: VecDeque<Record>,
    bytes: usize,
    unacked: usize,
    dropped: bool,
}

impl EdgeQueue {
    fn new(id: u64) -> Self {
        Self { id, ready: VecDeque::new(), bytes: 0, unacked: 0, dropped: false }
    }

    pub(super) fn push(&mut self, offset: u64, timestamp: i64, body: Bytes, origin: Origin) {
        self.bytes += body.len();
        let position = Position { offset, fingerprint: 0 };
        self.ready.push_back(Record { position, timestamp, body, defect: None, origin });
        while self.bytes > MAX_BYTES && self.ready.len() > 1 {
            self.bytes -= self.ready.pop_front().map_or(0, |record| record.body.len());
            self.dropped = true;
        }
    }
}

/// Follows the pushes of a business from now on.
pub(super) struct EdgeQueueFeed {
    inner: Arc<Inner>,
    exchange: String,
    id: u64,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    New,
    Reading,
    Down,
}

impl EdgeQueueFeed {
    pub(super) fn new(inner: Arc<Inner>, business: &str) -> Self {
        let exchange = names::push_exchange(business);
        let mut world = inner.world();
        // Any growing number tells queues apart.
        world.incarnations += 1;
        let id = world.incarnations;
        world.edge_queues.entry(exchange.clone()).or_default().push(EdgeQueue::new(id));
        drop(world);
        Self { inner, exchange, id, state: State::New }
    }
}

impl Feed for EdgeQueueFeed {
    fn recv(&mut self) -> BoxFuture<'_, FeedEvent> {
        async move {
            let Self { inner, exchange, id, state } = self;
            let (next, event) = inner
                .wait_for(exchange, |world, health| {
                    let exists = world.exchanges.contains_key(exchange.as_str());
                    let queues = world.edge_queues.entry(exchange.clone()).or_default();
                    let trouble = match health {
                        Health::Away(reason) => Some(reason.clone()),
                        _ if !exists => Some(format!("there is no exchange {exchange}")),
                        _ => None,
                    };
                    let queue = queues.iter_mut().find(|queue| queue.id == *id);
                    match (*state, trouble, queue) {
                        (State::Down, Some(_), _) => None,
                        (_, Some(reason), _) => Some((State::Down, FeedEvent::Down { reason })),
                        (_, None, None) => {
                            queues.push(EdgeQueue::new(*id));
                            Some((State::Down, FeedEvent::Gap))
                        }
                        (State::New | State::Down, None, Some(_)) => {
                            // No position: nothing is kept that one could come back to.
                            Some((State::Reading, FeedEvent::Attached { position: None }))
                        }
                        (State::Reading, None, Some(queue)) if queue.dropped => {
                            queue.dropped = false;
                            Some((State::Down, FeedEvent::Gap))
                        }
                        (State::Reading, None, Some(queue)) => {
                            let room = PREFETCH.saturating_sub(queue.unacked).min(queue.ready.len());
                            let records: Vec<_> = queue.ready.drain(..room).collect();
                            if records.is_empty() {
                                return None;
                            }
                            queue.unacked += records.len();
                            queue.bytes -= records.iter().map(|record| record.body.len()).sum::<usize>();
                            let settle = Settle {
                                inner: inner.clone(),
                                exchange: exchange.clone(),
                                id: *id,
                                records: records.clone(),
                                done: false,
                            };
                            let done = Some(settle.into_done());
                            Some((State::Reading, FeedEvent::Records(RecordBatch { records, done })))
                        }
                    }
                })
                .await;
            *state = next;
            event
        }
        .boxed()
    }
}

impl Drop for EdgeQueueFeed {
    fn drop(&mut self) {
        let mut world = self.inner.world();
        if let Some(queues) = world.edge_queues.get_mut(&self.exchange) {
            queues.retain(|queue| queue.id != self.id);
        }
    }
}

/// Acknowledges a batch, or puts it back in front when dropped undone.
struct Settle {
    inner: Arc<Inner>,
    exchange: String,
    id: u64,
    records: Vec<Record>,
    done: bool,
}

impl Settle {
    fn into_done(self) -> Box<dyn FnOnce() + Send> {
        Box::new(move || {
            // By value: a closure that only named the field would take a copy of it.
            let mut settle = self;
            settle.done = true;
        })
    }
}

impl Drop for Settle {
    fn drop(&mut self) {
        let mut world = self.inner.world();
        let queue = world.edge_queues.get_mut(&self.exchange);
        if let Some(queue) = queue.and_then(|queues| queues.iter_mut().find(|queue| queue.id == self.id)) {
            queue.unacked -= self.records.len();
            if !self.done {
                queue.bytes += self.records.iter().map(|record| record.body.len()).sum::<usize>();
                for record in self.records.drain(..).rev() {
                    queue.ready.push_front(record);
                }
            }
        }
        world.wake(&self.exchange);
    }
}
