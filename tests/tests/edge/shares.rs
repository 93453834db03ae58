//! What one business may use of an edge: at its limits, others notice nothing.

use std::{fmt::Write, time::Duration};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tokio::time::Instant;
use wirepost_testing::client::Refused;
use wirepost_testing::raw::Raw;
use wirepost_testing::service::Service;
use wirepost_testing::setup::{PAYMENTS, Setup};

/// [`PAYMENTS`], and a second business with such a share of each edge.
async fn setup(per_edge: &str) -> Result<Setup> {
    let greedy = PAYMENTS.replace("name: payments", "name: greedy").replace(
        "limits: {messagesPerSecond: 10000, burst: 20000}",
        &format!("limits: {{messagesPerSecond: 10000, burst: 20000, perEdge: {per_edge}}}"),
    );
    Setup::new(&[PAYMENTS, &greedy]).await
}

fn notice(n: u64, bytes: usize) -> Value {
    json!({"messageType": "till.notice", "toUniqueId": "*", "content": {"n": n, "x": "x".repeat(bytes)}})
}

#[tokio::test]
async fn a_business_gets_its_connections_and_its_messages_and_another_one_notices_nothing() -> Result<()> {
    let setup = setup("{connections: 3, messagesPerSecond: 10}").await?;
    let edge = setup.edge("e1").start().await?;
    let greedy = |name: &'static str| edge.client(name, "app").business("greedy");
    let mut clients = Vec::new();
    for name in ["a", "b", "c"] {
        clients.push(greedy(name).connect().await?);
    }
    let refused = greedy("d").upgrade().await.err().context("a fourth connection")?;
    assert_eq!(refused.downcast_ref::<Refused>().context("not refused as HTTP")?.status, 503);
    assert_eq!(edge.count("wirepost_edge_refused_total{kind=\"business_connections\"}").await?, 1);
    // All clients together, each well below its own rate.
    let began = Instant::now();
    for client in &mut clients {
        for n in 0..10 {
            client.send(&json!({"id": n.to_string(), "messageType": "order.placed"})).await?;
        }
    }
    let mut acked = 0;
    for client in &mut clients {
        for _ in 0..10 {
            let answer = client.answer().await?;
            acked += u32::from(answer["op"] == "ack");
            ensure!(answer["op"] == "ack" || answer["code"] == "rate_limited", "{answer}");
        }
    }
    let allowed = 10 + (began.elapsed().as_secs_f64() * 10.0).ceil() as u32;
    ensure!((10..=allowed).contains(&acked), "{acked} of at most {allowed}");
    let mut alice = edge.client("alice", "app").connect().await?;
    for n in 0..30 {
        alice.send_acked(&json!({"id": n.to_string(), "messageType": "order.placed"})).await?;
    }
    // A place that is left is given away.
    clients.pop().context("a client")?.leave().await?;
    wirepost_testing::broker::eventually("the place is free", Duration::from_secs(20), || async {
        Ok(greedy("d").connect().await.is_ok())
    })
    .await
}

#[tokio::test]
async fn pushes_beyond_the_rate_are_refused_by_http_and_read_later_from_the_broker() -> Result<()> {
    let setup = setup("{pushesPerSecond: 20}").await?;
    let edge = setup.edge("e1").start().await?;
    let mut of_greedy = edge.client("till", "pos").business("greedy").connect().await?;
    let mut alice = edge.client("alice", "app").connect().await?;
    let (greedy, payments) = (Service::of(&setup, "greedy").await?, Service::connect(&setup).await?);
    let began = Instant::now();
    greedy.push_all((0..100).map(|n| notice(n, 10))).await?;
    payments.push(&notice(7, 10)).await?;
    assert_eq!(alice.numbers(1).await?, [7]);
    assert_eq!(of_greedy.numbers(100).await?, (0..100).collect::<Vec<_>>());
    ensure!(began.elapsed() >= Duration::from_secs(3), "100 pushes in {:?}", began.elapsed());
    ensure!(edge.count("wirepost_edge_business_limited_total{kind=\"reads\"}").await? > 0);

    let client = reqwest::Client::builder().no_proxy().build()?;
    let url = format!("http://{}/greedy/websocket/messages", edge.public);
    let call = || client.post(&url).header("x-api-key", setup.api_key()).body(notice(0, 10).to_string()).send();
    let mut refused = None;
    for _ in 0..60 {
        let answer = call().await?;
        if answer.status() != 200 {
            refused = Some(answer);
            break;
        }
    }
    let refused = refused.context("60 pushes at once are taken")?;
    ensure!(refused.status() == 503 && refused.headers().contains_key("retry-after"), "{refused:?}");
    assert_eq!(edge.post(&notice(8, 10)).await?.0, 200);
    Ok(())
}

