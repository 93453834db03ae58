//! Many clients of one business that talk to each other and to its service while it pushes to all of them, and something happens to the
//! edges meanwhile. What was acknowledged to any of them is remembered, and asked for at the end.
//!
//! Every client keeps to docs/protocol.md: it goes at a random moment of the time that a `drain` gives it, comes back with its resume
//! token and its cursor, backs off with jitter, and repeats what has no answer.

mod ledger;
mod member;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use futures_util::stream::FuturesUnordered;
use futures_util::{StreamExt, TryStreamExt, stream};
use lapin::options::{BasicAckOptions, ConfirmSelectOptions};
use lapin::{Channel, Connection};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use wirepost_core::business::WsBusiness;

pub use ledger::{Kind, Move, Trouble};

use super::{Business, Node};
use crate::broker::{consume, eventually, publish};
use crate::client::Client;
use ledger::Ledger;
use member::Member;

/// One client in this many sends.
const SPEAKERS: usize = 10;
/// Between two pushes.
const PACE: Duration = Duration::from_millis(5);
/// Clients that connect at the same time.
const CONNECTING: usize = 32;
/// For messages on their way, on a machine that is busy with all of them.
const ARRIVAL: Duration = Duration::from_mins(1);
/// From a newcomer's token call to its goodbye.
const WELCOME: Duration = Duration::from_secs(10);

/// What everybody is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    /// Not all are connected: messages to the others are not expected to arrive.
    Gathering,
    Talking,
    Listening,
    Leaving,
}

/// How many clients: `WIREPOST_TEST_CROWD`, or the test's own number.
pub fn size(default: usize) -> usize {
    std::env::var("WIREPOST_TEST_CROWD").ok().and_then(|size| size.parse().ok()).unwrap_or(default)
}

/// They, and the service.
pub struct Crowd<'n> {
    node: &'n Node,
    /// Where the business is declared; also its type.
    pub namespace: String,
    business: Business<'n>,
    ledger: Arc<Ledger>,
    stage: watch::Sender<Stage>,
    members: Vec<JoinHandle<()>>,
    pusher: JoinHandle<Result<Vec<u64>>>,
    _amqp: Connection,
    channel: Channel,
}

impl<'n> Crowd<'n> {
    /// Declares a business, connects `size` clients and lets all of them talk.
    pub async fn gather(node: &'n Node, test: &str, size: usize) -> Result<Self> {
        let namespace = format!("{test}-{:08x}", rand::random::<u32>());
        node.namespace(&namespace).await?;
        node.cluster.apply_yaml(&declaration(&namespace)).await?;
        node.ready(&namespace, "crowd").await?;
        let business = node.business(&namespace, &namespace, "crowd-access").await?;
        let edges = business.edges().await?;
        let amqp = business.amqp().await?;
        let channel = amqp.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;

        let ledger = Arc::new(Ledger::new(size));
        let (stage, staged) = watch::channel(Stage::Gathering);
        let calling = &business;
        let joining = (0..size).map(|number| {
            let (ledger, staged) = (Arc::clone(&ledger), staged.clone());
            async move {
                let url = calling.token_at(edges, &identity(number), "app").await?;
                let (_, ticket) = url.split_once("/socket/").context("a token call without a socket URL")?;
                let member = Member::join(number, edges, ticket, ledger, staged).await;
                let (member, client) = member.with_context(|| format!("client {number} of {size}"))?;
                anyhow::Ok(tokio::spawn(member.live(client)))
            }
        });
        let members = stream::iter(joining).buffer_unordered(CONNECTING).try_collect().await?;
        stage.send_replace(Stage::Talking);
        let pusher = tokio::spawn(push(channel.clone(), business.secret["push-exchange"].clone(), size, staged));
        Ok(Self { node, namespace, business, ledger, stage, members, pusher, _amqp: amqp, channel })
    }

    /// Waits until more of every kind of message is acknowledged and more pushes have come.
    pub async fn talks(&self) -> Result<()> {
        let before = self.ledger.counts();
        let more = || async { Ok(self.ledger.counts().into_iter().zip(before).all(|(now, before)| now > before + 10)) };
        eventually("all kinds of messages go on", ARRIVAL, more).await
    }

