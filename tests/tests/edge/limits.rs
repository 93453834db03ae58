//! What the edge does at each of its limits.

#![expect(clippy::float_cmp, reason = "metrics are read as floats and count whole things")]

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};
use wirepost_testing::broker::{PATIENCE, eventually};
use wirepost_testing::client::Refused;
use wirepost_testing::edge::Edge;
use wirepost_testing::proxy::{Network, Proxy};
use wirepost_testing::raw::{Raw, upgrade};
use wirepost_testing::service::{Service, next_json, payment};
use wirepost_testing::setup::{PAYMENTS, Setup};

/// [`PAYMENTS`] with other limits.
fn payments(limits: &str) -> String {
    PAYMENTS.replace("limits: {messagesPerSecond: 10000, burst: 20000}", &format!("limits: {limits}"))
}

async fn path(edge: &Edge, unique_id: &str) -> Result<String> {
    let url = edge.token("payments", unique_id, "app", &[]).await?;
    let (_, ticket) = url.split_once("/socket/").context("a URL")?;
    Ok(format!("/socket/{ticket}"))
}

fn text(payload: impl Into<Vec<u8>>, first: bool, last: bool) -> Message {
    let kind = if first { Data::Text } else { Data::Continue };
    Message::Frame(Frame::message(payload.into(), OpCode::Data(kind), last))
}

#[tokio::test]
async fn a_message_that_is_too_large_is_refused_by_id_and_a_huge_one_ends_the_connection() -> Result<()> {
    let setup = Setup::new(&[&payments("{messageBytes: 1000}")]).await?;
    let edge = setup.edge("e1").start().await?;
    let mut alice = edge.client("alice", "app").connect().await?;
    assert_eq!(alice.welcome["limits"]["messageBytes"], 1000, "a client is told: {}", alice.welcome);
    let order = |id: &str, bytes: usize| {
        let empty = json!({"id": id, "messageType": "order.placed", "content": ""}).to_string();
        json!({"id": id, "messageType": "order.placed", "content": "x".repeat(bytes - empty.len())})
    };
    alice.send_acked(&order("fits", 1000)).await?;
    alice.send(&order("over", 1001)).await?;
    let nack = alice.nack("over").await?;
    assert_eq!((&nack["code"], &nack["retryable"]), (&json!("too_large"), &json!(false)), "{nack}");
    alice.send_acked(&order("fits-again", 1000)).await?;
    // Ten megabytes are not read to the end for the sake of an answer.
    alice.send(&order("huge", 10 << 20)).await.ok();
    assert_eq!(alice.close_code().await?, 1009);
    Ok(())
}

#[tokio::test]
async fn messages_that_are_too_large_do_not_use_up_the_rate() -> Result<()> {
    let setup = Setup::new(&[&payments("{messageBytes: 1000, messagesPerSecond: 1, burst: 1}")]).await?;
    let edge = setup.edge("e1").start().await?;
    let mut alice = edge.client("alice", "app").connect().await?;
    let order = |id: &str, bytes: usize| json!({"id": id, "messageType": "order.placed", "content": "x".repeat(bytes)});
    for id in ["a", "b", "c"] {
        alice.send(&order(id, 1000)).await?;
        let nack = alice.nack(id).await?;
        assert_eq!((&nack["code"], &nack["retryable"]), (&json!("too_large"), &json!(false)), "{nack}");
    }
    alice.send_acked(&order("fits", 10)).await?;
    // Also where the rate is used up already: to wait would not help.
    alice.send(&order("d", 1000)).await?;
    assert_eq!(alice.nack("d").await?["code"], "too_large");
    Ok(())
}

