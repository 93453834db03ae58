//! The ConfigMap with the edge configuration of one business, as the operator writes and reads it. Its layout:
//! [`wirepost_core::contract::config_map`].

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::{ResourceExt, api::ObjectMeta};
use serde::Deserialize;
use serde_json::Value;
use wirepost_core::contract::{
    config_map::{
        self, ACCEPTS_FROM, ALLOWED, CONFIG_KEY, HASH, LABEL, OWNER, OWNER_UID, REMOVED_LABEL, RESERVED_FOR, SPEC_KEY,
        TERMS_KEY,
    },
    edge_config::BusinessConfig,
};

use crate::{access::Rotation, api_client::MANAGER, stored::StoredBusiness};

pub use wirepost_core::contract::config_map::name;

/// The API server accepts 1 MiB of data. A declaration so large is not kept beside its configuration.
const MAX_DATA: usize = 1_000_000;

/// The business of a ConfigMap of ours.
pub fn business(config_map: &ConfigMap) -> Option<&str> {
    config_map::business(config_map.metadata.name.as_deref()?)
}

/// The ConfigMap with `config`, compiled from this `spec` of `stored`, with these terms of its class filled in.
pub fn build(
    stored: &StoredBusiness,
    spec: &Value,
    terms: Option<&str>,
    config: &BusinessConfig,
    rotation: Option<&Rotation>,
) -> ConfigMap {
    let mut annotations: BTreeMap<String, String> =
        rotation.iter().flat_map(|rotation| rotation.annotations()).collect();
    annotations.insert(OWNER.to_owned(), stored.owner());
    annotations.insert(OWNER_UID.to_owned(), stored.uid().to_owned());
    annotations.insert(HASH.to_owned(), config.hash());
    annotations.extend(accepted(config).map(|names| (ACCEPTS_FROM.to_owned(), names)));
    // Plain data with string keys: it always serializes.
    let json = serde_json::to_string(config).unwrap_or_default();
    let spec = spec.to_string();
    let mut data = BTreeMap::from([(CONFIG_KEY.to_owned(), json)]);
    if data[CONFIG_KEY].len() + spec.len() <= MAX_DATA {
        data.insert(SPEC_KEY.to_owned(), spec);
    }
    data.extend(terms.map(|terms| (TERMS_KEY.to_owned(), terms.to_owned())));
    ConfigMap {
        metadata: ObjectMeta {
            name: Some(name(&config.business_type)),
            labels: Some(labels()),
            annotations: Some(annotations),
            ..ObjectMeta::default()
        },
        data: Some(data),
        ..ConfigMap::default()
    }
}

/// The same with another configuration of the same declaration.
pub fn with_config(config_map: &ConfigMap, config: &BusinessConfig, rotation: Option<&Rotation>) -> ConfigMap {
    let kept = [OWNER, OWNER_UID, ALLOWED].into_iter().filter_map(|key| config_map.annotations().get_key_value(key));
    let mut annotations: BTreeMap<String, String> = kept
        .map(|(key, value)| (key.clone(), value.clone()))
        .chain(rotation.iter().flat_map(|r| r.annotations()))
        .collect();
    annotations.insert(HASH.to_owned(), config.hash());
    annotations.extend(accepted(config).map(|names| (ACCEPTS_FROM.to_owned(), names)));
    let mut data = config_map.data.clone().unwrap_or_default();
    // Plain data with string keys: it always serializes.
    data.insert(CONFIG_KEY.to_owned(), serde_json::to_string(config).unwrap_or_default());
    ConfigMap {
        metadata: ObjectMeta {
            name: config_map.metadata.name.clone(),
            labels: Some(labels()),
            annotations: Some(annotations),
            ..ObjectMeta::default()
        },
        data: Some(data),
        ..ConfigMap::default()
    }
}

/// The same as a tombstone: the edges let the business's clients go.
pub fn tombstone(config_map: &ConfigMap) -> ConfigMap {
    let mut labels = labels();
    let (label, value) = REMOVED_LABEL;
    labels.insert(label.to_owned(), value.to_owned());
    ConfigMap {
        metadata: ObjectMeta {
            name: config_map.metadata.name.clone(),
            labels: Some(labels),
            annotations: config_map.metadata.annotations.clone(),
            ..ObjectMeta::default()
        },
        data: config_map.data.clone(),
        ..ConfigMap::default()
    }
}

/// A tombstone that reserves the business type for the namespace of its former owner while something of it is left on the broker.
pub fn reservation(config_map: &ConfigMap) -> ConfigMap {
    let mut reservation = tombstone(config_map);
    let namespace = owner(config_map).split('/').next().unwrap_or_default().to_owned();
    // Everything else is no longer needed.
    let kept = [OWNER, OWNER_UID];
    let annotations = reservation.metadata.annotations.get_or_insert_default();
    annotations.retain(|key, _| kept.contains(&key.as_str()));
    annotations.insert(RESERVED_FOR.to_owned(), namespace);
    reservation.data = None;
    reservation
}

