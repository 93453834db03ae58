//! What kubectl prints when somebody changes or deletes a business, by a real API server and the chart's policy.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::admissionregistration::v1::{ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding};
use kube::Api;
use kube::api::{DeleteParams, PostParams};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use wirepost_core::business::WsBusiness;
use wirepost_core::compile::compile_one;
use wirepost_core::destruction::destructions;
use wirepost_testing::cluster::{Cluster, Namespace};
use wirepost_testing::kubectl::Kubectl;

use crate::render::{merge, render_in};

struct World {
    namespace: Namespace,
    kubectl: Kubectl,
    policies: Api<ValidatingAdmissionPolicy>,
    bindings: Api<ValidatingAdmissionPolicyBinding>,
    name: String,
}

impl World {
    async fn new() -> Result<Self> {
        let cluster = Cluster::connect().await?;
        let namespace = cluster.namespace("warnings").await?;
        let kubectl = Kubectl::new(&cluster)?;
        let rendered = render_in(&namespace.name, "")?;
        let (policies, bindings) = (Api::all(cluster.client.clone()), Api::all(cluster.client.clone()));
        let name = format!("{}.wirepost-warnings", namespace.name);
        let object = |kind: &str| {
            let object = rendered.0.iter().find(|it| it["kind"] == kind && it["metadata"]["name"] == *name);
            object.cloned().with_context(|| format!("no {kind} {name}"))
        };
        let policy = serde_json::from_value(object("ValidatingAdmissionPolicy")?)?;
        policies.create(&PostParams::default(), &policy).await?;
        let mut binding = object("ValidatingAdmissionPolicyBinding")?;
        // Other tests have businesses of their own.
        let own = json!({"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace.name}}});
        binding["spec"]["matchResources"] = own;
        bindings.create(&PostParams::default(), &serde_json::from_value(binding)?).await?;
        Ok(Self { namespace, kubectl, policies, bindings, name })
    }

    fn file(&self, name: &str, spec: &Value) -> Result<PathBuf> {
        let metadata = json!({"name": name, "namespace": self.namespace.name});
        let business =
            json!({"apiVersion": "wirepost.dev/v1alpha1", "kind": "WsBusiness", "metadata": metadata, "spec": spec});
        self.kubectl.file(&format!("{name}.json"), business.to_string())
    }

    async fn kubectl(&self, arguments: &[&str], file: &Path) -> Result<Vec<String>> {
        let file = file.to_string_lossy();
        let done = self.kubectl.run(arguments.iter().copied().chain(["--filename", &*file])).await?;
        ensure!(done.status == 0, "{arguments:?}: {done:?}");
        let warnings = done.stderr.lines().filter_map(|line| line.strip_prefix("Warning: "));
        let text = |line: &str| Some(line.split_once(&format!("with binding '{}': ", self.name))?.1.to_owned());
        Ok(warnings.filter_map(text).collect())
    }

    /// What an apply would say.
    async fn warnings(&self, file: &Path) -> Result<Vec<String>> {
        self.kubectl(&["apply", "--dry-run=server"], file).await
    }
}

fn spec() -> Value {
    json!({
        "clientTypes": ["app"],
        "access": {"secretName": "pay-access"},
        "routes": [
            {"messageType": "order", "sendType": "ClientToServer", "queue": {"name": "orders"}},
            {"messageType": "paid", "sendType": "ServerToClient", "to": ["app"]},
        ],
    })
}

/// Whether the operator would wait with this change.
fn is_destructive(before: &Value, after: &Value) -> Result<bool> {
    let compiled = |spec: &Value| -> Result<_> {
        let value = json!({"apiVersion": "wirepost.dev/v1alpha1", "kind": "WsBusiness", "metadata": {"name": "pay"}, "spec": spec});
        let business: WsBusiness = serde_json::from_value(value)?;
        compile_one(&business).map_err(|rejection| anyhow::anyhow!("{rejection:?}"))
    };
    Ok(!destructions(&compiled(before)?.topology, &compiled(after)?.topology).is_empty())
}

#[tokio::test]
async fn an_apply_that_destroys_messages_or_takes_something_away_says_so() -> Result<()> {
    let world = World::new().await?;
    let mut before = spec();
    before["push"] = json!({"retention": {"bytes": "100M"}});
    let file = world.file("pay", &before)?;
    world.kubectl(&["create"], &file).await?;
    let with = |change: Value| {
        let mut spec = before.clone();
        merge(&mut spec, change);
        spec
    };
    let transient = json!({"push": {"delivery": "Transient", "retention": null}});
    // The API server hears of a new policy with some delay.
    let deadline = Instant::now() + Duration::from_mins(1);
    let changed = world.file("pay", &with(transient.clone()))?;
    while world.warnings(&changed).await?.is_empty() {
        ensure!(Instant::now() < deadline, "the policy never takes effect");
        sleep(Duration::from_millis(100)).await;
    }
    let waits = "; the operator waits until it is allowed: see the condition Accepted";
    let order = json!({"messageType": "order", "sendType": "ClientToServer", "queue": {"name": "sales"}});
    for (change, expected) in [
        (json!({"session": {"maxSeconds": 60}}), vec![]),
        (json!({"push": {"retention": {"seconds": 90_000, "bytes": "1Gi"}}}), vec![]),
        // As many bytes, written in another way.
        (json!({"push": {"retention": {"bytes": "100000k"}}}), vec![]),
        (transient, vec![format!("destroys messages: stream wirepost.pay.stream is deleted with its messages{waits}")]),
        (
            json!({"push": {"retention": {"seconds": 60, "bytes": "95Mi"}}}),
            vec![
                format!("destroys messages: wirepost.pay.stream drops messages that it keeps now: push.retention.seconds 86400 → 60{waits}"),
                format!("destroys messages: wirepost.pay.stream drops messages that it keeps now: push.retention.bytes 100M → 95Mi{waits}"),
            ],
        ),
        (
            json!({"routes": [order]}),
            vec![
                "removes what clients may send or get: ServerToClient paid".to_owned(),
                "no longer fills orders; a queue of wirepost is deleted once it is empty, so let its consumers run until then".to_owned(),
            ],
        ),
        (json!({"access": null}), vec!["removes Secret pay-access with the credentials in it".to_owned()]),
        (
            json!({"deletionPolicy": "Delete", "push": {"retention": {"seconds": 60}}}),
            vec![
                "destroys messages: wirepost.pay.stream drops messages that it keeps now: push.retention.seconds 86400 → 60; deletionPolicy is Delete, so they go at once".to_owned(),
                "deletionPolicy Delete: from now on messages are destroyed with this resource, and by changes, without a further question".to_owned(),
            ],
        ),
    ] {
        let after = with(change.clone());
        let said = world.warnings(&world.file("pay", &after)?).await?;
        ensure!(said == expected, "{change}: {said:#?}");
        let destroys = said.iter().any(|warning| warning.starts_with("destroys messages: "));
        ensure!(destroys == is_destructive(&before, &after)?, "{change}: policy and operator differ");
    }

    ensure!(world.kubectl(&["delete"], &world.file("pay", &before)?).await?.is_empty(), "messages are retained");
    let file = world.file("gone", &with(json!({"deletionPolicy": "Delete"})))?;
    world.kubectl(&["create"], &file).await?;
    let said = world.kubectl(&["delete"], &file).await?;
    ensure!(
        said == ["destroys messages: all queues and the stream of gone are deleted with their messages"],
        "{said:?}"
    );
    world.bindings.delete(&world.name, &DeleteParams::default()).await?;
    world.policies.delete(&world.name, &DeleteParams::default()).await?;
    Ok(())
}
