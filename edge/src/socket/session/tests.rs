//! Whole sessions without a socket: the test plays the peer, the broker runs inside the process, and time passes only
//! when nothing can run. So a failure is reproducible.

use std::{
    future::poll_fn,
    sync::atomic::{AtomicBool, Ordering},
    task::{Context, Poll},
};

use serde_json::{Value, json};
use tokio::{sync::mpsc, task::JoinHandle, time::Duration};
use tokio_util::sync::CancellationToken;
use wirepost_core::{Cursor, compile::compile_one};

use super::{machine::SocketState, *};
use crate::{
    audit::Audit,
    broker::{Broker, Position, Publication, memory::MemoryBroker},
    budget::Budget,
    business::{Business, check_pool::CheckPool},
    clock,
    config::settings::Settings,
    drain::Drain,
    identity::{grant::Grant, keys::KeyRing, ticket::Purpose},
    metrics::Metrics,
    push::{context::HubContext, mailbox::outbound::Next, reader},
    revocation::gate::Gate,
    socket::{flood::FloodLimiter, inbound::Inbound, shared::RECEIPT_BYTES},
};

const QUEUE: &str = "wirepost.payments.q.order";
/// Virtual time: it passes only when nothing can run any more.
const QUIET: Duration = Duration::from_secs(10);

/// An edge without any port.
struct Edge {
    broker: MemoryBroker,
    hub: Arc<Hub>,
    shared: Arc<Shared>,
    reader: CancellationToken,
    connections: u64,
}

/// The peer's side of a connection.
struct Client {
    slow: Arc<AtomicBool>,
    input: mpsc::Sender<SocketEvent>,
    frames: mpsc::Receiver<Value>,
    task: JoinHandle<()>,
}

/// The substitute for a socket.
struct TestPeer {
    /// It reads nothing: what is queued for it stays there.
    slow: Arc<AtomicBool>,
    mailbox: Arc<Mailbox>,
    input: mpsc::Receiver<SocketEvent>,
    frames: mpsc::Sender<Value>,
}

impl Peer for TestPeer {
    async fn next(&mut self, mut may_read: impl FnMut(&mut Context<'_>, bool) -> bool + Send) -> SocketEvent {
        poll_fn(move |cx| {
            while !self.slow.load(Ordering::Relaxed) {
                match self.mailbox.outbound.poll_next(cx) {
                    Poll::Ready(Next::Item(item)) if item.payload().is_empty() => {}
                    Poll::Ready(Next::Item(item)) => {
                        self.frames.try_send(serde_json::from_slice(item.payload()).unwrap()).unwrap();
                    }
                    Poll::Ready(Next::Shortened) => return Poll::Ready(SocketEvent::Shortened),
                    Poll::Ready(Next::LetGo) => return Poll::Ready(SocketEvent::LetGo),
                    Poll::Ready(Next::Close(code)) => return Poll::Ready(SocketEvent::Goodbye(code)),
                    Poll::Pending => break,
                }
            }
            if !may_read(cx, false) {
                return Poll::Pending;
            }
            self.input.poll_recv(cx).map(|event| event.unwrap_or(SocketEvent::Gone))
        })
        .await
    }

    fn state(&mut self) -> SocketState {
        SocketState::default()
    }

    async fn close(self, code: CloseCode) {
        self.frames.try_send(json!({"closed": code.code()})).unwrap();
    }

    async fn finish(self) {
        self.frames.try_send(json!({"closed": "by the client"})).unwrap();
    }
}

impl Edge {
    fn start() -> Self {
        let declared = json!({
            "apiVersion": "wirepost.dev/v1alpha1", "kind": "WsBusiness",
            "metadata": {"name": "payments", "namespace": "shop"},
            "spec": {
                "clientTypes": ["app"],
                "routes": [
                    {"messageType": "paid", "sendType": "ServerToClient", "to": ["app"]},
                    {"messageType": "order", "sendType": "ClientToServer", "from": ["app"], "queue": {"name": "order"}},
                ],
                "limits": {"connectionsPerId": 2, "messagesPerSecond": 1000, "burst": 1000},
            },
        });
        let compiled = compile_one(&serde_json::from_value(declared).unwrap()).unwrap();
        let broker = MemoryBroker::new();
        broker.apply(&[compiled.topology]);
        let metrics = Arc::new(Metrics::default());
        let context = HubContext::new(Arc::new(broker.clone()), Arc::clone(&metrics), Settings::default());
        let hub = Arc::new(Hub::new(Arc::new(Business::try_new(compiled.config).unwrap()), Arc::new(context)));
        let shared = Arc::new(Shared {
            gate: Arc::new(Gate::new(Arc::new(KeyRing::random()), Duration::from_secs(30), &metrics)),
            checks: Arc::new(CheckPool::new(metrics.checks_waiting.clone())),
            limiter: Arc::new(FloodLimiter::default()),
            inbound: Inbound::new(1 << 20, metrics.inbound_bytes.clone()),
            receipts: Budget::new(RECEIPT_BYTES, metrics.receipt_bytes.clone()),
            audit: Arc::new(Audit::new(Arc::clone(&metrics))),
            drain: Drain::default(),
        });
        let reader = CancellationToken::new();
        tokio::spawn(reader::run(Arc::clone(&hub), reader.clone()));
        Self { broker, hub, shared, reader, connections: 0 }
    }

