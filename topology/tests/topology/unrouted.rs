//! What a lost binding puts aside comes back in order, from a real RabbitMQ.

#![allow(clippy::unwrap_used)] // a panic fails the test, also in a helper

use std::sync::atomic::{AtomicU32, Ordering};

use futures_util::StreamExt;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicGetOptions, BasicQosOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel};
use serde_json::json;
use wirepost_core::topology::Topology;
use wirepost_testing::broker::{PATIENCE, Vhost, consume, depth, eventually, key_of, next, publish_for, publish_with};
use wirepost_testing::strange::{self, Publisher, endpoint};
use wirepost_topology::unrouted::{self, Links, Moved, Stopped};

use crate::support::{apply_all, business, route};

const RECEIVE: &str = "wirepost.pay.receive";
const UNROUTED: &str = "wirepost.pay.unrouted";
const ORDER_KEY: &str = "queue wirepost.pay.q.orders";

async fn move_back(vhost: &Vhost, topology: &Topology) -> Moved {
    unrouted::move_back(&endpoint(&vhost.amqp()).unwrap(), "pay", topology, &Links::default(), &|| true).await.unwrap()
}

async fn unbind(channel: &Channel, queue: &str, exchange: &str, key: &str) {
    channel.queue_unbind(queue.into(), exchange.into(), key.into(), FieldTable::default()).await.unwrap();
}

async fn send(channel: &Channel, exchange: &str, key: &str, number: u32) {
    let mut headers = FieldTable::default();
    headers.insert("from-unique-id".into(), AMQPValue::LongString("alice".into()));
    let properties = BasicProperties::default().with_message_id(number.to_string().into()).with_headers(headers);
    publish_with(channel, exchange, key, number.to_string().as_bytes(), properties).await.unwrap();
}

#[tokio::test]
async fn messages_come_back_in_order_unchanged_and_each_once() {
    let vhost = Vhost::create().await.unwrap();
    let topology = business("pay", &json!([route("order.*", "orders")]));
    apply_all(&vhost, &topology).await;
    let (connection, channel) = vhost.channel().await.unwrap();
    unbind(&channel, "wirepost.pay.q.orders", RECEIVE, ORDER_KEY).await;
    unbind(&channel, "wirepost.pay.stream", "wirepost.pay.push", "").await;
    for n in 0..50 {
        send(&channel, RECEIVE, "order.new", n).await;
        send(&channel, "wirepost.pay.push", "", n).await;
    }
    assert_eq!(depth(&channel, UNROUTED).await.unwrap(), 100);
    // The fact that all of this rests on: the message still names the exchange that it was published to.
    let peek = channel.basic_get(UNROUTED.into(), BasicGetOptions::default()).await.unwrap().unwrap();
    assert_eq!((peek.exchange.as_str(), peek.routing_key.as_str()), (RECEIVE, "order.new"));
    peek.reject(lapin::options::BasicRejectOptions { requeue: true }).await.unwrap();
    eventually("the message is back", PATIENCE, || async { Ok(depth(&channel, UNROUTED).await? == 100) })
        .await
        .unwrap();

    assert!(apply_all(&vhost, &topology).await.is_clean());
    assert_eq!(move_back(&vhost, &topology).await, Moved { moved: 100, ..Moved::default() });
    assert_eq!(depth(&channel, UNROUTED).await.unwrap(), 0);
    let mut orders = consume(&channel, "wirepost.pay.q.orders", 100).await.unwrap();
    for n in 0..50 {
        let message = next(&mut orders).await.unwrap();
        assert_eq!(message.data, n.to_string().as_bytes());
        assert_eq!(message.properties.message_id().as_ref().unwrap().as_str(), n.to_string());
        assert!(message.properties.headers().as_ref().unwrap().inner().contains_key("from-unique-id"));
        message.ack(BasicAckOptions::default()).await.unwrap();
    }
    let reader = connection.create_channel().await.unwrap();
    reader.basic_qos(100, BasicQosOptions::default()).await.unwrap();
    let mut first = FieldTable::default();
    first.insert("x-stream-offset".into(), AMQPValue::LongString("first".into()));
    let mut stream = reader
        .basic_consume("wirepost.pay.stream".into(), "reader".into(), BasicConsumeOptions::default(), first)
        .await
        .unwrap();
    for n in 0..50 {
        let message = tokio::time::timeout(PATIENCE, stream.next()).await.unwrap().unwrap().unwrap();
        assert_eq!(message.data, n.to_string().as_bytes());
    }
}

