use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use wirepost_testing::service::next_json;
use wirepost_testing::ws_proxy::{Door, Fate, From, Record, What};

use crate::client::number;
use crate::world::{World, is_op, sent};

/// Each number that was sent, with its frames in order.
fn frames(log: &[Record]) -> HashMap<u64, Vec<(Instant, Value)>> {
    let mut all: HashMap<u64, Vec<(Instant, Value)>> = HashMap::new();
    for record in log {
        if let Some((n, frame)) = sent(record).and_then(|frame| Some((number(frame)?, frame))) {
            all.entry(n).or_default().push((record.at, frame.clone()));
        }
    }
    all
}

/// Checks that all repeats have the id and the content of the first.
fn check_repeats(log: &[Record]) -> Result<HashMap<u64, Vec<(Instant, Value)>>> {
    let all = frames(log);
    let mut ids = HashSet::new();
    for (n, frames) in &all {
        let first = &frames[0].1;
        let id = first["id"].as_str().with_context(|| format!("message {n} without an id"))?;
        ensure!((1..=64).contains(&id.len()), "an id of {} bytes", id.len());
        ensure!(ids.insert(id), "two messages have the id {id}");
        for (_, repeat) in &frames[1..] {
            ensure!(repeat["id"] == first["id"], "the repeat of {n} has another id: {repeat} after {first}");
            ensure!(repeat["content"] == first["content"], "the repeat of {n} has another content");
        }
    }
    Ok(all)
}

pub(super) async fn lost_acks(world: &World) -> Result<()> {
    let client = world.connected(json!({})).await?;
    let acks = Arc::new(AtomicUsize::new(0));
    let lost = Arc::clone(&acks);
    world.proxy.judge(move |from, _, frame| {
        // The first five arrive.
        if from == From::Edge && frame["op"] == "ack" && lost.fetch_add(1, Ordering::Relaxed) >= 5 {
            return Fate::Lost;
        }
        Fate::Pass
    });
    for n in 0..12 {
        client.send_number(n)?;
    }
    client.acked(0..5).await?;
    world.proxy.until("all acks", |_| (acks.load(Ordering::Relaxed) >= 12).then_some(())).await?;
    world.proxy.judge_nothing();
    world.proxy.cut();
    client.acked(0..12).await?;
    for (n, frames) in check_repeats(&world.proxy.log())? {
        let times = if n < 5 { 1 } else { 2 };
        ensure!(frames.len() == times, "message {n} was sent {} times, not {times}", frames.len());
    }
    Ok(())
}

pub(super) async fn lost_messages(world: &World) -> Result<()> {
    let client = world.connected(json!({})).await?;
    world.proxy.judge(
        |from, _, frame| if from == From::Client && frame.get("op").is_none() { Fate::Lost } else { Fate::Pass },
    );
    for n in 0..5 {
        client.send_number(n)?;
    }
    world.proxy.until("five messages", |log| (frames(log).len() == 5).then_some(())).await?;
    world.proxy.judge_nothing();
    world.proxy.cut();
    client.acked(0..5).await?;
    check_repeats(&world.proxy.log())?;
    let mut orders = world.service.consume("orders", 10).await?;
    let mut order = Vec::new();
    for _ in 0..5 {
        let delivery = wirepost_testing::broker::next(&mut orders).await?;
        let shown =
            format!("tag {} redelivered {} {:?}", delivery.delivery_tag, delivery.redelivered, delivery.properties);
        delivery.ack(lapin::options::BasicAckOptions::default()).await?;
        order.push((number(&wirepost_testing::service::body(&delivery)?), shown));
    }
    ensure!(order.iter().map(|one| one.0).eq((0..5).map(Some)), "not in the order of sending: {order:#?}");
    Ok(())
}

