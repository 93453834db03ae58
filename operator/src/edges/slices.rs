//! Edges as their EndpointSlices name them.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use k8s_openapi::api::discovery::v1::EndpointSlice;

/// The name of the admin port in the EndpointSlices.
const PORT: &str = "admin";

/// An edge in an EndpointSlice.
#[derive(Debug, PartialEq)]
pub(super) struct Found {
    pub(super) name: String,
    pub(super) ready: bool,
}

/// Edges by the address of their admin port.
pub(super) fn found(slices: &[Arc<EndpointSlice>]) -> BTreeMap<SocketAddr, Found> {
    let mut found = BTreeMap::new();
    for slice in slices {
        let ports = slice.ports.iter().flatten();
        let port = ports.filter(|port| port.name.as_deref() == Some(PORT)).find_map(|port| port.port);
        let Some(port) = port.and_then(|port| u16::try_from(port).ok()) else { continue };
        for endpoint in &slice.endpoints {
            let ready = endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true);
            let address = endpoint.addresses.first().and_then(|address| address.parse::<IpAddr>().ok());
            let Some(address) = address else { continue };
            let name = endpoint.target_ref.as_ref().and_then(|target| target.name.clone());
            let address = SocketAddr::new(address, port);
            let edge = Found { name: name.unwrap_or_else(|| address.to_string()), ready };
            // While slices are rewritten an edge may be in two of them.
            let both = found.remove(&address).is_some_and(|other: Found| other.ready);
            found.insert(address, Found { ready: ready || both, ..edge });
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_of_the_admin_port_are_edges() {
        let slice: EndpointSlice = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "a"}, "addressType": "IPv4",
            "ports": [{"name": "http", "port": 8080}, {"name": "admin", "port": 9090}],
            "endpoints": [
                {"addresses": ["198.18.0.1"], "conditions": {"ready": true}, "targetRef": {"name": "edge-1"}},
                {"addresses": ["198.18.0.2"], "conditions": {"ready": false}},
                {"addresses": ["198.18.0.3"]},
            ],
        }))
        .unwrap();
        let found = found(&[Arc::new(slice)]);
        let expected = [
            ("198.18.0.1:9090", "edge-1", true),
            ("198.18.0.2:9090", "198.18.0.2:9090", false),
            ("198.18.0.3:9090", "198.18.0.3:9090", true),
        ];
        let edge = |name: &str, ready| Found { name: name.to_owned(), ready };
        assert_eq!(found, expected.map(|(address, name, ready)| (address.parse().unwrap(), edge(name, ready))).into());
    }
}
