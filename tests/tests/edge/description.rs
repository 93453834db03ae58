//! The description says the truth: a service and a client that know nothing else reach each other by it, and everything that they get is as
//! it says.

use anyhow::{Context, Result, ensure};
use lapin::options::{BasicAckOptions, BasicPublishOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Confirmation};
use serde_json::{Value, json};
use wirepost_core::names;
use wirepost_testing::broker::{consume, next};
use wirepost_testing::edge::Edge;
use wirepost_testing::service::{Service, body, header, next_json};
use wirepost_testing::setup::{PAYMENTS, Setup};

struct Description(Value);

impl Description {
    async fn of(edge: &Edge) -> Result<Self> {
        let (status, document) = edge.get("/payments/asyncapi.json", &[]).await?;
        ensure!(status == 200, "{status}: {document}");
        Ok(Self(document))
    }

    /// The address of a channel.
    fn address(&self, channel: &str) -> Result<&str> {
        self.0["channels"][channel]["address"].as_str().with_context(|| format!("no channel {channel}"))
    }

    /// What the AMQP binding of a channel says of its exchange or queue.
    fn amqp(&self, channel: &str) -> Result<&Value> {
        let binding = &self.0["channels"][channel]["bindings"]["amqp"];
        let kind = if binding["is"] == "queue" { "queue" } else { "exchange" };
        binding.get(kind).with_context(|| format!("{channel} has no AMQP binding"))
    }

    fn name(&self, channel: &str) -> Result<&str> {
        self.amqp(channel)?["name"].as_str().context("no name")
    }

    /// The example of a message.
    fn example(&self, message: &str) -> Result<Value> {
        let example = &self.0["components"]["messages"][message]["examples"][0]["payload"];
        ensure!(!example.is_null(), "no example of {message}");
        Ok(example.clone())
    }

    /// Whether this is what the description says of the message.
    fn check(&self, message: &str, part: &str, instance: &Value) -> Result<()> {
        let schema = json!({
            "$schema": "http://json-schema.org/draft-07/schema#",
            "components": self.0["components"],
            "allOf": [{"$ref": format!("#/components/messages/{message}/{part}")}],
        });
        let schema = jsonschema::options().offline().build(&schema)?;
        let error = schema.validate(instance).err().map(|error| error.to_string());
        ensure!(error.is_none(), "{message}, {part}: {error:?}: {instance}");
        Ok(())
    }

    /// Publishes as the description says: to the exchange of a channel, as the binding of an operation.
    async fn publish(&self, on: &Channel, channel: &str, operation: &str, message: &Value) -> Result<()> {
        let how = &self.0["operations"][operation]["bindings"]["amqp"];
        let properties =
            BasicProperties::default().with_delivery_mode(how["deliveryMode"].as_u64().context("no mode")? as u8);
        let options =
            BasicPublishOptions { mandatory: how["mandatory"] == json!(true), ..BasicPublishOptions::default() };
        let (exchange, key, body) = (self.name(channel)?, self.address(channel)?, message.to_string());
        let confirm = on.basic_publish(exchange.into(), key.into(), options, body.as_bytes(), properties);
        let confirm = confirm.await?.await?;
        ensure!(matches!(confirm, Confirmation::Ack(None)), "{channel}: {confirm:?}");
        Ok(())
    }
}

