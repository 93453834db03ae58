//! Service accounts with just the rights that a program is to have.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, PolicyRule, Role, RoleBinding, RoleRef, Subject};
use kube::api::{DeleteParams, ObjectMeta, PostParams};
use kube::config::{Context as KubeContext, Kubeconfig, NamedCluster, NamedContext};
use kube::{Api, Client};
use serde_json::json;
use tempfile::TempDir;

use super::{Cluster, client, from_drop, unique};

/// An account and the kubeconfig files that log in as it. The files go, and its cluster-wide rights, when dropped.
pub struct ServiceAccount {
    pub namespace: String,
    pub name: String,
    /// Logs in as it, at the API server itself.
    pub kubeconfig: PathBuf,
    directory: TempDir,
    token: String,
    role: String,
    cluster: Cluster,
}

impl Cluster {
    /// A service account with these rights in the whole cluster and in its own namespace. The token is good for an hour.
    pub async fn service_account(
        &self,
        namespace: &str,
        name: &str,
        cluster_rules: &[PolicyRule],
        system_rules: &[PolicyRule],
    ) -> Result<ServiceAccount> {
        let new = PostParams::default();
        let role = unique(&format!("test-{name}"));
        let metadata = |name: &str| ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() };
        let reference = |kind: &str| RoleRef {
            api_group: "rbac.authorization.k8s.io".to_owned(),
            kind: kind.to_owned(),
            name: role.clone(),
        };
        let subjects = Some(vec![Subject {
            kind: "ServiceAccount".to_owned(),
            name: name.to_owned(),
            namespace: Some(namespace.to_owned()),
            ..Subject::default()
        }]);

        let accounts: Api<v1::ServiceAccount> = self.api(namespace);
        let account = v1::ServiceAccount { metadata: metadata(name), ..v1::ServiceAccount::default() };
        accounts.create(&new, &account).await?;
        let rules = Some(cluster_rules.to_vec());
        let object = ClusterRole { metadata: metadata(&role), rules, ..ClusterRole::default() };
        Api::all(self.client.clone()).create(&new, &object).await?;
        let role_ref = reference("ClusterRole");
        let object = ClusterRoleBinding { metadata: metadata(&role), role_ref, subjects: subjects.clone() };
        Api::all(self.client.clone()).create(&new, &object).await?;
        let object = Role { metadata: metadata(&role), rules: Some(system_rules.to_vec()) };
        self.api(namespace).create(&new, &object).await?;
        let object = RoleBinding { metadata: metadata(&role), role_ref: reference("Role"), subjects };
        self.api(namespace).create(&new, &object).await?;

        let spec = TokenRequestSpec { expiration_seconds: Some(3600), ..TokenRequestSpec::default() };
        let request = TokenRequest { spec, ..TokenRequest::default() };
        let token = accounts.create_token_request(name, &new, &request).await?;
        let token = token.status.context("a token request without an answer")?.token;

        let directory = TempDir::new()?;
        let mut account = ServiceAccount {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            kubeconfig: PathBuf::new(),
            directory,
            token,
            role,
            cluster: self.clone(),
        };
        account.kubeconfig = account.write("kubeconfig", |_| Ok(()))?;
        Ok(account)
    }
}

impl ServiceAccount {
    /// A client that logs in as it.
    pub async fn client(&self) -> Result<Client> {
        client(&self.kubeconfig).await
    }

    /// Further rights, in one namespace.
    pub async fn grant_in(&self, namespace: &str, rules: &[PolicyRule]) -> Result<()> {
        let new = PostParams::default();
        let metadata = || ObjectMeta { name: Some(self.role.clone()), ..ObjectMeta::default() };
        let object = Role { metadata: metadata(), rules: Some(rules.to_vec()) };
        self.cluster.api(namespace).create(&new, &object).await?;
        let role_ref = RoleRef {
            api_group: "rbac.authorization.k8s.io".to_owned(),
            kind: "Role".to_owned(),
            name: self.role.clone(),
        };
        let subject = Subject {
            kind: "ServiceAccount".to_owned(),
            name: self.name.clone(),
            namespace: Some(self.namespace.clone()),
            ..Subject::default()
        };
        let object = RoleBinding { metadata: metadata(), role_ref, subjects: Some(vec![subject]) };
        self.cluster.api(namespace).create(&new, &object).await?;
        Ok(())
    }

