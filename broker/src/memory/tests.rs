use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use serde_json::json;
use wirepost_core::topology::{Binding, ExchangeKind, Queue};

use super::*;
use crate::{FeedEvent, Position, Record};

const STREAM: &str = "wirepost.pay.stream";
const PUSH: &str = "wirepost.pay.push";
const RECEIVE: &str = "wirepost.pay.receive";
const ORDERS: &str = "wirepost.pay.q.orders";
const UNROUTED: &str = "wirepost.pay.unrouted";

fn topology() -> Topology {
    let exchange = |name: &str, kind, alternate: Option<&str>| Exchange {
        name: name.into(),
        kind,
        alternate: alternate.map(Into::into),
    };
    let queue = |name: &str, kind| Queue {
        name: name.into(),
        kind,
        dead_letter: (name == ORDERS).then(|| "wirepost.pay.dlx".into()),
    };
    let binding = |exchange: &str, queue: &str, key: &str| Binding {
        exchange: exchange.into(),
        queue: queue.into(),
        routing_key: key.into(),
    };
    let policy = |name: &str, definition: serde_json::Value| Policy {
        name: name.into(),
        pattern: names::exact_pattern(name),
        apply_to: "queues",
        priority: 1,
        definition: definition.as_object().unwrap().clone(),
    };
    Topology {
        exchanges: vec![
            exchange("wirepost.pay.dlx", ExchangeKind::Fanout, None),
            exchange(PUSH, ExchangeKind::Fanout, Some("wirepost.pay.push.unrouted")),
            exchange("wirepost.pay.push.unrouted", ExchangeKind::Fanout, None),
            exchange(RECEIVE, ExchangeKind::Topic, Some(UNROUTED)),
            exchange(UNROUTED, ExchangeKind::Fanout, None),
        ],
        queues: vec![
            queue("wirepost.pay.dead", QueueKind::Quorum),
            queue(ORDERS, QueueKind::Quorum),
            queue(STREAM, QueueKind::Stream),
            queue(UNROUTED, QueueKind::Quorum),
        ],
        existing_queues: vec!["legacy".into()],
        bindings: vec![
            binding("wirepost.pay.dlx", "wirepost.pay.dead", ""),
            binding(PUSH, STREAM, ""),
            binding("wirepost.pay.push.unrouted", UNROUTED, ""),
            binding(RECEIVE, ORDERS, "order.*"),
            binding(RECEIVE, ORDERS, "order.#"),
            binding(RECEIVE, ORDERS, &names::queue_key(ORDERS)),
            binding(RECEIVE, "legacy", "old"),
            binding(UNROUTED, UNROUTED, ""),
        ],
        links: vec![],
        intake: vec![],
        open_queues: vec![],
        bounded: vec![],
        policies: vec![
            policy(STREAM, json!({"max-length-bytes": 100})),
            policy(ORDERS, json!({"max-length": 3, "delivery-limit": 1})),
        ],
    }
}

fn broker() -> MemoryBroker {
    let broker = MemoryBroker::new();
    broker.apply(&[topology()]);
    broker
}

fn message(exchange: &str, key: &str, body: &str) -> Publication {
    Publication {
        exchange: exchange.into(),
        routing_key: key.into(),
        queue: None,
        message_id: body.into(),
        body: Bytes::copy_from_slice(body.as_bytes()),
        timestamp: 0,
        headers: vec![],
    }
}

async fn push(broker: &MemoryBroker, body: &str) {
    broker.publish(0, message(PUSH, "m", body)).await.unwrap().unwrap();
}

fn bodies(records: &[Record]) -> Vec<&str> {
    records.iter().map(|record| std::str::from_utf8(&record.body).unwrap()).collect()
}

async fn next_bodies(feed: &mut dyn Feed) -> Vec<String> {
    match feed.recv().await {
        FeedEvent::Records(batch) => {
            let bodies = bodies(&batch.records).into_iter().map(str::to_owned).collect();
            if let Some(done) = batch.done {
                done();
            }
            bodies
        }
        event => panic!("{event:?}"),
    }
}

fn position(broker: &MemoryBroker, offset: u64) -> Position {
    broker.inner.world().streams[STREAM].at(offset).unwrap().position
}

