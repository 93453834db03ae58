//! Reading from a broker or through a network that misbehaves, one fault at a time.

use std::time::Duration;

use anyhow::Result;
use tokio::time::Instant;
use wirepost_stream::{Client, Error, Event, Position, Start, Subscription};
use wirepost_testing::broker::{PATIENCE, Vhost, eventually};
use wirepost_testing::proxy::{Network, Proxy};

use crate::support::{Publisher, attached, client, config, event, host_of, numbers, range, take};

/// A client that reaches the broker through a proxy.
async fn proxied(vhost: &Vhost) -> Result<(Proxy, Client)> {
    let (proxy, uri) = Proxy::of_uri(&vhost.broker.stream).await?;
    let client = Client::new(config(host_of(&uri), &vhost.name));
    Ok((proxy, client))
}

async fn down(subscription: &mut Subscription) -> Error {
    match event(subscription).await {
        Event::Down { reason } => reason,
        other => panic!("expected an outage, got {other:?}"),
    }
}

/// Waits for a reset, then for the attachment to the new life.
async fn reset(subscription: &mut Subscription) {
    loop {
        match event(subscription).await {
            Event::Reset => break,
            Event::Down { .. } => {}
            other => panic!("expected a reset, got {other:?}"),
        }
    }
    assert_eq!(attached(subscription).await, None);
}

#[tokio::test]
async fn a_cut_connection_is_taken_up_where_it_was() -> Result<()> {
    let vhost = Vhost::create().await?;
    let publisher = Publisher::connect(&vhost).await?;
    publisher.declare("s").await?;
    let (proxy, client) = proxied(&vhost).await?;
    let mut subscription = client.subscribe("s", Start::First);
    attached(&mut subscription).await;
    for step in 0..5 {
        publisher.numbers("s", step * 100..step * 100 + 50).await?;
        assert_eq!(numbers(&take(&mut subscription, 50).await), range(step * 100..step * 100 + 50));
        proxy.cut();
        down(&mut subscription).await;
        publisher.numbers("s", step * 100 + 50..step * 100 + 100).await?;
        assert_eq!(numbers(&take(&mut subscription, 50).await), range(step * 100 + 50..step * 100 + 100));
    }
    assert_eq!(client.counters().restarts.get(), 5);
    Ok(())
}

#[tokio::test]
async fn a_silent_network_is_noticed_within_two_heartbeats_and_nothing_is_lost() -> Result<()> {
    let vhost = Vhost::create().await?;
    let publisher = Publisher::connect(&vhost).await?;
    publisher.declare("s").await?;
    let (proxy, client) = proxied(&vhost).await?;
    let mut subscription = client.subscribe("s", Start::First);
    attached(&mut subscription).await;
    for (i, fault) in [Network::Stalled, Network::DownStalled].into_iter().enumerate() {
        let first = i as u64 * 100;
        proxy.set(fault);
        publisher.numbers("s", first..first + 100).await?;
        let stalled = Instant::now();
        let reason = down(&mut subscription).await;
        assert!(matches!(reason, Error::ConnectionLost(_)), "{reason}");
        assert!(stalled.elapsed() < Duration::from_secs(10), "{:?}", stalled.elapsed());
        proxy.set(Network::Fine);
        assert_eq!(numbers(&take(&mut subscription, 100).await), range(first..first + 100));
    }
    // Bounded also while the network is away.
    proxy.set(Network::Stalled);
    let begin = Instant::now();
    client.close().await;
    assert!(begin.elapsed() < Duration::from_secs(5));
    Ok(())
}

#[tokio::test]
async fn a_broker_that_hears_nothing_from_us_sends_everything_later() -> Result<()> {
    let vhost = Vhost::create().await?;
    let publisher = Publisher::connect(&vhost).await?;
    publisher.declare("s").await?;
    let (proxy, client) = proxied(&vhost).await?;
    let mut subscription = client.subscribe("s", Start::First);
    attached(&mut subscription).await;
    // The broker hears nothing from us, neither credits nor heartbeats.
    proxy.set(Network::UpStalled);
    for step in 0..20 {
        publisher.numbers("s", step * 10..step * 10 + 10).await?;
    }
    // What the credits of the beginning allow, in chunks of any size.
    let received = take(&mut subscription, 1).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    proxy.set(Network::Fine);
    let rest = take(&mut subscription, 200 - received.len()).await;
    assert_eq!(numbers(&[received, rest].concat()), range(0..200));
    Ok(())
}

#[tokio::test]
async fn a_connection_closed_by_the_management_api_comes_back() -> Result<()> {
    let vhost = Vhost::create().await?;
    let publisher = Publisher::connect(&vhost).await?;
    publisher.declare("s").await?;
    let client = client(&vhost);
    let mut subscription = client.subscribe("s", Start::First);
    attached(&mut subscription).await;
    close_stream_connections(&vhost).await?;
    let reason = down(&mut subscription).await;
    assert!(reason.to_string().contains("closed by the broker"), "{reason}");
    publisher.numbers("s", 0..10).await?;
    assert_eq!(numbers(&take(&mut subscription, 10).await), range(0..10));
    Ok(())
}

