//! When it is decided whether a client gets a push: as late as possible.

use serde_json::Value;

use super::{
    waits::{BOUNDS, frame, number, place},
    *,
};

/// Room for a few frames.
const NARROW: Bounds = Bounds { messages: 8, bytes: 1 << 20 };

/// An edge with a client, so that it reads, and a position before everything that is pushed.
async fn begin(log_bytes: usize) -> (MemoryBroker, Edge, Position, JoinHandle<()>) {
    let broker = MemoryBroker::new();
    broker.apply(&[declared().1]);
    let edge = Edge::start(&broker, log_bytes);
    let (first, task) = open(&edge, 1, StartAt::Now, BOUNDS);
    let start = place(&frame(&first).await);
    (broker, edge, start, task)
}

/// `content` of all pushes that come until nothing more does.
async fn rest(mailbox: &Mailbox) -> Vec<u64> {
    let mut numbers = Vec::new();
    let next = || tokio::time::timeout(QUIET, std::future::poll_fn(|cx| mailbox.outbound.poll_next(cx)));
    while let Ok(Next::Item(item)) = next().await {
        let frame: Value = serde_json::from_slice(item.payload()).unwrap();
        numbers.extend(frame["content"].as_u64());
    }
    numbers
}

#[tokio::test(start_paused = true)]
async fn tags_that_change_while_a_client_catches_up_count_for_all_that_it_has_not_got() {
    let (broker, edge, start, _task) = begin(1 << 20).await;
    for n in 0..20 {
        let tag = if n % 2 == 0 { "even" } else { "odd" };
        publish(&broker, format!(r#"{{"messageType":"n","tags":["{tag}"],"content":{n}}}"#));
    }
    settle().await;
    let (mailbox, _task) = open(&edge, 2, StartAt::After(start), NARROW);
    edge.hub.set_tags(&mailbox, &["even".into()]);
    assert_eq!(frame(&mailbox).await["op"], "welcome");
    assert_eq!(number(&mailbox).await, 0);
    settle().await;
    edge.hub.set_tags(&mailbox, &["odd".into()]);
    let got = rest(&mailbox).await;
    assert!(got.iter().all(|n| n % 2 == 1), "pushes for a tag that it has lost: {got:?}");
    assert!(got.first() < Some(&14) && got.windows(2).all(|two| two[0] + 2 == two[1]), "some are missing: {got:?}");
    assert_eq!(got.last(), Some(&19), "{got:?}");
    edge.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_expires_while_a_client_catches_up_does_not_come() {
    let (broker, edge, start, _task) = begin(1 << 20).await;
    let soon = clock::now_ms() + 2500;
    for n in 0..20 {
        publish(&broker, format!(r#"{{"messageType":"n","toUniqueId":"alice","expiresAt":{soon},"content":{n}}}"#));
    }
    publish(&broker, r#"{"messageType":"n","toUniqueId":"alice","content":20}"#.into());
    settle().await;
    let (mailbox, _task) = open(&edge, 2, StartAt::After(start), NARROW);
    assert_eq!(frame(&mailbox).await["op"], "welcome");
    assert_eq!(number(&mailbox).await, 0, "it has not expired yet, on this machine");
    settle().await;
    // Wall-clock time: the only one that a push knows.
    while clock::now_ms() <= soon {
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(rest(&mailbox).await, [20]);
    edge.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_client_whose_queued_pushes_are_dropped_is_told_its_position() {
    let (broker, edge, ..) = begin(1 << 20).await;
    let (mailbox, _task) = open(&edge, 2, StartAt::Now, BOUNDS);
    edge.hub.set_tags(&mailbox, &["lost".into()]);
    let began = place(&frame(&mailbox).await);
    publish(&broker, r#"{"messageType":"n","tags":["lost"],"content":0}"#.into());
    settle().await;
    edge.hub.set_tags(&mailbox, &["kept".into()]);
    // Nothing else is pushed: without this its cursor would stay where it began, and fall out of the retention.
    tokio::time::sleep(edge.hub.context.settings.position_interval + Duration::from_secs(2)).await;
    let told = frame(&mailbox).await;
    assert_eq!(told["op"], "position", "{told}");
    assert!(place(&told).offset > began.offset);
    edge.stop().await;
}

/// The log has everything, or nothing but its position: then the pages of the stream are what was judged before.
async fn declared_anew(log_bytes: usize) {
    let (broker, edge, start, _task) = begin(log_bytes).await;
    publish(&broker, r#"{"messageType":"n","toUniqueId":"alice","content":0}"#.into());
    publish(&broker, r#"{"messageType":"m","toUniqueId":"alice","content":1}"#.into());
    settle().await;
    let (before, _task) = open(&edge, 2, StartAt::After(start), BOUNDS);
    assert_eq!(rest(&before).await, [0]);
    let former = edge.hub.business();
    let anew = declared_routes(Delivery::Durable, &["m"]).0;
    edge.hub.update(Arc::new(Business::try_new(anew).unwrap()));
    let (after, _task) = open(&edge, 3, StartAt::After(start), BOUNDS);
    assert_eq!(frame(&after).await["resumed"], true);
    assert_eq!(rest(&after).await, [1], "judged by the declaration that holds now");
    publish(&broker, r#"{"messageType":"m","toUniqueId":"alice","content":2}"#.into());
    for mailbox in [&before, &after] {
        assert_eq!(rest(mailbox).await, [2]);
    }
    assert!(!edge.hub.append(&former, vec![], Delivery::Durable), "what the former one judged is judged again");
    edge.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_changed_declaration_judges_again_what_is_in_the_log() {
    declared_anew(1 << 20).await;
}

#[tokio::test(start_paused = true)]
async fn a_changed_declaration_judges_again_what_is_in_cached_pages() {
    declared_anew(0).await;
}
