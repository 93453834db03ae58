//! Everything that is written to the API server: each write after the gate and within a time limit.
//!
//! Secrets in business namespaces are never read: the operator has no right to (where [`crate::secret_watch`] may watch, it asks for their
//! metadata alone). A patch that changes nothing and is not stored
//! (`dryRun`) shows whether the Secret of a declared name exists and whose it is. A merge patch, since it costs the API server less than an
//! apply, which also works out who owns each field.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use k8s_openapi::{
    api::core::v1::{ConfigMap, Secret},
    apimachinery::pkg::apis::meta::v1::{ManagedFieldsEntry, ObjectMeta, OwnerReference},
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams, Preconditions},
};
use serde_json::json;
use tokio::time::timeout;
use wirepost_core::{business::WsBusinessStatus, contract::config_map::OWNER_UID};

use crate::{
    api_client::MANAGER,
    conditions,
    crd_check::{CrdGuard, MissingFields},
    fresh::Fresh,
    metrics::{Metrics, Object},
    stored::StoredBusiness,
};

/// Longest time of one write: it must have ended before another replica may lead.
const TIMEOUT: Duration = Duration::from_secs(4);

/// Type of the access Secret.
const SECRET_TYPE: &str = "servicebinding.io/rabbitmq";

/// Why something was not written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// This replica does not lead, or has not listed everything yet.
    #[error("this replica does not lead yet")]
    NotLeader,
    /// The API server refused or is not there.
    #[error("{doing}: {}", api_message(cause))]
    Api {
        /// What was being done, and to what.
        doing: String,
        /// What it answered.
        cause: Box<kube::Error>,
    },
    /// The API server would drop fields of the resource with this write.
    #[error("nothing is written to resources: {0}")]
    Outdated(MissingFields),
    /// The API server did not answer in time.
    #[error("{doing}: the API server did not answer within {TIMEOUT:?}")]
    Timeout {
        /// What was being done, and to what.
        doing: String,
    },
}

impl Error {
    /// Whether the object would not be valid, whatever is written to it.
    pub fn is_invalid(&self) -> bool {
        matches!(self, Self::Api { cause, .. } if matches!(&**cause, kube::Error::Api(status) if status.code == 422))
    }

    /// Whether the API server understood the write and does not want it: a quota, an admission policy, an immutable object.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Api { cause, .. } if matches!(&**cause, kube::Error::Api(status) if [403, 422].contains(&status.code)))
    }
}

/// Once: a kube error contains the message twice, with all of its details.
fn api_message(cause: &kube::Error) -> String {
    match cause {
        kube::Error::Api(status) => format!("{} ({})", status.message, status.code),
        other => other.to_string(),
    }
}

/// What became of an access Secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecretState {
    /// It is as it should be.
    Current,
    /// It was written now.
    Written,
    /// A Secret of that name exists and is not ours.
    Taken,
}

/// See the module.
#[derive(Clone)]
pub struct Writer {
    client: Client,
    /// Where the edge configurations are.
    namespace: String,
    fresh: Fresh,
    crd: Arc<CrdGuard>,
    metrics: Arc<Metrics>,
}

impl Writer {
    /// Writes edge configurations to `namespace`, all else beside the resource that it belongs to.
    pub fn new(client: Client, namespace: String, fresh: Fresh, crd: Arc<CrdGuard>, metrics: Arc<Metrics>) -> Self {
        Self { client, namespace, fresh, crd, metrics }
    }

    /// The gate: whether anything may be written now.
    ///
    /// # Errors
    /// This replica does not lead, or has not listed everything yet.
    pub fn gate(&self) -> Result<(), Error> {
        if self.fresh.may_write() { Ok(()) } else { Err(Error::NotLeader) }
    }

