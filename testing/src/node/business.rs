//! A business, as its services know it.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use lapin::{Connection, ConnectionProperties};
use serde_json::Value;

use super::{Node, RELEASE, SYSTEM};
use crate::client::Client;

/// What a business's services hold and may do.
pub struct Business<'n> {
    pub(super) node: &'n Node,
    pub(super) name: String,
    /// The entries of the Secret.
    pub secret: BTreeMap<String, String>,
}

impl Business<'_> {
    /// A connection to RabbitMQ with the Secret's user, by the broker's port on the node.
    pub async fn amqp(&self) -> Result<Connection> {
        let at = self.node.node_port(SYSTEM, "rabbitmq", "amqp").await?;
        let get = |key: &str| self.secret.get(key).with_context(|| format!("the Secret has no {key}"));
        let uri = format!("amqp://{}:{}@{at}/{}", get("username")?, get("password")?, get("virtual-host")?);
        Ok(Connection::connect(&uri, ConnectionProperties::default()).await?)
    }

    /// The edges' public port on the node.
    pub async fn edges(&self) -> Result<SocketAddr> {
        self.node.node_port(SYSTEM, RELEASE, "http").await
    }

    /// The token call: the URL to connect to.
    pub async fn token(&self, unique_id: &str, client_type: &str) -> Result<String> {
        self.token_at(self.edges().await?, unique_id, client_type).await
    }

    /// The same by the edges' port as it is known already, where many calls are made.
    pub async fn token_at(&self, edges: SocketAddr, unique_id: &str, client_type: &str) -> Result<String> {
        let mut url = reqwest::Url::parse(&format!("http://{edges}/{}/websocket/token", self.name))?;
        url.query_pairs_mut().extend_pairs([("uniqueId", unique_id), ("clientType", client_type)]);
        let body = self.call(self.node.http.get(url)).await?;
        Ok(body["data"].as_str().context("a token call without data")?.to_owned())
    }

    /// Asks for a token, and connects with it.
    pub async fn client(&self, unique_id: &str, client_type: &str) -> Result<Client> {
        let url = self.token(unique_id, client_type).await?;
        let (_, token) = url.split_once("/socket/").context("a token call without a socket URL")?;
        Client::connect(self.edges().await?, token).await
    }

    /// Pushes an envelope or an array of them by HTTP; the answer.
    pub async fn post(&self, envelopes: &Value) -> Result<Value> {
        let url = format!("http://{}/{}/websocket/messages", self.edges().await?, self.name);
        self.call(self.node.http.post(url).body(envelopes.to_string())).await
    }

    async fn call(&self, request: reqwest::RequestBuilder) -> Result<Value> {
        let key = self.secret.get("api-key").context("the Secret has no api-key")?;
        let answer = request.header("x-api-key", key).send().await?;
        let (status, body) = (answer.status(), answer.text().await?);
        ensure!(status.is_success(), "{status}: {body}");
        Ok(serde_json::from_str(&body)?)
    }
}
