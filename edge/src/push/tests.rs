//! Joining and resuming under any interleaving: each addressed message exactly once and in order, or a gap.
//!
//! The broker runs inside the process and time stands still while anything can run, so that a failure is reproducible.

mod attach;
mod compressed;
mod judged;
mod orders;
mod waits;

use std::sync::Arc;

use proptest::prelude::*;
use tokio::{task::JoinHandle, time::Duration};
use tokio_util::sync::CancellationToken;
use wirepost_core::{
    SendType,
    compile::compile_one,
    edge_config::{Audience, BusinessConfig, Delivery},
    topology::Topology,
};

use super::{
    catch_up::{self, StartAt},
    context::HubContext,
    greeting::Greeting,
    hub::Hub,
    mailbox::{
        Mailbox,
        outbound::{Bounds, Next, Outbound},
    },
    reader,
};
use crate::{
    broker::{Broker, Position, Publication, memory::MemoryBroker},
    business::Business,
    clock,
    config::settings::Settings,
    metrics::Metrics,
};

const STREAM: &str = "wirepost.payments.stream";
/// Virtual time: it passes only when nothing can run.
const QUIET: Duration = Duration::from_secs(20);

fn declared() -> (BusinessConfig, Topology) {
    declared_with(Delivery::Durable)
}

fn declared_with(delivery: Delivery) -> (BusinessConfig, Topology) {
    let (config, topology) = declared_routes(delivery, &["n"]);
    assert_eq!(config.routes[0].send_type, SendType::ServerToClient);
    assert_eq!(config.routes[0].audience, Audience::Everyone);
    (config, topology)
}

/// With these message types.
fn declared_routes(delivery: Delivery, types: &[&str]) -> (BusinessConfig, Topology) {
    let route = |message_type: &&str| serde_json::json!({"messageType": message_type, "sendType": "ServerToClient", "to": ["app"], "audience": "Everyone"});
    let business = serde_json::from_value(serde_json::json!({
        "apiVersion": "wirepost.dev/v1alpha1", "kind": "WsBusiness",
        "metadata": {"name": "payments", "namespace": "shop"},
        "spec": {
            "clientTypes": ["app"],
            "routes": types.iter().map(route).collect::<Vec<_>>(),
            "push": {"delivery": delivery},
        },
    }))
    .unwrap();
    let compiled = compile_one(&business).unwrap();
    (compiled.config, compiled.topology)
}

/// One edge: a hub with its reader.
struct Edge {
    hub: Arc<Hub>,
    cancel: CancellationToken,
    reader: JoinHandle<()>,
}

impl Edge {
    fn start(broker: &(impl Broker + Clone), log_bytes: usize) -> Self {
        Self::start_with(broker, log_bytes, declared().0)
    }

    fn start_with(broker: &(impl Broker + Clone), log_bytes: usize, config: BusinessConfig) -> Self {
        let metrics = Arc::new(Metrics::default());
        // Pages of a few messages, so that a catch-up takes several.
        let settings = Settings {
            log_bytes,
            backlog_bytes: 1 << 20,
            catch_up_bytes: 1500,
            catch_up_readers: 1,
            linger: Duration::from_secs(5),
            ..Settings::default()
        };
        let context = HubContext::new(Arc::new(broker.clone()), metrics, settings);
        let hub = Arc::new(Hub::new(Arc::new(Business::try_new(config).unwrap()), Arc::new(context)));
        let cancel = CancellationToken::new();
        let reader = tokio::spawn(reader::run(Arc::clone(&hub), cancel.clone()));
        Self { hub, cancel, reader }
    }

    async fn stop(self) {
        self.cancel.cancel();
        self.reader.await.unwrap();
    }
}

