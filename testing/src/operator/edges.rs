//! Real edges beside an operator: they take their configurations from its namespace, and it finds them by their EndpointSlices.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::World;
use crate::client::Client;
use crate::edge::Edge;

impl World {
    /// A ready edge, with exactly the chart's rights, that the operator knows.
    pub async fn edge(&self, name: &str) -> Result<Edge> {
        self.edge_with(name, &[]).await
    }

    /// The same with further flags.
    pub async fn edge_with(&self, name: &str, flags: &[(&str, &str)]) -> Result<Edge> {
        let address = self.cluster.address.context("WIREPOST_TEST_ADDRESS is not set")?;
        let builder = self
            .setup
            .edge(name)
            .config_namespace(&self.system.name, &self.edge_account.kubeconfig)
            .flag("admin-listen", format!("{address}:0"));
        let edge = flags.iter().fold(builder, |builder, (name, value)| builder.flag(name, value)).start().await?;
        self.endpoint(name, edge.admin).await?;
        Ok(edge)
    }
}

/// A client of a business, let in with the API key of its access Secret.
pub async fn client(
    edge: &Edge,
    secret: &BTreeMap<String, String>,
    unique_id: &str,
    client_type: &str,
) -> Result<Client> {
    let business = secret.get("business-type").context("the Secret has no business-type")?;
    let url =
        format!("http://{}/{business}/websocket/token?uniqueId={unique_id}&clientType={client_type}", edge.public);
    let http = reqwest::Client::builder().no_proxy().build()?;
    let answer = http.get(url).header("x-api-key", &secret["api-key"]).send().await?;
    let (status, body): (u16, Value) = (answer.status().as_u16(), answer.json().await?);
    ensure!(status == 200, "token call: {status}: {body}");
    let url = body["data"].as_str().context("a token call without data")?;
    Client::connect(edge.public, url.rsplit('/').next().unwrap_or_default()).await
}
