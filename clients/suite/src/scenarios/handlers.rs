use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tokio::time::sleep;
use wirepost_testing::service::Service;

use crate::world::{BUSINESS, World, push};

/// A business of which the suite's accepts messages.
pub(super) const PARTNER: &str = "
apiVersion: wirepost.dev/v1alpha1
kind: WsBusiness
metadata: {name: partner, namespace: suite}
spec:
  clientTypes: [app]
  routes: [{messageType: payment.completed, sendType: ServerToClient, to: [app]}]
";
pub(super) const ACCEPTS: &str = "  acceptFrom: [{businessType: partner, messageTypes: [payment.completed]}]\n";

pub(super) async fn slow(world: &World) -> Result<()> {
    const MESSAGES: u64 = 300;
    let client = world.connected(json!({})).await?;
    client.handler(json!({"mode": "delay", "ms": 5})).await?;
    world.push(&client, 0..MESSAGES / 2).await?;
    sleep(Duration::from_millis(200)).await;
    world.proxy.cut();
    world.push(&client, MESSAGES / 2..MESSAGES).await?;
    sleep(Duration::from_millis(300)).await;
    world.proxy.cut();
    client.all_in_order(MESSAGES - 1).await?;
    ensure!(client.gaps() == 0, "it reported a gap");
    Ok(())
}

pub(super) async fn cursor(world: &World) -> Result<()> {
    let client = world.connected(json!({})).await?;
    world.push(&client, 0..3).await?;
    client.all_in_order(2).await?;
    client.handler(json!({"mode": "hang"})).await?;
    world.push(&client, 3..5).await?;
    client.until_so("gets message 3", |client| client.numbers().last() == Some(&3)).await?;
    // Longer than a store may be late.
    sleep(Duration::from_millis(700)).await;
    let cursor = client.cursor().await?.context("the store is empty after three messages")?;
    // As after a crash.
    let second = world.connected(json!({"uniqueId": client.name, "cursor": cursor})).await?;
    second.until_so("gets message 4", |second| second.numbers().contains(&4)).await?;
    ensure!(second.numbers() == [3, 4], "after a crash while 3 was handled: {:?}, not [3, 4]", second.numbers());
    ensure!(second.gaps() == 0, "it reported a gap");
    Ok(())
}

pub(super) async fn failing(world: &World) -> Result<()> {
    let client = world.connected(json!({})).await?;
    world.push(&client, [0]).await?;
    client.all_in_order(0).await?;
    client.handler(json!({"mode": "fail", "times": 1})).await?;
    world.push(&client, 1..3).await?;
    client.until_so("gets message 2", |client| client.numbers().contains(&2)).await?;
    ensure!(client.numbers() == [0, 1, 1, 2], "{:?} for a handler that failed with 1", client.numbers());
    ensure!(world.attempts() == 1, "a failed handler cost the connection");
    Ok(())
}

pub(super) async fn twice(world: &World) -> Result<()> {
    let client = world.connected(json!({})).await?;
    world.push(&client, 0..5).await?;
    world.service.push_all((0..5).map(|n| push(&client.name, n))).await?;
    world.push(&client, [5]).await?;
    client.all_in_order(5).await?;
    world.proxy.cut();
    client.state("open", 2).await?;
    world.service.push_all((3..6).map(|n| push(&client.name, n))).await?;
    world.push(&client, [6]).await?;
    client.all_in_order(6).await
}

/// Otherwise whoever guesses the id of a message that a service is going to send could suppress it.
pub(super) async fn same_id(world: &World) -> Result<()> {
    let client = world.connected(json!({})).await?;
    let mut stranger = world.edge.client(&format!("{}-stranger", client.name), "app").connect().await?;
    let id = push(&client.name, 0)["id"].clone();
    let content = json!({"n": 0});
    let message = json!({"id": id, "messageType": "chat.hello", "toUniqueId": client.name, "content": content});
    stranger.send_acked(&message).await?;
    client.until_so("gets the client's message", |client| client.numbers() == [0]).await?;
    // The service's, with the same id, and twice.
    world.push(&client, [0, 0, 1]).await?;
    client.until_so("gets message 1", |client| client.numbers().contains(&1)).await?;
    ensure!(client.numbers() == [0, 0, 1], "{:?}, not [0, 0, 1]", client.numbers());
    Ok(())
}

/// Each business makes its own ids.
pub(super) async fn other_business(world: &World) -> Result<()> {
    let client = world.connected(json!({})).await?;
    let partner = Service::of(&world.setup, "partner").await?;
    let mut theirs = push(&client.name, 0);
    theirs["businesses"] = json!([BUSINESS]);
    world.push(&client, [0]).await?;
    // The second one of each is a repeat.
    partner.share(&theirs, &[BUSINESS]).await?;
    partner.share(&theirs, &[BUSINESS]).await?;
    world.push(&client, [0, 1]).await?;
    client.until_so("gets message 1", |client| client.numbers().contains(&1)).await?;
    let whose: Vec<_> = client.messages().iter().map(|message| message["businessType"].clone()).collect();
    ensure!(whose == ["suite", "partner", "suite"], "it handed over messages of {whose:?}");
    ensure!(client.numbers() == [0, 0, 1], "{:?}, not [0, 0, 1]", client.numbers());
    Ok(())
}