/// A connection of alice with the task that lets it catch up.
fn open(edge: &Edge, number: u64, from: StartAt, bounds: Bounds) -> (Arc<Mailbox>, JoinHandle<()>) {
    let outbound =
        Outbound::new(bounds, prometheus_client::metrics::gauge::Gauge::default(), Arc::clone(&edge.hub.backlog));
    let mailbox = Arc::new(Mailbox::new(number, "alice", "app", true, outbound));
    edge.hub.enter(&mailbox, &[]);
    let (hub, of_task) = (Arc::clone(&edge.hub), Arc::clone(&mailbox));
    let task = tokio::spawn(async move {
        let mut greeting = Greeting::new(&hub, Arc::clone(&of_task), String::new(), 0);
        catch_up::run(&hub, &of_task, from, &mut greeting).await;
    });
    (mailbox, task)
}

/// A client across its connections.
#[derive(Default)]
struct Client {
    connection: Option<(Arc<Mailbox>, JoinHandle<()>, Arc<Hub>)>,
    cursor: Option<Position>,
    /// Number of the next message that it must get; `None`: any number, after a gap.
    next: Option<u64>,
    gaps: u32,
}

impl Client {
    async fn connect(&mut self, edge: &Edge, number: u64, bounds: Bounds) {
        self.cut();
        let (mailbox, task) = open(edge, number, self.cursor.map_or(StartAt::Now, StartAt::After), bounds);
        self.connection = Some((mailbox, task, Arc::clone(&edge.hub)));
        // The first frame is always the welcome: a client without a cursor knows its position from then on.
        assert!(self.read(1).await == 1 || self.connection.is_none(), "no welcome");
    }

    fn cut(&mut self) {
        if let Some((mailbox, task, hub)) = self.connection.take() {
            task.abort();
            hub.leave(&mailbox);
        }
    }

    /// Reads at most `count` frames, fewer if no more arrive.
    async fn read(&mut self, count: usize) -> usize {
        for done in 0..count {
            let Some((mailbox, ..)) = &self.connection else { return done };
            let mailbox = Arc::clone(mailbox);
            let next = tokio::time::timeout(QUIET, std::future::poll_fn(|cx| mailbox.outbound.poll_next(cx))).await;
            match next {
                Err(_) => return done,
                Ok(Next::Close(_) | Next::Shortened | Next::LetGo) => self.cut(),
                Ok(Next::Item(item)) => {
                    self.see(&serde_json::from_slice(item.payload()).unwrap());
                }
            }
        }
        count
    }

    fn see(&mut self, frame: &serde_json::Value) {
        // A welcome that does not resume from the client's cursor implies the gap; the reason follows.
        if frame["op"] == "welcome" && frame["resumed"] == false && self.cursor.is_some() {
            self.gaps += 1;
            self.next = None;
        }
        if let Some(cursor) = frame["cursor"].as_str() {
            let cursor: wirepost_core::Cursor = cursor.parse().unwrap();
            self.cursor = Some(Position { offset: cursor.offset, fingerprint: cursor.fingerprint });
        }
        match frame["op"].as_str() {
            Some("gap") => {
                self.gaps += 1;
                self.next = None;
            }
            Some(_) => {}
            None => {
                let number = frame["content"].as_u64().unwrap();
                if let Some(next) = self.next {
                    assert_eq!(number, next, "a message is missing, doubled or out of order");
                }
                self.next = Some(number + 1);
            }
        }
    }
}

fn publish(broker: &MemoryBroker, body: String) {
    drop(broker.publish(
        1,
        Publication {
            exchange: "wirepost.payments.push".into(),
            routing_key: "n".into(),
            queue: None,
            message_id: String::new(),
            body: body.into(),
            timestamp: clock::now_ms(),
            headers: vec![],
        },
    ));
}

