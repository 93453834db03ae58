use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;
use tokio::time::sleep;
use wirepost_testing::ws_proxy::{From, What};

use crate::backend::Answer;
use crate::world::{World, is_op};

pub(super) async fn refresh(world: &World) -> Result<()> {
    let client = world.connected(json!({})).await?;
    sleep(Duration::from_secs(8)).await;
    ensure!(world.attempts() == 1, "its session ended, or it reconnected instead of a refresh");
    ensure!(world.proxy.log().iter().any(|record| is_op(record, From::Edge, "refreshed")), "no refresh");
    ensure!(world.backend.calls().len() >= 2, "a refresh needs a new ticket");
    world.push(&client, [0]).await?;
    client.all_in_order(0).await?;
    // The new resume token counts: the old one ended with its session.
    world.proxy.cut();
    client.state("open", 2).await?;
    let calls = world.backend.calls().len();
    ensure!(calls <= 4, "{calls} token calls for a session of 6 s in 8 s");
    let over = |record: &wirepost_testing::ws_proxy::Record| record.what == What::Close(From::Edge, 3000);
    ensure!(!world.proxy.log().iter().any(over), "it came back with the resume token of a session that had ended");
    Ok(())
}

pub(super) async fn no_refresh(world: &World) -> Result<()> {
    let client = world.connected(json!({})).await?;
    world.backend.plan([Answer::Status(500, None); 3]);
    world.push(&client, 0..3).await?;
    world
        .proxy
        .until("the end of the session, or a refresh", |log| {
            let over = |record: &wirepost_testing::ws_proxy::Record| record.what == What::Close(From::Edge, 3000);
            log.iter().any(|record| over(record) || is_op(record, From::Edge, "refreshed")).then_some(())
        })
        .await?;
    world.push(&client, 3..6).await?;
    client.all_in_order(5).await?;
    ensure!(client.last_state() != "stopped", "it stopped");
    Ok(())
}
