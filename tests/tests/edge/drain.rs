//! Drain (CASES 12, as far as one process shows it): no client is refused, each is asked to leave, nothing stays unanswered.

#![expect(clippy::unchecked_time_subtraction, reason = "a test may panic")]

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use wirepost_testing::broker::{PATIENCE, eventually};
use wirepost_testing::client::{Client, End};
use wirepost_testing::edge::EdgeBuilder;
use wirepost_testing::service::{Service, payment};
use wirepost_testing::setup::{PAYMENTS, Setup};
use wirepost_testing::traffic::{Pusher, Sender, all_pushed, all_queued};

const LAG: Duration = Duration::from_secs(4);
const WINDOW: Duration = Duration::from_secs(3);
const DEADLINE: Duration = Duration::from_secs(15);

fn draining(setup: &Setup, name: &str) -> EdgeBuilder {
    setup
        .edge(name)
        .flag("endpoint-lag-seconds", LAG.as_secs())
        .flag("drain-window-seconds", WINDOW.as_secs())
        .flag("drain-deadline-seconds", DEADLINE.as_secs())
}

/// A sender that honours `drain` as a client library does: it sends no more, waits for its answers and for the close frame.
async fn send_until_drained(mut client: Client, name: String) -> Result<(Client, Vec<Value>, Instant)> {
    let mut answers = Vec::new();
    let mut n = 0;
    let drain = loop {
        let id = format!("{name}-{n}");
        client.send(&json!({"id": id, "messageType": "order.placed", "content": {"n": n}})).await?;
        answers.push(client.answer().await.with_context(|| format!("{id} has no answer"))?);
        n += 1;
        if let Ok(drain) = client.control_within("drain", Duration::from_millis(50)).await {
            break drain;
        }
    };
    ensure!(drain["reconnectWithinMs"].as_u64() <= Some(WINDOW.as_millis() as u64), "{drain}");
    let told = Instant::now();
    // And one that was under way.
    let id = format!("{name}-last");
    client.send(&json!({"id": id, "messageType": "order.placed", "content": {"n": n}})).await?;
    answers.push(client.answer().await.with_context(|| format!("{id} has no answer"))?);
    ensure!(client.close_code().await? == 1012);
    Ok((client, answers, told))
}

#[tokio::test]
async fn sigterm_tells_everyone_answers_everything_and_refuses_nobody() -> Result<()> {
    const CLIENTS: usize = 60;
    let setup = Setup::new(&[PAYMENTS]).await?;
    let e1 = draining(&setup, "e1").start().await?;
    let e2 = setup.edge("e2").start().await?;
    let mut clients = Vec::new();
    for n in 0..CLIENTS {
        clients.push(e1.client(&format!("c{n}"), "app").connect().await?);
    }
    let mut quiet = e1.client("quiet", "app").connect().await?;
    let mut plain = Vec::new();
    for n in 0..5 {
        plain.push(e1.client(&format!("p{n}"), "app").plain().connect().await?);
    }
    let senders: Vec<_> = clients
        .into_iter()
        .enumerate()
        .map(|(n, client)| tokio::spawn(send_until_drained(client, format!("c{n}"))))
        .collect();

    let began = Instant::now();
    e1.sigterm()?;
    eventually("readyz says no", LAG, || async { Ok(e1.readyz().await?.0 == 503) }).await?;
    let (_, pending) = e1.readyz().await?;
    assert!(pending.contains("draining"), "{pending}");
    assert_eq!(e1.admin("/livez").await?.0, 200, "a draining process is alive");
    // The load balancer does not know of it yet: new clients are served, and calls on kept connections are sent elsewhere.
    let http = reqwest::Client::builder().no_proxy().build()?;
    let answer = http
        .get(format!("http://{}/payments/asyncapi.json", e1.public))
        .header("x-api-key", setup.api_key())
        .send()
        .await?;
    ensure!(answer.headers().get("connection").is_some_and(|value| value == "close"), "{answer:?}");
    let mut late = Vec::new();
    while began.elapsed() < LAG / 2 {
        let n = late.len();
        let client = e1.client(&format!("late{n}"), "app").connect().await;
        late.push(client.with_context(|| format!("refused {:?} after SIGTERM", began.elapsed()))?);
        sleep(Duration::from_millis(50)).await;
    }
    ensure!(late.len() > 3, "too slow to show anything");

    let ended = join_all(plain.iter_mut().map(Client::end));
    let told = join_all(senders);
    let late_told = join_all(late.iter_mut().map(|client| async {
        client.control("drain").await?;
        client.close_code().await
    }));
    let (ended, told, late_told) = tokio::join!(ended, told, late_told);
    for end in ended {
        match end? {
            End::Closed(1001 | 1012, _) => {}
            other => panic!("a client without the subprotocol saw {other:?}"),
        }
    }
    for code in late_told {
        assert_eq!(code?, 1012);
    }
    let mut times = Vec::new();
    let mut returning = Vec::new();
    for outcome in told {
        let (client, answers, told) = outcome??;
        ensure!(answers.iter().all(|answer| answer["op"] == "ack"), "the broker was there all the time: {answers:?}");
        times.push(told - began);
        returning.push(client);
    }
    // Not all at once.
    times.sort();
    let spread = times[times.len() - 1] - times[0];
    assert!(times[0] >= LAG - Duration::from_millis(100), "told before the lag: {:?}", times[0]);
    assert!(spread >= WINDOW / 3, "told within {spread:?} of a window of {WINDOW:?}");
    quiet.control("drain").await?;
    assert_eq!(quiet.close_code().await?, 1012);
    let status = e1.exited(DEADLINE.saturating_sub(began.elapsed())).await?;
    assert_eq!(status.code(), Some(0));

    // Everybody goes on elsewhere, with nothing missed and without a token call.
    let service = Service::connect(&setup).await?;
    service.push_all((0..CLIENTS as u64).map(|n| payment(&format!("c{n}"), n))).await?;
    for (n, mut client) in returning.into_iter().enumerate() {
        let (token, cursor) = (client.resume_token(), client.cursor());
        let mut back = e2.client("-", "app").token(token).cursor(cursor).connect().await?;
        assert!(back.resumed(), "{}", back.welcome);
        assert_eq!(back.numbers(1).await?, [n as u64]);
    }
    Ok(())
}

