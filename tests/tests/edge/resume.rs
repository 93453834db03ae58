//! A client comes back with its cursor, to any edge, and nothing is missing or doubled (CASES 2, 4 and 5).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rand::RngExt;
use serde_json::json;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use wirepost_core::Cursor;
use wirepost_core::frames::CloseCode;
use wirepost_testing::client::End;
use wirepost_testing::edge::Edge;
use wirepost_testing::service::{Service, next_json, payment};
use wirepost_testing::setup::{PAYMENTS, Setup};

/// [`PAYMENTS`] with a stream of four segments of 50 kB.
fn small_stream() -> String {
    format!("{PAYMENTS}  push: {{retention: {{bytes: 200k}}}}\n")
}

fn offset(cursor: &str) -> Result<u64> {
    Ok(cursor.parse::<Cursor>()?.offset)
}

#[tokio::test]
async fn a_client_that_got_nothing_has_a_position() -> Result<()> {
    let setup = Setup::new(&[PAYMENTS]).await?;
    let (e1, e2) = (setup.edge("e1").start().await?, setup.edge("e2").start().await?);
    let service = Service::connect(&setup).await?;
    let mut alice = e1.client("alice", "app").connect().await?;
    let cursor = alice.cursor();
    let token = alice.resume_token();
    alice.reset();
    for n in 1..=3 {
        service.push(&payment("alice", n)).await?;
    }
    // From the memory of the edge that she was on, and on an edge that has read nothing yet.
    for edge in [&e1, &e2] {
        let mut alice = edge.client("alice", "app").token(&token).cursor(&cursor).connect().await?;
        assert!(alice.resumed(), "{}", alice.welcome);
        assert_eq!(alice.numbers(3).await?, [1, 2, 3]);
    }
    Ok(())
}

#[tokio::test]
async fn the_cursor_of_a_quiet_client_moves_before_it_falls_out_of_the_retention() -> Result<()> {
    let setup = Setup::new(&[&small_stream()]).await?;
    let (e1, e2) = (setup.edge("e1").start().await?, setup.edge("e2").start().await?);
    let service = Service::connect(&setup).await?;
    let mut alice = e1.client("alice", "app").connect().await?;
    let mut bob = e1.client("bob", "app").connect().await?;
    let first = alice.cursor();
    let filler = "x".repeat(400);
    let to_others = |n: u64| {
        let to = format!("other-{}", n % 50);
        json!({"messageType": "payment.completed", "toUniqueId": to, "content": {"n": n, "filler": filler}})
    };
    for hundred in 0..50 {
        service.push_all((hundred * 100..hundred * 100 + 99).map(to_others)).await?;
        // At the pace of the edge: this stream holds no more than a few hundred messages.
        service.push(&payment("bob", hundred)).await?;
        assert_eq!(bob.numbers(1).await?, [hundred]);
    }
    alice.sync().await?;
    let cursor = alice.cursor();
    assert!(offset(&cursor)? > offset(&first)? + 4000, "{} after {}", offset(&cursor)?, offset(&first)?);
    alice.reset();
    service.push(&payment("alice", 2)).await?;
    for edge in [&e1, &e2] {
        let mut alice = edge.client("alice", "app").cursor(&cursor).connect().await?;
        assert!(alice.resumed(), "{}", alice.welcome);
        assert_eq!(alice.numbers(1).await?, [2]);
        alice.sync().await?;
        assert!(alice.pushes().is_empty() && alice.controls().is_empty(), "{alice:?}");
    }
    Ok(())
}

