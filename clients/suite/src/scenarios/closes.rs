use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tokio::time::{Instant, sleep};
use wirepost_testing::broker::{PATIENCE, eventually};
use wirepost_testing::ws_proxy::{Fate, From, Record, What};

use super::reconnect::SLACK;
use crate::client::Client;
use crate::world::{BUSINESS, ORIGIN, World, sent};

fn asked(log: &[Record], connection: usize) -> Option<(Instant, String, Option<String>)> {
    log.iter().find_map(|record| match &record.what {
        What::Asked { token, cursor, .. } if record.connection == connection => {
            Some((record.at, token.clone(), cursor.clone()))
        }
        _ => None,
    })
}

pub(super) async fn fast(world: &World) -> Result<()> {
    let client = world.connected(json!({})).await?;
    world.push(&client, [0]).await?;
    client.all_in_order(0).await?;
    // 1000 and 1001 too: what the client did not ask for is no goodbye.
    for (n, code) in [1012, 1013, 1000, 1001, 1002, 1011, 4008, 4999].into_iter().enumerate() {
        world.proxy.close(code);
        client.state("open", n + 2).await.with_context(|| format!("after {code}"))?;
        ensure!(world.backend.calls().len() == 1, "it asked for a new token after {code}");
        let (_, _, cursor) = asked(&world.proxy.log(), n + 1).context("no upgrade")?;
        ensure!(cursor.is_some(), "it lost its cursor after {code}");
    }
    Ok(())
}

pub(super) async fn too_large(world: &World) -> Result<()> {
    let client = world.connected(json!({})).await?;
    // Something before the edge takes less than the edge itself.
    world.proxy.judge(|from, connection, frame| {
        let large = frame["content"]["text"].is_string();
        if large || connection == 0 && from == From::Edge && frame["op"] == "ack" { Fate::Lost } else { Fate::Pass }
    });
    client.send_number(0)?;
    let text = "x".repeat(100_000);
    client.send("large", &json!({"messageType": "order.placed", "content": {"text": text}}))?;
    client.send_number(1)?;
    world.proxy.until("three messages", |log| (log.iter().filter_map(sent).count() == 3).then_some(())).await?;
    world.proxy.close(1009);
    let outcome = client.outcome("large").await?;
    ensure!(outcome["result"] == "rejected" && outcome["code"] == "too_large", "{outcome}");
    client.acked(0..2).await?;
    let large = |record: &Record| sent(record).is_some_and(|frame| frame["content"]["text"].is_string());
    let times = world.proxy.log().iter().filter(|record| large(record)).count();
    ensure!(times == 1, "it sent what ended its connection {times} times");
    Ok(())
}

pub(super) async fn session_over(world: &World) -> Result<()> {
    let client = world.connected(json!({})).await?;
    world.push(&client, 0..3).await?;
    client.all_in_order(2).await?;
    world.proxy.close(3000);
    world.push(&client, 3..6).await?;
    client.state("open", 2).await?;
    ensure!(world.backend.calls().len() == 2, "{} token calls after 3000", world.backend.calls().len());
    client.all_in_order(5).await
}

pub(super) async fn slow(world: &World) -> Result<()> {
    let wait = Duration::from_secs(2);
    let timing = json!({"slowFirst": wait.as_millis() as u64, "slowMax": wait.as_millis() as u64});
    let client = world.connected(json!({"timing": timing})).await?;
    world.push(&client, [0]).await?;
    client.all_in_order(0).await?;
    // The business goes: its open connections are closed with 4010.
    let file = world.setup.config_dir().join(format!("{BUSINESS}.json"));
    std::fs::remove_file(&file)?;
    let removed = returned_slowly(world, &client, 4010, wait, 1).await?;
    world.setup.reconfigure(BUSINESS, |_| {})?;
    client.state("open", 2).await?;
    ensure!(world.backend.calls().len() == 1, "it forgot its resume token after 4010");
    // A page of a foreign origin.
    world.proxy.origin("http://evil.example");
    let before = world.attempts();
    ensure!(before > removed, "it did not return");
    world.proxy.cut();
    returned_slowly(world, &client, 3003, wait, before).await?;
    world.proxy.origin(ORIGIN);
    client.state("open", 3).await?;
    world.push(&client, [1]).await?;
    client.all_in_order(1).await
}

/// Checks that the attempt after the first close with this code is not before half of the wait; the number of attempts then.
async fn returned_slowly(world: &World, client: &Client, code: u16, wait: Duration, seen: usize) -> Result<usize> {
    let closed = world
        .proxy
        .until(&format!("a close with {code}"), |log| {
            log.iter()
                .find(|record| record.what == What::Close(From::Edge, code))
                .map(|record| (record.at, record.connection))
        })
        .await?;
    let back = world
        .proxy
        .until("its return", |log| {
            log.iter()
                .find(|record| {
                    record.what == What::Attempt && record.connection > closed.1 && record.connection >= seen
                })
                .map(|record| (record.at, record.connection + 1))
        })
        .await?;
    let waited = back.0 - closed.0;
    ensure!(waited + Duration::from_millis(50) >= wait / 2, "it returned {waited:?} after {code}");
    ensure!(waited <= wait + SLACK, "it returned {waited:?} after {code}");
    ensure!(client.last_state() != "stopped", "it stopped for good after {code}");
    Ok(back.1)
}

pub(super) async fn replaced(world: &World) -> Result<()> {
    let first = world.connected(json!({})).await?;
    let second = world.connected(json!({"uniqueId": first.name})).await?;
    first.state("stopped", 1).await?;
    let attempts = world.attempts();
    sleep(Duration::from_secs(2)).await;
    ensure!(world.attempts() == attempts, "it returned on its own after 4009");
    ensure!(second.last_state() == "open", "the new one lost its connection");
    world.push(&first, [0]).await?;
    second.all_in_order(0).await?;
    // Its user wants it: nothing was missed.
    first.tell("reconnect", json!({}))?;
    first.state("open", 2).await?;
    first.all_in_order(0).await?;
    second.state("stopped", 1).await
}

pub(super) async fn too_slow(world: &World) -> Result<()> {
    const MESSAGES: u64 = 1500;
    let client = world.connected(json!({})).await?;
    world.proxy.jam(true);
    let filler = "x".repeat(4000);
    let pushes = (0..MESSAGES).map(|n| {
        json!({"messageType": "payment.completed", "toUniqueId": client.name, "content": {"n": n, "filler": filler}})
    });
    world.service.push_all(pushes).await?;
    eventually("the edge gave up a slow client", PATIENCE, || async {
        Ok(world.edge.count("wirepost_edge_closes_total{kind=\"too_slow\"}").await? > 0)
    })
    .await?;
    world.proxy.jam(false);
    client.all_in_order(MESSAGES - 1).await?;
    ensure!(client.gaps() == 0, "it reported a gap");
    Ok(())
}
