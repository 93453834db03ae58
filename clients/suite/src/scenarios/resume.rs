use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tokio::time::sleep;
use wirepost_testing::ws_proxy::{From, What};

use crate::world::World;

pub(super) async fn cuts(world: &World) -> Result<()> {
    const CUTS: usize = 6;
    const EACH: u64 = 40;
    let client = world.connected(json!({})).await?;
    for cut in 0..CUTS {
        let from = cut as u64 * EACH;
        world.push(&client, from..from + EACH / 2).await?;
        // Somewhere in the middle of what is on its way.
        sleep(Duration::from_millis(rand::random_range(0..30))).await;
        world.proxy.cut();
        world.push(&client, from + EACH / 2..from + EACH).await?;
        client.state("open", cut + 2).await?;
    }
    client.all_in_order(CUTS as u64 * EACH - 1).await?;
    ensure!(client.gaps() == 0, "nothing was missing, and it reported {} gaps", client.gaps());
    ensure!(world.backend.calls().len() == 1, "{} token calls within one session", world.backend.calls().len());
    let mut resume_token = None;
    for record in world.proxy.log() {
        match record.what {
            What::Asked { token, cursor, .. } if record.connection > 0 => {
                ensure!(cursor.is_some(), "connection {} without a cursor", record.connection);
                ensure!(
                    Some(&token) == resume_token.as_ref(),
                    "connection {} without its resume token",
                    record.connection
                );
            }
            What::Frame(From::Edge, frame) if frame["op"] == "welcome" => {
                resume_token = Some(frame["resumeToken"].as_str().context("no resumeToken")?.to_owned());
            }
            _ => {}
        }
    }
    Ok(())
}

pub(super) async fn position(world: &World) -> Result<()> {
    let client = world.connected(json!({})).await?;
    world.push(&client, [0]).await?;
    client.all_in_order(0).await?;
    let earlier = client.cursor().await?.context("no cursor after a message")?;
    world.push(&client, [1]).await?;
    client.all_in_order(1).await?;
    world.proxy.say(json!({"op": "position", "cursor": earlier, "resumeToken": "AQlater"}));
    // Frames arrive in order: it has the position when it has this one.
    world.push(&client, [2]).await?;
    client.all_in_order(2).await?;
    world.proxy.say(json!({"op": "position", "cursor": earlier}));
    sleep(Duration::from_millis(300)).await;
    world.proxy.cut();
    let asked = world.proxy.until("its return", |log| {
        log.iter().find_map(|record| match &record.what {
            What::Asked { token, cursor, .. } if record.connection == 1 => Some((token.clone(), cursor.clone())),
            _ => None,
        })
    });
    let (token, cursor) = asked.await?;
    ensure!(token == "AQlater", "it came with {token}, not with the resume token of the position");
    ensure!(cursor.as_ref() == Some(&earlier), "it came with {cursor:?}, not with {earlier} of the position");
    // No edge knows that token: a new session, at the same place. What comes again is dropped.
    client.state("open", 2).await?;
    world.push(&client, [3]).await?;
    client.all_in_order(3).await
}

pub(super) async fn stored(world: &World) -> Result<()> {
    let first = world.connected(json!({})).await?;
    world.push(&first, 0..3).await?;
    first.all_in_order(2).await?;
    first.close().await?;
    let cursor = first.cursor().await?.context("the store is empty after three messages")?;
    world.push(&first, 3..6).await?;
    let second = world.connected(json!({"uniqueId": first.name, "cursor": cursor})).await?;
    second.until_so("has three messages", |second| second.numbers().len() >= 3).await?;
    sleep(Duration::from_millis(200)).await;
    ensure!(second.numbers() == [3, 4, 5], "{:?}", second.numbers());
    ensure!(second.gaps() == 0, "it reported a gap");
    Ok(())
}
