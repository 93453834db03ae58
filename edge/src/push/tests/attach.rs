//! What a client gets that comes while the reader is not attached yet, or while it ends.

use std::sync::{Mutex, PoisonError};

use futures_util::{FutureExt, future::BoxFuture};
use prometheus_client::registry::Registry;
use tokio::sync::watch;

use super::{
    waits::{BOUNDS, frame, number},
    *,
};
use crate::broker::{Confirm, Feed, FeedEvent, Health, Page, ReadError, Start};
use crate::push::{entry::Entry, gap::Gap};

type Hook = Box<dyn FnOnce() + Send>;

/// The broker inside the process, whose feeds attach when they are let, and call `at_end` when they are dropped.
#[derive(Clone)]
struct Staged {
    inner: MemoryBroker,
    attaching: Arc<watch::Sender<bool>>,
    at_end: Arc<Mutex<Option<Hook>>>,
}

impl Staged {
    fn new(delivery: Delivery, attaching: bool) -> Self {
        let inner = MemoryBroker::new();
        inner.apply(&[declared_with(delivery).1]);
        Self { inner, attaching: Arc::new(watch::Sender::new(attaching)), at_end: Arc::default() }
    }

    fn push(&self, n: u64) {
        publish(&self.inner, format!(r#"{{"messageType":"n","toUniqueId":"alice","content":{n}}}"#));
    }
}

struct StagedFeed {
    broker: Staged,
    business: String,
    delivery: Delivery,
    start: Start,
    /// Once it was let attach.
    inner: Option<Box<dyn Feed>>,
}

impl Feed for StagedFeed {
    fn recv(&mut self) -> BoxFuture<'_, FeedEvent> {
        async move {
            let attached = self.broker.attaching.subscribe().wait_for(|attaching| *attaching).await.is_ok();
            assert!(attached, "the broker keeps the sender");
            let tail = || self.broker.inner.tail(&self.business, self.delivery, self.start);
            self.inner.get_or_insert_with(tail).recv().await
        }
        .boxed()
    }
}

impl Drop for StagedFeed {
    fn drop(&mut self) {
        let hook = self.broker.at_end.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(hook) = hook {
            hook();
        }
    }
}

impl Broker for Staged {
    fn publish(&self, lane: u64, publication: Publication) -> Confirm {
        self.inner.publish(lane, publication)
    }

    fn emit(&self, publication: Publication) {
        self.inner.emit(publication);
    }

    fn tail(&self, business: &str, delivery: Delivery, start: Start) -> Box<dyn Feed> {
        Box::new(StagedFeed { broker: self.clone(), business: business.into(), delivery, start, inner: None })
    }