#[tokio::test]
async fn the_very_first_message_of_a_business_counts() -> Result<()> {
    // Pushed before any client connected: it has offset 0, and a new client does not get it.
    let setup = Setup::new(&[PAYMENTS]).await?;
    let edge = setup.edge("e1").start().await?;
    let service = Service::connect(&setup).await?;
    service.push(&payment("alice", 0)).await?;
    let mut alice = edge.client("alice", "app").connect().await?;
    let cursor = alice.cursor();
    assert_eq!(offset(&cursor)?, 0);
    alice.reset();
    let mut alice = edge.client("alice", "app").cursor(cursor).connect().await?;
    assert!(alice.resumed(), "{}", alice.welcome);
    service.push(&payment("alice", 1)).await?;
    assert_eq!(alice.numbers(1).await?, [1], "the first is not repeated, the second comes");

    // The first that a connected client gets.
    let setup = Setup::new(&[PAYMENTS]).await?;
    let edge = setup.edge("e1").start().await?;
    let service = Service::connect(&setup).await?;
    let mut alice = edge.client("alice", "app").connect().await?;
    service.push(&payment("alice", 1)).await?;
    assert_eq!(alice.numbers(1).await?, [1]);
    let cursor = alice.cursor();
    alice.reset();
    let mut alice = edge.client("alice", "app").cursor(cursor).connect().await?;
    assert!(alice.resumed(), "{}", alice.welcome);
    service.push(&payment("alice", 2)).await?;
    assert_eq!(alice.numbers(1).await?, [2]);
    Ok(())
}

#[tokio::test]
async fn holes_in_the_numbering_are_not_losses() -> Result<()> {
    const MESSAGES: u64 = 2000;
    const TASKS: u64 = 8;
    let setup = Setup::new(&[&format!("{PAYMENTS}  push: {{retention: {{bytes: 200k}}}}\n")]).await?;
    keep_everything_in_small_segments(&setup).await?;
    setup.reconfigure("payments", |config| {
        // One identity connects thousands of times here: the rate of connects grows with this limit.
        config.limits.connections_per_id = 1000;
        config.retention.bytes = 1 << 30;
    })?;
    let e1 = Arc::new(setup.edge("e1").start().await?);
    let service = Service::connect(&setup).await?;
    let mut alice = e1.client("alice", "app").connect().await?;
    let token = alice.resume_token();
    let filler = "x".repeat(400);
    let numbered =
        |n| json!({"messageType": "payment.completed", "toUniqueId": "alice", "content": {"n": n, "filler": filler}});
    let mut cursors = vec![alice.cursor()];
    for hundred in (1..=MESSAGES).step_by(100) {
        service.push_all((hundred..hundred + 100).map(numbered)).await?;
        for n in hundred..hundred + 100 {
            assert_eq!(alice.numbers(1).await?, [n]);
            cursors.push(alice.cursor());
        }
    }
    let offsets = cursors.iter().map(|cursor| offset(cursor)).collect::<Result<Vec<_>>>()?;
    let holes: Vec<usize> = (1..cursors.len()).filter(|&i| offsets[i] > offsets[i - 1] + 1).collect();
    ensure!(holes.len() >= 10, "this broker left no holes, so the test shows nothing: {holes:?}");

    // From the memory of the edge that read them, from every message; and from the stream, where the next number is missing and elsewhere.
    let e2 = Arc::new(setup.edge("e2").flag("log-bytes", 1).start().await?);
    let everywhere: Vec<_> = (0..MESSAGES as usize).collect();
    let mut sparsely: Vec<_> = (0..MESSAGES as usize).step_by(97).collect();
    sparsely.extend(holes.iter().flat_map(|&hole| [hole - 1, hole]).filter(|&i| i < MESSAGES as usize));
    let cursors = Arc::new(cursors);
    for (edge, positions) in [(e1, everywhere), (e2, sparsely)] {
        let mut tasks = JoinSet::new();
        for part in positions.chunks(positions.len().div_ceil(TASKS as usize)) {
            let (edge, part, cursors, token) = (Arc::clone(&edge), part.to_vec(), Arc::clone(&cursors), token.clone());
            tasks.spawn(async move {
                for i in part {
                    resume_at(&edge, &token, &cursors[i], i as u64 + 1)
                        .await
                        .with_context(|| format!("{}: {i}", edge.name))?;
                }
                anyhow::Ok(())
            });
        }
        while let Some(result) = tasks.join_next().await {
            result??;
        }
        let mut alice = edge.client("alice", "app").token(&token).cursor(&cursors[0]).connect().await?;
        assert_eq!(alice.numbers(MESSAGES as usize).await?, (1..=MESSAGES).collect::<Vec<_>>());
        alice.sync().await?;
        assert!(alice.pushes().is_empty() && alice.controls().is_empty());
        assert_eq!(edge.count("wirepost_edge_gaps_total{kind=\"retention\"}").await?, 0);
        assert_eq!(edge.count("wirepost_edge_gaps_total{kind=\"incarnation\"}").await?, 0);
    }
    Ok(())
}

