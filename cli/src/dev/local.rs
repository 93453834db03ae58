//! The built-in broker, with a consumer on every queue instead of the business's services.

use std::collections::{BTreeSet, HashMap};

use tokio_util::sync::{CancellationToken, DropGuard};
use wirepost_broker::memory::MemoryBroker;
use wirepost_core::Compiled;
use wirepost_runtime::tasks::{Supervisor, Tasks};

use super::card::shown_queues;
use crate::output::{Console, one_line};

/// Its consumers stop when it is dropped.
pub(super) struct LocalBackend {
    broker: MemoryBroker,
    console: Console,
    tasks: Tasks,
    /// Queue → the guard that stops its consumer.
    consumers: HashMap<String, DropGuard>,
}

impl LocalBackend {
    pub(super) fn new(console: Console, supervisor: &Supervisor) -> Self {
        Self { broker: MemoryBroker::new(), console, tasks: supervisor.tasks(), consumers: HashMap::new() }
    }

    /// A handle to the broker.
    pub(super) fn broker(&self) -> MemoryBroker {
        self.broker.clone()
    }

    /// Gives the broker exactly what these businesses need, and prints the messages on their queues.
    pub(super) fn apply(&mut self, businesses: &[Compiled]) {
        let topologies: Vec<_> = businesses.iter().map(|compiled| compiled.topology.clone()).collect();
        self.broker.apply(&topologies);
        let queues: BTreeSet<&str> = businesses.iter().flat_map(shown_queues).collect();
        self.consumers.retain(|queue, _| queues.contains(queue.as_str()));
        for queue in queues {
            if !self.consumers.contains_key(queue) {
                let show = show(self.broker.clone(), queue.to_owned(), self.console.clone());
                let stop = CancellationToken::new();
                self.tasks.until("queue consumer", &stop, show);
                self.consumers.insert(queue.to_owned(), stop.drop_guard());
            }
        }
    }

    /// Stops the consumers.
    pub(super) async fn stop(mut self) {
        self.consumers.clear();
        self.tasks.finished().await;
    }
}

async fn show(broker: MemoryBroker, queue: String, console: Console) {
    let mut consumer = broker.consume(&queue, 1);
    loop {
        let delivery = consumer.recv().await;
        console.say(format!("queue {queue} ← {}", one_line(&delivery.publication().body))).await;
        delivery.ack();
    }
}
