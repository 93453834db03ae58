//! A WsBusiness as it is stored: metadata that always parses, and a spec and status that may not. An object that was stored under a laxer
//! schema, or a newer one, must not end the watch of all others, so each is validated on its own.

use k8s_openapi::api::core::v1::ObjectReference;
use kube::{Resource, ResourceExt, core::ObjectMeta, runtime::reflector::Store};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use wirepost_core::{
    Compiled, Problem,
    business::{API_VERSION, DeletionPolicy, KIND, WsBusiness, WsBusinessStatus},
    compile, destruction, validate,
};

/// The finalizer of versions in which all installations shared one.
pub const SHARED_FINALIZER: &str = "wirepost.dev/cleanup";
/// Annotation; `now`: once the resource is being deleted, its queues and stream are deleted with their messages.
pub const DELETE_QUEUES: &str = "wirepost.dev/delete-queues";
/// Annotation: a new value makes new credentials; the former ones stay valid for an hour.
pub const ROTATE: &str = "wirepost.dev/rotate";
/// Annotation: the value of [`ROTATE`] that ends all former credentials immediately, without the hour.
pub const REVOKE: &str = "wirepost.dev/revoke";

/// See the module.
#[derive(Clone, Debug, Deserialize, Serialize, Resource)]
#[resource(inherit = WsBusiness)]
pub struct StoredBusiness {
    /// Metadata, without managed fields: they are not used here, and are half of an object's memory.
    #[serde(deserialize_with = "without_managed_fields")]
    pub metadata: ObjectMeta,
    /// Whatever is stored.
    #[serde(default)]
    pub spec: Value,
    /// Whatever is stored.
    #[serde(default)]
    pub status: Value,
}

impl StoredBusiness {
    /// The business type that it claims: `spec.businessType`, else its name.
    pub fn business_type(&self) -> &str {
        let named = self.spec.get("businessType").and_then(Value::as_str);
        named.or(self.metadata.name.as_deref()).unwrap_or_default()
    }

    /// Name of the Secret that it asks for.
    pub fn secret_name(&self) -> Option<&str> {
        self.spec.get("access")?.get("secretName")?.as_str()
    }

    /// The businesses whose messages it accepts.
    pub fn accepts_from(&self) -> Vec<String> {
        let accepted = self.spec.get("acceptFrom").and_then(Value::as_array).into_iter().flatten();
        accepted.filter_map(|item| item.get("businessType")?.as_str().map(str::to_owned)).collect()
    }

    /// The class that it names.
    pub fn class_name(&self) -> Option<&str> {
        self.spec.get("className")?.as_str()
    }

    /// Whether messages are deleted with the resource. `default`: of its class.
    pub fn deletes_messages(&self, default: Option<DeletionPolicy>) -> bool {
        let declared = self.spec.get("deletionPolicy");
        let policy = declared.map_or(default, |policy| DeletionPolicy::deserialize(policy).ok());
        // While the resource is not being deleted the annotation does not count: changes have one of their own.
        let now = || self.metadata.deletion_timestamp.is_some() && self.annotation(DELETE_QUEUES) == Some("now");
        policy == Some(DeletionPolicy::Delete) || now()
    }

    /// Whether it may destroy messages by any change. The default of a class is for deletions alone: to edit a class changes nothing that runs.
    pub fn may_destroy(&self) -> bool {
        self.deletes_messages(None)
    }

    /// What a person allows this generation to destroy: a [`digest`](destruction::digest).
    pub fn allowed(&self) -> Option<&str> {
        destruction::allowed(self.annotation(destruction::ALLOW)?, self.generation())
    }

    /// `namespace/name`, for people.
    pub fn owner(&self) -> String {
        format!("{}/{}", self.metadata.namespace.as_deref().unwrap_or("default"), self.name_any())
    }

