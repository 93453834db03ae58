//! One change of one business among all, one after the other.

use anyhow::{Context, Result};
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};
use tokio::time::{Duration, Instant, sleep};
use wirepost_core::business::WsBusiness;
use wirepost_testing::{operator::Operator, usage};

use crate::{fixture::Fixture, requests::Counts};

const CHANGES: usize = 50;
/// Longer than the operator trusts a snapshot of the broker, so that no measurement profits from the one before.
const PAUSE: Duration = Duration::from_millis(1100);

/// Nothing of it concerns the broker.
pub(crate) async fn of_a_limit(fixture: &Fixture, operator: &Operator) -> Result<()> {
    run(fixture, operator, "change of a limit", |i| json!({"spec": {"limits": {"messagesPerSecond": 100 + i}}})).await
}

/// A queue and a binding more.
pub(crate) async fn of_a_route(fixture: &Fixture, operator: &Operator) -> Result<()> {
    let routes = |i: usize| {
        json!({"spec": {"routes": [
            {"messageType": "order.#", "sendType": "ClientToServer", "queue": {"name": "orders"}},
            {"messageType": "extra", "sendType": "ClientToServer", "queue": {"name": format!("extra-{i}")}},
            {"messageType": "payment.completed", "sendType": "ServerToClient", "to": ["h5", "app"]},
        ]}})
    };
    run(fixture, operator, "change of routes", routes).await
}

async fn run(fixture: &Fixture, operator: &Operator, what: &str, patch: impl Fn(usize) -> Value) -> Result<()> {
    let cluster = &fixture.world.cluster;
    let (api, own) = (Counts::of_api_server(cluster).await?, Counts::of_operator(operator).await?);
    let used = usage::of(operator.pid)?;
    let (mut provisioned, mut programmed) = (Vec::new(), Vec::new());
    for i in 0..CHANGES {
        sleep(PAUSE).await;
        // Far from each other, in whatever order they are kept.
        let (namespace, name) = fixture.place(i * 389 % fixture.businesses);
        let businesses: Api<WsBusiness> = cluster.api(namespace);
        let begun = Instant::now();
        let changed = businesses.patch(&name, &PatchParams::default(), &Patch::Merge(patch(i))).await?;
        let generation = changed.metadata.generation.context("no generation")?;
        let observer = &fixture.observer;
        let reached = observer.wait("provisioned", |all| {
            all.get(&name).is_some_and(|state| state.provisioned.is_some_and(|of| of >= generation))
        });
        provisioned.push(reached.await? - begun);
        if !fixture.edges.is_empty() {
            let reached = observer.wait("programmed", |all| {
                all.get(&name).is_some_and(|state| state.ready.is_some_and(|of| of >= generation))
            });
            programmed.push(reached.await? - begun);
        }
    }
    let cpu = usage::each(used, usage::of(operator.pid)?, CHANGES);
    let (api, own) =
        (Counts::of_api_server(cluster).await?.since(&api), Counts::of_operator(operator).await?.since(&own));
    println!(
        "{what}, {CHANGES} of them, one every {PAUSE:?}: to Provisioned {}; to all of {} edges programmed {}; {:.0} ms of CPU each, with what it idles at between them",
        spread(&mut provisioned),
        fixture.edges.len(),
        spread(&mut programmed),
        cpu / 1000.0,
    );
    println!("  API server, for each: {}", api.each(CHANGES as f64));
    println!("  operator, for each: {}", own.each(CHANGES as f64));
    Ok(())
}

fn spread(times: &mut [Duration]) -> String {
    times.sort();
    if times.is_empty() {
        return "not measured".to_owned();
    }
    format!("p50 {:.0?} p99 {:.0?}", usage::percentile(times, 0.5), usage::percentile(times, 0.99))
}
