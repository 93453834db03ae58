//! Messages that general AMQP clients can't decode, or that RabbitMQ can't translate, and a publisher that can send them.

use std::time::Duration;

use anyhow::{Result, bail};
use bytes::{BufMut, Bytes, BytesMut};
use wirepost_amqp::v10::{self, Sent};
use wirepost_amqp::v091::{self, Properties, Property, Published};
use wirepost_rabbitmq::Endpoint;
use wirepost_stream::{BodyKind, Client, Config, Credentials, Event, Start};

/// "订单" in GBK.
pub const GBK: [u8; 4] = [0xb6, 0xa9, 0xb5, 0xa5];

/// How to publish a body.
#[derive(Clone, Debug)]
pub enum Strange {
    /// By AMQP 0-9-1 with this routing key and these properties.
    Classic(Vec<u8>, Properties),
    /// By AMQP 1.0 with these sections in front of the body's; the body is data, or a text (amqp-value).
    Native(Bytes, BodyKind),
}

/// By name: the messages that a stream accepts.
pub fn readable() -> Vec<(&'static str, Strange)> {
    let mut all = Vec::new();
    for (name, property) in [
        ("app_id", Property::AppId),
        ("message_id", Property::MessageId),
        ("correlation_id", Property::CorrelationId),
        ("type", Property::Type),
        ("content_type", Property::ContentType),
        ("content_encoding", Property::ContentEncoding),
        ("cluster_id", Property::ClusterId),
    ] {
        all.push((name, classic(&Properties::default().with_text(property, &GBK))));
    }
    all.push(("routing key", Strange::Classic(GBK.to_vec(), Properties::default().persistent())));
    for (name, table) in [
        ("header name", &b"\x04\xb6\xa9\xb5\xa5I\0\0\0\x01"[..]),
        ("nested arrays", b"\x01aA\0\0\0\x0fA\0\0\0\x0aA\0\0\0\x05I\0\0\0\x01"),
        ("void and empty", b"\x01aV\x00V\x01bS\0\0\0\0\x01cF\0\0\0\0"),
        ("unsigned", b"\x01au\xff\xff\x01bi\xff\xff\xff\xff\x01cB\xff\x01dx\0\0\0\x01\xff"),
    ] {
        all.push((name, classic(&Properties::default().with_table(table))));
    }
    let many: Vec<u8> = (0..300).flat_map(|n| format!("\x04h{n:03}V").into_bytes()).collect();
    all.push(("300 headers", classic(&Properties::default().with_table(&many))));
    for (name, value) in [
        ("uuid", &[&[0x98][..], &[7; 16]].concat()[..]),
        ("char", &[0x73, 0, 0, 0, 0x41]),
        ("decimal32", &[0x74, 0, 0, 0, 1]),
    ] {
        let pair = [&[0xa1, 1, b'k'][..], value].concat();
        let map = [&[0x00, 0x53, 0x74, 0xc1, pair.len() as u8 + 1, 2][..], &pair].concat();
        all.push((name, Strange::Native(map.into(), BodyKind::Data)));
    }
    all
}

/// By name: the messages at which the broker fails when they are published to a stream.
pub fn unmovable() -> Vec<(&'static str, Strange)> {
    let decimal = Properties::default().with_table(b"\x01dD\x02\0\0\0\x07");
    let text = Properties::default().with_text(Property::AppId, &GBK);
    vec![
        ("decimal", classic(&decimal)),
        ("decimal and GBK", classic(&text.with_table(b"\x01dD\x02\0\0\0\x07"))),
        ("reply_to", classic(&Properties::default().with_text(Property::ReplyTo, &GBK))),
        ("type amqp-1.0", classic(&Properties::default().with_text(Property::Type, b"amqp-1.0"))),
        ("decimal that would expire", classic(&decimal.with_text(Property::Expiration, b"600000"))),
    ]
}

fn classic(properties: &Properties) -> Strange {
    Strange::Classic(b"any".to_vec(), properties.persistent())
}

/// Of an AMQP URI.
pub fn endpoint(uri: &str) -> Result<Endpoint> {
    Ok(Endpoint::new(uri.parse()?, None, "test")?)
}

/// Publishes with confirms.
pub struct Publisher {
    classic: v091::Connection,
    native: v10::Connection,
}

impl Publisher {
    /// Two connections.
    pub async fn open(endpoint: &Endpoint) -> Result<Self> {
        let heartbeat = Duration::from_secs(10);
        let mut classic = v091::Connection::open(endpoint, heartbeat).await?;
        classic.confirm().await?;
        Ok(Self { classic, native: v10::Connection::open(endpoint, heartbeat).await? })
    }

    /// Returns after the confirm; errors if no queue takes it.
    pub async fn publish(&mut self, exchange: &str, message: &Strange, body: &[u8]) -> Result<()> {
        match message {
            Strange::Classic(key, properties) => {
                match self.classic.publish(exchange.as_bytes(), key, properties, body).await? {
                    Published::Taken => Ok(()),
                    other => bail!("{other:?}"),
                }
            }
            Strange::Native(sections, kind) => {
                let mut payload = BytesMut::new();
                // Durable.
                payload.put_slice(&[0x00, 0x53, 0x70, 0xc0, 2, 1, 0x41]);
                payload.put_slice(sections);
                let (section, constructor) = if *kind == BodyKind::Value { (0x77, 0xb1) } else { (0x75, 0xb0) };
                payload.put_slice(&[0x00, 0x53, section, constructor]);
                payload.put_u32(body.len() as u32);
                payload.put_slice(body);
                match self.native.send(exchange.as_bytes(), b"any", &payload).await? {
                    Sent::Taken => Ok(()),
                    other => bail!("{other:?}"),
                }
            }
        }
    }
}

/// The first bodies of a stream.
pub async fn stream(uri: &str, name: &str, count: usize) -> Result<Vec<String>> {
    let (user, place) = uri.split_once("://").and_then(|(_, rest)| rest.split_once('@')).unwrap_or_default();
    let (place, vhost) = place.split_once('/').unwrap_or_default();
    let (host, port) = place.split_once(':').unwrap_or_default();
    let (username, password) = user.split_once(':').unwrap_or_default();
    let credentials = Credentials { username: username.to_owned(), password: password.to_owned() };
    let mut config = Config::new(host, port.parse()?, move || credentials.clone());
    vhost.clone_into(&mut config.vhost);
    let client = Client::new(config);
    let mut subscription = client.subscribe(name, Start::First);
    let mut bodies = Vec::new();
    while bodies.len() < count {
        let event = tokio::time::timeout(Duration::from_secs(20), subscription.recv()).await?;
        if let Some(Event::Messages(batch)) = event {
            bodies.extend(batch.iter().map(|message| String::from_utf8_lossy(message.body()).into_owned()));
        }
    }
    Ok(bodies)
}
