//! The end of an old connection can't hurt the new one (CASES 13).

#![expect(clippy::float_cmp, reason = "metrics are read as floats and count whole things")]

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use wirepost_testing::broker::{PATIENCE, eventually};
use wirepost_testing::client::{Client, End};
use wirepost_testing::proxy::{Network, Proxy};
use wirepost_testing::service::{Service, next_json, payment};
use wirepost_testing::setup::{PAYMENTS, Setup};

const DEAD: &str = "wirepost_edge_closes_total{kind=\"vanished\"}";

fn id(client: &Client) -> String {
    client.welcome["connectionId"].as_str().unwrap_or_default().to_owned()
}

#[tokio::test]
async fn a_connection_that_is_noticed_dead_late_takes_nothing_from_its_successors() -> Result<()> {
    let setup = Setup::new(&[PAYMENTS]).await?;
    let e1 = setup.edge("e1").flag("heartbeat-seconds", 2).start().await?;
    let e2 = setup.edge("e2").start().await?;
    let service = Service::connect(&setup).await?;
    let mut events = service.events("#").await?;
    let network = Proxy::start(e1.public).await?;
    let mut old = e1.client("alice", "app").via(network.address).connect().await?;
    service.push(&payment("alice", 0)).await?;
    assert_eq!(old.numbers(1).await?, [0]);
    // Her phone leaves the network: no packet, no FIN.
    network.set(Network::Stalled);
    let (token, cursor) = (old.resume_token(), old.cursor());
    service.push(&payment("alice", 1)).await?;
    let mut on_e2 = e2.client("alice", "app").token(token.as_str()).cursor(cursor.as_str()).connect().await?;
    let mut on_e1 = e1.client("alice", "app").token(token).cursor(cursor).connect().await?;
    service.push(&payment("alice", 2)).await?;
    for new in [&mut on_e1, &mut on_e2] {
        assert_eq!(new.numbers(2).await?, [1, 2]);
    }
    let old_id = id(&old);
    // E1 notices; the new one there answers its pings meanwhile, which it does only while it reads.
    let deadline = Instant::now() + PATIENCE;
    while e1.metric(DEAD).await? < 1.0 {
        ensure!(Instant::now() < deadline, "the dead connection is not noticed");
        on_e1.sync().await?;
        sleep(Duration::from_millis(50)).await;
    }
    let noticed = wait_for(&mut events, "disconnected", &old_id).await?;
    service.push(&payment("alice", 3)).await?;
    for new in [&mut on_e1, &mut on_e2] {
        assert_eq!(new.numbers(1).await?, [3]);
        new.sync().await?;
    }
    assert_eq!(e1.metric("wirepost_edge_connections").await?, 1.0);
    // The events name connections: a service that counts those is right in any order of arrival.
    let mut open: BTreeMap<String, i32> = BTreeMap::new();
    for event in noticed.iter().rev() {
        assert_eq!((&event["uniqueId"], &event["clientType"]), (&json!("alice"), &json!("app")), "{event}");
        let change = match event["event"].as_str() {
            Some("connected") => 1,
            Some("disconnected") => -1,
            _ => 0,
        };
        *open
            .entry(event["connectionId"].as_str().context("an event without connectionId")?.to_owned())
            .or_default() += change;
    }
    let open: Vec<_> = open.into_iter().filter(|(_, count)| *count > 0).map(|(id, _)| id).collect();
    let mut expected = [id(&on_e1), id(&on_e2)];
    expected.sort();
    assert_eq!(open, expected);
    Ok(())
}

/// Events up to that of this kind and connection.
async fn wait_for(events: &mut lapin::Consumer, kind: &str, connection: &str) -> Result<Vec<Value>> {
    let mut seen = Vec::new();
    loop {
        let event = next_json(events).await.with_context(|| format!("awaiting {kind} of {connection}: {seen:?}"))?;
        let found = event["event"] == kind && event["connectionId"] == connection;
        seen.push(event);
        if found {
            return Ok(seen);
        }
    }
}

#[tokio::test]
async fn one_device_too_many_replaces_the_oldest_once_and_not_each_other_for_ever() -> Result<()> {
    let setup = Setup::new(&[PAYMENTS]).await?;
    let edge = setup.edge("e1").start().await?;
    let service = Service::connect(&setup).await?;
    let mut devices = Vec::new();
    for _ in 0..9 {
        devices.push(edge.client("alice", "app").connect().await?);
    }
    let mut oldest = devices.remove(0);
    let End::Closed(4009, reason) = oldest.end().await? else { panic!("the oldest was not replaced: {oldest:?}") };
    // The client must follow the rule that keeps nine devices from replacing each other forever: it is told.
    assert!(reason.contains("do not reconnect"), "{reason}");
    service.push(&payment("alice", 0)).await?;
    for device in &mut devices {
        assert_eq!(device.numbers(1).await?, [0]);
    }
    // A device that was cut for another reason comes back, again and again, and replaces nobody.
    for round in 1..=5 {
        let mut device = devices.remove(0);
        let (token, cursor) = (device.resume_token(), device.cursor());
        device.reset();
        eventually("its end is noticed", PATIENCE, || async {
            Ok(edge.metric("wirepost_edge_connections").await? == 7.0)
        })
        .await?;
        devices.push(edge.client("alice", "app").token(token).cursor(cursor).connect().await?);
        service.push(&payment("alice", round)).await?;
        for device in &mut devices {
            assert_eq!(device.numbers(1).await?, [round]);
        }
    }
    assert_eq!(edge.metric("wirepost_edge_connections").await?, 8.0);
    Ok(())
}

#[tokio::test]
async fn the_limit_of_connections_counts_each_identity_of_each_business_alone() -> Result<()> {
    let setup = Setup::new(&[
        &format!("{PAYMENTS}  # one each\n").replace("burst: 20000}", "burst: 20000, connectionsPerId: 1}")
    ])
    .await?;
    let edge = setup.edge("e1").start().await?;
    let mut bob = edge.client("bob", "app").connect().await?;
    let mut first = edge.client("alice", "app").connect().await?;
    let mut second = edge.client("alice", "h5").connect().await?;
    assert_eq!(first.close_code().await?, 4009);
    let service = Service::connect(&setup).await?;
    service.push_all([payment("alice", 1), payment("bob", 2)]).await?;
    assert_eq!(second.numbers(1).await?, [1]);
    assert_eq!(bob.numbers(1).await?, [2]);
    // In a burst of connects of one identity exactly one stays, the others are told.
    let joining = (0..10).map(|_| edge.client("carol", "app").upgrade());
    let mut crowd = Vec::new();
    for client in futures_util::future::join_all(joining).await {
        crowd.push(client?);
    }
    eventually("one is left", PATIENCE, || async { Ok(edge.metric("wirepost_edge_connections").await? == 3.0) })
        .await?;
    service.push(&payment("carol", 3)).await?;
    let mut got = 0;
    for client in &mut crowd {
        match client.push_within(Duration::from_secs(5)).await {
            Ok(push) => {
                assert_eq!(push["content"]["n"], 3);
                got += 1;
            }
            Err(_) => assert_eq!(client.close_code().await?, 4009),
        }
    }
    assert_eq!(got, 1);
    Ok(())
}
