//! What the chart renders: the defaults, everything at once, and what holds whatever is set.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::rbac::v1::PolicyRule;
use serde_json::{Value, json};
use wirepost_testing::cluster::chart_rules;

use crate::render::{examples, render, render_as, text};

/// Every part switched on.
const EVERYTHING: &str = "
publicUrl: https://ws.example.com
broker: {bundled: true}
bundledBroker: {password: secret}
edge: {autoscaling: {connections: {average: 10000}}, service: {type: LoadBalancer}}
tls: {enabled: true, clients: {caSecretName: clients}, certificate: {create: true, issuerRef: {name: issuer}}}
ingress: {enabled: true, host: ws.example.com}
gateway: {enabled: true, parentRefs: [{name: public}], hostnames: [ws.example.com]}
networkPolicy: {egress: {enabled: true}}
monitoring: {podMonitor: {enabled: true}, rules: {enabled: true}}
";

#[test]
fn the_defaults_are_operator_and_edges_with_what_guards_them() -> Result<()> {
    let ids: BTreeSet<String> = render("")?.ids().into_iter().collect();
    let wanted = [
        "ClusterRole/wirepost-system:wirepost-operator",
        "ClusterRole/wirepost-system:wirepost:edit",
        "ClusterRole/wirepost-system:wirepost:view",
        "ClusterRoleBinding/wirepost-system:wirepost-operator",
        "CustomResourceDefinition/wsbusinessclasses.wirepost.dev",
        "CustomResourceDefinition/wsbusinesses.wirepost.dev",
        "Deployment/wirepost-edge",
        "Deployment/wirepost-operator",
        "HorizontalPodAutoscaler/wirepost-edge",
        "NetworkPolicy/wirepost-edge",
        "NetworkPolicy/wirepost-operator",
        "PodDisruptionBudget/wirepost-edge",
        "PodDisruptionBudget/wirepost-operator",
        "Role/wirepost-edge",
        "Role/wirepost-operator",
        "RoleBinding/wirepost-edge",
        "RoleBinding/wirepost-operator",
        "Service/wirepost",
        "Service/wirepost-edge",
        "Service/wirepost-edge-peers",
        "ServiceAccount/wirepost-edge",
        "ServiceAccount/wirepost-operator",
        "ValidatingAdmissionPolicy/wirepost-system.wirepost-operator-secrets",
        "ValidatingAdmissionPolicy/wirepost-system.wirepost-warnings",
        "ValidatingAdmissionPolicy/wirepost-system.wirepost-warnings-of-classes",
        "ValidatingAdmissionPolicyBinding/wirepost-system.wirepost-operator-secrets",
        "ValidatingAdmissionPolicyBinding/wirepost-system.wirepost-warnings",
        "ValidatingAdmissionPolicyBinding/wirepost-system.wirepost-warnings-of-classes",
    ];
    ensure!(ids == wanted.map(str::to_owned).into(), "{ids:#?}");
    Ok(())
}

#[test]
fn everything_at_once_is_all_of_it() -> Result<()> {
    let rendered = render(EVERYTHING)?;
    let ids: BTreeSet<String> = rendered.ids().into_iter().collect();
    ensure!(ids.len() == rendered.0.len(), "an object is there twice: {:?}", rendered.ids());
    for id in [
        "Certificate/wirepost",
        "ConfigMap/wirepost-rabbitmq",
        "HTTPRoute/wirepost",
        "Ingress/wirepost",
        "NetworkPolicy/wirepost-rabbitmq",
        "PodMonitor/wirepost-edge",
        "PodMonitor/wirepost-operator",
        "PrometheusRule/wirepost",
        "Secret/wirepost-broker",
        "Service/wirepost-rabbitmq",
        "StatefulSet/wirepost-rabbitmq",
    ] {
        rendered.get(id)?;
    }
    Ok(())
}

#[test]
fn rendering_twice_gives_the_same() -> Result<()> {
    let all = examples()?.into_iter().map(|(_, values)| values);
    for values in all.chain([String::new(), EVERYTHING.to_owned()]) {
        ensure!(text("ns", &values)? == text("ns", &values)?, "differs each time:\n{values}");
    }
    Ok(())
}

/// Secrets are the user's, or the operator makes them.
#[test]
fn no_secret_is_made_while_rendering() -> Result<()> {
    for (name, values) in examples()? {
        let secrets: Vec<_> = render(&values)?.ids().into_iter().filter(|id| id.starts_with("Secret/")).collect();
        ensure!(secrets.is_empty(), "{name}: {secrets:?}");
    }
    Ok(())
}

