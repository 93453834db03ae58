//! Whether our policies are in force. Of all policies that match an object only the one with the highest priority is; an operator policy
//! is laid over it.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt, stream};
use serde::Deserialize;
use serde_json::{Map, Value};
use wirepost_core::topology::Policy;

use crate::actual;
use crate::apply::PARALLEL;
use crate::management::{CallError, Management};
use crate::report::{Error, Problem};

/// A policy reaches its queues a moment after the call that sets it.
const LOOKS: u32 = 5;
const PAUSE: Duration = Duration::from_millis(200);
/// From so many queues on one list of everything is cheaper than one call for each (a list of 1,000 queues: 50 calls).
const MANY: usize = 50;

/// What a policy can set that changes what a queue or stream of ours keeps, takes or gives back, and so what is promised. Set by another
/// one, also where ours has no such key, each is worth a word.
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
        let looked = match looked {
            Ok(queues) => laid_over(management, &queues).await.map(|over| (queues, over)),
            Err(e) => Err(e),
        };
        let (queues, over) = match looked {
            Ok(looked) => looked,
            Err(CallError::Fatal(e)) => return Err(e),
            Err(CallError::Object(reason) | CallError::NotFound(reason)) => {
                return Ok(vec![Problem::Refused { doing: DOING.to_owned(), reason }]);
            }
        };
        problems.clear();
        left = queues
            .into_iter()
            .filter_map(|(should, queue)| {
                problems.push(judge(&should.1, queue, &over)?);
                Some(should)
            })
            .collect();
        if left.is_empty() {
            break;
        }
    }
    Ok(problems)
}

/// `laid_over`: definitions of the vhost's operator policies by name, where the broker does not say what comes of them.
fn judge(policy: &Policy, queue: Queue, laid_over: &HashMap<String, Map<String, Value>>) -> Option<Problem> {
    if queue.policy.as_ref() != Some(&policy.name) {
        return Some(Problem::PolicyOverruled { queue: queue.name, policy: policy.name.clone(), by: queue.policy });
    }
    let by = queue.operator_policy?;
    let ours = &policy.definition;
    let keys = ours.keys().map(String::as_str).chain(PROMISES).collect::<BTreeSet<_>>().into_iter();
    let keys: Vec<String> = match (&queue.effective_policy_definition, laid_over.get(&by)) {
        (Some(Value::Object(effective)), _) => {
            keys.filter(|key| effective.get(*key) != ours.get(*key)).map(str::to_owned).collect()
        }
        (_, Some(over)) => keys.filter(|key| changes(ours.get(*key), over.get(*key))).map(str::to_owned).collect(),
        _ => return None,
    };
    (!keys.is_empty()).then_some(Problem::PolicyLimited { queue: queue.name, by, keys })
}

/// Of two numbers the broker takes the lower one; a value of an operator policy alone counts as it is.
fn changes(ours: Option<&Value>, over: Option<&Value>) -> bool {
    match (ours, over) {
        (_, None) => false,
        (None, Some(_)) => true,
        (Some(ours), Some(over)) => ours.as_f64().zip(over.as_f64()).map_or(ours != over, |(ours, over)| over < ours),
    }
}

/// Definitions of the operator policies, where one of these queues has one and the broker (4.0) does not say what comes of it.
async fn laid_over(
    management: &Management,
    queues: &Found<'_>,
) -> Result<HashMap<String, Map<String, Value>>, CallError> {
    let silent = |queue: &Queue| {
        queue.operator_policy.is_some() && !matches!(queue.effective_policy_definition, Some(Value::Object(_)))
    };
    if !queues.iter().any(|(_, queue)| silent(queue)) {
        return Ok(HashMap::new());
    }
    let policies: Vec<actual::Policy> = management.get(DOING, &["operator-policies", management.vhost()], "").await?;
    Ok(policies.into_iter().map(|policy| (policy.name, policy.definition)).collect())
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_operator_policy_that_adds_a_key_is_named_also_where_the_broker_tells_only_its_name() {
        let map = |value: Value| value.as_object().cloned().unwrap();
        let ours = map(json!({"max-length": 100, "overflow": "reject-publish"}));
        let policy =
            Policy { name: "ours".into(), pattern: ".".into(), apply_to: "queues", priority: 1, definition: ours };
        for (over, expected) in [
            (json!({"message-ttl": 5, "target-group-size": 3}), vec!["message-ttl"]),
            (json!({"max-length": 5, "expires": 1}), vec!["expires", "max-length"]),
        ] {
            let mut merged = policy.definition.clone();
            merged.extend(map(over.clone()));
            let queue = |effective: Option<Value>| Queue {
                name: "q".into(),
                policy: Some("ours".into()),
                operator_policy: Some("theirs".into()),
                effective_policy_definition: effective,
            };
            let keys = |problem: Option<Problem>| match problem {
                Some(Problem::PolicyLimited { keys, .. }) => keys,
                other => panic!("{other:?}"),
            };
            assert_eq!(keys(judge(&policy, queue(Some(merged.into())), &HashMap::new())), expected);
            let by_name = HashMap::from([("theirs".to_owned(), map(over))]);
            assert_eq!(keys(judge(&policy, queue(None), &by_name)), expected);
            let harmless = HashMap::from([("theirs".to_owned(), map(json!({"max-length": 200})))]);
            assert_eq!(judge(&policy, queue(None), &harmless), None);
        }
    }
}
