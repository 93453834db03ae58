//! `wirepost dead` on a real RabbitMQ, next to `wirepost dev --amqp`.

#![allow(clippy::unwrap_used)] // it is all test

use std::{collections::HashSet, time::Duration};

use lapin::{
    BasicProperties, Channel,
    options::{BasicAckOptions, BasicGetOptions, BasicRejectOptions},
    types::{AMQPValue, FieldTable},
};
use serde_json::Value;
use wirepost_amqp::{
    v10::{self, Sent},
    v091::{self, Properties, Property, Published},
};
use wirepost_core::names;
use wirepost_rabbitmq::Endpoint;
use wirepost_testing::broker::{PATIENCE, Vhost, depth, eventually, publish_with};

use crate::support::{Running, folder_with, run, wirepost};

const DEAD: &str = "wirepost.payments.dead";
const QUEUE: &str = "wirepost.payments.q.qr-refresh";
const RECEIVE: &str = "wirepost.payments.receive";

struct Setup {
    vhost: Vhost,
    channel: Channel,
    _connection: lapin::Connection,
    _dev: Running,
    _folder: tempfile::TempDir,
}

impl Setup {
    async fn new() -> Self {
        let vhost = Vhost::create().await.unwrap();
        let folder = folder_with("payments.yaml");
        let (amqp, stream, management) = (vhost.amqp(), vhost.broker.stream.clone(), vhost.broker.management.clone());
        let path = folder.path().to_str().unwrap().to_owned();
        let (mut dev, _) = Running::dev(&[&path, "--amqp", &amqp, "--stream", &stream, "--management", &management]);
        dev.line("broker: payments: topology applied");
        let (connection, channel) = vhost.channel().await.unwrap();
        Self { vhost, channel, _connection: connection, _dev: dev, _folder: folder }
    }

    /// `wirepost dead` with the flags for this broker: exit status, lines of stdout, stderr.
    fn dead(&self, arguments: &[&str]) -> (i32, Vec<String>, String) {
        let amqp = self.vhost.amqp();
        let (status, out, error) =
            run(&[&["dead"][..], arguments, &["--business", "payments", "--amqp", &amqp]].concat());
        (status, out.lines().map(str::to_owned).collect(), error)
    }

