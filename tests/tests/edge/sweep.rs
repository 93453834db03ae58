//! Everything that a user may do with the objects of a vhost, found by trying it.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use lapin::options::{
    BasicCancelOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions,
    ExchangeBindOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties, ExchangeKind};
use serde_json::Value;
use wirepost_testing::setup::Setup;
use wirepost_topology::Access;

/// How RabbitMQ says that a queue has an exclusive consumer.
const IN_USE: &str = "in exclusive use";

/// An object of the vhost.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Object {
    Exchange(String, String),
    Queue(String, String),
}

impl Object {
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Exchange(name, _) | Self::Queue(name, _) => name,
        }
    }
}

pub(crate) async fn objects(setup: &Setup) -> Result<BTreeSet<Object>> {
    let vhost = setup.vhost();
    let text = vhost.broker.call("GET", &format!("/api/definitions/{}", vhost.name), "").await?;
    let definitions: Value = serde_json::from_str(&text)?;
    let of = |list: &str| definitions[list].as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let exchanges = of("exchanges").into_iter().map(|it| Object::Exchange(text(&it["name"]), text(&it["type"])));
    let queues =
        of("queues").into_iter().map(|it| Object::Queue(text(&it["name"]), text(&it["arguments"]["x-queue-type"])));
    let usual = ["amq.direct", "amq.topic", "amq.fanout"].map(|name| {
        let kind = name.trim_start_matches("amq.").to_owned();
        Object::Exchange(name.to_owned(), kind)
    });
    Ok(exchanges.chain(queues).chain(usual).collect())
}

/// Tries everything with everything: what this user may do. `queue`: one that it may declare and bind, `exchange`: one that it may bind to,
/// so that only the other end of a binding decides.
pub(crate) async fn tried(
    uri: &str,
    (queue, exchange): (&str, &str),
    objects: &BTreeSet<Object>,
) -> Result<BTreeSet<(Access, String)>> {
    let connection = Connection::connect(uri, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    let mut options = QueueDeclareOptions { auto_delete: true, ..QueueDeclareOptions::default() };
    channel.queue_declare(queue.into(), options, FieldTable::default()).await.context("not even its own queue")?;
    options.auto_delete = false;
    options.durable = true;
    let none = FieldTable::default;
    let mut allowed = BTreeSet::new();
    for object in objects {
        for access in [Access::Configure, Access::Write, Access::Read] {
            // A refusal ends the channel.
            let channel = connection.create_channel().await?;
            let name = object.name();
            let result = match (object, access) {
                (Object::Exchange(name, kind), Access::Configure) => {
                    let durable = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
                    let kind = ExchangeKind::Custom(kind.clone());
                    channel.exchange_declare(name.as_str().into(), kind, durable, none()).await
                }
                (Object::Exchange(..), Access::Write) => publish_any(&channel, name).await,
                (Object::Exchange(..), Access::Read) => {
                    channel
                        .queue_bind(queue.into(), name.into(), "probe".into(), QueueBindOptions::default(), none())
                        .await
                }
                (Object::Queue(name, kind), Access::Configure) => {
                    let mut arguments = none();
                    arguments.insert("x-queue-type".into(), AMQPValue::LongString(kind.as_str().into()));
                    channel.queue_declare(name.as_str().into(), options, arguments).await.map(drop)
                }
                (Object::Queue(..), Access::Write) => {
                    channel
                        .queue_bind(name.into(), exchange.into(), "probe".into(), QueueBindOptions::default(), none())
                        .await
                }
                (Object::Queue(..), Access::Read) => consume_nothing(&channel, name).await,
            };
            match result {
                Ok(()) => drop(allowed.insert((access, name.to_owned()))),
                Err(error) if refused(&error) => {}
                // It got past the permissions: it exists with other arguments, or is another's at the moment.
                Err(error) if ["PRECONDITION_FAILED", IN_USE].iter().any(|text| error.to_string().contains(text)) => {
                    allowed.insert((access, name.to_owned()));
                }
                Err(error) => return Err(error).with_context(|| format!("{access:?} {object:?}")),
            }
        }
    }
    // It leads into every queue.
    let channel = connection.create_channel().await?;
    let published = publish_any(&channel, "").await;
    ensure!(published.is_err_and(|error| refused(&error)), "it can publish to the default exchange");
    // An exchange could lead another's messages into one of ours.
    let channel = connection.create_channel().await?;
    let bound = channel
        .exchange_bind(exchange.into(), "amq.fanout".into(), "".into(), ExchangeBindOptions::default(), none())
        .await;
    ensure!(bound.is_err_and(|error| refused(&error)), "it can bind exchanges");
    Ok(allowed)
}

fn refused(error: &lapin::Error) -> bool {
    let text = error.to_string();
    text.contains("ACCESS_REFUSED") && !text.contains(IN_USE)
}

async fn publish_any(channel: &Channel, exchange: &str) -> lapin::Result<()> {
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    let options = BasicPublishOptions::default();
    let properties = BasicProperties::default();
    channel.basic_publish(exchange.into(), "probe".into(), options, b"{}", properties).await?.await.map(drop)
}

async fn consume_nothing(channel: &Channel, queue: &str) -> lapin::Result<()> {
    channel.basic_qos(1, BasicQosOptions::default()).await?;
    let options = BasicConsumeOptions::default();
    let consumer = channel.basic_consume(queue.into(), "probe".into(), options, FieldTable::default()).await?;
    channel.basic_cancel(consumer.tag(), BasicCancelOptions::default()).await
}
