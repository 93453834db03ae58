//! Failures of a cluster: pods that are killed, programs of Kubernetes that stop; and a small conversation that must survive them.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use serde_json::json;
use tokio::process::Command;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use super::{Business, Node, SYSTEM};
use crate::broker::PATIENCE;
use crate::client::Client;
use crate::cluster::wait;
use crate::service::Service;
use crate::traffic::{Outcome, Pusher, Sender, all_in_queue, pushed_in_order};

/// All three kinds of message; no limit that a test meets; queues go with the business, whatever is left in them.
const DECLARATION: &str = r"
apiVersion: wirepost.dev/v1alpha1
kind: WsBusiness
metadata: {name: NAME, namespace: NAME, annotations: {wirepost.dev/delete-queues: now}}
spec:
  clientTypes: [app]
  routes:
    - {messageType: order.placed, sendType: ClientToServer, queue: {name: orders}}
    - {messageType: payment.completed, sendType: ServerToClient, to: [app]}
    - {messageType: chat.hello, sendType: ClientToClient, from: [app], to: [app]}
  limits: {messagesPerSecond: 10000, burst: 20000}
  access: {secretName: access}
";
const ADMIN: u16 = 9090;
const NEWCOMERS: u32 = 6;
/// docs/protocol.md promises an answer within 2 s; the rest is for a machine that starts a broker meanwhile.
const ANSWER: Duration = Duration::from_secs(8);
/// Longer than any failure here lasts.
const LONG: Duration = Duration::from_mins(4);

impl Node {
    /// Declares a business of all three kinds of message, in a namespace of its own name. One that a failed test left goes first.
    pub async fn declare(&self, name: &str) -> Result<()> {
        self.kubectl(&["delete", "namespace", name, "--ignore-not-found", "--timeout", "2m"]).await?;
        self.namespace(name).await?;
        Ok(self.cluster.apply_yaml(&DECLARATION.replace("NAME", name)).await?)
    }

    /// What [`Node::declare`] made, when it is ready.
    pub async fn declared(&self, name: &str) -> Result<Business<'_>> {
        self.ready(name, name).await?;
        self.business(name, name, "access").await
    }

    /// Waits until a change of a declared business, made now, is in use: operator, broker and edges do their work.
    pub async fn changes(&self, name: &str, messages_per_second: u32) -> Result<()> {
        let patch = json!({"spec": {"limits": {"messagesPerSecond": messages_per_second}}}).to_string();
        self.kubectl(&["patch", "wsbusiness", name, "--namespace", name, "--type", "merge", "--patch", &patch]).await?;
        self.ready(name, name).await.map(drop)
    }

    /// Takes a declared business away.
    pub async fn undeclare(&self, name: &str) -> Result<()> {
        // By itself: the namespace controller takes its time after an API server was away or a definition has changed.
        self.cluster.delete(name, name).await?;
        self.cluster.wait_gone(name, name).await?;
        self.kubectl(&["delete", "namespace", name, "--wait=false"]).await.map(drop)
    }

    /// Deletes a pod of the system namespace by force, as one does when its node does not answer.
    pub async fn kill(&self, pod: &str) -> Result<()> {
        self.kubectl(&["delete", "pod", pod, "--namespace", SYSTEM, "--force", "--grace-period=0"]).await.map(drop)
    }

    /// The operator's pod that leads, as the Lease has it; waits where the Lease was just given up.
    pub async fn leader(&self) -> Result<String> {
        let leases = self.cluster.api::<Lease>(SYSTEM);
        let held =
            wait(&leases, "wirepost-operator", "have a holder", |lease| lease.and_then(holder).is_some()).await?;
        held.as_ref().and_then(holder).context("nobody holds the Lease")
    }

    /// Admin ports of the `operator`s or `edge`s. Reached from here only where pods are, as they are on a cluster of this machine.
    pub async fn admin_ports(&self, component: &str) -> Result<Vec<SocketAddr>> {
        let of = ListParams::default().labels(&format!("app.kubernetes.io/component={component}"));
        let pods = self.cluster.api::<Pod>(SYSTEM).list(&of).await?;
        let addresses = pods.into_iter().filter(|pod| pod.metadata.deletion_timestamp.is_none());
        let addresses = addresses.filter_map(|pod| pod.status?.pod_ip);
        addresses.map(|address| Ok(SocketAddr::new(address.parse()?, ADMIN))).collect()
    }

    /// A series of the metrics there. Does not ask the API server, unlike [`Node::metric`].
    pub async fn scrape(&self, admin: SocketAddr, series: &str) -> Result<f64> {
        let text = self.http.get(format!("http://{admin}/metrics")).send().await?.text().await?;
        let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        Ok(line.with_context(|| format!("{admin} has no {series}"))?.parse()?)
    }
}

