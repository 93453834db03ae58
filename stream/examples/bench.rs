//! Delivery latency and CPU a message, on a real broker:
//!
//! ```text
//! eval "$(tests/services/rabbitmq start bench)"
//! cargo run --release -p wirepost-stream --example bench -- latency --streams 200 --rate 2000 --seconds 20
//! cargo run --release -p wirepost-stream --example bench -- replay --messages 1000000
//! cargo run --release -p wirepost-stream --example bench -- hash
//! ```
//!
//! `latency`: one AMQP publisher sends 500 B messages with their send time to all streams in turn; all are read by one client in
//! the same process. `replay`: one stream is filled, then read from its beginning. `--threads` (1) and `--credits` may be given.
//! CPU is this process's.

use std::{
    collections::HashMap,
    hint::black_box,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, bail};
use lapin::{
    BasicProperties, Channel, ConnectionProperties,
    options::{BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions, QueueDeleteOptions},
    types::{AMQPValue, FieldTable},
};
use tokio::{sync::mpsc, time::Instant};
use wirepost_stream::{Client, Config, Credentials, Event, Start, fingerprint};

const BODY_BYTES: usize = 500;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let what = arguments.next().unwrap_or_default();
    let rest: Vec<String> = arguments.collect();
    let options: HashMap<_, _> = rest.chunks_exact(2).map(|pair| (pair[0].as_str(), pair[1].as_str())).collect();
    let option = |name: &str, default: u64| options.get(name).map_or(Ok(default), |value| value.parse());
    let threads = usize::try_from(option("--threads", 1)?)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build()?;
    match what.as_str() {
        "latency" => {
            let (streams, rate) = (option("--streams", 200)?, option("--rate", 2000)?);
            runtime.block_on(latency(streams, rate, option("--seconds", 20)?, option("--credits", 0)?))
        }
        "replay" => runtime.block_on(replay(option("--messages", 1_000_000)?, option("--credits", 0)?)),
        "hash" => {
            hash();
            Ok(())
        }
        _ => bail!("one of: latency, replay, hash; see the top of stream/examples/bench.rs"),
    }
}

fn variable(name: &str) -> Result<String> {
    std::env::var(name).with_context(|| format!("{name} is not set: start a broker by tests/services/rabbitmq"))
}

fn client(credits: u64) -> Result<Client> {
    let stream = variable("WIREPOST_TEST_STREAM")?;
    let rest = stream.rsplit_once("://").map_or(&*stream, |(_, rest)| rest);
    let (user, host) = rest.rsplit_once('@').unwrap_or(("guest:guest", rest));
    let (host, port) = host.rsplit_once(':').context("WIREPOST_TEST_STREAM: host:port")?;
    let (username, password) = user.split_once(':').context("WIREPOST_TEST_STREAM: user:password@")?;
    let credentials = Credentials { username: username.to_owned(), password: password.to_owned() };
    let mut config = Config::new(host, port.parse()?, move || credentials.clone());
    if credits > 0 {
        config.credits = u16::try_from(credits)?;
    }
    Ok(Client::new(config))
}

async fn channel() -> Result<(lapin::Connection, Channel)> {
    let connection =
        lapin::Connection::connect(&variable("WIREPOST_TEST_AMQP")?, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    Ok((connection, channel))
}

async fn declare(channel: &Channel, stream: &str) -> Result<()> {
    channel.queue_delete(stream.into(), QueueDeleteOptions::default()).await?;
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("stream".into()));
    channel.queue_declare(stream.into(), QueueDeclareOptions::durable(), arguments).await?;
    Ok(())
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64)
}

/// User and system time of this process so far, seconds.
fn cpu() -> [f64; 2] {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    // Ticks of 10 ms.
    [11, 12].map(|i: usize| fields.get(i).and_then(|ticks| ticks.parse::<f64>().ok()).unwrap_or(0.0) / 100.0)
}

fn percentile(sorted: &[u64], share: f64) -> f64 {
    let index = ((sorted.len() as f64 * share) as usize).min(sorted.len().saturating_sub(1));
    sorted.get(index).map_or(0.0, |ns| *ns as f64 / 1e6)
}