    /// What was not as it should be, so far.
    pub fn troubles(&self) -> Vec<Trouble> {
        self.ledger.troubles()
    }

    /// Errors where a client saw anything but `drain` and these.
    pub fn saw_only(&self, kinds: &[Kind]) -> Result<()> {
        let mut others = self.troubles();
        others.retain(|trouble| !kinds.contains(&trouble.kind));
        let some = &others[..others.len().min(10)];
        ensure!(others.is_empty(), "{} troubles, such as {some:#?}", others.len());
        Ok(())
    }

    /// Waits until all clients are connected to these edges, and nobody else is.
    pub async fn connected(&self) -> Result<BTreeMap<String, u64>> {
        let all = || async { Ok(self.node.connections().await?.values().sum::<u64>() == self.members.len() as u64) };
        eventually("all clients are connected", ARRIVAL, all)
            .await
            .with_context(|| format!("{} clients; {:?}", self.members.len(), self.troubles()))?;
        self.node.connections().await
    }

    /// Who came back after a `drain`, so far.
    pub fn moves(&self) -> Vec<Move> {
        self.ledger.moves()
    }

    /// Awaits `event`, and lets one more client come with each `pause` meanwhile, and go again: how many. Each must be let in at once. Where one
    /// is not, `event` comes to its end all the same: half an upgrade would be left to others.
    pub async fn arrivals(&self, pause: Duration, event: impl Future<Output = Result<()>>) -> Result<usize> {
        let edges = self.business.edges().await?;
        let mut event = pin!(event);
        let mut pace = interval(pause);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut open, mut came, mut refused) = (FuturesUnordered::new(), 0, Vec::new());
        let done = loop {
            tokio::select! {
                done = &mut event => break done,
                Some(left) = open.next() => refused.extend(Result::<()>::err(left)),
                _ = pace.tick() => {
                    open.push(self.arrival(edges, came));
                    came += 1;
                }
            }
        };
        while let Some(left) = open.next().await {
            refused.extend(left.err());
        }
        done?;
        ensure!(refused.is_empty(), "{} of {came} newcomers, such as {:?}", refused.len(), refused[0]);
        Ok(came)
    }

    async fn arrival(&self, edges: SocketAddr, number: usize) -> Result<()> {
        let visit = async {
            let url = self.business.token_at(edges, &format!("newcomer-{number}"), "app").await?;
            let (_, ticket) = url.split_once("/socket/").context("a token call without a socket URL")?;
            member::let_in(edges, ticket, None).await?.leave().await
        };
        let visit = timeout(WELCOME, visit).await.unwrap_or_else(|_| Err(anyhow!("not within {WELCOME:?}")));
        visit.with_context(|| format!("newcomer {number}"))
    }

    /// Waits until this many of the edges run the business.
    pub async fn programmed(&self, edges: &str) -> Result<()> {
        let all = |wsb: &WsBusiness| {
            let edges_of = wsb.status.as_ref().and_then(|status| status.edges.as_ref());
            edges_of.is_some_and(|found| found.summary.as_deref() == Some(edges))
        };
        self.node.cluster.wait_for(&self.namespace, "crowd", &format!("run on {edges} edges"), all).await.map(drop)
    }

    /// An identity of its own, as one of the crowd's business, at one edge.
    pub async fn guest(&self, name: &str, edge: SocketAddr) -> Result<Client> {
        let url = self.business.token(name, "app").await?;
        let (_, ticket) = url.split_once("/socket/").context("a token call without a socket URL")?;
        member::let_in(edge, ticket, None).await
    }

    /// Ends the talk and checks that everything acknowledged is where it belongs: clients' messages in the queue or with the other client,
    /// every push with its addressee, in order and once. At last each client gets one more push, so that all of them are served.
    pub async fn settle(&mut self) -> Result<Summary> {
        self.stage.send_replace(Stage::Listening);
        let pushed = (&mut self.pusher).await??;
        eventually("every send has its answer", ARRIVAL, || async { Ok(self.ledger.waiting() == 0) })
            .await
            .with_context(|| format!("{:?}", self.troubles()))?;
        self.all_queued().await?;
        let missing = || self.ledger.missing(&pushed);
        if eventually("everything arrives", ARRIVAL, || async { Ok(missing().is_empty()) }).await.is_err() {
            let missing = missing();
            let some: Vec<_> = missing.iter().take(10).collect();
            anyhow::bail!("{} messages are lost, such as {some:?}; {:?}", missing.len(), self.troubles());
        }
        self.ledger.in_order()?;
        let [to_server, to_clients, _] = self.ledger.counts();
        Ok(Summary { pushed: pushed.iter().sum(), to_server, to_clients, repeated: self.ledger.repeated() })
    }

    /// Disconnects all clients, and deletes the business.
    pub async fn leave(self) -> Result<()> {
        self.stage.send_replace(Stage::Leaving);
        for member in self.members {
            member.await?;
        }
        self.node.kubectl(&["delete", "namespace", &self.namespace, "--wait=false"]).await?;
        self.node.cluster.wait_gone(&self.namespace, "crowd").await
    }

    async fn all_queued(&self) -> Result<()> {
        let mut queue = consume(&self.channel, &self.business.secret["queue.reports"], 500).await?;
        let mut missing: BTreeSet<String> = self.ledger.acked_reports();
        let deadline = Instant::now() + ARRIVAL;
        while !missing.is_empty() {
            let next = tokio::time::timeout_at(deadline, queue.next()).await;
            let some: Vec<_> = missing.iter().take(10).collect();
            let lost = || format!("{} acknowledged, and not in the queue, such as {some:?}", missing.len());
            let delivery = next.with_context(lost)?.context("the consumer ended")??;
            delivery.ack(BasicAckOptions::default()).await?;
            let envelope: Value = serde_json::from_slice(&delivery.data)?;
            missing.remove(envelope["id"].as_str().context("an envelope without id")?);
        }
        Ok(())
    }
}

