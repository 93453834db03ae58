use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tokio::time::{Instant, sleep};
use wirepost_testing::broker::PATIENCE;
use wirepost_testing::ws_proxy::{Fate, From, Record, What};

use super::reconnect::{SLACK, check_spread};
use crate::world::{World, is_op, push, sent};

fn position(log: &[Record], connection: usize, is: impl Fn(&Record) -> bool) -> Option<usize> {
    log.iter().position(|record| record.connection == connection && is(record))
}

/// Checks that a client left a connection only after the next one had its welcome. An edge may close it earlier: a busy
/// machine is late.
fn overlapped(log: &[Record], connection: usize) -> Result<()> {
    let next = position(log, connection + 1, |record| is_op(record, From::Edge, "welcome"));
    let next = next.with_context(|| format!("connection {} has no welcome", connection + 1))?;
    let ended = position(log, connection, |record| matches!(record.what, What::Close(..) | What::Over));
    let left = ended.filter(|ended| !matches!(log[*ended].what, What::Close(From::Edge, _)));
    ensure!(left.is_none_or(|left| left > next), "it left connection {connection} before the next one was usable");
    Ok(())
}

pub(super) async fn real(world: &World) -> Result<()> {
    let client = world.connected(json!({})).await?;
    let other = Arc::new(world.setup.edge("e2").start().await?);
    let (mut pushed, mut sent_so_far) = (0, 0);
    let mut both = async |world: &World| -> Result<u64> {
        world.push(&client, pushed..pushed + 5).await?;
        pushed += 5;
        for _ in 0..5 {
            client.send_number(sent_so_far)?;
            sent_so_far += 1;
        }
        Ok(pushed)
    };
    both(world).await?;
    world.proxy.lead_to(other.public);
    world.backend.move_to(&other);
    world.edge.sigterm()?;
    let begin = Instant::now();
    let moved = |log: &[Record]| position(log, 1, |record| is_op(record, From::Edge, "welcome")).is_some();
    while !moved(&world.proxy.log()) && begin.elapsed() < Duration::from_secs(30) {
        both(world).await?;
        sleep(Duration::from_millis(20)).await;
    }
    overlapped(&world.proxy.log(), 0)?;
    let last = both(world).await? - 1;
    client.all_in_order(last).await?;
    client.acked(0..last + 1).await?;
    ensure!(client.gaps() == 0, "it reported a gap");
    // An edge that drains answers everything, so nothing had to be repeated.
    let mut times: HashMap<String, usize> = HashMap::new();
    for frame in world.proxy.log().iter().filter_map(sent) {
        *times.entry(frame["id"].to_string()).or_default() += 1;
    }
    ensure!(times.values().all(|times| *times == 1), "it repeated what the old connection would have answered");
    let left = world.proxy.until("the end of the old connection", |log| {
        log.iter().find_map(|record| match record.what {
            What::Close(_, code) if record.connection == 0 => Some(code),
            _ => None,
        })
    });
    let code = left.await?;
    ensure!([1000, 1005, 1012].contains(&code), "the old connection ended with {code}");
    ensure!(world.backend.calls().len() == 1, "a drain is no reason for a new token");
    Ok(())
}

pub(super) async fn both_deliver(world: &World) -> Result<()> {
    const ROUNDS: usize = 4;
    let client = world.connected(json!({})).await?;
    let mut pushed = 0;
    for round in 0..ROUNDS {
        // This edge goes on delivering to both.
        world.proxy.say(json!({"op": "drain", "reconnectWithinMs": 200}));
        let begin = Instant::now();
        while position(&world.proxy.log(), round + 1, |record| is_op(record, From::Edge, "welcome")).is_none()
            && begin.elapsed() < Duration::from_secs(20)
        {
            world.service.push_all((pushed..pushed + 10).map(|n| push(&client.name, n))).await?;
            pushed += 10;
            sleep(Duration::from_millis(5)).await;
        }
        overlapped(&world.proxy.log(), round)?;
        world.service.push_all((pushed..pushed + 20).map(|n| push(&client.name, n))).await?;
        pushed += 20;
        client.all_in_order(pushed - 1).await?;
        world
            .proxy
            .until("the end of the old connection", |log| {
                position(log, round, |record| matches!(record.what, What::Close(From::Client, _) | What::Over))
            })
            .await?;
    }
    ensure!(client.gaps() == 0, "it reported a gap");
    ensure!(client.last_state() == "open", "it is {} after its drains", client.last_state());
    ensure!(world.attempts() == ROUNDS + 1, "{} connections for {ROUNDS} drains", world.attempts());
    Ok(())
}

