use serde_json::{Value, json};

use super::*;
use crate::problem::Reason;

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

/// Each rule with a declaration that breaks it, where, and part of the sentence that a person gets.
#[test]
fn every_rule_says_what_is_wrong_and_where() {
    let route = |fields: Value| -> Value {
        let mut route = json!({"messageType": "m", "sendType": "ServerToClient", "to": ["app"]});
        merge(&mut route, fields);
        json!({"routes": [route]})
    };
    let to_server = |fields: Value| -> Value {
        let mut route = json!({"messageType": "m", "sendType": "ClientToServer", "queue": {"name": "q"}});
        merge(&mut route, fields);
        json!({"routes": [route]})
    };
    let queue = |fields: Value| to_server(json!({"queue": fields}));
    let origin = |origin: &str| json!({"auth": {"allowedOrigins": [origin]}});
    let jwks = |jwks: Value| json!({"auth": {"jwt": {"issuer": "i", "audiences": ["a"], "jwks": jwks}}});
    let retention = |bytes: &str| json!({"push": {"retention": {"bytes": bytes}}});

    let cases: Vec<(&str, Value, &str, &str)> = vec![
        // The business type.
        ("reserved", json!({"businessType": "socket"}), "spec.businessType", "path of wirepost's own"),
        ("upper case", json!({"businessType": "Pay"}), "spec.businessType", "not a business type"),
        ("a dot", json!({"businessType": "pay.ments"}), "spec.businessType", "not a business type"),
        ("a hyphen at the end", json!({"businessType": "pay-"}), "spec.businessType", "not a business type"),
        // Client types.
        ("a space", json!({"clientTypes": ["app", "h5", "a b"]}), "spec.clientTypes", "not well formed"),
        ("twice", json!({"clientTypes": ["app", "h5", "app"]}), "spec.clientTypes", "listed twice"),
        // Routes among each other.
        ("unknown from", to_server(json!({"from": ["pos"]})), "spec.routes[0].from", "pos is not among clientTypes"),
        ("unknown to", route(json!({"to": ["pos"]})), "spec.routes[0].to", "pos is not among clientTypes"),
        (
            "two of a kind",
            json!({"routes": [
                {"messageType": "m", "sendType": "ServerToClient", "to": ["app"]},
                {"messageType": "m", "sendType": "ServerToClient", "to": ["h5"]},
            ]}),
            "spec.routes[1]",
            "same sendType and messageType",
        ),
        // Message types.
        ("a space", route(json!({"messageType": "a b"})), "spec.routes[0].messageType", "not a message type"),
        ("an empty word", route(json!({"messageType": "a..b"})), "spec.routes[0].messageType", "not a message type"),
        (
            "a star within a word",
            route(json!({"messageType": "a*"})),
            "spec.routes[0].messageType",
            "not a message type",
        ),
        (
            "a control character",
            route(json!({"messageType": "a\u{7}"})),
            "spec.routes[0].messageType",
            "not a message type",
        ),
        (
            "a line break at the end",
            route(json!({"messageType": "a\n"})),
            "spec.routes[0].messageType",
            "not a message type",
        ),
        (
            "too many bytes",
            route(json!({"messageType": "ü".repeat(101)})),
            "spec.routes[0].messageType",
            "longer than 200 bytes",
        ),
        // What each direction needs and excludes.
        (
            "no queue",
            json!({"routes": [{"messageType": "m", "sendType": "ClientToServer"}]}),
            "spec.routes[0].queue",
            "needs a queue",
        ),
        (
            "no to",
            json!({"routes": [{"messageType": "m", "sendType": "ServerToClient"}]}),
            "spec.routes[0].to",
            "needs to",
        ),
        ("no from", route(json!({"sendType": "ClientToClient"})), "spec.routes[0].from", "needs from"),
        (
            "no to",
            json!({"routes": [{"messageType": "m", "sendType": "ClientToClient", "from": ["app"]}]}),
            "spec.routes[0].to",
            "needs to",
        ),
        ("a queue for a push", route(json!({"queue": {"name": "q"}})), "spec.routes[0].queue", "ClientToServer only"),
        ("from on a push", route(json!({"from": ["app"]})), "spec.routes[0].from", "means nothing"),
        ("to on a message to the server", to_server(json!({"to": ["app"]})), "spec.routes[0].to", "means nothing"),
        ("ttl", to_server(json!({"ttlSeconds": 5})), "spec.routes[0].ttlSeconds", "messages to clients"),
        ("audience", to_server(json!({"audience": "Everyone"})), "spec.routes[0].audience", "messages to clients"),
        ("receipts", to_server(json!({"receipts": true})), "spec.routes[0].receipts", "ServerToClient only"),
        (
            "receipts between clients",
            route(json!({"sendType": "ClientToClient", "from": ["app"], "receipts": true})),
            "spec.routes[0].receipts",
            "ServerToClient only",
        ),
        // Queues.
        ("a dot", queue(json!({"name": "push.e1"})), "spec.routes[0].queue.name", "not a queue name"),
        (
            "ours",
            queue(json!({"name": "wirepost.other.q.a", "existing": true})),
            "spec.routes[0].queue.name",
            "must be your own",
        ),
        (
            "the broker's",
            queue(json!({"name": "amq.gen-1", "existing": true})),
            "spec.routes[0].queue.name",
            "must be your own",
        ),
        (
            "settings",
            queue(json!({"name": "q", "existing": true, "maxLength": 5})),
            "spec.routes[0].queue.existing",
            "its owner's",
        ),
        // Pushes.
        ("a retention", json!({"push": {"delivery": "Transient", "retention": {}}}), "spec.push.retention", "not kept"),
        ("nothing", retention("0"), "spec.push.retention.bytes", "not a size"),
        ("too little", retention("99k"), "spec.push.retention.bytes", "not a size"),
        ("too much", retention("2Ti"), "spec.push.retention.bytes", "not a size"),
        ("a fraction", retention("200000.5"), "spec.push.retention.bytes", "not a size"),
        ("words", retention("a lot"), "spec.push.retention.bytes", "not a size"),
        // Who is let in.
        ("a path", origin("https://shop.example/"), "spec.auth.allowedOrigins", "not well formed"),
        ("no scheme", origin("shop.example"), "spec.auth.allowedOrigins", "not well formed"),
        ("another scheme", origin("ftp://shop.example"), "spec.auth.allowedOrigins", "not well formed"),
        ("a pattern", origin("https://*.example"), "spec.auth.allowedOrigins", "not well formed"),
        ("no keys", jwks(json!({})), "spec.auth.jwt.jwks", "exactly one"),
        ("two sources", jwks(json!({"uri": "https://a.example", "inline": {}})), "spec.auth.jwt.jwks", "exactly one"),
        ("plain http", jwks(json!({"uri": "http://id.example/keys"})), "spec.auth.jwt.jwks.uri", "https"),
        ("a look-alike", jwks(json!({"uri": "http://localhost.example/"})), "spec.auth.jwt.jwks.uri", "https"),
        // The rest.
        (
            "a secret's name",
            json!({"access": {"secretName": "Pay_1"}}),
            "spec.access.secretName",
            "not a name for a Secret",
        ),
        ("acceptFrom", json!({"acceptFrom": ["a.b"]}), "spec.acceptFrom", "not a business type"),
        // What CEL can't see.
        ("a broken schema", route(json!({"schema": {"type": "strin"}})), "spec.routes[0].schema", "JSON Schema"),
        ("empty keys", jwks(json!({"inline": {"keys": []}})), "spec.auth.jwt.jwks.inline", "no key"),
        (
            "contradicting queues",
            json!({"routes": [
                {"messageType": "a", "sendType": "ClientToServer", "queue": {"name": "q", "maxLength": 1}},
                {"messageType": "b", "sendType": "ClientToServer", "queue": {"name": "q", "maxLength": 2}},
            ]}),
            "spec.routes[1].queue.maxLength",
            "another maxLength",
        ),
    ];
    for (case, spec, field, sentence) in &cases {
        let mut value = good();
        merge(&mut value["spec"], spec.clone());
        let problems = check(&value, None);
        assert!(
            problems.iter().any(|p| p.field == *field && p.to_string().contains(sentence)),
            "{case}: {spec}\ngave {problems:#?}"
        );
        assert!(problems.iter().all(|p| !p.remedy.is_empty()), "{case}");
    }
}

