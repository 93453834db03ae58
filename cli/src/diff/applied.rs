//! A declaration as it was applied, with what the operator says of it: what its class gave it when it was accepted, and what the broker
//! keeps. Both may differ from what the class says today.

use serde_json::Value;
use wirepost_core::{
    WsBusiness,
    business::{RetentionStatus, WsBusinessStatus},
    compile::compile_accepted,
    contract::condition::{ConditionType, Reason},
    names,
    topology::{Policy, Queue, QueueKind, Topology},
    validate,
};

use super::changes::Declared;
use crate::declarations::classes::Classes;

/// See the module.
pub(super) struct Applied {
    /// As declared, without what its class gave it.
    pub declared: WsBusiness,
    /// With it.
    business: WsBusiness,
    topology: Topology,
    status: WsBusinessStatus,
    generation: Option<i64>,
}

impl Applied {
    /// A resource as the cluster has it. `classes`: those of today, for what an operator of before has not recorded.
    ///
    /// # Errors
    /// It has fields of a newer version.
    pub(super) fn read(resource: &Value, classes: &Classes) -> anyhow::Result<Self> {
        let status = serde_json::from_value(resource["status"].clone()).unwrap_or_default();
        let compiled = validate::parse_accepted(resource).and_then(|declared| {
            let mut business = declared.clone();
            fill(&mut business, &status, classes);
            let topology = compile_accepted(&business)?.topology;
            Some((declared, business, topology))
        });
        let (declared, business, mut topology) = compiled.ok_or_else(|| {
            let text = |field: &str| resource["metadata"][field].as_str().unwrap_or_default();
            anyhow::anyhow!(
                "{}/{} in the cluster has fields that this version does not know: use the wirepost of the operator's version",
                text("namespace"),
                text("name")
            )
        })?;
        if let Some(kept) = &status.retention {
            keep(&mut topology, &names::stream(business.business_type()), kept);
        }
        Ok(Self { declared, business, topology, status, generation: resource["metadata"]["generation"].as_i64() })
    }

    /// With what its class gave it, and the stream as the broker has it.
    pub(super) fn declared(&self) -> Declared<'_> {
        Declared { business: &self.business, topology: &self.topology }
    }

    /// The same, with the stream as it is declared.
    pub(super) fn filled(&self) -> &WsBusiness {
        &self.business
    }

    /// The class that applied when it was accepted.
    pub(super) fn class(&self) -> Option<&str> {
        self.status.class_name.as_deref()
    }

    /// Why the operator has not accepted it.
    pub(super) fn rejected(&self) -> Option<&str> {
        let accepted = self.status.conditions.iter().find(|it| it.type_ == ConditionType::Accepted.as_str())?;
        let current = accepted.observed_generation == self.generation;
        (accepted.status == "False" && current).then_some(accepted.reason.as_str())
    }

    /// Whether it runs, though something of it that destroys messages waits for a person.
    pub(super) fn waits(&self) -> bool {
        let provisioned = self.status.conditions.iter().find(|it| it.type_ == ConditionType::Provisioned.as_str());
        provisioned.is_some_and(|it| it.status == "False" && it.reason == Reason::Destructive.as_str())
    }
}

fn fill(business: &mut WsBusiness, status: &WsBusinessStatus, classes: &Classes) {
    match &status.terms {
        Some(terms) => {
            // Written by the operator; what a newer one adds is ignored.
            if let Ok(terms) = serde_json::from_value(terms.clone()) {
                validate::class::fill(&terms, business);
            }
        }
        // Accepted without a class.
        None if status.retention.is_some() => {}
        None => classes.fill(business),
    }
}

