use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;
use tokio::time::{Instant, sleep};
use wirepost_testing::ws_proxy::{Door, From, What};

use super::reconnect::SLACK;
use crate::world::{World, is_op};

pub(super) async fn dead(world: &World) -> Result<()> {
    let (silence, answer) = (Duration::from_secs(1), Duration::from_secs(1));
    let timing = json!({"pingAfter": silence.as_millis() as u64, "pongWithin": answer.as_millis() as u64});
    let client = world.connected(json!({"timing": timing})).await?;
    world.push(&client, [0]).await?;
    client.all_in_order(0).await?;
    client.send_number(0)?;
    client.acked(0..1).await?;
    let frozen = Instant::now();
    world.proxy.freeze();
    client.send_number(1)?;
    world.push(&client, [1]).await?;
    client.state("open", 2).await?;
    let back = world.proxy.log().into_iter().find(|record| record.connection == 1).map_or(frozen, |record| record.at);
    ensure!(back - frozen >= silence, "it gave the connection up after {:?}", back - frozen);
    ensure!(back - frozen <= silence + answer + SLACK, "it noticed a dead network after {:?}", back - frozen);
    client.all_in_order(1).await?;
    client.acked(1..2).await
}

pub(super) async fn by_default(world: &World) -> Result<()> {
    let (silence, first_wait) = (Duration::from_secs(35), Duration::from_millis(500));
    let client = world.connected(json!({"timing": null})).await?;
    let frozen = Instant::now();
    world.proxy.freeze();
    let back = world
        .proxy
        .until("its return", |log| log.iter().find(|record| record.connection == 1).map(|record| record.at))
        .await?;
    let after = back - frozen;
    // The last frame arrived a moment before the network froze.
    ensure!(after + Duration::from_secs(3) >= silence, "it gave the connection up after {after:?}");
    ensure!(after <= silence + first_wait + SLACK, "it noticed a dead network after {after:?}");
    client.state("open", 2).await
}

pub(super) async fn quiet(world: &World) -> Result<()> {
    let client = world.connected(json!({"timing": {"pingAfter": 600, "pongWithin": 3000}})).await?;
    sleep(Duration::from_secs(5)).await;
    ensure!(world.attempts() == 1, "it gave up a connection that is only quiet");
    let pings = world.proxy.log().iter().filter(|r| r.what == What::Ping || is_op(r, From::Client, "ping")).count();
    ensure!((2..=10).contains(&pings), "{pings} pings in 5 s of silence, with one due each 0.6 s");
    world.push(&client, [0]).await?;
    client.all_in_order(0).await
}

pub(super) async fn hints(world: &World) -> Result<()> {
    let timing = json!({"fastFirst": 3_000_000, "fastMax": 3_000_000, "hintPongWithin": 700});
    let client = world.connected(json!({"timing": timing})).await?;
    for (n, hint) in ["online", "visible", "resume"].into_iter().enumerate() {
        world.proxy.cut();
        client.state("waiting", n + 1).await?;
        client.tell("hint", json!({"hint": "offline"}))?;
        client.tell("hint", json!({"hint": "hidden"}))?;
        client.tell("hint", json!({"hint": hint}))?;
        client.state("open", n + 2).await?;
    }
    // A connection that looks alive, and is not.
    world.proxy.freeze();
    let told = Instant::now();
    client.tell("hint", json!({"hint": "online"}))?;
    client.state("waiting", 4).await?;
    ensure!(told.elapsed() <= Duration::from_millis(700) + SLACK, "it noticed after {:?}", told.elapsed());
    client.tell("hint", json!({"hint": "online"}))?;
    client.state("open", 5).await?;
    // One that is alive stays.
    client.tell("hint", json!({"hint": "online"}))?;
    world.proxy.door(Door::Refused);
    sleep(Duration::from_millis(1500)).await;
    ensure!(client.last_state() == "open", "`online` cost it a good connection");
    Ok(())
}
