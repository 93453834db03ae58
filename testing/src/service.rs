//! A business's own service: a plain AMQP publisher and consumer, no SDK.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicPublishOptions, ConfirmSelectOptions, QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties, Consumer};
use serde_json::{Value, json};
use wirepost_core::{contract::headers, names};

use crate::broker::{consume, depth, next, publish, publish_with};
use crate::setup::Setup;

/// Unconfirmed messages of [`Service::push_all`].
const WINDOW: usize = 200;

/// A service with one connection.
#[derive(Debug)]
pub struct Service {
    /// Its connection.
    pub connection: Connection,
    /// A channel that confirms.
    pub channel: Channel,
    business: String,
}

impl Service {
    /// Of the first declared business.
    pub async fn connect(setup: &Setup) -> Result<Self> {
        Self::of(setup, &setup.business()).await
    }

    /// Of any business.
    pub async fn of(setup: &Setup, business: &str) -> Result<Self> {
        let (connection, channel) = setup.vhost().channel().await?;
        Ok(Self { connection, channel, business: business.to_owned() })
    }

    /// With the credentials of an access Secret.
    pub async fn with(secret: &BTreeMap<String, String>) -> Result<Self> {
        let uri = secret.get("uri").context("the Secret has no uri")?;
        Self::at(uri, &secret["business-type"]).await
    }

    /// Of a business, by an AMQP URI with a user of it.
    pub async fn at(uri: &str, business: &str) -> Result<Self> {
        let connection = Connection::connect(uri, ConnectionProperties::default()).await?;
        let channel = connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        Ok(Self { connection, channel, business: business.to_owned() })
    }

    /// Pushes an envelope to clients; returns after the confirm.
    pub async fn push(&self, envelope: &Value) -> Result<()> {
        self.push_bytes(envelope.to_string().as_bytes()).await
    }

    /// The same with any body.
    pub async fn push_bytes(&self, body: &[u8]) -> Result<()> {
        publish(&self.channel, &names::push_exchange(&self.business), "any", body).await
    }

    /// Publishes to the clients of several businesses, each of which a header names; returns after the confirm.
    pub async fn share(&self, envelope: &Value, to: &[&str]) -> Result<()> {
        let mut table = FieldTable::default();
        for business in to {
            let value = AMQPValue::LongString(headers::TO_BUSINESS_VALUE.into());
            table.insert(headers::to_business(business).into(), value);
        }
        let properties = BasicProperties::default().with_headers(table);
        let body = envelope.to_string();
        publish_with(&self.channel, &names::share_exchange(&self.business), "any", body.as_bytes(), properties).await
    }

    /// Pushes many in order; returns after the last confirm.
    pub async fn push_all(&self, envelopes: impl IntoIterator<Item = Value>) -> Result<()> {
        let mut waiting = std::collections::VecDeque::new();
        for envelope in envelopes {
            if waiting.len() == WINDOW {
                confirmed(waiting.pop_front()).await?;
            }
            let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
            let (exchange, body) = (names::push_exchange(&self.business), envelope.to_string());
            let properties = BasicProperties::default().with_delivery_mode(2);
            let confirm = self.channel.basic_publish(
                exchange.as_str().into(),
                "any".into(),
                options,
                body.as_bytes(),
                properties,
            );
            waiting.push_back(confirm.await?);
        }
        while !waiting.is_empty() {
            confirmed(waiting.pop_front()).await?;
        }
        Ok(())
    }

    /// Consumes a route's queue, by its short name, on a channel of its own.
    pub async fn consume(&self, queue: &str, prefetch: u16) -> Result<Consumer> {
        let channel = self.connection.create_channel().await?;
        consume(&channel, &names::route_queue(&self.business, queue), prefetch).await
    }

    /// Messages that wait in a route's queue.
    pub async fn depth(&self, queue: &str) -> Result<u32> {
        depth(&self.channel, &names::route_queue(&self.business, queue)).await
    }

    /// Consumes the business's events of one kind from now on: `connected`, `disconnected`, `delivered`, `rejected`, or `#`.
    pub async fn events(&self, kind: &str) -> Result<Consumer> {
        let channel = self.connection.create_channel().await?;
        let options = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
        let queue = channel.queue_declare("".into(), options, FieldTable::default()).await?.name().clone();
        let exchange = names::events_exchange(&self.business);
        let bind = channel.queue_bind(
            queue.clone(),
            exchange.as_str().into(),
            kind.into(),
            QueueBindOptions::default(),
            FieldTable::default(),
        );
        bind.await?;
        consume(&channel, queue.as_str(), 100).await
    }
}

/// A push of [`PAYMENTS`](crate::setup::PAYMENTS) that addresses one identity and carries a number.
pub fn payment(to: &str, n: u64) -> Value {
    json!({"messageType": "payment.completed", "toUniqueId": to, "content": {"n": n}})
}

/// A delivery's body as JSON.
pub fn body(delivery: &Delivery) -> Result<Value> {
    serde_json::from_slice(&delivery.data).context("a message that is not JSON")
}

/// A delivery's header as text.
pub fn header(delivery: &Delivery, name: &str) -> Option<String> {
    Some(match delivery.properties.headers().as_ref()?.inner().get(name)? {
        AMQPValue::LongString(text) => text.to_string(),
        other => format!("{other:?}"),
    })
}

/// The next delivery's body as JSON, acknowledged.
pub async fn next_json(consumer: &mut Consumer) -> Result<Value> {
    let delivery = next(consumer).await?;
    delivery.ack(BasicAckOptions::default()).await?;
    body(&delivery)
}

async fn confirmed(confirm: Option<lapin::PublisherConfirm>) -> Result<()> {
    let Some(confirm) = confirm else { return Ok(()) };
    match confirm.await? {
        Confirmation::Ack(None) => Ok(()),
        other => bail!("a push was not confirmed: {other:?}"),
    }
}