/// Gives the stream what the broker keeps.
fn keep(topology: &mut Topology, stream: &str, kept: &RetentionStatus) {
    let mut definition = topology.policy_of(stream).map(|policy| policy.definition.clone()).unwrap_or_default();
    let compiled = RetentionStatus::of(&definition, &[]);
    if !topology.queues.iter().any(|queue| queue.name == stream) {
        topology.queues.push(Queue { name: stream.to_owned(), kind: QueueKind::Stream, dead_letter: None });
    } else if compiled == *kept {
        return;
    }
    let without = RetentionStatus { seconds: Some(0), bytes: Some("0".to_owned()) }.definition();
    definition.retain(|key, _| !without.contains_key(key));
    definition.extend(kept.definition());
    topology.policies.retain(|policy| policy.name != stream);
    let (name, pattern) = (stream.to_owned(), names::exact_pattern(stream));
    topology.policies.push(Policy { name, pattern, apply_to: "streams", priority: 0, definition });
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::diff::changes::changes;

    fn resource(spec: &Value, status: &Value) -> Value {
        let mut all = json!({
            "clientTypes": ["app"],
            "routes": [{"messageType": "order", "sendType": "ClientToServer", "queue": {"name": "orders"}}],
        });
        all.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        let metadata = json!({"name": "pay", "namespace": "shop", "generation": 2});
        json!({"apiVersion": "wirepost.dev/v1alpha1", "kind": "WsBusiness", "metadata": metadata, "spec": all, "status": status})
    }

    /// What a change to `spec` does, where the class of today gives an hour and burst 5.
    fn change(status: &Value, spec: &Value) -> Vec<String> {
        let class = json!({
            "apiVersion": "wirepost.dev/v1alpha1", "kind": "WsBusinessClass", "metadata": {"name": "small"},
            "spec": {"default": true, "limits": {"retention": {"seconds": 3600}, "edge": {"burst": 5}}},
        });
        let classes = Classes::of([&class]);
        let applied = Applied::read(&resource(&json!({}), status), &classes).unwrap();
        let mut after = validate::parse_accepted(&resource(spec, &Value::Null)).unwrap();
        classes.fill(&mut after);
        let topology = compile_accepted(&after).unwrap().topology;
        changes(Some(applied.declared()), Declared { business: &after, topology: &topology }).all()
    }

    #[test]
    fn a_class_that_was_lowered_since_the_last_apply_shows_what_it_cuts() {
        let session = json!({"session": {"maxSeconds": 60}});
        let day = json!({"seconds": 86_400, "bytes": "1Gi"});
        let accepted = json!({"className": "small", "terms": {"defaults": {"edge": {"burst": 30}}}, "retention": day});
        let lines = change(&accepted, &session);
        assert_eq!(
            lines,
            [
                r#"~ stream wirepost.pay.stream: max-age "86400s" → "3600s""#,
                "~ limits.burst 30 → 5",
                "+ push.delivery Durable",
                "+ push.retention.seconds 3600",
                "+ session.maxSeconds 60",
                "! destroys messages: wirepost.pay.stream drops messages that it keeps now: max-age 86400s → 3600s",
            ]
        );
        // An operator of before has recorded neither: what the class gives today counts on both sides.
        assert_eq!(change(&json!({"className": "small"}), &session), ["+ session.maxSeconds 60"]);
    }

    /// The declaration that was applied last waits itself, or something else keeps more than it says.
    #[test]
    fn what_the_broker_keeps_counts_not_what_was_declared_last() {
        let kept = |seconds| json!({"terms": {}, "retention": {"seconds": seconds}});
        let lines = change(&kept(90_000), &json!({"push": {"delivery": "Transient"}}));
        assert!(
            lines.contains(&"! destroys messages: stream wirepost.pay.stream is deleted with its messages".to_owned())
        );
        let lines = change(&kept(90_000), &json!({"push": {"retention": {"seconds": 86_400}}}));
        assert!(lines.iter().any(|line| line.ends_with("max-age 90000s → 86400s")), "{lines:?}");
        let lines = change(&kept(60), &json!({"push": {"retention": {"seconds": 86_400, "bytes": "2Gi"}}}));
        assert!(lines.iter().any(|line| line.contains("max-length-bytes unlimited → 2147483648")), "{lines:?}");
        assert!(!lines.iter().any(|line| line.starts_with('!') && line.contains("max-age")), "{lines:?}");
    }
}
