//! Kubernetes for tests: the shared API server that `WIREPOST_TEST_KUBECONFIG` names, with the CRD installed, and private ones that may
//! be killed. There are no nodes: an operator runs as a process, as a [`ServiceAccount`] with just its own rights.
//!
//! `scripts/with-kubernetes` sets the variables (`make integration` does it); by hand: `eval "$(tests/services/kubernetes start main)"`.
//! A test without an API server fails: it does not pass in silence.

mod account;
mod apply;
mod namespace;
mod private;

use std::fmt::Debug;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::DeleteParams;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::{Instant, timeout_at};
use wirepost_core::business::WsBusiness;

pub use account::{ServiceAccount, chart_rules};
pub use apply::Refusal;
pub use namespace::Namespace;
pub use private::PrivateCluster;

pub use crate::wait::OPERATOR_PATIENCE as PATIENCE;
use crate::wait::Pace;

/// An API server, seen by its administrator.
#[derive(Clone)]
pub struct Cluster {
    pub client: Client,
    /// The administrator's.
    pub kubeconfig: PathBuf,
    /// An address of this machine that may stand in an EndpointSlice, where there is one.
    pub address: Option<IpAddr>,
}

impl Cluster {
    /// The shared one. Do not stop or freeze it: other tests use it at the same time.
    pub async fn connect() -> Result<Self> {
        Self::from_variables(|name| std::env::var(name).ok()).await.context(
            "no Kubernetes API server to test with: run the test under scripts/with-kubernetes, or `make integration`",
        )
    }

    async fn from_variables(get: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let need = |name: &str| get(name).filter(|v| !v.is_empty()).ok_or_else(|| anyhow!("{name} is not set"));
        let kubeconfig = PathBuf::from(need("WIREPOST_TEST_KUBECONFIG")?);
        let address =
            need("WIREPOST_TEST_ADDRESS").ok().map(|a| a.parse()).transpose().context("WIREPOST_TEST_ADDRESS")?;
        Ok(Self { client: client(&kubeconfig).await?, kubeconfig, address })
    }

    /// The one of a kubeconfig.
    pub async fn at(kubeconfig: &Path) -> Result<Self> {
        Ok(Self { client: client(kubeconfig).await?, kubeconfig: kubeconfig.to_owned(), address: None })
    }

    /// A namespace of this test alone, `PREFIX-…`; it and its WsBusinesses are deleted when dropped.
    pub async fn namespace(&self, prefix: &str) -> Result<Namespace> {
        Namespace::create(self.clone(), unique(prefix)).await
    }

    /// Applies one or more YAML documents, strictly and on the server side, as `kubectl apply --server-side` does. Stops at the first that
    /// is refused.
    pub async fn apply_yaml(&self, yaml: &str) -> Result<(), Refusal> {
        apply::yaml(&self.client, None, yaml).await
    }

    /// The WsBusinesses of a namespace; of any other kind too, where the type says so.
    pub fn api<K>(&self, namespace: &str) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), namespace)
    }

    pub async fn get(&self, namespace: &str, name: &str) -> Result<Option<WsBusiness>> {
        Ok(self.api(namespace).get_opt(name).await?)
    }

    /// Asks for its deletion; [`Self::wait_gone`] waits for the end.
    pub async fn delete(&self, namespace: &str, name: &str) -> Result<()> {
        self.api::<WsBusiness>(namespace).delete(name, &DeleteParams::default()).await?;
        Ok(())
    }

    /// Waits until `is` holds for a WsBusiness, and returns it. `what` ends the sentence "… did not …".
    pub async fn wait_for(
        &self,
        namespace: &str,
        name: &str,
        what: &str,
        is: impl Fn(&WsBusiness) -> bool,
    ) -> Result<WsBusiness> {
        wait(&self.api::<WsBusiness>(namespace), name, what, |found| found.is_some_and(&is))
            .await?
            .with_context(|| format!("{namespace}/{name} is gone"))
    }

    /// Waits until there is no such WsBusiness, for its finalizers too.
    pub async fn wait_gone(&self, namespace: &str, name: &str) -> Result<()> {
        wait(&self.api::<WsBusiness>(namespace), name, "go", |found| found.is_none()).await.map(drop)
    }

    /// Installs the CRDs as they are shipped, and waits until the API server serves them.
    pub async fn install_crd(&self) -> Result<()> {
        self.apply_yaml(include_str!("../../crds/wsbusinesses.wirepost.dev.yaml")).await?;
        self.apply_yaml(include_str!("../../crds/wsbusinessclasses.wirepost.dev.yaml")).await?;
        let crds: Api<CustomResourceDefinition> = Api::all(self.client.clone());
        for name in ["wsbusinesses.wirepost.dev", "wsbusinessclasses.wirepost.dev"] {
            wait(&crds, name, "become Established", |crd| {
                crd.and_then(|c| c.status.as_ref()?.conditions.as_ref())
                    .is_some_and(|conditions| conditions.iter().any(|c| c.type_ == "Established" && c.status == "True"))
            })
            .await?;
        }
        Ok(())
    }
}

/// Waits until `is` holds for what `api` has under this name (`None`: nothing), and returns that. What the API server answers with an
/// error counts as "not yet": it may be down for a while. `what` ends the sentence "… did not …"; the message shows the object.
pub async fn wait<K>(api: &Api<K>, name: &str, what: &str, is: impl Fn(Option<&K>) -> bool) -> Result<Option<K>>
where
    K: Clone + DeserializeOwned + Serialize + Debug,
{
    let (deadline, pace) = (Instant::now() + PATIENCE, Pace::new());
    let mut last = "the API server did not answer".to_owned();
    while Instant::now() < deadline {
        match timeout_at(deadline, api.get_opt(name)).await {
            Ok(Ok(found)) if is(found.as_ref()) => return Ok(found),
            Ok(Ok(Some(found))) => last = serde_yaml::to_string(&found)?,
            Ok(Ok(None)) => "there is no such object".clone_into(&mut last),
            Ok(Err(error)) => last = error.to_string(),
            Err(_) => break,
        }
        pace.pause().await;
    }
    bail!("{name} did not {what} within {} s:\n{last}", PATIENCE.as_secs())
}

async fn client(kubeconfig: &Path) -> Result<Client> {
    let file = Kubeconfig::read_from(kubeconfig).with_context(|| kubeconfig.display().to_string())?;
    let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?;
    Ok(Client::try_from(config)?)
}

/// `PREFIX-…` of no other test, also where several runs share a cluster.
fn unique(prefix: &str) -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    format!("{prefix}-{:08x}-{}", rand::random::<u32>(), COUNT.fetch_add(1, Ordering::Relaxed))
}

/// Runs `work` as the administrator from a destructor, where one can't wait for a future. It gets five seconds: what it deletes is thrown
/// away with the API server anyway.
fn from_drop<F>(kubeconfig: &Path, work: impl FnOnce(Client) -> F + Send + 'static)
where
    F: Future<Output = Result<()>>,
{
    let kubeconfig = kubeconfig.to_owned();
    let thread = std::thread::spawn(move || -> Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let cleared =
                tokio::time::timeout(Duration::from_secs(5), async { work(client(&kubeconfig).await?).await });
            cleared.await?
        })
    });
    if let Ok(Err(error)) = thread.join() {
        eprintln!("the cluster was not cleaned up: {error:#}");
    }
}
