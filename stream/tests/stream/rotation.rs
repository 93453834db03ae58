//! All faults in rotation, on a broker of its own: every confirmed message arrives once, in order.
//!
//! One round of faults takes about 30 s; `WIREPOST_SOAK_SECONDS` makes it go on, `WIREPOST_FAULTS=Kill,Restart` picks some.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};
use wirepost_stream::{Client, Event, Start};
use wirepost_testing::broker::{PrivateBroker, Vhost, eventually};
use wirepost_testing::proxy::{Network, Proxy};

use crate::support::{Publisher, config, host_of};

const STREAMS: usize = 3;
/// Longest time from the end of a fault to the next message: what a client may be promised.
const RECOVERY: Duration = Duration::from_secs(15);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Cut,
    Stall,
    StallDown,
    StallUp,
    ManagementClose,
    Freeze,
    Kill,
    Restart,
}

const FAULTS: [Fault; 8] = [
    Fault::Cut,
    Fault::Stall,
    Fault::ManagementClose,
    Fault::Freeze,
    Fault::StallDown,
    Fault::Kill,
    Fault::StallUp,
    Fault::Restart,
];

async fn cause(fault: Fault, broker: &PrivateBroker, vhost: &Vhost, proxy: &Proxy) -> Result<()> {
    let stall = async |network| {
        proxy.set(network);
        sleep(Duration::from_secs(3)).await;
        proxy.set(Network::Fine);
    };
    match fault {
        Fault::Cut => proxy.cut(),
        Fault::Stall => stall(Network::Stalled).await,
        Fault::StallDown => stall(Network::DownStalled).await,
        Fault::StallUp => stall(Network::UpStalled).await,
        Fault::ManagementClose => close_stream_connections(vhost).await?,
        Fault::Freeze => {
            broker.pause().await?;
            sleep(Duration::from_secs(4)).await;
            broker.resume().await?;
        }
        Fault::Kill => {
            broker.kill9().await?;
            broker.start_again().await?;
        }
        Fault::Restart => {
            broker.stop().await?;
            broker.start_again().await?;
        }
    }
    Ok(())
}

async fn close_stream_connections(vhost: &Vhost) -> Result<()> {
    eventually("a stream connection is listed and closed", Duration::from_secs(20), || async {
        let list = vhost.broker.call("GET", &format!("/api/stream/connections/{}", vhost.name), "").await?;
        let list: serde_json::Value = serde_json::from_str(&list)?;
        let names: Vec<_> = list.as_array().into_iter().flatten().filter_map(|c| c["name"].as_str()).collect();
        for name in &names {
            let name = name.replace(' ', "%20").replace('>', "%3E");
            vhost.broker.call("DELETE", &format!("/api/stream/connections/{}/{name}", vhost.name), "").await?;
        }
        Ok(!names.is_empty())
    })
    .await
}

/// Publishes 1, 2, 3, ... one after the other and remembers the confirmed ones. A number whose fate is unknown is never sent again:
/// what arrives must be increasing and hold all confirmed numbers.
fn publish(vhost: Arc<Vhost>, stream: String, stop: Arc<AtomicBool>, last: Arc<AtomicU64>) -> JoinHandle<Vec<u64>> {
    tokio::spawn(async move {
        let mut confirmed = Vec::new();
        let mut number = 0;
        let mut publisher = None;
        while !stop.load(Ordering::Relaxed) {
            let Some(connected) = &publisher else {
                publisher = timeout(Duration::from_secs(5), Publisher::connect(&vhost)).await.ok().and_then(Result::ok);
                sleep(Duration::from_millis(100)).await;
                continue;
            };
            number += 1;
            // Longer than any freeze: an unconfirmed message of an abandoned connection could overtake.
            match timeout(Duration::from_secs(30), connected.numbers(&stream, number..number + 1)).await {
                Ok(Ok(())) => {
                    confirmed.push(number);
                    last.store(number, Ordering::Relaxed);
                }
                _ => publisher = None,
            }
            sleep(Duration::from_millis(1)).await;
        }
        confirmed
    })
}