#[tokio::test]
async fn a_push_that_is_too_large_is_refused_or_skipped_and_reported_and_nobody_is_cut() -> Result<()> {
    let setup = Setup::new(&[&payments("{pushBytes: 65536}")]).await?;
    let edge = setup.edge("e1").start().await?;
    let service = Service::connect(&setup).await?;
    let mut rejected = service.events("rejected").await?;
    let mut clients = Vec::new();
    for n in 0..5 {
        clients.push(edge.client(&format!("till-{n}"), "pos").connect().await?);
    }
    let push = |n: u64, bytes: usize| json!({"id": format!("p{n}"), "messageType": "till.notice", "toUniqueId": "*", "content": {"n": n, "x": "x".repeat(bytes)}});
    // To everyone, of five megabytes: by HTTP, and by AMQP, where nobody can refuse it.
    for bytes in [66_000, 5 << 20] {
        let (status, answer) = edge.post(&push(0, bytes)).await?;
        assert_eq!(status, 413, "{answer}");
        ensure!(answer["result"].as_u64() > Some(0) && answer["description"].is_string(), "{answer}");
        service.push(&push(0, bytes)).await?;
        let event = next_json(&mut rejected).await?;
        assert_eq!((&event["reason"], &event["event"]), (&json!("too_large"), &json!("rejected")), "{event}");
        assert!(event["offset"].is_u64(), "{event}");
    }
    // In a batch the others are taken.
    let (status, answer) = edge.post(&json!([push(1, 10), push(2, 66_000), push(3, 10)])).await?;
    assert_eq!(status, 207, "{answer}");
    service.push(&push(4, 10)).await?;
    for client in &mut clients {
        assert_eq!(client.numbers(3).await?, [1, 3, 4]);
    }
    assert_eq!(edge.metric("wirepost_edge_rejected_pushes_total{kind=\"too_large\"}").await?, 2.0);
    assert_eq!(edge.metric("wirepost_edge_connections").await?, 5.0);
    Ok(())
}

#[tokio::test]
async fn who_sends_too_fast_is_told_how_long_to_wait_and_others_notice_nothing() -> Result<()> {
    let setup = Setup::new(&[&payments("{messagesPerSecond: 2, burst: 5}")]).await?;
    let edge = setup.edge("e1").start().await?;
    let mut alice = edge.client("alice", "app").connect().await?;
    let mut bob = edge.client("bob", "app").connect().await?;
    let order = |id: &str| json!({"id": id, "messageType": "order.placed"});
    let began = Instant::now();
    for n in 0..20 {
        alice.send(&order(&n.to_string())).await?;
    }
    let mut acked = 0_u32;
    let mut waits = Vec::new();
    for _ in 0..20 {
        let answer = alice.answer().await?;
        if answer["op"] == "ack" {
            acked += 1;
            continue;
        }
        assert_eq!((&answer["code"], &answer["retryable"]), (&json!("rate_limited"), &json!(true)), "{answer}");
        waits.push(answer["retryAfterMs"].as_u64().context("a hint")?);
    }
    // The burst, and what the time that this took allows beside it.
    let allowed = 5 + (began.elapsed().as_secs_f64() * 2.0).ceil() as u32;
    assert!((5..=allowed).contains(&acked), "{acked} of at most {allowed}");
    let wait = *waits.last().context("somebody was limited")?;
    assert!((1..=1000).contains(&wait), "{wait} ms at two a second");
    bob.send_acked(&order("b")).await?;
    // The hint is true.
    tokio::time::sleep(Duration::from_millis(wait + 10)).await;
    alice.send_acked(&order("late")).await?;
    assert_eq!(edge.metric("wirepost_edge_nacks_total{kind=\"rate_limited\"}").await?, waits.len() as f64);
    Ok(())
}

#[tokio::test]
async fn the_rate_is_of_an_identity_however_many_connections_it_opens() -> Result<()> {
    let setup = Setup::new(&[&payments("{messagesPerSecond: 2, burst: 5}")]).await?;
    let edge = setup.edge("e1").start().await?;
    let began = Instant::now();
    let mut acked = 0_u32;
    // Side by side and one after the other.
    for round in 0..3 {
        let mut clients = Vec::new();
        for _ in 0..3 {
            clients.push(edge.client("alice", "app").connect().await?);
        }
        for (n, client) in clients.iter_mut().enumerate() {
            for order in 0..5 {
                client.send(&json!({"id": format!("{round}-{n}-{order}"), "messageType": "order.placed"})).await?;
            }
        }
        for client in &mut clients {
            for _ in 0..5 {
                acked += u32::from(client.answer().await?["op"] == "ack");
            }
        }
        for client in clients {
            client.leave().await?;
        }
    }
    let allowed = 5 + (began.elapsed().as_secs_f64() * 2.0).ceil() as u32;
    assert!((5..=allowed).contains(&acked), "{acked} of at most {allowed}");
    edge.client("bob", "app").connect().await?.send_acked(&json!({"id": "b", "messageType": "order.placed"})).await
}