/// A queue's messages by their bodies, the first of which come before the others.
async fn bodies(channel: &Channel, queue: &str, count: usize) -> Vec<lapin::message::Delivery> {
    let mut consumer = consume(channel, queue, 100).await.unwrap();
    let mut all = Vec::new();
    while all.len() < count {
        all.push(next(&mut consumer).await.unwrap());
    }
    all
}

#[tokio::test]
async fn messages_that_general_clients_can_not_read_are_moved_back_in_order() {
    let vhost = Vhost::create().await.unwrap();
    let topology = business("pay", &json!([route("order.*", "orders")]));
    apply_all(&vhost, &topology).await;
    let (_connection, channel) = vhost.channel().await.unwrap();
    unbind(&channel, "wirepost.pay.stream", "wirepost.pay.push", "").await;
    let mut publisher = Publisher::open(&endpoint(&vhost.amqp()).unwrap()).await.unwrap();
    let all = strange::readable();
    // Strays in front, which have to keep their place while what is behind them ends connections.
    send(&channel, "", UNROUTED, 0).await;
    for (name, message) in &all {
        publisher.publish("wirepost.pay.push", message, name.as_bytes()).await.unwrap();
        send(&channel, "wirepost.pay.push", "", 1).await;
    }
    let count = all.len() as u32 * 2;
    assert_eq!(depth(&channel, UNROUTED).await.unwrap(), count + 1);
    apply_all(&vhost, &topology).await;
    assert_eq!(move_back(&vhost, &topology).await, Moved { moved: count, strays: 1, ..Moved::default() });
    assert_eq!(depth(&channel, UNROUTED).await.unwrap(), 1);
    let expected: Vec<_> = all.iter().flat_map(|(name, _)| [(*name).to_owned(), "1".to_owned()]).collect();
    assert_eq!(strange::stream(&vhost.stream(), "wirepost.pay.stream", expected.len()).await.unwrap(), expected);
}

