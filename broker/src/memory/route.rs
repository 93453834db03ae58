//! Routing: which queues, streams and feeds a publish goes to, and what its publisher gets as an answer.

use std::{collections::BTreeSet, sync::atomic::Ordering};

use wirepost_core::{names, pattern, topology::ExchangeKind};
use wirepost_runtime::clock;

use super::{Inner, World};
use crate::{Publication, PublishError};

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
    /// Collects where the exchange routes a message, by its routing key and that of the queue it is for; by its alternate exchange if
    /// nowhere else.
    fn targets(&self, publication: &Publication, targets: &mut Targets) -> Result<(), PublishError> {
        let (exchange, key) = (&*publication.exchange, publication.routing_key.as_str());
        let queue_key = publication.queue.as_deref().map(names::queue_key);
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
        let mut name = exchange;
        // An alternate exchange may have one itself; a circle ends at the first one seen again.
        let mut seen = BTreeSet::new();
        while seen.insert(name) {
            let Some(exchange) = self.exchanges.get(name) else {
                // Only the exchange that was published to must exist.
                return if seen.len() == 1 {
                    Err(PublishError::Refused(format!("there is no exchange {name}")))
                } else {
                    Ok(())
                };
            };
            for (routing_key, object) in self.bindings.get(name).into_iter().flatten() {
                let matches = match exchange.kind {
                    ExchangeKind::Fanout => true,
                    ExchangeKind::Topic => {
                        pattern::matches(routing_key, key) || queue_key.as_ref() == Some(routing_key)
                    }
                    ExchangeKind::Direct => routing_key == key,
                };
                if matches && (self.queues.contains_key(object) || self.streams.contains_key(object)) {
                    targets.objects.insert(object.clone());
                }
            }
            if self.edge_queues.get(name).is_some_and(|queues| !queues.is_empty()) {
                targets.edges.insert(name.to_owned());
            }
            match &exchange.alternate {
                Some(alternate) if targets.is_empty() => name = alternate,
                _ => break,
            }
        }
        Ok(())
    }
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
            for queue in world.edge_queues.get_mut(exchange).into_iter().flatten() {
                queue.push(offset, clock::now_ms(), publication.body.clone());
            }
            world.wake(exchange);
        }
        for name in &targets.objects {
            if let Some(log) = world.streams.get_mut(name) {
                log.append(clock::now_ms(), publication.body.clone());
            } else if let Some(queue) = world.queues.get_mut(name) {
                queue.push(publication.clone());
            }
            world.wake(name);
        }
        Ok(())
    }
}
