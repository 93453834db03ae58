//! A broker inside the process, for `wirepost dev`, tests and simulation: exchanges, quorum queues and streams as a [`Topology`]
//! declares them, with the answers that RabbitMQ gives. Nothing is stored; everything is bounded.
//!
//! One lock guards all objects. Publishing routes under it, so that order needs no lanes; feeds and consumers wait for the signal of the
//! one name that they read.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use futures_util::{FutureExt, future::BoxFuture};
use prometheus_client::{collector::Collector, encoding::DescriptorEncoder, registry::Registry};
use tokio::sync::{Notify, oneshot, watch};
use wirepost_core::{
    edge_config::Delivery,
    names,
    topology::{Exchange, Link, Policy, QueueKind, Topology},
};
use wirepost_runtime::tasks::{Supervisor, Tasks};

use crate::{
    Broker, CONFIRM_TIMEOUT, Confirm, Feed, Health, Page, Publication, PublishError, ReadError, Start, metrics,
};

mod consumer;
mod durable;
mod log;
mod queue;
mod route;
#[cfg(test)]
mod tests;
mod transient;

pub use consumer::{MemoryConsumer, MemoryDelivery};

/// Publishes taken while frozen at most, as a real edge's lanes are bounded.
const MAX_DEFERRED: usize = 10_000;

/// The broker. Clones are handles to the same one.
#[derive(Clone, Debug, Default)]
pub struct MemoryBroker {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    world: Mutex<World>,
    health: watch::Sender<Health>,
    counters: Counters,
    tasks: Tasks,
}

impl Default for Inner {
    fn default() -> Self {
        let mut world = World::default();
        world.new_stream(names::CONTROL);
        Self {
            world: Mutex::new(world),
            health: watch::Sender::new(Health::Up),
            counters: Counters::default(),
            tasks: Supervisor::default().tasks(),
        }
    }
}

#[derive(Debug, Default)]
struct Counters {
    published: AtomicU64,
    refused: AtomicU64,
    events: AtomicU64,
    dropped_events: AtomicU64,
}

/// All objects. Written by publishers, consumers, feeds and [`MemoryBroker::apply`].
#[derive(Debug, Default)]
struct World {
    exchanges: BTreeMap<String, Exchange>,
    /// exchange -> (routing key, queue), in the order declared.
    bindings: HashMap<String, Vec<(String, String)>>,
    /// exchange -> the exchanges behind it.
    links: HashMap<String, Vec<Link>>,
    queues: HashMap<String, queue::Queue>,
    streams: HashMap<String, log::Log>,
    /// Limits by stream name, kept for streams that are made again.
    stream_bytes: HashMap<String, Option<usize>>,
    /// Queues of `Transient` feeds by push exchange.
    edge_queues: HashMap<String, Vec<transient::EdgeQueue>>,
    /// Wakes those who wait for a change of a stream or queue.
    signals: HashMap<String, Arc<Notify>>,
    /// Lives of streams and numbers of `Transient` records, so far.
    incarnations: u64,
    transient_records: u64,
    /// While frozen: what was published, routed at the thaw.
    frozen: Option<Vec<DeferredPublish>>,
}

type DeferredPublish = (Publication, Option<Reply>);
type Reply = Arc<Mutex<Option<oneshot::Sender<Result<(), PublishError>>>>>;

impl World {
    fn signal(&mut self, name: &str) -> Arc<Notify> {
        if let Some(signal) = self.signals.get(name) {
            return signal.clone();
        }
        let signal = Arc::new(Notify::new());
        self.signals.insert(name.to_owned(), signal.clone());
        signal
    }

    fn wake(&self, name: &str) {
        if let Some(signal) = self.signals.get(name) {
            signal.notify_waiters();
        }
    }

    fn new_stream(&mut self, name: &str) {
        self.incarnations += 1;
        let mut log = log::Log::new(self.incarnations);
        log.set_max_bytes(self.stream_bytes.get(name).copied().flatten());
        self.streams.insert(name.to_owned(), log);
    }
}

