//! Whether our policies are in force. Of all policies that match an object, only the one with the highest priority is in force; an
//! operator policy is merged over it.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt, stream};
use serde::Deserialize;
use serde_json::Value;
use wirepost_core::topology::Policy;
use wirepost_rabbitmq::{CallError, ManagementClient};

use crate::error::Error;
use crate::report::Problem;

/// Calls in flight at the same time.
pub(crate) const PARALLEL: usize = 8;
/// A policy reaches its queues a moment after the call that sets it.
const CHECKS: u32 = 5;
const CHECK_INTERVAL: Duration = Duration::from_millis(200);
/// From this number of queues on, one list of all queues is cheaper than a call for each (a list of 1,000 queues costs 50 calls).
const LIST_FROM: usize = 50;

/// Keys that change what a queue or stream of ours keeps, accepts or dead-letters, and so what is promised. An operator policy that sets
/// one of them is reported, even if our policy has no such key.
const PROMISES: [&str; 11] = [
    "dead-letter-exchange",
    "dead-letter-routing-key",
    "dead-letter-strategy",
    "delivery-limit",
    "expires",
    "max-age",
    "max-length",
    "max-length-bytes",
    "message-ttl",
    "overflow",
    "stream-max-segment-size-bytes",
];

/// Where replicas of what is created are. How many there are is checked on the queues themselves.
const PLACEMENT: [&str; 3] = ["initial-cluster-size", "queue-leader-locator", "target-group-size"];

const DOING: &str = "reading the policies in force";

/// As in a list and as a single object.
#[derive(Deserialize)]
struct Queue {
    name: String,
    #[serde(default)]
    policy: Option<String>,
    #[serde(default)]
    operator_policy: Option<String>,
    /// Includes the operator policy. From 4.3 on; 4.0 reports it only with statistics.
    #[serde(default)]
    effective_policy_definition: Option<Value>,
}

const COLUMNS: &str = "columns=name,policy,operator_policy,effective_policy_definition";
/// Cheaper, and up to date.
const WITHOUT_STATISTICS: &str = "disable_stats=true&columns=name,policy,operator_policy,effective_policy_definition";

/// What is not in force: `to_verify` are queues and streams with the policy of each. Missing ones are reported elsewhere.
pub(crate) async fn ineffective_policies(
    management: &ManagementClient,
    to_verify: &[(String, Policy)],
) -> Result<Vec<Problem>, Error> {
    let mut left: Vec<&(String, Policy)> = to_verify.iter().collect();
    let mut problems = Vec::new();
    for check in 0..CHECKS {
        if check > 0 {
            tokio::time::sleep(CHECK_INTERVAL).await;
        }
        let found = if left.len() < LIST_FROM {
            match one_by_one(management, &left).await {
                // RabbitMQ 4.0 reports the policy of a queue in the list only (measured on 4.0.5).
                Ok(queues) if queues.iter().any(|(_, queue)| queue.policy.is_none()) => list(management, &left).await,
                found => found,
            }
        } else {
            list(management, &left).await
        };
        let found = match found {
            Ok(queues) => complete(management, queues).await,
            Err(e) => Err(e),
        };
        let queues = match found {
            Ok(queues) => queues,
            Err(CallError::Fatal(e)) => return Err(e.into()),
            Err(CallError::Object(reason) | CallError::NotFound(reason)) => {
                return Ok(vec![Problem::Unverified { reason }]);
            }
            Err(CallError::Failed(error)) => return Ok(vec![Problem::Unverified { reason: error.to_string() }]),
        };
        problems.clear();
        left = queues
            .into_iter()
            .filter_map(|(should, queue)| {
                problems.push(compare(&should.1, queue)?);
                Some(should)
            })
            .collect();
        if left.is_empty() {
            break;
        }
    }
    Ok(problems)
}

