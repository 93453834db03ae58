//! Whether the installed CustomResourceDefinition has every field that this operator knows. With an older one the API server drops a
//! newer limit silently, and absent would mean its default; so nothing new is applied until the CRD is updated. Nothing is written to a
//! resource either, not even its status: the API server drops newer fields from every object that is written.
//!
//! **When it is read.** Every ten seconds, and right before a resource is written or a declaration is compiled for the first time. Only its
//! metadata while that has not changed, and once for all concurrent callers.

use std::{sync::Arc, time::Duration};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{Api, Client};
use serde_json::Value;
use tokio::{
    sync::{Mutex, watch},
    time::{Instant, error::Elapsed, sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use wirepost_core::crd;
use wirepost_runtime::readiness::Pending;

use crate::{classes::Classes, fresh::Fresh, metrics::Metrics, triggers::Triggers};

/// What `/readyz` waits for.
pub const PART: &str = "custom resource definition";
const CLASSES: &str = "wsbusinessclasses.wirepost.dev";
const NAME: &str = "wsbusinesses.wirepost.dev";
const INTERVAL: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_secs(2);
const TIMEOUT: Duration = Duration::from_secs(5);
/// From a change of the definition until the API server certainly serves resources by it (it takes less than a second).
const SERVED_AFTER: Duration = Duration::from_secs(5);
/// Fields that a message names.
const NAMED: usize = 8;

/// The last check; `None` before the first one, until which nothing may be applied either.
type CrdCheck = Option<Result<(), MissingFields>>;

/// Fields that the installed CRD lacks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the installed CustomResourceDefinition {definition} is older than this operator and lacks {}: apply crds/ of this version; until then nothing new is applied, and what runs goes on",
    self.list()
)]
pub struct MissingFields {
    definition: &'static str,
    fields: Vec<String>,
}

impl MissingFields {
    fn list(&self) -> String {
        let Self { definition: _, fields } = self;
        let named = fields[..fields.len().min(NAMED)].join(", ");
        match fields.len().saturating_sub(NAMED) {
            0 => named,
            more => format!("{named} and {more} more"),
        }
    }
}

/// See the module.
pub struct CrdGuard {
    definitions: Api<CustomResourceDefinition>,
    /// Of the definition.
    name: &'static str,
    expected: Value,
    last: Mutex<LastRead>,
    check: watch::Sender<CrdCheck>,
    kind: Kind,
    triggers: Arc<Triggers>,
    metrics: Arc<Metrics>,
}

/// Listed again when the definition is complete: objects that were read under a former one may lack fields.
enum Kind {
    Businesses(Fresh),
    /// Without a definition there are no classes.
    Classes(Fresh, Arc<Classes>),
}

#[derive(Default)]
struct LastRead {
    /// When it was requested.
    at: Option<Instant>,
    /// The `resourceVersion`.
    version: Option<String>,
}

