use anyhow::{Result, ensure};
use serde_json::json;
use wirepost_testing::service::next_json;
use wirepost_testing::ws_proxy::Door;

use crate::client::number;
use crate::world::World;

pub(super) async fn bound(world: &World) -> Result<()> {
    world.proxy.door(Door::Refused);
    let client = world.client(json!({"queueLimit": 5}))?;
    for n in 0..8 {
        client.send_number(n)?;
    }
    for n in 5..8 {
        let outcome = client.outcome(&format!("s{n}")).await?;
        ensure!(outcome["result"] == "rejected" && outcome["code"] == "queue_full", "{outcome}");
        ensure!(outcome["mayHaveArrived"] == false, "{outcome}");
    }
    world.proxy.door(Door::Open);
    client.acked(0..5).await?;
    client.send_number(8)?;
    client.acked(8..9).await?;
    let mut orders = world.service.consume("orders", 10).await?;
    for n in [0, 1, 2, 3, 4, 8] {
        ensure!(number(&next_json(&mut orders).await?) == Some(n), "message {n} is not in its place");
    }
    Ok(())
}

pub(super) async fn abort(world: &World) -> Result<()> {
    world.proxy.door(Door::Refused);
    let client = world.client(json!({}))?;
    client.send_number(0)?;
    client.send_number(1)?;
    client.tell("abort", json!({"as": "s0"}))?;
    let outcome = client.outcome("s0").await?;
    ensure!(outcome["result"] == "rejected" && outcome["code"] == "aborted", "{outcome}");
    ensure!(outcome["mayHaveArrived"] == false, "{outcome}");
    world.proxy.door(Door::Open);
    client.acked(1..2).await?;
    let mut orders = world.service.consume("orders", 10).await?;
    ensure!(number(&next_json(&mut orders).await?) == Some(1), "the aborted message was sent");
    Ok(())
}
