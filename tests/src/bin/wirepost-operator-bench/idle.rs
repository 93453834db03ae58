//! What an operator costs that has nothing to do.

use anyhow::Result;
use tokio::time::{Duration, sleep};
use wirepost_tests::{operator::Operator, usage};

use crate::{fixture::Fixture, requests::Counts};

const TIME: Duration = Duration::from_secs(30);

pub(crate) async fn run(fixture: &Fixture, operator: &Operator) -> Result<()> {
    let cluster = &fixture.world.cluster;
    let (api, own) = (Counts::of_api_server(cluster).await?, Counts::of_operator(operator).await?);
    let before = usage::of(operator.pid)?;
    sleep(TIME).await;
    let after = usage::of(operator.pid)?;
    let (api, own) =
        (Counts::of_api_server(cluster).await?.since(&api), Counts::of_operator(operator).await?.since(&own));
    println!(
        "idle for {TIME:?}: {} MiB, {:.1} % of one CPU, {} writes",
        after.memory >> 20,
        (after.cpu.saturating_sub(before.cpu)).as_secs_f64() / TIME.as_secs_f64() * 100.0,
        own.sum("api_writes_total") + own.sum("broker_changes_total"),
    );
    println!("  API server: {api}");
    println!("  operator: {own}");
    Ok(())
}
