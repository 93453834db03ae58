//! Whether our policies are in force. Of all policies that match an object only the one with the highest priority is; an operator policy
//! is laid over it.

use std::collections::HashMap;
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt, stream};
use serde::Deserialize;
use serde_json::Value;
use wirepost_core::topology::Policy;

use crate::apply::PARALLEL;
use crate::management::{CallError, Management};
use crate::report::{Error, Problem};

/// A policy reaches its queues a moment after the call that sets it.
const LOOKS: u32 = 5;
const PAUSE: Duration = Duration::from_millis(200);
/// From so many queues on one list of everything is cheaper than one call for each (a list of 1,000 queues: 50 calls).
const MANY: usize = 50;

const DOING: &str = "reading the policies in force";

/// As both a list and a single queue tell it.
#[derive(Deserialize)]
struct Queue {
    name: String,
    #[serde(default)]
    policy: Option<String>,
    #[serde(default)]
    operator_policy: Option<String>,
    /// With the operator policy in it. From 4.3 on; 4.0 does not tell it without statistics.
    #[serde(default)]
    effective_policy_definition: Option<Value>,
}

const COLUMNS: &str = "disable_stats=true&columns=name,policy,operator_policy,effective_policy_definition";

/// What is not in force: `unproven` are queues and streams with the policy of each. One that is not there is none of ours to name here.
pub(crate) async fn not_in_force(
    management: &Management,
    unproven: &[(String, Policy)],
) -> Result<Vec<Problem>, Error> {
    let mut left: Vec<&(String, Policy)> = unproven.iter().collect();
    let mut problems = Vec::new();
    for look in 0..LOOKS {
        if look > 0 {
            tokio::time::sleep(PAUSE).await;
        }
        let looked = if left.len() < MANY {
            match one_by_one(management, &left).await {
                // RabbitMQ 4.0 names the policy of a queue in the list alone (measured on 4.0.5).
                Ok(queues) if queues.iter().any(|(_, queue)| queue.policy.is_none()) => list(management, &left).await,
                looked => looked,
            }
        } else {
            list(management, &left).await
        };
        let queues = match looked {
            Ok(queues) => queues,
            Err(CallError::Fatal(e)) => return Err(e),
            Err(CallError::Object(reason) | CallError::NotFound(reason)) => {
                return Ok(vec![Problem::Refused { doing: DOING.to_owned(), reason }]);
            }
        };
        problems.clear();
        left = queues
            .into_iter()
            .filter_map(|(should, queue)| {
                problems.push(judge(&should.1, queue)?);
                Some(should)
            })
            .collect();
        if left.is_empty() {
            break;
        }
    }
    Ok(problems)
}

fn judge(policy: &Policy, queue: Queue) -> Option<Problem> {
    if queue.policy.as_ref() != Some(&policy.name) {
        return Some(Problem::PolicyOverruled { queue: queue.name, policy: policy.name.clone(), by: queue.policy });
    }
    let (Some(by), Some(Value::Object(effective))) = (queue.operator_policy, queue.effective_policy_definition) else {
        return None;
    };
    let limited = policy.definition.iter().filter(|(key, value)| effective.get(*key) != Some(value));
    let keys: Vec<String> = limited.map(|(key, _)| key.clone()).collect();
    (!keys.is_empty()).then_some(Problem::PolicyLimited { queue: queue.name, by, keys })
}

type Found<'p> = Vec<(&'p (String, Policy), Queue)>;

async fn one_by_one<'p>(management: &Management, left: &[&'p (String, Policy)]) -> Result<Found<'p>, CallError> {
    let found: Vec<Option<_>> = stream::iter(0..left.len())
        .map(|i| async move {
            let should = left[i];
            match management.get::<Queue>(DOING, &["queues", management.vhost(), &should.0], COLUMNS).await {
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

async fn list<'p>(management: &Management, left: &[&'p (String, Policy)]) -> Result<Found<'p>, CallError> {
    let ours: HashMap<&str, &(String, Policy)> = left.iter().map(|should| (should.0.as_str(), *should)).collect();
    let queues: Vec<Queue> = management.get(DOING, &["queues", management.vhost()], COLUMNS).await?;
    Ok(queues.into_iter().filter_map(|queue| Some((*ours.get(queue.name.as_str())?, queue))).collect())
}