    /// The declaration, if today's rules accept it.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn declaration(&self) -> Result<WsBusiness, Vec<Problem>> {
        validate::parse_stored(&self.resource())
    }

    /// What it compiles to, if it was accepted once: later rules don't count. `terms`: what its class gave it then, as
    /// [`Class::terms`](crate::classes::Class::terms). `None`: it can't be read.
    pub fn compile_accepted(&self, terms: Option<&str>) -> Option<Compiled> {
        let mut business = validate::parse_accepted(&self.resource())?;
        if let Some(terms) = terms {
            validate::class::fill(&serde_json::from_str(terms).ok()?, &mut business);
        }
        compile::compile_accepted(&business)
    }

    fn resource(&self) -> Value {
        json!({"apiVersion": API_VERSION, "kind": KIND, "metadata": self.metadata, "spec": self.spec})
    }

    /// The status as last written; what can't be read counts as not written.
    pub fn status(&self) -> WsBusinessStatus {
        WsBusinessStatus::deserialize(&self.status).unwrap_or_default()
    }

    /// The generation that this is.
    pub fn generation(&self) -> i64 {
        self.metadata.generation.unwrap_or_default()
    }

    /// Changes with the declaration: with its generation, and when the API server drops fields or serves them again, which does not change
    /// the generation.
    pub fn fingerprint(&self) -> [u8; 32] {
        let mut hasher = Sha256::new();
        hasher.update(self.generation().to_be_bytes());
        hasher.update(self.spec.to_string());
        hasher.finalize().into()
    }

    /// The uid, unique forever.
    pub fn uid(&self) -> &str {
        self.metadata.uid.as_deref().unwrap_or_default()
    }

    /// What events are about.
    pub fn reference(&self) -> ObjectReference {
        self.object_ref(&())
    }

    /// The value of an annotation.
    pub fn annotation(&self, name: &str) -> Option<&str> {
        self.metadata.annotations.as_ref()?.get(name).map(String::as_str)
    }

    /// Whether it has this finalizer.
    pub fn has_finalizer(&self, finalizer: &str) -> bool {
        self.metadata.finalizers.iter().flatten().any(|is| is == finalizer)
    }

    /// The resource that owns this one's business type, as `namespace/name`; `None` if this one owns it. The one that runs keeps it
    /// (`incumbent`, a uid), however old another is that comes later; else the oldest has it of those that `may_own` it. One that is being
    /// deleted owns it until it is gone.
    pub fn other_claimant(
        &self,
        all: &Store<Self>,
        incumbent: Option<&str>,
        may_own: impl Fn(&Self) -> bool,
    ) -> Option<String> {
        let claimants = all.state_filter(|other| other.business_type() == self.business_type());
        if let Some(incumbent) = incumbent.and_then(|uid| claimants.iter().find(|other| other.uid() == uid)) {
            return (incumbent.uid() != self.uid()).then(|| incumbent.owner());
        }
        // The class is evaluated only where it matters.
        let barred = |claimant: &Self| claimants.len() > 1 && !may_own(claimant);
        let precedes = |a: &Self, b: &Self| {
            (barred(a), compile::seniority(&a.metadata)) < (barred(b), compile::seniority(&b.metadata))
        };
        let mut owner = claimants.first()?;
        for claimant in &claimants {
            if precedes(claimant, owner) {
                owner = claimant;
            }
        }
        (owner.uid() != self.uid() && precedes(owner, self)).then(|| owner.owner())
    }
}

fn without_managed_fields<'de, D: Deserializer<'de>>(from: D) -> Result<ObjectMeta, D::Error> {
    let mut metadata = ObjectMeta::deserialize(from)?;
    metadata.managed_fields = None;
    Ok(metadata)
}

