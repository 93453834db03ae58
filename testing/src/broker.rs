//! RabbitMQ for tests: the shared broker that `WIREPOST_TEST_*` names, a vhost for each test, and private brokers that may be killed.
//!
//! `make integration` sets the variables; by hand: `eval "$(tests/services/rabbitmq start main)"`. A test without a broker fails.

use std::fmt;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, anyhow, bail, ensure};
use futures_util::StreamExt;
use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions,
    QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties, Consumer};

mod nodes;
mod private;

pub use nodes::BrokerCluster;
pub use private::PrivateBroker;

pub use crate::wait::{PATIENCE, eventually};

/// A running RabbitMQ 4. Its user is `guest`, its addresses are URIs with user and password and without a vhost.
#[derive(Clone, Debug)]
pub struct TestBroker {
    /// `amqp://…`
    pub amqp: String,
    /// `rabbitmq-stream://…`
    pub stream: String,
    /// `http://…`, without `/api`.
    pub management: String,
    /// `amqps://…`, where the broker has TLS.
    pub tls_amqp: Option<String>,
    /// `rabbitmq-stream+tls://…`, where the broker has TLS.
    pub tls_stream: Option<String>,
    /// `https://…`, without `/api`, where the broker has TLS.
    pub tls_management: Option<String>,
    /// PEM file of the authority that signed the broker's certificate.
    pub tls_ca: Option<PathBuf>,
    /// The node's process, where it is one of this machine.
    pub pid: Option<u32>,
}

impl TestBroker {
    /// The shared broker. Do not stop or freeze it: other tests use it at the same time.
    pub fn from_env() -> Result<Self> {
        Self::from_variables(|name| std::env::var(name).ok()).context(
            "no broker to test with: run `make integration`, or `eval \"$(tests/services/rabbitmq start main)\"` first",
        )
    }

    fn from_variables(get: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let need = |name: &str| get(name).filter(|v| !v.is_empty()).ok_or_else(|| anyhow!("{name} is not set"));
        Ok(Self {
            amqp: need("WIREPOST_TEST_AMQP")?.trim_end_matches('/').to_owned(),
            stream: need("WIREPOST_TEST_STREAM")?.trim_end_matches('/').to_owned(),
            management: need("WIREPOST_TEST_MANAGEMENT")?.trim_end_matches('/').to_owned(),
            tls_amqp: get("WIREPOST_TEST_TLS_AMQP"),
            tls_stream: get("WIREPOST_TEST_TLS_STREAM"),
            tls_management: get("WIREPOST_TEST_TLS_MANAGEMENT"),
            tls_ca: get("WIREPOST_TEST_TLS_CA").map(PathBuf::from),
            pid: get("WIREPOST_TEST_BROKER_PID").and_then(|pid| pid.parse().ok()),
        })
    }

    /// A vhost of this test alone, deleted when dropped.
    pub async fn vhost(&self) -> Result<Vhost> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("test-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        self.call("PUT", &format!("/api/vhosts/{name}"), "{}").await?;
        Ok(Vhost { broker: self.clone(), name })
    }

    /// One call of the management API, `path` from `/api/` on and percent-encoded; the body of its answer.
    ///
    /// Errors on any status but 2xx, with the answer in the message.
    pub async fn call(&self, method: &str, path: &str, body: &str) -> Result<String> {
        let (broker, method, path, body) = (self.clone(), method.to_owned(), path.to_owned(), body.to_owned());
        tokio::task::spawn_blocking(move || broker.call_blocking(&method, &path, &body)).await?
    }

    /// Deletes a user of a test that ends. One that is left is a nuisance, not a failure.
    pub(crate) fn delete_user(&self, name: &str) {
        let _ = self.call_blocking("DELETE", &format!("/api/users/{name}"), "");
    }

    /// The address of the management API without a user.
    pub(crate) fn management_of_anybody(&self) -> String {
        let rest = self.management.rsplit_once('@').map_or(self.management.as_str(), |(_, rest)| rest);
        format!("http://{}", rest.trim_start_matches("http://"))
    }

    // Over a plain socket, so that dropping a vhost needs neither a runtime nor a client.
    fn call_blocking(&self, method: &str, path: &str, body: &str) -> Result<String> {
        let rest = self.management.strip_prefix("http://").context("WIREPOST_TEST_MANAGEMENT must be http://…")?;
        let (user, host) = rest.rsplit_once('@').unwrap_or(("guest:guest", rest));
        let mut socket = TcpStream::connect(host).with_context(|| format!("connecting to {host}"))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_write_timeout(Some(PATIENCE))?;
        write!(
            socket,
            "{method} {path} HTTP/1.0\r\nAuthorization: Basic {}\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{body}",
            base64(user.as_bytes()),
            body.len()
        )?;
        let mut answer = Vec::new();
        socket.read_to_end(&mut answer).with_context(|| format!("{method} {path}"))?;
        let answer = String::from_utf8_lossy(&answer);
        let (head, body) = answer.split_once("\r\n\r\n").with_context(|| format!("{method} {path}: no answer"))?;
        let status = head.lines().next().unwrap_or_default();
        ensure!(status.split(' ').nth(1).is_some_and(|s| s.starts_with('2')), "{method} {path}: {status}: {body}");
        Ok(body.to_owned())
    }
}

