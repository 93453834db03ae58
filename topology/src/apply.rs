//! Carries a plan out, object by object (`POST definitions` answers success where an object differs and changes nothing), and checks that
//! the policies are in force.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use lapin::Connection;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use wirepost_core::names;
use wirepost_core::topology::Topology;

use crate::actual;
use crate::count::in_use;
use crate::management::{CallError, Management};
use crate::plan::{Scope, Step, exchange_arguments, exchange_kind, plan, queue_arguments};
use crate::report::{Error, KeptBecause, Problem, Report};

/// A policy reaches its queues a moment after the call that sets it.
const POLICY_LOOKS: u32 = 5;
const POLICY_PAUSE: Duration = Duration::from_millis(200);

/// How far [`apply()`] may go.
#[derive(Clone, Copy, Debug)]
pub struct Options<'a> {
    /// Whose objects are looked at.
    pub scope: Scope<'a>,
    /// For counting the messages of queues that nothing declares any more, in the same vhost. Without it they are only unbound.
    pub amqp: Option<&'a Connection>,
    /// Delete those queues also with messages and consumers, and streams. For a business that is removed on purpose.
    pub delete_messages: bool,
}

/// Makes the vhost have `desired`, within `options.scope`, and reports what it could not make true.
///
/// May be repeated at any time: each run reads the vhost anew (one call) and makes only what is missing. An object that the broker refuses
/// does not stop the others. Not atomic; two at once in one scope do no harm, but may report each other's half-done work.
///
/// Errors when the broker can't be asked or refuses us altogether; what was done until then stays.
pub async fn apply(management: &Management, desired: &Topology, options: Options<'_>) -> Result<Report, Error> {
    let actual = management.export().await?;
    let plan = plan(desired, &actual, options.scope);
    let look_at_policies = plan.rival_policies || !plan.steps.is_empty() || options.scope == Scope::Everything;
    let mut report = Report { changes: Vec::new(), problems: plan.problems };
    // Businesses that have queues left which nothing declares.
    let mut kept: HashSet<String> = HashSet::new();
    for step in plan.steps {
        if step.waits_for_queues_of().is_some_and(|business| kept.contains(business)) {
            continue;
        }
        let doing = step.to_string();
        if let Some((queue, because)) = must_stay(&step, options).await? {
            kept.extend(names::owner(queue).map(str::to_owned));
            report.problems.push(Problem::Kept { queue: queue.to_owned(), because });
            continue;
        }
        match carry_out(management, &doing, &step).await {
            Ok(()) => {
                tracing::info!(vhost = management.vhost(), "{doing}");
                report.changes.push(doing);
            }
            Err(CallError::Object(reason)) => report.problems.push(Problem::Refused { doing, reason }),
            Err(CallError::Fatal(e)) => return Err(e),
        }
    }
    if look_at_policies {
        report.problems.extend(policies_not_in_force(management, desired).await?);
    }
    for problem in &report.problems {
        // The caller knows whether it said so before.
        tracing::debug!(vhost = management.vhost(), "{problem}");
    }
    Ok(report)
}

/// The queue that the step would delete, and why it must not.
async fn must_stay<'a>(step: &'a Step, options: Options<'_>) -> Result<Option<(&'a str, KeptBecause)>, Error> {
    if options.delete_messages {
        return Ok(None);
    }
    Ok(match (step, options.amqp) {
        (Step::DeleteStream(name), _) => Some((name.as_str(), KeptBecause::Stream)),
        (Step::DeleteQueue(name), None) => Some((name.as_str(), KeptBecause::Unknown)),
        (Step::DeleteQueue(name), Some(connection)) => in_use(connection, name).await?.map(|why| (name.as_str(), why)),
        _ => None,
    })
}

