//! A cursor from another life of the stream, or older than the retention, says `gap` (CASES 3).

use anyhow::{Context, Result, ensure};
use serde_json::json;
use wirepost_core::{Cursor, names};
use wirepost_testing::client::Client;
use wirepost_testing::edge::Edge;
use wirepost_testing::service::{Service, payment};
use wirepost_testing::setup::{PAYMENTS, Setup};

/// Pushes to alice until a message of hers has that offset or a later one; all her cursors.
async fn cursors(alice: &mut Client, service: &Service, last: u64) -> Result<Vec<String>> {
    let mut cursors = vec![alice.cursor()];
    let offset = |cursor: &str| cursor.parse::<Cursor>().map(|cursor| cursor.offset);
    while offset(cursors.last().context("one")?)? < last {
        service.push(&payment("alice", cursors.len() as u64)).await?;
        alice.push().await?;
        cursors.push(alice.cursor());
    }
    Ok(cursors)
}

/// Comes back with a cursor: is told of one gap with this reason, and then gets what comes from now on, in order.
async fn comes_back(edge: &Edge, service: &Service, cursor: &str, reason: &str) -> Result<()> {
    let id = format!("alice-{}", rand::random::<u32>());
    // Her cursor is the business's, not the identity's: each call takes an identity that nothing was pushed to.
    let mut alice = edge.client(&id, "app").cursor(cursor).connect().await?;
    ensure!(!alice.resumed(), "{}: {}", edge.name, alice.welcome);
    ensure!(alice.gap().await? == reason, "{}: another reason", edge.name);
    service.push_all((0..60).map(|n| payment(&id, n))).await?;
    ensure!(alice.numbers(60).await? == (0..60).collect::<Vec<_>>(), "{}: not everything from now on", edge.name);
    alice.sync().await?;
    ensure!(alice.controls().is_empty() && alice.pushes().is_empty(), "{}: more than one gap: {alice:?}", edge.name);
    Ok(())
}

async fn recreated(by_hand: bool) -> Result<()> {
    let setup = Setup::new(&[PAYMENTS]).await?;
    let e1 = setup.edge("e1").start().await?;
    let service = Service::connect(&setup).await?;
    let mut alice = e1.client("alice", "app").connect().await?;
    let cursors = cursors(&mut alice, &service, 50).await?;
    let mut bob = e1.client("bob", "app").connect().await?;
    let stream = names::stream("payments");
    setup.delete_queue(&stream).await?;
    if by_hand {
        setup.declare_stream(&stream, &names::push_exchange("payments")).await?;
    } else {
        setup.repair().await?;
    }
    service.push_all((0..10).map(|n| payment("bob", n))).await?;

    // A client that stayed is told as well, once, and misses nothing of the new stream.
    ensure!(bob.gap().await? == "incarnation", "another reason");
    assert_eq!(bob.numbers(10).await?, (0..10).collect::<Vec<_>>());
    // The edge that knew the old life, and one that never did; a cursor beyond the new end, and one that has a number there.
    let e2 = setup.edge("e2").start().await?;
    for edge in [&e1, &e2] {
        for old in [&cursors[cursors.len() - 1], &cursors[5]] {
            comes_back(edge, &service, old, "incarnation").await?;
        }
    }
    bob.sync().await?;
    assert!(bob.controls().is_empty(), "told more than once: {:?}", bob.controls());
    // Cursors of the new life are good.
    let cursor = bob.cursor();
    bob.reset();
    let mut bob = e2.client("bob", "app").cursor(cursor).connect().await?;
    assert!(bob.resumed());
    service.push(&payment("bob", 10)).await?;
    assert_eq!(bob.numbers(1).await?, [10]);
    Ok(())
}

#[tokio::test]
async fn a_stream_deleted_and_repaired_is_another_one() -> Result<()> {
    recreated(false).await
}

#[tokio::test]
async fn a_stream_declared_again_by_hand_is_another_one() -> Result<()> {
    recreated(true).await
}

#[tokio::test]
async fn a_client_that_comes_back_while_the_stream_is_away_is_told_when_it_is_there() -> Result<()> {
    let setup = Setup::new(&[PAYMENTS]).await?;
    let (e1, e2) = (setup.edge("e1").start().await?, setup.edge("e2").start().await?);
    let service = Service::connect(&setup).await?;
    let mut alice = e1.client("alice", "app").connect().await?;
    cursors(&mut alice, &service, 5).await?;
    setup.delete_queue(&names::stream("payments")).await?;
    let mut waiting = e2.client("alice", "app").cursor(alice.cursor()).greeted().await?;
    assert!(waiting.welcome["resumed"].is_null(), "nobody can know: {}", waiting.welcome);
    setup.repair().await?;
    assert_eq!(waiting.gap().await?, "incarnation");
    service.push(&payment("alice", 100)).await?;
    assert_eq!(waiting.numbers(1).await?, [100]);
    assert_eq!(alice.gap().await?, "incarnation");
    assert_eq!(alice.numbers(1).await?, [100]);
    Ok(())
}

#[tokio::test]
async fn a_cursor_that_the_retention_has_passed_is_a_gap() -> Result<()> {
    let setup = Setup::new(&[&format!("{PAYMENTS}  push: {{retention: {{bytes: 200k}}}}\n")]).await?;
    let e1 = setup.edge("e1").flag("log-bytes", 10_000).start().await?;
    let service = Service::connect(&setup).await?;
    let mut alice = e1.client("alice", "app").connect().await?;
    let mut bob = e1.client("bob", "app").connect().await?;
    let cursors = cursors(&mut alice, &service, 10).await?;
    alice.reset();
    let filler = "x".repeat(400);
    let other =
        |n| json!({"messageType": "payment.completed", "toUniqueId": "other", "content": {"n": n, "filler": filler}});
    for hundred in 0..20 {
        service.push_all((0..99).map(other)).await?;
        // At the pace of the edge: a reader that falls behind such a small stream has a gap of its own.
        service.push(&payment("bob", hundred)).await?;
        assert_eq!(bob.numbers(1).await?, [hundred]);
    }
    let e2 = setup.edge("e2").start().await?;
    for edge in [&e1, &e2] {
        for old in [&cursors[cursors.len() - 1], &cursors[0]] {
            comes_back(edge, &service, old, "retention").await?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn what_is_no_cursor_of_this_business_is_a_gap_as_well() -> Result<()> {
    let other = PAYMENTS.replace("name: payments", "name: other");
    let setup = Setup::new(&[PAYMENTS, &other]).await?;
    let edge = setup.edge("e1").start().await?;
    let service = Service::connect(&setup).await?;
    let cursor = edge.client("alice", "app").business("other").connect().await?.cursor();
    for foreign in [cursor.as_str(), "garbage", "AAAA"] {
        comes_back(&edge, &service, foreign, "incarnation").await?;
    }
    Ok(())
}
