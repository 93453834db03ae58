//! Finds the messages of `wirepost.B.unrouted` and moves them back to where their publishers sent them, after the bindings are repaired.

use std::time::Duration;

use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicGetOptions, BasicNackOptions, BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Confirmation, Connection, ErrorKind};
use tokio::time::{sleep, timeout};
use wirepost_core::{
    names,
    topology::{PutAside, Topology},
};

use crate::count::is_not_found;
use crate::report::Error;

/// A broker under an alarm answers nothing until the alarm ends.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(10);
/// The broker does not answer a `nack`, and takes a few milliseconds to act on it.
const PUT_BACK_LOOKS: u32 = 50;
const PUT_BACK_PAUSE: Duration = Duration::from_millis(20);

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
///
/// **Flow.** As many as are there at the start, one at a time: order counts more than speed here (about 1,000 a second).
/// **Guarantees.** None is lost. One may be there twice if this breaks off between confirm and removal, with the same `message_id`.
/// **Caveats.** A message whose binding is missing on the broker goes through the alternate exchange again, to the end of the queue: seen,
/// because the queue has not become shorter, and the run stops. A message that another publisher adds at that moment looks the same; so call
/// this when [`apply()`](crate::apply()) has found nothing to do. Do not run two at once for one business.
/// **Cancel safety.** Dropping the future leaves what is at hand unacknowledged; the broker puts it back when the channel closes.
pub async fn move_back(
    connection: &Connection,
    business: &str,
    topology: &Topology,
    gate: &(dyn Fn() -> bool + Sync),
) -> Result<Moved, Error> {
    let queue = names::unrouted(business);
    let failed =
        |e: lapin::Error| Error::Amqp { doing: format!("moving the messages of {queue} back"), cause: e.to_string() };
    let channel = connection.create_channel().await.map_err(failed)?;
    channel.confirm_select(ConfirmSelectOptions::default()).await.map_err(failed)?;
    let count = match ready(&channel, &queue).await {
        Ok(count) => count,
        Err(e) if is_not_found(&e) => return Ok(Moved::default()),
        Err(e) => return Err(failed(e)),
    };
    let mut moved = 0;
    let mut back = Vec::new();
    let mut strays = 0;
    let mut stopped = None;
    for _ in 0..count {
        if !gate() {
            stopped = Some(Stopped::Gate);
            break;
        }
        if back.len() == STRAYS {
            stopped = Some(Stopped::Strays { queue: queue.clone() });
            break;
        }
        let message = channel.basic_get(queue.as_str().into(), BasicGetOptions::default()).await.map_err(failed)?;
        let Some(message) = message else { break };
        let message = message.delivery;
        let (exchange, routing_key) = (message.exchange.to_string(), message.routing_key.to_string());
        let ways = topology.ways_back(put_aside(&message));
        if ways.is_empty() {
            back.push(message.delivery_tag);
            strays += 1;
            continue;
        }
        let left = ready(&channel, &queue).await.map_err(failed)?;
        match publish_again(&channel, &message, &ways).await {
            Ok(None) => {}
            Ok(Some(reason)) => {
                back.push(message.delivery_tag);
                stopped = Some(Stopped::NotTaken { exchange, routing_key, reason });
                break;
            }
            // No such exchange, or something about this message: the channel is closed, and with it all is put back.
            Err(Unsure::Failed(e))
                if matches!(e.kind(), ErrorKind::ProtocolError(_)) && connection.status().connected() =>
            {
                stopped = Some(Stopped::NotTaken { exchange, routing_key, reason: e.to_string() });
                return Ok(Moved { moved, strays, stopped });
            }
            Err(Unsure::Failed(e)) => return Err(failed(e)),
            Err(Unsure::Late) => {
                // The channel must not be used again: a late confirm would be taken for that of another message.
                return Err(Error::Amqp {
                    doing: format!("moving the messages of {queue} back"),
                    cause: format!("no confirm within {CONFIRM_TIMEOUT:?}"),
                });
            }
        }
        message.ack(BasicAckOptions::default()).await.map_err(failed)?;
        if ready(&channel, &queue).await.map_err(failed)? > left {
            stopped = Some(Stopped::CameBack { queue: queue.clone(), exchange, routing_key });
            break;
        }
        moved += 1;
    }
    put_back(&channel, &queue, &back).await.map_err(failed)?;
    let _ = channel.close(200, "done".into()).await;
    Ok(Moved { moved, strays, stopped })
}

