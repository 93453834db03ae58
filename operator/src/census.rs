//! How many businesses have which condition, for alerts. Counted at each scrape, from what is stored: this includes statuses that another
//! process wrote, and resources that are not reconciled yet.

use std::collections::BTreeMap;

use kube::runtime::reflector::Store;
use serde_json::Value;
use wirepost_core::contract::condition::{ConditionType, Reason};

use crate::stored::StoredBusiness;

/// A condition, its status, and its reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Counted {
    /// As it stands in the status.
    pub condition: &'static str,
    /// `True`, `False` or `Unknown`.
    pub status: &'static str,
    /// As it stands in the status.
    pub reason: &'static str,
}

/// Businesses by condition. Unknown conditions and reasons are left out.
pub fn conditions(businesses: &Store<StoredBusiness>) -> BTreeMap<Counted, i64> {
    let mut counts = BTreeMap::new();
    for stored in businesses.state() {
        for counted in of(&stored) {
            *counts.entry(counted).or_default() += 1;
        }
    }
    counts
}

fn of(stored: &StoredBusiness) -> Vec<Counted> {
    let conditions = stored.status.get("conditions").and_then(Value::as_array);
    let found: Vec<Counted> = conditions.into_iter().flatten().filter_map(read).collect();
    if found.iter().any(|counted| counted.condition == ConditionType::Ready.as_str()) {
        return found;
    }
    // Not reconciled yet: alerts must count it too.
    let pending =
        |kind: ConditionType, status| Counted { condition: kind.as_str(), status, reason: Reason::Pending.as_str() };
    vec![pending(ConditionType::Ready, "Unknown"), pending(ConditionType::Reconciling, "True")]
}

fn read(condition: &Value) -> Option<Counted> {
    let text = |field: &str| condition.get(field).and_then(Value::as_str);
    let status = ["True", "False", "Unknown"].into_iter().find(|status| text("status") == Some(status))?;
    Some(Counted {
        condition: ConditionType::parse(text("type")?)?.as_str(),
        status,
        reason: Reason::parse(text("reason")?)?.as_str(),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn stored(status: &Value) -> StoredBusiness {
        let metadata = json!({"name": "pay", "namespace": "shop"});
        let value = json!({"apiVersion": "wirepost.dev/v1alpha1", "kind": "WsBusiness", "metadata": metadata, "status": status});
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn what_is_stored_is_counted_and_what_was_never_reconciled_is_pending() {
        let condition =
            |kind: &str, status: &str, reason: &str| json!({"type": kind, "status": status, "reason": reason});
        let counted = |status: &Value| -> Vec<_> {
            of(&stored(status)).into_iter().map(|one| (one.condition, one.status, one.reason)).collect()
        };
        let conditions = json!([
            condition("Ready", "False", "QueueNotFound"),
            condition("Stalled", "True", "QueueNotFound"),
            condition("Painted", "True", "Green"),
            condition("Accepted", "Perhaps", "Accepted"),
        ]);
        assert_eq!(
            counted(&json!({"conditions": conditions})),
            [("Ready", "False", "QueueNotFound"), ("Stalled", "True", "QueueNotFound")]
        );
        for nothing in [Value::Null, json!({}), json!({"conditions": 3})] {
            assert_eq!(counted(&nothing), [("Ready", "Unknown", "Pending"), ("Reconciling", "True", "Pending")]);
        }
    }
}