#[test]
fn the_crds_stay_when_the_release_is_removed() -> Result<()> {
    let rendered = render("")?;
    for (name, shipped) in [
        ("wsbusinesses", include_str!("../../../crds/wsbusinesses.wirepost.dev.yaml")),
        ("wsbusinessclasses", include_str!("../../../crds/wsbusinessclasses.wirepost.dev.yaml")),
    ] {
        let crd = rendered.get(&format!("CustomResourceDefinition/{name}.wirepost.dev"))?;
        ensure!(crd["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep");
        let mut bare = crd.clone();
        bare["metadata"].as_object_mut().context("no metadata")?.remove("annotations");
        let shipped: Value = serde_yaml::from_str(shipped)?;
        ensure!(bare == shipped, "{name} is not the CRD of crds/");
    }
    Ok(())
}

#[test]
fn the_rights_are_those_that_the_tests_run_with() -> Result<()> {
    let rendered = render("operator: {secretsWatch: {namespaces: [shop]}}")?;
    for (id, file) in [
        ("ClusterRole/wirepost-system:wirepost-operator", "operator-cluster-rules"),
        ("ClusterRole/wirepost-system:wirepost-operator-secrets", "operator-secrets-watch-rules"),
        ("Role/wirepost-operator", "operator-system-rules"),
        ("Role/wirepost-edge", "edge-rules"),
    ] {
        let rules: Vec<PolicyRule> = serde_json::from_value(rendered.get(id)?["rules"].clone())?;
        ensure!(rules == chart_rules(file)?, "{id} is not {file}");
        let words = serde_json::to_string(&rules)?;
        ensure!(!words.contains('*'), "{id} has a *");
    }
    for account in ["wirepost-operator", "wirepost-edge"] {
        let binding = rendered.get(&format!("RoleBinding/{account}"))?;
        let subject = json!([{"kind": "ServiceAccount", "name": account, "namespace": "wirepost-system"}]);
        ensure!(binding["subjects"] == subject && binding["roleRef"]["name"] == account, "{binding}");
        let pod = rendered.at(&format!("Deployment/{account}"), "$pod/serviceAccountName");
        ensure!(pod == Some(json!(account)));
    }
    Ok(())
}

#[test]
fn every_pod_is_restricted() -> Result<()> {
    for (id, template) in render(EVERYTHING)?.pods() {
        let pod = &template["spec"]["securityContext"];
        ensure!(pod["runAsNonRoot"] == true && pod["seccompProfile"]["type"] == "RuntimeDefault", "{id}: {pod}");
        for container in template["spec"]["containers"].as_array().context("no containers")? {
            let security = &container["securityContext"];
            let wanted = json!({
                "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]},
            });
            ensure!(*security == wanted, "{id}: {security}");
            ensure!(container["resources"]["requests"]["memory"].is_string(), "{id} requests no memory");
            ensure!(container["resources"]["limits"]["memory"].is_string(), "{id} has no memory limit");
        }
    }
    Ok(())
}

/// Deployments can't change their selectors, and Services must not select what is another's.
#[test]
fn selectors_are_three_labels_that_every_pod_has() -> Result<()> {
    let rendered = render(EVERYTHING)?;
    let mut seen = BTreeSet::new();
    for (id, template) in rendered.pods() {
        let labels = &rendered.get(&id)?["spec"]["selector"]["matchLabels"];
        let labels = labels.as_object().context("no selector")?;
        let keys: Vec<_> = labels.keys().map(String::as_str).collect();
        let wanted = ["app.kubernetes.io/component", "app.kubernetes.io/instance", "app.kubernetes.io/name"];
        ensure!(keys == wanted, "{id}: {keys:?}");
        ensure!(labels.iter().all(|(key, value)| template["metadata"]["labels"][key] == *value), "{id}");
        ensure!(seen.insert(serde_json::to_string(labels)?), "{id} selects another's pods");
    }
    Ok(())
}

/// Else each new version of the chart would restart every pod, RabbitMQ too.
#[test]
fn no_pod_has_the_charts_version() -> Result<()> {
    let rendered = render(&format!("{EVERYTHING}\ncommonLabels: {{team: platform}}"))?;
    let pods = rendered.pods();
    ensure!(pods.len() == 3, "{} pods", pods.len());
    for (id, template) in pods {
        let labels = &template["metadata"]["labels"];
        ensure!(labels["helm.sh/chart"].is_null() && labels["app.kubernetes.io/version"].is_null(), "{id}: {labels}");
        ensure!(labels["team"] == "platform", "{id}: {labels}");
    }
    Ok(())
}

/// The operator finds ready edges by it (`--edge-service`).
#[test]
fn the_discovery_service_is_headless_and_names_the_admin_port() -> Result<()> {
    let rendered = render("")?;
    let service = rendered.get("Service/wirepost-edge")?;
    ensure!(service["spec"]["clusterIP"] == "None" && service["spec"]["publishNotReadyAddresses"] == false);
    ensure!(service["spec"]["ports"] == json!([{"name": "admin", "port": 9090, "targetPort": "admin"}]), "{service}");
    ensure!(rendered.at("Deployment/wirepost-operator", "$env/WIREPOST_EDGE_SERVICE") == Some(json!("wirepost-edge")));
    // An edge that shuts down has clients, too.
    let peers = rendered.get("Service/wirepost-edge-peers")?;
    ensure!(peers["spec"]["clusterIP"] == "None" && peers["spec"]["publishNotReadyAddresses"] == true);
    let name = rendered.at("Deployment/wirepost-edge", "$env/WIREPOST_PEERS");
    ensure!(name == Some(json!("wirepost-edge-peers.wirepost-system.svc:9090")), "{name:?}");
    let public = rendered.get("Service/wirepost")?;
    ensure!(!public.to_string().contains("9090") && !public.to_string().contains("admin"), "{public}");
    Ok(())
}

/// New edges first, and old ones get more time than they need to drain.
#[test]
fn a_rollout_never_has_fewer_edges() -> Result<()> {
    let rendered = render("edge: {drain: {deadlineSeconds: 100}}")?;
    let edge = rendered.get("Deployment/wirepost-edge")?;
    ensure!(edge["spec"]["strategy"]["rollingUpdate"] == json!({"maxUnavailable": 0, "maxSurge": "100%"}), "{edge}");
    ensure!(edge["spec"]["replicas"].is_null(), "the autoscaler's work would be undone by each upgrade");
    let pod = &edge["spec"]["template"]["spec"];
    ensure!(pod["terminationGracePeriodSeconds"] == 110 && pod["containers"][0]["lifecycle"].is_null());
    Ok(())
}

#[test]
fn liveness_looks_at_the_process_alone() -> Result<()> {
    let rendered = render("")?;
    for id in ["Deployment/wirepost-edge", "Deployment/wirepost-operator"] {
        for (probe, path) in [("livenessProbe", "/livez"), ("readinessProbe", "/readyz")] {
            let get = rendered.at(id, &format!("$container/{probe}/httpGet"));
            ensure!(get == Some(json!({"path": path, "port": "admin"})), "{id}: {get:?}");
        }
    }
    Ok(())
}

/// Variables of a program, by its source.
fn known(args: &str) -> BTreeSet<String> {
    let logs = include_str!("../../../runtime/src/logs.rs");
    let names = args.split("env = \"").skip(1).chain(logs.split("env = \"").skip(1));
    let names = names.filter_map(|rest| rest.split('"').next());
    names.chain(["WIREPOST_LOG"]).map(str::to_owned).collect()
}

/// A misspelt variable would be silence, and a setting that the chart does not know could not be made.
#[test]
fn the_programs_know_every_variable_and_the_chart_knows_every_setting() -> Result<()> {
    let rendered = render(&format!("{EVERYTHING}\nselector: a=b"))?;
    let external = render(
        "{publicUrl: \"https://a\", operator: {existingQueues: [a=b], trustedIssuers: [id.corp], secretsWatch: {namespaces: [shop]}, \
         adoptVhost: unmarked, allowMassDeletion: true, requireClass: true}, edge: {compression: [shop], trustedProxies: [10.0.0.0/8]}, \
         broker: {advertised: \"a:1\", nodes: 3, tls: {enabled: true, caSecretName: ca, clientSecretName: c}}, tls: {enabled: true, secretName: t}}",
    )?;
    for (id, args, unset) in [
        ("Deployment/wirepost-edge", include_str!("../../../edge/src/config/args.rs"), vec!["WIREPOST_CONFIG_DIR"]),
        // The Lease's name is part of the rights.
        ("Deployment/wirepost-operator", include_str!("../../../operator/src/args.rs"), vec!["WIREPOST_LEASE"]),
    ] {
        let mut set = BTreeSet::new();
        for rendered in [&rendered, &external] {
            let env = rendered.at(id, "$container/env").context("no env")?;
            let names = env.as_array().context("no list")?.iter().filter_map(|variable| variable["name"].as_str());
            set.extend(names.filter(|name| name.starts_with("WIREPOST_")).map(str::to_owned));
        }
        let known: BTreeSet<String> = known(args);
        let unknown: Vec<_> = set.difference(&known).collect();
        ensure!(unknown.is_empty(), "{id} sets what the program does not know: {unknown:?}");
        let missing: Vec<_> = known.difference(&set).filter(|name| !unset.contains(&name.as_str())).collect();
        ensure!(missing.is_empty(), "{id} never sets {missing:?}");
    }
    Ok(())
}

#[test]
fn names_fit_however_long_the_release_is_called() -> Result<()> {
    let long = "a".repeat(60);
    let rendered = render(&format!("{EVERYTHING}\nfullnameOverride: {long}"))?;
    for id in rendered.ids() {
        let name = id.split_once('/').context("no name")?.1;
        ensure!(name.len() <= 52 || name.contains([':', '.']), "{id} has {} bytes", name.len());
    }
    Ok(())
}

/// A release may be called `ws.eu` or `424242`, a Service may not.
#[test]
fn names_of_services_are_valid_whatever_the_release_is_called() -> Result<()> {
    for release in ["ws.eu", "424242", "4.2", "wirepost.eu", "4-wirepost"] {
        for id in render_as(release, "ns", EVERYTHING)?.ids() {
            let Some(name) = id.strip_prefix("Service/") else { continue };
            let valid = name.starts_with(|first: char| first.is_ascii_lowercase()) && !name.contains('.');
            ensure!(valid, "release {release}: {id}");
        }
    }
    Ok(())
}

/// Where this value is a number.
fn numbers(at: &str, value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(map) => map.iter().for_each(|(key, value)| numbers(&format!("{at}/{key}"), value, found)),
        Value::Array(list) => list.iter().for_each(|value| numbers(at, value, found)),
        Value::Number(number) if number.as_u64() == Some(424_242) => found.push(at.to_owned()),
        _ => {}
    }
}

