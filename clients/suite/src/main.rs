//! Judges client libraries, see README.md: runs every scenario for every driver, many at the same time.

mod backend;
mod client;
mod driver;
mod scenarios;
mod world;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use futures_util::future::join_all;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};

use crate::driver::Driver;
use crate::scenarios::{SCENARIOS, Scenario};
use crate::world::World;

/// A scenario that takes longer has failed.
const LONGEST: Duration = Duration::from_mins(6);
/// Failed scenarios that are repeated at most.
const MAX_REPEATED: usize = 5;

/// Judges client libraries by their drivers. Needs a RabbitMQ: `make client-suite DRIVER="…"` starts one.
#[derive(Parser)]
struct Args {
    /// A driver: a shell command, or NAME=COMMAND. May be repeated.
    #[arg(long = "driver", required_unless_present = "list")]
    drivers: Vec<String>,
    /// Scenarios that run at the same time.
    #[arg(long, default_value_t = 8)]
    slots: usize,
    /// Only prints the scenarios, and what a driver must support for them.
    #[arg(long)]
    list: bool,
    /// Only scenarios with one of these words in their names.
    only: Vec<String>,
}

#[tokio::main]
async fn main() -> Result<ExitCode> {
    let Args { drivers, slots, list, only } = Args::parse();
    let chosen: Vec<&'static Scenario> = SCENARIOS
        .iter()
        .filter(|scenario| only.is_empty() || only.iter().any(|word| scenario.name.contains(word.as_str())))
        .collect();
    anyhow::ensure!(!chosen.is_empty(), "no scenario has one of {only:?} in its name");
    if list {
        for scenario in chosen {
            println!("{}  {:?}", scenario.name, scenario.needs);
        }
        return Ok(ExitCode::SUCCESS);
    }
    let begin = Instant::now();
    let slots = Arc::new(Semaphore::new(slots.max(1)));
    let runs = drivers.iter().map(|driver| {
        let (name, command) = match driver.split_once('=') {
            Some((name, command)) if name.chars().all(|c| c.is_alphanumeric() || "-_/".contains(c)) => (name, command),
            _ => ("driver", driver.as_str()),
        };
        judge(name.to_owned(), command.to_owned(), chosen.clone(), Arc::clone(&slots))
    });
    let mut failed = 0;
    for outcome in join_all(runs).await {
        failed += outcome?;
    }
    println!("{} in {:.0} s", if failed == 0 { "all passed" } else { "FAILED" }, begin.elapsed().as_secs_f64());
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs the scenarios for one driver; how many failed, also when repeated alone.
async fn judge(
    name: String,
    command: String,
    scenarios: Vec<&'static Scenario>,
    slots: Arc<Semaphore>,
) -> Result<usize> {
    let driver = Driver::start(&command).await.with_context(|| name.clone())?;
    let lacking = |scenario: &Scenario| driver.lacks(scenario.needs);
    let (able, unable): (Vec<_>, Vec<_>) = scenarios.into_iter().partition(|scenario| lacking(scenario).is_empty());
    for scenario in unable {
        println!("LEFT OUT: {name}: {}: the driver lacks {:?}", scenario.name, lacking(scenario));
    }
    let results = join_all(able.iter().map(|scenario| {
        let (slots, driver, command, name) = (Arc::clone(&slots), Arc::clone(&driver), command.clone(), name.clone());
        async move {
            let _slot = slots.acquire_owned().await?;
            let result = play(scenario, &driver, &command, &name).await;
            anyhow::Ok((*scenario, result))
        }
    }))
    .await;
    let mut failed = Vec::new();
    for result in results {
        let (scenario, passed) = result?;
        if !passed {
            failed.push(scenario);
        }
    }
    // A machine that is busy can make a client late: what failed in company is repeated alone.
    if (1..=MAX_REPEATED).contains(&failed.len()) {
        let all = u32::try_from(slots.available_permits()).unwrap_or(u32::MAX).max(1);
        let mut still = Vec::new();
        for scenario in failed {
            let _slots = Arc::clone(&slots).acquire_many_owned(all).await?;
            if play(scenario, &driver, &command, &name).await {
                println!("FLAKY: {name}: {} failed among others and passed alone", scenario.name);
            } else {
                still.push(scenario);
            }
        }
        failed = still;
    }
    let (called, log) = (driver.name().to_owned(), driver.log());
    let ended = driver.end().await;
    if let Err(error) = &ended {
        println!("FAILED {name}: {error:#}");
    }
    for scenario in &failed {
        println!("FAILED: {name}: {}", scenario.name);
    }
    if !failed.is_empty() && !log.is_empty() {
        println!("---- the end of the log of {name}\n{log}----");
    }
    println!("{name} ({called}): {} passed, {} failed", able.len() - failed.len(), failed.len());
    Ok(failed.len() + usize::from(ended.is_err()))
}

/// Plays one scenario, and says how it went.
async fn play(scenario: &'static Scenario, driver: &Arc<Driver>, command: &str, name: &str) -> bool {
    let begin = Instant::now();
    let result = timeout(LONGEST, play_on(scenario, driver, command)).await;
    let result = result.unwrap_or_else(|_| Err(anyhow::anyhow!("it takes longer than {LONGEST:?}")));
    let took = begin.elapsed().as_secs_f64();
    match &result {
        Ok(()) => println!("ok     {took:6.1} s  {name}: {}", scenario.name),
        Err(error) => println!("FAILED {took:6.1} s  {name}: {}\n{error:#}", scenario.name),
    }
    result.is_ok()
}

async fn play_on(scenario: &'static Scenario, driver: &Arc<Driver>, command: &str) -> Result<()> {
    let own = if scenario.alone { Some(Driver::start(command).await?) } else { None };
    let world = World::new(own.as_ref().unwrap_or(driver), scenario.limits, scenario.more, scenario.others).await?;
    let result = (scenario.run)(&world).await;
    let result = result.with_context(|| format!("on the wire:\n{}\nwhat went wrong", world.proxy.tail()));
    if result.is_ok() {
        world.edge.be_quiet();
    }
    drop(world);
    if let Some(own) = own {
        let log = own.log();
        own.end().await.with_context(|| format!("its own driver; its log:\n{log}"))?;
    }
    result
}
