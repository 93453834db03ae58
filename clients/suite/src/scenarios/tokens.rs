use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;
use tokio::time::{Instant, timeout};
use wirepost_testing::broker::{PATIENCE, eventually};
use wirepost_testing::ws_proxy::{From, What};

use super::reconnect::SLACK;
use crate::backend::Answer;
use crate::world::World;

/// Waits for so many token calls.
async fn calls(world: &World, count: usize) -> Result<Vec<Instant>> {
    eventually(&format!("{count} token calls"), PATIENCE, || async { Ok(world.backend.calls().len() >= count) })
        .await?;
    Ok(world.backend.calls())
}

pub(super) async fn expired(world: &World) -> Result<()> {
    world.backend.plan([Answer::Expired, Answer::Expired]);
    let client = world.client(json!({}))?;
    client.open().await?;
    ensure!(world.backend.calls().len() == 3, "{} token calls for two expired tickets", world.backend.calls().len());
    let over = |record: &wirepost_testing::ws_proxy::Record| record.what == What::Close(From::Edge, 3000);
    ensure!(world.proxy.log().iter().filter(|record| over(record)).count() == 2, "the edge accepted an expired ticket");
    Ok(())
}

pub(super) async fn failing(world: &World) -> Result<()> {
    let slow = Duration::from_secs(2);
    let within = Duration::from_secs(1);
    world.backend.plan([
        Answer::Status(403, None),
        Answer::Status(401, None),
        Answer::Status(500, None),
        Answer::Page,
        Answer::Never,
    ]);
    // Slow waits double: a third one would be longer than the slack.
    let timing =
        json!({"slowFirst": slow.as_millis() as u64, "slowMax": 60_000, "connectWithin": within.as_millis() as u64});
    let client = world.client(json!({"timing": timing}))?;
    let at = calls(world, 6).await?;
    for (n, status, longest) in [(1, 403, slow), (2, 401, 2 * slow)] {
        let waited = at[n] - at[n - 1];
        ensure!(waited + Duration::from_millis(50) >= longest / 2, "it asked again {waited:?} after {status}");
        ensure!(waited <= longest + SLACK, "it asked again {waited:?} after {status}");
    }
    ensure!(at[3] - at[2] <= SLACK, "it asked again {:?} after 500", at[3] - at[2]);
    ensure!(at[4] - at[3] <= SLACK, "it asked again {:?} after a page that is no answer", at[4] - at[3]);
    ensure!(at[5] - at[4] <= within + SLACK, "a call that hangs held it for {:?}", at[5] - at[4]);
    client.open().await
}

pub(super) async fn retry_after(world: &World) -> Result<()> {
    world.backend.plan([Answer::Status(503, Some(2))]);
    let client = world.client(json!({}))?;
    let at = calls(world, 2).await?;
    let waited = at[1] - at[0];
    ensure!(waited >= Duration::from_millis(1950), "it asked again {waited:?} after `Retry-After: 2`");
    ensure!(waited <= Duration::from_secs(2) + SLACK, "it asked again {waited:?} after `Retry-After: 2`");
    timeout(PATIENCE, client.open()).await?
}
