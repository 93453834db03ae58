//! A message too big for the outbound bound must not loop, and a client on a slow link makes progress (CASES 11).

#![expect(clippy::float_cmp, reason = "metrics are read as floats and count whole things")]

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures_util::future::try_join_all;
use serde_json::{Value, json};
use wirepost_testing::broker::{PATIENCE, eventually};
use wirepost_testing::edge::Edge;
use wirepost_testing::proxy::Proxy;
use wirepost_testing::service::{Service, payment};
use wirepost_testing::setup::{PAYMENTS, Setup};
use wirepost_testing::usage;

/// Bytes a second of the slow link: it takes a while for what the kernel holds of a connection, and that may be megabytes.
const SLOW: u64 = 256 << 10;

fn large(to: &str, n: u64, bytes: usize) -> Value {
    let mut push = payment(to, n);
    push["content"]["x"] = json!("x".repeat(bytes));
    push
}

/// Bytes of memory that a process holds (proc(5), VmRSS).
fn memory(edge: &Edge) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", edge.pid))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? << 10)
}

#[tokio::test]
async fn a_slow_client_makes_progress_on_each_return_and_others_notice_nothing() -> Result<()> {
    const MESSAGES: u64 = 500;
    const BYTES: usize = 60_000;
    let setup = Setup::new(&[PAYMENTS]).await?;
    let edge = setup.edge("e1").flag("outbound-bytes", 256 << 10).flag("log-bytes", 4 << 20).start().await?;
    let service = Service::connect(&setup).await?;
    let link = Proxy::start(edge.public).await?;
    link.limit(SLOW);
    let mut alice = edge.client("alice", "app").via(link.address).receive_buffer(8 << 10).connect().await?;
    let mut bob = edge.client("bob", "app").connect().await?;
    let before = memory(&edge)?;
    let pushing = tokio::spawn({
        let setup = setup.clone();
        async move {
            let service = Service::connect(&setup).await?;
            service.push_all((0..MESSAGES).map(|n| large("alice", n, BYTES))).await
        }
    });
    // Somebody on a good link, all the while.
    for n in 0..20 {
        service.push(&payment("bob", n)).await?;
        assert_eq!(tokio::time::timeout(Duration::from_secs(5), bob.numbers(1)).await.context("bob waits")??, [n]);
    }
    let mut next = 0;
    let mut most = 0;
    for returns in 0..3 {
        let came = next;
        // Reads what comes until it is cut, as slowly as the link is.
        loop {
            match alice.push_within(Duration::from_mins(1)).await {
                Ok(push) => {
                    assert_eq!(push["content"]["n"], next, "in order, each once");
                    next += 1;
                }
                Err(_) => break,
            }
            most = most.max(memory(&edge)?);
            ensure!(
                edge.metric("wirepost_edge_outbound_bytes").await? <= f64::from(512 << 10),
                "the queue is not bounded"
            );
            if next - came == 16 {
                break;
            }
        }
        // At first it is live: what the edge reads at once may be more than its queue holds, before any of it is written.
        ensure!(next > came || returns == 0, "no progress on return {returns}");
        let (token, cursor) = (alice.resume_token(), alice.cursor());
        alice.reset();
        alice = edge
            .client("alice", "app")
            .token(token)
            .cursor(cursor)
            .via(link.address)
            .receive_buffer(8 << 10)
            .connect()
            .await?;
        assert!(alice.resumed(), "{}", alice.welcome);
    }
    pushing.await??;
    // The link gets better: the rest comes, and nothing is missing.
    let (token, cursor) = (alice.resume_token(), alice.cursor());
    alice.reset();
    link.limit(0);
    let mut alice = edge.client("alice", "app").token(token).cursor(cursor).via(link.address).connect().await?;
    assert_eq!(alice.numbers((MESSAGES - next) as usize).await?, (next..MESSAGES).collect::<Vec<_>>());
    let grown = most.saturating_sub(before);
    ensure!(grown < 64 << 20, "{grown} bytes more than before, of {} that were pushed", MESSAGES as usize * BYTES);
    service.push(&payment("bob", 20)).await?;
    assert_eq!(bob.numbers(1).await?, [20]);
    Ok(())
}

