//! Who gets a push compressed, and what is counted then.

use axum::http::{HeaderMap, HeaderValue, header::SEC_WEBSOCKET_EXTENSIONS};
use tokio::time::sleep;

use super::*;
use crate::{
    compression::{self, Compression, inflate},
    push::{entry::Entry, mailbox::outbound::Item},
};

const BOUNDS: Bounds = Bounds { messages: 1000, bytes: 1 << 20 };

fn compression(offer: &'static str) -> Compression {
    let offer = HeaderMap::from_iter([(SEC_WEBSOCKET_EXTENSIONS, HeaderValue::from_static(offer))]);
    compression::accept(&offer).map(|(compression, _)| compression).unwrap_or_default()
}

fn enter(edge: &Edge, number: u64, offer: &'static str) -> Arc<Mailbox> {
    let outbound = Outbound::new(BOUNDS, edge.hub.context.metrics.outbound_bytes.clone(), edge.hub.backlog.clone());
    let mut mailbox = Mailbox::new(number, "alice", "app", true, outbound);
    mailbox.compression = compression(offer);
    let mailbox = Arc::new(mailbox);
    edge.hub.enter(&mailbox, &[]);
    mailbox
}

async fn live(edge: &Edge, number: u64, offer: &'static str) -> Arc<Mailbox> {
    let mailbox = enter(edge, number, offer);
    while !edge.hub.join_at_end(&mailbox, None, 0, |_| {}) {
        sleep(Duration::from_millis(1)).await;
    }
    mailbox
}

async fn next(mailbox: &Mailbox) -> Item {
    match std::future::poll_fn(|cx| mailbox.outbound.poll_next(cx)).await {
        Next::Item(item) => item,
        Next::Close(code) => panic!("closed: {code:?}"),
        Next::Shortened => panic!("its session became shorter"),
        Next::LetGo => panic!("it was let go"),
    }
}

/// The entry behind an item, and whether it goes out compressed.
fn entry(item: &Item) -> (&Arc<Entry>, bool) {
    match item {
        Item::Push(entry) => (entry, false),
        Item::Compressed(entry) => (entry, true),
        other => panic!("{other:?}"),
    }
}

fn push(broker: &MemoryBroker, to: &str, content: usize) {
    let content = "order 17 paid; ".repeat(content);
    publish(broker, format!(r#"{{"messageType":"n","toUniqueId":"{to}","content":"{content}"}}"#));
}

fn start(log_bytes: usize) -> (MemoryBroker, Edge) {
    let broker = MemoryBroker::new();
    broker.apply(&[declared().1]);
    let edge = Edge::start(&broker, log_bytes);
    (broker, edge)
}

#[tokio::test(start_paused = true)]
async fn a_push_is_compressed_once_for_those_who_want_it() {
    let (broker, edge) = start(1 << 20);
    let metrics = Arc::clone(&edge.hub.context.metrics);
    let browser = live(&edge, 1, "permessage-deflate; client_max_window_bits").await;
    let second = live(&edge, 2, "permessage-deflate").await;
    let small = live(&edge, 3, "permessage-deflate; server_max_window_bits=9").await;
    let plain = live(&edge, 4, "").await;
    push(&broker, "alice", 100);
    let items = [next(&browser).await, next(&second).await, next(&small).await, next(&plain).await];
    assert_eq!(items.iter().map(|item| entry(item).1).collect::<Vec<_>>(), [true, true, false, false]);
    assert!(items.iter().all(|item| Arc::ptr_eq(entry(item).0, entry(&items[0]).0)), "one for all");
    assert_eq!(inflate(items[0].payload(), 10_000).unwrap(), items[3].payload());
    assert_eq!(metrics.compressed_pushes.get(), 1);
    assert!(metrics.log_bytes.get() >= (items[0].payload().len() + items[3].payload().len()) as i64);
    // One that is small; one to somebody who is not here; one when nobody is left who wants it.
    push(&broker, "alice", 0);
    assert!(!entry(&next(&browser).await).1);
    push(&broker, "bob", 100);
    for gone in [browser, second] {
        edge.hub.leave(&gone);
    }
    push(&broker, "alice", 100);
    next(&plain).await;
    assert!(entry(&next(&plain).await).0.push.as_ref().unwrap().compressed.is_none());
    assert_eq!(metrics.compressed_pushes.get(), 1);
    edge.stop().await;
}

#[tokio::test(start_paused = true)]
async fn the_bytes_that_are_queued_are_counted_and_none_is_left() {
    let (broker, edge) = start(0);
    let metrics = Arc::clone(&edge.hub.context.metrics);
    let browser = live(&edge, 1, "permessage-deflate").await;
    push(&broker, "alice", 500);
    while browser.outbound.held() == Some(0) {
        sleep(Duration::from_millis(1)).await;
    }
    let held = browser.outbound.held().unwrap();
    let backlog = metrics.backlog_bytes.get() as usize;
    let item = next(&browser).await;
    let plain = inflate(item.payload(), 10_000).unwrap().len();
    assert_eq!(held, item.payload().len(), "what goes to the socket");
    assert_eq!(backlog, plain + held, "what is in memory");
    drop(item);
    edge.stop().await;
    assert_eq!((metrics.outbound_bytes.get(), metrics.backlog_bytes.get(), metrics.log_bytes.get()), (0, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn what_a_client_missed_comes_compressed_from_the_stream() {
    let (broker, edge) = start(0);
    let first = live(&edge, 1, "").await;
    push(&broker, "alice", 10);
    let position = entry(&next(&first).await).0.position;
    for _ in 0..3 {
        push(&broker, "alice", 100);
        next(&first).await;
    }
    let returned = enter(&edge, 2, "permessage-deflate");
    let mut greeting = Greeting::new(&edge.hub, Arc::clone(&returned), String::new(), 0);
    let catch_up = catch_up::run(&edge.hub, &returned, StartAt::After(position), &mut greeting);
    let read = async {
        next(&returned).await;
        for _ in 0..2 {
            assert!(entry(&next(&returned).await).1);
        }
    };
    tokio::join!(catch_up, read);
    edge.stop().await;
}
