//! What businesses declare.

use std::{fs, path::Path};

use anyhow::{Context, Result, anyhow};
use serde_json::json;
use wirepost_core::{
    compile::compile_one,
    edge_config::{ApiKey, BusinessConfig},
    hex::hex,
};
use wirepost_edge::identity::api_key;

/// The key of the services.
pub(crate) const API_KEY: &str = "simulated";

/// Names the folder with what [`write_all`] wrote.
pub(crate) const FOLDER: &str = "WIREPOST_SIMULATION_DECLARATIONS";

/// The businesses that there are.
pub(crate) const BUSINESSES: [&str; 2] = ["alpha", "beta"];

/// The other one.
pub(crate) fn other_than(business: &str) -> &'static str {
    BUSINESSES[usize::from(business == BUSINESSES[0])]
}

/// What edges are told of a business.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Declared {
    pub(crate) variant: Variant,
    /// What its clients get of the other business's messages.
    pub(crate) accepts: Accepts,
    /// The other one accepts something of its messages.
    pub(crate) accepted: bool,
}

/// What a business accepts from the other one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Accepts {
    Nothing,
    AllButNews,
    All,
}

impl Accepts {
    pub(crate) const ALL: [Self; 3] = [Self::Nothing, Self::AllButNews, Self::All];

    fn takes(self, kind: &str) -> bool {
        match self {
            Self::Nothing => false,
            Self::AllButNews => kind != "news",
            Self::All => true,
        }
    }
}

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
    fn gives(self, kind: &str, client_type: &str) -> bool {
        match (kind, self) {
            ("note" | "chat", _) | ("news", Self::Full) => true,
            ("news", Self::NoNewsForWeb) => client_type == "app",
            _ => false,
        }
    }
}

impl Declared {
    pub(crate) fn new() -> Self {
        Self { variant: Variant::Full, accepts: Accepts::Nothing, accepted: false }
    }

    /// Whether clients of this type get such pushes; `foreign`: of the other business.
    pub(crate) fn gives(self, kind: &str, client_type: &str, foreign: bool) -> bool {
        self.variant.gives(kind, client_type) && (!foreign || self.accepts.takes(kind))
    }

    /// Whether any of its clients get such messages of the other business.
    pub(crate) fn takes(self, kind: &str) -> bool {
        self.gives(kind, "app", true)
    }

    /// The configuration of a business for edges, from the folder that the environment names.
    pub(crate) fn config(self, business: &str, transient: bool) -> Result<BusinessConfig> {
        let folder = std::env::var_os(FOLDER).with_context(|| format!("no {FOLDER}"))?;
        let text = fs::read(Path::new(&folder).join(self.file(business, transient)))?;
        let mut config: BusinessConfig = serde_json::from_slice(&text)?;
        config.accepted_by.extend(self.accepted.then(|| other_than(business).to_owned()));
        Ok(config)
    }

    fn file(self, business: &str, transient: bool) -> String {
        format!("{business}-{:?}-{:?}-{transient}.json", self.variant, self.accepts)
    }

    fn compile(self, business: &str, transient: bool) -> Result<BusinessConfig> {
        let mut routes = vec![
            json!({"messageType": "note", "sendType": "ServerToClient", "to": ["app", "web"], "audience": "Everyone"}),
            json!({"messageType": "chat", "sendType": "ClientToClient", "from": ["app", "web"], "to": ["app", "web"]}),
            json!({"messageType": "order", "sendType": "ClientToServer", "from": ["app", "web"], "queue": {"name": "order"}}),
        ];
        match self.variant {
            Variant::Full => routes.push(
                json!({"messageType": "news", "sendType": "ServerToClient", "to": ["app", "web"], "audience": "Everyone"}),
            ),
            Variant::NoNewsForWeb => routes.push(
                json!({"messageType": "news", "sendType": "ServerToClient", "to": ["app"], "audience": "Everyone"}),
            ),
            Variant::NoNews => {}
        }
        let other = other_than(business);
        let mut spec = json!({
            "clientTypes": ["app", "web"],
            "routes": routes,
            "limits": {"connectionsPerId": 2, "messagesPerSecond": 50, "burst": 50},
            "push": {"delivery": if transient { "Transient" } else { "Durable" }},
        });
        match self.accepts {
            Accepts::Nothing => {}
            Accepts::AllButNews => {
                spec["acceptFrom"] = json!([{"businessType": other, "messageTypes": ["note", "chat"]}]);
            }
            Accepts::All => spec["acceptFrom"] = json!([{"businessType": other, "messageTypes": ["#"]}]),
        }
        let declared = serde_json::from_value(json!({
            "apiVersion": "wirepost.dev/v1alpha1", "kind": "WsBusiness",
            "metadata": {"name": business, "namespace": "simulation"},
            "spec": spec,
        }))?;
        let mut config = compile_one(&declared).map_err(|rejection| anyhow!("{rejection:?}"))?.config;
        config.auth.api_keys.push(ApiKey { sha256: hex(api_key::digest(API_KEY)), expires_at: None });
        Ok(config)
    }
}

/// Writes everything that is declared in any run, once for all of them: compiling it takes a quarter of a run.
pub(crate) fn write_all(folder: &Path) -> Result<()> {
    for (business, variant) in BUSINESSES.into_iter().flat_map(|of| Variant::ALL.map(|variant| (of, variant))) {
        for (accepts, transient) in Accepts::ALL.into_iter().flat_map(|accepts| [(accepts, true), (accepts, false)]) {
            let declared = Declared { variant, accepts, accepted: false };
            let config = declared.compile(business, transient)?;
            fs::write(folder.join(declared.file(business, transient)), serde_json::to_vec(&config)?)?;
        }
    }
    Ok(())
}