#[tokio::test]
async fn large_messages_beyond_the_bytes_are_refused_to_be_sent_again_and_another_business_notices_nothing()
-> Result<()> {
    const BYTES: usize = 40_000;
    let setup = setup("{bytesPerSecond: 65536}").await?;
    let edge = setup.edge("e1").start().await?;
    let mut clients = [
        edge.client("a", "app").business("greedy").connect().await?,
        edge.client("b", "app").business("greedy").connect().await?,
    ];
    let message = |n: u32| json!({"id": n.to_string(), "messageType": "order.placed", "content": "x".repeat(BYTES)});
    let (began, mut acked, mut refused) = (Instant::now(), 0_u32, 0);
    // On a slow machine more of them fit.
    for n in 0..1000 {
        if refused == 3 {
            break;
        }
        for client in &mut clients {
            client.send(&message(n)).await?;
            let answer = client.answer().await?;
            if answer["op"] == "ack" {
                acked += 1;
                continue;
            }
            ensure!(answer["code"] == "rate_limited" && answer["retryAfterMs"].as_u64() > Some(0), "{answer}");
            ensure!(answer["reason"].as_str().is_some_and(|reason| reason.contains("bytes")), "{answer}");
            refused += 1;
        }
    }
    let most = 65_536.0 * (1.0 + began.elapsed().as_secs_f64()) / BYTES as f64;
    ensure!((1..=most.ceil() as u32).contains(&acked), "{acked} of at most {most}");
    ensure!(refused == 3 && edge.count("wirepost_edge_business_limited_total{kind=\"bytes\"}").await? >= refused);
    // Whoever waits as it is told is taken.
    let [client, _] = &mut clients;
    client.send(&message(10)).await?;
    while let Some(wait) = client.answer().await?["retryAfterMs"].as_u64() {
        ensure!(began.elapsed() < Duration::from_secs(30), "never taken");
        tokio::time::sleep(Duration::from_millis(wait)).await;
        client.send(&message(10)).await?;
    }

    let http = reqwest::Client::builder().no_proxy().build()?;
    let url = format!("http://{}/greedy/websocket/messages", edge.public);
    // Larger than all that fits: the next call has to wait for ten seconds.
    let batch = || Value::Array((0..20).map(|n| notice(n, BYTES)).collect()).to_string();
    let call = || http.post(&url).header("x-api-key", setup.api_key()).body(batch()).send();
    assert_eq!(call().await?.status(), 200, "its pushes have bytes of their own");
    let second = call().await?;
    let wait = second.headers().get("retry-after").and_then(|wait| wait.to_str().ok()?.parse::<u64>().ok());
    ensure!(second.status() == 503 && wait > Some(2), "{second:?}");

    let mut alice = edge.client("alice", "app").connect().await?;
    for n in 0..30 {
        alice.send_acked(&message(n)).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_message_counts_once_for_each_queue_that_gets_it() -> Result<()> {
    const BYTES: usize = 40_000;
    let mut routes = String::new();
    for (n, pattern) in ["order.*", "*.placed", "#.placed", "*.*"].iter().enumerate() {
        writeln!(routes, "    - {{messageType: \"{pattern}\", sendType: ClientToServer, queue: {{name: more-{n}}}}}")?;
    }
    let declared = PAYMENTS.replace(
        "  limits: {messagesPerSecond: 10000, burst: 20000}",
        &format!("{routes}  limits: {{messagesPerSecond: 10000, burst: 20000, perEdge: {{bytesPerSecond: 1048576}}}}"),
    );
    let setup = Setup::new(&[&declared]).await?;
    let edge = setup.edge("e1").start().await?;
    let mut client = edge.client("a", "app").connect().await?;
    let (began, mut acked) = (Instant::now(), 0_u32);
    loop {
        let message = json!({"id": acked.to_string(), "messageType": "order.placed", "content": "x".repeat(BYTES)});
        client.send(&message).await?;
        let answer = client.answer().await?;
        if answer["code"] == "rate_limited" {
            break;
        }
        ensure!(answer["op"] == "ack" && acked < 1000, "{answer} after {acked}");
        acked += 1;
    }
    let most = 1_048_576.0 * (1.0 + began.elapsed().as_secs_f64()) / (5 * BYTES) as f64 + 1.0;
    ensure!((2..=most.ceil() as u32).contains(&acked), "{acked} of at most {most}");
    Ok(())
}

#[tokio::test]
async fn the_memory_of_a_business_is_bounded_and_another_ones_pushes_go_on() -> Result<()> {
    const BYTES: usize = 200_000;
    let setup = setup("{memoryBytes: 2097152}").await?;
    let edge = setup.edge("e1").flag("log-bytes", 0).flag("outbound-bytes", 64 << 20).start().await?;
    let mut deaf = Vec::new();
    for n in 0..4 {
        let client = edge.client(&format!("deaf-{n}"), "pos").business("greedy").receive_buffer(16 << 10);
        deaf.push(client.connect().await?);
    }
    // It reads nothing either, but its business is within its share.
    let mut slow = edge.client("slow", "pos").receive_buffer(16 << 10).connect().await?;
    let mut alice = edge.client("alice", "app").connect().await?;
    let (greedy, payments) = (Service::of(&setup, "greedy").await?, Service::connect(&setup).await?);
    for n in 0..60 {
        greedy.push(&notice(n, BYTES)).await?;
        payments.push(&notice(n, 100)).await?;
        assert_eq!(alice.numbers(1).await?, [n]);
    }
    edge.await_metric("wirepost_edge_business_limited_total{kind=\"memory\"}", 1.0).await?;
    ensure!(edge.count("wirepost_edge_backlog_closes_total").await? >= 1);
    assert_eq!(slow.numbers(60).await?, (0..60).collect::<Vec<_>>(), "it lost nothing, and is still connected");
    drop(deaf);

    // Bodies of its calls that do not come: those of others do.
    let mut unsent = Vec::new();
    for _ in 0..130 {
        let mut raw = Raw::connect(edge.public).await?;
        let key = setup.api_key();
        raw.send(format!(
            "POST /greedy/websocket/messages HTTP/1.1\r\nhost: edge\r\nx-api-key: {key}\r\ncontent-length: 1000000\r\n\r\n{{"
        ))
        .await?;
        unsent.push(raw);
    }
    edge.await_metric("wirepost_edge_business_limited_total{kind=\"bodies\"}", 100.0).await?;
    assert_eq!(edge.post(&notice(100, 100)).await?.0, 200);
    assert_eq!(alice.numbers(1).await?, [100]);
    Ok(())
}