    /// A connection of alice.
    fn connect(&mut self, start: StartAt) -> Client {
        self.connections += 1;
        let session = Session {
            shared: Arc::clone(&self.shared),
            hub: Arc::clone(&self.hub),
            ticket: Ticket {
                purpose: Purpose::Connect,
                business: "payments".into(),
                unique_id: "alice".into(),
                client_type: "app".into(),
                tags: vec![],
                session_ends_at: clock::now_ms() + 3_600_000,
                expires_at: clock::now_ms() + 30_000,
                id: rand::random(),
                grant: Grant::new(clock::now_ms(), 0, 0),
            },
            origin: None,
            address: ClientAddress(std::net::Ipv4Addr::LOCALHOST.into()),
            start,
            control: true,
            compression: Compression::default(),
            number: self.connections,
            key: self.shared.limiter.key("payments", "alice"),
            written: WriteProgress::default(),
        };
        let ((input, events), (sender, frames)) = (mpsc::channel(1024), mpsc::channel(1024));
        let slow = Arc::<AtomicBool>::default();
        let of_peer = Arc::clone(&slow);
        let peer = move |_: &Hub, _: &Shared, mailbox: &Arc<Mailbox>| TestPeer {
            slow: of_peer,
            mailbox: Arc::clone(mailbox),
            input: events,
            frames: sender,
        };
        let task = tokio::spawn(session.start(peer).run());
        Client { slow, input, frames, task }
    }

    fn push(&self, number: u64) {
        drop(self.broker.publish(
            1,
            Publication {
                exchange: "wirepost.payments.push".into(),
                routing_key: "paid".into(),
                queue: None,
                message_id: String::new(),
                body: json!({"messageType": "paid", "toUniqueId": "alice", "content": number}).to_string().into(),
                timestamp: clock::now_ms(),
                headers: vec![],
            },
        ));
    }
}

impl Drop for Edge {
    fn drop(&mut self) {
        self.reader.cancel();
    }
}

impl Client {
    async fn frame(&mut self) -> Value {
        tokio::time::timeout(QUIET, self.frames.recv()).await.expect("nothing comes").expect("the connection ended")
    }

    async fn nothing_comes(&mut self) {
        let frame = tokio::time::timeout(QUIET, self.frames.recv()).await;
        assert!(frame.is_err(), "{frame:?}");
    }

    async fn send(&self, frame: Value) {
        self.input.send(SocketEvent::Text(frame.to_string().into())).await.unwrap();
    }

