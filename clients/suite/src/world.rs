//! What one scenario has around its clients: a vhost of its own, an edge, the proxy, a backend, a service.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Result;
use serde_json::{Value, json};
use wirepost_testing::edge::Edge;
use wirepost_testing::service::Service;
use wirepost_testing::setup::Setup;
use wirepost_testing::ws_proxy::{From, Record, What, WsProxy};

use crate::backend::Backend;
use crate::client::Client;
use crate::driver::Driver;

pub(crate) const BUSINESS: &str = "suite";
pub(crate) const CLIENT_TYPE: &str = "app";
pub(crate) const ORIGIN: &str = "http://suite.example";

/// Limits that no scenario meets by accident, but for those that a scenario adds.
pub(crate) const DECLARATION: &str = r#"
apiVersion: wirepost.dev/v1alpha1
kind: WsBusiness
metadata: {name: suite, namespace: suite}
spec:
  clientTypes: [app]
  routes:
    - {messageType: qr.refresh, sendType: ClientToServer, queue: {name: qr-refresh},
       schema: {type: object, required: [qrId], properties: {qrId: {type: string}}}}
    - {messageType: "order.#", sendType: ClientToServer, queue: {name: orders}}
    - {messageType: payment.completed, sendType: ServerToClient, to: [app]}
    - {messageType: qr.refreshed, sendType: ServerToClient, to: [app]}
    - {messageType: receipt.wanted, sendType: ServerToClient, to: [app], receipts: true}
    - {messageType: chat.hello, sendType: ClientToClient, from: [app], to: [app]}
  auth: {allowedOrigins: ["http://suite.example"]}
"#;

static CLIENTS: AtomicU64 = AtomicU64::new(0);

pub(crate) struct World {
    pub(crate) driver: Arc<Driver>,
    pub(crate) setup: Setup,
    pub(crate) edge: Arc<Edge>,
    pub(crate) proxy: WsProxy,
    pub(crate) backend: Backend,
    pub(crate) service: Service,
}

impl World {
    /// With these lines under `spec` of the declaration beside the usual ones; `limits` are the fields of `limits`, `others` the declarations
    /// of other businesses.
    pub(crate) async fn new(driver: &Arc<Driver>, limits: &str, more: &str, others: &[&str]) -> Result<Self> {
        let limits = if limits.is_empty() {
            "messagesPerSecond: 10000, burst: 20000, messageBytes: 1048576, pushBytes: 2097152, connectionsPerId: 1000"
        } else {
            limits
        };
        let own = format!("{DECLARATION}  limits: {{{limits}}}\n{more}");
        let setup = Setup::new(&[&[own.as_str()], others].concat()).await?;
        let edge =
            Arc::new(setup.edge("e1").flag("removal-grace-seconds", 1).flag("drain-window-seconds", 4).start().await?);
        let proxy = WsProxy::start(edge.public, ORIGIN).await?;
        let backend = Backend::start(Arc::clone(&edge), proxy.address).await?;
        let service = Service::connect(&setup).await?;
        Ok(Self { driver: Arc::clone(driver), setup, edge, proxy, backend, service })
    }

    /// A client that was told to connect, with short waits but for those of `options`; `timing: null` leaves all as they are.
    pub(crate) fn client(&self, mut options: Value) -> Result<Client> {
        let name = format!("c{}", CLIENTS.fetch_add(1, Ordering::Relaxed));
        let client = Client::new(&self.driver, &name);
        let mut timing =
            json!({"fastFirst": 100, "fastMax": 1000, "slowFirst": 1000, "slowMax": 2000, "nackFirst": 100});
        if let Some(given) = options["timing"].as_object() {
            for (name, value) in given {
                timing[name] = value.clone();
            }
        }
        if options.get("timing").is_none_or(|given| !given.is_null()) {
            options["timing"] = timing;
        } else if let Some(options) = options.as_object_mut() {
            options.remove("timing");
        }
        // Two clients of a scenario may be the same person.
        let unique_id = options["uniqueId"].as_str().unwrap_or(&name).to_owned();
        options["tokenUrl"] = self.backend.url(&unique_id).into();
        client.tell("connect", options)?;
        Ok(client)
    }

    /// The same, open.
    pub(crate) async fn connected(&self, options: Value) -> Result<Client> {
        let client = self.client(options)?;
        client.open().await?;
        Ok(client)
    }

    /// Pushes to a client, numbered.
    pub(crate) async fn push(&self, to: &Client, numbers: impl IntoIterator<Item = u64>) -> Result<()> {
        self.service.push_all(numbers.into_iter().map(|n| push(&to.name, n))).await
    }

    /// Connections that clients tried to make so far.
    pub(crate) fn attempts(&self) -> usize {
        self.proxy.log().iter().filter(|record| record.what == What::Attempt).count()
    }

    /// Waits for the nth connection to have its `welcome`.
    pub(crate) async fn welcomed(&self, times: usize) -> Result<()> {
        self.proxy
            .until(&format!("{times} welcomes"), |log| {
                (log.iter().filter(|record| is_op(record, From::Edge, "welcome")).count() >= times).then_some(())
            })
            .await
    }
}

/// A push to a client, numbered, with the number in its id.
pub(crate) fn push(to: &str, n: u64) -> Value {
    json!({"id": format!("{to}-p{n}"), "messageType": "payment.completed", "toUniqueId": to, "content": {"n": n}})
}

/// Whether it is this control frame.
pub(crate) fn is_op(record: &Record, from: From, op: &str) -> bool {
    matches!(&record.what, What::Frame(sender, frame) if *sender == from && frame["op"] == op)
}

/// A message that a client sent on a connection.
pub(crate) fn sent(record: &Record) -> Option<&Value> {
    match &record.what {
        What::Frame(From::Client, frame) if frame.get("op").is_none() => Some(frame),
        _ => None,
    }
}