pub(super) async fn unanswered(world: &World) -> Result<()> {
    let client = world.connected(json!({})).await?;
    world.proxy.judge(|from, connection, frame| {
        if connection == 0 && from == From::Edge && frame["op"] == "ack" { Fate::Lost } else { Fate::Pass }
    });
    for n in 0..3 {
        client.send_number(n)?;
    }
    world.proxy.until("three messages", |log| (log.iter().filter_map(sent).count() == 3).then_some(())).await?;
    world.proxy.say(json!({"op": "drain", "reconnectWithinMs": 1000}));
    world.welcomed(2).await?;
    overlapped(&world.proxy.log(), 0)?;
    // The proxy sees the `welcome` a moment before the client does.
    let (mut next, begin) = (3, Instant::now());
    loop {
        client.send_number(next)?;
        let on = |log: &[Record]| {
            let record = log.iter().find(|record| sent(record).is_some_and(|frame| frame["content"]["n"] == next));
            record.map(|record| record.connection)
        };
        if world.proxy.until("the next message", on).await? == 1 {
            break;
        }
        ensure!(begin.elapsed() < SLACK, "it goes on sending on the old connection");
        next += 1;
        sleep(Duration::from_millis(50)).await;
    }
    client.acked(next..next + 1).await?;
    world.proxy.close_one(0, 1012);
    client.acked(0..next).await?;
    let log = world.proxy.log();
    for n in 0..next {
        let ids: Vec<_> = log
            .iter()
            .filter_map(sent)
            .filter(|frame| frame["content"]["n"] == n)
            .map(|f| f["id"].to_string())
            .collect();
        ensure!(ids.len() == 2 && ids[0] == ids[1], "message {n} was sent as {ids:?}");
    }
    Ok(())
}

pub(super) async fn cut_meanwhile(world: &World) -> Result<()> {
    let client = world.connected(json!({})).await?;
    let (mut pushed, mut sent_so_far) = (0, 0);
    // Both connections, while both deliver: before the `welcome` of the new one, and after it.
    let before = |record: &Record| record.what == What::Open;
    let after = |record: &Record| is_op(record, From::Edge, "welcome");
    for moment in [before as fn(&Record) -> bool, after, before, after] {
        let old = world.attempts();
        let reached = |log: &[Record], from: usize, moment: fn(&Record) -> bool| {
            log.iter().any(|record| record.connection >= from && moment(record))
        };
        world.proxy.say(json!({"op": "drain", "reconnectWithinMs": 50}));
        let begin = Instant::now();
        while !reached(&world.proxy.log(), old, moment) {
            ensure!(begin.elapsed() < PATIENCE, "there is no second connection");
            world.service.push_all((pushed..pushed + 10).map(|n| push(&client.name, n))).await?;
            pushed += 10;
            client.send_number(sent_so_far)?;
            sent_so_far += 1;
        }
        let all = world.attempts();
        world.proxy.cut();
        world.proxy.until("its return", |log| reached(log, all, after).then_some(())).await?;
        client.all_in_order(pushed - 1).await?;
    }
    client.acked(0..sent_so_far).await?;
    ensure!(client.gaps() == 0, "it reported a gap");
    Ok(())
}

pub(super) async fn closed_meanwhile(world: &World) -> Result<()> {
    let client = world.connected(json!({})).await?;
    world.proxy.judge(|from, connection, frame| {
        if connection == 1 && from == From::Edge && frame["op"] == "welcome" { Fate::Lost } else { Fate::Pass }
    });
    world.proxy.say(json!({"op": "drain", "reconnectWithinMs": 100}));
    world.proxy.until("a second connection", |log| position(log, 1, |record| record.what == What::Open)).await?;
    client.close().await?;
    world
        .proxy
        .until("the end of both connections", |log| {
            (0..2).all(|n| position(log, n, |record| record.what == What::Over).is_some()).then_some(())
        })
        .await?;
    sleep(Duration::from_millis(700)).await;
    ensure!(world.attempts() == 2, "it came back after its user had closed it");
    Ok(())
}

pub(super) async fn replaced_meanwhile(world: &World) -> Result<()> {
    let client = world.connected(json!({"timing": {"connectWithin": 1500}})).await?;
    world.proxy.judge(|from, connection, frame| {
        if connection == 1 && from == From::Edge && frame["op"] == "welcome" { Fate::Lost } else { Fate::Pass }
    });
    world.proxy.say(json!({"op": "drain", "reconnectWithinMs": 100}));
    world.proxy.until("a second connection", |log| position(log, 1, |record| record.what == What::Open)).await?;
    world.proxy.close_one(0, 4009);
    world.push(&client, 0..3).await?;
    world.welcomed(3).await?;
    client.all_in_order(2).await?;
    ensure!(client.events().iter().all(|event| event.value["state"] != "stopped"), "it stopped");
    Ok(())
}

pub(super) async fn spread(world: &World) -> Result<()> {
    const CLIENTS: usize = 12;
    let wait = Duration::from_secs(2);
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        clients.push(world.connected(json!({})).await?);
    }
    let told = Instant::now();
    world.proxy.say(json!({"op": "drain", "reconnectWithinMs": wait.as_millis() as u64}));
    world.welcomed(2 * CLIENTS).await?;
    let log = world.proxy.log();
    let attempts = log.iter().filter(|record| record.what == What::Attempt && record.connection >= CLIENTS);
    let mut after: Vec<Duration> = attempts.map(|record| record.at - told).collect();
    after.sort();
    check_spread(&after, wait)
}
