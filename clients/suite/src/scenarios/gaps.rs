use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tokio::time::sleep;
use wirepost_testing::ws_proxy::{Fate, From, What};

use crate::client::Client;
use crate::world::World;

/// Waits for so many gaps, and checks that no more come.
async fn gaps(client: &Client, count: usize) -> Result<()> {
    client.until_so(&format!("reports gap {count}"), |client| client.gaps() >= count).await?;
    sleep(Duration::from_millis(400)).await;
    ensure!(client.gaps() == count, "{} gaps instead of {count}:\n{}", client.gaps(), client.tail());
    Ok(())
}

pub(super) async fn unknown_cursor(world: &World) -> Result<()> {
    let client = world.connected(json!({"cursor": "AQnobodyKnowsThis"})).await?;
    gaps(&client, 1).await?;
    world.push(&client, 0..3).await?;
    client.all_in_order(2).await?;
    // The position of the welcome counts now.
    world.proxy.cut();
    client.state("open", 2).await?;
    world.push(&client, 3..5).await?;
    client.all_in_order(4).await?;
    gaps(&client, 1).await?;
    // On an open connection.
    let cursor = client.cursor().await?.context("no cursor")?;
    world.proxy.say(json!({"op": "gap", "business": "suite", "reason": "incarnation"}));
    world.proxy.say(json!({"op": "position", "cursor": cursor}));
    gaps(&client, 2).await
}

pub(super) async fn later(world: &World) -> Result<()> {
    let client = world.connected(json!({})).await?;
    world.push(&client, [0]).await?;
    client.all_in_order(0).await?;
    // The broker is away when it returns: the edge can't know its position.
    world.proxy.judge(|from, connection, frame| {
        if connection == 0 || from != From::Edge || frame["op"] != "welcome" {
            return Fate::Pass;
        }
        let mut unsure = frame.clone();
        if let Some(fields) = unsure.as_object_mut() {
            fields.remove("cursor");
            fields.remove("resumed");
        }
        Fate::Replaced(unsure)
    });
    world.proxy.cut();
    client.state("open", 2).await?;
    let asked = |n: usize| {
        let log = world.proxy.log();
        log.into_iter().find_map(|record| match record.what {
            What::Asked { cursor, .. } if record.connection == n => Some(cursor.map_or(Value::Null, Value::from)),
            _ => None,
        })
    };
    let cursor = asked(1).context("no second connection")?;
    world.proxy.say(json!({"op": "position", "cursor": cursor}));
    sleep(Duration::from_millis(400)).await;
    ensure!(client.gaps() == 0, "a position alone says that nothing is missing");
    // Again, and now something may be missing. Its cursor survived a welcome without one.
    world.proxy.cut();
    client.state("open", 3).await?;
    ensure!(asked(2) == Some(cursor.clone()), "it lost its cursor: {:?} instead of {cursor}", asked(2));
    world.proxy.say(json!({"op": "gap", "business": "suite", "reason": "retention"}));
    world.proxy.say(json!({"op": "position", "cursor": cursor}));
    gaps(&client, 1).await
}

pub(super) async fn transient(world: &World) -> Result<()> {
    let client = world.connected(json!({})).await?;
    world.push(&client, [0]).await?;
    client.all_in_order(0).await?;
    ensure!(client.gaps() == 0, "a fresh start is no gap");
    // Without a cursor nothing tells what was pushed meanwhile.
    world.proxy.cut();
    client.state("open", 2).await?;
    gaps(&client, 1).await?;
    world.push(&client, [1]).await?;
    client.all_in_order(1).await?;
    // The same from an edge whose broker is away: it does not know more, and nothing follows.
    world.proxy.judge(|from, connection, frame| {
        let mut unsure = frame.clone();
        let resumed = unsure.as_object_mut().and_then(|fields| fields.remove("resumed"));
        if connection == 2 && from == From::Edge && resumed.is_some() { Fate::Replaced(unsure) } else { Fate::Pass }
    });
    world.proxy.cut();
    client.state("open", 3).await?;
    gaps(&client, 2).await
}
