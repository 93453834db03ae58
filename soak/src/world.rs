//! What all parts of a run share: the broker, the edges, the record, and how far the run is.

pub mod control;
mod fleet;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tokio::sync::watch;
use wirepost_testing::broker::{BrokerCluster, PrivateBroker, TestBroker};
use wirepost_testing::setup::Setup;

use crate::plan::PLANS;
use crate::record::{Journal, Outcome, Tags, What};

pub use control::Control;
pub use fleet::{Fleet, Line, Place};

/// Nobody waits longer for a single step of a publisher or client, so that a frozen peer can't stop one.
pub const STEP: Duration = Duration::from_secs(10);

/// How far a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Everybody sends.
    Talking,
    /// Nothing new is sent; what has no answer is repeated, and everybody listens.
    Listening,
    /// All leave.
    Leaving,
}

/// A broker of one run alone.
pub enum Broker {
    One(Box<PrivateBroker>),
    Three(Box<BrokerCluster>),
}

impl Broker {
    async fn start(nodes: usize) -> Result<Self> {
        Ok(match nodes {
            1 => Self::One(Box::new(PrivateBroker::start("soak", &[]).await?)),
            3 => Self::Three(Box::new(BrokerCluster::start("soak").await?)),
            _ => bail!("a broker of {nodes} nodes: 1 and 3 are possible"),
        })
    }

    /// All nodes.
    pub fn nodes(&self) -> Vec<&PrivateBroker> {
        match self {
            Self::One(broker) => vec![broker],
            Self::Three(cluster) => (0..3).map(|node| cluster.node(node)).collect(),
        }
    }
}

/// See the module.
pub struct World {
    pub setup: Setup,
    pub control: Control,
    pub journal: Journal,
    pub fleet: Fleet,
    /// One of this run alone; without it the broker is shared, and not to be broken.
    pub broker: Option<Broker>,
    pub http: reqwest::Client,
    pub stage: watch::Sender<Stage>,
    /// Messages that are repeated until they are confirmed.
    open: AtomicUsize,
}

impl World {
    /// With this many edges, on a broker of its own with this many nodes; with none, on the shared one. With an operator, on the shared API
    /// server.
    pub async fn start(edges: usize, nodes: usize, operator: bool) -> Result<Arc<Self>> {
        let broker = if nodes > 0 { Some(Broker::start(nodes).await?) } else { None };
        let nodes: Vec<TestBroker> = match &broker {
            Some(broker) => broker.nodes().into_iter().map(|node| TestBroker::clone(node)).collect(),
            None => vec![TestBroker::from_env()?],
        };
        // Services know the first node only, as they do behind a name that leads to one; edges know all.
        let (control, setup) = Control::start(nodes[0].vhost().await?, operator).await?;
        let journal = Journal::new(PLANS.iter().map(crate::plan::Plan::business).collect());
        let fleet = Fleet::start(&setup, &control, &nodes, edges).await?;
        control.settled(&fleet).await?;
        let http = reqwest::Client::builder().no_proxy().timeout(STEP).pool_max_idle_per_host(0).build()?;
        let stage = watch::Sender::new(Stage::Talking);
        Ok(Arc::new(Self { setup, control, journal, fleet, broker, http, stage, open: AtomicUsize::new(0) }))
    }

    /// The token call, as a service makes it: a ticket.
    pub async fn ticket(
        &self,
        place: &Place,
        business: usize,
        unique_id: &str,
        client_type: &str,
        tags: &Tags,
    ) -> Result<String> {
        let mut query = vec![("uniqueId", unique_id), ("clientType", client_type)];
        query.extend(tags.iter().map(|tag| ("tags", tag.as_str())));
        let mut url =
            reqwest::Url::parse(&format!("http://{}/{}/websocket/token", place.address(), PLANS[business].name))?;
        url.query_pairs_mut().extend_pairs(query);
        let key = self.control.key(&self.setup, business);
        let answer = self.http.get(url).header("x-api-key", key).send().await?;
        let (status, body) = (answer.status().as_u16(), answer.text().await?);
        if (400..500).contains(&status) && status != 408 {
            self.journal.broken(format!("a token call was refused: {status}: {body}"));
        }
        let body: Value = serde_json::from_str(&body)?;
        let url = body["data"].as_str().with_context(|| format!("a token call without data: {body}"))?;
        Ok(url.split_once("/socket/").context("a token call without a socket URL")?.1.to_owned())
    }

    /// How far the run is.
    pub fn stage(&self) -> Stage {
        *self.stage.borrow()
    }

    /// A message begins that is repeated until it is confirmed.
    pub fn opens(&self) {
        self.open.fetch_add(1, Ordering::Relaxed);
    }

    /// It is confirmed, or refused for good.
    pub fn closes(&self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
    }

    /// Messages that are still repeated.
    pub fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Writes the end of an attempt.
    pub fn answered(&self, message: usize, outcome: Outcome) {
        self.journal.note(What::Answered { message, outcome });
    }
}
