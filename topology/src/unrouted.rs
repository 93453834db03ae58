//! Finds the messages of `wirepost.B.unrouted` and moves them back to where their publishers sent them, after the bindings are repaired.

use std::time::Duration;

mod aside;
mod walk;

use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;
use lapin::{Channel, Connection};
use tokio::time::timeout;
use wirepost_core::{names, topology::Topology};
use wirepost_rabbitmq::Endpoint;

use crate::count::is_not_found;
use crate::report::Error;
use walk::Walk;

/// Channels that [`waiting`] counts over at once, and its longest time in all.
const WAITING_CHANNELS: usize = 8;
const WAITING_TIMEOUT: Duration = Duration::from_secs(10);

/// Messages that [`move_back`] goes past in one run: each is taken out and put back. Those behind them wait for a person.
const STRAYS: usize = 1_000;

/// How far [`move_back`] came.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// Messages that a queue or stream behind their exchange has confirmed.
    pub moved: u32,
    /// Messages that stay, because no route of the declaration takes them (any more). They keep their place.
    pub strays: u32,
    /// Messages that can't be moved, ever. They are in `dead` now.
    pub set_aside: u32,
    /// Why it stopped before all that were there at its start were looked at; those left are untouched.
    pub stopped: Option<Stopped>,
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
    /// Too many messages that nobody can route lie in front.
    #[error("{queue} begins with {STRAYS} messages that no route takes; look at them and remove them")]
    Strays {
        /// The queue of unrouted messages.
        queue: String,
    },
    /// Not taken now.
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
/// came with, unchanged but for its `user-id`, and removes each only after the broker's confirm. One from a client goes to the queue that its
/// edge admitted it to. Those that nothing in `topology`, the business's own, takes keep their place. `gate` is asked before each message.
/// Uses connections of its own: what one business's messages do to them is nobody else's trouble.
///
/// **Flow.** As many as are there at the start, one at a time: order counts more than speed here (about 1,000 a second).
/// **Guarantees.** None is lost. One may be there twice if this breaks off between confirm and removal, with the same `message_id`.
/// **Messages that can't be moved.** Properties are not interpreted, so strange ones do no harm. A message that the broker can't give by
/// AMQP 0-9-1 is moved by AMQP 1.0. One that its exchange can't take (the broker fails at it twice, or names it at fault) is *set aside*:
/// published to the business's `dead` with a reason ([`headers::REASON`](wirepost_core::contract::headers::REASON)), and reported as a `rejected` event.
/// **Caveats.** A message whose binding is missing on the broker goes through the alternate exchange again, to the end of the queue: seen,
/// because the queue has not become shorter, and the run stops. A message that another publisher adds at that moment looks the same; so call
/// this when [`apply()`](crate::apply()) has found nothing to do. Do not run two at once for one business.
/// **Cancel safety.** Dropping the future leaves what is at hand unacknowledged; the broker puts it back when the connection ends.
pub async fn move_back(
    endpoint: &Endpoint,
    business: &str,
    topology: &Topology,
    gate: &(dyn Fn() -> bool + Sync),
) -> Result<Moved, Error> {
    let failed = |e: wirepost_amqp::Error| Error::Amqp {
        doing: format!("moving the messages of {} back", names::unrouted(business)),
        cause: e.to_string(),
    };
    Walk::begin(endpoint, business, topology).await.map_err(failed)?.run(gate).await.map_err(failed)
}

/// Which of these businesses have messages in `wirepost.B.unrouted`, and how many. A business without that queue has none.
///
/// Asks the queues themselves, over a few channels at once: about 1,000 in 100 ms.
pub async fn waiting(connection: &Connection, businesses: &[impl AsRef<str>]) -> Result<Vec<(String, u32)>, Error> {
    let businesses: Vec<&str> = businesses.iter().map(AsRef::as_ref).collect();
    let shares = businesses.chunks(businesses.len().div_ceil(WAITING_CHANNELS).max(1));
    let counted = futures_util::future::try_join_all(shares.map(|share| count_share(connection, share)));
    let failed = |cause: String| Error::Amqp { doing: "looking for unrouted messages".to_owned(), cause };
    match timeout(WAITING_TIMEOUT, counted).await {
        Ok(Ok(counts)) => Ok(counts.into_iter().flatten().collect()),
        Ok(Err(e)) => Err(failed(e.to_string())),
        Err(_) => Err(failed(format!("no answer within {WAITING_TIMEOUT:?}"))),
    }
}

async fn count_share(connection: &Connection, businesses: &[&str]) -> lapin::Result<Vec<(String, u32)>> {
    let mut waiting = Vec::new();
    let mut channel = connection.create_channel().await?;
    for &business in businesses {
        match ready(&channel, &names::unrouted(business)).await {
            Ok(0) => {}
            Ok(count) => waiting.push((business.to_owned(), count)),
            // The broker has closed the channel.
            Err(e) if is_not_found(&e) => channel = connection.create_channel().await?,
            Err(e) => return Err(e),
        }
    }
    let _ = channel.close(200, "done".into()).await;
    Ok(waiting)
}

async fn ready(channel: &Channel, queue: &str) -> lapin::Result<u32> {
    let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    Ok(channel.queue_declare(queue.into(), options, FieldTable::default()).await?.message_count())
}