fn compare(policy: &Policy, queue: Queue) -> Option<Problem> {
    if queue.policy.as_ref() != Some(&policy.name) {
        return Some(Problem::PolicyOverruled { queue: queue.name, policy: policy.name.clone(), by: queue.policy });
    }
    let (Some(by), Some(Value::Object(effective))) = (queue.operator_policy, queue.effective_policy_definition) else {
        return None;
    };
    let ours = &policy.definition;
    let keys: BTreeSet<&str> = ours.keys().map(String::as_str).chain(PROMISES).collect();
    let keys = keys.into_iter().filter(|key| !PLACEMENT.contains(key));
    let changed = keys.filter(|key| effective.get(*key) != ours.get(*key));
    let keys: Vec<String> = changed.map(str::to_owned).collect();
    (!keys.is_empty()).then_some(Problem::PolicyLimited { queue: queue.name, by, keys })
}

/// Adds what RabbitMQ 4.0 reports with statistics only, so seconds late: operator policies and the effective definition (measured on
/// 4.0.5).
async fn complete<'p>(
    management: &ManagementClient,
    mut found: QueuePolicies<'p>,
) -> Result<QueuePolicies<'p>, CallError> {
    let incomplete = |queue: &Queue| queue.policy.is_some() && queue.effective_policy_definition.is_none();
    if !found.iter().any(|(_, queue)| incomplete(queue)) {
        return Ok(found);
    }
    let queues: Vec<Queue> = management.get(DOING, &["queues", management.vhost()], COLUMNS).await?;
    let mut listed: HashMap<String, Queue> = queues.into_iter().map(|queue| (queue.name.clone(), queue)).collect();
    for (_, queue) in &mut found {
        if let Some(listed) = listed.remove(&queue.name).filter(|_| incomplete(queue)) {
            queue.operator_policy = listed.operator_policy;
            queue.effective_policy_definition = listed.effective_policy_definition;
        }
    }
    Ok(found)
}

type QueuePolicies<'p> = Vec<(&'p (String, Policy), Queue)>;

async fn one_by_one<'p>(
    management: &ManagementClient,
    left: &[&'p (String, Policy)],
) -> Result<QueuePolicies<'p>, CallError> {
    let found: Vec<Option<_>> = stream::iter(0..left.len())
        .map(|i| async move {
            let should = left[i];
            match management.get::<Queue>(DOING, &["queues", management.vhost(), &should.0], WITHOUT_STATISTICS).await {
                Ok(queue) => Ok(Some((should, queue))),
                Err(CallError::NotFound(_)) => Ok(None),
                Err(e) => Err(e),
            }
        })
        .buffered(PARALLEL)
        .try_collect()
        .await?;
    Ok(found.into_iter().flatten().collect())
}

async fn list<'p>(
    management: &ManagementClient,
    left: &[&'p (String, Policy)],
) -> Result<QueuePolicies<'p>, CallError> {
    let ours: HashMap<&str, &(String, Policy)> = left.iter().map(|should| (should.0.as_str(), *should)).collect();
    let queues: Vec<Queue> = management.get(DOING, &["queues", management.vhost()], WITHOUT_STATISTICS).await?;
    Ok(queues.into_iter().filter_map(|queue| Some((*ours.get(queue.name.as_str())?, queue))).collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_operator_policy_that_adds_a_key_is_reported_with_it() {
        let map = |value: Value| value.as_object().cloned().unwrap();
        let ours = map(json!({"max-length": 100, "overflow": "reject-publish"}));
        let policy =
            Policy { name: "ours".into(), pattern: ".".into(), apply_to: "queues", priority: 1, definition: ours };
        for (over, expected) in [
            (json!({"message-ttl": 5, "target-group-size": 3}), vec!["message-ttl"]),
            (json!({"max-length": 5, "expires": 1}), vec!["expires", "max-length"]),
            (json!({"target-group-size": 3, "queue-leader-locator": "client-local"}), vec![]),
        ] {
            let mut merged = policy.definition.clone();
            merged.extend(map(over));
            let queue = Queue {
                name: "q".into(),
                policy: Some("ours".into()),
                operator_policy: Some("theirs".into()),
                effective_policy_definition: Some(merged.into()),
            };
            let keys = match compare(&policy, queue) {
                Some(Problem::PolicyLimited { keys, .. }) => keys,
                None => vec![],
                other => panic!("{other:?}"),
            };
            assert_eq!(keys, expected);
        }
    }
}