#[tokio::test]
async fn a_shared_message_goes_to_the_businesses_that_its_headers_name_and_the_reader_learns_whose_it_is() {
    let stream = |name: &str| Topology {
        exchanges: vec![Exchange { name: names::push_exchange(name), kind: ExchangeKind::Fanout, alternate: None }],
        queues: vec![Queue { name: names::stream(name), kind: QueueKind::Stream, dead_letter: None }],
        bindings: vec![Binding {
            exchange: names::push_exchange(name),
            queue: names::stream(name),
            routing_key: String::new(),
        }],
        ..Topology::default()
    };
    let share = names::share_exchange("pay");
    let mut pay = stream("pay");
    let alternate = Some(names::push_exchange("pay"));
    pay.exchanges.push(Exchange { name: share.clone(), kind: ExchangeKind::Headers, alternate });
    pay.links = ["pay", "chat"]
        .map(|to| Link {
            from: share.clone(),
            to: names::push_exchange(to),
            header: format!("to-business-{to}"),
            value: "true".into(),
        })
        .into();
    let broker = MemoryBroker::new();
    broker.apply(&[pay, stream("chat"), stream("other")]);
    for (id, to) in [("both", &["pay", "chat"][..]), ("chat", &["chat"]), ("nobody", &["other"]), ("none", &[])] {
        let header = |to: &&str| (format!("to-business-{to}").into(), "true".to_owned());
        let shared = Publication { headers: to.iter().map(header).collect(), ..message(&share, "m", id) };
        broker.publish(0, shared).await.unwrap().unwrap();
    }
    let read = async |business: &str| {
        let page = broker.read(business, 0, 1 << 20).await.unwrap();
        let origins = page.records.iter().map(|record| record.origin.clone()).collect::<Vec<_>>();
        (bodies(&page.records).into_iter().map(str::to_owned).collect::<Vec<_>>(), origins)
    };
    let (own, origins) = read("pay").await;
    assert_eq!(own, ["both", "nobody", "none"], "what is for no one else falls to the business's own pushes");
    assert!(origins[0].business.is_none() && origins[0].shared && origins[0].names("chat"));
    let (copied, origins) = read("chat").await;
    assert_eq!(copied, ["both", "chat"]);
    assert!(origins.iter().all(|origin| origin.business.as_deref() == Some("pay") && origin.names("chat")));
    assert!(read("other").await.0.is_empty());
}

#[tokio::test]
async fn a_topic_reaches_its_queue_once_and_what_no_binding_takes_is_kept() {
    let broker = broker();
    broker.publish(0, message(RECEIVE, "order.new", "a")).await.unwrap().unwrap();
    broker.publish(0, message(RECEIVE, "unknown", "b")).await.unwrap().unwrap();
    broker.publish(0, message(RECEIVE, "old", "c")).await.unwrap().unwrap();
    assert_eq!(broker.queue_len(ORDERS), Some(1));
    assert_eq!(broker.queue_len(UNROUTED), Some(1));
    assert_eq!(broker.queue_len("legacy"), Some(1));
}

#[tokio::test]
async fn a_message_for_one_queue_reaches_it_alone() {
    let broker = broker();
    broker.publish(0, Publication { queue: Some(ORDERS.into()), ..message(RECEIVE, "a", "a") }).await.unwrap().unwrap();
    broker.publish(0, Publication { queue: Some("gone".into()), ..message(RECEIVE, "a", "b") }).await.unwrap().unwrap();
    assert_eq!((broker.queue_len(ORDERS), broker.queue_len("legacy")), (Some(1), Some(0)));
    assert_eq!(broker.queue_len(UNROUTED), Some(1), "its binding is lost");
}

#[tokio::test]
async fn a_missing_exchange_or_queue_is_refused_and_a_full_queue_too() {
    let broker = broker();
    let refused = |result| assert!(matches!(result, Ok(Err(PublishError::Refused(_)))), "{result:?}");
    refused(broker.publish(0, message("nowhere", "a", "a")).await);
    let unrouted = broker.publish(0, message("", "nowhere", "a")).await;
    assert!(matches!(unrouted, Ok(Err(PublishError::Unrouted(_)))), "{unrouted:?}");
    for body in ["1", "2", "3"] {
        broker.publish(0, message("", ORDERS, body)).await.unwrap().unwrap();
    }
    refused(broker.publish(0, message("", ORDERS, "4")).await);
}