/// Why the definition is not known.
#[derive(Debug, thiserror::Error)]
enum ReadError {
    #[error("CustomResourceDefinition {0} is not installed: apply crds/ of this version")]
    NotInstalled(&'static str),
    #[error("cannot read the CustomResourceDefinition; trying again: {0}")]
    Api(#[from] kube::Error),
    #[error("the API server did not answer within {TIMEOUT:?}")]
    Timeout(#[from] Elapsed),
}

impl CrdGuard {
    /// Nothing is read yet.
    pub fn new(client: Client, fresh: Fresh, triggers: Arc<Triggers>, metrics: Arc<Metrics>) -> Self {
        Self::with(client, (NAME, crd::schema()), Kind::Businesses(fresh), triggers, metrics)
    }

    /// The same for classes. A missing definition lacks nothing.
    pub fn of_classes(
        client: Client,
        fresh: Fresh,
        classes: Arc<Classes>,
        triggers: Arc<Triggers>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self::with(client, (CLASSES, crd::class_schema()), Kind::Classes(fresh, classes), triggers, metrics)
    }

    fn with(
        client: Client,
        (name, expected): (&'static str, Value),
        kind: Kind,
        triggers: Arc<Triggers>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let (check, _) = watch::channel(None);
        Self { definitions: Api::all(client), name, expected, last: Mutex::default(), check, kind, triggers, metrics }
    }

    /// Returns after the first check; `false` when there will be none.
    pub async fn checked(&self) -> bool {
        self.check.subscribe().wait_for(Option::is_some).await.is_ok()
    }

    /// What the definition lacks, as last read.
    ///
    /// # Errors
    /// It lacks fields.
    pub fn known(&self) -> Result<(), MissingFields> {
        self.check.borrow().clone().unwrap_or(Ok(()))
    }

    /// What the definition lacks now. If it can't be read, the last result counts.
    ///
    /// # Errors
    /// It lacks fields.
    pub async fn fresh(&self) -> Result<(), MissingFields> {
        let asked = Instant::now();
        let mut last = self.last.lock().await;
        // Nobody else has read it since.
        if last.at.is_none_or(|at| at < asked) {
            match self.read(&mut last).await {
                Ok(Some(Err(missing))) => self.set(Err(missing)),
                // `run` sees that it was changed and is complete, and waits for the consequences.
                Ok(Some(Ok(()))) => last.version = None,
                Ok(None) | Err(_) => {}
            }
        }
        drop(last);
        self.known()
    }

    /// Checks the CRD periodically until `cancel`. `pending`: dropped after the first check.
    pub async fn run(self: Arc<Self>, pending: Option<Pending>, cancel: CancellationToken) {
        let mut pending = pending;
        loop {
            let read = {
                let mut last = self.last.lock().await;
                self.read(&mut last).await
            };
            let pause = match read {
                Ok(Some(Ok(()))) if self.check.borrow().is_some() => {
                    tokio::select! {
                        () = sleep(SERVED_AFTER) => {}
                        () = cancel.cancelled() => return,
                    }
                    // Objects that were read under a former one may lack fields.
                    match &self.kind {
                        Kind::Businesses(fresh) => fresh.relist(),
                        Kind::Classes(fresh, classes) => {
                            classes.relists();
                            fresh.relist();
                        }
                    }
                    self.set(Ok(()));
                    INTERVAL
                }
                Ok(Some(check)) => {
                    self.set(check);
                    INTERVAL
                }
                Ok(None) => INTERVAL,
                Err(error) => {
                    tracing::warn!("{error}");
                    RETRY
                }
            };
            if self.check.borrow().is_some() {
                pending.take();
            }
            tokio::select! {
                () = sleep(pause) => {}
                () = cancel.cancelled() => return,
            }
        }
    }

    /// What the definition lacks; `None`: it has not changed since it was last read.
    async fn read(&self, last: &mut LastRead) -> Result<Option<Result<(), MissingFields>>, ReadError> {
        let now = Instant::now();
        if last.version.is_some() {
            let metadata = timeout(TIMEOUT, self.definitions.get_metadata_opt(self.name)).await??;
            let version = metadata.and_then(|definition| definition.metadata.resource_version);
            if version == last.version {
                last.at = Some(now);
                return Ok(None);
            }
        }
        let installed = timeout(TIMEOUT, self.definitions.get_opt(self.name)).await??;
        let Some(installed) = installed else {
            if matches!(self.kind, Kind::Businesses(_)) {
                return Err(ReadError::NotInstalled(self.name));
            }
            *last = LastRead { at: Some(now), version: None };
            let known = matches!(*self.check.borrow(), Some(Ok(())));
            return Ok((!known).then_some(Ok(())));
        };
        *last = LastRead { at: Some(now), version: installed.metadata.resource_version.clone() };
        Ok(Some(missing_fields(self.name, &self.expected, &installed)))
    }

    fn set(&self, check: Result<(), MissingFields>) {
        let check = Some(check);
        let before = self.check.borrow().clone();
        if before == check {
            return;
        }
        // How many are outdated.
        let outdated = |check: &CrdCheck| i64::from(matches!(check, Some(Err(_))));
        self.metrics.crd_outdated.inc_by(outdated(&check) - outdated(&before));
        if let Some(Err(missing)) = &check {
            tracing::error!("{missing}");
        } else {
            tracing::info!("the installed CustomResourceDefinition {} has every field", self.name);
        }
        self.check.send_replace(check);
        self.triggers.trigger_all();
    }
}

fn missing_fields(
    definition: &'static str,
    expected: &Value,
    installed: &CustomResourceDefinition,
) -> Result<(), MissingFields> {
    let version = installed.spec.versions.iter().find(|version| version.name == "v1alpha1" && version.served);
    let schema = version.and_then(|version| version.schema.as_ref()?.open_api_v3_schema.as_ref());
    let schema = schema.and_then(|schema| serde_json::to_value(schema).ok()).unwrap_or_default();
    let mut missing = Vec::new();
    compare(expected, &schema, "", &mut missing);
    if missing.is_empty() { Ok(()) } else { Err(MissingFields { definition, fields: missing }) }
}

/// Paths of properties that `is` lacks.
fn compare(should: &Value, is: &Value, path: &str, missing: &mut Vec<String>) {
    for (name, property) in should.get("properties").and_then(Value::as_object).into_iter().flatten() {
        // The API server knows metadata itself.
        if path.is_empty() && name == "metadata" {
            continue;
        }
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        match is.get("properties").and_then(|properties| properties.get(name)) {
            Some(there) => compare(property, there, &path, missing),
            None => missing.push(path),
        }
    }
    if let (Some(should), Some(is)) = (should.get("items"), is.get("items")) {
        compare(should, is, &format!("{path}[]"), missing);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_definition_lacks_nothing() {
        assert_eq!(missing_fields(NAME, &crd::schema(), &crd::definition()), Ok(()));
    }

    #[test]
    fn a_missing_limit_is_named() {
        let mut installed = crd::crd();
        let schema = &mut installed["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
        schema["properties"]["limits"]["properties"].as_object_mut().unwrap().remove("burst");
        schema["properties"]["routes"]["items"]["properties"].as_object_mut().unwrap().remove("ttlSeconds");
        let installed = serde_json::from_value(installed).unwrap();
        let missing = missing_fields(NAME, &crd::schema(), &installed).unwrap_err();
        let text = missing.to_string();
        assert!(text.contains("spec.limits.burst") && text.contains("spec.routes[].ttlSeconds"), "{text}");
    }

    #[test]
    fn a_missing_limit_of_classes_is_named() {
        let mut installed = crd::class_crd();
        let schema = &mut installed["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
        schema["properties"]["limits"]["properties"].as_object_mut().unwrap().remove("queues");
        let installed = serde_json::from_value(installed).unwrap();
        let text = missing_fields(CLASSES, &crd::class_schema(), &installed).unwrap_err().to_string();
        assert!(text.contains(CLASSES) && text.contains("spec.limits.queues"), "{text}");
    }
}