/// The finalizer of an installation: it keeps a resource until that installation has removed its objects.
pub fn finalizer(installation: &str) -> String {
    format!("{SHARED_FINALIZER}-{installation}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config_map;

    fn stored(value: Value) -> StoredBusiness {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn an_object_that_today_s_schema_refuses_still_parses_and_says_what_is_wrong() {
        let old = stored(json!({
            "apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": "pay", "namespace": "shop"},
            "spec": {"clientTypes": "app", "routes": [{"sendType": "Sideways"}]}, "status": {"conditions": 3},
        }));
        assert_eq!(old.business_type(), "pay");
        assert!(!old.declaration().unwrap_err().is_empty());
        assert_eq!(old.status(), WsBusinessStatus::default());
    }

    /// An operator of before wrote its ConfigMap and its Secret; the next one must keep them, and the broker's objects.
    #[test]
    fn a_rule_that_came_after_a_declaration_does_not_undo_it() {
        let old = |auth: Value, schema: Value| {
            let then = stored(json!({
                "apiVersion": API_VERSION, "kind": KIND,
                "metadata": {"name": "pay", "namespace": "shop", "uid": "1", "generation": 3},
                "spec": {"clientTypes": ["app"], "acceptFrom": ["bank", "bank"], "auth": auth,
                    "routes": [{"messageType": "a", "sendType": "ClientToServer", "queue": {"name": "q"}, "schema": schema}]},
            }));
            let config = then.compile_accepted(None).unwrap().config;
            let map = config_map::build(&then, &then.spec, None, &config, None);
            let kept = config_map::declared(&map, &then).unwrap().compile_accepted(None).unwrap();
            assert_eq!(
                (kept.config.generation, kept.topology.queues.iter().any(|queue| queue.name == "wirepost.pay.q.q")),
                (3, true)
            );
            (then.declaration(), kept.config)
        };
        let twice = json!(["https://shop.example", "https://a.example", "https://shop.example"]);
        let (today, kept) = old(json!({"allowedOrigins": twice}), json!({}));
        assert_eq!(kept.auth.allowed_origins, ["https://shop.example", "https://a.example"]);
        // Names alone had no effect. What is listed twice in a set does no harm.
        assert_eq!((kept.accepts, today.map(|business| business.spec.accept_from)), (Vec::new(), Ok(Vec::new())));

        let (today, kept) = old(json!({"allowedOrigins": ["https://shop.example:99999"]}), json!({}));
        assert!(!today.unwrap_err().is_empty());
        assert_eq!(kept.auth.allowed_origins, ["https://shop.example:99999"]);

        let branches = |to: &str| json!({"anyOf": vec![json!({"$ref": to}); 80]});
        let defs =
            json!({"a": branches("#/$defs/b"), "b": branches("#/$defs/c"), "c": {"type": "string", "pattern": "^a$"}});
        let costly = json!({"$ref": "#/$defs/a", "$defs": defs, "anyOf": branches("#/$defs/a")["anyOf"]});
        let (today, kept) = old(json!({}), costly.clone());
        assert!(!today.unwrap_err().is_empty());
        assert_eq!(kept.routes[0].schema.as_ref(), Some(&costly));
    }

    #[test]
    fn the_annotation_that_deletes_queues_allows_no_change_of_a_resource_that_lives() {
        let with = |deleted: Value, spec: Value| {
            stored(json!({
                "apiVersion": API_VERSION, "kind": KIND, "spec": spec,
                "metadata": {"name": "pay", "generation": 2, "deletionTimestamp": deleted,
                    "annotations": {DELETE_QUEUES: "now"}},
            }))
        };
        let lives = with(Value::Null, json!({}));
        assert!(!lives.may_destroy() && !lives.deletes_messages(None));
        assert!(with(json!("2026-01-01T00:00:00Z"), json!({})).deletes_messages(None));
        assert!(with(Value::Null, json!({"deletionPolicy": "Delete"})).may_destroy());
    }

    #[test]
    fn an_unknown_field_of_a_newer_schema_is_not_ignored() {
        let new = stored(json!({
            "apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": "pay", "namespace": "shop"},
            "spec": {"clientTypes": ["app"], "limits": {"newLimit": 1},
                "routes": [{"messageType": "a", "sendType": "ServerToClient", "to": ["app"]}]},
        }));
        let problems = new.declaration().unwrap_err();
        assert!(problems[0].field.contains("newLimit"), "{problems:?}");
        assert_eq!(new.compile_accepted(None), None);
    }
}
