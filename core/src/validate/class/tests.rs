use serde_json::json;

use super::*;
use crate::{compile, contract::edge_config::EdgeShare};

fn class(spec: &Value) -> WsBusinessClass {
    let value = json!({
        "apiVersion": "wirepost.dev/v1alpha1", "kind": "WsBusinessClass", "metadata": {"name": "standard"}, "spec": spec,
    });
    parse(&value).unwrap()
}

fn business(spec: &Value) -> WsBusiness {
    let mut value = json!({
        "apiVersion": "wirepost.dev/v1alpha1", "kind": "WsBusiness", "metadata": {"name": "pay", "namespace": "shop"},
        "spec": {"clientTypes": ["app"], "routes": [
            {"messageType": "a", "sendType": "ClientToServer", "queue": {"name": "orders"}},
            {"messageType": "b", "sendType": "ClientToServer", "queue": {"name": "orders"}},
            {"messageType": "c", "sendType": "ClientToServer", "queue": {"name": "own", "existing": true}},
        ]},
    });
    value["spec"].as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    super::super::parse(&value, None).unwrap()
}

/// Every limit, below wirepost's own defaults.
fn strict() -> Value {
    json!({"limits": {
        "retention": {"seconds": 600, "bytes": "200M"}, "queues": 1, "queue": {"maxLength": 1000},
        "edge": {
            "messageBytes": 1024, "pushBytes": 2048, "messagesPerSecond": 3, "burst": 4, "connectionsPerId": 2,
            "perEdge": {"connections": 100, "messagesPerSecond": 200, "bytesPerSecond": 100_000, "pushesPerSecond": 300, "memoryBytes": 4_194_304},
        },
        "sessionSeconds": 3600,
    }})
}

fn fields(problems: &[Problem]) -> Vec<&str> {
    problems.iter().map(|problem| problem.field.as_str()).collect()
}

#[test]
fn what_a_declaration_leaves_out_is_filled_in_within_the_class() {
    let mut filled = business(&json!({"limits": {"burst": 1}}));
    let class = class(&strict());
    fill(&class.spec, &mut filled);
    assert!(check(&class, &filled).is_empty());
    let compiled = compile::compile_one(&filled).unwrap();
    assert_eq!((compiled.config.retention.seconds, compiled.config.retention.bytes), (600, 200_000_000));
    assert_eq!((compiled.config.limits.burst, compiled.config.limits.message_bytes), (1, 1024));
    let share = EdgeShare {
        connections: Some(100),
        messages_per_second: Some(200),
        bytes_per_second: Some(100_000),
        pushes_per_second: Some(300),
        memory_bytes: Some(4 << 20),
    };
    assert_eq!(compiled.config.limits.per_edge, share);
    assert_eq!(compiled.config.session_max_seconds, 3600);
    assert!(compiled.topology.policies.iter().any(|policy| policy.definition["max-length"] == 1000), "{compiled:?}");
}

#[test]
fn a_default_counts_only_where_nothing_is_declared_and_never_beyond_the_limit() {
    let mut given = class(&json!({
        "defaults": {"retention": {"seconds": 3600, "bytes": "2Gi"}, "queue": {"maxLength": 50}, "edge": {"burst": 9}},
    }));
    let declared = business(&json!({"push": {"retention": {"seconds": 60}}, "limits": {"burst": 7}}));
    let mut filled = declared.clone();
    fill(&given.spec, &mut filled);
    let retention = |business: &WsBusiness| business.spec.push.clone().unwrap().retention.unwrap();
    assert_eq!(retention(&filled), Retention { seconds: Some(60), bytes: Some("2Gi".into()) });
    assert_eq!(filled.spec.limits.as_ref().unwrap().burst, Some(7));
    let queue = |n: usize| filled.spec.routes[n].queue.as_ref().unwrap().max_length;
    assert_eq!((queue(0), queue(1), queue(2)), (Some(50), Some(50), None), "an existing queue is its owner's");

    given.spec.limits = class(&json!({"limits": {"retention": {"bytes": "500Mi"}}})).spec.limits;
    let mut filled = declared;
    fill(&given.spec, &mut filled);
    assert_eq!(retention(&filled).bytes.as_deref(), Some("500Mi"));
}

#[test]
fn a_class_that_gives_nothing_changes_nothing() {
    for spec in [
        json!({}),
        json!({"owners": [{"namespaces": ["shop"]}]}),
        json!({"limits": {"retention": {"seconds": 31_536_000, "bytes": "1Ti"}, "edge": {"burst": 20_000}}}),
        json!({"defaults": {"retention": {"seconds": 86_400, "bytes": "1Gi"}}}),
    ] {
        for declared in [json!({}), json!({"push": {"delivery": "Transient"}})] {
            let declared = business(&declared);
            let mut filled = declared.clone();
            fill(&class(&spec).spec, &mut filled);
            assert_eq!(filled, declared, "{spec}");
        }
    }
}