/// Segments of 50 kB and room for all: a declaration has four segments, of which the test would outlive the first ones.
async fn keep_everything_in_small_segments(setup: &Setup) -> Result<()> {
    let (vhost, stream) = (&setup.vhost().name, "wirepost.payments.stream");
    let policy = json!({
        "pattern": r"^wirepost\.payments\.stream$", "apply-to": "streams", "priority": 500,
        "definition": {"max-length-bytes": 100_000_000, "stream-max-segment-size-bytes": 50_000},
    });
    setup.call("PUT", &["policies", vhost, stream], &policy).await?;
    // The size of segments holds from the declaration on.
    setup.delete_queue(stream).await?;
    setup.declare_stream(stream, "wirepost.payments.push").await
}

async fn resume_at(edge: &Edge, token: &str, cursor: &str, next: u64) -> Result<()> {
    let mut alice = edge.client("alice", "app").token(token).cursor(cursor).connect().await?;
    // On a busy machine the stream is not read within the two seconds of a welcome. A gap would be an error of the next line.
    ensure!(alice.welcome["resumed"] != false, "{}", alice.welcome);
    let numbers = alice.numbers(1).await?;
    ensure!(numbers == [next], "{numbers:?} after {}", next - 1);
    alice.reset();
    Ok(())
}

#[tokio::test]
async fn there_is_no_seam_between_replay_and_live() -> Result<()> {
    const ROUNDS: u32 = 200;
    let setup = Setup::new(&[PAYMENTS]).await?;
    // One that has everything in memory, and one that has to read the stream.
    let e1 = setup.edge("e1").start().await?;
    let e2 = setup.edge("e2").flag("log-bytes", 20_000).start().await?;
    let service = Service::connect(&setup).await?;
    let mut alice = e1.client("alice", "app").connect().await?;
    let (mut cursor, token) = (alice.cursor(), alice.resume_token());
    let (stop, mut stopped) = oneshot::channel::<()>();
    let pushed = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&pushed);
    let publisher = tokio::spawn(async move {
        let mut pace = tokio::time::interval(Duration::from_millis(20));
        let mut burst = 2000;
        while stopped.try_recv().is_err() {
            pace.tick().await;
            let from = counter.load(Ordering::Relaxed);
            // 500 a second; once in between a replay of 2,000.
            let more = if from > 1000 { std::mem::take(&mut burst) + 10 } else { 10 };
            service.push_all((from + 1..=from + more).map(|n| payment("alice", n))).await?;
            counter.store(from + more, Ordering::Relaxed);
        }
        anyhow::Ok(())
    });
    let too_slow = End::Closed(4008, CloseCode::TooSlow.reason().to_owned());
    let mut chain = 0;
    for round in 0..ROUNDS {
        let (read, on_e1) = (rand::rng().random_range(1..=50), rand::rng().random_bool(0.5));
        for _ in 0..read {
            let push = match alice.push().await {
                // The burst is more than an edge queues for a client: one interruption more.
                Err(_) if alice.end().await? == too_slow => break,
                push => push.with_context(|| format!("round {round}, after {chain}"))?,
            };
            assert_eq!(push["content"]["n"], chain + 1, "round {round}, {}", if on_e1 { "e1" } else { "e2" });
            chain += 1;
        }
        cursor = alice.cursor();
        alice.reset();
        let edge = if on_e1 { &e1 } else { &e2 };
        alice = edge.client("alice", "app").token(&token).cursor(&cursor).connect().await?;
        assert!(alice.resumed(), "round {round}: {}", alice.welcome);
    }
    let _ = stop.send(());
    publisher.await??;
    let last = pushed.load(Ordering::Relaxed);
    ensure!(last > 2000, "only {last} were pushed");
    while chain < last {
        assert_eq!(alice.numbers(1).await?, [chain + 1]);
        chain += 1;
    }
    alice.sync().await?;
    assert!(alice.pushes().is_empty(), "nothing twice");
    assert!(offset(&cursor)? > 0);
    Ok(())
}

