//! What the edges of an installation tell each other goes through a stream of the vhost ([`names::CONTROL`]) and a fanout exchange of the same
//! name in front of it: without the exchange edges would need the right to publish to the default exchange, which leads into every queue.

use wirepost_core::names;
use wirepost_core::topology::{Binding, Exchange, ExchangeKind, Queue, QueueKind};

use crate::actual::{self, Actual};
use crate::step::Step;

/// What of it exists.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Control {
    pub(crate) stream: bool,
    pub(crate) exchange: bool,
    pub(crate) bound: bool,
}

impl Control {
    pub(crate) fn of(actual: &Actual) -> Self {
        Self {
            stream: actual.queues.iter().any(|queue| queue.name == names::CONTROL),
            exchange: actual.exchanges.iter().any(|exchange| exchange.name == names::CONTROL),
            bound: actual.bindings.iter().any(is_binding),
        }
    }

    /// What creates the rest, in this order.
    pub(crate) fn missing(self) -> impl Iterator<Item = Step> {
        let name = || names::CONTROL.to_owned();
        let stream =
            (!self.stream).then(|| Step::PutQueue(Queue { name: name(), kind: QueueKind::Stream, dead_letter: None }));
        let exchange = (!self.exchange)
            .then(|| Step::PutExchange(Exchange { name: name(), kind: ExchangeKind::Fanout, alternate: None }));
        let binding =
            (!self.bound).then(|| Step::Bind(Binding { exchange: name(), queue: name(), routing_key: String::new() }));
        [stream, exchange, binding].into_iter().flatten()
    }
}

/// Whether it leads from the exchange to the stream.
pub(crate) fn is_binding(binding: &actual::Binding) -> bool {
    binding.source == names::CONTROL && binding.destination == names::CONTROL
}