#[tokio::test]
async fn an_unacknowledged_message_is_delivered_again_and_ends_in_dead() {
    let broker = broker();
    broker.publish(0, message("", ORDERS, "a")).await.unwrap().unwrap();
    let mut consumer = broker.consume(ORDERS, 1);
    let first = consumer.recv().await;
    assert!(!first.redelivered());
    assert!(consumer.recv().now_or_never().is_none(), "prefetch is 1");
    drop(first);
    let again = consumer.recv().await;
    assert!(again.redelivered());
    drop(again);
    assert_eq!(broker.queue_len(ORDERS), Some(0));
    let dead = broker.consume("wirepost.pay.dead", 1).recv().await;
    assert_eq!(&dead.publication().body[..], b"a");
    dead.ack();
    assert_eq!(broker.queue_len("wirepost.pay.dead"), Some(0));
}

#[tokio::test]
async fn applying_again_keeps_the_messages_of_what_stays() {
    let broker = broker();
    push(&broker, "a").await;
    broker.publish(0, message(RECEIVE, "order.new", "a")).await.unwrap().unwrap();
    let before = position(&broker, 0);
    let mut smaller = topology();
    smaller.existing_queues.clear();
    broker.apply(&[smaller]);
    assert_eq!(position(&broker, 0), before);
    assert_eq!(broker.queue_len(ORDERS), Some(1));
    assert_eq!(broker.queue_len("legacy"), None);
}

#[tokio::test]
async fn a_feed_starts_next_first_or_after_a_position() {
    let broker = broker();
    for body in ["a", "b", "c"] {
        push(&broker, body).await;
    }
    let tail = |start| broker.tail("pay", Delivery::Durable, start);
    let attached = async |feed: &mut Box<dyn Feed>| match feed.recv().await {
        FeedEvent::Attached { position } => position.map(|position| position.offset),
        event => panic!("{event:?}"),
    };
    let mut next = tail(Start::Next);
    assert_eq!(attached(&mut next).await, Some(2));
    let mut first = tail(Start::First);
    assert_eq!(attached(&mut first).await, None);
    assert_eq!(next_bodies(&mut *first).await, ["a", "b", "c"]);
    let mut after = tail(Start::After(position(&broker, 0)));
    assert_eq!(attached(&mut after).await, Some(0));
    assert_eq!(next_bodies(&mut *after).await, ["b", "c"]);
    push(&broker, "d").await;
    assert_eq!(next.lag(), Some(1));
    assert_eq!(next_bodies(&mut *next).await, ["d"]);
    assert_eq!(next.lag(), Some(0));
}

#[tokio::test]
async fn a_recreated_stream_is_a_reset_that_continues_with_its_first_message() {
    let broker = broker();
    push(&broker, "a").await;
    let known = position(&broker, 0);
    let mut feed = broker.tail("pay", Delivery::Durable, Start::First);
    assert!(matches!(feed.recv().await, FeedEvent::Attached { .. }));
    assert_eq!(next_bodies(&mut *feed).await, ["a"]);
    broker.delete_stream(STREAM);
    assert!(matches!(feed.recv().await, FeedEvent::Down { .. }));
    broker.create_stream(STREAM);
    push(&broker, "a").await;
    assert!(matches!(feed.recv().await, FeedEvent::Reset));
    assert!(matches!(feed.recv().await, FeedEvent::Attached { position: None }));
    assert_eq!(next_bodies(&mut *feed).await, ["a"]);
    let mut resumed = broker.tail("pay", Delivery::Durable, Start::After(known));
    assert!(matches!(resumed.recv().await, FeedEvent::Reset));
    assert!(matches!(resumed.recv().await, FeedEvent::Attached { position: None }));
    assert_eq!(next_bodies(&mut *resumed).await, ["a"]);
}