#[derive(Clone, Debug)]
enum Step {
    /// This many pushes to the client.
    Push(u8),
    /// This many pushes to another identity, and garbage.
    Noise(u8),
    /// The client comes (back), to the one edge or the other.
    Connect(bool),
    /// It reads this many frames.
    Read(u8),
    /// It disconnects.
    Cut,
    /// Everything comes to rest.
    Settle,
    /// The stream is deleted and declared again.
    Recreate,
    /// The stream forgets all but the last few messages.
    Truncate(u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (1..30_u8).prop_map(Step::Push),
        2 => (1..5_u8).prop_map(Step::Noise),
        4 => any::<bool>().prop_map(Step::Connect),
        6 => (1..40_u8).prop_map(Step::Read),
        2 => Just(Step::Cut),
        2 => Just(Step::Settle),
        1 => Just(Step::Recreate),
        1 => (0..20_u8).prop_map(Step::Truncate),
    ]
}

async fn settle() {
    tokio::time::sleep(QUIET).await;
}

async fn run(steps: Vec<Step>, log_bytes: usize, bounds: Bounds) {
    let broker = MemoryBroker::new();
    broker.apply(&[declared().1]);
    let edges = [Edge::start(&broker, log_bytes), Edge::start(&broker, 64 << 20)];
    let mut client = Client::default();
    let (mut pushed, mut connections, mut ends) = (0_u64, 0, 0_u64);
    let mut excused = false;
    let pad = "-".repeat(400);
    for step in steps {
        match step {
            Step::Push(count) => {
                for _ in 0..count {
                    publish(
                        &broker,
                        format!(r#"{{"messageType":"n","toUniqueId":"alice","content":{pushed},"pad":"{pad}"}}"#),
                    );
                    pushed += 1;
                    ends += 1;
                }
            }
            Step::Noise(count) => {
                for i in 0..count {
                    publish(&broker, format!(r#"{{"messageType":"n","toUniqueId":"bob","content":{i}}}"#));
                    publish(&broker, "{".to_owned());
                    ends += 2;
                }
            }
            Step::Connect(which) => {
                if client.cursor.is_none() {
                    // It starts from now; "now" must be defined to be checked.
                    settle().await;
                    client.next = Some(pushed);
                }
                connections += 1;
                client.connect(&edges[usize::from(which)], connections, bounds).await;
            }
            Step::Read(count) => {
                client.read(count.into()).await;
            }
            Step::Cut => client.cut(),
            Step::Settle => settle().await,
            Step::Recreate => {
                broker.delete_stream(STREAM);
                broker.create_stream(STREAM);
                ends = 0;
                excused = true;
            }
            Step::Truncate(keep) => {
                broker.truncate_stream(STREAM, ends.saturating_sub(keep.into()));
                excused = true;
            }
        }
    }
    // A client that reconnects at the end has everything, or got a gap.
    if client.cursor.is_some() {
        settle().await;
        for attempt in 0.. {
            assert!(attempt < 500, "the client makes no progress");
            if client.connection.is_none() {
                connections += 1;
                client.connect(&edges[0], connections, bounds).await;
            }
            if client.read(1000).await < 1000 && client.connection.is_some() {
                break;
            }
        }
        assert!(client.gaps == 0 || excused, "a gap without a loss");
        if client.gaps == 0 {
            assert_eq!(client.next, Some(pushed), "not everything arrived");
        }
        // After a gap it continues from now.
        publish(&broker, format!(r#"{{"messageType":"n","toUniqueId":"alice","content":{pushed},"pad":"{pad}"}}"#));
        client.read(1000).await;
        assert_eq!(client.next, Some(pushed + 1), "the newest message did not arrive");
    }
    client.cut();
    for edge in edges {
        edge.stop().await;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]
    #[test]
    fn each_message_once_in_order_or_a_gap(
        steps in prop::collection::vec(step(), 1..40),
        log_bytes in prop_oneof![Just(0_usize), Just(2_000), Just(20_000)],
        messages in prop_oneof![Just(8_usize), Just(1000)],
        // The small one has room for a welcome and a gap, and is smaller than two pushes.
        bytes in prop_oneof![Just(1000_usize), Just(1 << 20)],
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(run(steps, log_bytes, Bounds { messages, bytes }));
    }
}