#[tokio::test]
async fn at_the_connection_limit_the_edge_says_503_before_the_upgrade() -> Result<()> {
    let setup = Setup::new(&[PAYMENTS]).await?;
    let edge = setup.edge("e1").flag("max-connections", 2).start().await?;
    let first = edge.client("alice", "app").connect().await?;
    let mut second = edge.client("bob", "app").connect().await?;
    for plain in [false, true] {
        let third = edge.client("carol", "app");
        let error = if plain { third.plain() } else { third }.upgrade().await.unwrap_err();
        assert_eq!(error.downcast_ref::<Refused>().context("not refused as HTTP")?.status, 503);
    }
    let mut raw = Raw::connect(edge.public).await?;
    raw.send(upgrade(&path(&edge, "carol").await?, "sec-websocket-protocol: wirepost.v1\r\n")).await?;
    let head = raw.head().await?;
    assert!(head.starts_with("http/1.1 503") && head.contains("\r\nretry-after: "), "{head}");
    // Those who are there go on, and a place that is left is given away.
    second.send_acked(&json!({"id": "o", "messageType": "order.placed"})).await?;
    first.leave().await?;
    eventually("the place is free", PATIENCE, || async { Ok(edge.client("carol", "app").connect().await.is_ok()) })
        .await?;
    assert!(edge.metric("wirepost_edge_refused_total{kind=\"connection_limit\"}").await? >= 3.0);
    Ok(())
}

#[tokio::test]
async fn who_does_not_finish_a_request_is_cut_in_time() -> Result<()> {
    let setup = Setup::new(&[PAYMENTS]).await?;
    let edge = setup.edge("e1").flag("header-timeout-seconds", 1).start().await?;
    let path = path(&edge, "alice").await?;
    let request = upgrade(&path, "");
    for begin in ["", "GET ", &request[..request.len() - 2]] {
        let mut raw = Raw::connect(edge.public).await?;
        raw.send(begin).await?;
        let answer = raw.end(PATIENCE).await.with_context(|| format!("after {} bytes of a request", begin.len()))?;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 408"), "{answer}");
    }
    // A body that does not come, either.
    let mut raw = Raw::connect(edge.public).await?;
    let key = setup.api_key();
    raw.send(format!(
        "POST /payments/websocket/messages HTTP/1.1\r\nhost: edge\r\nx-api-key: {key}\r\ncontent-length: 100\r\n\r\n{{"
    ))
    .await?;
    assert!(raw.head().await?.starts_with("http/1.1 408"));
    // A header without an end is not collected forever.
    let mut raw = Raw::connect(edge.public).await?;
    let mut sent = 0_usize;
    let line = format!("x-more: {}\r\n", "x".repeat(1000));
    raw.send("GET / HTTP/1.1\r\n").await?;
    while raw.send(&line).await.is_ok() {
        sent += line.len();
        ensure!(sent < 64 << 20, "the edge takes a header without end");
    }
    // A connected client is none of these, however quiet.
    let mut quiet = edge.client("bob", "app").connect().await?;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    quiet.sync().await
}