/// YAML would read them as numbers, which the API server refuses.
#[test]
fn what_is_called_by_a_number_stays_a_text() -> Result<()> {
    let values = r#"
broker: {secretName: "424242", edgeSecretName: "424242", tls: {enabled: true, caSecretName: "424242", caKey: "424242", clientSecretName: "424242"}}
edge:
  keys: {existingSecret: "424242"}
  priorityClassName: "424242"
  service: {type: LoadBalancer, loadBalancerClass: "424242", appProtocol: "424242"}
operator: {priorityClassName: "424242"}
tls: {enabled: true, secretName: "424242", clients: {caSecretName: "424242", caKey: "424242"}, certificate: {create: true, dnsNames: [a], issuerRef: {name: "424242"}}}
ingress: {enabled: true, host: a, className: "424242", tls: {secretName: "424242"}}
"#;
    let bundled = r#"
broker: {bundled: true, secretName: "424242"}
bundledBroker: {password: "424242", storage: {size: "424242", className: "424242"}}
"#;
    for values in [values, bundled] {
        let mut found = Vec::new();
        for object in render_as("424242", "424242", values)?.0 {
            numbers(&crate::render::id(&object), &object, &mut found);
        }
        ensure!(found.is_empty(), "{found:#?}");
    }
    Ok(())
}

