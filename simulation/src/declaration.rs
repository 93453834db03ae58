//! What businesses declare.

use serde_json::json;
use wirepost_core::{
    compile::compile_one,
    edge_config::{ApiKey, BusinessConfig},
    hex::hex,
};
use wirepost_edge::identity::api_key;

/// The key of the services.
pub(crate) const API_KEY: &str = "simulated";

/// One of the declarations between which a business changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Variant {
    Full,
    /// Web clients get no news.
    NoNewsForWeb,
    /// There is no route for news.
    NoNews,
}

impl Variant {
    pub(crate) const ALL: [Self; 3] = [Self::Full, Self::NoNewsForWeb, Self::NoNews];

    /// Whether clients of this type get such pushes.
    pub(crate) fn gives(self, kind: &str, client_type: &str) -> bool {
        match (kind, self) {
            ("note" | "chat", _) | ("news", Self::Full) => true,
            ("news", Self::NoNewsForWeb) => client_type == "app",
            _ => false,
        }
    }

    /// The configuration of a business for edges.
    pub(crate) fn config(self, business: &str, transient: bool) -> anyhow::Result<BusinessConfig> {
        let mut routes = vec![
            json!({"messageType": "note", "sendType": "ServerToClient", "to": ["app", "web"], "audience": "Everyone"}),
            json!({"messageType": "chat", "sendType": "ClientToClient", "from": ["app", "web"], "to": ["app", "web"]}),
            json!({"messageType": "order", "sendType": "ClientToServer", "from": ["app", "web"], "queue": {"name": "order"}}),
        ];
        match self {
            Self::Full => routes.push(
                json!({"messageType": "news", "sendType": "ServerToClient", "to": ["app", "web"], "audience": "Everyone"}),
            ),
            Self::NoNewsForWeb => routes.push(
                json!({"messageType": "news", "sendType": "ServerToClient", "to": ["app"], "audience": "Everyone"}),
            ),
            Self::NoNews => {}
        }
        let declared = serde_json::from_value(json!({
            "apiVersion": "wirepost.dev/v1alpha1", "kind": "WsBusiness",
            "metadata": {"name": business, "namespace": "simulation"},
            "spec": {
                "clientTypes": ["app", "web"],
                "routes": routes,
                "limits": {"connectionsPerId": 2, "messagesPerSecond": 50, "burst": 50},
                "push": {"delivery": if transient { "Transient" } else { "Durable" }},
            },
        }))?;
        let mut config = compile_one(&declared).map_err(|rejection| anyhow::anyhow!("{rejection:?}"))?.config;
        config.auth.api_keys.push(ApiKey { sha256: hex(api_key::digest(API_KEY)), expires_at: None });
        Ok(config)
    }
}
