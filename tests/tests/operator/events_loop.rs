//! A business's own services can't make its events into messages for its clients, and so not into a loop: tried with the rights of its
//! access Secret.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use lapin::options::{ExchangeBindOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, ExchangeKind};
use serde_json::json;
use wirepost_testing::broker::{depth, eventually, next};
use wirepost_testing::cluster::PATIENCE;
use wirepost_testing::operator::World;
use wirepost_testing::operator::edges::client;
use wirepost_testing::service::Service;

const NEWS: &str = "
apiVersion: wirepost.dev/v1alpha1
kind: WsBusiness
metadata: {name: news}
spec:
  clientTypes: [app]
  routes:
    - {messageType: flash, sendType: ServerToClient, to: [app]}
  access: {secretName: news-wirepost}
";
const PUSH: &str = "wirepost.news.push";
const EVENTS: &str = "wirepost.news.events";
const MINE: &str = "wirepost.news.events.mine";
const OTHER: &str = "wirepost.news.events.other";

async fn into_push(channel: &Channel, source: &str) -> Result<()> {
    let (options, table) = (ExchangeBindOptions::default(), FieldTable::default());
    Ok(channel.exchange_bind(PUSH.into(), source.into(), "#".into(), options, table).await?)
}

fn passes_on(argument: &str) -> FieldTable {
    let mut arguments = FieldTable::default();
    arguments.insert(argument.into(), AMQPValue::LongString(PUSH.into()));
    arguments
}

/// Everything by which events could come to `push` with the rights of the Secret.
async fn attack(channel: &Channel) -> Result<()> {
    into_push(channel, EVENTS).await?;
    // Over an exchange of its own, by a binding and by an argument.
    let durable = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
    channel.exchange_declare(OTHER.into(), ExchangeKind::Fanout, durable, passes_on("alternate-exchange")).await?;
    let (options, table) = (ExchangeBindOptions::default(), FieldTable::default());
    channel.exchange_bind(OTHER.into(), EVENTS.into(), "#".into(), options, table).await?;
    into_push(channel, OTHER).await?;
    // Over a queue that lets everything expire.
    let mut expiring = passes_on("x-dead-letter-exchange");
    expiring.insert("x-message-ttl".into(), AMQPValue::LongInt(0));
    channel.queue_declare(MINE.into(), QueueDeclareOptions::durable(), expiring).await?;
    let options = QueueBindOptions::default();
    channel.queue_bind(MINE.into(), EVENTS.into(), "#".into(), options, FieldTable::default()).await?;
    Ok(())
}

async fn destinations(world: &World) -> Result<Vec<String>> {
    let objects = world.setup.picture().await?;
    let leads = |key: &&String| {
        key.starts_with("binding ")
            && (key.contains(&format!("-> {PUSH}")) || key.contains(&format!("{EVENTS} -> wirepost.")))
    };
    Ok(objects.keys().filter(leads).cloned().collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn events_that_a_team_leads_back_into_push_make_no_loop_and_the_way_is_taken_away() -> Result<()> {
    let world = World::new().await?;
    let operator = world.operator("one").start().await?;
    let (one, _two) = (world.edge("edge-1").await?, world.edge("edge-2").await?);
    world.apply(NEWS).await?;
    world.condition("news", "Ready", "True").await?;
    let secret: BTreeMap<String, String> = world.secret("news-wirepost").await?.context("no Secret")?;
    let service = Service::with(&secret).await?;
    let mut alice = client(&one, &secret, "alice", "app").await?;
    let mut rejected = Service::of(&world.setup, "news").await?.events("rejected").await?;

    attack(&service.channel).await?;
    // One push that nobody can get begins it.
    service.push(&json!({"id": "spark", "messageType": "no.such"})).await?;
    ensure!(next(&mut rejected).await?.data.windows(5).any(|part| part == b"spark"));

    eventually("the ways back are gone", PATIENCE, async || Ok(destinations(&world).await?.is_empty())).await?;
    let bad = world.reason("news", "Provisioned", "NotAsDeclared").await?;
    let status = serde_json::to_string(&bad.status)?;
    ensure!(status.contains(MINE) && status.contains(OTHER), "{status}");
    // What came back was an event, and no event was made of it.
    service.push(&json!({"id": "end", "messageType": "no.such"})).await?;
    loop {
        let data = next(&mut rejected).await?.data;
        let event: serde_json::Value = serde_json::from_slice(&data)?;
        ensure!(event["id"] == "spark" || event["id"] == "end", "an event about an event: {event}");
        if event["id"] == "end" {
            break;
        }
    }
    let (_, metrics) = one.admin("/metrics").await?;
    ensure!(!metrics.contains("rejected_pushes_total{kind=\"event\"} 0\n"), "none came back: {metrics}");
    service.push(&json!({"messageType": "flash", "toUniqueId": "alice", "content": 1})).await?;
    ensure!(alice.content().await? == 1);

    // A queue that keeps what it gets is left alone.
    let admin = Service::of(&world.setup, "news").await?;
    for path in [["queues", &world.setup.vhost().name, MINE], ["exchanges", &world.setup.vhost().name, OTHER]] {
        world.setup.call("DELETE", &path, &json!(null)).await?;
    }
    world.condition("news", "Provisioned", "True").await?;
    service.channel.queue_declare(MINE.into(), QueueDeclareOptions::durable(), FieldTable::default()).await?;
    let options = QueueBindOptions::default();
    service.channel.queue_bind(MINE.into(), EVENTS.into(), "#".into(), options, FieldTable::default()).await?;
    operator.looks(3).await?;
    service.push(&json!({"id": "again", "messageType": "no.such"})).await?;
    eventually("it is told", PATIENCE, async || Ok(depth(&admin.channel, MINE).await? > 0)).await?;
    ensure!(destinations(&world).await? == [format!("binding {EVENTS} -> {MINE} with '#'")]);
    operator.had_every_right()
}