async fn latency(streams: u64, rate: u64, seconds: u64, credits: u64) -> Result<()> {
    let (_connection, channel) = channel().await?;
    let names: Vec<String> = (0..streams).map(|i| format!("bench-{i}")).collect();
    for name in &names {
        declare(&channel, name).await?;
    }
    let client = client(credits)?;
    let (sender, mut delays) = mpsc::unbounded_channel();
    let begin = Instant::now();
    for name in &names {
        let mut subscription = client.subscribe(name, Start::First);
        while !matches!(subscription.recv().await, Some(Event::Attached { .. }) | None) {}
        let sender = sender.clone();
        tokio::spawn(async move {
            while let Some(event) = subscription.recv().await {
                let Event::Messages(batch) = event else { continue };
                for message in &batch {
                    let sent = message.body().first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes));
                    black_box(message.fingerprint());
                    let _ = sender.send(now().saturating_sub(sent));
                }
            }
        });
    }
    println!("{streams} subscriptions one after the other: {:?}", begin.elapsed());
    let count = rate * seconds;
    let mut body = vec![b'x'; BODY_BYTES];
    let mut tick = tokio::time::interval(Duration::from_millis(1));
    let begin = Instant::now();
    let mut sent = 0;
    while sent < count {
        tick.tick().await;
        let due = (begin.elapsed().as_secs_f64() * rate as f64) as u64;
        while sent < due.min(count) {
            body[..8].copy_from_slice(&now().to_be_bytes());
            let stream = names[(sent % streams) as usize].as_str();
            let options = BasicPublishOptions::default();
            let confirm = channel.basic_publish("".into(), stream.into(), options, &body, BasicProperties::default());
            drop(confirm.await?);
            sent += 1;
        }
    }
    let mut all = Vec::with_capacity(count as usize);
    while (all.len() as u64) < count {
        let delay =
            tokio::time::timeout(Duration::from_secs(30), delays.recv()).await.context("messages are missing")?;
        all.extend(delay);
    }
    all.sort_unstable();
    let connections = client.counters().connections.get();
    println!(
        "{streams} streams on {connections} connections, {rate}/s for {seconds} s, {} messages: p50 {:.2} ms, p99 {:.2} ms, max {:.2} ms; {} chunks, {} restarts",
        all.len(),
        percentile(&all, 0.5),
        percentile(&all, 0.99),
        percentile(&all, 1.0),
        client.counters().chunks.get(),
        client.counters().restarts.get(),
    );
    client.close().await;
    for name in &names {
        channel.queue_delete(name.as_str().into(), QueueDeleteOptions::default()).await?;
    }
    Ok(())
}

async fn replay(messages: u64, credits: u64) -> Result<()> {
    let (connection, channel) = channel().await?;
    declare(&channel, "bench-replay").await?;
    let body = vec![b'x'; BODY_BYTES];
    let mut confirms = Vec::new();
    for n in 0..messages {
        let options = BasicPublishOptions::default();
        confirms.push(
            channel.basic_publish("".into(), "bench-replay".into(), options, &body, BasicProperties::default()).await?,
        );
        if confirms.len() == 2000 || n + 1 == messages {
            for confirm in confirms.drain(..) {
                confirm.await?;
            }
        }
    }
    for pass in 1..=3 {
        let client = client(credits)?;
        let (begin, spent) = (Instant::now(), cpu());
        let mut subscription = client.subscribe("bench-replay", Start::First);
        let (mut count, mut sum) = (0, 0);
        while count < messages {
            if let Some(Event::Messages(batch)) = subscription.recv().await {
                for message in &batch {
                    sum ^= message.fingerprint() ^ message.body().len() as u64;
                    count += 1;
                }
            }
        }
        black_box(sum);
        let (elapsed, now) = (begin.elapsed(), cpu());
        let [user, system] = [0, 1].map(|i| (now[i] - spent[i]) * 1e6 / count as f64);
        println!(
            "pass {pass}: {count} messages of {BODY_BYTES} B in {} chunks: {:.0}/s, {user:.2} us user and {system:.2} us system CPU a message, body and fingerprint read",
            client.counters().chunks.get(),
            count as f64 / elapsed.as_secs_f64(),
        );
        client.close().await;
    }
    channel.queue_delete("bench-replay".into(), QueueDeleteOptions::default()).await?;
    drop(connection);
    Ok(())
}

fn hash() {
    for size in [200, 500, 4000] {
        let message = vec![7u8; size];
        let rounds = 2_000_000;
        let begin = std::time::Instant::now();
        for offset in 0..rounds {
            black_box(fingerprint(offset, 0, black_box(&message)));
        }
        println!("fingerprint of {size} B: {:.0} ns", begin.elapsed().as_nanos() as f64 / rounds as f64);
    }
}