    /// Leaves with a close frame.
    async fn leave(mut self) {
        self.input.send(SocketEvent::Closed(1000)).await.unwrap();
        assert_eq!(self.frame().await, json!({"closed": "by the client"}));
        self.task.await.unwrap();
    }
}

fn after(frame: &Value) -> StartAt {
    let cursor: Cursor = frame["cursor"].as_str().unwrap().parse().unwrap();
    StartAt::After(Position { offset: cursor.offset, fingerprint: cursor.fingerprint })
}

#[tokio::test(start_paused = true)]
async fn a_client_comes_back_by_cursor_and_misses_nothing() {
    let mut edge = Edge::start();
    let mut client = edge.connect(StartAt::Now);
    let welcome = client.frame().await;
    assert_eq!((&welcome["op"], &welcome["resumed"]), (&json!("welcome"), &json!(false)), "{welcome}");
    edge.push(0);
    let push = client.frame().await;
    assert_eq!(push["content"], 0, "{push}");
    client.leave().await;
    edge.push(1);
    edge.push(2);
    let mut client = edge.connect(after(&push));
    let welcome = client.frame().await;
    assert_eq!((&welcome["op"], &welcome["resumed"]), (&json!("welcome"), &json!(true)), "{welcome}");
    edge.push(3);
    for number in 1..4 {
        assert_eq!(client.frame().await["content"], number);
    }
    client.leave().await;
}

#[tokio::test(start_paused = true)]
async fn a_cursor_of_another_stream_is_a_gap() {
    let mut edge = Edge::start();
    let mut client = edge.connect(StartAt::After(Position { offset: 0, fingerprint: 4711 }));
    let (welcome, gap) = (client.frame().await, client.frame().await);
    assert_eq!((&welcome["op"], &welcome["resumed"]), (&json!("welcome"), &json!(false)), "{welcome}");
    assert_eq!((&gap["op"], &gap["reason"]), (&json!("gap"), &json!("incarnation")), "{gap}");
    edge.push(0);
    assert_eq!(client.frame().await["content"], 0);
    client.leave().await;
}

#[tokio::test(start_paused = true)]
async fn messages_are_acknowledged_in_order_and_reach_their_queue() {
    let mut edge = Edge::start();
    let mut client = edge.connect(StartAt::Now);
    client.frame().await;
    for number in 0..200 {
        client.send(json!({"id": number.to_string(), "messageType": "order", "content": {}})).await;
    }
    for number in 0..200 {
        assert_eq!(client.frame().await, json!({"op": "ack", "id": number.to_string()}));
    }
    assert_eq!(edge.broker.queue_len(QUEUE), Some(200));
    client.leave().await;
}

#[tokio::test(start_paused = true)]
async fn nothing_is_read_before_the_welcome() {
    let mut edge = Edge::start();
    edge.broker.set_frozen(true);
    let mut client = edge.connect(StartAt::Now);
    client.send(json!({"op": "ping"})).await;
    let welcome = client.frame().await;
    assert_eq!((&welcome["op"], welcome.get("cursor")), (&json!("welcome"), None), "the broker does not answer");
    assert_eq!(client.frame().await["op"], "pong");
    client.leave().await;
}

#[tokio::test(start_paused = true)]
async fn the_oldest_connection_of_an_identity_is_replaced() {
    let mut edge = Edge::start();
    let mut clients: Vec<_> = (0..3).map(|_| edge.connect(StartAt::Now)).collect();
    for client in &mut clients[1..] {
        assert_eq!(client.frame().await["op"], "welcome");
    }
    let mut frame = clients[0].frame().await;
    if frame["op"] == "welcome" {
        frame = clients[0].frame().await;
    }
    assert_eq!(frame, json!({"closed": 4009}));
    clients[1].nothing_comes().await;
}

#[tokio::test(start_paused = true)]
async fn a_drain_waits_for_the_answer_and_then_closes() {
    let mut edge = Edge::start();
    let mut client = edge.connect(StartAt::Now);
    client.frame().await;
    edge.broker.set_frozen(true);
    client.send(json!({"id": "1", "messageType": "order", "content": {}})).await;
    edge.shared.drain.begin(Duration::from_millis(100), Instant::now() + Duration::from_secs(45));
    assert_eq!(client.frame().await["op"], "drain");
    edge.broker.set_frozen(false);
    assert_eq!(client.frame().await, json!({"op": "ack", "id": "1"}));
    assert_eq!(client.frame().await, json!({"closed": 1012}));
}

#[tokio::test(start_paused = true)]
async fn the_client_that_is_here_longest_is_let_go_as_in_a_drain_and_others_notice_nothing() {
    let mut edge = Edge::start();
    let mut clients = [edge.connect(StartAt::Now), edge.connect(StartAt::Now)];
    for client in &mut clients {
        client.frame().await;
    }
    let leaving = edge.hub.context.metrics.leaving.clone();
    assert_eq!((edge.hub.let_go(1), leaving.get()), (1, 1));
    let drain = clients[0].frame().await;
    assert_eq!((&drain["op"], &drain["reconnectWithinMs"]), (&json!("drain"), &json!(5000)));
    edge.push(0);
    assert_eq!(clients[0].frame().await["content"], 0, "it is served until it leaves");
    assert_eq!(clients[0].frame().await, json!({"closed": 1012}));
    assert_eq!(clients[1].frame().await["content"], 0);
    clients[1].nothing_comes().await;
    assert_eq!(leaving.get(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_session_that_panics_is_counted_no_more() {
    let mut edge = Edge::start();
    let Client { frames, task, input: _input, slow } = edge.connect(StartAt::Now);
    slow.store(true, Ordering::Relaxed);
    tokio::time::sleep(QUIET).await;
    let census = |edge: &Edge| {
        let mut said = None;
        edge.hub.tally.census(|census| said = Some((census.connections, census.digest.clone())));
        said.unwrap()
    };
    assert_eq!(census(&edge).0, 1);
    // The test's peer panics where nobody takes its frames.
    drop(frames);
    slow.store(false, Ordering::Relaxed);
    edge.push(1);
    assert!(task.await.unwrap_err().is_panic());
    assert_eq!(census(&edge), (0, "0".repeat(32)));
    assert_eq!(*edge.hub.clients().borrow(), 0);
}

#[tokio::test(start_paused = true)]
async fn what_a_slow_client_sends_while_it_is_closed_is_not_published() {
    let mut edge = Edge::start();
    let mut client = edge.connect(StartAt::Now);
    client.frame().await;
    client.slow.store(true, Ordering::Relaxed);
    edge.push(0);
    client.send(json!({"id": "1", "messageType": "order", "content": {}})).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    edge.hub.disconnect(CloseCode::Interrupted);
    client.send(json!({"id": "2", "messageType": "order", "content": {}})).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(edge.broker.queue_len(QUEUE), Some(1), "its answer would be dropped");
    client.slow.store(false, Ordering::Relaxed);
    client.send(json!({"op": "ping"})).await;
    assert_eq!(client.frame().await["content"], 0);
    assert_eq!(client.frame().await, json!({"op": "ack", "id": "1"}));
    assert_eq!(client.frame().await, json!({"closed": 1012}));
}

#[tokio::test(start_paused = true)]
async fn an_unresponsive_client_is_disconnected_after_two_heartbeats() {
    let mut edge = Edge::start();
    let client = edge.connect(StartAt::Now);
    let begun = Instant::now();
    client.task.await.unwrap();
    assert_eq!(begun.elapsed().as_secs(), 50);
    assert_eq!(edge.hub.context.metrics.connections.get(), 0);
}

/// The memory of every connection, idle or not: one kilobyte more is 20 MB in an edge with 20,000 of them. The future
/// contains machine and socket; the mailbox is separate. If a number must grow, change it here and say in the commit
/// why.
#[test]
fn an_idle_connection_is_small() {
    fn future<A, B, F>(_: impl FnOnce(A, B) -> F) -> usize {
        size_of::<F>()
    }
    // As measured on 64 bits, rustc 1.95: 1560, 328, 400, 416.
    let sizes = [
        ("future", future(Session::run), 1568),
        ("mailbox", size_of::<Mailbox>(), 336),
        ("machine", size_of::<Machine>(), 408),
        ("socket", size_of::<Driver>(), 448),
    ];
    let grown: Vec<_> = sizes.iter().filter(|(_, bytes, at_most)| bytes > at_most).collect();
    assert!(grown.is_empty(), "bytes, and how many at most: {grown:?}");
}
