//! The document is complete, and says the truth about itself: references lead somewhere, examples satisfy their schemas. AsyncAPI's own
//! parser reads it in `tests/description`.

use std::collections::BTreeSet;

use jsonschema::Validator;
use serde_json::Value;

use super::*;
use crate::{Envelope, compile, content, names, validate};

fn declared(text: &str) -> BusinessConfig {
    let business = validate::parse(&serde_yaml::from_str(text).unwrap(), None).unwrap();
    compile::compile_one(&business).unwrap().config
}

/// A business that uses every feature.
pub(super) fn everything() -> BusinessConfig {
    declared(include_str!("../../../tests/description/declarations/everything.yaml"))
}

fn all() -> Vec<BusinessConfig> {
    let others = [
        include_str!("../../../tests/description/declarations/transient.yaml"),
        include_str!("../../../tests/description/declarations/reports.yaml"),
        include_str!("../../../examples/payments.yaml"),
        include_str!("../../../examples/charging-port.yaml"),
        include_str!("../../../examples/qr-login.yaml"),
    ];
    others.into_iter().map(declared).chain([everything()]).collect()
}

/// A document with its schemas.
pub(super) struct Described {
    pub(super) value: Value,
}

pub(super) fn described(config: &BusinessConfig) -> Described {
    Described { value: asyncapi(config, "https://ws.example/", Part::All) }
}

impl Described {
    fn schema(&self, message: &str, part: &str) -> Validator {
        let schema = json!({
            "$schema": "http://json-schema.org/draft-07/schema#",
            "components": self.value["components"],
            "allOf": [{"$ref": format!("#/components/messages/{message}/{part}")}],
        });
        jsonschema::options().should_validate_formats(true).offline().build(&schema).unwrap()
    }

    /// Panics where `instance` does not satisfy the schema of a message's `part`.
    pub(super) fn check(&self, message: &str, part: &str, instance: &Value) {
        if let Err(error) = self.schema(message, part).validate(instance) {
            panic!("{message}, {part}: {error} at {}: {instance}", error.instance_path());
        }
    }
}

fn references<'a>(value: &'a Value, found: &mut BTreeSet<&'a str>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                match value {
                    Value::String(target) if key == "$ref" => drop(found.insert(target)),
                    value => references(value, found),
                }
            }
        }
        Value::Array(list) => list.iter().for_each(|value| references(value, found)),
        _ => {}
    }
}

#[test]
fn the_example_is_described() {
    let config = declared(include_str!("../../../examples/payments.yaml"));
    insta::assert_yaml_snapshot!(asyncapi(&config, "https://ws.example/", Part::All));
}

#[test]
fn every_reference_leads_somewhere() {
    for config in all() {
        for part in [Part::Clients, Part::All] {
            let document = asyncapi(&config, "wss://example.com/ws", part);
            let mut found = BTreeSet::new();
            references(&document, &mut found);
            for target in found {
                let place = target.strip_prefix('#').unwrap();
                assert!(document.pointer(place).is_some(), "{} {part:?}: {target}", config.business_type);
            }
        }
    }
}

#[test]
fn every_example_satisfies_its_schema() {
    for config in all() {
        let document = described(&config);
        let mut examples = 0;
        for (key, message) in document.value["components"]["messages"].as_object().unwrap() {
            for example in message["examples"].as_array().into_iter().flatten() {
                for part in ["payload", "headers"].into_iter().filter(|part| example.get(part).is_some()) {
                    document.check(key, part, &example[part]);
                    examples += 1;
                }
            }
        }
        assert!(examples > 15, "{}: {examples}", config.business_type);
    }
}

/// The edge takes the examples too: they are envelopes, and their content fits the declared schema.
#[test]
fn the_edge_takes_the_examples() {
    for config in all() {
        let document = described(&config);
        for route in &config.routes {
            let schema = route.schema.as_ref().map(|schema| content::Schema::try_new(schema).unwrap());
            for message in document.value["components"]["messages"].as_object().unwrap().values() {
                let direction = message["payload"]["properties"]["sendType"]["const"].as_str();
                if message["name"] != route.message_type || direction != Some(route.send_type.as_str()) {
                    continue;
                }
                let Some(example) = message["examples"].get(0) else {
                    assert_eq!(route.message_type, "riddle", "no example");
                    continue;
                };
                let example = example["payload"].to_string();
                let envelope = Envelope::parse(example.as_bytes()).unwrap();
                assert!(crate::pattern::matches(&route.message_type, envelope.message_type.as_deref().unwrap()));
                if let Some(schema) = &schema {
                    assert_eq!(schema.check(envelope.content.unwrap_or("null")), Ok(()), "{example}");
                }
            }
        }
    }
}

#[test]
fn what_does_not_fit_is_told_from_what_does() {
    let document = described(&everything());
    let pushed = document.schema("riddle.pushed", "payload");
    let good = json!({"messageType": "riddle", "toUniqueId": "alice", "content": {"a": 1, "b": 2}});
    assert!(pushed.is_valid(&good));
    for (field, bad) in [
        ("messageType", json!("other")),
        ("toUniqueId", json!("*")),
        ("content", json!({})),
        ("toClientType", json!("app")),
        ("sendType", json!("ClientToClient")),
    ] {
        let mut push = good.clone();
        push[field] = bad;
        assert!(!pushed.is_valid(&push), "{push}");
    }
    for missing in ["messageType", "toUniqueId", "content"] {
        let mut push = good.clone();
        push.as_object_mut().unwrap().remove(missing);
        assert!(!pushed.is_valid(&push), "{push}");
    }
}

#[test]
fn the_clients_part_says_nothing_of_the_broker() {
    let config = everything();
    let document = asyncapi(&config, "https://ws.example", Part::Clients);
    assert_eq!(document["servers"].as_object().unwrap().keys().collect::<Vec<_>>(), ["calls", "edge"]);
    assert_eq!(document["channels"].as_object().unwrap().keys().collect::<Vec<_>>(), ["socket", "token"]);
    let text = document.to_string();
    for hidden in ["wirepost.everything.", "team {1}", "amqp", "rejected"] {
        assert!(!text.contains(hidden), "{hidden} in the clients' part");
    }
}

/// Every queue and exchange that a service uses, by the names that the operator declares.
#[test]
fn everything_that_services_use_is_described() {
    let text = include_str!("../../../tests/description/declarations/everything.yaml");
    let business = validate::parse(&serde_yaml::from_str(text).unwrap(), None).unwrap();
    let compiled = compile::compile_one(&business).unwrap();
    let document = described(&compiled.config).value;
    let channels = document["channels"].as_object().unwrap();
    let named = |kind: &str| -> BTreeSet<&str> {
        channels.values().filter_map(|channel| channel["bindings"]["amqp"][kind]["name"].as_str()).collect()
    };
    let business = compiled.business.as_str();
    let own = compiled.topology.queues.iter().map(|queue| queue.name.as_str());
    let unused = [names::stream(business), names::unrouted(business), names::receipts_stream(business)];
    let expected: BTreeSet<&str> = own
        .filter(|name| !unused.iter().any(|unused| unused == name))
        .chain(compiled.topology.existing_queues.iter().map(String::as_str))
        .collect();
    assert_eq!(named("queue"), expected);
    let exchanges =
        [names::push_exchange(business), names::events_exchange(business), names::replay_exchange(business)];
    assert_eq!(named("exchange"), exchanges.iter().map(String::as_str).collect());
}
