//! What the tests of this crate share: streams on a real RabbitMQ, a publisher, a proxy that makes network trouble.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test fails by it")]

use std::time::Duration;

use anyhow::{Context, Result, bail};
use lapin::{
    BasicProperties, Channel, Connection,
    options::{BasicPublishOptions, QueueDeclareOptions, QueueDeleteOptions},
    types::{AMQPValue, FieldTable},
};
use tokio::time::timeout;
use wirepost_stream::{Client, Config, Credentials, Event, Message, Position, Subscription};
use wirepost_testing::broker::{PATIENCE, Vhost};

pub(crate) const USER: &str = "guest";

/// Host and port of `rabbitmq-stream://user:password@host:port`.
pub(crate) fn host_of(uri: &str) -> (String, u16) {
    let rest = uri.rsplit_once("://").map_or(uri, |(_, rest)| rest);
    let rest = rest.rsplit_once('@').map_or(rest, |(_, rest)| rest);
    let (host, port) = rest.split_once('/').map_or(rest, |(host, _)| host).rsplit_once(':').expect("host:port");
    (host.to_owned(), port.parse().expect("a port"))
}

pub(crate) fn credentials() -> Credentials {
    Credentials { username: USER.into(), password: USER.into() }
}

/// Short times, so that a test need not wait long; `host` as of [`host_of`].
pub(crate) fn config(host: (String, u16), vhost: &str) -> Config {
    log();
    let mut config = Config::new(host.0, host.1, credentials);
    vhost.clone_into(&mut config.vhost);
    config.heartbeat = Duration::from_secs(1);
    config.watchdog_interval = Duration::from_secs(1);
    config.backoff = (Duration::from_millis(50), Duration::from_secs(1));
    config
}

/// Shows the library's log with `--nocapture`, filtered by `RUST_LOG`.
pub(crate) fn log() {
    let filter = tracing_subscriber::EnvFilter::from_default_env();
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init();
}

pub(crate) fn client(vhost: &Vhost) -> Client {
    Client::new(config(host_of(&vhost.broker.stream), &vhost.name))
}

/// An AMQP connection to one vhost that declares streams and publishes to them.
pub(crate) struct Publisher {
    _connection: Connection,
    channel: Channel,
}

impl Publisher {
    pub(crate) async fn connect(vhost: &Vhost) -> Result<Self> {
        let (connection, channel) = vhost.channel().await?;
        Ok(Self { _connection: connection, channel })
    }

    pub(crate) async fn declare(&self, stream: &str) -> Result<()> {
        self.declare_with(stream, &[]).await
    }

    /// With limits such as `x-max-length-bytes`.
    pub(crate) async fn declare_with(&self, stream: &str, limits: &[(&str, i64)]) -> Result<()> {
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), AMQPValue::LongString("stream".into()));
        for (name, value) in limits {
            arguments.insert((*name).into(), AMQPValue::LongLongInt(*value));
        }
        let declared = self.channel.queue_declare(stream.into(), QueueDeclareOptions::durable(), arguments).await;
        declared.map(drop).with_context(|| format!("declaring {stream}"))
    }

    pub(crate) async fn delete(&self, stream: &str) -> Result<()> {
        self.channel
            .queue_delete(stream.into(), QueueDeleteOptions::default())
            .await
            .map(drop)
            .context(stream.to_owned())
    }

    /// Publishes in order and waits for all confirms.
    pub(crate) async fn publish<B: AsRef<[u8]>>(
        &self,
        stream: &str,
        bodies: impl IntoIterator<Item = B>,
    ) -> Result<()> {
        self.publish_with(stream, bodies, BasicProperties::default()).await
    }

    pub(crate) async fn publish_with<B: AsRef<[u8]>>(
        &self,
        stream: &str,
        bodies: impl IntoIterator<Item = B>,
        properties: BasicProperties,
    ) -> Result<()> {
        let mut confirms = Vec::new();
        for body in bodies {
            let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
            let publish =
                self.channel.basic_publish("".into(), stream.into(), options, body.as_ref(), properties.clone());
            confirms.push(publish.await?);
        }
        for confirm in confirms {
            match confirm.await? {
                lapin::Confirmation::Ack(None) => {}
                other => bail!("publish to {stream}: {other:?}"),
            }
        }
        Ok(())
    }

    /// Publishes the numbers as text.
    pub(crate) async fn numbers(&self, stream: &str, numbers: std::ops::Range<u64>) -> Result<()> {
        self.publish(stream, numbers.map(|n| n.to_string())).await
    }
}

/// The next event; fails after [`PATIENCE`].
pub(crate) async fn event(subscription: &mut Subscription) -> Event {
    let event = timeout(PATIENCE, subscription.recv()).await.expect("an event in time");
    event.expect("the client is open")
}

/// Waits for the next attachment; messages before it are an error.
pub(crate) async fn attached(subscription: &mut Subscription) -> Option<Position> {
    loop {
        match event(subscription).await {
            Event::Attached { position, .. } => return position,
            Event::Down { .. } => {}
            other => panic!("expected an attachment, got {other:?}"),
        }
    }
}

/// Collects `count` messages, without malformed ones. Outages in between are fine, gaps and resets are not.
pub(crate) async fn take(subscription: &mut Subscription, count: usize) -> Vec<Message> {
    let mut messages = Vec::new();
    while messages.len() < count {
        match event(subscription).await {
            Event::Messages(batch) => messages.extend(batch.iter().filter(|m| !m.is_malformed())),
            Event::Attached { .. } | Event::Down { .. } => {}
            other => panic!("after {} of {count} messages: {other:?}", messages.len()),
        }
    }
    messages
}

/// Bodies that are numbers.
pub(crate) fn numbers(messages: &[Message]) -> Vec<u64> {
    messages.iter().map(|m| std::str::from_utf8(m.body()).unwrap().parse().unwrap()).collect()
}

/// `a..b` as a list.
pub(crate) fn range(range: std::ops::Range<u64>) -> Vec<u64> {
    range.collect()
}
