use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;
use tokio::time::sleep;
use wirepost_testing::ws_proxy::What;

use crate::world::World;

pub(super) async fn reconnects(world: &World) -> Result<()> {
    const WARM_UP: usize = 100;
    const ROUNDS: usize = 1000;
    /// For caches that are not full after the warm-up. A socket with its handlers and timers is 5 KB and more.
    const GROWTH: f64 = 2_000_000.0;
    let client = world.connected(json!({"timing": {"fastFirst": 1, "fastMax": 1, "stableAfter": 0}})).await?;
    let mut before = 0.0;
    for round in 0..WARM_UP + ROUNDS {
        if round == WARM_UP {
            before = world.driver.heap().await?;
        }
        client.send_number(round as u64)?;
        world.proxy.cut();
        client.state("open", round + 2).await?;
    }
    client.acked(0..(WARM_UP + ROUNDS) as u64).await?;
    sleep(Duration::from_millis(500)).await;
    let growth = world.driver.heap().await? - before;
    ensure!(growth <= GROWTH, "{ROUNDS} reconnects left {growth} bytes behind");
    let log = world.proxy.log();
    let count = |what: &What| log.iter().filter(|record| record.what == *what).count();
    let open = count(&What::Attempt) - count(&What::Over);
    ensure!(open == 1, "{open} connections are open");
    ensure!(world.backend.calls().len() == 1, "{} token calls", world.backend.calls().len());
    world.push(&client, [0]).await?;
    client.all_in_order(0).await
}