#[tokio::test]
async fn who_reads_nothing_is_cut_with_a_code_and_resumes_where_it_was() -> Result<()> {
    const MESSAGES: u64 = 400;
    let setup = Setup::new(&[PAYMENTS]).await?;
    let edge = setup.edge("e1").flag("outbound-bytes", 128 << 10).start().await?;
    let service = Service::connect(&setup).await?;
    let mut alice = edge.client("alice", "app").receive_buffer(8 << 10).connect().await?;
    // As fast as they come, and she does not read.
    service.push_all((0..MESSAGES).map(|n| large("alice", n, 20_000))).await?;
    edge.await_metric("wirepost_edge_closes_total{kind=\"too_slow\"}", 1.0).await?;
    let mut next = 0;
    while let Ok(push) = alice.push().await {
        assert_eq!(push["content"]["n"], next);
        next += 1;
    }
    ensure!(next < MESSAGES, "she was not cut");
    // A client that takes nothing at all may lose the close frame with the socket; it never gets another code.
    if let Ok(code) = alice.close_code().await {
        assert_eq!(code, 4008);
    }
    let (token, cursor) = (alice.resume_token(), alice.cursor());
    let mut back = edge.client("alice", "app").token(token).cursor(cursor).connect().await?;
    assert_eq!(back.numbers((MESSAGES - next) as usize).await?, (next..MESSAGES).collect::<Vec<_>>());
    eventually("nothing is queued any more", PATIENCE, || async {
        Ok(edge.metric("wirepost_edge_outbound_bytes").await? == 0.0)
    })
    .await
}

#[tokio::test]
async fn one_message_larger_than_the_outbound_bound_arrives() -> Result<()> {
    let setup = Setup::new(&[&PAYMENTS.replace("burst: 20000}", "burst: 20000, pushBytes: 2000000}")]).await?;
    let edge = setup.edge("e1").flag("outbound-bytes", 64 << 10).start().await?;
    let service = Service::connect(&setup).await?;
    let mut alice = edge.client("alice", "app").connect().await?;
    let cursor = alice.cursor();
    service.push_all((0..4).map(|n| large("alice", n, 500_000))).await?;
    let mut next = 0;
    for _ in 0..8 {
        while let Ok(push) = alice.push_within(Duration::from_secs(5)).await {
            assert_eq!(push["content"]["n"], next);
            next += 1;
            if next == 4 {
                break;
            }
        }
        if next == 4 {
            break;
        }
        let came = next;
        let (token, cursor) = (alice.resume_token(), alice.cursor());
        alice = edge.client("alice", "app").token(token).cursor(cursor).connect().await?;
        let push = alice.push().await.context("a return brings nothing: it loops")?;
        assert_eq!(push["content"]["n"], came);
        next += 1;
    }
    assert_eq!(next, 4);
    // From the stream as well.
    let mut back = edge.client("alice", "app").cursor(cursor).connect().await?;
    assert_eq!(back.numbers(4).await?, [0, 1, 2, 3]);
    Ok(())
}

#[tokio::test]
async fn a_large_message_on_a_slow_link_takes_its_time_and_is_not_a_stall() -> Result<()> {
    let setup = Setup::new(&[&PAYMENTS.replace("burst: 20000}", "burst: 20000, pushBytes: 4194304}")]).await?;
    // Far more than two seconds for each message, of which the kernel takes only a part at once.
    let edge = setup.edge("e1").flag("write-timeout-seconds", 2).flag("outbound-bytes", 16 << 20).start().await?;
    let service = Service::connect(&setup).await?;
    let link = Proxy::start(edge.public).await?;
    link.limit(SLOW * 4);
    let mut alice = edge.client("alice", "app").via(link.address).receive_buffer(8 << 10).connect().await?;
    service.push_all((0..3).map(|n| large("alice", n, 4_000_000))).await?;
    assert_eq!(alice.numbers(3).await?, [0, 1, 2]);
    alice.sync().await
}

