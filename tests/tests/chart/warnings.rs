//! What kubectl prints when somebody changes or deletes a business, by a real API server and the chart's policy.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::admissionregistration::v1::{ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding};
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use wirepost_core::business::WsBusiness;
use wirepost_core::class::WsBusinessClass;
use wirepost_core::compile::compile_one;
use wirepost_core::destruction::destructions;
use wirepost_testing::cluster::{Cluster, Namespace};
use wirepost_testing::kubectl::Kubectl;

use crate::render::{merge, render_in};

/// The policy that asks the classes.
const OF_CLASSES: &str = "-of-classes";

struct World {
    cluster: Cluster,
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
        for name in [name.clone(), format!("{name}{OF_CLASSES}")] {
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
        }
        Ok(Self { cluster, namespace, kubectl, policies, bindings, name })
    }

    async fn end(self) -> Result<()> {
        for name in [self.name.clone(), format!("{}{OF_CLASSES}", self.name)] {
            self.bindings.delete(&name, &DeleteParams::default()).await?;
            self.policies.delete(&name, &DeleteParams::default()).await?;
        }
        Ok(())
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
        let text = |line: &str| {
            let (binding, text) = line.split_once("with binding '")?.1.split_once("': ")?;
            binding.starts_with(&self.name).then(|| text.to_owned())
        };
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
            {"messageType": "refund", "sendType": "ClientToServer", "queue": {"name": "orders"}},
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
    let route = |name: &str, existing: bool| json!({"messageType": name, "sendType": "ClientToServer", "queue": {"name": "orders", "existing": existing}});
    let paid = json!({"messageType": "paid", "sendType": "ServerToClient", "to": ["app"]});
    let gone = |queue: &str| {
        format!(
            "no longer fills {queue}; a queue of wirepost is deleted once it is empty, so let its consumers run until then"
        )
    };
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
                "removes what clients may send or get: ClientToServer refund, ServerToClient paid".to_owned(),
                gone("wirepost.pay.q.orders"),
            ],
        ),
        // The queue of the team's own with the same name is another one.
        (
            json!({"routes": [route("order", true), route("refund", true), paid]}),
            vec![gone("wirepost.pay.q.orders")],
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

    // What the operator has reported counts more than what is declared: a class gave it, or it waits.
    let kept = json!({"status": {"retention": {"seconds": 172_800, "bytes": "100M"}}});
    let businesses: Api<WsBusiness> = world.cluster.api(&world.namespace.name);
    businesses.patch_status("pay", &PatchParams::default(), &Patch::Merge(kept)).await?;
    for (change, expected) in [
        (json!({"session": {"maxSeconds": 60}}), vec![]),
        (
            json!({"push": {"retention": {"seconds": 90_000}}}),
            vec![format!(
                "destroys messages: wirepost.pay.stream drops messages that it keeps now: push.retention.seconds 172800 → 90000{waits}"
            )],
        ),
    ] {
        let said = world.warnings(&world.file("pay", &with(change.clone()))?).await?;
        ensure!(said == expected, "{change}: {said:#?}");
    }

    // A deletion changes no retention.
    let more = json!({"status": {"retention": {"bytes": "200M"}}});
    businesses.patch_status("pay", &PatchParams::default(), &Patch::Merge(more)).await?;
    ensure!(world.kubectl(&["delete"], &world.file("pay", &before)?).await?.is_empty(), "messages are retained");
    let file = world.file("gone", &with(json!({"deletionPolicy": "Delete"})))?;
    world.kubectl(&["create"], &file).await?;
    let said = world.kubectl(&["delete"], &file).await?;
    let all = "destroys messages: all queues and the stream of gone are deleted with their messages";
    ensure!(said == [all], "{said:?}");

    // The class of the business deletes them, and another one does not.
    let class = world.namespace.name.clone();
    let classes: Api<WsBusinessClass> = Api::all(world.cluster.client.clone());
    for (name, policy) in [(class.clone(), "Delete"), (format!("{class}-other"), "Retain")] {
        let spec = json!({"defaults": {"deletionPolicy": policy}});
        let object = json!({"apiVersion": "wirepost.dev/v1alpha1", "kind": "WsBusinessClass", "metadata": {"name": name}, "spec": spec});
        classes.create(&PostParams::default(), &serde_json::from_value(object)?).await?;
    }
    let expected = format!("{all}, as class {class} says (defaults.deletionPolicy)");
    // The API server hears of new classes with some delay, too.
    let mut said = Vec::new();
    while said != [expected.clone()] {
        ensure!(Instant::now() < deadline, "{said:?}");
        let file = world.file("gone", &with(json!({"className": class})))?;
        world.kubectl(&["create"], &file).await?;
        said = world.kubectl(&["delete"], &file).await?;
    }
    for policy in
        [json!({"className": format!("{class}-other")}), json!({"className": class, "deletionPolicy": "Retain"})]
    {
        let file = world.file("gone", &with(policy))?;
        world.kubectl(&["create"], &file).await?;
        let said = world.kubectl(&["delete"], &file).await?;
        ensure!(said.is_empty(), "{said:?}");
    }
    for name in [class.clone(), format!("{class}-other")] {
        classes.delete(&name, &DeleteParams::default()).await?;
    }
    world.end().await
}
