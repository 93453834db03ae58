//! Whether the installed CustomResourceDefinition has every field that this operator knows. With an older one the API server drops a
//! newer limit silently, and absent would mean its default; so nothing new is applied until the CRD is updated.

use std::{sync::Arc, time::Duration};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{Api, Client};
use serde_json::Value;
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use wirepost_core::crd;
use wirepost_runtime::readiness::Pending;

use crate::triggers::Triggers;

/// What `/readyz` waits for.
pub const PART: &str = "custom resource definition";
const NAME: &str = "wsbusinesses.wirepost.dev";
const INTERVAL: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_secs(2);
const TIMEOUT: Duration = Duration::from_secs(5);
/// Fields that a message names.
const NAMED: usize = 8;

/// The last check; `None` before the first one, until which nothing may be applied either.
pub type CrdCheck = Option<Result<(), MissingFields>>;

/// Fields that the installed CRD lacks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the installed CustomResourceDefinition {NAME} is older than this operator and lacks {}: apply crds/ of this version; until then nothing new is applied, what runs goes on",
    self.list()
)]
pub struct MissingFields(Vec<String>);

impl MissingFields {
    fn list(&self) -> String {
        let Self(fields) = self;
        let named = fields[..fields.len().min(NAMED)].join(", ");
        match fields.len().saturating_sub(NAMED) {
            0 => named,
            more => format!("{named} and {more} more"),
        }
    }
}

/// Checks the CRD again and again until `cancel`. `pending`: dropped after the first check.
pub async fn run(
    client: Client,
    checks: watch::Sender<CrdCheck>,
    pending: Pending,
    triggers: Arc<Triggers>,
    cancel: CancellationToken,
) {
    let definitions: Api<CustomResourceDefinition> = Api::all(client);
    let expected = crd::schema();
    let mut pending = Some(pending);
    loop {
        let pause = match timeout(TIMEOUT, definitions.get_opt(NAME)).await {
            Ok(Ok(Some(installed))) => {
                let check = Some(missing_fields(&expected, &installed));
                if *checks.borrow() != check {
                    if let Some(Err(missing)) = &check {
                        tracing::error!("{missing}");
                    } else {
                        tracing::info!("the installed CustomResourceDefinition has every field");
                    }
                    checks.send_replace(check);
                    triggers.trigger_all();
                }
                pending.take();
                INTERVAL
            }
            Ok(Ok(None)) => {
                tracing::warn!("CustomResourceDefinition {NAME} is not installed: apply crds/ of this version");
                RETRY
            }
            Ok(Err(error)) => {
                tracing::warn!(%error, "cannot read the CustomResourceDefinition; trying again");
                RETRY
            }
            Err(_) => RETRY,
        };
        tokio::select! {
            () = sleep(pause) => {}
            () = cancel.cancelled() => return,
        }
    }
}

fn missing_fields(expected: &Value, installed: &CustomResourceDefinition) -> Result<(), MissingFields> {
    let version = installed.spec.versions.iter().find(|version| version.name == "v1alpha1" && version.served);
    let schema = version.and_then(|version| version.schema.as_ref()?.open_api_v3_schema.as_ref());
    let schema = schema.and_then(|schema| serde_json::to_value(schema).ok()).unwrap_or_default();
    let mut missing = Vec::new();
    compare(expected, &schema, "", &mut missing);
    if missing.is_empty() { Ok(()) } else { Err(MissingFields(missing)) }
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
        assert_eq!(missing_fields(&crd::schema(), &crd::definition()), Ok(()));
    }

    #[test]
    fn a_missing_limit_is_named() {
        let mut installed = crd::crd();
        let schema = &mut installed["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
        schema["properties"]["limits"]["properties"].as_object_mut().unwrap().remove("burst");
        schema["properties"]["routes"]["items"]["properties"].as_object_mut().unwrap().remove("ttlSeconds");
        let missing = missing_fields(&crd::schema(), &serde_json::from_value(installed).unwrap()).unwrap_err();
        let text = missing.to_string();
        assert!(text.contains("spec.limits.burst") && text.contains("spec.routes[].ttlSeconds"), "{text}");
    }
}