    fn listed(&self) -> Vec<Value> {
        let (status, lines, error) = self.dead(&["list", "--json"]);
        assert_eq!(status, 0, "{error}");
        lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn ids(&self) -> Vec<String> {
        self.listed().iter().map(|letter| letter["id"].as_str().unwrap_or("?").to_owned()).collect()
    }

    async fn has(&self, queue: &str, messages: u32) {
        eventually(&format!("{messages} in {queue}"), PATIENCE, async || {
            Ok(depth(&self.channel, queue).await? == messages)
        })
        .await
        .unwrap();
    }

    /// A client's message, which the service rejects.
    async fn refused(&self, ids: impl IntoIterator<Item = String>) {
        for id in ids {
            let mut headers = FieldTable::default();
            headers.insert("from-unique-id".into(), AMQPValue::LongString("bob".into()));
            let properties = BasicProperties::default()
                .with_message_id(id.as_str().into())
                .with_content_type("application/json".into())
                .with_headers(headers);
            let body = format!(r#"{{"id":"{id}","messageType":"qr.refresh","content":{{"qrId":"{id}"}}}}"#);
            publish_with(&self.channel, RECEIVE, &names::queue_key(QUEUE), body.as_bytes(), properties).await.unwrap();
            let message = self.channel.basic_get(QUEUE.into(), BasicGetOptions::default()).await.unwrap().unwrap();
            message.reject(BasicRejectOptions { requeue: false }).await.unwrap();
        }
    }

    /// Consumes a queue; returns the ids of its messages in order.
    async fn drained(&self, queue: &str) -> Vec<String> {
        let mut ids = Vec::new();
        while let Some(message) = self.channel.basic_get(queue.into(), BasicGetOptions::default()).await.unwrap() {
            message.ack(BasicAckOptions::default()).await.unwrap();
            ids.push(message.properties.message_id().as_ref().unwrap().to_string());
        }
        ids
    }

    fn endpoint(&self) -> Endpoint {
        Endpoint::new(self.vhost.amqp().parse().unwrap(), None, "test").unwrap()
    }
}

fn named(ids: &[&str]) -> Vec<String> {
    ids.iter().map(|id| (*id).to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_are_listed_shown_replayed_in_order_and_dropped() {
    let setup = Setup::new().await;
    setup.refused(named(&["m-1", "m-2", "m-3", "m-4"])).await;
    setup.has(DEAD, 4).await;

    let listed = setup.listed();
    assert_eq!(setup.ids(), ["m-1", "m-2", "m-3", "m-4"], "looking changes nothing");
    for (field, expected) in [("messageType", "qr.refresh"), ("queue", QUEUE), ("reason", "rejected")] {
        assert_eq!(listed[0][field], expected, "{listed:?}");
    }
    assert_eq!(listed[0]["count"], 1);
    assert!(listed[0]["time"].as_str().unwrap().starts_with("20"), "{listed:?}");
    let (_, table, _) = setup.dead(&["list", "--limit", "2", "--queue", "qr-refresh"]);
    assert!(table[0].starts_with("ID ") && table[1].starts_with("m-1 ") && table[2].starts_with("m-2 "), "{table:?}");
    assert!(table[3].contains("wirepost.payments.dead 4") && table[3].contains("unrouted 0"), "{table:?}");
    assert_eq!(setup.dead(&["list", "--json", "--queue", "other"]).1, [""; 0]);

    let (_, whole, _) = setup.dead(&["show", "m-2"]);
    let whole = whole.join("\n");
    for part in
        ["id: m-2", "content-type: application/json", "from-unique-id", r#"{"id":"m-2","messageType""#, "rejected"]
    {
        assert!(whole.contains(part), "no {part} in {whole}");
    }
    assert_eq!(setup.dead(&["show", "m-9"]).0, 1);

    assert_eq!(setup.dead(&["replay", "--dry-run", "--limit", "1"]).1[0], format!("would replay m-1 → {QUEUE}"));
    assert_eq!(setup.ids().len(), 4);
    let (status, lines, error) = setup.dead(&["replay", "--id", "m-3"]);
    assert_eq!((status, lines), (0, vec![format!("replayed m-3 → {QUEUE}"), "1 replayed".to_owned()]), "{error}");
    let message = setup.channel.basic_get(QUEUE.into(), BasicGetOptions::default()).await.unwrap().unwrap();
    let headers = message.properties.headers().clone().unwrap();
    let names: Vec<_> = headers.inner().keys().map(ToString::to_string).collect();
    assert_eq!(names, ["from-unique-id"], "the broker's notes are gone, the sender's headers stay");
    assert_eq!(message.properties.message_id().as_ref().unwrap().as_str(), "m-3");
    assert_eq!(message.properties.content_type().as_ref().unwrap().as_str(), "application/json");
    assert_eq!(message.data, br#"{"id":"m-3","messageType":"qr.refresh","content":{"qrId":"m-3"}}"#);
    message.ack(BasicAckOptions::default()).await.unwrap();

    assert_eq!(setup.dead(&["replay", "--limit", "1"]).0, 0);
    assert_eq!(setup.dead(&["replay", "--id", "m-2", "--id", "m-9"]).0, 1, "one of them is not there");
    assert_eq!(setup.drained(QUEUE).await, ["m-1", "m-2"]);
    assert_eq!(setup.ids(), ["m-4"]);

    assert_eq!(setup.dead(&["drop", "--all"]).0, 2, "not without --yes");
    assert_eq!(setup.dead(&["drop"]).0, 2);
    assert_eq!(setup.dead(&["drop", "--id", "m-9"]).0, 1);
    assert_eq!(setup.ids(), ["m-4"]);
    assert_eq!(setup.dead(&["drop", "--id", "m-4"]).1, ["dropped m-4", "1 dropped"]);
    assert!(setup.listed().is_empty());
    assert_eq!(setup.dead(&["replay"]).1, ["0 replayed"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_replay_loses_nothing_and_repeats_at_most_one_message() {
    const MESSAGES: usize = 400;
    let setup = Setup::new().await;
    let sent: Vec<String> = (0..MESSAGES).map(|n| format!("m-{n:03}")).collect();
    setup.refused(sent.clone()).await;
    setup.has(DEAD, MESSAGES as u32).await;
    let amqp = setup.vhost.amqp();
    let mut replay = Running::start(&["dead", "replay", "--business", "payments", "--amqp", &amqp]);
    replay.line("replayed m-010");
    drop(replay); // kill -9
    eventually("all are in one of the two", PATIENCE, async || {
        let (dead, back) = (depth(&setup.channel, DEAD).await?, depth(&setup.channel, QUEUE).await?);
        Ok((dead + back) as usize >= MESSAGES)
    })
    .await
    .unwrap();
    let (back, dead) = (setup.drained(QUEUE).await, setup.drained(DEAD).await);
    assert!(back.len() > 10 && !dead.is_empty(), "it was killed too late to tell: {} back", back.len());
    assert!(back.len() + dead.len() <= MESSAGES + 1, "{} back, {} dead", back.len(), dead.len());
    // The one in progress is behind the others now.
    assert!(back.is_sorted() && dead[..dead.len() - 1].is_sorted(), "order is kept: {back:?} {dead:?}");
    let there: HashSet<_> = back.iter().chain(&dead).cloned().collect();
    assert_eq!(there, sent.into_iter().collect());
}

#[tokio::test(flavor = "multi_thread")]
async fn undecodable_messages_are_listed_and_block_no_others() {
    const GBK: &[u8] = &[0xb6, 0xa9, 0xb5, 0xa5];
    let setup = Setup::new().await;
    setup.refused(named(&["before"])).await;
    // Both expire in the queue immediately, and so die.
    let mut raw = v091::Connection::open(&setup.endpoint(), Duration::from_secs(10)).await.unwrap();
    raw.confirm().await.unwrap();
    let strange = Properties::default()
        .with_text(Property::AppId, GBK)
        .with_text(Property::MessageId, b"strange")
        .with_text(Property::Expiration, b"1")
        .persistent();
    let sent = raw.publish(RECEIVE.as_bytes(), names::queue_key(QUEUE).as_bytes(), &strange, b"{}").await.unwrap();
    assert_eq!(sent, Published::Taken);
    setup.has(DEAD, 2).await;
    let mut amqp10 = v10::Connection::open(&setup.endpoint(), Duration::from_secs(10)).await.unwrap();
    assert_eq!(
        amqp10.send(RECEIVE.as_bytes(), names::queue_key(QUEUE).as_bytes(), &with_uuid()).await.unwrap(),
        Sent::Taken
    );
    setup.has(DEAD, 3).await;
    setup.refused(named(&["after"])).await;
    setup.has(DEAD, 4).await;

    for _ in 0..2 {
        let listed = setup.listed();
        let ids: Vec<_> = listed.iter().filter_map(|letter| letter["id"].as_str()).collect();
        let ids: HashSet<_> = ids.into_iter().collect();
        // Once a connection has ended because of one of them, their order is up to the broker.
        assert_eq!(ids, HashSet::from(["before", "strange", "after"]), "{listed:?}");
        assert_eq!(listed.len(), 4, "{listed:?}");
        let strange = listed.iter().find(|letter| letter["id"] == "strange").unwrap();
        assert_eq!(strange["reason"], "expired");
        assert_eq!(listed.iter().filter(|letter| letter["unreadable"] == true).count(), 1, "{listed:?}");
    }
    let (status, lines, error) = setup.dead(&["replay", "--dry-run"]);
    assert!(status == 1 && error.contains("541"), "{error}");
    assert_eq!(lines.last().unwrap(), "3 would be replayed, 1 stay");
    assert_eq!(setup.dead(&["drop", "--unreadable"]).0, 2, "not without --yes");
    let (status, lines, error) = setup.dead(&["drop", "--unreadable", "--yes"]);
    assert_eq!((status, lines.last().map(String::as_str)), (0, Some("1 dropped")), "{error}");
    let there: HashSet<String> = setup.ids().into_iter().collect();
    assert_eq!(there, named(&["before", "strange", "after"]).into_iter().collect(), "that one alone went");
    let (status, lines, error) = setup.dead(&["replay"]);
    assert_eq!((status, lines.last().map(String::as_str)), (0, Some("3 replayed")), "{error}");
    let mut back = HashSet::new();
    while let Some(message) = raw.get(QUEUE).await.unwrap() {
        let id = message.properties.text(Property::MessageId).unwrap();
        let app_id = message.properties.text(Property::AppId);
        assert_eq!(app_id.as_deref(), (id == b"strange"[..]).then_some(GBK), "as it came");
        assert_eq!(message.properties.as_bytes()[0] & 0x20 == 0, id == b"strange"[..], "it came without headers");
        raw.ack(message.delivery_tag, false).await.unwrap();
        back.insert(String::from_utf8(id.to_vec()).unwrap());
    }
    assert_eq!(back, there);
    assert!(setup.listed().is_empty());
}

/// An AMQP 1.0 message with a TTL of one millisecond and an application property of type uuid, which AMQP 0-9-1 lacks.
fn with_uuid() -> Vec<u8> {
    let mut message = vec![0x00, 0x53, 0x70, 0xc0, 8, 3, 0x41, 0x40, 0x70, 0, 0, 0, 1];
    message.extend([0x00, 0x53, 0x74, 0xc1, 21, 2, 0xa1, 1, b'u', 0x98]);
    message.extend([7; 16]);
    message.extend([0x00, 0x53, 0x75, 0xa0, 2, b'{', b'}']);
    message
}

#[test]
fn missing_and_wrong_arguments_are_reported() {
    let (status, _, error) = run(&["dead", "list"]);
    assert!(status == 1 && error.contains("--access"), "{error}");
    let nowhere = ["dead", "list", "--business", "payments", "--amqp", "amqp://guest:guest@127.0.0.1:9"];
    let (status, _, error) = run(&nowhere);
    assert!(status == 1 && error.contains("cannot connect") && !error.contains("guest:"), "{error}");
    let output = wirepost(&["dead", "list", "--access", "-"]).stdin(std::process::Stdio::null()).output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && error.contains("not the access Secret"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_business_without_queues_differs_from_one_without_dead_letters() {
    let setup = Setup::new().await;
    let amqp = setup.vhost.amqp();
    let (status, _, error) = run(&["dead", "list", "--business", "nobody", "--amqp", &amqp]);
    assert!(status == 1 && error.contains("wirepost.nobody.dead") && error.contains("404"), "{error}");
    let (status, lines, _) = setup.dead(&["list"]);
    assert_eq!(status, 0);
    assert!(lines.len() == 1 && lines[0].contains("wirepost.payments.dead 0"), "{lines:?}");
}
