//! Statuses compared, and written.

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::Timestamp,
};
use serde_json::Value;
use wirepost_core::business::WsBusinessStatus;

/// Whether two conditions say the same, whenever they changed.
pub fn same_but_time(a: &Condition, b: &Condition) -> bool {
    Condition { last_transition_time: b.last_transition_time.clone(), ..a.clone() } == *b
}

/// Whether two statuses say the same, whenever their conditions changed.
pub fn same_but_times(a: &WsBusinessStatus, b: &WsBusinessStatus) -> bool {
    let without_times = |status: &WsBusinessStatus| {
        let mut status = status.clone();
        for condition in &mut status.conditions {
            condition.last_transition_time = Time(Timestamp::UNIX_EPOCH);
        }
        status
    };
    without_times(a) == without_times(b)
}

/// Every field of a status.
const FIELDS: [&str; 9] = [
    "observedGeneration",
    "businessType",
    "className",
    "conditions",
    "tokenUrl",
    "exchanges",
    "queues",
    "binding",
    "edges",
];

/// The status as a merge patch (RFC 7396) that leaves nothing of a former one.
pub fn replacing(status: &WsBusinessStatus) -> Value {
    let mut patch = serde_json::to_value(status).unwrap_or_default();
    for field in FIELDS {
        if patch.get(field).is_none() {
            patch[field] = Value::Null;
        }
    }
    patch
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_patch_speaks_of_every_field() {
        let schema = wirepost_core::crd::schema();
        let known = schema["properties"]["status"]["properties"].as_object().unwrap();
        let patch = replacing(&WsBusinessStatus::default());
        let sorted = |keys: serde_json::map::Keys<'_>| keys.cloned().collect::<std::collections::BTreeSet<_>>();
        assert_eq!(sorted(patch.as_object().unwrap().keys()), sorted(known.keys()));
    }
}