/// A vhost of one test, deleted when dropped.
pub struct Vhost {
    /// Where it is.
    pub broker: TestBroker,
    /// Needs no escaping in a URI.
    pub name: String,
}

impl fmt::Debug for Vhost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Vhost({})", self.name)
    }
}

impl Vhost {
    /// One on the shared broker.
    pub async fn create() -> Result<Self> {
        TestBroker::from_env()?.vhost().await
    }

    /// AMQP URI of this vhost.
    pub fn amqp(&self) -> String {
        format!("{}/{}", self.broker.amqp, self.name)
    }

    /// Stream URI of this vhost.
    pub fn stream(&self) -> String {
        format!("{}/{}", self.broker.stream, self.name)
    }

    /// AMQP over TLS to this vhost; the authority is `broker.tls_ca`.
    pub fn tls_amqp(&self) -> Result<String> {
        Ok(format!("{}/{}", self.broker.tls_amqp.as_deref().context("the broker has no TLS")?, self.name))
    }

    /// Streams over TLS in this vhost; the authority is `broker.tls_ca`.
    pub fn tls_stream(&self) -> Result<String> {
        Ok(format!("{}/{}", self.broker.tls_stream.as_deref().context("the broker has no TLS")?, self.name))
    }

    /// A connection, as a business's own service has one.
    pub async fn connect(&self) -> Result<Connection> {
        Connection::connect(&self.amqp(), ConnectionProperties::default())
            .await
            .with_context(|| format!("connecting to {}", self.name))
    }

    /// A connection and a channel of it that confirms.
    pub async fn channel(&self) -> Result<(Connection, Channel)> {
        let connection = self.connect().await?;
        let channel = connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        Ok((connection, channel))
    }
}

impl Drop for Vhost {
    fn drop(&mut self) {
        // A leftover is a nuisance, not a failure: the broker is removed after the run.
        let _ = self.broker.call_blocking("DELETE", &format!("/api/vhosts/{}", self.name), "");
    }
}

/// Publishes as a careful service does: persistent, mandatory, and returns after the broker's confirm.
///
/// Errors when the message was returned (no queue takes it) or refused. The channel must confirm ([`Vhost::channel`]).
pub async fn publish(channel: &Channel, exchange: &str, routing_key: &str, body: &[u8]) -> Result<()> {
    publish_with(channel, exchange, routing_key, body, BasicProperties::default()).await
}

/// [`publish`] with further properties; they are made persistent.
pub async fn publish_with(
    channel: &Channel,
    exchange: &str,
    routing_key: &str,
    body: &[u8],
    properties: BasicProperties,
) -> Result<()> {
    let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    let confirm = channel
        .basic_publish(exchange.into(), routing_key.into(), options, body, properties.with_delivery_mode(2))
        .await?
        .await?;
    match confirm {
        Confirmation::Ack(None) => Ok(()),
        other => bail!("publishing to '{exchange}' with key '{routing_key}': {other:?}"),
    }
}

/// [`publish`] as an edge does with what a client has sent for this queue.
pub async fn publish_for(channel: &Channel, exchange: &str, routing_key: &str, queue: &str, body: &[u8]) -> Result<()> {
    let text = |text: &str| AMQPValue::LongString(text.into());
    let mut headers = FieldTable::default();
    headers.insert("BCC".into(), AMQPValue::FieldArray(vec![text(&key_of(queue))].into()));
    headers.insert("queue".into(), text(queue));
    let properties = BasicProperties::default().with_headers(headers);
    publish_with(channel, exchange, routing_key, body, properties).await
}

/// The key that binds a queue to `receive`.
pub fn key_of(queue: &str) -> String {
    format!("queue {queue}")
}

/// Consumes with manual acknowledgement and a prefetch, as a business's service does.
pub async fn consume(channel: &Channel, queue: &str, prefetch: u16) -> Result<Consumer> {
    channel.basic_qos(prefetch, BasicQosOptions::default()).await?;
    let tag = format!("test-{queue}");
    Ok(channel.basic_consume(queue.into(), tag.into(), BasicConsumeOptions::default(), FieldTable::default()).await?)
}

/// The next delivery, not acknowledged yet. Errors after [`PATIENCE`].
pub async fn next(consumer: &mut Consumer) -> Result<Delivery> {
    let delivery = tokio::time::timeout(PATIENCE, consumer.next()).await.context("no delivery came")?;
    Ok(delivery.context("the consumer ended")??)
}

/// The next delivery's body, acknowledged.
pub async fn next_body(consumer: &mut Consumer) -> Result<Vec<u8>> {
    let delivery = next(consumer).await?;
    delivery.ack(BasicAckOptions::default()).await?;
    Ok(delivery.data)
}

/// How many messages a queue holds ready for delivery: asked of the queue itself, not of the statistics, which are late.
pub async fn depth(channel: &Channel, queue: &str) -> Result<u32> {
    let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    Ok(channel.queue_declare(queue.into(), options, FieldTable::default()).await?.message_count())
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for chunk in bytes.chunks(3) {
        let mut word = [0; 3];
        word[..chunk.len()].copy_from_slice(chunk);
        let word = u32::from_be_bytes([0, word[0], word[1], word[2]]);
        for i in 0..4 {
            let digit = DIGITS[(word >> (18 - 6 * i)) as usize & 63];
            out.push(if i <= chunk.len() { char::from(digit) } else { '=' });
        }
    }
    out
}
