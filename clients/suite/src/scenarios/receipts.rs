use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tokio::time::sleep;
use wirepost_testing::service::next_json;
use wirepost_testing::ws_proxy::{Fate, From, Record, What};

use crate::client::Client;
use crate::world::World;

/// As [`crate::world::push`], on the route with receipts.
async fn push(world: &World, to: &Client, n: u64) -> Result<()> {
    let id = id(to, n);
    let message = json!({"id": id, "messageType": "receipt.wanted", "toUniqueId": to.name, "content": {"n": n}});
    world.service.push(&message).await
}

fn id(client: &Client, n: u64) -> String {
    format!("{}-p{n}", client.name)
}

fn receive(client: &Client, n: u64) -> Result<()> {
    client.tell("received", json!({"ids": [id(client, n)]}))
}

/// Whether it is a receipt of this message.
fn gives(frame: &Value, id: &str) -> bool {
    frame["op"] == "received" && frame["ids"].as_array().is_some_and(|ids| ids.iter().any(|given| given == id))
}

/// Receipts of a message that the client has given.
fn given(log: &[Record], id: &str) -> usize {
    log.iter().filter(|record| matches!(&record.what, What::Frame(From::Client, frame) if gives(frame, id))).count()
}

pub(super) async fn lost(world: &World) -> Result<()> {
    let mut events = world.service.events("delivered").await?;
    let client = world.connected(json!({})).await?;
    push(world, &client, 0).await?;
    client.all_in_order(0).await?;
    receive(&client, 0)?;
    ensure!(next_json(&mut events).await?["ids"] == json!([id(&client, 0)]), "no receipt");

    // Lost on its way; so is the connection.
    world.proxy.judge(|from, connection, frame| {
        let lost = from == From::Client && connection == 0 && frame["op"] == "received";
        if lost { Fate::Lost } else { Fate::Pass }
    });
    for n in [1, 2] {
        push(world, &client, n).await?;
    }
    client.all_in_order(2).await?;
    receive(&client, 1)?;
    let first = id(&client, 1);
    world.proxy.until("the receipt", |log| (given(log, &first) > 0).then_some(())).await?;
    world.proxy.cut();
    client.state("open", 2).await?;
    let event = next_json(&mut events).await.context("the receipt was not given again")?;
    ensure!(event["ids"] == json!([first]), "{event}");
    push(world, &client, 3).await?;
    client.all_in_order(3).await?;
    ensure!(client.gaps() == 0, "it reported a gap");

    // Nothing is open any more: the next connection continues where this one was.
    world.proxy.cut();
    client.state("open", 3).await?;
    push(world, &client, 4).await?;
    client.all_in_order(4).await?;
    let again: Vec<Value> = world
        .proxy
        .log()
        .into_iter()
        .filter_map(|record| match record.what {
            What::Frame(From::Edge, frame) if record.connection == 2 && frame["messageType"] == "receipt.wanted" => {
                Some(frame["id"].clone())
            }
            _ => None,
        })
        .collect();
    ensure!(again == [json!(id(&client, 4))], "without an open receipt there came again: {again:?}");
    Ok(())
}

pub(super) async fn later(world: &World) -> Result<()> {
    let client = world.connected(json!({})).await?;
    let mut refused = false;
    world.proxy.judge(move |from, _, frame| {
        if from == From::Edge && frame["op"] == "receipt" && !std::mem::replace(&mut refused, true) {
            let error = json!({"op": "error", "about": "received", "reason": "as told", "ids": frame["ids"], "retryable": true});
            return Fate::Replaced(error);
        }
        Fate::Pass
    });
    push(world, &client, 0).await?;
    client.all_in_order(0).await?;
    receive(&client, 0)?;
    let wanted = id(&client, 0);
    world.proxy.until("it is given again", |log| (given(log, &wanted) >= 2).then_some(())).await?;
    // The edge has had it, so it refuses the second one for good.
    sleep(Duration::from_millis(800)).await;
    let times = given(&world.proxy.log(), &wanted);
    ensure!(times == 2, "{times} receipts, though the edge said no for good");
    ensure!(client.last_state() == "open" && client.numbers() == [0], "it was disturbed");
    Ok(())
}