pub(super) async fn order(world: &World) -> Result<()> {
    const MESSAGES: u64 = 300;
    let client = world.connected(json!({})).await?;
    for n in 0..MESSAGES {
        client.send_number(n)?;
        if n % 100 == 50 {
            sleep(Duration::from_millis(rand::random_range(0..20))).await;
            world.proxy.cut();
        }
    }
    client.acked(0..MESSAGES).await?;
    check_repeats(&world.proxy.log())?;
    let mut orders = world.service.consume("orders", 100).await?;
    let (mut seen, mut numbers) = (HashSet::new(), Vec::new());
    while numbers.len() < MESSAGES as usize {
        let order = next_json(&mut orders).await?;
        if seen.insert(order["id"].to_string()) {
            numbers.push(number(&order).context("no number")?);
        }
    }
    // What is refused and repeated comes after what was sent meanwhile: a broker that is late has no order to hold.
    if world.proxy.log().iter().any(|record| is_op(record, From::Edge, "nack")) {
        numbers.sort_unstable();
    }
    ensure!(numbers == (0..MESSAGES).collect::<Vec<_>>(), "not in the order of sending: {numbers:?}");
    Ok(())
}

pub(super) async fn refused(world: &World) -> Result<()> {
    let client = world.connected(json!({})).await?;
    client.send("bad", &json!({"messageType": "qr.refresh", "content": {"n": 1}}))?;
    let outcome = client.outcome("bad").await?;
    ensure!(outcome["result"] == "rejected" && outcome["code"] == "schema_mismatch", "{outcome}");
    ensure!(outcome["mayHaveArrived"] == false && outcome["retryable"] == false, "{outcome}");
    client.send("lost", &json!({"messageType": "no.such", "content": {"n": 2}}))?;
    let outcome = client.outcome("lost").await?;
    ensure!(outcome["code"] == "unknown_route", "{outcome}");
    let deep = (0..100).fold(json!(1), |inner, _| json!([inner]));
    client.send("deep", &json!({"messageType": "order.placed", "content": deep}))?;
    let outcome = client.outcome("deep").await?;
    ensure!(outcome["code"] == "invalid_envelope", "{outcome}");
    client.send_number(3)?;
    client.acked(3..4).await?;
    sleep(Duration::from_millis(500)).await;
    for (n, frames) in frames(&world.proxy.log()) {
        ensure!(frames.len() == 1, "message {n} was sent {} times", frames.len());
    }
    ensure!(world.attempts() == 1, "it reconnected");
    Ok(())
}

/// The first attempts of a message are answered with this nack, without its id.
fn refuse_first(world: &World, times: usize, nack: Value) {
    let seen: Mutex<HashMap<String, usize>> = Mutex::default();
    world.proxy.judge(move |from, _, frame| {
        if from != From::Client || frame.get("op").is_some() {
            return Fate::Pass;
        }
        let id = frame["id"].as_str().unwrap_or_default().to_owned();
        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        let count = seen.entry(id.clone()).or_default();
        *count += 1;
        if *count > times {
            return Fate::Pass;
        }
        let mut nack = nack.clone();
        nack["id"] = id.into();
        Fate::Answered(nack)
    });
}

pub(super) async fn rate_limited(world: &World) -> Result<()> {
    let client = world.connected(json!({})).await?;
    let asked = Duration::from_millis(1500);
    let nack = json!({"op": "nack", "code": "rate_limited", "reason": "by the suite", "retryable": true,
        "mayHaveArrived": false, "retryAfterMs": asked.as_millis() as u64});
    refuse_first(world, 1, nack);
    client.send_number(0)?;
    client.acked(0..1).await?;
    let all = check_repeats(&world.proxy.log())?;
    ensure!(all[&0].len() == 2, "{} attempts", all[&0].len());
    let waited = all[&0][1].0 - all[&0][0].0;
    ensure!(
        waited + Duration::from_millis(20) >= asked,
        "it repeated {waited:?} after a nack that asked for {asked:?}"
    );
    Ok(())
}

pub(super) async fn no_hint(world: &World) -> Result<()> {
    let client = world.connected(json!({"timing": {"nackFirst": 200, "nackMax": 10_000}})).await?;
    let nack = json!({"op": "nack", "code": "broker_unavailable", "reason": "by the suite", "retryable": true,
        "mayHaveArrived": false});
    refuse_first(world, 4, nack);
    client.send_number(0)?;
    client.acked(0..1).await?;
    let all = check_repeats(&world.proxy.log())?;
    let at: Vec<_> = all[&0].iter().map(|(at, _)| *at).collect();
    ensure!(at.len() == 5, "{} attempts", at.len());
    for (n, pair) in at.windows(2).enumerate() {
        let (waited, least) = (pair[1] - pair[0], Duration::from_millis(100 << n));
        ensure!(waited + Duration::from_millis(20) >= least, "wait {n} was {waited:?}, at least {least:?} is right");
    }
    Ok(())
}

