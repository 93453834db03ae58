use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;
use tokio::time::sleep;

use crate::world::World;

pub(super) async fn unknown(world: &World) -> Result<()> {
    let client = world.connected(json!({})).await?;
    world.proxy.say(json!({"op": "novelty", "id": "x", "nested": {"deep": [1, null]}}));
    world.proxy.say(json!({"op": "ack", "id": "nobody-sent-this"}));
    world.proxy.say(json!({"op": "nack", "code": "invalid_envelope", "reason": "no id", "retryable": false, "mayHaveArrived": false}));
    world.proxy.say(json!({"op": "error", "about": "novelty", "reason": "unknown"}));
    world.proxy.say(json!({"op": "pong", "more": true}));
    world.proxy.say(json!({"op": "gap2"}));
    world.proxy.say_text("[1, 2]");
    world.proxy.say_text("no JSON {");
    world.proxy.say_text("null");
    let push = json!({"id": "p0", "messageType": "payment.completed", "toUniqueId": client.name, "content": {"n": 0},
        "later": {"version": 2}, "priority": 7});
    world.service.push(&push).await?;
    client.all_in_order(0).await?;
    client.send_number(0)?;
    client.acked(0..1).await?;
    sleep(Duration::from_millis(300)).await;
    ensure!(world.attempts() == 1, "it gave up its connection");
    ensure!(client.gaps() == 0, "it reported a gap");
    Ok(())
}

pub(super) async fn clock(world: &World) -> Result<()> {
    let client = world.connected(json!({"timing": {"pingAfter": 800, "pongWithin": 2000}})).await?;
    for (n, ahead) in [3_600_000_i64, -3_600_000, 0].into_iter().enumerate() {
        client.tell("clock", json!({"aheadMs": ahead}))?;
        sleep(Duration::from_secs(2)).await;
        ensure!(world.attempts() == 1, "a jump of the clock to {ahead} ms cost the connection");
        world.push(&client, [n as u64]).await?;
        client.all_in_order(n as u64).await?;
        client.send_number(n as u64)?;
        client.acked(n as u64..n as u64 + 1).await?;
    }
    // It still notices a dead network after a jump back.
    client.tell("clock", json!({"aheadMs": -3_600_000}))?;
    world.proxy.freeze();
    client.state("open", 2).await
}
