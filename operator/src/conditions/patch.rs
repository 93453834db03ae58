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
const FIELDS: [&str; 12] = [
    "observedGeneration",
    "businessType",
    "className",
    "terms",
    "retention",
    "conditions",
    "tokenUrl",
    "exchanges",
    "queues",
    "binding",
    "edges",
    "clients",
];

/// The status as a merge patch (RFC 7396) that leaves nothing of a former one; of the fields within fields, nothing of what is `stored`.
pub fn replacing(status: &WsBusinessStatus, stored: &Value) -> Value {
    let mut patch = serde_json::to_value(status).unwrap_or_default();
    for field in FIELDS {
        if patch.get(field).is_none() {
            patch[field] = Value::Null;
        }
    }
    remove_rest(&mut patch, stored);
    patch
}

fn remove_rest(patch: &mut Value, stored: &Value) {
    let (Value::Object(patch), Value::Object(stored)) = (patch, stored) else { return };
    for (field, before) in stored {
        match patch.get_mut(field) {
            Some(value) => remove_rest(value, before),
            None => drop(patch.insert(field.clone(), Value::Null)),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_patch_speaks_of_every_field() {
        let schema = wirepost_core::crd::schema();
        let known = schema["properties"]["status"]["properties"].as_object().unwrap();
        let patch = replacing(&WsBusinessStatus::default(), &Value::Null);
        let sorted = |keys: serde_json::map::Keys<'_>| keys.cloned().collect::<std::collections::BTreeSet<_>>();
        assert_eq!(sorted(patch.as_object().unwrap().keys()), sorted(known.keys()));
    }

    #[test]
    fn nothing_of_a_former_class_is_left() {
        let stored = json!({"terms": {"defaults": {"edge": {"burst": 5}, "queue": {"maxLength": 3}}}});
        let terms = Some(json!({"defaults": {"queue": {"maxLength": 4}}}));
        let patch = replacing(&WsBusinessStatus { terms, ..WsBusinessStatus::default() }, &stored);
        assert_eq!(patch["terms"], json!({"defaults": {"edge": null, "queue": {"maxLength": 4}}}));
    }
}
