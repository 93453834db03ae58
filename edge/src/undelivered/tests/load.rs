//! Many businesses on one edge, some of whose streams are slow or can't be read, and what a change of edges repeats.

use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicUsize, Ordering},
};

use futures_util::{FutureExt, future::BoxFuture};
use prometheus_client::registry::Registry;
use tokio::{sync::watch, task::JoinSet};
use wirepost_core::edge_config::Delivery;

use super::*;
use crate::broker::{Confirm, Feed, Page, ReadError, Start};

/// A page of a slow stream takes so long: its replica lags.
const PAGE: Duration = Duration::from_secs(4);

/// The broker in the process; streams of businesses whose names begin with "slow" are slow.
struct Lagging {
    inner: MemoryBroker,
    reads: AtomicUsize,
    most: AtomicUsize,
}

struct Ends<'a>(&'a AtomicUsize);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Broker for Lagging {
    fn publish(&self, lane: u64, publication: Publication) -> Confirm {
        self.inner.publish(lane, publication)
    }

    fn emit(&self, publication: Publication) {
        self.inner.emit(publication);
    }

    fn tail(&self, business: &str, delivery: Delivery, start: Start) -> Box<dyn Feed> {
        self.inner.tail(business, delivery, start)
    }

    fn follow(&self, stream: &str, start: Start) -> Option<Box<dyn Feed>> {
        self.inner.follow(stream, start)
    }

    fn read<'a>(&'a self, business: &'a str, from: u64, max_bytes: usize) -> BoxFuture<'a, Result<Page, ReadError>> {
        async move {
            self.most.fetch_max(self.reads.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
            let _ends = Ends(&self.reads);
            sleep(if business.starts_with("slow") { PAGE } else { Duration::from_millis(20) }).await;
            self.inner.read(business, from, max_bytes).await
        }
        .boxed()
    }

    fn health(&self) -> watch::Receiver<Health> {
        self.inner.health()
    }

    fn register(&self, registry: &mut Registry) {
        self.inner.register(registry);
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        self.inner.close()
    }
}

/// Until its event comes.
async fn told(broker: MemoryBroker, business: String) -> (String, Duration) {
    let begun = Instant::now();
    let push = json!({"id": "p", "messageType": "paid", "toUniqueId": "alice"});
    let publication = Publication {
        exchange: names::push_exchange(&business).into(),
        routing_key: String::new(),
        queue: None,
        message_id: String::new(),
        body: push.to_string().into(),
        timestamp: clock::now_ms(),
        headers: Vec::new(),
    };
    broker.publish(1, publication).await.unwrap().unwrap();
    let mut listener = broker.consume(&listener(&business), 10);
    listener.recv().await.ack();
    (business, begun.elapsed())
}

#[tokio::test(start_paused = true)]
async fn many_businesses_read_a_few_at_a_time_and_slow_ones_hold_up_no_other() {
    let broker = MemoryBroker::new();
    let names: Vec<String> = (0..40).map(|n| format!("{}-{n}", if n % 4 == 0 { "slow" } else { "quick" })).collect();
    let compiled: Vec<_> = names.iter().map(|name| compiled(name, &json!({}))).collect();
    broker.apply(&compiled.iter().map(|compiled| compiled.topology.clone()).collect::<Vec<_>>());
    let lagging = Arc::new(Lagging { inner: broker.clone(), reads: 0.into(), most: 0.into() });
    let metrics = Arc::new(Metrics::default());
    let context = Arc::new(HubContext::new(Arc::clone(&lagging) as _, Arc::clone(&metrics), Settings::default()));
    let mut judges = JoinSet::new();
    for compiled in compiled {
        let business = Arc::new(Business::try_new(compiled.config).unwrap());
        judges.spawn(run(Arc::new(Hub::new(business, Arc::clone(&context)))));
    }
    while metrics.judging.get() < 40 {
        sleep(Duration::from_millis(100)).await;
    }
    // The first round of the slow ones.
    sleep(Duration::from_mins(1)).await;
    for _ in 0..3 {
        let mut all: JoinSet<_> = names.iter().map(|name| told(broker.clone(), name.clone())).collect();
        while let Some(one) = all.join_next().await {
            let (name, took) = one.unwrap();
            let most = Duration::from_secs(if name.starts_with("slow") { 60 } else { 5 });
            assert!(took < most, "{name}: {took:?}");
        }
        assert!(metrics.judge_late.seconds() < 60.0, "{}", metrics.judge_late.seconds());
    }
    assert_eq!(metrics.judging.get(), 40, "each is still judged here");
    assert!(lagging.most.load(Ordering::Relaxed) <= 8, "{}", lagging.most.load(Ordering::Relaxed));
}

#[tokio::test(start_paused = true)]
async fn an_edge_that_can_not_judge_is_late_and_leaves_it_to_another() {
    let mut world = World::new();
    let edge = world.edge();
    edge.judges().await;
    assert!(edge.metrics.judge_late.seconds() < 5.0);
    world.push("later", "later", "alice").await;
    world.broker.delete_stream(&names::stream("pay"));
    sleep(Duration::from_mins(3)).await;
    assert!(edge.metrics.judge_late.seconds() > 100.0, "{}", edge.metrics.judge_late.seconds());
    world.broker.create_stream(&names::stream("pay"));
    world.push("paid", "again", "alice").await;
    assert_eq!(world.reported(90).await, ["again alice"]);
    assert!(edge.metrics.judge_late.seconds() < 5.0, "{}", edge.metrics.judge_late.seconds());
}

#[tokio::test(start_paused = true)]
async fn another_edge_repeats_what_was_reported_since_the_oldest_push_that_waits_and_no_more() {
    let mut world = World::new();
    let first = world.edge();
    first.judges().await;
    let mut reported = async |id: &str| {
        world.push("paid", id, "alice").await;
        assert_eq!(world.reported(10).await, [format!("{id} alice")]);
    };
    reported("before-1").await;
    reported("before-2").await;
    world.push("later", "waits", "alice").await;
    sleep(Duration::from_secs(5)).await;
    let mut reported = async |id: &str| {
        world.push("paid", id, "alice").await;
        assert_eq!(world.reported(10).await, [format!("{id} alice")]);
    };
    reported("since-1").await;
    reported("since-2").await;
    drop(first);
    let second = world.edge();
    second.judges().await;
    world.push("paid", "new", "alice").await;
    let repeated: BTreeSet<String> = world.reported(60).await.into_iter().collect();
    assert_eq!(repeated, ["new alice", "since-1 alice", "since-2 alice"].map(str::to_owned).into());
}