/// What looks like the above and is fine.
#[test]
fn what_is_fine_passes() {
    for spec in [
        json!({"businessType": "p"}),
        json!({"businessType": "a".repeat(40)}),
        json!({"clientTypes": ["h5", "app", "Point_of-Sale"]}),
        json!({"routes": [{"messageType": "#", "sendType": "ClientToServer", "queue": {"name": "push"}}]}),
        json!({"routes": [{"messageType": "a.*.ü", "sendType": "ClientToServer", "queue": {"name": "team.q", "existing": true}}]}),
        json!({"routes": [
            {"messageType": "m", "sendType": "ServerToClient", "to": ["app"]},
            {"messageType": "m", "sendType": "ClientToServer", "queue": {"name": "dead"}},
        ]}),
        json!({"routes": [{"messageType": "m", "sendType": "ClientToClient", "from": ["app"], "to": ["app"], "ttlSeconds": 5, "audience": "Everyone"}]}),
        json!({"push": {"delivery": "Transient"}}),
        json!({"push": {"retention": {"seconds": 1, "bytes": "200k"}}}),
        json!({"push": {"retention": {"bytes": "1Ti"}}}),
        json!({"push": null}),
        json!({"auth": {"allowedOrigins": ["*", "https://shop.example", "http://localhost:3000", "http://[::1]:80"]}}),
        json!({"auth": {"jwt": {"issuer": "i", "audiences": ["a"], "jwks": {"uri": "http://keys.id.svc:8080/jwks"}}}}),
        json!({"auth": {"jwt": {"issuer": "i", "audiences": ["a"], "jwks": {"uri": "http://127.0.0.1:1/jwks?x=1"}}}}),
        json!({"auth": {"jwt": {"issuer": "i", "audiences": ["a"], "jwks": {"uri": "https://id.example/realms/x/certs"}}}}),
        json!({"session": {"maxSeconds": 20}, "access": {"secretName": "pay-wirepost"}, "acceptFrom": ["chat"]}),
    ] {
        let mut value = good();
        merge(&mut value["spec"], spec.clone());
        assert_eq!(check(&value, None), [], "{spec}");
    }
}

