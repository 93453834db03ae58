//! A quiet reader is dead until shown otherwise (CASES 10): a stream that was deleted, a broker that is frozen and packets that are
//! dropped all show as silence. `WIREPOST_SOAK_SECONDS` makes the silence longer.

use std::time::Duration;

use anyhow::Result;
use wirepost_testing::broker::{PrivateBroker, eventually};
use wirepost_testing::client::Client;
use wirepost_testing::edge::Edge;
use wirepost_testing::proxy::{Network, Proxy};
use wirepost_testing::service::{Service, payment};
use wirepost_testing::setup::{PAYMENTS, Setup};

/// From the recovery to the push.
const RECOVERY: Duration = Duration::from_secs(15);

fn silence() -> Duration {
    let seconds = std::env::var("WIREPOST_SOAK_SECONDS").ok().and_then(|seconds| seconds.parse().ok());
    Duration::from_secs(seconds.unwrap_or(20))
}

/// Readers that were restarted, for any reason.
async fn restarts(edge: &Edge) -> Result<f64> {
    Ok(edge.metric("wirepost_broker_stream_restarts").await?
        + edge.metric("wirepost_broker_stream_watchdog_restarts").await?
        + edge.metric("wirepost_broker_stream_connections_lost").await?)
}

/// What she gets within the deadline, numbers from `from` to `to`, in order.
async fn comes(client: &mut Client, numbers: std::ops::Range<u64>) -> Result<()> {
    let end = tokio::time::Instant::now() + RECOVERY;
    for n in numbers {
        let push = client.push_within(end.saturating_duration_since(tokio::time::Instant::now())).await?;
        assert_eq!(push["content"]["n"], n);
    }
    Ok(())
}

#[tokio::test]
async fn a_stream_that_is_deleted_and_declared_again_is_read_again() -> Result<()> {
    let setup = Setup::new(&[PAYMENTS]).await?;
    let edge = setup.edge("e1").start().await?;
    let service = Service::connect(&setup).await?;
    let mut alice = edge.client("alice", "app").connect().await?;
    service.push(&payment("alice", 0)).await?;
    comes(&mut alice, 0..1).await?;
    for round in 0..2 {
        let before = restarts(&edge).await?;
        setup.delete_queue("wirepost.payments.stream").await?;
        setup.repair().await?;
        service.push(&payment("alice", 1 + round)).await?;
        // It is another stream, so she is told; and what comes from now on comes.
        assert_eq!(alice.gap().await?, "incarnation");
        comes(&mut alice, 1 + round..2 + round).await?;
        assert!(restarts(&edge).await? > before, "no metric counts it");
    }
    alice.sync().await?;
    assert!(alice.controls().is_empty(), "{:?}", alice.controls());
    Ok(())
}

#[tokio::test]
async fn a_broker_that_was_frozen_is_read_again() -> Result<()> {
    let broker = PrivateBroker::start("frozen", &[]).await?;
    let setup = Setup::on(broker.vhost().await?, &[PAYMENTS]).await?;
    let edge = setup.edge("e1").start().await?;
    let service = Service::connect(&setup).await?;
    let mut alice = edge.client("alice", "app").connect().await?;
    let mut plain = edge.client("alice", "h5").connect().await?;
    service.push_all((0..10).map(|n| payment("alice", n))).await?;
    comes(&mut alice, 0..10).await?;
    let before = restarts(&edge).await?;
    broker.pause().await?;
    tokio::time::sleep(silence()).await;
    assert_eq!((edge.admin("/livez").await?.0, edge.readyz().await?.0), (200, 200));
    broker.resume().await?;
    // The service's own connection may not have outlived it.
    eventually("a service can push", RECOVERY, || async { Service::connect(&setup).await.map(|_| true) }).await?;
    Service::connect(&setup).await?.push(&payment("alice", 10)).await?;
    comes(&mut alice, 10..11).await?;
    comes(&mut plain, 0..11).await?;
    assert!(alice.controls().is_empty(), "{:?}", alice.controls());
    assert!(restarts(&edge).await? > before, "no metric counts it");
    Ok(())
}

#[tokio::test]
async fn streams_whose_packets_were_dropped_are_read_again() -> Result<()> {
    let setup = Setup::new(&[PAYMENTS]).await?;
    let (network, stream) = Proxy::of_uri(&setup.vhost().broker.stream).await?;
    let edge = setup.edge("e1").flag("stream", stream).start().await?;
    let service = Service::connect(&setup).await?;
    let mut alice = edge.client("alice", "app").connect().await?;
    service.push_all((0..10).map(|n| payment("alice", n))).await?;
    comes(&mut alice, 0..10).await?;
    assert!(network.accepted() > 0, "the stream does not go through the proxy");
    let before = restarts(&edge).await?;
    for (round, trouble) in [Network::Stalled, Network::DownStalled].into_iter().enumerate() {
        let next = 10 + round as u64 * 11;
        network.set(trouble);
        // Half of the silence with pushes, half without.
        service.push_all((next..next + 10).map(|n| payment("alice", n))).await?;
        tokio::time::sleep(silence() / (round as u32 + 1)).await;
        network.set(Network::Fine);
        service.push(&payment("alice", next + 10)).await?;
        comes(&mut alice, next..next + 11).await?;
    }
    // A reader that was idle all the time: nothing was to come, and now something is.
    network.set(Network::Stalled);
    tokio::time::sleep(silence() / 2).await;
    network.set(Network::Fine);
    service.push(&payment("alice", 32)).await?;
    comes(&mut alice, 32..33).await?;
    assert!(alice.controls().is_empty(), "{:?}", alice.controls());
    assert!(restarts(&edge).await? > before, "no metric counts it");
    Ok(())
}