/// An existing Secret that is rotated is taken into use: by files, which are read at each connect.
#[test]
fn the_brokers_password_is_never_in_an_environment() -> Result<()> {
    let rendered = render("")?;
    for id in ["Deployment/wirepost-edge", "Deployment/wirepost-operator"] {
        let env = rendered.at(id, "$container/env").context("no env")?.to_string();
        ensure!(!env.contains("key\":\"password") && !env.contains("key\":\"username"), "{id}: {env}");
        ensure!(env.contains("/etc/wirepost/broker/password"), "{id}: {env}");
    }
    Ok(())
}

/// Of an existing broker's Secret only what it has in either form: the default user of the RabbitMQ Cluster Operator, Service Binding.
#[test]
fn the_brokers_secret_may_have_either_form() -> Result<()> {
    let rendered = render("broker: {secretName: messaging}")?;
    for id in ["Deployment/wirepost-edge", "Deployment/wirepost-operator"] {
        let env = rendered.at(id, "$container/env").context("no env")?;
        let volumes = rendered.at(id, "$pod/volumes").context("no volumes")?;
        let references =
            env.as_array().into_iter().flatten().filter_map(|variable| variable.pointer("/valueFrom/secretKeyRef"));
        let mounted =
            volumes.as_array().into_iter().flatten().filter(|volume| volume["secret"]["secretName"] == "messaging");
        let items = mounted.flat_map(|volume| volume["secret"]["items"].as_array().into_iter().flatten());
        let keys: BTreeSet<&str> = references
            .inspect(|reference| assert_eq!(reference["name"], "messaging", "{id}"))
            .chain(items)
            .filter_map(|entry| entry["key"].as_str())
            .collect();
        // Edges reach the broker at the same place, and never as the operator's user.
        let expected: &[&str] =
            if id.ends_with("edge") { &["host", "port"] } else { &["host", "password", "port", "username"] };
        ensure!(keys.iter().eq(expected), "{id}: {keys:?}");
    }
    let volumes = rendered.at("Deployment/wirepost-edge", "$pod/volumes").context("no volumes")?.to_string();
    ensure!(volumes.contains("wirepost-edge-user"), "edges do not mount their own user: {volumes}");
    Ok(())
}

