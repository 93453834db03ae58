//! The built-in broker, with a consumer on every queue instead of the business's services.

use std::collections::{BTreeMap, HashMap};

use tokio_util::sync::{CancellationToken, DropGuard};
use wirepost_broker::memory::{MemoryBroker, MemoryDelivery};
use wirepost_core::{
    Compiled, names,
    topology::{Binding, Queue, QueueKind, Topology},
};
use wirepost_runtime::tasks::{Supervisor, Tasks};

use super::{
    card::shown_queues,
    playground::{Desk, Verdict},
};
use crate::output::{Console, one_line};

/// Its consumers stop when it is dropped.
pub(super) struct LocalBackend {
    broker: MemoryBroker,
    console: Console,
    desk: Desk,
    tasks: Tasks,
    /// Queue → the guard that stops its consumer.
    consumers: HashMap<String, DropGuard>,
}

/// What a queue contains.
#[derive(Clone, Copy)]
enum Kind {
    /// Messages for a service.
    Messages,
    DeadLetters,
    Events,
}

impl LocalBackend {
    pub(super) fn new(console: Console, desk: Desk, supervisor: &Supervisor) -> Self {
        Self { broker: MemoryBroker::new(), console, desk, tasks: supervisor.tasks(), consumers: HashMap::new() }
    }

    /// A handle to the broker.
    pub(super) fn broker(&self) -> MemoryBroker {
        self.broker.clone()
    }

    /// Gives the broker exactly what these businesses need, and shows the messages on their queues.
    pub(super) fn apply(&mut self, businesses: &[Compiled]) {
        let declared = businesses.iter().map(|compiled| compiled.topology.clone());
        let events = businesses.iter().map(|compiled| events(&compiled.business));
        self.broker.apply(&declared.chain(events).collect::<Vec<_>>());
        // Two businesses may share a queue.
        let mut queues = BTreeMap::new();
        for compiled in businesses {
            let business = compiled.business.as_str();
            queues.insert(names::dead_queue(business), (business, Kind::DeadLetters));
            queues.insert(events_queue(business), (business, Kind::Events));
            queues.extend(shown_queues(compiled).map(|queue| (queue.to_owned(), (business, Kind::Messages))));
        }
        self.consumers.retain(|queue, _| queues.contains_key(queue));
        for (queue, (business, kind)) in queues {
            if !self.consumers.contains_key(&queue) {
                let show = Show {
                    broker: self.broker.clone(),
                    business: business.to_owned(),
                    queue: queue.clone(),
                    kind,
                    console: self.console.clone(),
                    desk: self.desk.clone(),
                };
                let stop = CancellationToken::new();
                self.tasks.until("queue consumer", &stop, show.run());
                self.consumers.insert(queue, stop.drop_guard());
            }
        }
    }

    /// Stops the consumers.
    pub(super) async fn stop(mut self) {
        self.consumers.clear();
        self.tasks.finished().await;
    }
}

fn events_queue(business: &str) -> String {
    names::events_queue(business, "playground")
}

/// A queue for the events of a business, which its service would declare itself.
fn events(business: &str) -> Topology {
    let name = events_queue(business);
    let binding = Binding { exchange: names::events_exchange(business), queue: name.clone(), routing_key: "#".into() };
    let queue = Queue { name, kind: QueueKind::Quorum, dead_letter: None };
    Topology { queues: vec![queue], bindings: vec![binding], ..Topology::default() }
}

/// Consumes a queue.
struct Show {
    broker: MemoryBroker,
    business: String,
    queue: String,
    kind: Kind,
    console: Console,
    desk: Desk,
}

impl Show {
    async fn run(self) {
        let mut consumer = self.broker.consume(&self.queue, 1);
        loop {
            self.show(consumer.recv().await).await;
        }
    }

    async fn show(&self, delivery: MemoryDelivery) {
        let Self { business, queue, kind, console, desk, .. } = self;
        let body = &delivery.publication().body;
        match kind {
            Kind::Events => desk.event(business, body),
            Kind::DeadLetters => {
                console.say(format!("dead letter {queue} ← {}", one_line(body))).await;
                desk.dead_letter(business, body);
            }
            Kind::Messages => {
                console.say(format!("queue {queue} ← {}", one_line(body))).await;
                match desk.decide(business, queue, body, delivery.redelivered()).await {
                    Verdict::Ack => {}
                    Verdict::Requeue => return drop(delivery),
                    Verdict::Reject => return delivery.reject(),
                }
            }
        }
        delivery.ack();
    }
}