#[tokio::test]
async fn who_follows_the_description_sends_and_gets_everything() -> Result<()> {
    let setup = Setup::new(&[PAYMENTS]).await?;
    let edge = setup.edge("e1").start().await?;
    let described = Description::of(&edge).await?;
    let service = Service::at(&setup.service_amqp("payments").await?, "payments").await?;

    // The token call and the first frame.
    let call = |channel| described.address(channel);
    let (status, token) = edge.get(call("token")?, &[("uniqueId", "alice"), ("clientType", "app")]).await?;
    assert_eq!(status, 200);
    described.check("token.answer", "payload", &token)?;
    let mut alice = edge.client("alice", "app").connect().await?;
    described.check("control.welcome", "payload", &alice.welcome)?;

    // A push by AMQP and one by HTTP.
    let push = described.example("payment.completed.pushed")?;
    described.publish(&service.channel, "push", "push.amqp", &push).await?;
    let delivered = alice.push().await?;
    described.check("payment.completed.delivered", "payload", &delivered)?;
    assert_eq!(delivered["content"], push["content"]);
    assert_eq!(call("messages")?, "/payments/websocket/messages");
    let (status, answer) = edge.post(&push).await?;
    assert_eq!(status, 200, "{answer}");
    described.check("push.answer", "payload", &answer)?;
    described.check("payment.completed.delivered", "payload", &alice.push().await?)?;
    let (_, answers) = edge.post(&json!([push, {"messageType": "payment.completed"}])).await?;
    described.check("push.answers", "payload", &answers)?;
    alice.push().await?;

    // A client's message, for the queue and for another client.
    let mut page = edge.client("bob", "h5").connect().await?;
    page.send(&described.example("qr.refresh.sent")?).await?;
    described.check("control.ack", "payload", &page.answer().await?)?;
    let mut queue = consume(&service.channel, described.name("queue.qr-refresh")?, 1).await?;
    let delivery = next(&mut queue).await?;
    described.check("qr.refresh.queued", "payload", &body(&delivery)?)?;
    let headers: serde_json::Map<_, _> = ["message-type", "from-unique-id", "from-client-type", "queue"]
        .into_iter()
        .filter_map(|name| Some((name.to_owned(), header(&delivery, name)?.into())))
        .collect();
    described.check("qr.refresh.queued", "headers", &headers.into())?;
    delivery.ack(BasicAckOptions::default()).await?;
    page.send(&json!({"id": "wrong", "messageType": "qr.refresh", "content": {}})).await?;
    described.check("control.nack", "payload", &page.answer().await?)?;
    let mut at_browser = edge.client("alice", "h5").connect().await?;
    let mut share = described.example("cart.share.sent")?;
    share["id"] = "shared".into();
    alice.send_acked(&share).await?;
    described.check("cart.share.delivered", "payload", &at_browser.push().await?)?;

    // Control frames of the client.
    for (frame, answer) in [("control.ping", "pong"), ("control.refresh", "error"), ("control.received", "error")] {
        page.send(&described.example(frame)?).await?;
        described.check(&format!("control.{answer}"), "payload", &page.control(answer).await?)?;
    }

    // Events, bound as the description says.
    let events = names::events_queue("payments", "described");
    let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    service.channel.queue_declare(events.as_str().into(), options, quorum()).await?;
    for event in described.0["channels"]["events"]["parameters"]["event"]["enum"].as_array().context("no events")? {
        let (exchange, key) = (described.name("events")?, event.as_str().context("no name")?);
        let (queue, table) = (events.as_str().into(), FieldTable::default());
        let bound = service.channel.queue_bind(queue, exchange.into(), key.into(), QueueBindOptions::default(), table);
        bound.await?;
    }
    let mut told = consume(&service.channel, &events, 10).await?;
    let late = edge.client("late", "app").connect().await?;
    late.leave().await?;
    described.publish(&service.channel, "push", "push.amqp", &json!({"messageType": "payment.completed"})).await?;
    alice.send(&json!({"op": "received", "ids": [delivered["id"]]})).await?;
    let mut seen = Vec::new();
    while seen.len() < 4 {
        let event = next_json(&mut told).await?;
        let name = event["event"].as_str().context("no event")?.to_owned();
        described.check(&format!("event.{name}"), "payload", &event)?;
        seen.push(name);
    }
    seen.sort_unstable();
    assert_eq!(seen, ["connected", "delivered", "disconnected", "rejected"]);
    service.channel.queue_delete(events.as_str().into(), QueueDeleteOptions::default()).await?;

    // Sessions end.
    assert_eq!(call("sessions")?, "/payments/websocket/sessions");
    let (status, revoked) = edge.revoke("payments", &[("uniqueId", "bob")]).await?;
    assert_eq!(status, 200);
    described.check("revoke.answer", "payload", &revoked)?;
    let code = page.close_code().await?;
    let codes = described.0["x-wirepost"]["closeCodes"].as_array().context("no codes")?;
    assert!(codes.iter().any(|one| one["code"] == code), "{code} in {codes:?}");
    Ok(())
}

fn quorum() -> FieldTable {
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), lapin::types::AMQPValue::LongString("quorum".into()));
    arguments
}

/// The broker has exactly the objects that the bindings describe.
#[tokio::test]
async fn exchanges_and_queues_are_as_described() -> Result<()> {
    let setup = Setup::new(&[PAYMENTS]).await?;
    let edge = setup.edge("e1").start().await?;
    let described = Description::of(&edge).await?;
    let vhost = setup.vhost();
    let mut seen = 0;
    for channel in described.0["channels"].as_object().context("no channels")?.keys() {
        let Ok(object) = described.amqp(channel) else { continue };
        let kind = if object.get("type").is_some() { "exchanges" } else { "queues" };
        let name = object["name"].as_str().context("no name")?;
        let actual = vhost.broker.call("GET", &format!("/api/{kind}/{}/{name}", vhost.name), "").await?;
        let actual: Value = serde_json::from_str(&actual)?;
        assert_eq!((&actual["durable"], &actual["auto_delete"]), (&object["durable"], &object["autoDelete"]), "{name}");
        if kind == "exchanges" {
            assert_eq!(actual["type"], object["type"], "{name}");
        }
        seen += 1;
    }
    assert!(seen >= 6, "{seen} objects");
    Ok(())
}
