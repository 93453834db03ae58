//! What the edges of one test share: a vhost with the declared topology, the configurations that the edges read, the keys that sign
//! tickets, and an API key of every business.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, anyhow, bail};
use base64::{Engine, engine::general_purpose::STANDARD};
use lapin::types::FieldTable;
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use wirepost_core::compile::{Compilation, Compiled};
use wirepost_core::edge_config::{ApiKey, BusinessConfig};
use wirepost_core::{hex, names, validate};
use wirepost_rabbitmq::{ManagementClient, ManagementSettings};
use wirepost_topology::unrouted::{self, Links, Moved};
use wirepost_topology::{
    DesiredUser, EDGE_RIGHTS, EdgeRight, Options, Report, Scope, Snapshot, apply, business_user, edge_user_with, merge,
};

use crate::broker::Vhost;
use crate::edge::EdgeBuilder;
use crate::strange::endpoint;

/// The business of most tests: all three kinds of message, limits that no test meets by accident.
pub const PAYMENTS: &str = r#"
apiVersion: wirepost.dev/v1alpha1
kind: WsBusiness
metadata: {name: payments, namespace: shop}
spec:
  clientTypes: [h5, app, pos]
  routes:
    - {messageType: qr.refresh, sendType: ClientToServer, from: [h5], queue: {name: qr-refresh},
       schema: {type: object, required: [qrId], properties: {qrId: {type: string}}}}
    - {messageType: "order.#", sendType: ClientToServer, queue: {name: orders}}
    - {messageType: payment.completed, sendType: ServerToClient, to: [h5, app], receipts: true}
    - {messageType: till.notice, sendType: ServerToClient, to: [pos, app], audience: Everyone}
    - {messageType: cart.share, sendType: ClientToClient, from: [app], to: [h5]}
    - {messageType: "chat.#", sendType: ClientToClient, from: [h5, app], to: [h5, app]}
  limits: {messagesPerSecond: 10000, burst: 20000}
"#;

/// A second business, which pushes only.
pub const TICKER: &str = r"
apiVersion: wirepost.dev/v1alpha1
kind: WsBusiness
metadata: {name: ticker, namespace: shop}
spec:
  clientTypes: [app]
  routes: [{messageType: price, sendType: ServerToClient, to: [app]}]
";

/// The same with delivery `Transient`, and with messages between clients.
pub const TRANSIENT: &str = r"
apiVersion: wirepost.dev/v1alpha1
kind: WsBusiness
metadata: {name: ticker, namespace: shop}
spec:
  clientTypes: [app]
  routes:
    - {messageType: price, sendType: ServerToClient, to: [app], audience: Everyone}
    - {messageType: wave, sendType: ClientToClient, from: [app], to: [app]}
  push: {delivery: Transient}
";

/// Everything that several edges share. Cheap to clone; the vhost goes with the last clone and the last edge.
#[derive(Clone, Debug)]
pub struct Setup(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    vhost: Vhost,
    dir: TempDir,
    api_key: String,
    declared: Mutex<Vec<Compiled>>,
    /// The user of the edges, once there is an edge; then others of a test.
    users: tokio::sync::Mutex<Vec<DesiredUser>>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        // Users are of the whole broker, so they do not go with the vhost.
        for user in self.users.get_mut() {
            self.vhost.broker.delete_user(&user.name);
        }
    }
}

impl Setup {
    /// On the shared broker, in a vhost of its own. `declarations` are YAML (or JSON) texts with one or more `WsBusiness` each.
    pub async fn new(declarations: &[&str]) -> Result<Self> {
        Self::on(Vhost::create().await?, declarations).await
    }

    /// The same in a given vhost, such as one of a private broker.
    pub async fn on(vhost: Vhost, declarations: &[&str]) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        std::fs::create_dir(dir.path().join("config"))?;
        let secret = STANDARD.encode(rand::random::<[u8; 32]>());
        let keys = format!(r#"{{"current":"test","keys":[{{"id":"test","secret":"{secret}"}}]}}"#);
        std::fs::write(dir.path().join("keys.json"), keys)?;
        let api_key = STANDARD.encode(rand::random::<[u8; 32]>());
        let setup = Self(Arc::new(Shared {
            vhost,
            dir,
            api_key,
            declared: Mutex::default(),
            users: tokio::sync::Mutex::default(),
        }));
        setup.declare(declarations).await?;
        Ok(setup)
    }

