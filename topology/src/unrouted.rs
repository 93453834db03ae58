//! Finds the messages in `wirepost.B.unrouted` and moves them back to where their publishers sent them, after the bindings are repaired.

mod message;
mod mover;
mod set_aside;

use std::collections::BTreeSet;

use lapin::Connection;
use wirepost_core::{names, topology::Topology};
use wirepost_rabbitmq::Endpoint;

use crate::error::Error;
use crate::ready::ready_messages;
use mover::Mover;

/// Messages that [`move_back`] passes over in one run: each is taken out and requeued. Those behind them need a person.
const MAX_STRAYS: usize = 1_000;

/// How far [`move_back`] came.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// Messages that a queue or stream behind their exchange has confirmed.
    pub moved: u32,
    /// Messages that stay, because no declared route takes them. They keep their positions in the queue.
    pub strays: u32,
    /// Those of the strays that can be moved as soon as what is declared leads here again: see [`Links::declared`].
    pub waiting: u32,
    /// Messages that can never be moved. They are in `dead` now.
    pub set_aside: u32,
    /// Why it stopped before the last message that was there at its start; the rest is untouched.
    pub stopped: Option<Stopped>,
}

/// What leads to the pushes of one business from the exchanges for several businesses, its own and those of others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Links {
    /// Exchanges from which a binding leads here: what is published to them for this business comes here.
    pub present: BTreeSet<String>,
    /// Exchanges from which one should lead here.
    pub declared: BTreeSet<String>,
}

/// Why [`move_back`] stopped early.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Stopped {
    /// A binding is still missing. That message is now behind the others.
    #[error(
        "a message came back to {queue}: exchange {exchange} has no binding for '{routing_key}'; repair the topology, then move again"
    )]
    CameBack {
        /// The queue of unrouted messages.
        queue: String,
        /// Where the message was published.
        exchange: String,
        /// Its routing key.
        routing_key: String,
    },
    /// The queue begins with too many messages that no route takes.
    #[error("{queue} begins with {MAX_STRAYS} messages that no route takes; look at them and remove them")]
    Strays {
        /// The queue of unrouted messages.
        queue: String,
    },
    /// The queue begins with as many, and some of them go on as soon as what is declared leads here again: see [`Links::declared`].
    #[error(
        "{queue} begins with {MAX_STRAYS} messages, of which {waiting} wait until another business's exchange leads here again"
    )]
    Waits {
        /// The queue of unrouted messages.
        queue: String,
        /// How many wait.
        waiting: u32,
    },
    /// The exchange does not accept a message now.
    #[error("exchange {exchange} did not take a message with '{routing_key}': {reason}; move again later")]
    NotTaken {
        /// Where the message was published.
        exchange: String,
        /// Its routing key.
        routing_key: String,
        /// As the broker says it.
        reason: String,
    },
    /// The caller's gate was closed.
    #[error("it may not go on")]
    Gate,
}

/// Publishes the messages of `wirepost.{business}.unrouted` again, oldest first, each to the exchange and with the routing key that it
/// came with, unchanged except for its `user-id`, and removes each only after the broker's confirm. A client's message goes to the queue that
/// its edge admitted it to. Messages that nothing in `topology`, the business's own, takes keep their positions. `gate` is asked before each
/// message. Uses connections of its own, so that one business's messages can end no other connections.
///
/// **Flow.** As many as are there at the start, one at a time: order matters more than speed here (about 1,000 a second).
/// **Guarantees.** None is lost. One may exist twice if this stops between confirm and removal, with the same `message_id`.
/// **Copies.** A message that another business published for several goes back by that business's exchange, to this business alone, while
/// `links` says that one leads here. Otherwise the broker would give it to the clients of its sender, or refuse it. It waits where one is
/// declared; where acceptance was taken back, it is set aside. The business's own goes to its pushes.
/// **Messages that can't be moved.** Properties are not interpreted, so malformed ones do no harm. A message that the broker can't deliver by
/// AMQP 0-9-1 is moved by AMQP 1.0. One that its exchange can't take (the broker fails at it twice, or blames it) is *set aside*:
/// published to the business's `dead` with a reason ([`headers::REASON`](wirepost_core::contract::headers::REASON)), and reported as a `rejected` event.
/// **Caveats.** A message whose binding is missing on the broker goes through the alternate exchange again, to the end of the queue: seen,
/// because the queue has not become shorter, and the run stops. A message that another publisher adds at that moment looks the same; so call
/// this when [`apply()`](crate::apply()) has found nothing to do. Do not run two for one business at the same time.
/// **Cancel safety.** Dropping the future leaves the current message unacknowledged; the broker requeues it when the connection ends.
pub async fn move_back(
    endpoint: &Endpoint,
    business: &str,
    topology: &Topology,
    links: &Links,
    gate: &(dyn Fn() -> bool + Sync),
) -> Result<Moved, Error> {
    let failed = |e: wirepost_amqp::Error| Error::Amqp {
        doing: format!("moving the messages of {} back", names::unrouted(business)),
        cause: e.to_string(),
    };
    Mover::begin(endpoint, business, topology, links).await.map_err(failed)?.run(gate).await.map_err(failed)
}

/// Which of these businesses have messages in `wirepost.B.unrouted`, and how many. A business without that queue has none. About 1,000
/// businesses in 100 ms.
///
/// # Errors
/// The broker does not answer.
pub async fn waiting(connection: &Connection, businesses: &[impl AsRef<str>]) -> Result<Vec<(String, u32)>, Error> {
    let businesses = businesses.iter().map(AsRef::as_ref);
    let queues: Vec<String> = businesses.clone().map(names::unrouted).collect();
    let counts = ready_messages(connection, &queues, "counting unrouted messages").await?;
    let counts = counts.into_iter().map(Option::unwrap_or_default);
    Ok(businesses.map(str::to_owned).zip(counts).filter(|(_, count)| *count > 0).collect())
}
