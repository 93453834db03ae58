use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use wirepost_testing::service::next_json;

use crate::client::Client;
use crate::world::World;

fn request(client: &Client, name: &str, timeout_ms: u64) -> Result<()> {
    let message = json!({"messageType": "qr.refresh", "content": {"qrId": name}});
    client.tell("request", json!({"as": name, "message": message, "timeoutMs": timeout_ms}))
}

async fn answer(world: &World, client: &Client, request: &Value) -> Result<()> {
    let id = request["id"].as_str().context("a request without an id")?;
    let content = json!({"for": request["content"]["qrId"]});
    let answer =
        json!({"messageType": "qr.refreshed", "toUniqueId": client.name, "correlationId": id, "content": content});
    world.service.push(&answer).await
}

pub(super) async fn answers(world: &World) -> Result<()> {
    let client = world.connected(json!({})).await?;
    let mut requests = world.service.consume("qr-refresh", 10).await?;
    // Two at the same time, answered the other way round.
    request(&client, "a", 60_000)?;
    request(&client, "b", 60_000)?;
    let (first, second) = (next_json(&mut requests).await?, next_json(&mut requests).await?);
    answer(world, &client, &second).await?;
    answer(world, &client, &first).await?;
    for name in ["a", "b"] {
        let outcome = client.outcome(name).await?;
        ensure!(outcome["result"] == "answer" && outcome["message"]["content"]["for"] == name, "{outcome}");
    }
    request(&client, "never", 700)?;
    let outcome = client.outcome("never").await?;
    ensure!(outcome["result"] == "rejected" && outcome["code"] == "no_answer", "{outcome}");
    ensure!(outcome["mayHaveArrived"] == true, "{outcome}");
    next_json(&mut requests).await?;
    // The answer comes while there is no connection.
    request(&client, "c", 60_000)?;
    let asked = next_json(&mut requests).await?;
    world.proxy.cut();
    answer(world, &client, &asked).await?;
    let outcome = client.outcome("c").await?;
    ensure!(outcome["result"] == "answer" && outcome["message"]["content"]["for"] == "c", "{outcome}");
    // Refused for good: no answer will come.
    client.tell(
        "request",
        json!({"as": "bad", "message": {"messageType": "qr.refresh", "content": {}}, "timeoutMs": 60_000}),
    )?;
    let outcome = client.outcome("bad").await?;
    ensure!(outcome["result"] == "rejected" && outcome["code"] == "schema_mismatch", "{outcome}");
    Ok(())
}