    /// A kubeconfig that logs in as it by way of a TCP proxy to [`Cluster::server`]. The certificate is still the API server's.
    pub fn kubeconfig_through(&self, proxy: SocketAddr) -> Result<PathBuf> {
        self.write(&format!("through-{}", proxy.port()), |cluster| {
            let cluster = cluster.cluster.as_mut().context("no cluster")?;
            let server = cluster.server.replace(format!("https://{proxy}")).context("no server")?;
            if cluster.tls_server_name.is_none() {
                cluster.tls_server_name = Some(host_port(&server)?.0);
            }
            Ok(())
        })
    }

    fn write(&self, file: &str, change: impl FnOnce(&mut NamedCluster) -> Result<()>) -> Result<PathBuf> {
        let mut cluster = named_cluster(&self.cluster.kubeconfig)?;
        change(&mut cluster)?;
        let context = KubeContext {
            cluster: cluster.name.clone(),
            user: Some(self.name.clone()),
            namespace: Some(self.namespace.clone()),
            ..KubeContext::default()
        };
        let config = Kubeconfig {
            current_context: Some(cluster.name.clone()),
            contexts: vec![NamedContext {
                name: cluster.name.clone(),
                context: Some(context),
                ..NamedContext::default()
            }],
            clusters: vec![cluster],
            ..Kubeconfig::default()
        };
        // By hand: kube writes a token as [REDACTED].
        let mut config = serde_json::to_value(config)?;
        config["users"] = json!([{"name": self.name, "user": {"token": self.token}}]);
        let path = self.directory.path().join(file);
        std::fs::write(&path, serde_json::to_vec(&config)?)?;
        Ok(path)
    }
}

impl Drop for ServiceAccount {
    fn drop(&mut self) {
        let role = self.role.clone();
        from_drop(&self.cluster.kubeconfig, |client| async move {
            let delete = DeleteParams::default();
            Api::<ClusterRoleBinding>::all(client.clone()).delete(&role, &delete).await?;
            Api::<ClusterRole>::all(client).delete(&role, &delete).await?;
            Ok(())
        });
    }
}

impl Cluster {
    /// `host:port` of the API server, for a proxy in front of it.
    pub fn server(&self) -> Result<String> {
        let cluster = named_cluster(&self.kubeconfig)?;
        let (host, port) = host_port(&cluster.cluster.and_then(|c| c.server).context("no server")?)?;
        Ok(format!("{host}:{port}"))
    }
}

/// The rules that the chart gives: `operator-cluster-rules`, `operator-system-rules`, `operator-secrets-watch-rules` or `edge-rules`.
pub fn chart_rules(name: &str) -> Result<Vec<PolicyRule>> {
    let path = format!("{}/../charts/wirepost/files/{name}.yaml", env!("CARGO_MANIFEST_DIR"));
    let yaml = std::fs::read_to_string(&path).with_context(|| path.clone())?;
    serde_yaml::from_str(&yaml).context(path)
}

/// The cluster of a kubeconfig's current context.
fn named_cluster(kubeconfig: &Path) -> Result<NamedCluster> {
    let config = Kubeconfig::read_from(kubeconfig)?;
    let current = config.contexts.iter().find(|c| Some(&c.name) == config.current_context.as_ref());
    let cluster = current.and_then(|c| c.context.as_ref()).context("no current context")?.cluster.clone();
    config.clusters.into_iter().find(|c| c.name == cluster).context("no such cluster")
}

fn host_port(server: &str) -> Result<(String, u16)> {
    let url = reqwest::Url::parse(server)?;
    Ok((url.host_str().context("no host")?.to_owned(), url.port_or_known_default().context("no port")?))
}