#[test]
fn what_a_class_gives_fills_in_the_same_without_the_rest_of_it() {
    let mut all = strict();
    all["limits"]["queue"]["maxLengthBytes"] = json!("300M");
    all["limits"]["totalBytes"] = json!("20Gi");
    all["defaults"] = json!({"retention": {"seconds": 6000}, "queue": {"maxLength": 10}, "deletionPolicy": "Delete"});
    for spec in [all, json!({"defaults": {"queue": {"maxLength": 7}}}), json!({})] {
        let class = class(&spec).spec;
        let (mut one, mut other) = (business(&json!({})), business(&json!({})));
        fill(&class, &mut one);
        fill(&given(&class), &mut other);
        assert_eq!(one, other, "{spec}");
    }
    assert_eq!(serde_json::to_value(given(&class(&json!({"limits": {"queues": 3}})).spec)).unwrap(), json!({}));
}

#[test]
fn each_limit_is_named_and_what_is_left_out_counts_as_the_own_default() {
    let all = [
        "spec.push.retention.seconds",
        "spec.push.retention.bytes",
        "spec.routes[0].queue.maxLength",
        "spec.limits.messageBytes",
        "spec.limits.pushBytes",
        "spec.limits.messagesPerSecond",
        "spec.limits.burst",
        "spec.limits.connectionsPerId",
        "spec.limits.perEdge.connections",
        "spec.limits.perEdge.messagesPerSecond",
        "spec.limits.perEdge.bytesPerSecond",
        "spec.limits.perEdge.pushesPerSecond",
        "spec.limits.perEdge.memoryBytes",
        "spec.session.maxSeconds",
    ];
    // As one that was accepted before there was a class.
    let problems = check(&class(&strict()), &business(&json!({})));
    assert_eq!(fields(&problems), all);
    assert!(problems.iter().all(|problem| problem.reason == Reason::ClassForbids));
    let text = problems[1].to_string();
    assert!(text.contains("1Gi is more than class standard allows (limits.retention.bytes: 200M)"), "{text}");

    let none = check(&class(&json!({"limits": {"queues": 0}})), &business(&json!({})));
    assert_eq!(fields(&none), ["spec.routes"]);
    // Nothing is kept of it, so no retention is too long.
    let transient = check(&class(&strict()), &business(&json!({"push": {"delivery": "Transient"}})));
    assert_eq!(fields(&transient), all[2..]);
}

#[test]
fn owners_say_which_namespace_may_own_which_type_and_name_which_queue() {
    let check = |owners: Value| {
        let problems = check(&class(&json!({"owners": owners})), &business(&json!({})));
        problems.into_iter().map(|problem| (problem.field, problem.message)).collect::<Vec<_>>()
    };
    for allowed in [
        json!([]),
        json!([{"namespaces": ["shop"]}]),
        json!([{"namespaces": ["bank"]}, {"namespaces": ["sh*"], "businessTypes": ["p*y"], "existingQueues": ["*"]}]),
        json!([{"namespaces": ["*"], "businessTypes": ["pay"], "existingQueues": []}, {"namespaces": ["shop"], "existingQueues": ["own"]}]),
    ] {
        assert_eq!(check(allowed.clone()), [], "{allowed}");
    }
    for (owners, field, says) in [
        (json!([{"namespaces": ["bank", "shops"]}]), "metadata.namespace", "class standard is not for namespace shop"),
        (json!([{"namespaces": ["shop"], "businessTypes": ["shop-*", "till"]}]), "spec.businessType", "shop-*, till"),
        (json!([{"namespaces": ["shop"], "businessTypes": []}]), "spec.businessType", "none"),
        (json!([{"namespaces": ["shop"], "existingQueues": ["shop-*"]}]), "spec.routes[2].queue.name", "queue own"),
        // Another item allows the queue, but not for this type.
        (
            json!([{"namespaces": ["shop"], "businessTypes": ["pay"], "existingQueues": []}, {"namespaces": ["shop"], "businessTypes": ["till"]}]),
            "spec.routes[2].queue.name",
            "none",
        ),
    ] {
        let problems = check(owners.clone());
        assert!(
            problems.len() == 1 && problems[0].0 == field && problems[0].1.contains(says),
            "{owners}: {problems:?}"
        );
    }
}

