//! What an operator costs that has nothing to do.

use anyhow::{Context, Result};
use tokio::time::{Duration, sleep};
use wirepost_testing::{
    operator::Operator,
    usage::{self, Usage},
};

use crate::{fixture::Fixture, requests::Counts};

const TIME: Duration = Duration::from_secs(30);

pub(crate) async fn run(fixture: &Fixture, operator: &Operator) -> Result<()> {
    let cluster = &fixture.world.cluster;
    let (api, own) = (Counts::of_api_server(cluster).await?, Counts::of_operator(operator).await?);
    let server = api_server(&cluster.server()?)?;
    let before = (usage::of(operator.pid)?, usage::of(server)?);
    sleep(TIME).await;
    let after = (usage::of(operator.pid)?, usage::of(server)?);
    let (api, own) =
        (Counts::of_api_server(cluster).await?.since(&api), Counts::of_operator(operator).await?.since(&own));
    println!(
        "idle for {TIME:?}: {} MiB, {:.1} % of one CPU ({:.1} % in the API server), {} writes",
        after.0.memory >> 20,
        percent(before.0, after.0),
        percent(before.1, after.1),
        own.sum("api_writes_total") + own.sum("broker_changes_total") + 0.0,
    );
    println!("  API server: {api}");
    println!("  operator: {own}");
    Ok(())
}

fn percent(before: Usage, after: Usage) -> f64 {
    after.cpu.saturating_sub(before.cpu).as_secs_f64() / TIME.as_secs_f64() * 100.0
}

/// The process that listens at `host:port`, as its command line says.
fn api_server(address: &str) -> Result<u32> {
    let (_, port) = address.rsplit_once(':').context("no port")?;
    let is_it = |command: &[u8]| {
        let words: Vec<&[u8]> = command.split(|byte| *byte == 0).collect();
        words.windows(2).any(|pair| pair == [b"--secure-port", port.as_bytes()])
    };
    std::fs::read_dir("/proc")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .find(|pid: &u32| std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|command| is_it(&command)))
        .context("the API server is no process of this machine")
}