#[tokio::test]
async fn frames_that_are_not_text_end_with_their_code() -> Result<()> {
    let setup = Setup::new(&[PAYMENTS]).await?;
    let edge = setup.edge("e1").start().await?;
    let reserved = {
        let mut frame = Frame::message(Vec::from(*b"{}"), OpCode::Data(Data::Text), true);
        frame.header_mut().rsv1 = true;
        Message::Frame(frame)
    };
    for (what, frames, code) in [
        ("binary", vec![Message::binary(vec![1, 2, 3])], 1003),
        (
            "binary in fragments",
            vec![Message::Frame(Frame::message(vec![1], OpCode::Data(Data::Binary), false)), text("x", false, true)],
            1003,
        ),
        ("bad UTF-8", vec![text(b"{\"id\":\"\xff\"}".as_slice(), true, true)], 1007),
        ("UTF-8 that ends within a character", vec![text(b"\xe2\x82".as_slice(), true, true)], 1007),
        ("a surrogate", vec![text(b"\xed\xa0\x80".as_slice(), true, true)], 1007),
        ("a reserved bit", vec![reserved], 1002),
        ("a continuation of nothing", vec![text("x", false, true)], 1002),
        ("a ping of 126 bytes", vec![Message::Frame(Frame::ping(vec![0; 126]))], 1002),
        (
            "a ping in fragments",
            vec![{
                let mut frame = Frame::ping(vec![]);
                frame.header_mut().is_final = false;
                Message::Frame(frame)
            }],
            1002,
        ),
    ] {
        let mut client = edge.client("alice", "app").connect().await?;
        for frame in frames {
            client.send_message(frame).await.with_context(|| what.to_owned())?;
        }
        assert_eq!(client.close_code().await.with_context(|| what.to_owned())?, code, "{what}");
    }
    // A character may well be cut by a fragment's end.
    let mut client = edge.client("alice", "app").connect().await?;
    let order = json!({"id": "€", "messageType": "order.placed"}).to_string().into_bytes();
    let within = order.iter().position(|byte| *byte == 0xe2).context("a character of three bytes")? + 1;
    client.send_message(text(&order[..within], true, false)).await?;
    client.send_message(Message::Ping(vec![].into())).await?;
    client.send_message(text(&order[within..], false, true)).await?;
    client.ack("€").await
}