pub(super) async fn window(world: &World) -> Result<()> {
    const MESSAGES: u64 = 200;
    let client = world.connected(json!({})).await?;
    world
        .proxy
        .judge(|from, _, frame| if from == From::Edge && frame["op"] == "ack" { Fate::Lost } else { Fate::Pass });
    for n in 0..MESSAGES {
        client.send_number(n)?;
    }
    world.proxy.until("eight messages", |log| (frames(log).len() >= 8).then_some(())).await?;
    sleep(Duration::from_millis(700)).await;
    let waiting = frames(&world.proxy.log()).len();
    ensure!(waiting <= 64, "{waiting} messages without an answer");
    world.proxy.judge_nothing();
    world.proxy.cut();
    client.acked(0..MESSAGES).await?;
    check_repeats(&world.proxy.log())?;
    Ok(())
}

pub(super) async fn pace(world: &World) -> Result<()> {
    const MESSAGES: u64 = 120;
    let client = world.connected(json!({})).await?;
    world.proxy.door(Door::Refused);
    world.proxy.cut();
    client.state("waiting", 1).await?;
    for n in 0..MESSAGES {
        client.send_number(n)?;
    }
    world.proxy.door(Door::Open);
    client.acked(0..MESSAGES).await?;
    check_repeats(&world.proxy.log())?;
    let log = world.proxy.log();
    let nacks = log
        .iter()
        .filter(|record| matches!(&record.what, What::Frame(From::Edge, frame) if frame["code"] == "rate_limited"))
        .count();
    // A few may come of a busy machine that delivers late; without a pace it is most of them.
    ensure!(nacks <= 12, "{nacks} of {MESSAGES} messages were rate_limited");
    Ok(())
}

pub(super) async fn large(world: &World) -> Result<()> {
    let client = world.connected(json!({})).await?;
    let text = "wäre".repeat(200_000);
    client.send("big", &json!({"messageType": "order.placed", "content": {"text": text}}))?;
    let outcome = client.outcome("big").await?;
    ensure!(outcome["result"] == "ack", "{outcome}");
    let mut orders = world.service.consume("orders", 1).await?;
    ensure!(next_json(&mut orders).await?["content"]["text"] == text.as_str(), "the content was changed");
    let push =
        json!({"messageType": "payment.completed", "toUniqueId": client.name, "content": {"n": 0, "text": text}});
    world.service.push(&push).await?;
    client.all_in_order(0).await?;
    ensure!(client.messages()[0]["content"]["text"] == text.as_str(), "the content was changed");
    client.send("huge", &json!({"messageType": "order.placed", "content": {"text": "ä".repeat(600_000)}}))?;
    let outcome = client.outcome("huge").await?;
    ensure!(outcome["result"] == "rejected" && outcome["code"] == "too_large", "{outcome}");
    client.send_number(1)?;
    client.acked(1..2).await?;
    ensure!(world.attempts() == 1, "a message that was too large cost the connection");
    Ok(())
}

pub(super) async fn close(world: &World) -> Result<()> {
    let client = world.connected(json!({})).await?;
    world
        .proxy
        .judge(|from, _, frame| if from == From::Edge && frame["op"] == "ack" { Fate::Lost } else { Fate::Pass });
    for n in 0..10 {
        client.send_number(n)?;
    }
    world.proxy.until("ten messages", |log| (frames(log).len() == 10).then_some(())).await?;
    client.close().await?;
    client.send_number(10)?;
    for n in 0..=10 {
        let outcome = client.outcome(&format!("s{n}")).await?;
        ensure!(outcome["result"] == "rejected" && outcome["code"] == "closed", "{outcome}");
        ensure!(outcome["mayHaveArrived"] == (n < 10), "{outcome}");
    }
    // One that never had a connection.
    world.proxy.door(Door::Refused);
    let client = world.client(json!({}))?;
    client.send_number(0)?;
    client.close().await?;
    let outcome = client.outcome("s0").await?;
    ensure!(outcome["code"] == "closed" && outcome["mayHaveArrived"] == false, "{outcome}");
    let attempts = world.attempts();
    sleep(Duration::from_millis(1500)).await;
    ensure!(world.attempts() == attempts, "it came back after its user had closed it");
    Ok(())
}
