//! Values that are refused, by the schema or because they do not go together.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::render::{defaults, file, nested, refusal};

/// Maps whose keys are the user's own, or Kubernetes' own.
fn open(path: &str, map: &Value) -> bool {
    map.as_object().is_some_and(serde_json::Map::is_empty)
        || ["requests", "limits"].iter().any(|end| path.ends_with(&format!("resources.{end}")))
}

fn maps(path: &str, value: &Value, found: &mut Vec<String>) {
    let Some(map) = value.as_object() else { return };
    if open(path, value) {
        return;
    }
    found.push(path.to_owned());
    for (key, value) in map {
        let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        maps(&path, value, found);
    }
}

#[test]
fn an_unknown_key_is_refused_at_every_level() -> Result<()> {
    let mut found = Vec::new();
    maps("", &defaults()?, &mut found);
    ensure!(found.len() > 40, "where are the maps? {found:?}");
    for path in found {
        let path = if path.is_empty() { "typo".to_owned() } else { format!("{path}.typo") };
        let refusal = refusal(&nested(&path, &json!(1)).to_string())?;
        ensure!(refusal.contains("'typo'") && refusal.contains("not allowed"), "{path}: {refusal}");
    }
    for inner in [
        "imagePullSecrets: [{name: a, typo: 1}]",
        "gateway: {parentRefs: [{name: a, typo: 1}]}",
        "edge: {tolerations: [{typo: 1}]}",
        "edge: {affinity: {typo: {}}}",
        "edge: {extraEnv: [{name: A, value: b, typo: 1}]}",
        "networkPolicy: {publicFrom: [{typo: 1}]}",
        "networkPolicy: {publicFrom: [{podSelector: {typo: 1}}]}",
    ] {
        let refusal = refusal(inner)?;
        ensure!(refusal.contains("'typo'"), "{inner}: {refusal}");
    }
    Ok(())
}

/// What the schema leaves open says why, and knows the rest by name.
#[test]
fn every_object_of_the_schema_is_closed_or_says_why_not() -> Result<()> {
    fn walk(at: &str, schema: &Value) -> Result<()> {
        if schema["type"] == "object" {
            match &schema["additionalProperties"] {
                Value::Bool(false) | Value::Object(_) => {}
                Value::Bool(true) => ensure!(schema["description"].is_string(), "{at} is open and does not say why"),
                _ => anyhow::bail!("{at} does not say whether it is open"),
            }
        }
        match schema {
            Value::Object(map) => map.iter().try_for_each(|(key, inner)| walk(&format!("{at}/{key}"), inner)),
            Value::Array(list) => list.iter().try_for_each(|inner| walk(at, inner)),
            _ => Ok(()),
        }
    }
    walk("", &serde_json::from_str(&file("values.schema.json")?)?)
}

#[test]
fn what_the_programs_would_refuse_is_refused_before() -> Result<()> {
    for (values, place) in [
        ("edge: {drain: {marginSeconds: 4}}", "/edge/drain/marginSeconds"),
        ("edge: {maxConnections: 0}", "/edge/maxConnections"),
        ("edge: {maxConnections: many}", "/edge/maxConnections"),
        ("edge: {heartbeatSeconds: 1.5}", "/edge/heartbeatSeconds"),
        ("edge: {rollout: {maxSurge: 0}}", "/edge/rollout/maxSurge"),
        ("edge: {rollout: {maxSurge: 0%}}", "/edge/rollout/maxSurge"),
        ("edge: {service: {type: ExternalName}}", "/edge/service/type"),
        ("edge: {image: {digest: sha256:abc}}", "/edge/image/digest"),
        ("operator: {leaseSeconds: 2}", "/operator/leaseSeconds"),
        ("operator: {concurrency: 257}", "/operator/concurrency"),
        ("fullnameOverride: a.b", "/fullnameOverride"),
        ("fullnameOverride: 1a", "/fullnameOverride"),
        ("broker: {vhost: \"\"}", "/broker/vhost"),
        ("broker: {port: 65536}", "/broker/port"),
        ("broker: {advertised: rabbitmq}", "/broker/advertised"),
        ("broker: {secretName: \"\"}", "/broker/secretName"),
        ("commonLabels: {a: 1}", "/commonLabels/a"),
    ] {
        let refusal = refusal(values)?;
        ensure!(refusal.contains(place), "{values}: {refusal}");
    }
    Ok(())
}

