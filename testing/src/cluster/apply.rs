//! Server-side apply of YAML, of whatever kinds.

use std::fmt;

use kube::api::{DynamicObject, Patch, PatchParams, ValidationDirective};
use kube::core::GroupVersionKind;
use kube::discovery::{self, Scope};
use kube::{Api, Client, Error, ResourceExt};
use serde::Deserialize;

/// What the API server answered instead of doing it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// HTTP status; 0 where there was no answer.
    pub code: u16,
    /// Its message, as `kubectl` shows it.
    pub message: String,
    /// Each thing that is wrong: field and sentence. Empty where it is not about fields.
    pub causes: Vec<(String, String)>,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Refusal {}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        match error {
            Error::Api(status) => {
                let causes = status.details.map(|d| d.causes).unwrap_or_default();
                let causes = causes.into_iter().map(|c| (c.field, c.message)).collect();
                Self { code: status.code, message: status.message, causes }
            }
            error => Self::local(&error),
        }
    }
}

impl Refusal {
    fn local(error: &dyn std::error::Error) -> Self {
        Self { code: 0, message: error.to_string(), causes: Vec::new() }
    }
}

/// Each document in turn; with a namespace, what is namespaced goes into that one.
pub(super) async fn yaml(client: &Client, namespace: Option<&str>, yaml: &str) -> Result<(), Refusal> {
    let parameters = PatchParams {
        field_manager: Some("wirepost-test".to_owned()),
        field_validation: Some(ValidationDirective::Strict),
        ..PatchParams::default()
    };
    // Collected first: the reader can't be moved to another thread while a call waits.
    let documents: Vec<_> =
        serde_yaml::Deserializer::from_str(yaml).map(Option::<DynamicObject>::deserialize).collect();
    for document in documents {
        let Some(mut object) = document.map_err(|e| Refusal::local(&e))? else {
            continue; // only comments
        };
        let types = object.types.clone().unwrap_or_default();
        let gvk = GroupVersionKind::try_from(&types).map_err(|e| Refusal::local(&e))?;
        let (resource, capabilities) = discovery::pinned_kind(client, &gvk).await?;
        let api: Api<DynamicObject> = if capabilities.scope == Scope::Cluster {
            Api::all_with(client.clone(), &resource)
        } else {
            if namespace.is_some() {
                object.metadata.namespace = namespace.map(str::to_owned);
            }
            Api::namespaced_with(client.clone(), &object.namespace().unwrap_or_else(|| "default".to_owned()), &resource)
        };
        api.patch(&object.name_any(), &parameters, &Patch::Apply(&object)).await?;
    }
    Ok(())
}