/// Closes what the management API lists; it lists connections some seconds late.
async fn close_stream_connections(vhost: &Vhost) -> Result<()> {
    eventually("a stream connection is listed and closed", PATIENCE, || async {
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

#[tokio::test]
async fn a_stream_declared_again_is_a_reset_and_is_read_from_its_beginning() -> Result<()> {
    let vhost = Vhost::create().await?;
    let publisher = Publisher::connect(&vhost).await?;
    publisher.declare("s").await?;
    publisher.declare("other").await?;
    let client = client(&vhost);
    let mut other = client.subscribe("other", Start::First);
    let mut subscription = client.subscribe("s", Start::First);
    attached(&mut other).await;
    // The new life is shorter, longer, as long as the old one; every message is the same text at the same offset.
    for (old, new) in [(50, 10), (10, 50), (20, 20)] {
        publisher.numbers("s", 0..old).await?;
        attached(&mut subscription).await;
        assert_eq!(numbers(&take(&mut subscription, old as usize).await), range(0..old));
        publisher.delete("s").await?;
        assert!(matches!(down(&mut subscription).await, Error::SubscriptionEnded(_)));
        publisher.declare("s").await?;
        publisher.numbers("s", 0..new).await?;
        reset(&mut subscription).await;
        assert_eq!(numbers(&take(&mut subscription, new as usize).await), range(0..new));
        // Start over for the next pair.
        publisher.delete("s").await?;
        publisher.declare("s").await?;
        loop {
            match event(&mut subscription).await {
                Event::Reset => break,
                Event::Down { .. } => {}
                unexpected => panic!("{unexpected:?}"),
            }
        }
    }
    // Nobody else noticed.
    publisher.numbers("other", 0..10).await?;
    assert_eq!(numbers(&take(&mut other, 10).await), range(0..10));
    assert_eq!(client.counters().connections_lost.get(), 0);
    Ok(())
}

#[tokio::test]
async fn a_position_of_another_life_is_a_reset() -> Result<()> {
    let vhost = Vhost::create().await?;
    let publisher = Publisher::connect(&vhost).await?;
    publisher.declare("s").await?;
    publisher.numbers("s", 0..10).await?;
    let client = client(&vhost);
    let known = take(&mut client.subscribe("s", Start::First), 10).await[5].position();
    for position in [
        Position { fingerprint: known.fingerprint ^ 1, ..known },
        Position { offset: known.offset + 1, ..known },
        Position { offset: 1000, ..known },
    ] {
        let mut subscription = client.subscribe("s", Start::After(position));
        reset(&mut subscription).await;
        assert_eq!(numbers(&take(&mut subscription, 10).await), range(0..10));
    }
    // Also when the stream is empty now.
    publisher.delete("s").await?;
    publisher.declare("s").await?;
    let mut subscription = client.subscribe("s", Start::After(known));
    reset(&mut subscription).await;
    publisher.numbers("s", 0..1).await?;
    assert_eq!(numbers(&take(&mut subscription, 1).await), [0]);
    Ok(())
}

#[tokio::test]
async fn what_the_retention_took_is_a_gap() -> Result<()> {
    let vhost = Vhost::create().await?;
    let publisher = Publisher::connect(&vhost).await?;
    let limits = [("x-max-length-bytes", 200_000), ("x-stream-max-segment-size-bytes", 50_000)];
    publisher.declare_with("s", &limits).await?;
    let client = client(&vhost);
    let mut detached = client.subscribe("s", Start::First);
    publisher.numbers("s", 0..10).await?;
    let seen = take(&mut detached, 10).await;
    drop(detached);
    for step in 0..60 {
        publisher.publish("s", (0..50).map(|i| format!("{:0500}", step * 50 + i))).await?;
    }
    eventually("the retention has taken the first messages", PATIENCE, || async {
        Ok(client.stats("s").await?.first_offset.is_some_and(|first| first > 20))
    })
    .await?;
    let mut subscription = client.subscribe("s", Start::After(seen[9].position()));
    let Event::Gap { first_offset } = event(&mut subscription).await else { panic!("expected a gap") };
    assert!(first_offset > 20);
    assert_eq!(attached(&mut subscription).await, None);
    let first = &take(&mut subscription, 1).await[0];
    assert_eq!(first.offset(), first_offset);
    assert_eq!(client.counters().resets.get(), 0);
    Ok(())
}

#[tokio::test]
async fn a_broker_that_is_away_is_knocked_at_with_pauses_by_one() -> Result<()> {
    let vhost = Vhost::create().await?;
    let publisher = Publisher::connect(&vhost).await?;
    publisher.declare("s").await?;
    let (proxy, client) = proxied(&vhost).await?;
    proxy.set(Network::Stalled);
    let mut subscriptions: Vec<_> = (0..100).map(|_| client.subscribe("s", Start::First)).collect();
    for subscription in &mut subscriptions {
        down(subscription).await;
    }
    assert!(proxy.accepted() <= 3, "{} connections", proxy.accepted());
    proxy.set(Network::Fine);
    publisher.numbers("s", 0..1).await?;
    for subscription in &mut subscriptions {
        assert_eq!(numbers(&take(subscription, 1).await), [0]);
    }
    Ok(())
}
