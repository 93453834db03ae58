//! The policy of a platform team: one `WsBusinessClass` says which namespaces may own which business types, and how much a business may
//! use. A `WsBusiness` names its class or gets the default one; where there is none, everything that the rules allow is allowed.
//!
//! A class decides when a declaration is accepted, as admission does: [`fill`](crate::validate::class::fill) fills in fields that the
//! declaration leaves out, [`check`](crate::validate::class::check) finds what the class forbids. An accepted declaration keeps running
//! when its class changes or is deleted.

// The KubeSchema derive copies each type into a function, where `pub` has no effect.
#![allow(unreachable_pub)]

use kube::{CustomResource, KubeSchema, core::ObjectMeta};
use serde::{Deserialize, Serialize};

use crate::business::{DeletionPolicy, LimitsSpec, Retention, rules, seniority};

/// `kind` of the resource.
pub const KIND: &str = "WsBusinessClass";

/// What the businesses of a class may own and use.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "wirepost.dev",
    version = "v1alpha1",
    kind = "WsBusinessClass",
    plural = "wsbusinessclasses",
    singular = "wsbusinessclass",
    shortname = "wsbc",
    category = "wirepost",
    derive = "PartialEq",
    doc = "WsBusinessClass is the policy of a platform team: which namespaces may own which business types, and how much a business may use.",
    printcolumn(
        name = "Default",
        type_ = "boolean",
        description = "Whether businesses that name no class get this one.",
        json_path = ".spec.default"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct WsBusinessClassSpec {
    /// Businesses that name no class get this one. Of several default classes the oldest counts. Default: false.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub default: bool,

    /// Which namespaces may own which business types: one item must allow both the namespace and the business type of a business. Absent:
    /// every namespace may own every type, so any team may choose this class.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub owners: Vec<Owners>,

    /// Defaults for fields that a declaration leaves out, instead of wirepost's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub defaults: Option<ClassDefaults>,

    /// Upper limits. A field that a declaration leaves out gets its default or the limit, whichever is less.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<ClassLimits>,
}

/// Namespaces, and what they may own. In every name `*` stands for any characters.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Owners {
    /// Namespaces, such as shop or team-*.
    #[schemars(length(min = 1, max = 64), inner(length(min = 1, max = 63)))]
    pub namespaces: Vec<String>,
    /// Business types, such as shop-*. Absent: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 40)))]
    pub business_types: Option<Vec<String>>,
    /// Queues that routes with `existing: true` may name, such as shop-*; an empty list: none. Absent: all. The owner of a
    /// queue must still open it to the business.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 200)))]
    pub existing_queues: Option<Vec<String>>,
}

/// Defaults for fields that a declaration leaves out.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClassDefaults {
    /// Whether messages are kept when a resource is deleted. Read at that time, not when the declaration is accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deletion_policy: Option<DeletionPolicy>,
    /// How long pushes are kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention: Option<Retention>,
    /// Limits of a queue.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue: Option<QueueLimits>,
    /// Limits in each edge.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub edge: Option<LimitsSpec>,
}

/// Upper limits. An absent one: as much as the rules of WsBusiness allow.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClassLimits {
    /// Longest and largest retention of pushes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention: Option<Retention>,
    /// Most queues of its own; those with `existing: true` don't count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    pub queues: Option<i64>,
    /// Upper limits of each queue.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue: Option<QueueLimits>,
    /// Most bytes of its own queues and its stream together, each counted with what it may hold; as a quantity such as 20Gi, from 100k to
    /// 1Ti. dead and unrouted, at most 1Gi each, are not counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 20))]
    #[x_kube(validation = rules::RETENTION_BYTES.to_kube())]
    pub total_bytes: Option<String>,
    /// What the broker user of its services may have open at the same time, instead of what the operator gives all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<UserLimits>,
    /// Upper limits in each edge.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub edge: Option<LimitsSpec>,
    /// Longest session in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 5, max = 2_592_000))]
    pub session_seconds: Option<i64>,
}

/// What a broker user may have open at the same time, on all nodes together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct UserLimits {
    /// Connections; a further one is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub connections: Option<i64>,
    /// Channels of all of its connections; a further one is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub channels: Option<i64>,
}

/// Limits of a queue.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct QueueLimits {
    /// Messages.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100_000_000))]
    pub max_length: Option<i64>,
    /// Bytes, as a quantity such as 500Mi; from 100k to 1Ti.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 20))]
    #[x_kube(validation = rules::QUEUE_BYTES.to_kube())]
    pub max_length_bytes: Option<String>,
}

/// The class of a business: the one that it names, else the default one. `None`: it names none, and there is no default.
///
/// # Errors
/// The name of a class that does not exist.
pub fn class_of<C>(
    named: Option<&str>,
    classes: impl IntoIterator<Item = C>,
    of: impl Fn(&C) -> (&ObjectMeta, bool),
) -> Result<Option<C>, &str> {
    let mut classes = classes.into_iter();
    if let Some(name) = named {
        return classes.find(|class| of(class).0.name.as_deref() == Some(name)).map(Some).ok_or(name);
    }
    let mut oldest: Option<C> = None;
    for class in classes {
        let (metadata, default) = of(&class);
        let older = |than: &C| seniority(metadata) < seniority(of(than).0);
        if default && oldest.as_ref().is_none_or(older) {
            oldest = Some(class);
        }
    }
    Ok(oldest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class(name: &str, default: bool, created: Option<&str>) -> WsBusinessClass {
        let mut class = WsBusinessClass::new(name, WsBusinessClassSpec { default, ..WsBusinessClassSpec::default() });
        class.metadata.creation_timestamp =
            created.map(|time| serde_json::from_value(serde_json::Value::from(time)).unwrap());
        class
    }

    #[test]
    fn a_business_has_the_class_that_it_names_else_the_oldest_default() {
        let classes = [
            class("young", true, Some("2026-02-01T00:00:00Z")),
            class("old", true, Some("2026-01-01T00:00:00Z")),
            class("other", false, Some("2025-01-01T00:00:00Z")),
        ];
        let name = |named, classes: &[WsBusinessClass]| {
            let found = class_of(named, classes, |class| (&class.metadata, class.spec.default));
            found.map(|found| found.and_then(|class| class.metadata.name.clone())).map_err(str::to_owned)
        };
        assert_eq!(name(None, &classes), Ok(Some("old".to_owned())));
        assert_eq!(name(Some("other"), &classes), Ok(Some("other".to_owned())));
        assert_eq!(name(Some("gone"), &classes), Err("gone".to_owned()));
        assert_eq!(name(None, &classes[2..]), Ok(None));
        assert_eq!(name(None, &[]), Ok(None));
    }
}
