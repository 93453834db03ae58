//! A namespace of one test.

use anyhow::Result;
use k8s_openapi::api::core::v1;
use kube::api::{DeleteParams, ListParams, ObjectMeta, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::json;
use wirepost_core::business::WsBusiness;

use super::{Cluster, Refusal, apply, from_drop};

/// Deleted when dropped, as are its WsBusinesses, which would otherwise stay where no controller deletes what a namespace holds.
pub struct Namespace {
    pub name: String,
    cluster: Cluster,
}

impl Namespace {
    pub(super) async fn create(cluster: Cluster, name: String) -> Result<Self> {
        let metadata = ObjectMeta { name: Some(name.clone()), ..ObjectMeta::default() };
        let namespace = v1::Namespace { metadata, ..v1::Namespace::default() };
        Api::all(cluster.client.clone()).create(&PostParams::default(), &namespace).await?;
        Ok(Self { name, cluster })
    }

    /// [`Cluster::apply_yaml`] into this namespace, whatever the documents say.
    pub async fn apply_yaml(&self, yaml: &str) -> Result<(), Refusal> {
        apply::yaml(&self.cluster.client, Some(&self.name), yaml).await
    }

    /// Its WsBusinesses.
    pub fn businesses(&self) -> Api<WsBusiness> {
        self.cluster.api(&self.name)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let name = self.name.clone();
        from_drop(&self.cluster.kubeconfig, |client| async move {
            let businesses: Api<WsBusiness> = Api::namespaced(client.clone(), &name);
            for business in businesses.list(&ListParams::default()).await? {
                let business = business.name_any();
                businesses.delete(&business, &DeleteParams::default()).await?;
                // The operator of the test has ended. Not found: it had no finalizer.
                let release = Patch::Merge(json!({"metadata": {"finalizers": null}}));
                let _ = businesses.patch(&business, &PatchParams::default(), &release).await;
            }
            Api::<v1::Namespace>::all(client).delete(&name, &DeleteParams::default()).await?;
            Ok(())
        });
    }
}
