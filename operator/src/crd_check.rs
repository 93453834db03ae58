//! Whether the installed CustomResourceDefinition has every field that this operator knows. With an older one the API server drops a
//! newer limit without a word, and absent would mean its default; so nothing new is applied until the definition is updated.

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

use crate::{admin::Readiness, triggers::Triggers};

/// What `/readyz` waits for.
pub const PART: &str = "custom resource definition";
const NAME: &str = "wsbusinesses.wirepost.dev";
const INTERVAL: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_secs(2);
const TIMEOUT: Duration = Duration::from_secs(5);
/// Fields that a message names.
const NAMED: usize = 8;

/// The last look at the definition: what it lacks, as a person should read it. `None` before the first look, until which nothing may be
/// applied either.
pub type Look = Option<Result<(), String>>;

/// Looks at the definition now and then, until `cancel`.
pub async fn run(
    client: Client,
    looks: watch::Sender<Look>,
    readiness: Arc<Readiness>,
    triggers: Arc<Triggers>,
    cancel: CancellationToken,
) {
    let definitions: Api<CustomResourceDefinition> = Api::all(client);
    let expected = crd::schema();
    loop {
        let look = timeout(TIMEOUT, definitions.get_opt(NAME)).await;
        let pause = match look {
            Ok(Ok(Some(installed))) => {
                let verdict = Some(verdict(&expected, &installed));
                if *looks.borrow() != verdict {
                    if let Some(Err(text)) = &verdict {
                        tracing::error!("{text}");
                    } else {
                        tracing::info!("the installed CustomResourceDefinition has every field");
                    }
                    looks.send_replace(verdict);
                    triggers.all();
                }
                readiness.done(PART);
                INTERVAL
            }
            Ok(Ok(None)) => {
                tracing::warn!("CustomResourceDefinition {NAME} is not installed: apply crds/ of this version");
                RETRY
            }
            Ok(Err(error)) => {
                tracing::warn!(%error, "cannot look at the CustomResourceDefinition; trying again");
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

/// What is missing, as a person should read it.
fn verdict(expected: &Value, installed: &CustomResourceDefinition) -> Result<(), String> {
    let version = installed.spec.versions.iter().find(|version| version.name == "v1alpha1" && version.served);
    let schema = version.and_then(|version| version.schema.as_ref()?.open_api_v3_schema.as_ref());
    let schema = schema.and_then(|schema| serde_json::to_value(schema).ok()).unwrap_or_default();
    let mut missing = Vec::new();
    compare(expected, &schema, "", &mut missing);
    if missing.is_empty() {
        return Ok(());
    }
    let more = missing.len().saturating_sub(NAMED);
    missing.truncate(NAMED);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    Err(format!(
        "the installed CustomResourceDefinition {NAME} is older than this operator and lacks {}{more}: apply crds/ of this version; until then nothing new is applied, what runs goes on",
        missing.join(", ")
    ))
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
        assert_eq!(verdict(&crd::schema(), &crd::definition()), Ok(()));
    }

    #[test]
    fn a_missing_limit_is_named() {
        let mut installed = crd::crd();
        let schema = &mut installed["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
        schema["properties"]["limits"]["properties"].as_object_mut().unwrap().remove("burst");
        schema["properties"]["routes"]["items"]["properties"].as_object_mut().unwrap().remove("ttlSeconds");
        let text = verdict(&crd::schema(), &serde_json::from_value(installed).unwrap()).unwrap_err();
        assert!(text.contains("spec.limits.burst") && text.contains("spec.routes[].ttlSeconds"), "{text}");
    }
}
