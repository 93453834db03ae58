//! The judge, with a broker in memory.

use std::{sync::Arc, time::Duration};

use prometheus_client::metrics::gauge::Gauge;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::sync::{CancellationToken, DropGuard};
use wirepost_core::{
    business::WsBusiness,
    compile::{Compiled, compile_one},
    names,
    topology::{Binding, Queue, QueueKind},
};

use super::{
    checkpoint::{Checkpoint, From, Terms, Written},
    ledger::{Ledger, bytes},
    run,
};
use crate::{
    broker::{
        Broker, Health, Position, Publication,
        memory::{MemoryBroker, MemoryConsumer},
    },
    budget::Budget,
    business::Business,
    clock,
    config::settings::Settings,
    metrics::Metrics,
    push::{context::HubContext, followed::Followed, hub::Hub},
};

mod load;

fn checkpoint(term: u64, judge: &str) -> Checkpoint {
    Checkpoint { term, judge: judge.into(), id: format!("{judge} {term}"), from: None }
}

#[test]
fn the_first_of_a_higher_term_judges_and_nobody_else_in_it() {
    let mut terms = Terms::default();
    assert!(!terms.take(checkpoint(0, "looks for the end")) && terms.last().is_none());
    for (term, judge, counts) in
        [(1, "a", true), (1, "b", false), (1, "a", true), (2, "b", true), (1, "a", false), (2, "a", false)]
    {
        assert_eq!(terms.take(checkpoint(term, judge)), counts, "{judge} in term {term}");
    }
    assert_eq!(terms.last().unwrap().judge, "b");
}

#[test]
fn a_checkpoint_has_the_form_that_other_versions_read() {
    let place = Position { offset: 7, fingerprint: u64::MAX }.into();
    let from = Some(From { pushes: Some(place), receipts: Some(place) });
    let text = json!({
        "term": 3, "judge": "i", "checkpoint": "c",
        "from": {"pushes": {"offset": 7, "fingerprint": u64::MAX}, "receipts": {"offset": 7, "fingerprint": u64::MAX}},
    });
    let written = Checkpoint { term: 3, judge: "i".into(), id: "c".into(), from };
    assert_eq!(serde_json::to_value(&written).unwrap(), text);
    let read = Written::read(text.to_string().as_bytes());
    assert!(matches!(read, Some(Written::Checkpoint(read)) if read == written));
    let event = br#"{"event":"delivered","uniqueId":"alice","ids":["a"],"more":1}"#;
    assert!(matches!(Written::read(event), Some(Written::Receipts { ids, .. }) if ids == ["a"]));
    assert!(Written::read(b"{}").is_none() && Written::read(b"garbage").is_none());
}

fn at(offset: u64) -> From {
    let place = Position { offset, fingerprint: 0 }.into();
    From { pushes: Some(place), receipts: Some(place) }
}

fn push(id: &str, due: i64) -> Followed {
    let (unique_id, message_type) = ("alice".to_owned(), "m".to_owned());
    Followed { id: id.into(), unique_id, message_type, within_seconds: 60, offset: 0, due }
}

#[test]
fn a_place_is_kept_until_all_that_was_read_from_it_is_judged() {
    let budget = Budget::new(1 << 20, Gauge::default());
    let mut ledger = Ledger::default();
    let follow = |ledger: &mut Ledger, push: Followed| {
        let room = budget.take("pay", bytes(&push), None).unwrap();
        ledger.follow(push, room);
    };
    ledger.begin(at(1));
    ledger.begin(at(2));
    follow(&mut ledger, push("late", 90));
    ledger.begin(at(3));
    follow(&mut ledger, push("soon", 50));
    follow(&mut ledger, push("received", 50));
    // Given again: its time does not begin again.
    follow(&mut ledger, push("received", 99));
    ledger.begin(at(4));
    ledger.receive("alice", "received");
    ledger.receive("bob", "soon");
    ledger.receive("alice", "of no push");
    assert!(ledger.knows(&push("received", 0)) && ledger.take_due(49, 9) == (vec![], false));
    assert_eq!(ledger.take_due(50, 9), (vec![push("soon", 50)], false));
    assert_eq!(ledger.from(), Some(at(2)));
    assert_eq!(ledger.take_due(99, 1), (vec![push("late", 90)], true));
    assert!(ledger.is_empty());
    assert_eq!(ledger.from(), Some(at(4)));
}

/// Edges of one business, at one broker, with a listener. Times in stream and judge are those of the machine, which do not
/// pass in these tests: `paid` is due at once, `later` never.
struct World {
    broker: MemoryBroker,
    business: Arc<Business>,
    listener: MemoryConsumer,
}

fn listener(business: &str) -> String {
    format!("wirepost.{business}.events.test")
}