    fn read<'a>(&'a self, business: &'a str, from: u64, max_bytes: usize) -> BoxFuture<'a, Result<Page, ReadError>> {
        self.inner.read(business, from, max_bytes)
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

/// Greeted by an edge that does not read yet, a client is told that what was pushed since then may be missing.
async fn greeted_before_the_reader(delivery: Delivery) {
    let broker = Staged::new(delivery, false);
    let edge = Edge::start_with(&broker, 1 << 20, declared_with(delivery).0);
    let (mailbox, _task) = open(&edge, 1, StartAt::Now, BOUNDS);
    let welcome = frame(&mailbox).await;
    assert!(welcome.get("resumed").is_none() && welcome.get("cursor").is_none(), "{welcome}");
    broker.push(0);
    broker.attaching.send_replace(true);
    let gap = frame(&mailbox).await;
    assert_eq!((&gap["op"], &gap["reason"]), (&"gap".into(), &"unread".into()), "{gap}");
    if delivery == Delivery::Durable {
        assert_eq!(frame(&mailbox).await["op"], "position");
    }
    broker.push(1);
    assert_eq!(number(&mailbox).await, 1);
    edge.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_client_without_a_cursor_that_was_greeted_before_the_reader_gets_a_gap() {
    greeted_before_the_reader(Delivery::Durable).await;
}

#[tokio::test(start_paused = true)]
async fn a_transient_client_that_was_greeted_before_the_reader_gets_a_gap() {
    greeted_before_the_reader(Delivery::Transient).await;
}

#[tokio::test(start_paused = true)]
async fn a_transient_client_that_comes_while_the_reader_is_down_is_not_welcomed_as_live() {
    let broker = Staged::new(Delivery::Transient, true);
    let edge = Edge::start_with(&broker, 1 << 20, declared_with(Delivery::Transient).0);
    let (first, _task) = open(&edge, 1, StartAt::Now, BOUNDS);
    assert_eq!(frame(&first).await["resumed"], false);
    broker.inner.set_health(Health::Away("its node is down".into()));
    tokio::time::sleep(Duration::from_millis(1)).await;
    let (second, _task) = open(&edge, 2, StartAt::Now, BOUNDS);
    let welcome = frame(&second).await;
    assert!(welcome.get("resumed").is_none(), "{welcome}");
    broker.inner.set_health(Health::Up);
    assert_eq!(frame(&second).await["op"], "gap");
    broker.push(0);
    assert_eq!(number(&second).await, 0);
    assert_eq!(number(&first).await, 0, "and the one that was live before missed nothing");
    edge.stop().await;
}

/// The reader ends when the last client has left. One that comes at this moment is read for all the same.
async fn joins_as_the_reader_ends(delivery: Delivery) {
    let broker = Staged::new(delivery, true);
    let edge = Edge::start_with(&broker, 1 << 20, declared_with(delivery).0);
    let (first, task) = open(&edge, 1, StartAt::Now, BOUNDS);
    assert_eq!(frame(&first).await["resumed"], false);
    task.await.unwrap();
    edge.hub.leave(&first);
    let outbound =
        Outbound::new(BOUNDS, prometheus_client::metrics::gauge::Gauge::default(), Arc::clone(&edge.hub.backlog));
    let second = Arc::new(Mailbox::new(2, "alice", "app", true, outbound));
    let (hub, of_hook, of_broker) = (Arc::clone(&edge.hub), Arc::clone(&second), broker.clone());
    *broker.at_end.lock().unwrap() = Some(Box::new(move || {
        hub.enter(&of_hook, &[]);
        if hub.join_at_end(&of_hook, None, 0, |_| ()) {
            of_broker.push(0);
        }
    }));
    settle().await;
    if second.is_live() {
        assert_eq!(number(&second).await, 0, "it was live when this was pushed");
    } else {
        assert!(edge.hub.join_at_end(&second, None, 0, |_| ()), "a new reader is attached");
        broker.push(0);
        assert_eq!(number(&second).await, 0);
    }
    edge.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_client_that_joins_as_the_last_one_leaves_misses_nothing() {
    joins_as_the_reader_ends(Delivery::Durable).await;
}

#[tokio::test(start_paused = true)]
async fn a_transient_client_that_joins_as_the_last_one_leaves_misses_nothing() {
    joins_as_the_reader_ends(Delivery::Transient).await;
}

#[tokio::test(start_paused = true)]
async fn a_gap_that_reading_has_shown_waits_for_a_reader_that_is_attached() {
    let edge = Edge::start(&MemoryBroker::new(), 1 << 20);
    let mailbox = idle(&edge);
    let at = |offset| Some(Position { offset, fingerprint: offset });
    let mut joined = Vec::new();
    let mut join = |gap| {
        let mut place = None;
        edge.hub.join_at_end(&mailbox, gap, 0, |position| place = position).then(|| joined.push(place));
    };
    edge.hub.attach(at(7));
    // The stream is declared anew, and the reader has not seen it yet.
    edge.hub.interrupted();
    join(Some(Gap::Incarnation));
    join(Some(Gap::Retention));
    join(None);
    edge.hub.forget(Some(Gap::Incarnation));
    edge.hub.attach(at(1));
    join(Some(Gap::Incarnation));
    // Retention passes the reader, which goes on reading behind it.
    edge.hub.forget(Some(Gap::Retention));
    join(Some(Gap::Retention));
    let behind = Arc::new(Entry::mark(Position { offset: 20, fingerprint: 20 }));
    assert!(edge.hub.append(&edge.hub.business(), vec![behind], Delivery::Durable));
    join(Some(Gap::Retention));
    assert_eq!(joined, [at(7), at(1), at(20)]);
    // A slow reader has not come to where the client was.
    assert!(!edge.hub.join_at_end(&mailbox, Some(Gap::Retention), 21, |_| panic!("greeted")));
    assert!(edge.hub.join_at_end(&mailbox, Some(Gap::Retention), 20, |_| ()));
    edge.stop().await;
}

/// A connection that nothing lets catch up.
fn idle(edge: &Edge) -> Mailbox {
    let backlog = Arc::clone(&edge.hub.backlog);
    let outbound = Outbound::new(BOUNDS, prometheus_client::metrics::gauge::Gauge::default(), backlog);
    Mailbox::new(1, "alice", "app", true, outbound)
}