#[tokio::test]
async fn who_takes_nothing_is_cut_after_the_write_timeout() -> Result<()> {
    let setup = Setup::new(&[PAYMENTS]).await?;
    let edge = setup.edge("e1").flag("write-timeout-seconds", 1).flag("outbound-bytes", 64 << 20).start().await?;
    let service = Service::connect(&setup).await?;
    let alice = edge.client("alice", "app").receive_buffer(8 << 10).connect().await?;
    // More than the kernel takes, less than the bound.
    service.push_all((0..200).map(|n| large("alice", n, 60_000))).await?;
    edge.await_metric("wirepost_edge_closes_total{kind=\"too_slow\"}", 1.0).await?;
    assert_eq!(edge.metric("wirepost_edge_outbound_bytes").await?, 0.0);
    drop(alice);
    Ok(())
}

#[tokio::test]
async fn a_large_push_to_many_sockets_is_in_memory_once() -> Result<()> {
    const SOCKETS: usize = 150;
    const BYTES: usize = 1_000_000;
    let setup = Setup::new(&[&PAYMENTS.replace("burst: 20000}", "burst: 20000, pushBytes: 2000000}")]).await?;
    let edge = setup.edge("e1").start().await?;
    let service = Service::connect(&setup).await?;
    let mut clients = Vec::new();
    for n in 0..SOCKETS {
        let client = edge.client(&format!("till-{n}"), "pos").receive_buffer(16 << 10);
        clients.push(client.connect().await?);
    }
    let before = usage::resident(edge.pid)?.now;
    let push = json!({"messageType": "till.notice", "toUniqueId": "*", "content": {"n": 1, "x": "x".repeat(BYTES)}});
    service.push(&push).await?;
    edge.await_metric("wirepost_edge_deliveries_total", SOCKETS as f64).await?;
    // Nobody reads; then everybody does.
    let reading = clients.iter_mut().map(|client| client.numbers(1));
    ensure!(try_join_all(reading).await?.iter().all(|numbers| *numbers == [1]));
    let grown = usage::resident(edge.pid)?.most.saturating_sub(before);
    ensure!(grown < 48 << 20, "{grown} bytes more for one push of {BYTES} to {SOCKETS} sockets");
    assert_eq!(edge.metric("wirepost_edge_backlog_bytes").await?, 0.0);
    Ok(())
}

#[tokio::test]
async fn sockets_that_take_nothing_go_when_all_together_hold_too_much_and_lose_nothing() -> Result<()> {
    const SOCKETS: u64 = 16;
    const BYTES: usize = 800_000;
    let setup = Setup::new(&[&PAYMENTS.replace("burst: 20000}", "burst: 20000, pushBytes: 2000000}")]).await?;
    // None of them alone is beyond a bound.
    let edge =
        setup.edge("e1").flag("outbound-bytes", 8 << 20).flag("backlog-bytes", 8 << 20).flag("log-bytes", 0).start();
    let edge = edge.await?;
    let service = Service::connect(&setup).await?;
    let mut good = edge.client("good", "app").connect().await?;
    let mut deaf = Vec::new();
    for n in 0..SOCKETS {
        deaf.push(edge.client(&format!("deaf-{n}"), "app").receive_buffer(16 << 10).connect().await?);
    }
    for round in 0..2 {
        service.push_all((0..SOCKETS).map(|n| large(&format!("deaf-{n}"), round, BYTES))).await?;
        service.push(&payment("good", round)).await?;
        assert_eq!(good.numbers(1).await?, [round]);
    }
    edge.await_metric("wirepost_edge_backlog_closes_total", 1.0).await?;
    eventually("what they hold is within the budget", PATIENCE, || async {
        Ok(edge.metric("wirepost_edge_backlog_bytes").await? <= f64::from(8 << 20))
    })
    .await?;
    let edge = &edge;
    let coming_back = deaf.into_iter().map(|mut client| async move {
        let mut next = 0;
        while next < 2 {
            if let Ok(push) = client.push().await {
                assert_eq!(push["content"]["n"], next);
                next += 1;
            } else {
                let (token, cursor) = (client.resume_token(), client.cursor());
                client = edge.client("deaf", "app").token(token).cursor(cursor).connect().await?;
                assert!(client.resumed());
            }
        }
        anyhow::Ok(())
    });
    try_join_all(coming_back).await?;
    Ok(())
}
