//! Whether our policies are in force. Of all policies that match an object only the one with the highest priority is; an operator policy
//! is laid over it.

use std::collections::HashMap;
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt, stream};
use serde::Deserialize;
use serde_json::Value;
use wirepost_core::names;
use wirepost_core::topology::Policy;

use crate::apply::PARALLEL;
use crate::management::{CallError, Management};
use crate::report::{Error, Problem};

/// A policy reaches its objects a moment after the call that sets it.
const LOOKS: u32 = 5;
const PAUSE: Duration = Duration::from_millis(200);
/// From so many policies on one list of everything is cheaper than one call for each (a list of 1,000 queues: 50 calls).
const MANY: usize = 50;

const DOING: &str = "reading the policies in force";

/// As both a list and a single object tell it.
#[derive(Deserialize)]
struct Object {
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

/// What is not in force of `policies`, each of which is for one object ([`names::exact_pattern`]). An object that is not there is none of
/// ours to name here.
pub(crate) async fn not_in_force(management: &Management, policies: &[Policy]) -> Result<Vec<Problem>, Error> {
    let mut left: Vec<&Policy> = policies.iter().collect();
    let mut problems = Vec::new();
    for look in 0..LOOKS {
        if look > 0 {
            tokio::time::sleep(PAUSE).await;
        }
        let looked =
            if left.len() < MANY { one_by_one(management, &left).await } else { list(management, &left).await };
        let objects = match looked {
            Ok(objects) => objects,
            Err(CallError::Fatal(e)) => return Err(e),
            Err(CallError::Object(reason) | CallError::NotFound(reason)) => {
                return Ok(vec![Problem::Refused { doing: DOING.to_owned(), reason }]);
            }
        };
        problems.clear();
        left = objects
            .into_iter()
            .filter_map(|(policy, object)| {
                problems.push(judge(policy, object)?);
                Some(policy)
            })
            .collect();
        if left.is_empty() {
            break;
        }
    }
    Ok(problems)
}

fn judge(policy: &Policy, object: Object) -> Option<Problem> {
    if object.policy.as_ref() != Some(&policy.name) {
        let policy = policy.name.clone();
        return Some(Problem::PolicyOverruled { object: object.name, policy, by: object.policy });
    }
    let (Some(by), Some(Value::Object(effective))) = (object.operator_policy, object.effective_policy_definition)
    else {
        return None;
    };
    let limited = policy.definition.iter().filter(|(key, value)| effective.get(*key) != Some(value));
    let keys: Vec<String> = limited.map(|(key, _)| key.clone()).collect();
    (!keys.is_empty()).then_some(Problem::PolicyLimited { object: object.name, by, keys })
}

/// `exchanges` or `queues`: where the API tells of the policy's object.
fn place(policy: &Policy) -> &'static str {
    if policy.apply_to == "exchanges" { "exchanges" } else { "queues" }
}

async fn one_by_one<'p>(
    management: &Management,
    policies: &[&'p Policy],
) -> Result<Vec<(&'p Policy, Object)>, CallError> {
    let found: Vec<Option<_>> = stream::iter(0..policies.len())
        .map(|i| async move {
            let policy = policies[i];
            // A policy of ours is called as its object.
            let path = [place(policy), management.vhost(), &policy.name];
            match management.get::<Object>(DOING, &path, COLUMNS).await {
                Ok(object) => Ok(Some((policy, object))),
                Err(CallError::NotFound(_)) => Ok(None),
                Err(e) => Err(e),
            }
        })
        .buffered(PARALLEL)
        .try_collect()
        .await?;
    Ok(found.into_iter().flatten().collect())
}

async fn list<'p>(management: &Management, policies: &[&'p Policy]) -> Result<Vec<(&'p Policy, Object)>, CallError> {
    let mut found = Vec::new();
    for kind in ["exchanges", "queues"] {
        let ours: HashMap<&str, &Policy> =
            policies.iter().filter(|p| place(p) == kind).map(|p| (p.pattern.as_str(), *p)).collect();
        if ours.is_empty() {
            continue;
        }
        let objects: Vec<Object> = management.get(DOING, &[kind, management.vhost()], COLUMNS).await?;
        found.extend(objects.into_iter().filter_map(|o| Some((*ours.get(names::exact_pattern(&o.name).as_str())?, o))));
    }
    Ok(found)
}