#[tokio::test]
async fn when_an_edge_is_killed_its_clients_go_on_at_another_one() -> Result<()> {
    const CLIENTS: usize = 20;
    const EACH: u64 = 200;
    let setup = Setup::new(&[PAYMENTS]).await?;
    let (e1, e2) = (setup.edge("e1").start().await?, Arc::new(setup.edge("e2").start().await?));
    let service = Service::connect(&setup).await?;
    let mut tasks = JoinSet::new();
    for i in 0..CLIENTS {
        let (id, e2) = (format!("client-{i}"), Arc::clone(&e2));
        let mut client = e1.client(&id, "app").connect().await?;
        tasks.spawn(async move {
            let mut numbers = Vec::new();
            let mut moved = false;
            while numbers.len() < EACH as usize {
                match client.push().await {
                    Ok(push) => numbers.push(push["content"]["n"].as_u64().context("a number")?),
                    Err(error) => {
                        let End::Gone(_) = client.end().await? else { return Err(error.context("closed")) };
                        ensure!(!moved, "cut twice");
                        moved = true;
                        // With what it holds already: nobody's backend is asked.
                        let (cursor, token) = (client.cursor(), client.resume_token());
                        client = e2.client(&id, "app").token(token).cursor(cursor).connect().await?;
                        // A welcome that could not wait for the stream any longer says nothing; a `gap` would end `push` with an error.
                        ensure!(client.resumed() || client.welcome["resumed"].is_null(), "{}", client.welcome);
                    }
                }
            }
            ensure!(moved, "it was never cut");
            ensure!(numbers == (0..EACH).collect::<Vec<_>>(), "{id}: {numbers:?}");
            client.sync().await?;
            ensure!(client.pushes().is_empty(), "something came twice");
            anyhow::Ok(())
        });
    }
    for n in 0..EACH {
        service.push_all((0..CLIENTS).map(|i| payment(&format!("client-{i}"), n))).await?;
        if n == EACH / 2 {
            e1.kill9()?;
        }
    }
    while let Some(result) = tasks.join_next().await {
        result??;
    }
    assert_eq!(e2.count("wirepost_edge_tokens_total{kind=\"ok\"}").await?, 0);
    Ok(())
}

#[tokio::test]
async fn what_a_killed_edge_acknowledged_is_in_the_queue_and_a_resend_is_recognisable() -> Result<()> {
    const MESSAGES: u64 = 400;
    let setup = Setup::new(&[PAYMENTS]).await?;
    let (e1, e2) = (setup.edge("e1").start().await?, setup.edge("e2").start().await?);
    let service = Service::connect(&setup).await?;
    let mut orders = service.consume("orders", 100).await?;
    let mut alice = e1.client("alice", "app").connect().await?;
    let token = alice.resume_token();
    let order = |n: u64| json!({"id": format!("o{n}"), "messageType": "order.placed", "content": {"n": n}});
    // She keeps 20 on their way; at the crash those without an ack are sent again, with their ids, in their order.
    let (mut sent, mut acked) = (0, 0);
    while acked < MESSAGES {
        if acked == MESSAGES / 2 && e1.running() {
            e1.kill9()?;
        }
        let step = async {
            while sent < MESSAGES && sent < acked + 20 {
                alice.send(&order(sent)).await?;
                sent += 1;
            }
            alice.ack(&format!("o{acked}")).await
        };
        if step.await.is_ok() {
            acked += 1;
        } else {
            alice.end().await?;
            alice = e2.client("alice", "app").token(&token).connect().await?;
            sent = acked;
        }
    }
    let mut ids = Vec::new();
    let mut seen = std::collections::HashSet::new();
    while seen.len() < MESSAGES as usize {
        let order = next_json(&mut orders).await?;
        let id = order["id"].as_str().context("an id")?.to_owned();
        if seen.insert(id.clone()) {
            ids.push(order["content"]["n"].as_u64().context("a number")?);
        }
    }
    assert_eq!(ids, (0..MESSAGES).collect::<Vec<_>>(), "in order, once repeats are dropped by their ids");
    Ok(())
}
