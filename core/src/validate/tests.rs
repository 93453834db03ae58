use serde_json::{Value, json};

use super::*;

fn good() -> Value {
    json!({
        "apiVersion": "wirepost.dev/v1alpha1",
        "kind": "WsBusiness",
        "metadata": {"name": "pay", "namespace": "shop"},
        "spec": {
            "clientTypes": ["h5", "app"],
            "routes": [
                {"messageType": "qr.refresh", "sendType": "ClientToServer", "queue": {"name": "qr"}},
                {"messageType": "payment.completed", "sendType": "ServerToClient", "to": ["app"]},
                {"messageType": "cart.share", "sendType": "ClientToClient", "from": ["app"], "to": ["h5"]},
            ],
        },
    })
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