impl MemoryBroker {
    /// A broker that has the control stream of the installation, and no other object.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes the broker exactly what these topologies declare. Queues and streams that stay keep their messages; others go, with theirs.
    pub fn apply(&self, topologies: &[Topology]) {
        let mut guard = self.inner.world();
        let world = &mut *guard;
        world.exchanges = topologies.iter().flat_map(|t| &t.exchanges).map(|e| (e.name.clone(), e.clone())).collect();
        world.bindings.clear();
        for binding in topologies.iter().flat_map(|t| &t.bindings) {
            let bindings = world.bindings.entry(binding.exchange.clone()).or_default();
            bindings.push((binding.routing_key.clone(), binding.queue.clone()));
        }
        world.links.clear();
        for link in topologies.iter().flat_map(|t| &t.links) {
            world.links.entry(link.from.clone()).or_default().push(link.clone());
        }
        let policies: HashMap<&str, &Policy> = topologies
            .iter()
            .flat_map(|t| t.queues.iter().filter_map(|queue| Some((queue.name.as_str(), t.policy_of(&queue.name)?))))
            .collect();
        let policy = |name: &str| policies.get(name).copied();

        let declared = topologies.iter().flat_map(|t| &t.queues);
        let (streams, queues): (Vec<_>, Vec<_>) = declared.partition(|queue| queue.kind == QueueKind::Stream);
        let existing = topologies.iter().flat_map(|t| &t.existing_queues).map(|name| (name.as_str(), None));
        let queues: HashMap<&str, Option<String>> =
            queues.iter().map(|queue| (queue.name.as_str(), queue.dead_letter.clone())).chain(existing).collect();
        world.queues.retain(|name, _| queues.contains_key(name.as_str()));
        for (name, dead_letter) in queues {
            let policy = policy(name);
            world.queues.entry(name.to_owned()).or_default().configure(
                number(policy, "max-length"),
                number(policy, "delivery-limit").map(|limit| u32::try_from(limit).unwrap_or(u32::MAX)),
                dead_letter,
            );
        }
        world.streams.retain(|name, _| name == names::CONTROL || streams.iter().any(|stream| stream.name == *name));
        world.stream_bytes = streams
            .iter()
            .map(|stream| (stream.name.clone(), number(policy(&stream.name), "max-length-bytes")))
            .collect();
        for stream in streams {
            let limit = world.stream_bytes.get(&stream.name).copied().flatten();
            match world.streams.get_mut(&stream.name) {
                Some(log) => log.set_max_bytes(limit),
                None => world.new_stream(&stream.name),
            }
        }
        world.edge_queues.retain(|exchange, _| world.exchanges.contains_key(exchange));
        // Signals of names without a waiter would pile up with every change of the declarations.
        world.signals.retain(|_, signal| Arc::strong_count(signal) > 1);
        for signal in world.signals.values() {
            signal.notify_waiters();
        }
    }

    /// Takes messages of a queue, with manual acknowledgement. `prefetch`: unacknowledged deliveries at most, at least 1.
    ///
    /// A queue that does not exist (yet) is waited for.
    pub fn consume(&self, queue: &str, prefetch: usize) -> MemoryConsumer {
        MemoryConsumer::new(self.inner.clone(), queue, prefetch)
    }

    /// Messages of a queue, those with consumers included; `None` = no such queue.
    pub fn queue_len(&self, queue: &str) -> Option<usize> {
        self.inner.world().queues.get(queue).map(queue::Queue::len)
    }
}

/// Switches for simulation and tests: what goes wrong with a real broker, at a chosen moment.
impl MemoryBroker {
    /// Away: nothing is published, read or consumed. Blocked: nothing is published.
    pub fn set_health(&self, health: Health) {
        self.inner.health.send_replace(health);
        let world = self.inner.world();
        for signal in world.signals.values() {
            signal.notify_waiters();
        }
    }

    /// Freezes or thaws: while frozen, publishes are taken and get no answer ([`PublishError::Unknown`] after the confirm timeout), and
    /// nothing is delivered; at the thaw everything taken is routed.
    pub fn set_frozen(&self, frozen: bool) {
        let mut world = self.inner.world();
        if frozen {
            world.frozen.get_or_insert_default();
            return;
        }
        for (publication, reply) in world.frozen.take().into_iter().flatten() {
            let result = self.inner.route(&mut world, &publication, reply.is_some());
            if let Some(reply) = reply.and_then(|reply| take(&reply)) {
                let _ = reply.send(result);
            }
        }
        for signal in world.signals.values() {
            signal.notify_waiters();
        }
    }

    /// Deletes a stream with its messages; false if there was none.
    pub fn delete_stream(&self, name: &str) -> bool {
        let mut world = self.inner.world();
        let existed = world.streams.remove(name).is_some();
        world.wake(name);
        existed
    }

    /// Creates a stream (again), empty, as an administrator would. Bindings stay as they are.
    pub fn create_stream(&self, name: &str) {
        let mut world = self.inner.world();
        world.new_stream(name);
        world.wake(name);
    }

    /// Forgets the messages of a stream below `offset`, as retention does.
    pub fn truncate_stream(&self, name: &str, offset: u64) {
        let mut world = self.inner.world();
        if let Some(log) = world.streams.get_mut(name) {
            log.truncate_before(offset);
        }
        world.wake(name);
    }

    /// Deletes an exchange with its bindings, until the next [`Self::apply`].
    pub fn delete_exchange(&self, name: &str) {
        let mut world = self.inner.world();
        world.exchanges.remove(name);
        world.bindings.remove(name);
        world.links.remove(name);
    }
}