fn compiled(business: &str, limits: &Value) -> Compiled {
    let route = |message_type: &str| {
        json!({
            "messageType": message_type, "sendType": "ServerToClient", "to": ["app"], "audience": "Everyone",
            "receipts": true, "receiptsWithinSeconds": 3600,
        })
    };
    let mut plain = route("plain");
    plain.as_object_mut().unwrap().remove("receiptsWithinSeconds");
    let declared: WsBusiness = serde_json::from_value(json!({
        "apiVersion": "wirepost.dev/v1alpha1", "kind": "WsBusiness", "metadata": {"name": business},
        "spec": {"clientTypes": ["app"], "limits": limits, "routes": [route("paid"), route("later"), plain]},
    }))
    .unwrap();
    let mut compiled = compile_one(&declared).unwrap();
    compiled.config.routes[0].receipts_within_seconds = Some(0);
    let queue = listener(business);
    compiled.topology.queues.push(Queue { name: queue.clone(), kind: QueueKind::Quorum, dead_letter: None });
    let exchange = names::events_exchange(business);
    compiled.topology.bindings.push(Binding { exchange, queue, routing_key: "undelivered".into() });
    compiled
}

impl World {
    fn new() -> Self {
        Self::with(&json!({}))
    }

    fn with(limits: &Value) -> Self {
        let compiled = compiled("pay", limits);
        let broker = MemoryBroker::new();
        broker.apply(&[compiled.topology]);
        let business = Arc::new(Business::try_new(compiled.config).unwrap());
        Self { listener: broker.consume(&listener("pay"), 1000), broker, business }
    }

    fn edge(&self) -> Edge {
        let metrics = Arc::new(Metrics::default());
        let broker = Arc::new(self.broker.clone());
        let context = Arc::new(HubContext::new(broker, Arc::clone(&metrics), Settings::default()));
        let hub = Arc::new(Hub::new(Arc::clone(&self.business), context));
        let stop = CancellationToken::new();
        tokio::spawn(stop.clone().run_until_cancelled_owned(run(hub)));
        Edge { metrics, _stop: stop.drop_guard() }
    }

    async fn publish(&self, exchange: String, routing_key: &str, body: &Value) {
        let publication = Publication {
            exchange: exchange.into(),
            routing_key: routing_key.into(),
            queue: None,
            message_id: String::new(),
            body: body.to_string().into(),
            timestamp: clock::now_ms(),
            headers: Vec::new(),
        };
        self.broker.publish(1, publication).await.unwrap().unwrap();
    }

    async fn push(&self, message_type: &str, id: &str, to: &str) {
        let push = json!({"id": id, "messageType": message_type, "toUniqueId": to});
        self.publish(names::push_exchange("pay"), "", &push).await;
    }

    async fn receipt(&self, unique_id: &str, ids: &[&str]) {
        let event = json!({"event": "delivered", "uniqueId": unique_id, "ids": ids});
        self.publish(names::events_exchange("pay"), names::DELIVERED, &event).await;
    }

    /// Ids that are reported in the next seconds.
    async fn reported(&mut self, seconds: u64) -> Vec<String> {
        let until = Instant::now() + Duration::from_secs(seconds);
        let mut ids = Vec::new();
        while let Ok(delivery) = timeout_at(until, self.listener.recv()).await {
            let event: Value = serde_json::from_slice(&delivery.publication().body).unwrap();
            ids.push(format!("{} {}", event["id"].as_str().unwrap(), event["uniqueId"].as_str().unwrap()));
            delivery.ack();
        }
        ids.sort();
        ids
    }
}

struct Edge {
    metrics: Arc<Metrics>,
    _stop: DropGuard,
}

