//! A class that can be applied, and its terms: what it gives to a declaration that was accepted.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use wirepost_core::class::{WsBusinessClass, WsBusinessClassSpec};
use wirepost_topology::UserLimits;

/// A class that can be applied.
#[derive(Clone, Debug, PartialEq)]
pub struct Class {
    /// As declared.
    pub resource: WsBusinessClass,
    /// Its name, and what [`validate::class::fill`] needs of it, as JSON. Stored with an accepted declaration, so that its meaning does not
    /// change later.
    pub terms: Arc<str>,
}

/// Which class [`Class::terms`] are of.
#[derive(Serialize, Deserialize)]
struct Name {
    class: String,
}

/// The class that these terms are of.
pub fn class_of_terms(terms: &str) -> Option<String> {
    serde_json::from_str(terms).ok().map(|Name { class }| class)
}

/// The terms of a class that fills in nothing: its name, and its limits of the broker user, which no declaration states.
pub fn without_fillings(terms: &str) -> Option<Arc<str>> {
    let mut kept = json!({"class": class_of_terms(terms)?});
    let given: Value = serde_json::from_str(terms).ok()?;
    if let Some(user) = given.pointer("/limits/user").filter(|user| !user.is_null()) {
        kept["limits"] = json!({"user": user});
    }
    Some(kept.to_string().into())
}

impl Class {
    /// The class as it is applied.
    pub fn new(resource: WsBusinessClass) -> Self {
        #[derive(Serialize)]
        struct Terms {
            #[serde(flatten)]
            name: Name,
            #[serde(flatten)]
            given: WsBusinessClassSpec,
        }
        let WsBusinessClassSpec { default: _, owners: _, defaults, limits } = resource.spec.clone();
        let name = Name { class: resource.metadata.name.clone().unwrap_or_default() };
        let terms = Terms { name, given: WsBusinessClassSpec { defaults, limits, ..WsBusinessClassSpec::default() } };
        // Plain data with string keys: it always serializes.
        let terms = serde_json::to_string(&terms).unwrap_or_default().into();
        Self { resource, terms }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.resource.metadata.name.as_deref().unwrap_or_default()
    }
}

/// What a business's broker user may have open by the terms of its class, else by those of the installation.
pub fn user_limits(terms: Option<&str>, installation: UserLimits) -> UserLimits {
    let given = terms.and_then(|terms| serde_json::from_str::<WsBusinessClassSpec>(terms).ok()?.limits?.user);
    let number = |limit: Option<i64>| limit.and_then(|limit| u32::try_from(limit).ok());
    let (connections, channels) =
        given.map_or((None, None), |given| (number(given.connections), number(given.channels)));
    UserLimits { connections: connections.or(installation.connections), channels: channels.or(installation.channels) }
}

#[cfg(test)]
mod tests {
    use wirepost_core::{business::API_VERSION, class::KIND};

    use super::*;

    #[test]
    fn a_class_limits_the_broker_user_and_what_it_leaves_out_is_the_installations() {
        let given = json!({"limits": {"user": {"connections": 5}}});
        let class = Class::new(
            serde_json::from_value(json!({
                "apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": "small"}, "spec": given,
            }))
            .unwrap(),
        );
        let installation = UserLimits { connections: Some(1000), channels: Some(10_000) };
        let of_class = UserLimits { connections: Some(5), channels: Some(10_000) };
        assert_eq!(user_limits(Some(&*class.terms), installation), of_class);
        assert_eq!(user_limits(None, installation), installation);
        assert_eq!(user_limits(Some(&*without_fillings(&class.terms).unwrap()), installation), of_class);
    }
}