#[test]
fn edges_scale_by_open_sockets_where_the_metric_is_served_and_never_by_caches() -> Result<()> {
    let metrics = |values: &str, apis: &[&str]| -> Result<String> {
        let apis: Vec<&str> = apis.iter().flat_map(|api| ["--api-versions", api]).collect();
        let only = "templates/edge/autoscaling.yaml";
        let arguments = [&["template", "wirepost", crate::render::CHART, "--show-only", only], &apis[..]].concat();
        let output = crate::render::run(&arguments, values)?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let object: Value = serde_yaml::from_slice(&output.stdout)?;
        let list = object.pointer("/spec/metrics").or_else(|| object.pointer("/spec/triggers"));
        Ok(list.context("neither metrics nor triggers")?.to_string())
    };
    let nobody = metrics("", &[])?;
    ensure!(nobody.contains("cpu") && !nobody.contains("memory") && !nobody.contains("wirepost_edge_connections"));
    for (values, apis, target) in [
        ("", &["custom.metrics.k8s.io/v1beta1"][..], Some("13333")),
        ("edge: {maxConnections: 30000}", &["custom.metrics.k8s.io/v1beta2"], Some("20000")),
        ("edge: {autoscaling: {connections: {average: 0}}}", &["custom.metrics.k8s.io/v1beta1"], None),
        ("edge: {autoscaling: {connections: {source: External}}}", &["custom.metrics.k8s.io/v1beta1"], None),
        ("edge: {autoscaling: {connections: {source: External}}}", &["external.metrics.k8s.io/v1beta1"], Some("13333")),
        ("edge: {autoscaling: {keda: {enabled: true, serverAddress: \"http://p\"}}}", &[], Some("13333")),
    ] {
        let found = metrics(values, apis)?;
        let named = found.contains("wirepost_edge_connections");
        ensure!(named == target.is_some() && target.is_none_or(|target| found.contains(target)), "{values}: {found}");
    }
    Ok(())
}

#[test]
fn an_install_says_what_the_values_mean() -> Result<()> {
    let notes = |values: &str| -> Result<String> {
        let output = crate::render::run(
            &["install", "wirepost", crate::render::CHART, "--dry-run=client", "--namespace", "wirepost-system"],
            values,
        )?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?)
    };
    ensure!(notes("broker: {bundled: true}")?.contains("NOT FOR PRODUCTION"));
    ensure!(!notes("")?.contains("NOT FOR PRODUCTION"));
    ensure!(notes("edge: {autoscaling: {enabled: false}, replicas: 7}")?.contains("there are now 7 edges"));
    ensure!(!notes("")?.contains("there are now"));
    ensure!(notes("")?.contains("not scaled by their open sockets"));
    ensure!(!notes("edge: {autoscaling: {connections: {average: 9}}}")?.contains("open sockets"));
    Ok(())
}