impl Edge {
    /// Has read where the pushes stand.
    async fn judges(&self) {
        while self.metrics.judging.get() == 0 {
            sleep(Duration::from_millis(100)).await;
        }
        sleep(Duration::from_secs(5)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn who_gave_no_receipt_in_time_is_reported_once_and_nobody_else() {
    let mut world = World::new();
    world.push("paid", "from-before", "alice").await;
    let edge = world.edge();
    edge.judges().await;
    world.push("paid", "in-time", "alice").await;
    world.push("paid", "never", "bob").await;
    world.push("paid", "never", "carol").await;
    world.push("paid", "everyone", "*").await;
    world.push("later", "later", "alice").await;
    world.push("plain", "plain", "alice").await;
    world.push("unknown", "unknown", "alice").await;
    world.receipt("alice", &["other", "in-time"]).await;
    world.receipt("alice", &["never"]).await;
    assert_eq!(world.reported(60).await, ["never bob", "never carol"]);
    assert_eq!(edge.metrics.undelivered.get(), 2);
    world.receipt("bob", &["never"]).await;
    assert_eq!(world.reported(60).await, Vec::<String>::new(), "too late, and told already");
}

#[tokio::test(start_paused = true)]
async fn another_edge_goes_on_where_one_died() {
    let mut world = World::new();
    let (first, second) = (world.edge(), world.edge());
    sleep(Duration::from_secs(20)).await;
    let judging = |edge: &Edge| edge.metrics.judging.get();
    assert_eq!(judging(&first) + judging(&second), 1, "one of them");
    let (dies, lives) = if judging(&first) == 1 { (first, second) } else { (second, first) };
    world.push("paid", "received", "alice").await;
    world.push("paid", "never", "alice").await;
    drop(dies);
    world.receipt("alice", &["received"]).await;
    assert_eq!(world.reported(30).await, ["never alice"]);
    assert_eq!((judging(&lives), lives.metrics.judge_gaps.get()), (1, 0));
    // All are away for a while.
    drop(lives);
    world.push("paid", "meanwhile", "alice").await;
    let third = world.edge();
    assert_eq!(world.reported(30).await, ["meanwhile alice"]);
    assert_eq!((judging(&third), third.metrics.judge_gaps.get()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn at_the_bound_the_rest_is_judged_later_and_nothing_is_left_out() {
    let mut world = World::with(&json!({"perEdge": {"memoryBytes": 1_048_576}}));
    let edge = world.edge();
    edge.judges().await;
    let id = |n: usize| format!("{n:0>60}");
    for n in 0..9_000 {
        world.push("paid", &id(n), "alice").await;
    }
    let received: Vec<_> = (0..9_000).filter(|n| n % 3 > 0).map(id).collect();
    for part in received.chunks(250) {
        world.receipt("alice", &part.iter().map(String::as_str).collect::<Vec<_>>()).await;
    }
    let reported = world.reported(120).await;
    let expected: Vec<_> = (0..9_000).step_by(3).map(|n| format!("{} alice", id(n))).collect();
    assert_eq!(reported.len(), expected.len());
    assert_eq!(reported, expected);
    assert!(edge.metrics.judge_held_back.get() >= 2, "{}", edge.metrics.judge_held_back.get());
    assert_eq!(edge.metrics.followed_bytes.get(), 0);
}

#[tokio::test(start_paused = true)]
async fn lost_streams_and_outages_end_no_judging() {
    let mut world = World::new();
    let edge = world.edge();
    edge.judges().await;
    world.broker.set_health(Health::Away("gone".into()));
    sleep(Duration::from_mins(1)).await;
    world.broker.set_health(Health::Up);
    world.push("paid", "after the outage", "alice").await;
    assert_eq!(world.reported(30).await, ["after the outage alice"]);
    assert_eq!(edge.metrics.judge_gaps.get(), 0);
    let streams = [names::receipts_stream("pay"), names::stream("pay")];
    for stream in &streams {
        world.broker.delete_stream(stream);
        world.broker.create_stream(stream);
    }
    world.push("paid", "into a new stream", "alice").await;
    assert_eq!(world.reported(60).await, ["into a new stream alice"]);
    assert!(edge.metrics.judge_gaps.get() >= 2);
}

#[tokio::test(start_paused = true)]
async fn after_the_stream_of_receipts_was_replaced_edges_still_take_turns() {
    let mut world = World::new();
    let (first, second) = (world.edge(), world.edge());
    sleep(Duration::from_secs(20)).await;
    let judging = |edge: &Edge| edge.metrics.judging.get();
    // What waits keeps a place in the stream that goes.
    world.push("later", "open", "alice").await;
    sleep(Duration::from_secs(5)).await;
    let receipts = names::receipts_stream("pay");
    world.broker.delete_stream(&receipts);
    world.broker.create_stream(&receipts);
    sleep(Duration::from_mins(1)).await;
    assert_eq!(judging(&first) + judging(&second), 1, "one of them");
    let (dies, lives) = if judging(&first) == 1 { (first, second) } else { (second, first) };
    drop(dies);
    world.push("paid", "never", "bob").await;
    assert_eq!(world.reported(60).await, ["never bob"]);
    assert_eq!(judging(&lives), 1);
    sleep(Duration::from_mins(1)).await;
    assert_eq!(judging(&lives), 1, "and stays it");
}

#[tokio::test(start_paused = true)]
async fn a_business_that_waits_no_longer_is_judged_no_longer() {
    let mut world = World::new();
    let metrics = Arc::new(Metrics::default());
    let broker = Arc::new(world.broker.clone());
    let context = Arc::new(HubContext::new(broker, Arc::clone(&metrics), Settings::default()));
    let hub = Arc::new(Hub::new(Arc::clone(&world.business), context));
    let edge = Edge { metrics, _stop: CancellationToken::new().drop_guard() };
    let running = tokio::spawn(run(Arc::clone(&hub)));
    edge.judges().await;
    let mut config = world.business.config.clone();
    for route in &mut config.routes {
        route.receipts_within_seconds = None;
    }
    hub.update(Arc::new(Business::try_new(config).unwrap()));
    sleep(Duration::from_secs(1)).await;
    assert_eq!(edge.metrics.judging.get(), 0);
    hub.update(Arc::clone(&world.business));
    world.push("paid", "again", "alice").await;
    assert_eq!(world.reported(60).await, ["again alice"]);
    running.abort();
}
