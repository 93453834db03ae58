//! On how many nodes of the broker each queue and stream has a replica. Queues created while nodes were missing have too few, and RabbitMQ
//! adds none on its own (unless its own reconciliation is switched on).
//!
//! Quorum queues get the missing members. Only `rabbitmq-streams add_replica` can add one to a stream: no API offers it (4.0 to 4.3), so
//! the report names the command.

use std::{
    collections::{BTreeSet, HashMap, HashSet, hash_map::DefaultHasher},
    hash::{Hash, Hasher},
    sync::Arc,
    time::Duration,
};

use futures_util::{StreamExt, stream};
use serde::Deserialize;
use serde_json::json;
use tokio::time::Instant;
use wirepost_core::{names, topology::GROUP_SIZE};
use wirepost_rabbitmq::CallError;

use super::{
    Businesses, Mode,
    actor::{Actor, Context, Finished},
};
use crate::{Error, Problem, ReplicaRepair, Report, actual::Node};

/// Between two checks while nothing has changed: a list of all queues costs the broker 8 ms for every 20.
const INTERVAL: Duration = Duration::from_mins(5);
/// The same in sweeps while replicas are missing.
const REPAIR_SWEEPS: u32 = 3;
/// Members that one check adds at most, and how many at the same time: each has to copy the queue's messages.
const MAX_ADDED: usize = 200;
const PARALLEL: usize = 2;

/// See the module.
#[derive(Default)]
pub(super) struct Replicas {
    checking: bool,
    /// When the last check began, and the nodes at that time.
    last: Option<(Instant, Vec<Node>)>,
    /// Queues were created, or replicas added, since.
    due: bool,
    /// By business.
    missing: HashMap<String, Vec<Problem>>,
}

/// What a check found; `None` = nothing is known.
pub(super) struct Checked {
    missing: Option<HashMap<String, Vec<Problem>>>,
    added: usize,
}

/// How many replicas a queue or stream should have on this many nodes. An even number would survive no more failures than one less.
pub(super) fn wanted(nodes: usize) -> usize {
    if nodes >= GROUP_SIZE { GROUP_SIZE } else { 1 }
}

impl Replicas {
    /// Queues were created.
    pub(super) fn check_soon(&mut self) {
        self.due = true;
    }

    /// The report with what is missing.
    pub(super) fn complete(&self, business: &str, report: &Arc<Report>) -> Arc<Report> {
        let Some(missing) = self.missing.get(business) else { return Arc::clone(report) };
        let mut report = Report::clone(report);
        report.problems.extend(missing.iter().cloned());
        Arc::new(report)
    }

    fn is_due(&self, nodes: &[Node], sweep: Duration) -> bool {
        let Some((since, before)) = &self.last else { return true };
        let interval = if self.missing.is_empty() { INTERVAL } else { sweep * REPAIR_SWEEPS };
        self.due || before != nodes || since.elapsed() >= interval
    }
}

impl Actor {
    /// Begins a check if one is due. `nodes`: as a snapshot has just shown them.
    pub(super) fn check_replicas(&mut self, nodes: &[Node]) {
        let expected = self.expected_nodes.unwrap_or(nodes.len());
        let replicas = &mut self.replicas;
        if self.context.mode != Mode::Cluster || !self.context.may_write() || replicas.checking {
            return;
        }
        if wanted(expected) == 1 {
            // Nothing can be missing.
            self.replicas_checked(Checked { missing: Some(HashMap::new()), added: 0 });
            return;
        }
        if !replicas.is_due(nodes, self.sweep) {
            return;
        }
        replicas.checking = true;
        replicas.due = false;
        replicas.last = Some((Instant::now(), nodes.to_vec()));
        let ours: HashSet<String> = self.businesses.names().cloned().collect();
        let (context, running) = (Arc::clone(&self.context), running(nodes));
        self.tasks.spawn(async move {
            let check = context.check_replicas(&ours, &running, wanted(expected));
            let checked = context.unless_stopped(check).await.unwrap_or_else(|error| {
                tracing::warn!(%error, "the replicas of queues and streams can't be checked now");
                Checked { missing: None, added: 0 }
            });
            Finished::Replicas(checked)
        });
    }