#[tokio::test]
async fn retention_that_overtakes_a_reader_is_a_gap() {
    let broker = broker();
    let mut feed = broker.tail("pay", Delivery::Durable, Start::Next);
    assert!(matches!(feed.recv().await, FeedEvent::Attached { position: None }));
    for number in 0..30 {
        push(&broker, &format!("{number:010}")).await;
    }
    assert!(matches!(feed.recv().await, FeedEvent::Gap));
    assert!(matches!(feed.recv().await, FeedEvent::Attached { .. }));
    assert_eq!(next_bodies(&mut *feed).await.len(), 10, "100 bytes are kept");
    let piece = broker.read("pay", 3, 25).await.unwrap();
    assert_eq!((piece.first_offset, piece.at_end), (Some(20), false));
    assert_eq!(piece.records.iter().map(|r| r.position.offset).collect::<Vec<_>>(), [20, 21]);
    let beyond = broker.read("pay", 99, 25).await.unwrap();
    assert!(beyond.records.is_empty() && beyond.at_end);
}

#[tokio::test]
async fn a_transient_feed_gets_unacknowledged_records_again() {
    let broker = broker();
    let mut feed = broker.tail("pay", Delivery::Transient, Start::Next);
    assert!(matches!(feed.recv().await, FeedEvent::Attached { .. }));
    push(&broker, "a").await;
    push(&broker, "b").await;
    match feed.recv().await {
        FeedEvent::Records(batch) => assert_eq!(bodies(&batch.records), ["a", "b"]),
        event => panic!("{event:?}"),
    }
    assert_eq!(next_bodies(&mut *feed).await, ["a", "b"]);
    assert!(feed.recv().now_or_never().is_none());
}

#[tokio::test]
async fn a_transient_feed_whose_exchange_was_recreated_reports_a_gap() {
    let broker = broker();
    let mut feed = broker.tail("pay", Delivery::Transient, Start::Next);
    assert!(matches!(feed.recv().await, FeedEvent::Attached { .. }));
    broker.apply(&[]);
    assert!(matches!(feed.recv().await, FeedEvent::Down { .. }));
    broker.apply(&[topology()]);
    assert!(matches!(feed.recv().await, FeedEvent::Gap));
    assert!(matches!(feed.recv().await, FeedEvent::Attached { .. }));
    push(&broker, "a").await;
    assert_eq!(next_bodies(&mut *feed).await, ["a"]);
}

#[tokio::test]
async fn away_and_back_shows_continuity_and_blocked_stops_publishes_alone() {
    let broker = broker();
    push(&broker, "a").await;
    let mut feed = broker.tail("pay", Delivery::Durable, Start::First);
    assert!(matches!(feed.recv().await, FeedEvent::Attached { .. }));
    broker.set_health(Health::Blocked("memory".into()));
    let blocked = broker.publish(0, message(PUSH, "m", "x")).await.unwrap();
    assert!(matches!(blocked, Err(PublishError::Unavailable(_))));
    assert_eq!(next_bodies(&mut *feed).await, ["a"]);
    broker.set_health(Health::Away("down".into()));
    assert!(matches!(feed.recv().await, FeedEvent::Down { .. }));
    assert!(broker.read("pay", 0, 100).await.is_err());
    broker.set_health(Health::Up);
    let event = feed.recv().await;
    assert!(matches!(event, FeedEvent::Attached { position: Some(Position { offset: 0, .. }) }), "{event:?}");
}

#[tokio::test(start_paused = true)]
async fn a_frozen_broker_leaves_the_outcome_open_and_routes_at_the_thaw() {
    let broker = broker();
    let mut feed = broker.tail("pay", Delivery::Durable, Start::Next);
    broker.set_frozen(true);
    let early = broker.publish(0, message(PUSH, "m", "early"));
    assert!(matches!(early.await.unwrap(), Err(PublishError::Unknown(_))));
    let late = broker.publish(0, message(PUSH, "m", "late"));
    assert!(feed.recv().now_or_never().is_none());
    tokio::time::sleep(Duration::from_millis(10)).await;
    broker.set_frozen(false);
    late.await.unwrap().unwrap();
    assert!(matches!(feed.recv().await, FeedEvent::Attached { .. }));
    assert_eq!(broker.read("pay", 0, 100).await.unwrap().records.len(), 2);
}
