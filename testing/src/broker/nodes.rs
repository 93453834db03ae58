//! A broker of several nodes, for tests in which one of them is down.

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::PrivateBroker;
use crate::permits::{Kind, Permit};
use crate::private::Service;

const NODES: usize = 3;

/// Three nodes of one test alone, which it may freeze and kill. Removed, with their data, when dropped.
#[derive(Debug)]
pub struct BrokerCluster {
    name: String,
    nodes: Vec<PrivateBroker>,
    _permit: Permit,
}

impl BrokerCluster {
    /// Starts all three, once it has a permit; takes about ten seconds.
    pub async fn start(name: &str) -> Result<Self> {
        Self::start_with(name, &[]).await
    }

    /// Starts the first node alone. The others join it by [`PrivateBroker::start_again`].
    pub async fn start_first(name: &str) -> Result<Self> {
        Self::start_with(name, &["--first"]).await
    }

    async fn start_with(name: &str, options: &[&str]) -> Result<Self> {
        let permit = Permit::take(Kind::BrokerCluster).await?;
        let name = format!("{name}-{}", std::process::id());
        let names: Vec<String> = (1..=NODES).map(|i| format!("{name}-{i}")).collect();
        if let Err(error) = Service::RabbitMq.run(&[&["cluster", &name], options].concat()).await {
            for name in names {
                let _ = Service::RabbitMq.run(&["remove", &name]).await;
            }
            return Err(error);
        }
        let mut nodes = Vec::new();
        for name in names {
            nodes.push(PrivateBroker::node(name).await?);
        }
        Ok(Self { name, nodes, _permit: permit })
    }

    /// Its name; the nodes are called after it, `NAME-1` and so on.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The node of this number, from 0 on.
    pub fn node(&self, i: usize) -> &PrivateBroker {
        &self.nodes[i]
    }

    /// Its nodes.
    pub fn nodes(&self) -> &[PrivateBroker] {
        &self.nodes
    }

    /// The number of the node that leads a quorum queue or stream, as the node `asked` knows it.
    pub async fn leader(&self, asked: usize, vhost: &str, queue: &str) -> Result<usize> {
        let queue = self.queue(asked, vhost, queue).await?;
        let leader = queue["leader"].as_str().context("the queue has no leader")?;
        self.number(leader)
    }

    /// The numbers of the nodes that have a replica of a quorum queue or stream, sorted.
    pub async fn members(&self, asked: usize, vhost: &str, queue: &str) -> Result<Vec<usize>> {
        let queue = self.queue(asked, vhost, queue).await?;
        let members = queue["members"].as_array().context("the queue has no members")?;
        let mut numbers: Vec<usize> =
            members.iter().filter_map(Value::as_str).map(|node| self.number(node)).collect::<Result<_>>()?;
        numbers.sort_unstable();
        Ok(numbers)
    }

    async fn queue(&self, asked: usize, vhost: &str, queue: &str) -> Result<Value> {
        let answer = self.nodes[asked].call("GET", &format!("/api/queues/{vhost}/{queue}"), "").await?;
        Ok(serde_json::from_str(&answer)?)
    }

    /// `wirepost-NAME@localhost` is the node's name in RabbitMQ.
    fn number(&self, node: &str) -> Result<usize> {
        let name = node.strip_prefix("wirepost-").and_then(|node| node.strip_suffix("@localhost"));
        match self.nodes.iter().position(|one| Some(one.name()) == name) {
            Some(number) => Ok(number),
            None => bail!("{node} is not a node of this cluster"),
        }
    }
}

impl Drop for BrokerCluster {
    fn drop(&mut self) {
        // At the same time: in order, the last ones would wait for those that have ended.
        for node in &self.nodes {
            let _ = Service::RabbitMq.command().args(["kill9", node.name()]).output();
        }
    }
}
