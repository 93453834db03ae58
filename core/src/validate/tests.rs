use serde::Deserialize;
use serde_json::{Value, json};

use super::*;
use crate::Reason;

/// `cases.yaml`, which the test of the CRD on a real API server reads too.
#[derive(Deserialize)]
struct Cases {
    good: Value,
    refused: Vec<Refused>,
    accepted: Vec<Value>,
}

#[derive(Deserialize)]
struct Refused {
    case: String,
    change: Value,
    #[serde(default)]
    update: bool,
    cluster: String,
    field: String,
    says: String,
}

static CASES: LazyLock<Cases> = LazyLock::new(|| serde_yaml::from_str(include_str!("cases.yaml")).unwrap());

fn good() -> Value {
    CASES.good.clone()
}

fn changed(change: &Value) -> Value {
    let mut value = good();
    merge(&mut value, change.clone());
    value
}

#[test]
fn a_plain_business_has_no_problem_and_gets_its_defaults() {
    let business = parse(&good(), None).unwrap();
    assert_eq!(business.business_type(), "pay");
    assert!(!business.spec.routes[0].queue.as_ref().unwrap().existing);
}

#[test]
fn every_rule_compiles() {
    fn walk(schema: &CompiledSchema, count: &mut usize) {
        assert!(!schema.has_errors(), "{:?}", schema.compilation_errors());
        *count += schema.validations.len();
        schema.properties.values().for_each(|s| walk(s, count));
        if let Some(items) = &schema.items {
            walk(items, count);
        }
    }
    let mut count = 0;
    walk(&SCHEMA.cel, &mut count);
    assert_eq!(count, rules::ALL.len());
}

#[test]
fn what_is_refused_says_what_is_wrong_and_where() {
    for Refused { case, change, update, field, says, .. } in &CASES.refused {
        let old = update.then(good);
        let problems = check(&changed(change), old.as_ref());
        assert!(
            problems.iter().any(|p| p.field == *field && p.to_string().contains(says.as_str())),
            "{case} gave {problems:#?}"
        );
        assert!(problems.iter().all(|p| !p.remedy.is_empty()), "{case}");
    }
    assert!(!check(&json!([]), None).is_empty());
    assert!(!check(&json!({}), None).is_empty());
}

/// So that none is left out on the API server either.
#[test]
fn every_rule_has_a_case() {
    for rule in rules::ALL {
        assert!(CASES.refused.iter().any(|c| c.cluster == rule.problem), "{}", rule.problem);
    }
    for Refused { case, cluster, .. } in &CASES.refused {
        let known = matches!(cluster.as_str(), "schema" | "nobody") || rules::ALL.iter().any(|r| r.problem == cluster);
        assert!(known, "{case} names no rule: {cluster}");
    }
}

#[test]
fn what_is_fine_passes() {
    for change in &CASES.accepted {
        assert_eq!(check(&changed(change), None), [], "{change}");
    }
}

#[test]
fn what_may_not_change_does_not() {
    let old = good();
    let mut new = good();
    new["spec"]["businessType"] = "pay".into();
    new["spec"]["push"] = json!({"retention": {"seconds": 5}});
    assert_eq!(check(&new, Some(&old)), []);
    new["spec"]["push"] = json!({"delivery": "Transient"});
    assert_eq!(check(&new, Some(&old)), []);
    new["spec"]["businessType"] = "other".into();
    let fields: Vec<_> = check(&new, Some(&old)).into_iter().map(|p| p.field).collect();
    assert_eq!(fields, ["spec.businessType"]);
}

#[test]
fn problems_have_the_reason_of_their_part() {
    for (spec, reason) in [
        (json!({"routes": [{"messageType": "m", "sendType": "ServerToClient"}]}), Reason::InvalidRoute),
        (
            json!({"routes": [{"messageType": "m", "sendType": "ServerToClient", "to": ["app"], "schema": {"type": 1}}]}),
            Reason::InvalidSchema,
        ),
        (json!({"auth": {"allowedOrigins": ["x"]}}), Reason::InvalidAuth),
        (json!({"limits": {"burst": 0}}), Reason::InvalidSpec),
    ] {
        let mut value = good();
        merge(&mut value["spec"], spec);
        assert_eq!(check(&value, None)[0].reason, reason);
    }
}

fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from,
    }
}