/// A tombstone that keeps a business type for a namespace, as the broker says that it is its own; empty: for nobody, until an administrator
/// decides.
pub fn reserved(business: &str, namespace: &str) -> ConfigMap {
    let name = ObjectMeta { name: Some(name(business)), ..ObjectMeta::default() };
    let mut reserved = tombstone(&ConfigMap { metadata: name, ..ConfigMap::default() });
    reserved.metadata.annotations = Some(BTreeMap::from([(RESERVED_FOR.to_owned(), namespace.to_owned())]));
    reserved
}

/// The namespace whose resources may claim the business type; `None`: it is not a reservation.
pub fn reserved_for(config_map: &ConfigMap) -> Option<&str> {
    if !is_tombstone(config_map) {
        return None;
    }
    config_map.annotations().get(RESERVED_FOR).map(String::as_str)
}

/// Whether it is a tombstone.
pub fn is_tombstone(config_map: &ConfigMap) -> bool {
    config_map::is_removed(config_map.metadata.labels.as_ref())
}

/// Whether it was written for this very resource.
pub fn is_of(config_map: &ConfigMap, stored: &StoredBusiness) -> bool {
    owner_uid(config_map) == Some(stored.uid())
}

/// `namespace/name` of the resource that it was written for.
pub fn owner(config_map: &ConfigMap) -> &str {
    config_map.annotations().get(OWNER).map(String::as_str).unwrap_or_default()
}

/// Its uid.
pub fn owner_uid(config_map: &ConfigMap) -> Option<&str> {
    config_map.annotations().get(OWNER_UID).map(String::as_str)
}

/// The resource as it was when this was written for it.
pub fn declared(config_map: &ConfigMap, stored: &StoredBusiness) -> Option<StoredBusiness> {
    let spec = serde_json::from_str(config_map.data.as_ref()?.get(SPEC_KEY)?).ok()?;
    let metadata = ObjectMeta { generation: Some(generation(config_map)?), ..stored.metadata.clone() };
    Some(StoredBusiness { metadata, spec, status: Value::Null })
}

/// What was allowed to destroy messages, and is done.
pub fn used_allowance(config_map: &ConfigMap) -> Option<&str> {
    config_map.annotations().get(ALLOWED).map(String::as_str)
}

/// The same with this as [`used_allowance`].
pub fn with_used_allowance(mut config_map: ConfigMap, used: Option<String>) -> ConfigMap {
    config_map.annotations_mut().extend(used.map(|used| (ALLOWED.to_owned(), used)));
    config_map
}

/// The businesses whose messages it accepts.
pub fn accepts_from(config_map: &ConfigMap) -> impl Iterator<Item = &str> {
    let names = config_map.annotations().get(ACCEPTS_FROM).map(String::as_str).unwrap_or_default();
    names.split(',').filter(|name| !name.is_empty())
}

fn accepted(config: &BusinessConfig) -> Option<String> {
    let names: Vec<&str> = config.accepts.iter().map(|accepts| accepts.business_type.as_str()).collect();
    (!names.is_empty()).then(|| names.join(","))
}

/// The configuration in it.
pub fn config(config_map: &ConfigMap) -> Option<BusinessConfig> {
    serde_json::from_str(config_map.data.as_ref()?.get(CONFIG_KEY)?).ok()
}

/// The terms that the class of the business gave to its declaration.
pub fn terms(config_map: &ConfigMap) -> Option<&str> {
    config_map.data.as_ref()?.get(TERMS_KEY).map(String::as_str)
}

/// The generation of the declaration that it came from.
pub fn generation(config_map: &ConfigMap) -> Option<i64> {
    #[derive(Deserialize)]
    struct Config {
        generation: i64,
    }
    let json = config_map.data.as_ref()?.get(CONFIG_KEY)?;
    Some(serde_json::from_str::<Config>(json).ok()?.generation)
}

/// Whether `is` has everything that `should` has, and is not a tombstone unless that is. Labels and annotations of others are left alone.
pub fn has_all_of(is: &ConfigMap, should: &ConfigMap) -> bool {
    let has = |is: &BTreeMap<String, String>, should: &BTreeMap<String, String>| {
        should.iter().all(|(key, value)| is.get(key) == Some(value))
    };
    is.data == should.data
        && has(is.labels(), should.labels())
        && has(is.annotations(), should.annotations())
        && is_tombstone(is) == is_tombstone(should)
}

fn labels() -> BTreeMap<String, String> {
    let (key, value) = LABEL;
    BTreeMap::from([
        (key.to_owned(), value.to_owned()),
        ("app.kubernetes.io/managed-by".to_owned(), MANAGER.to_owned()),
    ])
}