#[test]
fn the_schema_is_checked_as_the_cluster_does_strictly() {
    for (case, change, field, sentence) in [
        ("a typo", json!({"spec": {"clientType": ["app"]}}), "spec.clientType", "did you mean clientTypes?"),
        ("a stranger", json!({"spec": {"colour": "red"}}), "spec.colour", "unknown field colour"),
        ("metadata", json!({"metadata": {"lables": {}}}), "metadata.lables", "unknown field"),
        ("a number", json!({"spec": {"limits": {"burst": "40"}}}), "spec.limits.burst", "is text, not a whole number"),
        ("a fraction", json!({"spec": {"limits": {"burst": 1.5}}}), "spec.limits.burst", "whole number"),
        ("zero", json!({"spec": {"limits": {"messageBytes": 0}}}), "spec.limits.messageBytes", "use 128 to 1048576"),
        (
            "an enum",
            json!({"spec": {"push": {"delivery": "durable"}}}),
            "spec.push.delivery",
            "write one of Durable, Transient",
        ),
        ("missing", json!({"spec": {"clientTypes": null}}), "spec.clientTypes", "is missing"),
        ("empty", json!({"spec": {"routes": []}}), "spec.routes", "is empty"),
        ("too many", json!({"spec": {"clientTypes": vec!["a"; 17]}}), "spec.clientTypes", "list at most 16"),
        ("too long", json!({"spec": {"businessType": "a".repeat(41)}}), "spec.businessType", "use at most 40"),
        ("a list", json!({"spec": {"routes": {}}}), "spec.routes", "is an object, not a list"),
        ("another kind", json!({"kind": "Business"}), "kind", "is not WsBusiness"),
        ("another version", json!({"apiVersion": "wirepost.dev/v1"}), "apiVersion", "wirepost.dev/v1alpha1"),
        ("no name", json!({"metadata": {"name": ""}}), "metadata.name", "is missing"),
        ("a bad name", json!({"metadata": {"name": "Pay"}}), "metadata.name", "not a name"),
    ] {
        let mut value = good();
        merge(&mut value, change);
        let problems = check(&value, None);
        assert!(
            problems.iter().any(|p| p.field == field && p.to_string().contains(sentence)),
            "{case} gave {problems:#?}"
        );
    }
    assert!(!check(&json!([]), None).is_empty());
    assert!(!check(&json!({}), None).is_empty());
}

#[test]
fn a_name_that_can_not_be_a_business_type_needs_one() {
    for (name, ok) in [("pay", true), ("pay.ments", false), ("websocket", false), (&"a".repeat(41), false)] {
        let mut value = good();
        value["metadata"]["name"] = name.into();
        assert_eq!(check(&value, None).is_empty(), ok, "{name}");
        value["spec"]["businessType"] = "fine".into();
        assert_eq!(check(&value, None), [], "{name}");
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
