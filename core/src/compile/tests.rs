use serde_json::{Value, json};

use super::*;
use crate::{topology::ExchangeKind, validate};

fn business(name: &str, spec: &Value) -> WsBusiness {
    serde_json::from_value(json!({
        "apiVersion": "wirepost.dev/v1alpha1",
        "kind": "WsBusiness",
        "metadata": {"name": name, "namespace": "shop"},
        "spec": spec,
    }))
    .unwrap()
}

fn small(name: &str) -> WsBusiness {
    business(
        name,
        &json!({
            "clientTypes": ["app"],
            "routes": [{"messageType": "a.b", "sendType": "ClientToServer", "queue": {"name": "a"}}],
        }),
    )
}

fn example(text: &str) -> Compiled {
    compile_one(&validate::parse(&serde_yaml::from_str(text).unwrap(), None).unwrap()).unwrap()
}

#[test]
fn the_examples_compile() {
    insta::assert_yaml_snapshot!("payments", example(include_str!("../../../examples/payments.yaml")));
    insta::assert_yaml_snapshot!("qr-login", example(include_str!("../../../examples/qr-login.yaml")));
    insta::assert_yaml_snapshot!("charging-port", example(include_str!("../../../examples/charging-port.yaml")));
}

#[test]
fn every_kind_of_route_and_queue() {
    let compiled = compile_one(&business(
        "all",
        &json!({
            "businessType": "all-kinds",
            "clientTypes": ["app", "h5"],
            "routes": [
                {"messageType": "order.#", "sendType": "ClientToServer", "queue": {"name": "orders", "maxLength": 10}},
                {"messageType": "refund.*", "sendType": "ClientToServer", "from": ["app"],
                 "queue": {"name": "orders", "deliveryLimit": 3, "messageTtlSeconds": 60}},
                {"messageType": "audit", "sendType": "ClientToServer", "queue": {"name": "team.audit", "existing": true}},
                {"messageType": "news", "sendType": "ServerToClient", "to": ["app"], "audience": "Everyone"},
                {"messageType": "chat", "sendType": "ClientToClient", "from": ["app"], "to": ["h5"], "ttlSeconds": 5},
            ],
            "push": {"delivery": "Transient"},
            "auth": {"jwt": {"issuer": "https://id.example", "audiences": ["shop"], "jwks": {"uri": "https://id.example/keys"}, "clientTypes": ["app"]}},
            "limits": {"pushBytes": 1000},
            "acceptFrom": [{"businessType": "payments", "messageTypes": ["payment.*"]}],
        }),
    ))
    .unwrap();
    insta::assert_yaml_snapshot!(compiled);
}

/// An edge of an earlier version leaves out what it does not know, and reports the hash of the rest.
#[test]
fn what_is_not_declared_is_not_in_the_configuration_of_edges() {
    let mut declared = small("pay");
    declared.spec.limits = Some(serde_json::from_value(json!({"perEdge": {"connections": 5}})).unwrap());
    let compiled = compile_one(&declared).unwrap();
    let limits = serde_json::to_value(&compiled.config.limits).unwrap();
    assert_eq!(limits["perEdge"], json!({"connections": 5}), "{limits}");
}

#[test]
fn a_small_retention_has_small_segments() {
    let mut small = small("tiny");
    small.spec.push = serde_json::from_value(json!({"retention": {"bytes": "200k"}})).unwrap();
    let compiled = compile_one(&small).unwrap();
    let policy = compiled.topology.policy_of(&crate::names::stream("tiny")).unwrap();
    assert_eq!(
        Value::from(policy.definition.clone()),
        json!({
            "initial-cluster-size": 3, "max-age": "86400s", "max-length-bytes": 200_000, "queue-leader-locator": "balanced",
            "stream-max-segment-size-bytes": 50_000,
        })
    );
    assert_eq!(compiled.config.retention.bytes, 200_000);
}

/// The broker matches every object against every policy whenever one is set.
/// Loops, a name that nobody has, and no acceptance at all.
#[test]
fn messages_lead_to_those_that_accept_them_and_to_nobody_else() {
    let accepting = |name: &str, from: &[&str]| {
        let mut business = small(name);
        let accepted = from.iter().map(|from| json!({"businessType": from, "messageTypes": ["#"]}));
        business.spec.accept_from = serde_json::from_value(accepted.collect()).unwrap();
        business
    };
    let all = [accepting("a", &["b", "nobody"]), accepting("b", &["a"]), accepting("c", &["a"]), small("d")];
    let compilation = compile(&all);
    let links = |compiled: &Compiled| -> Vec<String> {
        compiled.topology.links.iter().map(|link| format!("{} {} {}", link.from, link.header, link.to)).collect()
    };
    let found: Vec<_> =
        compilation.accepted.iter().map(|compiled| (compiled.config.accepted_by.join(" "), links(compiled))).collect();
    let link = |from: &str, to: &str| format!("wirepost.{from}.share to-business-{to} wirepost.{to}.push");
    assert_eq!(
        found,
        [
            ("b c".to_owned(), vec![link("a", "a"), link("a", "b"), link("a", "c")]),
            ("a".to_owned(), vec![link("b", "a"), link("b", "b")]),
            (String::new(), vec![]),
            (String::new(), vec![]),
        ]
    );
    let share = |compiled: &Compiled| compiled.topology.exchanges.iter().any(|it| it.kind == ExchangeKind::Headers);
    assert_eq!(compilation.accepted.iter().map(share).collect::<Vec<_>>(), [true, true, false, false]);
    assert!(
        crate::destruction::destructions(&compilation.accepted[0].topology, &compile(&all[..1]).accepted[0].topology)
            .is_empty()
    );
}