#[tokio::test]
async fn a_message_that_its_stream_can_not_take_is_set_aside_and_reported_and_the_rest_is_moved() {
    let vhost = Vhost::create().await.unwrap();
    let topology = business("pay", &json!([route("order.*", "orders")]));
    apply_all(&vhost, &topology).await;
    let (_connection, channel) = vhost.channel().await.unwrap();
    channel
        .queue_declare("events".into(), lapin::options::QueueDeclareOptions::default(), FieldTable::default())
        .await
        .unwrap();
    let (events, options) = ("wirepost.pay.events", lapin::options::QueueBindOptions::default());
    channel
        .queue_bind("events".into(), events.into(), "rejected".into(), options, FieldTable::default())
        .await
        .unwrap();
    unbind(&channel, "wirepost.pay.stream", "wirepost.pay.push", "").await;
    let mut publisher = Publisher::open(&endpoint(&vhost.amqp()).unwrap()).await.unwrap();
    let all = strange::unmovable();
    send(&channel, "", UNROUTED, 0).await;
    for (name, message) in &all {
        let body = format!(r#"{{"id":"{name}"}}"#);
        publisher.publish("wirepost.pay.push", message, body.as_bytes()).await.unwrap();
        send(&channel, "wirepost.pay.push", "", 1).await;
    }
    apply_all(&vhost, &topology).await;
    let count = all.len() as u32;
    let moved = Moved { moved: count, strays: 1, set_aside: count, ..Moved::default() };
    assert_eq!(move_back(&vhost, &topology).await, moved);
    assert_eq!(depth(&channel, UNROUTED).await.unwrap(), 1);
    // Everybody can read what is in `dead`.
    let dead = bodies(&channel, "wirepost.pay.dead", all.len()).await;
    let events = bodies(&channel, "events", all.len()).await;
    for (((name, _), dead), event) in all.iter().zip(dead).zip(events) {
        assert_eq!(dead.data, format!(r#"{{"id":"{name}"}}"#).as_bytes());
        let headers = dead.properties.headers().as_ref().unwrap().inner();
        let text = |name: &str| headers.get(name).and_then(|value| value.as_long_string()).unwrap().to_string();
        assert_eq!(text("wirepost-exchange"), "wirepost.pay.push");
        assert!(text("wirepost-reason").contains("541"), "{}", text("wirepost-reason"));
        let event: serde_json::Value = serde_json::from_slice(&event.data).unwrap();
        assert_eq!(
            (&event["event"], &event["reason"], &event["id"]),
            (&json!("rejected"), &json!("unmovable"), &json!(name))
        );
    }
}

#[tokio::test]
async fn it_stops_at_a_message_whose_binding_is_still_missing_and_loses_nothing() {
    let vhost = Vhost::create().await.unwrap();
    let topology = business("pay", &json!([route("order.*", "orders")]));
    apply_all(&vhost, &topology).await;
    let (_connection, channel) = vhost.channel().await.unwrap();
    unbind(&channel, "wirepost.pay.q.orders", RECEIVE, ORDER_KEY).await;
    for n in 0..3 {
        send(&channel, RECEIVE, "order.new", n).await;
    }
    for _ in 0..30 {
        // More often than a delivery limit would bear.
        let moved = move_back(&vhost, &topology).await;
        assert_eq!(moved.moved, 0);
        assert!(matches!(&moved.stopped, Some(Stopped::CameBack { exchange, .. }) if exchange == RECEIVE), "{moved:?}");
        assert_eq!(depth(&channel, UNROUTED).await.unwrap(), 3);
    }
}

#[tokio::test]
async fn messages_that_no_route_takes_keep_their_positions_and_delay_no_others() {
    let vhost = Vhost::create().await.unwrap();
    let topology = business("pay", &json!([route("order.*", "orders"), route("old.*", "old")]));
    apply_all(&vhost, &topology).await;
    let (_connection, channel) = vhost.channel().await.unwrap();
    unbind(&channel, "wirepost.pay.q.orders", RECEIVE, ORDER_KEY).await;
    unbind(&channel, "wirepost.pay.q.old", RECEIVE, &key_of("wirepost.pay.q.old")).await;
    // Published past our exchanges, of a route that is gone by now, and of one that is there.
    for n in 0..3 {
        send(&channel, "", UNROUTED, n).await;
        send(&channel, RECEIVE, "old.one", 10 + n).await;
        send(&channel, RECEIVE, "order.new", 100 + n).await;
    }
    let topology = business("pay", &json!([route("order.*", "orders")]));
    apply_all(&vhost, &topology).await;
    assert_eq!(move_back(&vhost, &topology).await, Moved { moved: 3, strays: 6, ..Moved::default() });
    let mut orders = consume(&channel, "wirepost.pay.q.orders", 10).await.unwrap();
    for n in 100..103 {
        assert_eq!(next(&mut orders).await.unwrap().data, n.to_string().as_bytes());
    }
    // More often than a delivery limit would bear; and what comes later is not behind them.
    for _ in 0..30 {
        assert_eq!(move_back(&vhost, &topology).await, Moved { moved: 0, strays: 6, ..Moved::default() });
    }
    let mut left = consume(&channel, UNROUTED, 10).await.unwrap();
    for n in [0, 10, 1, 11, 2, 12] {
        assert_eq!(next(&mut left).await.unwrap().data, n.to_string().as_bytes());
    }
}

/// Two routes take the type. An edge has admitted each message for one queue; an older one has not said for which.
#[tokio::test]
async fn a_message_comes_back_to_the_queues_that_admitted_it_and_to_no_other() {
    let vhost = Vhost::create().await.unwrap();
    let admins = json!({"messageType": "log.admin", "sendType": "ClientToServer", "queue": {"name": "b"},
        "schema": {"type": "object", "required": ["admin"]}});
    let topology = business("pay", &json!([route("log.*", "a"), admins]));
    apply_all(&vhost, &topology).await;
    let (_connection, channel) = vhost.channel().await.unwrap();
    let (a, b) = ("wirepost.pay.q.a", "wirepost.pay.q.b");
    for queue in [a, b] {
        unbind(&channel, queue, RECEIVE, &key_of(queue)).await;
    }
    publish_for(&channel, RECEIVE, "log.admin", a, b"for a").await.unwrap();
    publish_for(&channel, RECEIVE, "log.admin", b, b"for b").await.unwrap();
    let (good, bad) = (br#"{"content":{"admin":1}}"#, br#"{"content":{}}"#);
    for body in [&good[..], bad] {
        publish_with(&channel, RECEIVE, "log.admin", body, BasicProperties::default()).await.unwrap();
    }
    assert!(apply_all(&vhost, &topology).await.is_clean());
    assert_eq!(move_back(&vhost, &topology).await, Moved { moved: 4, ..Moved::default() });
    for (queue, expected) in [(a, vec![&b"for a"[..], good, bad]), (b, vec![b"for b", good])] {
        assert_eq!(depth(&channel, queue).await.unwrap() as usize, expected.len());
        let mut messages = consume(&channel, queue, 10).await.unwrap();
        for body in expected {
            let message = next(&mut messages).await.unwrap();
            assert_eq!((message.data.as_slice(), message.routing_key.as_str()), (body, "log.admin"));
            let headers = message.properties.headers().clone().unwrap();
            assert!(!headers.inner().contains_key("BCC") && headers.inner().contains_key("queue"), "{headers:?}");
        }
    }
}

#[tokio::test]
async fn it_stops_at_a_closed_gate() {
    let vhost = Vhost::create().await.unwrap();
    let topology = business("pay", &json!([route("order.*", "orders")]));
    apply_all(&vhost, &topology).await;
    let (_connection, channel) = vhost.channel().await.unwrap();
    unbind(&channel, "wirepost.pay.q.orders", RECEIVE, ORDER_KEY).await;
    for n in 0..5 {
        send(&channel, RECEIVE, "order.new", n).await;
    }
    apply_all(&vhost, &topology).await;
    let asked = AtomicU32::new(0);
    let gate = || asked.fetch_add(1, Ordering::Relaxed) < 2;
    let moved = unrouted::move_back(&endpoint(&vhost.amqp()).unwrap(), "pay", &topology, &Links::default(), &gate)
        .await
        .unwrap();
    assert_eq!(moved, Moved { moved: 2, stopped: Some(Stopped::Gate), ..Moved::default() });
    assert_eq!(depth(&channel, UNROUTED).await.unwrap(), 3);
}

#[tokio::test]
async fn a_missing_exchange_stops_it_and_the_message_stays() {
    let vhost = Vhost::create().await.unwrap();
    let topology = business("pay", &json!([route("order.*", "orders")]));
    apply_all(&vhost, &topology).await;
    let (_connection, channel) = vhost.channel().await.unwrap();
    unbind(&channel, "wirepost.pay.q.orders", RECEIVE, ORDER_KEY).await;
    send(&channel, RECEIVE, "order.new", 2).await;
    channel.exchange_delete(RECEIVE.into(), lapin::options::ExchangeDeleteOptions::default()).await.unwrap();
    let moved = move_back(&vhost, &topology).await;
    assert!(
        matches!(
            moved,
            Moved { moved: 0, strays: 0, set_aside: 0, waiting: 0, stopped: Some(Stopped::NotTaken { .. }) }
        ),
        "{moved:?}"
    );
    eventually("the message is back", PATIENCE, || async { Ok(depth(&channel, UNROUTED).await? == 1) }).await.unwrap();
    let nobody =
        unrouted::move_back(&endpoint(&vhost.amqp()).unwrap(), "nobody", &topology, &Links::default(), &|| true)
            .await
            .unwrap();
    assert_eq!(nobody, Moved::default());
}

#[tokio::test]
async fn a_message_that_names_its_user_comes_back_too() {
    let vhost = Vhost::create().await.unwrap();
    let topology = business("pay", &json!([route("order.*", "orders")]));
    apply_all(&vhost, &topology).await;
    let (connection, channel) = vhost.channel().await.unwrap();
    unbind(&channel, "wirepost.pay.q.orders", RECEIVE, ORDER_KEY).await;
    // The broker takes this property from that very user only. It was here under another name, such as a rotated one: then nobody can
    // publish it as it is. `guest` stands for it; the operator's connection below is another user's.
    let named = BasicProperties::default().with_user_id("guest".into()).with_message_id("m".into());
    publish_with(&channel, RECEIVE, "order.new", b"{}", named).await.unwrap();
    apply_all(&vhost, &topology).await;

    let (user, permissions) = ("/api/users/mover", format!("/api/permissions/{}/mover", vhost.name));
    vhost.broker.call("PUT", user, r#"{"password":"mover","tags":""}"#).await.unwrap();
    let all = r#"{"configure":".*","write":".*","read":".*"}"#;
    vhost.broker.call("PUT", &permissions, all).await.unwrap();
    drop((connection, channel));
    let uri = vhost.amqp().replace("guest:guest@", "mover:mover@");
    let moved =
        unrouted::move_back(&endpoint(&uri).unwrap(), "pay", &topology, &Links::default(), &|| true).await.unwrap();
    assert_eq!(moved, Moved { moved: 1, ..Moved::default() });
    let afterwards = lapin::Connection::connect(&uri, lapin::ConnectionProperties::default()).await.unwrap();
    let channel = afterwards.create_channel().await.unwrap();
    let mut orders = consume(&channel, "wirepost.pay.q.orders", 1).await.unwrap();
    let message = next(&mut orders).await.unwrap();
    assert_eq!(message.properties.message_id().as_ref().unwrap().as_str(), "m");
    vhost.broker.call("DELETE", user, "").await.unwrap();
}