#[test]
fn values_that_do_not_go_together_are_refused_with_a_sentence() -> Result<()> {
    for (values, sentence) in [
        ("edge: {drain: {windowSeconds: 41}}", "deadlineSeconds (45) is shorter than"),
        ("edge: {autoscaling: {minReplicas: 11}}", "maxReplicas is less than minReplicas"),
        ("edge: {autoscaling: {cpuPercent: 0, memoryPercent: 0}}", "set one, or edge.autoscaling.enabled=false"),
        ("edge: {autoscaling: {connections: {average: 1}, keda: {enabled: true}}}", "keda.serverAddress is missing"),
        ("broker: {bundled: true, host: a}", "leave out broker.tls"),
        ("broker: {bundled: true, management: {port: 443}}", "leave out broker.tls"),
        ("broker: {bundled: true, stream: {port: 5000}}", "leave out broker.tls"),
        (
            "edge: {service: {externalTrafficPolicy: Local}}",
            "externalTrafficPolicy means nothing with edge.service.type=ClusterIP",
        ),
        ("edge: {service: {nodePort: 30443}}", "nodePort means nothing with edge.service.type=ClusterIP"),
        ("edge: {service: {loadBalancerSourceRanges: [192.0.2.0/24]}}", "loadBalancerSourceRanges means nothing"),
        ("edge: {service: {type: NodePort, loadBalancerClass: a}}", "means nothing with edge.service.type=NodePort"),
        ("bundledBroker: {password: x}", "broker.bundled is not"),
        ("tls: {enabled: true}", "tls.secretName is missing"),
        ("tls: {certificate: {create: true, issuerRef: {name: a}, dnsNames: [a]}}", "set tls.enabled"),
        ("tls: {enabled: true, certificate: {create: true, dnsNames: [a]}}", "issuerRef.name is missing"),
        ("tls: {enabled: true, certificate: {create: true, issuerRef: {name: a}}}", "dnsNames is missing"),
        ("publicUrl: ws.example.com", "write https:// and a host"),
        ("publicUrl: \"ftp://x\"", "write https:// and a host"),
        ("publicUrl: \"https://\"", "write https:// and a host"),
        ("publicUrl: \"https://x/?a=b\"", "without user, query or fragment"),
        ("publicUrl: \"https://x:99999\"", "write https:// and a host"),
        ("publicUrl: \"https://x:65536\"", "write https:// and a host"),
        ("publicUrl: \"https://x:0\"", "write https:// and a host"),
        ("publicUrl: \"https://[:::]\"", "write https:// and a host"),
        ("publicUrl: \"https://[1:2:3:4:5:6:7:8:9]\"", "write https:// and a host"),
        ("publicUrl: \"https://u:p@x\"", "without user, query or fragment"),
        ("gateway: {enabled: true, parentRefs: [{name: g}], hostnames: [\"*.example\"]}", "set publicUrl"),
        ("ingress: {enabled: true}", "ingress.host is missing"),
        ("gateway: {enabled: true}", "gateway.parentRefs is missing"),
        ("commonLabels: {app.kubernetes.io/name: x}", "app.kubernetes.io/name is the chart's own"),
        ("edge: {podLabels: {app.kubernetes.io/component: x}}", "edge.podLabels: the label"),
        // The grace period is made of the value and would be too short.
        (
            "edge: {extraEnv: [{name: WIREPOST_DRAIN_DEADLINE_SECONDS, value: \"600\"}]}",
            "edge.extraEnv: WIREPOST_DRAIN",
        ),
        ("operator: {extraEnv: [{name: WIREPOST_LEASE, value: x}]}", "operator.extraEnv: WIREPOST_LEASE"),
    ] {
        let refusal = refusal(values)?;
        ensure!(refusal.contains(sentence), "{values}: {refusal}");
    }
    let both = refusal("ingress: {enabled: true}\ngateway: {enabled: true}")?;
    let lines = both.lines().filter(|line| line.starts_with("- ")).count();
    ensure!(lines == 2, "not all at once: {both}");
    Ok(())
}

#[test]
fn a_type_is_named_by_its_place() -> Result<()> {
    let refusal = refusal("edge: {replicas: \"2\"}")?;
    refusal
        .lines()
        .find(|line| line.contains("/edge/replicas") && line.contains("integer"))
        .context(refusal.clone())?;
    Ok(())
}