    /// Makes these the declared businesses, and no others: compiles them, makes the broker's objects, writes what the edges read.
    pub async fn declare(&self, declarations: &[&str]) -> Result<()> {
        let compiled = compile(declarations)?;
        self.0.declared.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&compiled);
        let report = self.repair().await?;
        if !report.is_clean() {
            bail!("the topology can't be made: {:?}", report.problems);
        }
        let file = |business: &str| self.config_dir().join(format!("{business}.json"));
        for entry in std::fs::read_dir(self.config_dir())? {
            let path = entry?.path();
            if compiled.iter().all(|one| file(&one.business) != path) {
                std::fs::remove_file(path)?;
            }
        }
        for one in compiled {
            self.write_config(&self.config(&one.business)?)?;
        }
        Ok(())
    }

    /// What `wirepost dev` and the operator do every now and then: makes the vhost have the declared topology again.
    pub async fn repair(&self) -> Result<Report> {
        for user in &*self.0.users.lock().await {
            self.put_user(user).await?;
        }
        let topologies: Vec<_> = self.declared().into_iter().map(|one| one.topology).collect();
        let connection = self.vhost().connect().await?;
        let options = Options { scope: Scope::Everything, amqp: Some(&connection), delete_messages: false };
        Ok(apply(&self.management()?, &merge(&topologies), options).await?)
    }

    /// AMQP URI of the vhost with a user who has the rights of an edge and no others, as the operator makes one.
    pub async fn edge_amqp(&self) -> Result<String> {
        let mut users = self.0.users.lock().await;
        if users.is_empty() {
            let user = edge_user_with(&self.vhost().name, "", "edge", &EDGE_RIGHTS);
            users.push(self.make_user("edge", user).await?);
        }
        Ok(self.amqp_as(&users[0]))
    }

    /// AMQP URI of the vhost with a user of a business's services, as the operator makes one.
    pub async fn service_amqp(&self, business: &str) -> Result<String> {
        self.other_amqp("service", business_user(&self.vhost().name, business, "", "service")).await
    }

    /// The same with other rights, for tests of what each one is for.
    pub async fn edge_amqp_with(&self, rights: &[EdgeRight]) -> Result<String> {
        self.other_amqp("edge", edge_user_with(&self.vhost().name, "", "edge", rights)).await
    }

    async fn other_amqp(&self, whose: &str, user: DesiredUser) -> Result<String> {
        self.edge_amqp().await?;
        let user = self.make_user(whose, user).await?;
        let uri = self.amqp_as(&user);
        self.0.users.lock().await.push(user);
        Ok(uri)
    }

    async fn make_user(&self, whose: &str, user: DesiredUser) -> Result<DesiredUser> {
        // Not a name that an operator of this vhost would take for one of its own.
        let name = format!("{whose}-of-{}-{:08x}", self.vhost().name, rand::random::<u32>());
        let user = DesiredUser { name, ..user };
        self.put_user(&user).await?;
        Ok(user)
    }

    async fn put_user(&self, user: &DesiredUser) -> Result<()> {
        let DesiredUser { name, password, tags, configure, write, read, limits: _ } = user;
        let tags = tags.join(",");
        self.call("PUT", &["users", name], &json!({"password": password, "tags": tags})).await?;
        let permissions = json!({"configure": configure, "write": write, "read": read});
        self.call("PUT", &["permissions", &self.vhost().name, name], &permissions).await
    }

    fn amqp_as(&self, user: &DesiredUser) -> String {
        let uri = self.vhost().amqp();
        let rest = uri.rsplit_once('@').map_or(uri.as_str(), |(_, rest)| rest);
        format!("amqp://{}:{}@{rest}", user.name, user.password)
    }

    /// Moves back what a lost binding had put aside.
    pub async fn move_back(&self, business: &str) -> Result<Moved> {
        let declared = self.declared().into_iter().find(|one| one.business == business).context("no such business")?;
        let to = names::push_exchange(business);
        let all = self.declared().into_iter().flat_map(|one| one.topology.links);
        let links = Links {
            present: Snapshot::read(&self.management()?).await?.links_to(business),
            declared: all.filter(|link| link.to == to).map(|link| link.from).collect(),
        };
        let endpoint = endpoint(&self.vhost().amqp())?;
        // It is large, and part of many others.
        Ok(Box::pin(unrouted::move_back(&endpoint, business, &declared.topology, &links, &|| true)).await?)
    }

    /// Deletes a queue or stream by hand.
    pub async fn delete_queue(&self, name: &str) -> Result<()> {
        self.call("DELETE", &["queues", &self.vhost().name, name], &Value::Null).await
    }

    /// Deletes an exchange by hand.
    pub async fn delete_exchange(&self, name: &str) -> Result<()> {
        self.call("DELETE", &["exchanges", &self.vhost().name, name], &Value::Null).await
    }

    /// Deletes a binding of a queue by hand.
    pub async fn unbind(&self, exchange: &str, queue: &str, routing_key: &str) -> Result<()> {
        let channel = self.vhost().connect().await?.create_channel().await?;
        Ok(channel.queue_unbind(queue.into(), exchange.into(), routing_key.into(), FieldTable::default()).await?)
    }

    /// Deletes by hand what leads the messages of one business to the clients of another.
    pub async fn unlink(&self, from: &str, to: &str) -> Result<()> {
        let (vhost, from, push) = (&self.vhost().name, names::share_exchange(from), names::push_exchange(to));
        let path = format!("/api/bindings/{vhost}/e/{from}/e/{push}");
        let broker = &self.vhost().broker;
        let listed: Value = serde_json::from_str(&broker.call("GET", &path, "").await?)?;
        let key = listed[0]["properties_key"].as_str().context("no binding")?;
        broker.call("DELETE", &format!("{path}/{key}"), "").await.map(drop)
    }

    /// Declares a stream and binds it to an exchange by hand, as a person would while no operator runs.
    pub async fn declare_stream(&self, name: &str, exchange: &str) -> Result<()> {
        let vhost = &self.vhost().name;
        let stream = json!({"durable": true, "auto_delete": false, "arguments": {"x-queue-type": "stream"}});
        self.call("PUT", &["queues", vhost, name], &stream).await?;
        let binding = json!({"routing_key": "", "arguments": {}});
        self.call("POST", &["bindings", vhost, "e", exchange, "q", name], &binding).await
    }

    /// A call of the management API; names need no escaping here.
    pub async fn call(&self, method: &str, path: &[&str], body: &Value) -> Result<()> {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        self.vhost().broker.call(method, &format!("/api/{}", path.join("/")), &body).await.map(drop)
    }

    /// What the edges know of a declared business, its key included.
    pub fn config(&self, business: &str) -> Result<BusinessConfig> {
        let found = self.declared().into_iter().find(|one| one.business == business);
        let mut config = found.with_context(|| format!("{business} is not declared"))?.config;
        let sha256 = hex(Sha256::digest(self.api_key()));
        config.auth.api_keys.push(ApiKey { sha256, expires_at: None });
        Ok(config)
    }

    /// Changes what the edges know of a business, without its declaration.
    pub fn reconfigure(&self, business: &str, change: impl FnOnce(&mut BusinessConfig)) -> Result<()> {
        let mut config = self.config(business)?;
        change(&mut config);
        self.write_config(&config)
    }

    fn write_config(&self, config: &BusinessConfig) -> Result<()> {
        // Renamed into place: an edge must not read half a file.
        let new = self.0.dir.path().join(&config.business_type);
        std::fs::write(&new, serde_json::to_vec(config)?)?;
        Ok(std::fs::rename(new, self.config_dir().join(format!("{}.json", config.business_type)))?)
    }

    /// An edge of this name, yet to be started.
    pub fn edge(&self, name: &str) -> EdgeBuilder {
        EdgeBuilder::new(self.clone(), name)
    }

    /// Where everything is.
    pub fn vhost(&self) -> &Vhost {
        &self.0.vhost
    }

    /// A key of every declared business's services.
    pub fn api_key(&self) -> &str {
        &self.0.api_key
    }

    /// The first declared business.
    pub fn business(&self) -> String {
        self.declared().into_iter().next().map(|one| one.business).unwrap_or_default()
    }

    /// The folder of this test's files.
    pub fn dir(&self) -> &Path {
        self.0.dir.path()
    }

    /// Where the edges find their configurations.
    pub fn config_dir(&self) -> PathBuf {
        self.dir().join("config")
    }

    /// The key set that signs tickets.
    pub fn keys_file(&self) -> PathBuf {
        self.dir().join("keys.json")
    }

    /// The management API of the vhost, as the operator uses it.
    pub fn management(&self) -> Result<ManagementClient> {
        let (url, vhost) = (self.vhost().broker.management.clone(), self.vhost().name.clone());
        Ok(ManagementClient::new(ManagementSettings {
            url,
            vhost,
            credentials: None,
            tls: wirepost_rabbitmq::TlsFiles::default(),
            timeout: None,
        })?)
    }

    fn declared(&self) -> Vec<Compiled> {
        self.0.declared.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// In the order of the declarations.
fn compile(declarations: &[&str]) -> Result<Vec<Compiled>> {
    let documents = declarations.iter().flat_map(|text| serde_yaml::Deserializer::from_str(text));
    let businesses = documents.map(|document| {
        validate::parse(&Value::deserialize(document)?, None)
            .map_err(|problems| anyhow!("a test's declaration is refused: {problems:?}"))
    });
    let businesses = businesses.collect::<Result<Vec<_>>>()?;
    let Compilation { mut accepted, rejected } = wirepost_core::compile::compile(&businesses);
    if !rejected.is_empty() {
        bail!("a test's declaration is refused: {rejected:?}");
    }
    let order = |one: &Compiled| businesses.iter().position(|business| business.business_type() == one.business);
    accepted.sort_by_key(order);
    Ok(accepted)
}
