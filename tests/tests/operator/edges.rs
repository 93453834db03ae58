//! Operator and real edges together: what is declared with kubectl is what clients get.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::json;
use wirepost_core::business::WsBusiness;
use wirepost_testing::broker::{PATIENCE, eventually};
use wirepost_testing::edge::Edge;
use wirepost_testing::operator::edges::client;
use wirepost_testing::operator::{Operator, World, condition_of};
use wirepost_testing::service::{Service, next_json, payment};
use wirepost_testing::setup::PAYMENTS;

fn payments() -> String {
    format!("{PAYMENTS}  access: {{secretName: payments-wirepost}}\n")
}

async fn secret(world: &World) -> Result<BTreeMap<String, String>> {
    world.secret("payments-wirepost").await?.context("no Secret")
}

/// An operator and one edge, on which the business is ready.
async fn ready() -> Result<(World, Operator, Edge)> {
    let world = World::new().await?;
    let operator = world.operator("one").start().await?;
    let edge = world.edge("edge-1").await?;
    world.apply(&payments()).await?;
    world.condition("payments", "Ready", "True").await?;
    Ok((world, operator, edge))
}

#[tokio::test(flavor = "multi_thread")]
async fn kubectl_apply_and_all_three_kinds_of_message_flow_over_two_edges() -> Result<()> {
    let world = World::new().await?;
    let _operator = world.operator("one").start().await?;
    let (first, second) = (world.edge("edge-1").await?, world.edge("edge-2").await?);
    world.apply(&payments()).await?;
    let wsb = world
        .wait("payments", "be Ready on two edges", |wsb| {
            condition_of(wsb, "Ready").is_some_and(|c| c.status == "True")
                && wsb.status.as_ref().and_then(|s| s.edges.as_ref()).is_some_and(|e| e.programmed == 2 && e.total == 2)
        })
        .await?;
    ensure!(wsb.status.and_then(|s| s.edges).and_then(|e| e.summary).as_deref() == Some("2/2"));

    let secret = secret(&world).await?;
    let service = Service::with(&secret).await?;
    let mut alice = client(&first, &secret, "alice", "app").await?;
    let mut bob = client(&second, &secret, "bob", "h5").await?;
    service.push(&payment("alice", 1)).await?;
    ensure!(alice.content().await? == payment("alice", 1)["content"]);
    let mut orders = service.consume("orders", 10).await?;
    bob.send_acked(&json!({"id": "o1", "messageType": "order.new", "content": {}})).await?;
    ensure!(next_json(&mut orders).await?["fromUniqueId"] == "bob");
    alice
        .send_acked(&json!({"id": "c1", "messageType": "cart.share", "toUniqueId": "bob", "content": {"cart": 1}}))
        .await?;
    ensure!(bob.push().await?["id"] == "c1");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn edges_that_come_and_go_are_counted() -> Result<()> {
    let world = World::new().await?;
    let _operator = world.operator("one").start().await?;
    world.apply(PAYMENTS).await?;
    let counted = async |summary: &str| {
        world
            .wait("payments", &format!("have {summary} edges"), |wsb| {
                let edges = wsb.status.as_ref().and_then(|s| s.edges.as_ref());
                edges.and_then(|e| e.summary.as_deref()) == Some(summary)
            })
            .await
    };
    let _first = world.edge("edge-1").await?;
    counted("1/1").await?;
    let second = world.edge("edge-2").await?;
    counted("2/2").await?;
    // One that hangs is named, and is what Ready tells.
    second.pause()?;
    let wsb = world.reason("payments", "Programmed", "EdgesUnreachable").await?;
    let message = condition_of(&wsb, "Ready").map(|c| c.message.clone()).unwrap_or_default();
    ensure!(message.contains("edge-2"), "{message}");
    second.resume()?;
    counted("2/2").await?;
    second.kill9()?;
    world.leave("edge-2").await?;
    counted("1/1").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_reaches_connected_clients_without_cutting_them() -> Result<()> {
    let (world, _operator, edge) = ready().await?;
    let mut alice = client(&edge, &secret(&world).await?, "alice", "app").await?;
    let frame = json!({"id": "n1", "messageType": "stock.count", "content": {}});
    alice.send(&frame).await?;
    ensure!(alice.nack("n1").await?["code"] == "unknown_route");
    let more = payments().replace(
        "routes:\n",
        "routes:\n    - {messageType: stock.count, sendType: ClientToServer, queue: {name: stock}}\n",
    );
    world.apply(&more).await?;
    world.condition("payments", "Ready", "True").await?;
    alice.send_acked(&frame).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_business_closes_its_clients_and_the_type_is_free_again() -> Result<()> {
    let (world, _operator, edge) = ready().await?;
    let mut alice = client(&edge, &secret(&world).await?, "alice", "app").await?;
    world.cluster.delete(&world.team.name, "payments").await?;
    ensure!(alice.close_code().await? == 4010);
    world.cluster.wait_gone(&world.team.name, "payments").await?;
    world.apply(&payments()).await?;
    world.condition("payments", "Ready", "True").await?;
    client(&edge, &secret(&world).await?, "alice", "app").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_deleted_or_altered_by_hand_is_restored_and_cuts_nobody() -> Result<()> {
    let (world, _operator, edge) = ready().await?;
    let mut alice = client(&edge, &secret(&world).await?, "alice", "app").await?;
    let before = world.config_map("payments").await?.context("no ConfigMap")?;
    let api: Api<ConfigMap> = world.cluster.api(&world.system.name);
    api.delete("wirepost-business-payments", &DeleteParams::default()).await?;
    let restored = async || {
        eventually("the configuration is as it was", PATIENCE, || async {
            Ok(world.config_map("payments").await?.is_some_and(|now| now.data == before.data))
        })
        .await
    };
    restored().await?;
    let patch = json!({"data": {"config.json": "{}"}});
    api.patch("wirepost-business-payments", &PatchParams::default(), &Patch::Merge(patch)).await?;
    restored().await?;
    world.condition("payments", "Ready", "True").await?;
    alice.send_acked(&json!({"id": "o1", "messageType": "order.new", "content": {}})).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_rotation_the_former_key_still_opens_the_door() -> Result<()> {
    let (world, _operator, edge) = ready().await?;
    let former = secret(&world).await?;
    let rotated = payments().replace("namespace: shop}", "namespace: shop, annotations: {wirepost.dev/rotate: \"1\"}}");
    world.apply(&rotated).await?;
    eventually("the Secret has new credentials", PATIENCE, || async {
        Ok(secret(&world).await?["api-key"] != former["api-key"])
    })
    .await?;
    world.condition("payments", "Ready", "True").await?;
    for credentials in [&former, &secret(&world).await?] {
        client(&edge, credentials, "alice", "app").await?;
        Service::with(credentials).await?.push(&payment("alice", 1)).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn another_delivery_closes_clients_once_and_pushes_arrive_again() -> Result<()> {
    let (world, _operator, edge) = ready().await?;
    let secret = secret(&world).await?;
    let service = Service::with(&secret).await?;
    let mut alice = client(&edge, &secret, "alice", "app").await?;
    for (n, delivery) in [(1, "Transient"), (2, "Durable")] {
        let push = format!("  push: {{delivery: {delivery}}}\n  deletionPolicy: Delete\n");
        world.apply(&(payments() + &push)).await?;
        ensure!(alice.close_code().await? == 1012, "{delivery}");
        world.condition("payments", "Ready", "True").await?;
        alice = client(&edge, &secret, "alice", "app").await?;
        service.push(&payment("alice", n)).await?;
        ensure!(alice.content().await? == payment("alice", n)["content"], "{delivery}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_change_leaves_clients_with_the_last_good_one() -> Result<()> {
    let (world, _operator, edge) = ready().await?;
    let mut alice = client(&edge, &secret(&world).await?, "alice", "app").await?;
    // Only a compiler of schemas sees what is wrong.
    world.apply(&payments().replace("type: object, required", "type: objekt, required")).await?;
    world.reason("payments", "Accepted", "InvalidSchema").await?;
    alice.send_acked(&json!({"id": "o1", "messageType": "order.new", "content": {}})).await?;
    world.apply(&payments()).await?;
    world.condition("payments", "Ready", "True").await?;
    alice.send_acked(&json!({"id": "o2", "messageType": "order.new", "content": {}})).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_status_says_how_many_clients_there_are_and_is_written_only_when_that_changes() -> Result<()> {
    let world = World::new().await?;
    let operator = world.operator("one").flag("client-count-seconds", 2).start().await?;
    let (first, second) = (world.edge("edge-1").await?, world.edge("edge-2").await?);
    world.apply(&payments()).await?;
    world.condition("payments", "Ready", "True").await?;
    let secret = secret(&world).await?;
    let counted = async |clients: i64| {
        let is = |wsb: &WsBusiness| wsb.status.as_ref().and_then(|status| status.clients) == Some(clients);
        world.wait("payments", &format!("have {clients} clients"), is).await
    };
    counted(0).await?;
    let alice = client(&first, &secret, "alice", "app").await?;
    let _bob = client(&second, &secret, "bob", "h5").await?;
    let _carol = client(&second, &secret, "carol", "app").await?;
    let wsb = counted(3).await?;
    let writes = operator.writes().await?;
    // Not a wait for something: silence for a while is what this is about.
    tokio::time::sleep(std::time::Duration::from_secs(7)).await;
    ensure!(operator.writes().await? - writes < 0.5, "it writes what has not changed");
    let api: Api<WsBusiness> = world.cluster.api(&world.team.name);
    ensure!(api.get("payments").await?.metadata.resource_version == wsb.metadata.resource_version);
    alice.leave().await?;
    counted(2).await?;
    // One that does not answer counts as it was.
    second.pause()?;
    world.reason("payments", "Programmed", "EdgesUnreachable").await?;
    counted(2).await?;
    second.resume()?;
    // Without edges there are no clients.
    for name in ["edge-1", "edge-2"] {
        world.leave(name).await?;
    }
    counted(0).await?;
    world.endpoint("edge-2", second.admin).await?;
    counted(2).await.map(drop)
}
