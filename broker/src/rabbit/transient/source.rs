//! Where a `Transient` reader's messages come from: its queue, by the protocol that can deliver the next one.

use bytes::Bytes;
use wirepost_amqp::Error;
use wirepost_amqp::v10::{self, Settle};
use wirepost_amqp::v091::{self, Incoming, Property};
use wirepost_rabbitmq::Endpoint;
use wirepost_stream::Sections;

use super::super::{body, link::HEARTBEAT};
use crate::Oddity;

/// Which protocol delivers. RabbitMQ translates each message into it, and fails at some that were published by the other: an application
/// property of type uuid from AMQP 1.0, a header of type decimal from 0-9-1. What was published by the same needs no translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    /// AMQP 0-9-1, as long as nothing speaks against it.
    Classic,
    /// AMQP 1.0.
    Native,
}

impl Protocol {
    pub(super) const fn other(self) -> Self {
        match self {
            Self::Classic => Self::Native,
            Self::Native => Self::Classic,
        }
    }
}

/// Our consumer's tag; it has a channel to itself.
const CONSUMER: &str = "wirepost-edge";

/// A message of the queue.
pub(super) struct Arrival {
    /// What to settle.
    pub(super) tag: u64,
    pub(super) body: Bytes,
    pub(super) oddity: Option<Oddity>,
}

/// A queue that is consumed.
pub(super) struct Source {
    queue: String,
    /// Declares and binds in any case.
    connection: v091::Connection,
    native: Option<Native>,
}

struct Native {
    connection: v10::Connection,
    prefetch: u32,
    /// Delivered and not settled.
    outstanding: u32,
}

impl Source {
    /// Consumes a queue with this many unsettled messages at most.
    pub(super) async fn consume(
        mut connection: v091::Connection,
        endpoint: &Endpoint,
        queue: String,
        protocol: Protocol,
        prefetch: u16,
    ) -> Result<Self, Error> {
        let native = match protocol {
            Protocol::Classic => {
                connection.prefetch(prefetch).await?;
                connection.consume_exclusively(&queue, CONSUMER).await?;
                None
            }
            Protocol::Native => {
                let mut connection = v10::Connection::open(endpoint, HEARTBEAT).await?;
                connection.receive(&queue, prefetch.into()).await?;
                Some(Native { connection, prefetch: prefetch.into(), outstanding: 0 })
            }
        };
        Ok(Self { queue, connection, native })
    }

    /// The next message; `None` if the broker ended the consumer. Cancel safe.
    pub(super) async fn recv(&mut self) -> Result<Option<Arrival>, Error> {
        let Some(native) = &mut self.native else {
            return Ok(match self.connection.recv().await? {
                Incoming::Delivery(message) => Some(of_classic(message)),
                Incoming::Cancelled => None,
            });
        };
        tokio::select! {
            message = native.connection.recv() => {
                let message = message?;
                native.outstanding += 1;
                let (body, oddity) = Sections::parse(&message.payload).map_or_else(
                    |malformed| (Bytes::new(), Some(Oddity::Unreadable(malformed.to_string()))),
                    |sections| body::of(&sections),
                );
                Ok(Some(Arrival { tag: message.delivery_id.into(), body, oddity }))
            }
            // It has no consumer: this waits for its end, and keeps it alive.
            unasked = self.connection.recv() => unasked.map(|_| None),
        }
    }

    /// Settles the messages from the first to the last of these: done, or back into their places.
    pub(super) async fn settle(&mut self, first: u64, last: u64, done: bool) -> Result<(), Error> {
        let Some(native) = &mut self.native else {
            return if done {
                self.connection.ack(last, true).await
            } else {
                self.connection.requeue(last, true).await
            };
        };
        // They are counted by 32 bits there, and wrap.
        let (first, last) = (first as u32, last as u32);
        native.connection.settle(first, last, if done { Settle::Accept } else { Settle::Release }).await?;
        native.outstanding = native.outstanding.saturating_sub(last.wrapping_sub(first).wrapping_add(1));
        native.connection.more(native.prefetch - native.outstanding.min(native.prefetch)).await
    }

    /// From now on so many may be unsettled, more than before.
    pub(super) async fn ease(&mut self, prefetch: u16) -> Result<(), Error> {
        if let Some(native) = &mut self.native {
            native.prefetch = prefetch.into();
            return native.connection.more(native.prefetch - native.outstanding.min(native.prefetch)).await;
        }
        // It holds for consumers to come.
        self.connection.cancel(CONSUMER).await?;
        self.connection.prefetch(prefetch).await?;
        self.connection.consume_exclusively(&self.queue, CONSUMER).await
    }

    /// Binds the queue to the exchange, again.
    pub(super) async fn bind(&mut self, exchange: &str) -> Result<(), Error> {
        self.connection.bind(&self.queue, exchange, "").await
    }
}

/// What a message of AMQP 0-9-1 is to us. Its properties are nobody's business, but for two.
pub(super) fn of_classic(message: v091::Message) -> Arrival {
    let v091::Message { delivery_tag, properties, body, .. } = message;
    // So RabbitMQ marks the bodies of AMQP 1.0 that are not bytes.
    let translated = properties.text(Property::Type).is_some_and(|kind| kind[..] == *b"amqp-1.0");
    if translated && let Ok(sections) = Sections::parse(&body) {
        let (body, oddity) = body::of(&sections);
        return Arrival { tag: delivery_tag, body, oddity };
    }
    let oddity = properties.text(Property::ContentEncoding).and_then(|encoding| body::encoded(&encoding));
    Arrival { tag: delivery_tag, body, oddity }
}