#[test]
fn a_star_stands_for_any_characters() {
    for (pattern, name, is) in [
        ("shop", "shop", true),
        ("shop", "shops", false),
        ("*", "", true),
        ("shop-*", "shop-eu", true),
        ("shop-*", "shop", false),
        ("*-shop", "eu-shop", true),
        ("a*b*c", "a-b-b-c", true),
        ("a*b*c", "a-c-b", false),
        ("a*a", "a", false),
        ("", "a", false),
    ] {
        assert_eq!(matches(pattern, name), is, "{pattern} {name}");
    }
}

#[test]
fn bytes_of_queues_are_given_limited_and_summed_up() {
    let bytes = |business: &WsBusiness| business.spec.routes[0].queue.clone().unwrap().max_length_bytes;
    let filled = |spec: Value| {
        let mut filled = business(&json!({}));
        fill(&class(&spec).spec, &mut filled);
        assert!(check(&class(&spec), &filled).is_empty(), "{spec}");
        bytes(&filled)
    };
    assert_eq!(filled(json!({"defaults": {"queue": {"maxLengthBytes": "5Gi"}}})).as_deref(), Some("5Gi"));
    assert_eq!(filled(json!({"limits": {"queue": {"maxLengthBytes": "200M"}}})).as_deref(), Some("200M"));
    let both =
        json!({"defaults": {"queue": {"maxLengthBytes": "5Gi"}}, "limits": {"queue": {"maxLengthBytes": "2Gi"}}});
    assert_eq!(filled(both).as_deref(), Some("2Gi"));
    assert_eq!(filled(json!({"limits": {"queue": {"maxLengthBytes": "1024Mi"}}})), None, "the own default");

    let more = json!({"clientTypes": ["app"], "routes": [
        {"messageType": "a", "sendType": "ClientToServer", "queue": {"name": "orders", "maxLengthBytes": "3Gi"}},
        {"messageType": "b", "sendType": "ClientToServer", "queue": {"name": "refunds"}},
    ]});
    let limited = class(&json!({"limits": {"queue": {"maxLengthBytes": "2Gi"}}}));
    assert_eq!(fields(&check(&limited, &business(&more))), ["spec.routes[0].queue.maxLengthBytes"]);

    // 3Gi, 1Gi, and 1Gi of the stream.
    let total = |most: &str, push: Value| {
        let mut spec = more.clone();
        spec["push"] = push;
        check(&class(&json!({"limits": {"totalBytes": most}})), &business(&spec))
    };
    let problems = total("4Gi", json!({}));
    assert_eq!(fields(&problems), ["spec"]);
    let text = problems[0].to_string();
    assert!(text.contains("5368709120 bytes of queues and stream is more than class standard allows"), "{text}");
    assert!(total("5Gi", json!({})).is_empty() && total("4Gi", json!({"delivery": "Transient"})).is_empty());

    // And 256 MiB for the receipts that a route waits for, once, however many do.
    let mut waits = more.clone();
    for message_type in ["paid", "refunded"] {
        waits["routes"].as_array_mut().unwrap().push(json!({
            "messageType": message_type, "sendType": "ServerToClient", "to": ["app"],
            "receipts": true, "receiptsWithinSeconds": 60,
        }));
    }
    let total = |most: &str| check(&class(&json!({"limits": {"totalBytes": most}})), &business(&waits));
    let problems = total("5Gi");
    assert_eq!(fields(&problems), ["spec"]);
    let text = problems[0].to_string();
    assert!(text.contains("5637144576 bytes"), "{text}");
    assert!(total("5376Mi").is_empty());
    waits["routes"][2].as_object_mut().unwrap().remove("receiptsWithinSeconds");
    waits["routes"][3].as_object_mut().unwrap().remove("receiptsWithinSeconds");
    let asks = check(&class(&json!({"limits": {"totalBytes": "5Gi"}})), &business(&waits));
    assert!(asks.is_empty(), "receipts alone take nothing");
}

#[test]
fn a_class_with_an_unknown_field_or_a_bad_size_is_refused() {
    for (spec, says) in [
        (json!({"limits": {"colour": 1}}), "unknown field colour"),
        (json!({"limits": {"retention": {"bytes": "1.5Gi"}}}), "not a size"),
        (json!({"limits": {"totalBytes": "2Ti"}}), "not a size"),
        (json!({"limits": {"user": {"connections": 0}}}), "connections"),
        (json!({"owners": [{"businessTypes": ["a"]}]}), "namespaces"),
    ] {
        let value = json!({
            "apiVersion": "wirepost.dev/v1alpha1", "kind": "WsBusinessClass", "metadata": {"name": "standard"}, "spec": spec,
        });
        let problems = parse(&value).unwrap_err();
        assert!(problems[0].to_string().contains(says), "{problems:?}");
    }
}