/// The pod of the Lease's holder. A restarted container in the same pod is another holder.
fn holder(lease: &Lease) -> Option<String> {
    let holder = lease.spec.as_ref()?.holder_identity.as_deref()?;
    let pod = holder.split('_').next().unwrap_or_default();
    (!pod.is_empty()).then(|| pod.to_owned())
}

impl Business<'_> {
    /// RabbitMQ with the Secret's user, by the broker's port on the node.
    pub async fn amqp_uri(&self) -> Result<String> {
        let at = self.node.node_port(SYSTEM, "rabbitmq", "amqp").await?;
        let get = |key: &str| self.secret.get(key).with_context(|| format!("the Secret has no {key}"));
        Ok(format!("amqp://{}:{}@{at}/{}", get("username")?, get("password")?, get("virtual-host")?))
    }
}

/// A client that sends to the service, and one that the service pushes to, without pause. Both stay connected all the time.
pub struct Talk<'n> {
    node: &'n Node,
    name: String,
    business: Business<'n>,
    edges: SocketAddr,
    uri: String,
    sender: Sender,
    pusher: Pusher,
    receiver: Receiver,
    guests: u32,
}

impl<'n> Talk<'n> {
    /// Declares a business of that name, and begins.
    pub async fn start(node: &'n Node, name: &str) -> Result<Self> {
        node.declare(name).await?;
        let business = node.declared(name).await?;
        let (edges, uri) = (business.edges().await?, business.amqp_uri().await?);
        let sender = Sender::start(business.client("alice", "app").await?);
        let receiver = Receiver::start(business.client("bob", "app").await?);
        let (name, at) = (name.to_owned(), uri.clone());
        let connect = {
            let name = name.clone();
            move || {
                let (at, name) = (at.clone(), name.clone());
                async move { Service::at(&at, &name).await }
            }
        };
        let pusher = Pusher::by(connect, "bob");
        let mut talk = Self { node, name, business, edges, uri, sender, pusher, receiver, guests: 0 };
        talk.flows(PATIENCE).await?;
        Ok(talk)
    }

    /// Waits until all three kinds of message go on, for the connected clients and for a new one. Does not use the API server.
    pub async fn flows(&mut self, limit: Duration) -> Result<()> {
        self.goes_on(limit).await?;
        self.guests += 1;
        let id = format!("guest-{}", self.guests);
        let url = self.business.token_at(self.edges, &id, "app").await?;
        let (_, token) = url.split_once("/socket/").context("a token call without a socket URL")?;
        let mut guest = Client::connect(self.edges, token).await.context("a new client")?;
        guest.send_acked(&json!({"messageType": "chat.hello", "id": id, "toUniqueId": id, "content": {}})).await?;
        ensure!(guest.push().await?["id"] == id);
        guest.leave().await
    }

    /// Waits until [`Talk::flows`] holds for several newcomers in a row: the Service chooses an edge for each.
    pub async fn recovers(&mut self, limit: Duration) -> Result<()> {
        let end = Instant::now() + limit;
        let mut served = 0;
        while served < NEWCOMERS {
            match self.flows(limit).await {
                Ok(()) => served += 1,
                Err(error) if Instant::now() > end => return Err(error.context(format!("not within {limit:?}"))),
                Err(_) => served = 0,
            }
        }
        Ok(())
    }

