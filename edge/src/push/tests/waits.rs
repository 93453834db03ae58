//! What a client gets, and when, while the broker hangs or lags.

use futures_util::{FutureExt, future::BoxFuture};
use prometheus_client::registry::Registry;
use serde_json::Value;
use tokio::{sync::watch, time::Instant};

use super::*;
use crate::broker::{Confirm, Feed, Health, Page, ReadError, Start};

pub(super) const BOUNDS: Bounds = Bounds { messages: 1000, bytes: 1 << 20 };

/// How long the streams of other businesses say nothing.
const SILENT: Duration = Duration::from_secs(5);

/// How reads of a stream for catching up behave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reads {
    Good,
    Hang,
    /// Answered by a replica that has nothing after the requested offset.
    Lag,
    /// What follows this offset is deleted while it is read, or too large to be read.
    Lose(u64),
}

/// The broker inside the process, except for its reads.
#[derive(Clone)]
struct Odd {
    inner: MemoryBroker,
    reads: watch::Sender<Reads>,
}

impl Odd {
    fn new() -> Self {
        let inner = MemoryBroker::new();
        inner.apply(&[declared().1]);
        Self { inner, reads: watch::Sender::new(Reads::Good) }
    }

    fn becomes(&self, reads: Reads) {
        self.reads.send_replace(reads);
    }