#[test]
fn a_thousand_businesses_that_ask_for_nothing_special_have_no_policies_of_their_own() {
    let topology = compile_one(&small("pay")).unwrap().topology;
    assert_eq!(topology.policies, []);
    for queue in &topology.queues {
        let policy = topology.policy_of(&queue.name).unwrap();
        assert!(crate::topology::shared_policies().contains(policy));
        assert_eq!(crate::names::owner(&policy.name), None, "belongs to no business");
    }
    assert_eq!(topology.policy_of("wirepost.pay.edge.e1"), None);
    assert_eq!(topology.policy_of("wirepost.pay.events.audit"), None);
    insta::assert_yaml_snapshot!("shared_policies", crate::topology::shared_policies());
}

#[test]
fn a_transient_push_that_nobody_takes_is_not_kept() {
    let durable = small("pay");
    let mut transient = small("pay");
    transient.spec.push = serde_json::from_value(json!({"delivery": "Transient"})).unwrap();
    let [durable, transient] = [durable, transient].map(|b| compile_one(&b).unwrap().topology);
    assert_eq!(durable.exchanges, transient.exchanges, "an exchange can't change");
    let kept = |t: &crate::topology::Topology| {
        t.bindings.iter().any(|b| b.exchange == "wirepost.pay.push.unrouted" && b.queue == "wirepost.pay.unrouted")
    };
    assert!(kept(&durable) && !kept(&transient));
}

#[test]
fn the_oldest_claim_wins_and_the_order_of_resources_means_nothing() {
    let claim = |namespace: &str, created: Option<&str>| {
        let mut claimant = small("pay");
        claimant.metadata.namespace = Some(namespace.into());
        claimant.metadata.creation_timestamp = created.map(|time| serde_json::from_value(json!(time)).unwrap());
        claimant
    };
    let mut all = vec![
        claim("b", None),
        claim("c", Some("2026-01-02T00:00:00Z")),
        claim("d", Some("2026-01-01T00:00:00Z")),
        claim("a", Some("2026-01-02T00:00:00Z")),
    ];
    let compilation = compile(&all);
    assert_eq!(compilation.accepted[0].owner, "d/pay");
    let rejected: Vec<_> = compilation.rejected.iter().map(|r| (r.owner.as_str(), r.reason())).collect();
    assert_eq!(rejected, ["a/pay", "b/pay", "c/pay"].map(|owner| (owner, Reason::BusinessTypeTaken)));
    assert!(compilation.rejected[0].problems[0].message.contains("d/pay"));
    all.reverse();
    assert_eq!(compile(&all), compilation);
}

#[test]
fn an_invalid_owner_keeps_its_business_type() {
    let mut first = small("pay");
    first.metadata.creation_timestamp = Some(serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap());
    first.spec.routes[0].queue = None;
    let mut second = small("pay");
    second.metadata.namespace = Some("other".into());
    let compilation = compile(&[first, second]);
    assert_eq!(compilation.accepted, []);
    let reasons: Vec<_> = compilation.rejected.iter().map(Rejection::reason).collect();
    assert_eq!(reasons, [Reason::BusinessTypeTaken, Reason::InvalidRoute]);
}

#[test]
fn one_bad_business_stops_no_other() {
    let mut bad = small("bad");
    // Stored while the schema was laxer.
    bad.spec.business_type = Some("Bad.Type".into());
    let mut huge = small("huge");
    huge.spec.routes = (0..20)
        .map(|i| {
            let mut route = small("x").spec.routes.remove(0);
            route.message_type = format!("m{i}");
            route.schema = Some(json!({"description": "x".repeat(60_000)}));
            route
        })
        .collect();
    let compilation = compile(&[bad, small("good"), huge]);
    let accepted: Vec<_> = compilation.accepted.iter().map(|c| &c.business).collect();
    assert_eq!(accepted, ["good"]);
    let rejected: Vec<_> = compilation.rejected.iter().map(|r| (r.owner.as_str(), r.reason())).collect();
    assert_eq!(rejected, [("shop/bad", Reason::InvalidSpec), ("shop/huge", Reason::InvalidSchema)]);
}

#[test]
fn a_thousand_businesses_compile_each_to_objects_of_its_own() {
    let all: Vec<_> = (0..1000).map(|i| small(&format!("b{i}"))).collect();
    let compilation = compile(&all);
    assert_eq!((compilation.accepted.len(), compilation.rejected.len()), (1000, 0));
    let mut seen = std::collections::BTreeSet::new();
    for compiled in &compilation.accepted {
        for queue in &compiled.topology.queues {
            assert_eq!(crate::names::owner(&queue.name), Some(compiled.business.as_str()));
            assert!(seen.insert(&queue.name), "{} twice", queue.name);
        }
    }
}
