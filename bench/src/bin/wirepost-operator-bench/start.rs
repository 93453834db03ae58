//! From nothing to everything, and back.

use std::collections::HashMap;

use anyhow::{Context, Result, ensure};
use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::time::{Duration, Instant, sleep};
use wirepost_testing::{operator::Operator, usage};

use crate::{fixture::Fixture, observer::State, requests::Counts};

/// Resources that are deleted at the same time.
const DELETING: usize = 8;
const LOOK: Duration = Duration::from_millis(100);

/// The operator starts, the broker has nothing.
pub(crate) async fn on_an_empty_broker(fixture: &Fixture) -> Result<Operator> {
    let before = Counts::of_api_server(&fixture.world.cluster).await?;
    let begun = Instant::now();
    let operator = fixture.start_operator("cold").await?;
    let all = |is: fn(&State) -> bool| {
        move |states: &HashMap<_, State>| states.values().filter(|s| is(s)).count() == fixture.businesses
    };
    let some = |states: &HashMap<_, State>| states.values().any(|state| state.provisioned.is_some());
    let first = fixture.observer.wait("the first is provisioned", some).await? - begun;
    let provisioned =
        fixture.observer.wait("all are provisioned", all(|state| state.provisioned.is_some())).await? - begun;
    let mut text = format!("first Provisioned after {first:.1?}, all after {provisioned:.1?}");
    if !fixture.edges.is_empty() {
        let ready = fixture.observer.wait("all are ready", all(|state| state.ready.is_some())).await? - begun;
        text = format!("{text}, all Ready after {ready:.1?}");
    }
    let used = usage::of(operator.pid)?;
    println!(
        "cold start on an empty broker: {text}; {:.1} s of CPU, {} MiB",
        used.cpu.as_secs_f64(),
        used.memory >> 20
    );
    settled(fixture, &operator).await?;
    let each = fixture.businesses as f64;
    println!(
        "  API server, for each business: {}",
        Counts::of_api_server(&fixture.world.cluster).await?.since(&before).each(each)
    );
    println!("  operator, for each business: {}", Counts::of_operator(&operator).await?.each(each));
    Ok(operator)
}

/// Another operator takes over, and everything is as it should be.
pub(crate) async fn with_everything_there(fixture: &Fixture, former: Operator) -> Result<Operator> {
    former.sigterm()?;
    ensure!(former.exited(Duration::from_secs(30)).await?.success());
    let before = Counts::of_api_server(&fixture.world.cluster).await?;
    let begun = Instant::now();
    let operator = fixture.start_operator("again").await?;
    let looked = loop {
        let counts = Counts::of_operator(&operator).await?;
        if counts.sum("reconciles_total") >= fixture.businesses as f64 && is_calm(&operator).await? {
            break begun.elapsed();
        }
        sleep(LOOK).await;
    };
    let used = usage::of(operator.pid)?;
    println!(
        "start with everything there: every business looked at after {looked:.1?}; {:.1} s of CPU, {} MiB",
        used.cpu.as_secs_f64(),
        used.memory >> 20
    );
    println!("  API server: {}", Counts::of_api_server(&fixture.world.cluster).await?.since(&before));
    println!("  operator: {}", Counts::of_operator(&operator).await?);
    Ok(operator)
}

/// The broker loses everything that it has of ours.
pub(crate) async fn on_a_broker_rebuilt_empty(fixture: &Fixture, operator: &Operator) -> Result<()> {
    let observer = &fixture.observer;
    let before = Counts::of_operator(operator).await?;
    // Returns when it serves again.
    fixture.broker.wipe().await?;
    let begun = Instant::now();
    let some = |states: &HashMap<_, State>| states.values().any(|state| state.provisioned.is_none());
    observer.wait("it is noticed", some).await?;
    let all = |states: &HashMap<_, State>| states.values().all(|state| state.provisioned.is_some());
    let repaired = observer.wait("all is there again", all).await? - begun;
    settled(fixture, operator).await?;
    println!("broker rebuilt empty: all Provisioned again {repaired:.1?} after it serves");
    let each = fixture.businesses as f64;
    println!("  operator, for each business: {}", Counts::of_operator(operator).await?.since(&before).each(each));
    Ok(())
}

/// Every business is deleted.
pub(crate) async fn removal(fixture: &Fixture, operator: &Operator) -> Result<()> {
    let begun = Instant::now();
    stream::iter(0..fixture.businesses)
        .map(|i| async move {
            let (namespace, name) = fixture.place(i);
            fixture.world.cluster.delete(namespace, &name).await
        })
        .buffer_unordered(DELETING)
        .try_collect::<()>()
        .await?;
    let gone = fixture.observer.wait("all are gone", HashMap::is_empty).await? - begun;
    let objects = wirepost_topology::Actual::read(&fixture.world.setup.management()?).await?;
    let left = objects.queues.len() + objects.exchanges.iter().filter(|e| e.name.starts_with("wirepost.")).count();
    println!("removal of all: {gone:.1?}, {left} objects left on the broker");
    ensure!(operator.running());
    Ok(())
}

/// Nothing runs and nothing waits.
pub(crate) async fn is_calm(operator: &Operator) -> Result<bool> {
    Ok(operator.metric("wirepost_operator_reconciling").await? == 0.0
        && operator.metric("wirepost_operator_broker_queue").await? == 0.0)
}

/// Waits until nothing is written any longer.
async fn settled(fixture: &Fixture, operator: &Operator) -> Result<()> {
    let end = Instant::now() + Duration::from_mins(2);
    let mut before = operator.writes().await?;
    while Instant::now() < end {
        sleep(Duration::from_secs(3)).await;
        let now = operator.writes().await?;
        if now.total_cmp(&before).is_eq() && is_calm(operator).await? {
            return Ok(());
        }
        before = now;
    }
    Err(anyhow::anyhow!("{} businesses, and it goes on writing", fixture.businesses)).context("not settled")
}
