//! The cluster, read by the user's own kubectl: it knows how to reach it and how to log in.

use std::{path::PathBuf, process::Stdio};

use serde_json::Value;
use tokio::process::Command;

use crate::output::one_line;

/// Where Kubernetes puts the namespace of a pod's service account.
const SERVICE_ACCOUNT_NAMESPACE: &str = "/var/run/secrets/kubernetes.io/serviceaccount/namespace";
/// An API server that doesn't answer.
const TIMEOUT: &str = "--request-timeout=30s";

/// kubectl, or a program with its arguments.
#[derive(Debug)]
pub(super) struct Kubectl {
    pub program: PathBuf,
    /// Else the current one.
    pub context: Option<String>,
}

impl Kubectl {
    /// The namespace of objects that name none. Without a kubeconfig, as in a pod, it is that of the service account.
    pub(super) async fn namespace(&self) -> String {
        let view = ["config", "view", "--minify", "--output", "jsonpath={..namespace}"];
        let name = match self.run(&view, Stdio::piped()).await {
            Ok(name) => name,
            Err(_) => tokio::fs::read(SERVICE_ACCOUNT_NAMESPACE).await.unwrap_or_default(),
        };
        let name = String::from_utf8_lossy(&name).trim().to_owned();
        if name.is_empty() { "default".to_owned() } else { name }
    }

    /// The businesses of a namespace. kubectl talks to the user meanwhile: it may have to log in.
    pub(super) async fn businesses(&self, namespace: &str) -> anyhow::Result<Vec<Value>> {
        let get = ["get", "wsbusinesses.wirepost.dev", "--namespace", namespace, "--output", "json", TIMEOUT];
        items(&self.run(&get, Stdio::inherit()).await?)
    }

    /// The businesses of every namespace.
    pub(super) async fn all_businesses(&self) -> anyhow::Result<Vec<Value>> {
        let get = ["get", "wsbusinesses.wirepost.dev", "--all-namespaces", "--output", "json", TIMEOUT];
        items(&self.run(&get, Stdio::inherit()).await?)
    }

    /// The classes. Most teams may not read them, so the failure is no news.
    pub(super) async fn classes(&self) -> anyhow::Result<Vec<Value>> {
        items(&self.run(&["get", "wsbusinessclasses.wirepost.dev", "--output", "json", TIMEOUT], Stdio::piped()).await?)
    }

    async fn run(&self, arguments: &[&str], stderr: Stdio) -> anyhow::Result<Vec<u8>> {
        let program = self.program.display();
        let mut command = Command::new(&self.program);
        command.args(self.context.iter().flat_map(|context| ["--context", context])).args(arguments);
        let child = command.stdin(Stdio::inherit()).stdout(Stdio::piped()).stderr(stderr).kill_on_drop(true).spawn();
        let failed = |error: std::io::Error| {
            anyhow::anyhow!(
                "cannot run {program}: {error}; install kubectl, name another program with --kubectl, or pass what `kubectl get wsb -A -o json` writes by --from"
            )
        };
        let output = child.map_err(failed)?.wait_with_output().await.map_err(failed)?;
        if output.status.success() {
            return Ok(output.stdout);
        }
        let said = one_line(&output.stderr);
        let said = if said.is_empty() { "it says why above".to_owned() } else { said };
        anyhow::bail!("{program} {} failed: {said}", arguments[..2.min(arguments.len())].join(" "))
    }
}

/// The items of a list.
fn items(json: &[u8]) -> anyhow::Result<Vec<Value>> {
    let mut list: Value =
        serde_json::from_slice(json).map_err(|error| anyhow::anyhow!("kubectl did not write JSON: {error}"))?;
    match list["items"].take() {
        Value::Array(items) => Ok(items),
        _ => anyhow::bail!("kubectl did not write a list"),
    }
}
