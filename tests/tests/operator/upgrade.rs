//! An operator of this version beside edges of an older one, whose messages are routed by the patterns of routes.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use wirepost_testing::broker::{depth, eventually, key_of, publish};
use wirepost_testing::cluster::PATIENCE;
use wirepost_testing::mirror::Mirror;
use wirepost_testing::operator::World;
use wirepost_testing::setup::PAYMENTS;

const RECEIVE: &str = "wirepost.payments.receive";
const ORDERS: &str = "wirepost.payments.q.orders";
const UNROUTED: &str = "wirepost.payments.unrouted";

#[tokio::test(flavor = "multi_thread")]
async fn bindings_by_pattern_stay_as_long_as_an_older_edge_needs_them() -> Result<()> {
    let world = World::new().await?;
    // As an older operator has left it.
    world.setup.declare(&[PAYMENTS]).await?;
    let path = ["bindings", &world.setup.vhost().name, "e", RECEIVE, "q", ORDERS];
    world.setup.call("POST", &path, &json!({"routing_key": "order.#"})).await?;
    world.setup.unbind(RECEIVE, ORDERS, &key_of(ORDERS)).await?;
    let keys = || async {
        let bindings = world.setup.ask(&path).await?;
        let mut keys: Vec<_> = bindings.as_array().into_iter().flatten().map(|b| b["routing_key"].clone()).collect();
        keys.sort_by_key(ToString::to_string);
        anyhow::Ok(keys)
    };

    // One that never says that it runs what this operator writes.
    let address = world.cluster.address.context("WIREPOST_TEST_ADDRESS is not set")?;
    let nobody = std::net::TcpListener::bind((address, 0))?;
    world.endpoint("older", nobody.local_addr()?).await?;
    let _edge = Mirror::start(&world, "newer").await?;
    let operator = world.operator("one").flag("edges-timeout-seconds", 45).start().await?;
    world.apply(PAYMENTS).await?;
    world.condition("payments", "Provisioned", "True").await?;
    operator.looks(4).await?;
    ensure!(keys().await? == [json!("order.#"), json!(key_of(ORDERS))]);
    let (_connection, channel) = world.setup.vhost().channel().await?;
    publish(&channel, RECEIVE, "order.new", b"{}").await?;
    ensure!(depth(&channel, ORDERS).await? == 1 && depth(&channel, UNROUTED).await? == 0);

    world.leave("older").await?;
    // It may still serve clients where nobody sees it, so it is waited for.
    let limit = PATIENCE + Duration::from_secs(45);
    eventually("the binding is gone with the edge", limit, || async { Ok(keys().await? == [key_of(ORDERS)]) }).await?;
    // What it left behind in a lane is not lost.
    publish(&channel, RECEIVE, "order.new", b"{}").await?;
    eventually("it is moved back", PATIENCE, || async { Ok(depth(&channel, ORDERS).await? == 2) }).await
}
