//! Routing: which queues, streams and feeds a publish goes to, and what its publisher gets as an answer.

use std::{collections::BTreeSet, sync::atomic::Ordering};

use wirepost_core::{names, pattern, topology::ExchangeKind};
use wirepost_runtime::clock;

use super::{Inner, World};
use crate::{Header, Origin, Publication, PublishError};

/// Where a message goes. Nothing twice, however many bindings lead there.
#[derive(Debug, Default)]
struct Targets {
    objects: BTreeSet<String>,
    /// Push exchanges whose `Transient` feeds get it.
    edges: BTreeSet<String>,
}

impl Targets {
    fn is_empty(&self) -> bool {
        self.objects.is_empty() && self.edges.is_empty()
    }
}

impl World {
    /// Collects where the exchange routes a message, by its routing key, that of the queue it is for, and its headers;
    /// by its alternate exchange if nowhere else.
    fn targets(&self, publication: &Publication, targets: &mut Targets) -> Result<(), PublishError> {
        let (exchange, key) = (&*publication.exchange, publication.routing_key.as_str());
        if exchange.is_empty() {
            if self.queues.contains_key(key) || self.streams.contains_key(key) {
                targets.objects.insert(key.to_owned());
            }
            return Ok(());
        }
        if exchange == names::CONTROL {
            // It belongs to no topology, and leads to the stream of its name.
            targets.objects.extend(self.streams.contains_key(exchange).then(|| exchange.to_owned()));
            return Ok(());
        }
        if !self.exchanges.contains_key(exchange) {
            return Err(PublishError::Refused(format!("there is no exchange {exchange}")));
        }
        let queue_key = publication.queue.as_deref().map(names::queue_key);
        let mut next = vec![exchange];
        // A circle ends at the first exchange seen again.
        let mut seen = BTreeSet::new();
        while let Some(name) = next.pop() {
            // Only the exchange that was published to must exist.
            let Some(exchange) = self.exchanges.get(name).filter(|_| seen.insert(name)) else { continue };
            let mut any = false;
            for (routing_key, object) in self.bindings.get(name).into_iter().flatten() {
                let matches = match exchange.kind {
                    ExchangeKind::Fanout => true,
                    ExchangeKind::Topic => {
                        pattern::matches(routing_key, key) || queue_key.as_ref() == Some(routing_key)
                    }
                    ExchangeKind::Direct => routing_key == key,
                    ExchangeKind::Headers => false,
                };
                if matches && (self.queues.contains_key(object) || self.streams.contains_key(object)) {
                    targets.objects.insert(object.clone());
                    any = true;
                }
            }
            for link in self.links.get(name).into_iter().flatten() {
                let has = |(name, value): &Header| **name == *link.header && *value == link.value;
                if publication.headers.iter().any(has) {
                    next.push(&link.to);
                    any = true;
                }
            }
            if self.edge_queues.get(name).is_some_and(|queues| !queues.is_empty()) {
                targets.edges.insert(name.to_owned());
                any = true;
            }
            if !any {
                next.extend(exchange.alternate.as_deref());
            }
        }
        Ok(())
    }
}

/// What a business's readers learn of where a message was published. `object`: what they read.
fn origin(publication: &Publication, object: &str) -> Origin {
    let headers = || publication.headers.iter().map(|(name, value)| (&**name, value.as_str()));
    Origin::new(names::owner(object).unwrap_or_default(), &publication.exchange, headers)
}

impl Inner {
    /// Routes one message: to all of its targets, or to none if one of them is full.
    pub(super) fn route(
        &self,
        world: &mut World,
        publication: &Publication,
        mandatory: bool,
    ) -> Result<(), PublishError> {
        let result = Self::deliver(world, publication, mandatory);
        let counter = if result.is_ok() { &self.counters.published } else { &self.counters.refused };
        counter.fetch_add(1, Ordering::Relaxed);
        result
    }

    fn deliver(world: &mut World, publication: &Publication, mandatory: bool) -> Result<(), PublishError> {
        let mut targets = Targets::default();
        world.targets(publication, &mut targets)?;
        if targets.is_empty() {
            if mandatory {
                let reason = format!("no queue takes {} from {}", publication.routing_key, publication.exchange);
                return Err(PublishError::Unrouted(reason));
            }
            return Ok(());
        }
        let full = |name: &&String| world.queues.get(*name).is_some_and(super::queue::Queue::is_full);
        if let Some(name) = targets.objects.iter().find(full) {
            return Err(PublishError::Refused(format!("queue {name} is full")));
        }
        for exchange in &targets.edges {
            world.transient_records += 1;
            let offset = world.transient_records;
            let origin = origin(publication, exchange);
            for queue in world.edge_queues.get_mut(exchange).into_iter().flatten() {
                queue.push(offset, clock::now_ms(), publication.body.clone(), origin.clone());
            }
            world.wake(exchange);
        }
        for name in &targets.objects {
            if let Some(log) = world.streams.get_mut(name) {
                log.append(clock::now_ms(), publication.body.clone(), origin(publication, name));
            } else if let Some(queue) = world.queues.get_mut(name) {
                queue.push(publication.clone());
            }
            world.wake(name);
        }
        Ok(())
    }
}