    fn push(&self, n: u64) {
        publish(&self.inner, format!(r#"{{"messageType":"n","toUniqueId":"alice","content":{n}}}"#));
    }
}

impl Broker for Odd {
    fn publish(&self, lane: u64, publication: Publication) -> Confirm {
        self.inner.publish(lane, publication)
    }

    fn emit(&self, publication: Publication) {
        self.inner.emit(publication);
    }

    fn tail(&self, business: &str, delivery: Delivery, start: Start) -> Box<dyn Feed> {
        self.inner.tail(business, delivery, start)
    }

    fn read<'a>(&'a self, business: &'a str, from: u64, max_bytes: usize) -> BoxFuture<'a, Result<Page, ReadError>> {
        async move {
            if business != "payments" {
                tokio::time::sleep(SILENT).await;
                return Err(ReadError("no answer".into()));
            }
            let mut reads = self.reads.subscribe();
            let reads = *reads.wait_for(|reads| *reads != Reads::Hang).await.unwrap();
            let mut piece = self.inner.read(business, from, max_bytes).await?;
            if reads == Reads::Lag {
                piece.records.truncate(1);
                piece.at_end = true;
            }
            if let Reads::Lose(last) = reads {
                piece.records.retain(|record| record.position.offset <= last);
                (piece.at_end, piece.lost) = (false, true);
            }
            Ok(piece)
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

pub(super) async fn frame(mailbox: &Mailbox) -> Value {
    let next = tokio::time::timeout(QUIET, std::future::poll_fn(|cx| mailbox.outbound.poll_next(cx))).await;
    let Next::Item(item) = next.expect("nothing comes") else { panic!("the connection ends") };
    serde_json::from_slice(item.payload()).unwrap()
}

/// The next push; `position` is skipped.
pub(super) async fn number(mailbox: &Mailbox) -> Value {
    loop {
        let frame = frame(mailbox).await;
        match frame["op"].as_str() {
            None => return frame["content"].clone(),
            Some("position") => {}
            Some(_) => panic!("not a push: {frame}"),
        }
    }
}

pub(super) fn place(frame: &Value) -> Position {
    let cursor: wirepost_core::Cursor = frame["cursor"].as_str().unwrap().parse().unwrap();
    Position { offset: cursor.offset, fingerprint: cursor.fingerprint }
}

/// An edge whose log has room for the newest position only, and a position followed by the pushes 0 to 2. One client
/// stays connected, so that the edge continues to read.
async fn behind(broker: &Odd) -> (Edge, Position, JoinHandle<()>) {
    let edge = Edge::start(broker, 0);
    let (mailbox, task) = open(&edge, 1, StartAt::Now, BOUNDS);
    let start = place(&frame(&mailbox).await);
    for n in 0..3 {
        broker.push(n);
    }
    for n in 0..3 {
        assert_eq!(number(&mailbox).await, n);
    }
    (edge, start, task)
}

#[tokio::test(start_paused = true)]
async fn clients_that_wait_for_the_broker_are_welcomed_in_time_and_get_their_position_later() {
    let broker = Odd::new();
    let (edge, start, _) = behind(&broker).await;
    broker.becomes(Reads::Hang);
    let begun = Instant::now();
    let connections: Vec<_> = (2..8).map(|number| open(&edge, number, StartAt::After(start), BOUNDS)).collect();
    for (mailbox, _) in &connections {
        let welcome = frame(mailbox).await;
        assert_eq!(welcome["op"], "welcome");
        assert!(welcome.get("resumed").is_none() && welcome.get("cursor").is_none(), "{welcome}");
    }
    assert_eq!(begun.elapsed().as_secs(), 2);
    broker.becomes(Reads::Good);
    for (mailbox, _) in &connections {
        let position = frame(mailbox).await;
        assert_eq!((&position["op"], place(&position)), (&"position".into(), start));
        for n in 0..3 {
            assert_eq!(number(mailbox).await, n);
        }
    }
    edge.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_is_behind_is_asked_again_although_nothing_is_pushed() {
    let broker = Odd::new();
    let (edge, start, _) = behind(&broker).await;
    broker.becomes(Reads::Lag);
    let (mailbox, _) = open(&edge, 2, StartAt::After(start), BOUNDS);
    let welcome = frame(&mailbox).await;
    assert_eq!(welcome["resumed"], true, "{welcome}");
    broker.becomes(Reads::Good);
    for n in 0..3 {
        assert_eq!(number(&mailbox).await, n);
    }
    edge.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_is_lost_behind_a_page_is_a_gap_after_the_page() {
    let broker = Odd::new();
    let (edge, start, _) = behind(&broker).await;
    broker.becomes(Reads::Lose(start.offset + 1));
    let (mailbox, _) = open(&edge, 2, StartAt::After(start), BOUNDS);
    assert_eq!(frame(&mailbox).await["resumed"], true);
    assert_eq!(number(&mailbox).await, 0);
    let gap = loop {
        let frame = frame(&mailbox).await;
        if frame["op"] != "position" {
            break frame;
        }
    };
    assert_eq!((&gap["op"], &gap["reason"]), (&"gap".into(), &"retention".into()), "{gap}");
    broker.push(3);
    assert_eq!(number(&mailbox).await, 3);
    edge.stop().await;
}

#[tokio::test(start_paused = true)]
async fn clients_with_different_cursors_share_what_is_read_in_any_order() {
    const PUSHES: u64 = 7; // and no more connections than one identity may have
    let broker = Odd::new();
    let edge = Edge::start(&broker, 0);
    let (mailbox, _task) = open(&edge, 1, StartAt::Now, BOUNDS);
    let mut cursors = vec![place(&frame(&mailbox).await)];
    for n in 0..PUSHES {
        broker.push(n);
        cursors.push(place(&frame(&mailbox).await));
    }
    broker.becomes(Reads::Hang);
    // The newest cursor first: in this order each one is below all that were asked for before.
    let connections: Vec<_> =
        (0..PUSHES).rev().map(|n| (n, open(&edge, 2 + n, StartAt::After(cursors[n as usize]), BOUNDS))).collect();
    tokio::time::sleep(Duration::from_millis(1)).await;
    broker.becomes(Reads::Good);
    for (n, (mailbox, _)) in &connections {
        assert_eq!(frame(mailbox).await["resumed"], true);
        assert_eq!(number(mailbox).await, *n);
    }
    let reads = edge.hub.context.metrics.catch_up_reads.get();
    assert!(reads <= 3, "{reads} reads of one page");
    edge.stop().await;
}

#[tokio::test(start_paused = true)]
async fn silent_streams_of_other_businesses_hold_up_a_good_one_for_a_moment_only() {
    let broker = Odd::new();
    let (edge, start, _task) = behind(&broker).await;
    // As many as pages are read at the same time, and more.
    let silent: Vec<_> = (0..3)
        .map(|n| {
            let mut config = declared().0;
            config.business_type = format!("silent-{n}");
            let business = Arc::new(Business::try_new(config).unwrap());
            let hub = Arc::new(Hub::new(business, Arc::clone(&edge.hub.context)));
            hub.attach(Some(Position { offset: 100, fingerprint: 100 }));
            let hub = Edge { hub, cancel: CancellationToken::new(), reader: tokio::spawn(async {}) };
            let old = StartAt::After(Position { offset: 1, fingerprint: 1 });
            let (_, task) = open(&hub, 10 + n, old, BOUNDS);
            task
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(1)).await;
    // The first time it is not known which ones are silent.
    for (number, seconds) in [(2, 4), (3, 1)] {
        let begun = Instant::now();
        let (mailbox, _task) = open(&edge, number, StartAt::After(start), BOUNDS);
        loop {
            let frame = frame(&mailbox).await;
            if frame["op"].is_null() {
                break;
            }
        }
        assert!(begun.elapsed() < Duration::from_secs(seconds), "{:?}", begun.elapsed());
        edge.hub.context.pages.forget("payments");
        tokio::time::sleep(SILENT * 3).await;
    }
    for task in silent {
        task.abort();
    }
    edge.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_page_that_nobody_asks_for_again_does_not_stay() {
    let broker = Odd::new();
    let (edge, start, _task) = behind(&broker).await;
    let metrics = Arc::clone(&edge.hub.context.metrics);
    let (mailbox, _task) = open(&edge, 2, StartAt::After(start), BOUNDS);
    for n in 0..3 {
        while frame(&mailbox).await["content"] != n {}
    }
    assert!(metrics.page_bytes.get() > 0);
    tokio::time::sleep(Duration::from_secs(12)).await;
    assert_eq!(metrics.page_bytes.get(), 0);
    edge.stop().await;
}

/// Whoever is ahead of an edge's reader does not read the stream again with each push that the reader takes.
#[tokio::test(start_paused = true)]
async fn clients_ahead_of_a_slow_reader_read_the_stream_a_few_times_and_get_what_comes_next() {
    const PUSHES: u64 = 200;
    let broker = Odd::new();
    let quick = Edge::start(&broker, 0);
    let mut config = declared().0;
    config.limits.per_edge.pushes_per_second = Some(5);
    config.limits.connections_per_id = 100;
    let slow = Edge::start_with(&broker, 0, config);
    let (at_quick, _) = open(&quick, 1, StartAt::Now, BOUNDS);
    let (at_slow, _) = open(&slow, 2, StartAt::Now, BOUNDS);
    for mailbox in [&at_quick, &at_slow] {
        assert_eq!(frame(mailbox).await["op"], "welcome");
    }
    for n in 0..PUSHES {
        broker.push(n);
    }
    let last = loop {
        let frame = frame(&at_quick).await;
        if frame["content"] == PUSHES - 1 {
            break place(&frame);
        }
    };
    let reads = || slow.hub.context.metrics.catch_up_reads.get();
    let ahead: Vec<_> = (10..30).map(|number| open(&slow, number, StartAt::After(last), BOUNDS)).collect();
    for (mailbox, _) in &ahead {
        assert_eq!(frame(mailbox).await["resumed"], true);
    }
    // The reader takes 40 s for what they have seen.
    for n in 0..PUSHES {
        assert_eq!(number(&at_slow).await, n);
    }
    broker.push(PUSHES);
    for (mailbox, _) in &ahead {
        assert_eq!(number(mailbox).await, PUSHES);
    }
    assert!(reads() <= 20, "{} reads for {} clients", reads(), ahead.len());
}
