//! The ConfigMap that carries a business's [edge configuration](super::edge_config): its name, labels, annotations and keys.
//!
//! The operator writes one for each business into its own namespace; the edges find them by [`SELECTOR`] and read [`CONFIG_KEY`].

use std::collections::BTreeMap;

/// What the operator's ConfigMaps are called, before the business type. Of two ConfigMaps of one business the one so named decides.
pub const PREFIX: &str = "wirepost-business-";

/// The label of every edge configuration, and its value.
pub const LABEL: (&str, &str) = ("wirepost.dev/config", "business");
/// Selects by [`LABEL`].
pub const SELECTOR: &str = "wirepost.dev/config=business";
/// On the configuration of a business that ends: edges let its clients go at once. See [`is_removed`].
pub const REMOVED_LABEL: (&str, &str) = ("wirepost.dev/removed", "true");

/// Annotation: `namespace/name` of the declaring resource.
pub const OWNER: &str = "wirepost.dev/owner";
/// Annotation: the resource's uid. On access Secrets it is a label.
pub const OWNER_UID: &str = "wirepost.dev/owner-uid";
/// Annotation: [`BusinessConfig::hash`](super::edge_config::BusinessConfig::hash) of the configuration, as edges report it.
pub const HASH: &str = "wirepost.dev/hash";
/// Annotation: the value of `wirepost.dev/rotate` that the current credentials are made from. Edges don't read it.
pub const ROTATION: &str = "wirepost.dev/rotation";
/// Annotation: the former such values, a JSON object of value → ms since the epoch at which it ends. Edges don't read it.
pub const FORMER_ROTATIONS: &str = "wirepost.dev/former-rotations";

/// Annotation: the value of `wirepost.dev/allow-destructive` that was carried out last, and allows nothing more. Edges don't read it.
pub const ALLOWED: &str = "wirepost.dev/allowed-destructive";

/// Annotation: the businesses whose messages this one accepts, with commas between them. Edges don't read it.
pub const ACCEPTS_FROM: &str = "wirepost.dev/accepts-from";

/// Annotation of a tombstone: the business has ended but left something on the broker, so only resources of this namespace may claim its
/// business type; [`ANY_NAMESPACE`]: of every namespace. An administrator may change it. Edges don't read it.
pub const RESERVED_FOR: &str = "wirepost.dev/reserved-for";
/// See [`RESERVED_FOR`].
pub const ANY_NAMESPACE: &str = "*";

/// Key: the configuration as JSON, a [`BusinessConfig`](super::edge_config::BusinessConfig).
pub const CONFIG_KEY: &str = "config.json";
/// Key: the `spec` that the configuration was compiled from. Edges don't read it.
pub const SPEC_KEY: &str = "spec.json";
/// Key: the class of the business when it was accepted: its name (`class`), and its `defaults` and `limits` at that time if they filled in
/// anything that the `spec` leaves out. Absent: it had none. Edges don't read it.
pub const TERMS_KEY: &str = "class.json";

/// The name of a business's ConfigMap.
pub fn name(business: &str) -> String {
    format!("{PREFIX}{business}")
}

/// The business type that a ConfigMap's name stands for; `None` for a name of another form.
pub fn business(name: &str) -> Option<&str> {
    name.strip_prefix(PREFIX)
}

/// Whether these labels say that the business ends. A label of another value says nothing.
pub fn is_removed(labels: Option<&BTreeMap<String, String>>) -> bool {
    let (label, value) = REMOVED_LABEL;
    labels.and_then(|labels| labels.get(label)).is_some_and(|is| is == value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_tells_its_business() {
        assert_eq!(business(&name("pay")), Some("pay"));
        assert_eq!(business("kube-root-ca.crt"), None);
    }

    #[test]
    fn the_selector_selects_by_the_label() {
        assert_eq!(SELECTOR, format!("{}={}", LABEL.0, LABEL.1));
    }
}