/// What was talked.
#[derive(Clone, Copy, Debug)]
pub struct Summary {
    /// Pushes of the service, all of them with their addressee.
    pub pushed: u64,
    /// Acknowledged messages to the service, all of them in its queue.
    pub to_server: u64,
    /// Acknowledged messages among clients, all of them with the other.
    pub to_clients: u64,
    /// Pushes of the service that came to a client a second time.
    pub repeated: u64,
}

fn identity(number: usize) -> String {
    format!("client-{number}")
}

fn declaration(business: &str) -> String {
    format!(
        "{{apiVersion: wirepost.dev/v1alpha1, kind: WsBusiness, metadata: {{name: crowd, namespace: {business}}}, spec: {{
          businessType: {business}, clientTypes: [app], deletionPolicy: Delete, access: {{secretName: crowd-access}},
          routes: [
            {{messageType: report, sendType: ClientToServer, queue: {{name: reports}}}},
            {{messageType: notice, sendType: ServerToClient, to: [app]}},
            {{messageType: hello, sendType: ClientToClient, from: [app], to: [app]}}]}}}}"
    )
}

/// Pushes to everybody in turn, and at the end once more to each; how many each was sent.
async fn push(channel: Channel, exchange: String, size: usize, stage: watch::Receiver<Stage>) -> Result<Vec<u64>> {
    let mut pushed = vec![0; size];
    let mut last = size;
    for number in (0..size).cycle() {
        if *stage.borrow() == Stage::Talking {
            sleep(PACE).await;
        } else if last == 0 {
            break;
        } else {
            last -= 1;
        }
        let id = ledger::push_id(number, pushed[number]);
        let push = json!({"id": id, "messageType": "notice", "toUniqueId": identity(number), "content": {}});
        publish(&channel, &exchange, "", push.to_string().as_bytes()).await.context("a push")?;
        pushed[number] += 1;
    }
    ensure!(pushed.iter().all(|&pushed| pushed > 0));
    Ok(pushed)
}