/// Reads a stream to its end: what arrived, and how often it was attached.
fn read(client: &Client, stream: &str, newest: Arc<AtomicU64>) -> JoinHandle<Result<Vec<u64>>> {
    let mut subscription = client.subscribe(stream, Start::First);
    tokio::spawn(async move {
        let mut received = Vec::new();
        while let Some(event) = subscription.recv().await {
            match event {
                Event::Messages(batch) => {
                    for message in &batch {
                        received.push(std::str::from_utf8(message.body())?.parse()?);
                    }
                    newest.store(received.last().copied().unwrap_or(0), Ordering::Relaxed);
                }
                Event::Attached { .. } | Event::Down { .. } => {}
                Event::Gap { .. } | Event::Reset => panic!("after {:?}: {event:?}", received.last()),
            }
        }
        Ok(received)
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_confirmed_message_arrives_once_and_in_order_through_all_faults() -> Result<()> {
    let seconds = std::env::var("WIREPOST_SOAK_SECONDS").ok().and_then(|s| s.parse().ok()).unwrap_or(0);
    let until = Instant::now() + Duration::from_secs(seconds);
    // Another RabbitMQ than the default: `sid` or `trixie`.
    let suite = std::env::var("WIREPOST_TEST_SUITE").ok();
    let options: Vec<&str> = suite.iter().flat_map(|suite| ["--suite", suite]).collect();
    let broker = PrivateBroker::start("rotation", &options).await?;
    let vhost = Arc::new(broker.vhost().await?);
    let (proxy, uri) = Proxy::of_uri(&broker.stream).await?;
    let client = Client::new(config(host_of(&uri), &vhost.name));
    let declarer = Publisher::connect(&vhost).await?;
    let stop = Arc::new(AtomicBool::new(false));
    let mut lanes = Vec::new();
    for i in 0..STREAMS {
        let stream = format!("s{i}");
        declarer.declare(&stream).await?;
        let (confirmed, received) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let reader = read(&client, &stream, Arc::clone(&received));
        let publisher = publish(Arc::clone(&vhost), stream, Arc::clone(&stop), Arc::clone(&confirmed));
        lanes.push((publisher, reader, confirmed, received));
    }
    drop(declarer);

    let chosen = std::env::var("WIREPOST_FAULTS").unwrap_or_default();
    let faults: Vec<Fault> = FAULTS
        .into_iter()
        .filter(|fault| chosen.is_empty() || chosen.split(',').any(|name| name == format!("{fault:?}")))
        .collect();
    let mut round = 0;
    while round < faults.len() || Instant::now() < until {
        let fault = faults[round % faults.len()];
        round += 1;
        cause(fault, &broker, &vhost, &proxy).await.with_context(|| format!("{fault:?}"))?;
        let (over, before) =
            (Instant::now(), lanes.iter().map(|lane| lane.2.load(Ordering::Relaxed)).collect::<Vec<_>>());
        eventually(&format!("new messages arrive on all streams after {fault:?}"), RECOVERY, || async {
            for ((_, _, _, received), before) in lanes.iter().zip(&before) {
                if received.load(Ordering::Relaxed) <= before + 10 {
                    return Ok(false);
                }
            }
            Ok(true)
        })
        .await?;
        println!("{fault:?}: all streams flow after {:?}", over.elapsed());
    }

    stop.store(true, Ordering::Relaxed);
    let mut results = Vec::new();
    for (publisher, reader, _, received) in lanes {
        let confirmed = publisher.await?;
        let last = confirmed.last().copied().unwrap_or(0);
        eventually("the last confirmed message arrives", RECOVERY, || async {
            Ok(received.load(Ordering::Relaxed) >= last)
        })
        .await?;
        results.push((confirmed, reader));
    }
    let counters = format!("{:?}", client.counters());
    client.close().await;
    for (confirmed, reader) in results {
        let received = reader.await??;
        ensure!(received.is_sorted_by(|a, b| a < b), "out of order or twice: {received:?}");
        let missing: Vec<_> = confirmed.iter().filter(|n| received.binary_search(n).is_err()).collect();
        ensure!(missing.is_empty(), "confirmed and missing: {missing:?}");
        println!("{} confirmed, {} received, none missing, none twice", confirmed.len(), received.len());
    }
    println!("{counters}");
    Ok(())
}