    async fn within<T>(&self, doing: String, call: impl Future<Output = kube::Result<T>>) -> Result<T, Error> {
        self.gate()?;
        match timeout(TIMEOUT, call).await {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(cause)) => Err(Error::Api { doing, cause: Box::new(cause) }),
            Err(_) => Err(Error::Timeout { doing }),
        }
    }

    fn businesses(&self, stored: &StoredBusiness) -> Api<StoredBusiness> {
        Api::namespaced(self.client.clone(), stored.metadata.namespace.as_deref().unwrap_or("default"))
    }

    /// Whether a resource may be written: a write under an older definition drops newer fields. A resource that is being deleted no longer
    /// needs them.
    async fn check_definition(&self, stored: &StoredBusiness) -> Result<(), Error> {
        if stored.metadata.deletion_timestamp.is_some() {
            return Ok(());
        }
        self.crd.fresh().await.map_err(Error::Outdated)
    }

    /// The generation that a resource has in the API server's storage; `None`: it is gone.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn stored_generation(&self, stored: &StoredBusiness) -> Result<Option<i64>, Error> {
        let name = stored.name_any();
        // A list, since the role allows no more. Without a version the API server answers it from its storage.
        let params = ListParams::default().fields(&format!("metadata.name={name}"));
        let api = self.businesses(stored);
        let doing = format!("reading the generation of {}", stored.owner());
        let found = self.within(doing, api.list_metadata(&params)).await?.items;
        let same = found.into_iter().find(|found| found.metadata.uid == stored.metadata.uid);
        Ok(same.and_then(|found| found.metadata.generation))
    }

    /// Writes the status. A merge, since the API server applies nothing to an object whose other fields do not match today's schema.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn status(&self, stored: &StoredBusiness, status: &WsBusinessStatus) -> Result<(), Error> {
        self.check_definition(stored).await?;
        let patch = json!({"metadata": {"uid": stored.uid()}, "status": conditions::replacing(status, &stored.status)});
        let params = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
        let api = self.businesses(stored);
        let doing = format!("writing the status of {}", stored.owner());
        self.within(doing, api.patch_status(&stored.name_any(), &params, &Patch::Merge(patch))).await?;
        self.metrics.wrote(Object::Status);
        Ok(())
    }

    /// Adds a finalizer, and removes others.
    ///
    /// # Errors
    /// See [`Error`]; a conflict if the resource was changed since it was read.
    pub async fn finalizers(&self, stored: &StoredBusiness, add: Option<&str>, remove: &[&str]) -> Result<(), Error> {
        self.check_definition(stored).await?;
        let mut finalizers = stored.metadata.finalizers.clone().unwrap_or_default();
        finalizers.retain(|finalizer| !remove.contains(&finalizer.as_str()) && Some(finalizer.as_str()) != add);
        finalizers.extend(add.map(str::to_owned));
        let patch = json!({"metadata": {
            "uid": stored.uid(), "resourceVersion": stored.metadata.resource_version, "finalizers": finalizers,
        }});
        let api = self.businesses(stored);
        let doing =
            format!("{} the finalizer of {}", if add.is_some() { "setting" } else { "removing" }, stored.owner());
        let params = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
        self.within(doing, api.patch(&stored.name_any(), &params, &Patch::Merge(patch))).await?;
        self.metrics.wrote(Object::Finalizer);
        Ok(())
    }

    /// Writes an edge configuration; if it has a `resourceVersion`, only over that one. Returns its new `resourceVersion`.
    ///
    /// # Errors
    /// See [`Error`]; a conflict where another wrote it in the meantime.
    pub async fn config_map(&self, config_map: &ConfigMap) -> Result<Option<String>, Error> {
        let name = config_map.name_any();
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), &self.namespace);
        let doing = format!("writing ConfigMap {}/{name}", self.namespace);
        let params = PatchParams::apply(MANAGER).force();
        let written = self.within(doing, api.patch(&name, &params, &Patch::Apply(config_map))).await?;
        self.metrics.wrote(Object::ConfigMap);
        Ok(written.metadata.resource_version)
    }

    /// Deletes an edge configuration, if it has this `resourceVersion` where one is given. It is not an error if there is none.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn delete_config_map(&self, name: &str, version: Option<String>) -> Result<(), Error> {
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), &self.namespace);
        let doing = format!("deleting ConfigMap {}/{name}", self.namespace);
        let preconditions = Preconditions { resource_version: version, ..Preconditions::default() };
        let params = DeleteParams::default().preconditions(preconditions);
        if was_deleted(self.within(doing, api.delete(name, &params)).await)? {
            self.metrics.wrote(Object::ConfigMap);
        }
        Ok(())
    }

    /// Makes the access Secret of a resource contain these entries, unless a foreign Secret has the name.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn secret(
        &self,
        stored: &StoredBusiness,
        name: &str,
        entries: &BTreeMap<String, String>,
    ) -> Result<SecretState, Error> {
        if let Some(there) = self.probe(stored, name).await? {
            if !is_ours(&there, stored) {
                return Ok(SecretState::Taken);
            }
            let data = there.data.unwrap_or_default();
            // Entries of others are left alone; our own that are no longer needed are removed by the next write.
            let all_there = entries.iter().all(|(key, value)| data.get(key).is_some_and(|is| is.0 == value.as_bytes()));
            if all_there && our_keys(&there.metadata).iter().all(|key| entries.contains_key(key)) {
                return Ok(SecretState::Current);
            }
        }
        let data: BTreeMap<&String, String> =
            entries.iter().map(|(key, value)| (key, STANDARD.encode(value))).collect();
        let patch = json!({
            "apiVersion": "v1", "kind": "Secret", "type": SECRET_TYPE,
            "metadata": {
                "name": name,
                "labels": {OWNER_UID: stored.uid(), "app.kubernetes.io/managed-by": MANAGER},
                // So that it is deleted with its namespace and with its resource, even when the operator is gone.
                "ownerReferences": [owner_reference(stored)],
            },
            "data": data,
        });
        let doing = format!("writing Secret {}/{name}", namespace(stored));
        let params = PatchParams::apply(MANAGER).force();
        self.within(doing, self.secrets(stored).patch(name, &params, &Patch::Apply(patch))).await?;
        self.metrics.wrote(Object::Secret);
        Ok(SecretState::Written)
    }

    /// Deletes the access Secret of a resource, if it is ours.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn delete_secret(&self, stored: &StoredBusiness, name: &str) -> Result<(), Error> {
        let Some(there) = self.probe(stored, name).await? else { return Ok(()) };
        if !is_ours(&there, stored) {
            return Ok(());
        }
        let params = DeleteParams::default()
            .preconditions(Preconditions { uid: there.metadata.uid, ..Preconditions::default() });
        let doing = format!("deleting Secret {}/{name}", namespace(stored));
        if was_deleted(self.within(doing, self.secrets(stored).delete(name, &params)).await)? {
            self.metrics.wrote(Object::Secret);
        }
        Ok(())
    }

    /// The Secret of that name, or nothing. Stores nothing.
    async fn probe(&self, stored: &StoredBusiness, name: &str) -> Result<Option<Secret>, Error> {
        let params = PatchParams { dry_run: true, field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
        let doing = format!("probing Secret {}/{name}", namespace(stored));
        let nothing = Patch::Merge(json!({}));
        match self.within(doing, self.secrets(stored).patch(name, &params, &nothing)).await {
            Ok(secret) => Ok(Some(secret)),
            Err(Error::Api { cause, .. }) if is_not_found(&cause) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn secrets(&self, stored: &StoredBusiness) -> Api<Secret> {
        Api::namespaced(self.client.clone(), namespace(stored))
    }
}

fn namespace(stored: &StoredBusiness) -> &str {
    stored.metadata.namespace.as_deref().unwrap_or("default")
}

fn is_ours(secret: &Secret, stored: &StoredBusiness) -> bool {
    secret.labels().get(OWNER_UID).is_some_and(|uid| uid == stored.uid())
}

/// Keys of a Secret's data that we wrote, as the API server knows them: entries of others stay.
fn our_keys(metadata: &ObjectMeta) -> Vec<String> {
    let ours = |fields: &&ManagedFieldsEntry| {
        fields.manager.as_deref() == Some(MANAGER) && fields.operation.as_deref() == Some("Apply")
    };
    let applied = metadata.managed_fields.iter().flatten().filter(ours).filter_map(|fields| fields.fields_v1.as_ref());
    let data = applied.filter_map(|fields| fields.0.get("f:data")?.as_object());
    data.flat_map(|data| data.keys()).filter_map(|key| key.strip_prefix("f:").map(str::to_owned)).collect()
}

fn owner_reference(stored: &StoredBusiness) -> OwnerReference {
    OwnerReference {
        api_version: StoredBusiness::api_version(&()).into_owned(),
        kind: StoredBusiness::kind(&()).into_owned(),
        name: stored.name_any(),
        uid: stored.uid().to_owned(),
        ..OwnerReference::default()
    }
}

/// Whether something was deleted; nothing to delete is not an error.
fn was_deleted<T>(result: Result<T, Error>) -> Result<bool, Error> {
    match result {
        Ok(_) => Ok(true),
        Err(Error::Api { cause, .. }) if is_not_found(&cause) => Ok(false),
        Err(error) => Err(error),
    }
}

/// 404.
pub fn is_not_found(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404)
}

/// 409: another write was faster.
pub fn is_conflict(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 409)
}