    pub(super) fn replicas_checked(&mut self, checked: Checked) {
        let replicas = &mut self.replicas;
        replicas.checking = false;
        // Another check sees the result.
        replicas.due |= checked.added > 0;
        let Some(missing) = checked.missing else { return };
        let before = std::mem::replace(&mut replicas.missing, missing);
        let names = before.keys().chain(replicas.missing.keys());
        let news = names.filter(|name| before.get(*name) != replicas.missing.get(*name));
        let news: HashSet<String> = news.cloned().collect();
        if !news.is_empty() {
            self.context.owner.ensure_again(Businesses::Only(&news));
        }
    }
}

fn running(nodes: &[Node]) -> BTreeSet<String> {
    nodes.iter().filter(|node| node.running).map(|node| node.name.clone()).collect()
}

#[derive(Deserialize)]
struct Queue {
    name: String,
    #[serde(rename = "type", default)]
    kind: String,
    /// Nodes; absent for a classic queue.
    #[serde(default)]
    members: Vec<String>,
}

const COLUMNS: &str = "disable_stats=true&columns=name,type,members";

impl Context {
    async fn check_replicas(
        &self,
        businesses: &HashSet<String>,
        running: &BTreeSet<String>,
        wanted: usize,
    ) -> Result<Checked, Error> {
        let doing = "reading the replicas of queues and streams";
        let queues: Vec<Queue> = self
            .management
            .get(doing, &["queues", self.management.vhost()], COLUMNS)
            .await
            .map_err(|e| e.into_error(doing, "is this a RabbitMQ 4?"))?;
        let mut missing: HashMap<String, Vec<Problem>> = HashMap::new();
        let mut to_add = Vec::new();
        for queue in queues {
            let Some(business) = names::owner(&queue.name).filter(|business| businesses.contains(*business)) else {
                continue;
            };
            // Queues of listeners and edges are not ours to repair.
            let ours = queue.kind == "stream" || wirepost_core::topology::shared_policy_of(&queue.name).is_some();
            if !ours || queue.members.is_empty() || queue.members.len() >= wanted {
                continue;
            }
            let lacking = wanted - queue.members.len();
            let free: Vec<&String> = running.iter().filter(|node| !queue.members.contains(node)).collect();
            let repair = if free.len() < lacking {
                ReplicaRepair::WhenNodesJoin { running: running.len() }
            } else if queue.kind == "quorum" {
                let offset = spread(&queue.name, free.len());
                let nodes = (0..lacking).map(|i| free[(offset + i) % free.len()].clone());
                to_add.extend(nodes.map(|node| (queue.name.clone(), node)));
                ReplicaRepair::BeingAdded
            } else {
                ReplicaRepair::ByHand { vhost: self.management.vhost().to_owned(), node: free[0].clone() }
            };
            let problem = Problem::TooFewReplicas { queue: queue.name.clone(), on: queue.members, wanted, repair };
            missing.entry(business.to_owned()).or_default().push(problem);
        }
        to_add.truncate(MAX_ADDED);
        let adding = stream::iter(to_add).map(|(queue, node)| self.add_member(queue, node)).buffer_unordered(PARALLEL);
        let added = adding.filter(|added| std::future::ready(*added)).count().await;
        Ok(Checked { missing: Some(missing), added })
    }

    /// Whether the member was added. The next check retries failures.
    async fn add_member(&self, queue: String, node: String) -> bool {
        if !self.may_write() {
            return false;
        }
        let doing = format!("add a replica of queue {queue} on {node}");
        let path = ["queues", "quorum", self.management.vhost(), &queue, "replicas", "add"];
        match self.management.post(&doing, &path, &json!({ "node": node })).await {
            Ok(()) => {
                tracing::info!(vhost = self.management.vhost(), "{doing}");
                true
            }
            Err(CallError::Object(cause) | CallError::NotFound(cause)) => {
                tracing::warn!(vhost = self.management.vhost(), cause, "not done: {doing}");
                false
            }
            Err(CallError::Failed(error) | CallError::Fatal(error)) => {
                tracing::warn!(vhost = self.management.vhost(), %error, "not done: {doing}");
                false
            }
        }
    }
}

/// So that not all queues get their new members on the same nodes.
fn spread(queue: &str, nodes: usize) -> usize {
    let mut hasher = DefaultHasher::new();
    queue.hash(&mut hasher);
    usize::try_from(hasher.finish() % nodes as u64).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_copies_where_there_are_three_nodes_and_never_an_even_number() {
        assert_eq!([1, 2, 3, 4, 5, 7].map(wanted), [1, 1, 3, 3, 3, 3]);
    }
}