#[tokio::test]
async fn messages_flow_through_a_drain_without_loss_or_double() -> Result<()> {
    let setup = Setup::new(&[PAYMENTS]).await?;
    let e1 = draining(&setup, "e1").start().await?;
    let e2 = setup.edge("e2").start().await?;
    let mut receiver = e1.client("alice", "app").connect().await?;
    let mut pusher = Pusher::start(&setup, "payments", "alice");
    let sender = Sender::start(e2.client("bob", "app").connect().await?);
    pusher.next_confirm(PATIENCE).await?;
    e1.sigterm()?;
    let mut numbers = Vec::new();
    // She reads on until she is closed, as the protocol says, and goes on from the last she has.
    while let Ok(push) = receiver.push().await {
        numbers.push(push["content"]["n"].as_u64().context("a number")?);
    }
    assert_eq!(receiver.close_code().await?, 1012);
    let (token, cursor) = (receiver.resume_token(), receiver.cursor());
    let mut receiver = e2.client("alice", "app").token(token).cursor(cursor).connect().await?;
    assert!(receiver.resumed());
    pusher.next_confirm(PATIENCE).await?;
    let count = pusher.stop().await?;
    let rest = usize::try_from(count)? - numbers.len();
    numbers.extend(receiver.numbers(rest).await?);
    assert_eq!(numbers, (0..count).collect::<Vec<_>>());
    assert_eq!(e1.exited(DEADLINE).await?.code(), Some(0));
    let (_, outcomes) = sender.stop().await?;
    all_queued(&setup, "payments", &outcomes).await
}

#[tokio::test]
async fn clients_that_ignore_it_and_a_broker_that_is_away_do_not_hold_the_process() -> Result<()> {
    let setup = Setup::new(&[PAYMENTS]).await?;
    let (network, amqp) = wirepost_testing::proxy::Proxy::of_uri(&setup.vhost().amqp()).await?;
    let edge = setup
        .edge("e1")
        .flag("amqp", amqp)
        .flag("drain-window-seconds", 1)
        .flag("drain-deadline-seconds", 6)
        .start()
        .await?;
    // Never read again: one that is frozen, one in the middle of a request.
    let frozen = edge.client("alice", "app").connect().await?;
    let mut sender = edge.client("bob", "app").connect().await?;
    sender.send_acked(&json!({"id": "o1", "messageType": "order.placed"})).await?;
    let mut half = wirepost_testing::raw::Raw::connect(edge.public).await?;
    half.send("GET / HTTP/1.1\r\n").await?;
    network.set(wirepost_testing::proxy::Network::Stalled);
    let began = Instant::now();
    sender.send(&json!({"id": "o2", "messageType": "order.placed"})).await?;
    edge.sigterm()?;
    // The send that waits for a confirm gets its answer before the goodbye.
    let answer = sender.answer().await?;
    assert_eq!((&answer["id"], &answer["op"]), (&json!("o2"), &json!("nack")), "{answer}");
    assert_eq!(sender.close_code().await?, 1012);
    let status = edge.exited(Duration::from_secs(20)).await?;
    assert_eq!(status.code(), Some(0));
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    drop((frozen, half));
    Ok(())
}

#[tokio::test]
async fn without_clients_it_ends_after_the_lag_and_a_second_signal_ends_it_at_once() -> Result<()> {
    let setup = Setup::new(&[PAYMENTS]).await?;
    let (idle, busy) =
        (setup.edge("e1").start().await?, draining(&setup, "e2").flag("endpoint-lag-seconds", 12).start().await?);
    idle.sigterm()?;
    assert_eq!(idle.exited(Duration::from_secs(8)).await?.code(), Some(0));
    let _client = busy.client("alice", "app").connect().await?;
    busy.sigterm()?;
    eventually("it drains", PATIENCE, || async { Ok(busy.readyz().await?.0 == 503) }).await?;
    busy.sigterm()?;
    assert_eq!(busy.exited(Duration::from_secs(8)).await?.code(), Some(0));
    Ok(())
}

#[tokio::test]
async fn pushes_come_until_the_last_moment() -> Result<()> {
    let setup = Setup::new(&[PAYMENTS]).await?;
    let e1 = draining(&setup, "e1").start().await?;
    let mut alice = e1.client("alice", "app").connect().await?;
    let pusher = Pusher::start(&setup, "payments", "alice");
    e1.sigterm()?;
    sleep(LAG / 2).await;
    // In the middle of the lag all is as ever.
    let mut client = e1.client("bob", "app").connect().await?;
    client.send_acked(&json!({"id": "o", "messageType": "order.placed"})).await?;
    let (status, answer) = e1.post(&payment("carol", 1)).await?;
    assert_eq!(status, 200, "{answer}");
    let count = pusher.stop().await?;
    all_pushed(&mut alice, count).await?;
    alice.control("drain").await?;
    assert_eq!(alice.close_code().await?, 1012);
    Ok(())
}
