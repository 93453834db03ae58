//! Where a `Transient` reader's messages come from: its queue, by the protocol that can deliver the next one.

use bytes::Bytes;
use wirepost_amqp::Error;
use wirepost_amqp::v10::{self, Settle};
use wirepost_amqp::v091::{self, Incoming, Property};
use wirepost_core::{contract::headers, names};
use wirepost_rabbitmq::Endpoint;
use wirepost_stream::Sections;

use super::super::{body, dialer::HEARTBEAT};
use crate::{MessageDefect, Origin};

/// Which protocol delivers. RabbitMQ translates each message into it, and fails at some that were published by the other: an application
/// property of type uuid from AMQP 1.0, a header of type decimal from 0-9-1. What was published by the same needs no translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    /// AMQP 0-9-1, the first choice.
    Amqp091,
    /// AMQP 1.0.
    Amqp10,
}

impl Protocol {
    pub(super) const fn other(self) -> Self {
        match self {
            Self::Amqp091 => Self::Amqp10,
            Self::Amqp10 => Self::Amqp091,
        }
    }
}

/// Our consumer's tag; it has a channel to itself.
const CONSUMER: &str = "wirepost-edge";

/// A message of the queue.
pub(super) struct Delivery {
    /// What to settle.
    pub(super) tag: u64,
    /// Whether it may have been delivered before; `None`: not known.
    pub(super) redelivered: Option<bool>,
    pub(super) body: Bytes,
    pub(super) defect: Option<MessageDefect>,
    pub(super) origin: Origin,
}

/// A queue that is consumed.
pub(super) struct Source {
    business: String,
    queue: String,
    /// Declares and binds, whichever protocol consumes.
    connection: v091::Connection,
    amqp10: Option<Amqp10Consumer>,
}

struct Amqp10Consumer {
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
        business: &str,
        queue: String,
        protocol: Protocol,
        prefetch: u16,
    ) -> Result<Self, Error> {
        let amqp10 = match protocol {
            Protocol::Amqp091 => {
                connection.prefetch(prefetch).await?;
                connection.consume_exclusively(&queue, CONSUMER).await?;
                None
            }
            Protocol::Amqp10 => {
                let mut connection = v10::Connection::open(endpoint, HEARTBEAT).await?;
                connection.receive(&queue, prefetch.into()).await?;
                Some(Amqp10Consumer { connection, prefetch: prefetch.into(), outstanding: 0 })
            }
        };
        Ok(Self { business: business.to_owned(), queue, connection, amqp10 })
    }

    /// The next message; `None` if the broker ended the consumer. Cancel safe.
    pub(super) async fn recv(&mut self) -> Result<Option<Delivery>, Error> {
        let Some(amqp10) = &mut self.amqp10 else {
            return Ok(match self.connection.recv().await? {
                Incoming::Delivery(message) => Some(of_amqp091(&self.business, message)),
                Incoming::Cancelled => None,
            });
        };
        tokio::select! {
            message = amqp10.connection.recv() => {
                let message = message?;
                amqp10.outstanding += 1;
                let ((body, defect), origin) = Sections::parse(&message.payload).map_or_else(
                    |malformed| {
                        let defect = MessageDefect::Unreadable(malformed.to_string());
                        ((Bytes::new(), Some(defect)), Origin::default())
                    },
                    |sections| (body::of(&sections), body::origin(&self.business, &sections)),
                );
                Ok(Some(Delivery { tag: message.delivery_id.into(), redelivered: None, body, defect, origin }))
            }
            // It has no consumer: this keeps it alive and waits for its end.
            unasked = self.connection.recv() => unasked.map(|_| None),
        }
    }

    /// Settles the messages from the first to the last tag: accepts or requeues them.
    pub(super) async fn settle(&mut self, first: u64, last: u64, done: bool) -> Result<(), Error> {
        let Some(amqp10) = &mut self.amqp10 else {
            return if done {
                self.connection.ack(last, true).await
            } else {
                self.connection.requeue(last, true).await
            };
        };
        // They are counted by 32 bits there, and wrap.
        let (first, last) = (first as u32, last as u32);
        amqp10.connection.settle(first, last, if done { Settle::Accept } else { Settle::Release }).await?;
        amqp10.outstanding = amqp10.outstanding.saturating_sub(last.wrapping_sub(first).wrapping_add(1));
        amqp10.connection.more(amqp10.prefetch - amqp10.outstanding.min(amqp10.prefetch)).await
    }

    /// Raises the number of messages that may be unsettled.
    pub(super) async fn ease(&mut self, prefetch: u16) -> Result<(), Error> {
        if let Some(amqp10) = &mut self.amqp10 {
            amqp10.prefetch = prefetch.into();
            return amqp10.connection.more(amqp10.prefetch - amqp10.outstanding.min(amqp10.prefetch)).await;
        }
        // The prefetch applies to new consumers only.
        self.connection.cancel(CONSUMER).await?;
        self.connection.prefetch(prefetch).await?;
        self.connection.consume_exclusively(&self.queue, CONSUMER).await
    }

    /// Binds the queue to the exchange, again, without waiting for the broker.
    pub(super) async fn bind_again(&mut self, exchange: &str) -> Result<(), Error> {
        self.connection.bind_again(&self.queue, exchange, "").await
    }
}

/// A message of AMQP 0-9-1 that `business` reads. Few of its properties matter.
pub(super) fn of_amqp091(business: &str, message: v091::Message) -> Delivery {
    let v091::Message { delivery_tag: tag, redelivered, properties, body, exchange, .. } = message;
    let exchange = String::from_utf8_lossy(&exchange);
    let to =
        if names::is_share_exchange(&exchange) { properties.headers_from(headers::TO_BUSINESS) } else { Vec::new() };
    let origin = Origin::new(business, &exchange, || to.iter().map(|(name, value)| (name.as_str(), value.as_str())));
    let redelivered = Some(redelivered);
    // So RabbitMQ marks the bodies of AMQP 1.0 that are not bytes.
    let translated = properties.text(Property::Type).is_some_and(|kind| kind[..] == *b"amqp-1.0");
    if translated && let Ok(sections) = Sections::parse(&body) {
        let (body, defect) = body::of(&sections);
        return Delivery { tag, redelivered, body, defect, origin };
    }
    let defect = properties.text(Property::ContentEncoding).and_then(|encoding| body::encoded(&encoding));
    Delivery { tag, redelivered, body, defect, origin }
}