impl Broker for MemoryBroker {
    fn publish(&self, _lane: u64, publication: Publication) -> Confirm {
        let (sender, confirm) = oneshot::channel();
        let refusal = match &*self.inner.health.borrow() {
            Health::Up => None,
            Health::Blocked(reason) | Health::Away(reason) => Some(PublishError::Unavailable(reason.clone())),
        };
        let mut world = self.inner.world();
        if let Some(error) = refusal {
            let _ = sender.send(Err(error));
        } else if world.frozen.as_ref().is_some_and(|held| held.len() >= MAX_DEFERRED) {
            let _ = sender.send(Err(PublishError::Unavailable("too many messages wait for the broker".into())));
        } else if let Some(held) = &mut world.frozen {
            let reply = Arc::new(Mutex::new(Some(sender)));
            held.push((publication, Some(reply.clone())));
            self.inner.tasks.contained("unanswered publish", async move {
                tokio::time::sleep(CONFIRM_TIMEOUT).await;
                if let Some(sender) = take(&reply) {
                    let _ = sender.send(Err(PublishError::Unknown("the broker does not answer".into())));
                }
            });
        } else {
            let _ = sender.send(self.inner.route(&mut world, &publication, true));
        }
        confirm
    }

    fn emit(&self, publication: Publication) {
        let mut world = self.inner.world();
        if *self.inner.health.borrow() != Health::Up || world.frozen.is_some() {
            self.inner.counters.dropped_events.fetch_add(1, Ordering::Relaxed);
            return;
        }
        self.inner.counters.events.fetch_add(1, Ordering::Relaxed);
        let _ = self.inner.route(&mut world, &publication, false);
    }

    fn tail(&self, business: &str, delivery: Delivery, start: Start) -> Box<dyn Feed> {
        match delivery {
            Delivery::Durable => Box::new(durable::StreamFeed::new(self.inner.clone(), names::stream(business), start)),
            Delivery::Transient => Box::new(transient::EdgeQueueFeed::new(self.inner.clone(), business)),
        }
    }

    fn follow(&self, stream: &str, start: Start) -> Option<Box<dyn Feed>> {
        Some(Box::new(durable::StreamFeed::new(self.inner.clone(), stream.to_owned(), start)))
    }

    fn read<'a>(&'a self, business: &'a str, from: u64, max_bytes: usize) -> BoxFuture<'a, Result<Page, ReadError>> {
        async move {
            self.inner.until_thawed(&names::stream(business)).await;
            if let Health::Away(reason) = &*self.inner.health.borrow() {
                return Err(ReadError(reason.clone()));
            }
            let name = names::stream(business);
            let world = self.inner.world();
            let log = world.streams.get(&name).ok_or_else(|| ReadError(format!("there is no stream {name}")))?;
            Ok(log.piece(from, max_bytes))
        }
        .boxed()
    }

    fn health(&self) -> watch::Receiver<Health> {
        self.inner.health.subscribe()
    }

    fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix(metrics::PREFIX);
        registry.register_collector(Box::new(self.inner.clone()));
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        std::future::ready(()).boxed()
    }
}

impl Collector for Inner {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Counters { published, refused, events, dropped_events } = &self.counters;
        for (name, help, counter) in [
            ("published", "Messages that were routed.", published),
            ("refused", "Messages that no queue took.", refused),
            ("events", "Events that were routed.", events),
            ("dropped_events", "Events dropped.", dropped_events),
        ] {
            metrics::encode(&mut encoder, name, help, counter.load(Ordering::Relaxed))?;
        }
        Ok(())
    }
}

impl Inner {
    fn world(&self) -> MutexGuard<'_, World> {
        // A panic under the lock would be a bug; the objects stay usable all the same.
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `find` finds something; it is called whenever `name` is signalled. Cancel safe if `find` is.
    async fn wait_for<T>(&self, name: &str, mut find: impl FnMut(&mut World, &Health) -> Option<T>) -> T {
        loop {
            let signal = self.world().signal(name);
            let mut notified = pin!(signal.notified());
            // Listening begins before the check: a change in between is not missed.
            notified.as_mut().enable();
            {
                let mut world = self.world();
                let health = self.health.borrow().clone();
                if world.frozen.is_none()
                    && let Some(found) = find(&mut world, &health)
                {
                    return found;
                }
            }
            notified.await;
        }
    }

    async fn until_thawed(&self, name: &str) {
        self.wait_for(name, |_, _| Some(())).await;
    }
}

fn take(reply: &Reply) -> Option<oneshot::Sender<Result<(), PublishError>>> {
    reply.lock().unwrap_or_else(PoisonError::into_inner).take()
}

fn number(policy: Option<&Policy>, key: &str) -> Option<usize> {
    policy.and_then(|policy| policy.definition.get(key)?.as_u64()).and_then(|n| usize::try_from(n).ok())
}