async fn carry_out(management: &Management, doing: &str, step: &Step) -> Result<(), CallError> {
    let vhost = management.vhost();
    match step {
        Step::PutPolicy(policy) => {
            let body = json!({
                "pattern": policy.pattern, "apply-to": policy.apply_to, "priority": policy.priority,
                "definition": policy.definition,
            });
            management.put(doing, &["policies", vhost, &policy.name], &body).await
        }
        Step::PutQueue(queue) => {
            let body = json!({ "durable": true, "auto_delete": false, "arguments": queue_arguments(queue) });
            management.put(doing, &["queues", vhost, &queue.name], &body).await
        }
        Step::PutExchange(exchange) => {
            let body = json!({
                "type": exchange_kind(exchange.kind), "durable": true, "auto_delete": false,
                "arguments": exchange_arguments(exchange),
            });
            management.put(doing, &["exchanges", vhost, &exchange.name], &body).await
        }
        Step::Bind(b) => {
            let body = json!({ "routing_key": b.routing_key, "arguments": {} });
            management.post(doing, &["bindings", vhost, "e", &b.exchange, "q", &b.queue], &body).await
        }
        Step::Unbind(binding) => unbind(management, doing, binding).await,
        Step::DeleteQueue(name) | Step::DeleteStream(name) => management.delete(doing, &["queues", vhost, name]).await,
        Step::DeleteExchange(name) => management.delete(doing, &["exchanges", vhost, name]).await,
        Step::DeletePolicy(name) => management.delete(doing, &["policies", vhost, name]).await,
    }
}

#[derive(Deserialize)]
struct Listed {
    routing_key: String,
    properties_key: String,
    #[serde(default)]
    arguments: Map<String, Value>,
}

/// A binding goes by a key that the broker makes of its routing key and arguments: asked for, not computed.
async fn unbind(management: &Management, doing: &str, binding: &actual::Binding) -> Result<(), CallError> {
    let kind = if binding.destination_type == "queue" { "q" } else { "e" };
    let path = ["bindings", management.vhost(), "e", &binding.source, kind, &binding.destination];
    let listed: Vec<Listed> = match management.get(doing, &path, "").await {
        Ok(listed) => listed,
        Err(CallError::Object(_)) => return Ok(()), // one of its ends is gone, and the binding with it
        Err(e) => return Err(e),
    };
    for one in listed {
        if one.routing_key == binding.routing_key && one.arguments == binding.arguments {
            let path: Vec<&str> = path.iter().copied().chain([one.properties_key.as_str()]).collect();
            management.delete(doing, &path).await?;
        }
    }
    Ok(())
}

#[derive(Deserialize)]
struct QueuePolicy {
    name: String,
    #[serde(default)]
    policy: Option<String>,
    #[serde(default)]
    operator_policy: Option<String>,
    /// With the operator policy in it. From 4.3 on; 4.0 does not tell it without statistics.
    #[serde(default)]
    effective_policy_definition: Option<Value>,
}

async fn policies_not_in_force(management: &Management, desired: &Topology) -> Result<Vec<Problem>, Error> {
    let ours: HashMap<String, _> = desired.policies.iter().map(|p| (p.pattern.clone(), p)).collect();
    let mut problems = Vec::new();
    for look in 0..POLICY_LOOKS {
        if look > 0 {
            tokio::time::sleep(POLICY_PAUSE).await;
        }
        let query = "disable_stats=true&columns=name,policy,operator_policy,effective_policy_definition";
        let path = ["queues", management.vhost()];
        let queues: Vec<QueuePolicy> = match management.get("reading the policies in force", &path, query).await {
            Ok(queues) => queues,
            Err(CallError::Fatal(e)) => return Err(e),
            Err(CallError::Object(reason)) => {
                return Ok(vec![Problem::Refused { doing: "read the policies in force".to_owned(), reason }]);
            }
        };
        problems.clear();
        for queue in queues {
            // Our patterns match one name each.
            let Some(policy) = ours.get(&names::exact_pattern(&queue.name)) else { continue };
            if queue.policy.as_ref() != Some(&policy.name) {
                let policy = policy.name.clone();
                problems.push(Problem::PolicyOverruled { queue: queue.name, policy, by: queue.policy });
            } else if let (Some(by), Some(Value::Object(effective))) =
                (queue.operator_policy, queue.effective_policy_definition)
            {
                let limited = policy.definition.iter().filter(|(key, value)| effective.get(*key) != Some(value));
                let keys: Vec<String> = limited.map(|(key, _)| key.clone()).collect();
                if !keys.is_empty() {
                    problems.push(Problem::PolicyLimited { queue: queue.name, by, keys });
                }
            }
        }
        if problems.is_empty() {
            break;
        }
    }
    Ok(problems)
}
