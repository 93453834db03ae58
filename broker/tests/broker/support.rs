//! What the tests of the RabbitMQ side share: a topology like a compiled one, and short ways to say what is expected.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use lapin::{
    Channel, ExchangeKind,
    options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions},
    types::{AMQPValue, FieldTable},
};
use prometheus_client::registry::Registry;
use tokio::time::timeout;
use wirepost_broker::{
    Broker, Feed, FeedEvent, Health, Publication, PublishError,
    rabbit::{Config, RabbitBroker},
};
use wirepost_core::contract::marker;
use wirepost_runtime::tasks::Supervisor;
use wirepost_testing::broker::{PATIENCE, TestBroker, Vhost};

pub(crate) const RECEIVE: &str = "wirepost.pay.receive";
pub(crate) const PUSH: &str = "wirepost.pay.push";
pub(crate) const EVENTS: &str = "wirepost.pay.events";
pub(crate) const QUEUE: &str = "wirepost.pay.q.in";
pub(crate) const STREAM: &str = "wirepost.pay.stream";
pub(crate) const EDGE_QUEUE: &str = "wirepost.pay.edge.e1";

/// Exchanges, a queue that takes everything received, a stream that takes everything pushed.
pub(crate) async fn declare(channel: &Channel) -> Result<()> {
    declare_receiving(channel).await?;
    for (name, kind) in [(PUSH, ExchangeKind::Fanout), (EVENTS, ExchangeKind::Topic)] {
        let durable = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
        channel.exchange_declare(name.into(), kind, durable, FieldTable::default()).await?;
    }
    declare_queue(channel, STREAM, "stream").await?;
    bind(channel, STREAM, PUSH, "").await
}

/// What clients send to, without a stream.
pub(crate) async fn declare_receiving(channel: &Channel) -> Result<()> {
    let durable = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
    channel.exchange_declare(RECEIVE.into(), ExchangeKind::Topic, durable, FieldTable::default()).await?;
    declare_queue(channel, QUEUE, "quorum").await?;
    bind(channel, QUEUE, RECEIVE, "#").await
}

pub(crate) async fn declare_queue(channel: &Channel, name: &str, kind: &str) -> Result<()> {
    let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString(kind.into()));
    channel.queue_declare(name.into(), durable, arguments).await?;
    Ok(())
}

pub(crate) async fn bind(channel: &Channel, queue: &str, exchange: &str, key: &str) -> Result<()> {
    let options = QueueBindOptions::default();
    Ok(channel.queue_bind(queue.into(), exchange.into(), key.into(), options, FieldTable::default()).await?)
}

/// An edge's settings for a vhost.
pub(crate) fn config(broker: &TestBroker, vhost: &str) -> Config {
    let mut config = Config::new("e1", format!("{}/{vhost}", broker.amqp));
    let address = broker.stream.rsplit('@').next().unwrap_or_default();
    let (host, port) = address.split_once(':').unwrap();
    config.stream = Some(vec![(host.to_owned(), port.parse().unwrap())]);
    config
}

/// Starts, and waits until publishing works.
pub(crate) async fn start(config: Config) -> Result<RabbitBroker> {
    let broker = RabbitBroker::start(config, &Supervisor::default())?;
    until_health(&broker, PATIENCE, |health| *health == Health::Up).await?;
    Ok(broker)
}

pub(crate) async fn until_health(
    broker: &RabbitBroker,
    limit: Duration,
    wanted: impl Fn(&Health) -> bool,
) -> Result<()> {
    let mut health = broker.health();
    let found = timeout(limit, health.wait_for(&wanted)).await.map(|_| ());
    found.with_context(|| format!("health stayed {:?} for {limit:?}", *broker.health().borrow()))
}

pub(crate) fn message(exchange: &str, key: &str, body: &str) -> Publication {
    Publication {
        exchange: exchange.into(),
        routing_key: key.into(),
        queue: None,
        message_id: format!("id-{body}"),
        body: Bytes::copy_from_slice(body.as_bytes()),
        timestamp: 1_700_000_000_123,
        headers: vec![("message-type".into(), key.to_owned())],
    }
}

/// The outcome of one publish; errors if none comes.
pub(crate) async fn publish(
    broker: &RabbitBroker,
    lane: u64,
    publication: Publication,
) -> Result<Result<(), PublishError>> {
    let confirm = broker.publish(lane, publication);
    Ok(timeout(PATIENCE, confirm).await.context("the publish was not answered")??)
}

pub(crate) async fn next_event(feed: &mut dyn Feed) -> Result<FeedEvent> {
    timeout(PATIENCE, feed.recv()).await.context("the feed sent no event")
}

/// Waits for the next attachment, and returns the events before it as text.
pub(crate) async fn until_attached(feed: &mut dyn Feed) -> Result<Vec<&'static str>> {
    let mut before = Vec::new();
    loop {
        match next_event(feed).await? {
            FeedEvent::Attached { .. } => return Ok(before),
            FeedEvent::Gap => before.push("gap"),
            FeedEvent::Reset => before.push("reset"),
            FeedEvent::Down { .. } => before.push("down"),
            FeedEvent::Records(batch) => bail!("records before attaching: {batch:?}"),
        }
    }
}

/// The next `count` bodies but markers, each batch acknowledged; attachments and outages are passed over, losses are errors.
pub(crate) async fn bodies(feed: &mut dyn Feed, count: usize) -> Result<Vec<String>> {
    let mut bodies = Vec::new();
    while bodies.len() < count {
        match next_event(feed).await.with_context(|| format!("after {bodies:?}"))? {
            FeedEvent::Records(batch) => {
                let all = batch.records.iter().map(|record| String::from_utf8_lossy(&record.body).into_owned());
                bodies.extend(all.filter(|body| !body.contains(marker::BEGIN)));
                if let Some(done) = batch.done {
                    done();
                }
            }
            FeedEvent::Attached { .. } | FeedEvent::Down { .. } => {}
            event => bail!("{event:?} after {bodies:?}"),
        }
    }
    Ok(bodies)
}

/// Closes the edge's connections of that kind by the management API; how many it found.
pub(crate) async fn close_connections(vhost: &Vhost, kind: &str) -> Result<usize> {
    let list = vhost.broker.call("GET", &format!("/api/vhosts/{}/connections", vhost.name), "").await?;
    let list: serde_json::Value = serde_json::from_str(&list)?;
    let mut found = 0;
    for connection in list.as_array().context("no list")? {
        let named = connection["client_properties"]["connection_name"].as_str().unwrap_or_default();
        if named.contains(kind) {
            let name = connection["name"].as_str().context("no name")?;
            let escaped = name.replace(' ', "%20").replace('>', "%3E");
            vhost.broker.call("DELETE", &format!("/api/connections/{escaped}"), "").await?;
            found += 1;
        }
    }
    Ok(found)
}

/// A counter of the broker.
pub(crate) fn counter(broker: &RabbitBroker, name: &str) -> u64 {
    let mut registry = Registry::default();
    broker.register(&mut registry);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    let value = text.lines().find_map(|line| line.strip_prefix(&format!("wirepost_broker_{name} ")));
    value.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("no metric {name} in {text}"))
}