#[tokio::test]
async fn json_that_is_deep_or_odd_is_a_nack_and_never_more() -> Result<()> {
    let setup = Setup::new(&[PAYMENTS]).await?;
    let edge = setup.edge("e1").start().await?;
    let mut alice = edge.client("alice", "h5").connect().await?;
    let deep = |content: &str| format!(r#"{{"id":"d","messageType":"qr.refresh","content":{content}}}"#);
    let odd = [
        "[".repeat(60_000),
        format!("{}1{}", "[".repeat(30_000), "]".repeat(30_000)),
        r#"{"a":"#.repeat(10_000),
        deep(&format!("{}{}", "[".repeat(30_000), "]".repeat(30_000))),
        deep(&format!("{}1{}", r#"{"a":"#.repeat(10_000), "}".repeat(10_000))),
        String::new(),
        "null".to_owned(),
        "[]".to_owned(),
        "\"text\"".to_owned(),
        "1e999999".to_owned(),
        r#"{"id":1}"#.to_owned(),
        r#"{"id":"\ud800","messageType":"order.placed"}"#.to_owned(),
        r#"{"messageType":"order.placed"} {}"#.to_owned(),
        r#"{"messageType":"order.placed","timestamp":1e30}"#.to_owned(),
        format!(r#"{{"id":"{}","messageType":"order.placed"}}"#, "i".repeat(65)),
        format!(r#"{{"messageType":"order.{}"}}"#, "x".repeat(200)),
        r#"{"op":"none-such"}"#.to_owned(),
        r#"{"op":"ping","op":"ping"}"#.to_owned(),
        r#"{"op":7}"#.to_owned(),
    ];
    for json in odd {
        let start: String = json.chars().take(60).collect();
        alice.send_text(json).await?;
        // Whatever it answers: it is no ack, and the connection is as good as before.
        alice.sync().await.with_context(|| start.clone())?;
        let answers: Vec<Value> = alice.controls().iter().cloned().collect();
        for answer in answers {
            ensure!(answer["op"] == "nack" || answer["op"] == "error", "{start}: {answer}");
            alice.control(answer["op"].as_str().unwrap_or_default()).await?;
        }
    }
    alice.send_acked(&json!({"id": "z", "messageType": "qr.refresh", "content": {"qrId": "q"}})).await
}

#[tokio::test]
async fn fragments_without_end_are_not_gathered() -> Result<()> {
    let setup = Setup::new(&[PAYMENTS]).await?;
    let edge = setup.edge("e1").start().await?;
    let mut alice = edge.client("alice", "app").connect().await?;
    let piece = vec![b'x'; 16 << 10];
    let mut sent = 0;
    let mut first = true;
    while alice.send_message(text(piece.clone(), first, false)).await.is_ok() {
        first = false;
        sent += piece.len();
        ensure!(sent < 64 << 20, "the edge takes fragments without end");
    }
    assert_eq!(alice.close_code().await?, 1009);
    // Some empty ones are a message all the same.
    let mut bob = edge.client("bob", "app").connect().await?;
    bob.send_message(text("", true, false)).await?;
    for _ in 0..100 {
        bob.send_message(text("", false, false)).await?;
    }
    bob.send_message(text(json!({"id": "b", "messageType": "order.placed"}).to_string(), false, true)).await?;
    bob.ack("b").await?;
    // Very many cost their sender time, and nobody else.
    let mut carol = edge.client("carol", "app").connect().await?;
    let mut dora = edge.client("dora", "app").connect().await?;
    dora.send_message(text("", true, false)).await?;
    for _ in 0..20_000 {
        dora.send_message(text("", false, false)).await?;
    }
    edge.await_metric("wirepost_edge_slowed_total{kind=\"frames\"}", 1.0).await?;
    carol.send_acked(&json!({"id": "o", "messageType": "order.placed"})).await
}

#[tokio::test]
async fn a_peer_that_vanished_is_found_within_two_heartbeats_and_a_quiet_one_stays() -> Result<()> {
    const HEARTBEAT: Duration = Duration::from_secs(2);
    let setup = Setup::new(&[PAYMENTS]).await?;
    let edge = setup.edge("e1").flag("heartbeat-seconds", HEARTBEAT.as_secs()).start().await?;
    let network = Proxy::start(edge.public).await?;
    let gone = edge.client("alice", "app").via(network.address).connect().await?;
    let half = Proxy::start(edge.public).await?;
    let deaf = edge.client("bob", "app").via(half.address).connect().await?;
    let mut quiet = edge.client("carol", "app").connect().await?;
    let plain = edge.client("dora", "app").plain().connect().await?;
    // Reads and therefore answers pings, and sends nothing on its own.
    let plain = tokio::spawn(async move {
        let mut plain = plain;
        let _ = plain.push_within(HEARTBEAT * 5).await;
        plain
    });
    network.set(Network::Stalled);
    half.set(Network::UpStalled);
    let since = Instant::now();
    // The quiet one has to be read meanwhile.
    let _ = quiet.control_within("none", HEARTBEAT).await;
    assert_eq!(edge.metric("wirepost_edge_connections").await?, 4.0, "cut before two heartbeats");
    let _ = quiet.control_within("none", HEARTBEAT + Duration::from_millis(700)).await;
    eventually("both are found", PATIENCE, || async { Ok(edge.metric("wirepost_edge_connections").await? == 2.0) })
        .await?;
    assert!(since.elapsed() >= HEARTBEAT);
    let _ = quiet.control_within("none", HEARTBEAT * 2).await;
    quiet.sync().await?;
    let mut plain = plain.await?;
    plain.send(&json!({"id": "p", "messageType": "order.placed"})).await?;
    edge.await_metric("wirepost_edge_acks_total", 1.0).await?;
    drop((gone, deaf));
    Ok(())
}

#[tokio::test]
async fn pings_are_answered() -> Result<()> {
    let setup = Setup::new(&[PAYMENTS]).await?;
    let edge = setup.edge("e1").start().await?;
    let mut raw = Raw::connect(edge.public).await?;
    raw.send(upgrade(&path(&edge, "alice").await?, "")).await?;
    assert!(raw.head().await?.starts_with("http/1.1 101"));
    // Masked with zeros: a ping with content, then a close with 1000.
    raw.send(b"\x89\x84\0\0\0\0life").await?;
    raw.send(b"\x88\x82\0\0\0\0\x03\xe8").await?;
    let answer = raw.end(PATIENCE).await?;
    assert!(answer.contains("\u{fffd}\u{4}life"), "no pong with the ping's content: {answer:?}");
    // And as text, for browsers.
    let mut alice = edge.client("alice", "app").connect().await?;
    alice.sync().await
}

#[tokio::test]
async fn out_of_file_descriptors_the_edge_pauses_and_recovers_and_its_probes_answer() -> Result<()> {
    let setup = Setup::new(&[PAYMENTS]).await?;
    let edge = setup.edge("e1").start().await?;
    let mut there = edge.client("alice", "app").connect().await?;
    let resume = there.resume_token();
    // The admin port's connection is open from here on, and so can be asked.
    edge.metric("wirepost_edge_accept_errors_total").await?;
    let open = std::fs::read_dir(format!("/proc/{}/fd", edge.pid))?.count();
    limit_files(edge.pid, open + 5)?;
    let mut waiting = Vec::new();
    for _ in 0..30 {
        let mut raw = Raw::connect(edge.public).await?;
        raw.send(upgrade(&format!("/socket/{resume}"), "")).await?;
        waiting.push(raw);
    }
    edge.await_metric("wirepost_edge_accept_errors_total", 3.0).await?;
    // New connections, as the kubelet makes them; more of them than are kept for them may stay open.
    let mut probes = Vec::new();
    for _ in 0..40 {
        let mut probe = Raw::connect(edge.admin).await?;
        probe.send("GET /livez HTTP/1.1\r\nhost: edge\r\n\r\n").await?;
        let head = probe.head().await.context("a probe is not answered")?;
        assert!(head.starts_with("http/1.1 200"), "{head}");
        probes.push(probe);
    }
    let before = cpu(edge.pid)?;
    let (errors, since) = (edge.metric("wirepost_edge_accept_errors_total").await?, Instant::now());
    tokio::time::sleep(Duration::from_secs(2)).await;
    let errors = edge.metric("wirepost_edge_accept_errors_total").await? - errors;
    assert!(errors < 30.0, "{errors} failed accepts in {:?}: it does not pause", since.elapsed());
    let used = cpu(edge.pid)? - before;
    assert!(used < since.elapsed().as_secs_f64() / 2.0, "{used} s of CPU in {:?}: it spins", since.elapsed());
    // Who is there goes on.
    there.send_acked(&json!({"id": "o", "messageType": "order.placed"})).await?;
    limit_files(edge.pid, 1024)?;
    for raw in &mut waiting {
        let head = raw.head().await.context("a connection that waited is not served")?;
        assert!(head.starts_with("http/1.1 101"), "{head}");
    }
    assert_eq!(edge.admin("/livez").await?.0, 200);
    Ok(())
}

fn limit_files(pid: u32, files: usize) -> Result<()> {
    let output = Command::new("prlimit").arg(format!("--pid={pid}")).arg(format!("--nofile={files}:")).output();
    let output = output.context("prlimit (util-linux)")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// Seconds of CPU that a process has used (proc(5), /proc/pid/stat, fields 14 and 15, in hundredths).
fn cpu(pid: u32) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields = stat.rsplit_once(')').context("stat")?.1.split_whitespace();
    let ticks: u64 = fields.skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    Ok(ticks as f64 / 100.0)
}

#[tokio::test]
async fn a_push_to_somebody_else_is_nobodys_limit() -> Result<()> {
    // The limits are each connection's: a thousand pushes to one client, with messages of the other in between.
    let setup = Setup::new(&[&payments("{messagesPerSecond: 5, burst: 5}")]).await?;
    let edge = setup.edge("e1").start().await?;
    let service = Service::connect(&setup).await?;
    let mut alice = edge.client("alice", "app").connect().await?;
    let mut bob = edge.client("bob", "app").connect().await?;
    let pushing = service.push_all((0..1000).map(|n| payment("alice", n)));
    let sending = async {
        for n in 0..5 {
            bob.send_acked(&json!({"id": n.to_string(), "messageType": "order.placed"})).await?;
        }
        Ok(())
    };
    let (pushed, sent): (Result<()>, Result<()>) = tokio::join!(pushing, sending);
    pushed?;
    sent?;
    assert_eq!(alice.numbers(1000).await?, (0..1000).collect::<Vec<_>>());
    Ok(())
}