    /// The same as [`Talk::flows`] for the connected clients only.
    pub async fn goes_on(&mut self, limit: Duration) -> Result<()> {
        self.sender.next_ack(limit).await?;
        self.pusher.next_confirm(limit).await
    }

    /// Ends it, checks that nothing confirmed is missing and that both clients were never cut off, and takes the business away. What
    /// became of each order.
    pub async fn end(self) -> Result<Vec<Outcome>> {
        let (alice, outcomes) = self.sender.stop().await.context("the client that sends")?;
        let pushed = self.pusher.stop().await?;
        let bob = self.receiver.stop(pushed).await.context("the client that is pushed to")?;
        all_in_queue(&Service::at(&self.uri, &self.name).await?, &outcomes).await?;
        alice.leave().await?;
        bob.leave().await?;
        self.node.undeclare(&self.name).await?;
        Ok(outcomes)
    }
}

/// What is not acknowledged is refused in time, and as retryable.
pub fn answered_as_promised(outcomes: &[Outcome]) -> Result<()> {
    for outcome in outcomes {
        ensure!(outcome.took < ANSWER, "{outcome:?}");
        let code = outcome.answer["code"].as_str().unwrap_or_default();
        let again = ["broker_unavailable", "timeout"].contains(&code) && outcome.answer["retryable"] == true;
        ensure!(outcome.acked() || again, "{outcome:?}");
    }
    Ok(())
}

/// A client that reads all the time, so that nothing waits for it.
struct Receiver {
    goal: watch::Sender<Option<u64>>,
    task: JoinHandle<Result<Client>>,
}

impl Receiver {
    fn start(mut client: Client) -> Self {
        let (goal, mut until) = watch::channel(None);
        let task = tokio::spawn(async move {
            let mut next = 0;
            loop {
                if until.borrow_and_update().is_some_and(|goal| next >= goal) {
                    return Ok(client);
                }
                tokio::select! {
                    push = client.push_within(LONG) => {
                        let push = push.with_context(|| format!("{next} pushes came"))?;
                        pushed_in_order(&push, &mut next)?;
                    }
                    changed = until.changed() => changed?,
                }
            }
        });
        Self { goal, task }
    }

    /// Waits until this many pushes have arrived.
    async fn stop(self, goal: u64) -> Result<Client> {
        self.goal.send_replace(Some(goal));
        let abort = self.task.abort_handle();
        let ended = timeout(PATIENCE, self.task).await;
        abort.abort();
        ended.with_context(|| format!("not all of {goal} pushes come"))??
    }
}

/// Kubernetes' own programs, where the cluster is one of tests/cluster/cluster.
pub struct Programs {
    name: String,
}

impl Programs {
    /// Says so and returns nothing where the cluster is another: its programs are not ours to stop.
    pub fn ours(test: &str) -> Option<Self> {
        let name = std::env::var("WIREPOST_TEST_CLUSTER_NAME").ok().filter(|name| !name.is_empty());
        if name.is_none() {
            // Not by `eprintln`, which only a test that fails is heard by.
            let _ = writeln!(
                std::io::stderr(),
                "\nLEFT OUT: {test}: it stops programs of Kubernetes, and those of the cluster that \
                 WIREPOST_TEST_CLUSTER_KUBECONFIG names are not ours to stop"
            );
        }
        name.map(|name| Self { name })
    }

    /// Freezes one: connections stay open, nothing answers.
    pub async fn pause(&self, program: &str) -> Result<()> {
        self.run(&["pause", &self.name, program]).await
    }

    /// Ends one as a power cut would.
    pub async fn kill9(&self, program: &str) -> Result<()> {
        self.run(&["kill9", &self.name, program]).await
    }

    /// Starts what does not run; returns when the node is ready.
    pub async fn start(&self) -> Result<()> {
        self.run(&["start", &self.name]).await
    }

    async fn run(&self, arguments: &[&str]) -> Result<()> {
        let script = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/cluster/cluster"));
        let output = Command::new(script).args(arguments).output().await?;
        if !output.status.success() {
            bail!("tests/cluster/cluster {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr));
        }
        Ok(())
    }
}
