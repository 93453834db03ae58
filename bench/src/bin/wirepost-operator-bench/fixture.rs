//! What is measured: businesses, namespaces, edges.

use std::time::Instant;

use anyhow::Result;
use futures_util::{StreamExt, TryStreamExt, stream};
use wirepost_testing::{
    broker::PrivateBroker,
    cluster::Namespace,
    edge::Edge,
    operator::{Operator, World},
};

use crate::observer::Observer;

const NAMESPACES: usize = 50;
/// Resources that are applied at the same time.
const APPLYING: usize = 8;
/// As the chart has them.
const LEASE_SECONDS: u32 = 15;
const SWEEP_SECONDS: u32 = 10;

/// Everything but the operator.
pub(crate) struct Fixture {
    pub(crate) world: World,
    /// Its own: it loses its disk.
    pub(crate) broker: PrivateBroker,
    pub(crate) namespaces: Vec<Namespace>,
    pub(crate) businesses: usize,
    pub(crate) observer: Observer,
    /// They end with it.
    pub(crate) edges: Vec<Edge>,
}

impl Fixture {
    /// Resources that no operator has seen yet, and edges without configurations.
    pub(crate) async fn new(businesses: usize, edges: usize) -> Result<Self> {
        let broker = PrivateBroker::start("operator-bench", &[]).await?;
        let world = World::on_broker(&broker).await?;
        let namespaces = stream::iter(0..NAMESPACES.min(businesses))
            .map(|_| world.cluster.namespace("bench"))
            .buffered(APPLYING)
            .try_collect::<Vec<_>>()
            .await?;
        let begun = Instant::now();
        stream::iter(0..businesses)
            .map(|i| {
                let (world, namespace) = (&world, &namespaces[i % namespaces.len()]);
                async move { world.apply_in(namespace, &declaration(i)).await }
            })
            .buffer_unordered(APPLYING)
            .try_collect::<()>()
            .await?;
        println!(
            "{businesses} WsBusinesses in {} namespaces applied in {:.1} s, {APPLYING} at a time; {edges} edges",
            namespaces.len(),
            begun.elapsed().as_secs_f64()
        );
        let observer = Observer::start(&world);
        let mut fixture = Self { world, broker, namespaces, businesses, observer, edges: Vec::new() };
        for i in 0..edges {
            let edge = fixture.world.edge(&format!("edge-{i}")).await?;
            fixture.edges.push(edge);
        }
        Ok(fixture)
    }

    /// Namespace and name of the `i`th business.
    pub(crate) fn place(&self, i: usize) -> (&str, String) {
        (&self.namespaces[i % self.namespaces.len()].name, name(i))
    }

    pub(crate) async fn start_operator(&self, name: &str) -> Result<Operator> {
        let builder = self.world.operator(name).quiet();
        builder.flag("lease-seconds", LEASE_SECONDS).flag("sweep-seconds", SWEEP_SECONDS).start_unready().await
    }
}

fn name(i: usize) -> String {
    format!("business-{i}")
}

/// All kinds of messages, a schema, access for services.
fn declaration(i: usize) -> String {
    let name = name(i);
    format!(
        r#"
apiVersion: wirepost.dev/v1alpha1
kind: WsBusiness
metadata: {{name: {name}}}
spec:
  clientTypes: [h5, app, pos]
  routes:
    - {{messageType: qr.refresh, sendType: ClientToServer, from: [h5], queue: {{name: qr-refresh}},
       schema: {{type: object, required: [qrId], properties: {{qrId: {{type: string}}}}}}}}
    - {{messageType: "order.\#", sendType: ClientToServer, queue: {{name: orders}}}}
    - {{messageType: payment.completed, sendType: ServerToClient, to: [h5, app], receipts: true}}
    - {{messageType: till.notice, sendType: ServerToClient, to: [pos, app], audience: Everyone}}
    - {{messageType: "chat.\#", sendType: ClientToClient, from: [h5, app], to: [h5, app]}}
  limits: {{messagesPerSecond: 20, burst: 40}}
  access: {{secretName: {name}-wirepost}}
"#
    )
    .replace("\\#", "#")
}
