//! How many confirmed publishes a second the edge's publisher does, and what they cost, beside lapin with as many in flight: on one channel
//! with a window, and on a channel each.
//!
//! `eval "$(tests/services/rabbitmq start main)"; cargo run --release -p wirepost-broker --example publish_rate [seconds] [in flight]`
//!
//! All publish persistent, mandatory messages of 500 bytes to a topic exchange with one quorum queue, whose length is limited so that it
//! does not fill the disk; the rounds alternate, because rates drift with the machine.

use std::{
    env, fs,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result};
use lapin::{
    BasicProperties, Channel, Connection, ConnectionProperties, ExchangeKind,
    options::{
        BasicPublishOptions, ConfirmSelectOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions,
        QueueDeleteOptions,
    },
    types::{AMQPValue, FieldTable},
};
use tokio::{task::JoinSet, time::Instant};
use wirepost_broker::{
    Broker, Health, Publication,
    rabbit::{Config, RabbitBroker},
};
use wirepost_runtime::tasks::Supervisor;

const EXCHANGE: &str = "wirepost.bench.receive";
const QUEUE: &str = "wirepost.bench.q.in";
const ROUNDS: usize = 3;

#[tokio::main]
async fn main() -> Result<()> {
    let uri = env::var("WIREPOST_TEST_AMQP").context("WIREPOST_TEST_AMQP is not set")?;
    let mut arguments = env::args().skip(1).map(|argument| argument.parse::<u64>());
    let seconds = Duration::from_secs(arguments.next().transpose()?.unwrap_or(5));
    let in_flight = arguments.next().transpose()?.unwrap_or(64);
    let connection = Connection::connect(&uri, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    declare(&channel).await?;

    let edge = Arc::new(RabbitBroker::start(Config::new("bench", &uri), &Supervisor::default())?);
    edge.health().wait_for(|health| *health == Health::Up).await?;
    for round in 1..=ROUNDS {
        for (name, kind) in
            [("one channel", Kind::OneChannel), ("a channel each", Kind::ChannelEach), ("lanes", Kind::Lanes)]
        {
            let (count, cpu) = (Arc::new(AtomicU64::new(0)), cpu());
            let begin = Instant::now();
            match kind {
                Kind::OneChannel => bare(&uri, 1, in_flight, seconds, &count).await?,
                Kind::ChannelEach => bare(&uri, in_flight, 1, seconds, &count).await?,
                Kind::Lanes => lanes(&edge, in_flight, seconds, &count).await?,
            }
            let count = count.load(Ordering::Relaxed) as f64;
            let rate = count / begin.elapsed().as_secs_f64();
            println!(
                "round {round}  {name:16} {rate:8.0} a second  {:6.1} us of CPU each",
                (self::cpu() - cpu) / count * 1e6
            );
        }
    }
    edge.close().await;
    channel.queue_delete(QUEUE.into(), QueueDeleteOptions::default()).await?;
    Ok(())
}

#[derive(Clone, Copy)]
enum Kind {
    OneChannel,
    ChannelEach,
    Lanes,
}

async fn declare(channel: &Channel) -> Result<()> {
    let durable = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
    channel.exchange_declare(EXCHANGE.into(), ExchangeKind::Topic, durable, FieldTable::default()).await?;
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    arguments.insert("x-max-length".into(), AMQPValue::LongInt(10_000));
    let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    channel.queue_declare(QUEUE.into(), durable, arguments).await?;
    let options = QueueBindOptions::default();
    Ok(channel.queue_bind(QUEUE.into(), EXCHANGE.into(), "#".into(), options, FieldTable::default()).await?)
}

/// `channels` over two connections (one where there is one), `window` messages in flight on each.
async fn bare(uri: &str, channels: u64, window: u64, seconds: Duration, count: &Arc<AtomicU64>) -> Result<()> {
    let mut connections = Vec::new();
    for _ in 0..channels.min(2) {
        connections.push(Connection::connect(uri, ConnectionProperties::default()).await?);
    }
    let end = Instant::now() + seconds;
    let mut tasks = JoinSet::new();
    for number in 0..channels {
        let channel = connections[number as usize % connections.len()].create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        for _ in 0..window {
            let (channel, count) = (channel.clone(), count.clone());
            tasks.spawn(async move {
                let body = vec![b'x'; 500];
                let options = BasicPublishOptions { mandatory: true, immediate: false };
                while Instant::now() < end {
                    let properties = BasicProperties::default().with_delivery_mode(2).with_message_id("id".into());
                    let confirm =
                        channel.basic_publish(EXCHANGE.into(), "a.b".into(), options, &body, properties).await?;
                    confirm.await?;
                    count.fetch_add(1, Ordering::Relaxed);
                }
                anyhow::Ok(())
            });
        }
    }
    while let Some(task) = tasks.join_next().await {
        task??;
    }
    Ok(())
}

/// `clients` clients with one message in flight each.
async fn lanes(edge: &Arc<RabbitBroker>, clients: u64, seconds: Duration, count: &Arc<AtomicU64>) -> Result<()> {
    let end = Instant::now() + seconds;
    let exchange: Arc<str> = EXCHANGE.into();
    let mut tasks = JoinSet::new();
    for client in 0..clients {
        let (edge, exchange, count) = (edge.clone(), exchange.clone(), count.clone());
        tasks.spawn(async move {
            let body = bytes::Bytes::from(vec![b'x'; 500]);
            while Instant::now() < end {
                let publication = Publication {
                    exchange: exchange.clone(),
                    routing_key: "a.b".into(),
                    queue: None,
                    message_id: "id".into(),
                    body: body.clone(),
                    timestamp: 0,
                    headers: vec![("message-type".into(), "a.b".into())],
                };
                edge.publish(client, publication).await??;
                count.fetch_add(1, Ordering::Relaxed);
            }
            anyhow::Ok(())
        });
    }
    while let Some(task) = tasks.join_next().await {
        task??;
    }
    Ok(())
}

/// Seconds of CPU that this process has used, from `/proc/self/stat` (fields 14 and 15, in hundredths).
fn cpu() -> f64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |index: usize| fields.get(index).and_then(|field| field.parse::<f64>().ok()).unwrap_or_default();
    (ticks(11) + ticks(12)) / 100.0
}