/// Nobody knows whether a message was taken.
enum Unsure {
    Failed(lapin::Error),
    Late,
}

/// Publishes a message as it came, once for each way; why it was not taken, if so. A repeat after that may send it some ways twice.
async fn publish_again(channel: &Channel, message: &Delivery, ways: &[Option<&str>]) -> Result<Option<String>, Unsure> {
    for way in ways {
        if let Some(reason) = publish_one(channel, message, *way).await? {
            return Ok(Some(reason));
        }
    }
    Ok(None)
}

async fn publish_one(channel: &Channel, message: &Delivery, queue: Option<&str>) -> Result<Option<String>, Unsure> {
    let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    let (exchange, routing_key) = (message.exchange.clone(), message.routing_key.clone());
    let properties = without_user(&message.properties);
    let properties = match queue {
        Some(queue) => for_queue(properties, queue),
        None => properties,
    };
    let publish =
        async { channel.basic_publish(exchange, routing_key, options, &message.data, properties).await?.await };
    match timeout(CONFIRM_TIMEOUT, publish).await {
        Ok(Ok(Confirmation::Ack(None))) => Ok(None),
        Ok(Ok(Confirmation::Ack(Some(returned)) | Confirmation::Nack(Some(returned)))) => {
            Ok(Some(returned.reply_text.to_string()))
        }
        Ok(Ok(_)) => Ok(Some("refused".to_owned())),
        Ok(Err(e)) => Err(Unsure::Failed(e)),
        Err(_) => Err(Unsure::Late),
    }
}

/// What its headers say of where it belongs.
fn put_aside(message: &Delivery) -> PutAside<'_> {
    let header = |name: &str| {
        let headers = message.properties.headers().as_ref()?;
        match headers.inner().get(name)? {
            AMQPValue::LongString(text) => std::str::from_utf8(text.as_bytes()).ok(),
            _ => None,
        }
    };
    PutAside {
        exchange: message.exchange.as_str(),
        routing_key: message.routing_key.as_str(),
        queue: header(names::QUEUE_HEADER),
        from_client_type: header("from-client-type"),
        body: &message.data,
    }
}

/// As an edge sends what is for one queue. The broker has taken the first header off.
fn for_queue(properties: BasicProperties, queue: &str) -> BasicProperties {
    let mut headers = properties.headers().clone().unwrap_or_default();
    let key = AMQPValue::LongString(names::queue_key(queue).into());
    headers.insert(names::BLIND_COPY_HEADER.into(), AMQPValue::FieldArray(vec![key].into()));
    headers.insert(names::QUEUE_HEADER.into(), AMQPValue::LongString(queue.into()));
    properties.with_headers(headers)
}

/// The broker takes a `user-id` only from that very user (rabbitmq.com/docs/validated-user-id), and we are another.
fn without_user(properties: &BasicProperties) -> BasicProperties {
    let p = properties.clone();
    if p.user_id().is_none() {
        return p;
    }
    let mut out = BasicProperties::default();
    macro_rules! keep {
        ($($get:ident $with:ident),*) => {
            $(if let Some(value) = p.$get().clone() { out = out.$with(value); })*
        };
    }
    keep!(content_type with_content_type, content_encoding with_content_encoding, headers with_headers);
    keep!(delivery_mode with_delivery_mode, priority with_priority, correlation_id with_correlation_id);
    keep!(reply_to with_reply_to, expiration with_expiration, message_id with_message_id);
    keep!(timestamp with_timestamp, kind with_type, app_id with_app_id, cluster_id with_cluster_id);
    out
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

/// Returns when these messages are really back (bounded): whoever calls again at once must not find the queue empty.
async fn put_back(channel: &Channel, queue: &str, tags: &[u64]) -> lapin::Result<()> {
    if tags.is_empty() {
        return Ok(());
    }
    let without = ready(channel, queue).await? as usize;
    for &tag in tags {
        channel.basic_nack(tag, BasicNackOptions { requeue: true, ..BasicNackOptions::default() }).await?;
    }
    for _ in 0..PUT_BACK_LOOKS {
        if ready(channel, queue).await? as usize >= without + tags.len() {
            break;
        }
        sleep(PUT_BACK_PAUSE).await;
    }
    Ok(())
}
