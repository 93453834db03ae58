use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tokio::time::{Instant, sleep};
use wirepost_testing::ws_proxy::{Door, Fate, From, What};

use crate::world::{World, is_op};

/// What a busy machine may add to a wait.
pub(super) const SLACK: Duration = Duration::from_millis(2500);

pub(super) async fn first(world: &World) -> Result<()> {
    let client = world.client(json!({}))?;
    client.send_number(0)?;
    client.acked(0..1).await?;
    world.push(&client, 0..3).await?;
    client.all_in_order(2).await?;
    ensure!(client.gaps() == 0, "a fresh start is no gap");
    let log = world.proxy.log();
    let asked = log.iter().find_map(|record| match &record.what {
        What::Asked { protocol, cursor, by_path, .. } => Some((protocol.clone(), cursor.clone(), *by_path)),
        _ => None,
    });
    let (protocol, cursor, by_path) = asked.context("no upgrade")?;
    ensure!(!by_path, "its token stands in the URL, where proxies log it: offer it as a subprotocol");
    ensure!(protocol.as_deref() == Some("wirepost.v1"), "subprotocol: {protocol:?}");
    ensure!(cursor.is_none(), "a cursor from nowhere: {cursor:?}");
    let welcome = log.iter().position(|record| is_op(record, From::Edge, "welcome"));
    let frame = log.iter().position(|record| matches!(record.what, What::Frame(From::Client, _)));
    ensure!(welcome < frame, "it sent something before its welcome");
    ensure!(world.backend.calls().len() == 1, "{} token calls", world.backend.calls().len());
    client.close().await?;
    let closed = |log: &[wirepost_testing::ws_proxy::Record]| {
        log.iter().find_map(|record| match record.what {
            What::Close(From::Client, code) => Some(code),
            _ => None,
        })
    };
    let code = world.proxy.until("the client's close frame", closed).await?;
    // RFC 6455 allows 1005 to a library that sends no code.
    ensure!(code == 1000 || code == 1005, "it closed with {code}");
    sleep(Duration::from_millis(500)).await;
    ensure!(world.attempts() == 1, "it came back after its user had closed it");
    Ok(())
}

pub(super) async fn spread(world: &World) -> Result<()> {
    const CLIENTS: usize = 12;
    let wait = Duration::from_secs(2);
    let timing = json!({"fastFirst": wait.as_millis() as u64, "fastMax": wait.as_millis() as u64});
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        clients.push(world.connected(json!({"timing": timing})).await?);
    }
    let cut = Instant::now();
    world.proxy.cut();
    world.welcomed(2 * CLIENTS).await?;
    let mut after: Vec<Duration> = world
        .proxy
        .log()
        .iter()
        .filter(|record| record.what == What::Attempt && record.connection >= CLIENTS)
        .map(|record| record.at - cut)
        .collect();
    after.sort();
    check_spread(&after, wait)
}

/// Times of attempts, sorted, that should be spread evenly over the wait.
pub(super) fn check_spread(after: &[Duration], wait: Duration) -> Result<()> {
    let (first, last) = (after.first().context("none returned")?, after.last().context("none returned")?);
    ensure!(*last >= *first + wait / 4, "they return in step: {after:?}");
    ensure!(*first <= wait / 2, "none is early, so the wait is not random from 0: {after:?}");
    ensure!(*last <= wait + SLACK, "later than {wait:?}: {after:?}");
    Ok(())
}

pub(super) async fn growth(world: &World) -> Result<()> {
    let client = world.connected(json!({"timing": {"fastFirst": 200, "fastMax": 2000, "stableAfter": 60_000}})).await?;
    world.proxy.door(Door::Refused);
    world.proxy.cut();
    let window = Duration::from_secs(6);
    sleep(window).await;
    let attempts = world.attempts() - 1;
    ensure!(
        (3..=20).contains(&attempts),
        "{attempts} attempts in {window:?}: about 9 are right, 60 if waits don't grow"
    );
    ensure!(client.last_state() != "open", "it claims to be open");
    world.proxy.door(Door::Open);
    client.state("open", 2).await
}

pub(super) async fn silence(world: &World) -> Result<()> {
    let within = Duration::from_secs(1);
    world.proxy.door(Door::Silent);
    let client = world.client(json!({"timing": {"connectWithin": within.as_millis() as u64}}))?;
    let attempt = |n: usize| {
        world.proxy.until("another attempt", move |log| {
            log.iter().filter(|record| record.what == What::Attempt).nth(n).map(|record| record.at)
        })
    };
    let first = attempt(0).await?;
    world.proxy.door(Door::Open);
    world.proxy.judge(|from, connection, frame| {
        if connection == 1 && from == From::Edge && frame["op"] == "welcome" { Fate::Lost } else { Fate::Pass }
    });
    client.send_number(0)?;
    let second = attempt(1).await?;
    ensure!(second - first >= within / 2, "it did not wait for an answer: {:?}", second - first);
    ensure!(second - first <= within + SLACK, "it waited {:?} for an answer", second - first);
    let third = attempt(2).await?;
    ensure!(third - second >= within / 2, "it did not wait for its welcome: {:?}", third - second);
    ensure!(third - second <= within + SLACK, "it waited {:?} for its welcome", third - second);
    client.acked(0..1).await?;
    let early = world.proxy.log();
    let early =
        early.iter().any(|record| record.connection == 1 && matches!(record.what, What::Frame(From::Client, _)));
    ensure!(!early, "it sent something without a welcome");
    Ok(())
}

pub(super) async fn refused(world: &World) -> Result<()> {
    let client = world.connected(json!({})).await?;
    world.proxy.door(Door::Status(503));
    world.proxy.cut();
    world
        .proxy
        .until("two more attempts", |log| {
            (log.iter().filter(|record| record.what == What::Attempt).count() >= 3).then_some(())
        })
        .await?;
    world.proxy.door(Door::Open);
    client.state("open", 2).await?;
    ensure!(world.backend.calls().len() == 1, "a full edge is no reason for a new token");
    Ok(())
}
