//! The session's end binds an open socket, both ways, and a refresh is as good as a new session (CASES 15).

use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep_until};
use wirepost_testing::broker::eventually;
use wirepost_testing::client::{Client, End};
use wirepost_testing::edge::Edge;
use wirepost_testing::service::{Service, payment};
use wirepost_testing::setup::{PAYMENTS, Setup};

/// Of the business here; the shortest that leaves time for what must happen within it on a busy machine.
const SESSION: Duration = Duration::from_secs(8);

async fn start() -> Result<(Setup, Edge, Service)> {
    let setup = Setup::new(&[&format!("{PAYMENTS}  session: {{maxSeconds: {}}}\n", SESSION.as_secs())]).await?;
    let edge = setup.edge("e1").start().await?;
    let service = Service::connect(&setup).await?;
    Ok((setup, edge, service))
}

/// The ticket of a token call.
async fn ticket(edge: &Edge, unique_id: &str, client_type: &str, tags: &[&str]) -> Result<String> {
    let url = edge.token("payments", unique_id, client_type, tags).await?;
    Ok(url.rsplit('/').next().unwrap_or_default().to_owned())
}

async fn refresh(client: &mut Client, token: &str) -> Result<()> {
    client.send(&json!({"op": "refresh", "token": token})).await
}

fn ends_at(frame: &Value) -> i64 {
    frame["sessionEndsAt"].as_i64().unwrap_or_default()
}

fn now_ms() -> i64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
}

fn tagged(tag: &str, n: u64) -> Value {
    json!({"messageType": "payment.completed", "tags": [tag], "content": {"n": n}})
}

#[tokio::test]
async fn at_its_end_a_session_closes_its_socket_and_nothing_comes_after() -> Result<()> {
    let (_setup, edge, service) = start().await?;
    let mut alice = edge.client("alice", "app").connect().await?;
    let end = ends_at(&alice.welcome);
    assert!((now_ms()..=now_ms() + SESSION.as_millis() as i64).contains(&end), "{}", alice.welcome);
    // A push and a send several times a second, until well after the end.
    let start = Instant::now();
    let mut sent = 0;
    while now_ms() < end + 1500 {
        service.push(&payment("alice", sent)).await?;
        let order = json!({"id": format!("order-{sent}"), "messageType": "order.placed", "content": {"n": sent}});
        // After the end nobody takes it.
        if alice.send(&order).await.is_err() {
            assert!(now_ms() >= end, "the socket ended before the session");
        }
        sent += 1;
        sleep_until(start + Duration::from_millis(200) * sent as u32).await;
    }
    assert_eq!(alice.end().await?, End::Closed(3000, "session over, get a new token".to_owned()));
    assert!(alice.controls().iter().any(|frame| frame["op"] == "expiring"), "{:?}", alice.controls());
    let came = alice.pushes().len() as u64;
    assert!(came > 0 && came < sent, "{came} of {sent} pushes");
    let acked = alice.controls().iter().filter(|frame| frame["op"] == "ack").count() as u64;
    assert!(acked > 0 && acked < sent, "{acked} of {sent} orders");
    // What was sent after the end is nowhere.
    service.push(&payment("alice", sent)).await?;
    let depth = service.depth("orders").await?;
    assert!(u64::from(depth) < sent, "{depth} of {sent} orders are in the queue");
    // What she holds is of no use any more.
    let mut late = edge.client("alice", "app").token(alice.resume_token()).upgrade().await?;
    assert_eq!(late.close_code().await?, 3000);
    Ok(())
}

#[tokio::test]
async fn a_refresh_prolongs_a_session_without_a_gap() -> Result<()> {
    let (_setup, edge, service) = start().await?;
    let mut alice = edge.client("alice", "app").tags(&["gold"]).connect().await?;
    let first_end = ends_at(&alice.welcome);
    let mut n = 0;
    let mut push = async |until: i64| -> Result<()> {
        while now_ms() < until {
            service.push(&payment("alice", n)).await?;
            n += 1;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    };
    push(first_end - SESSION.as_millis() as i64 / 2).await?;
    refresh(&mut alice, &ticket(&edge, "alice", "app", &["gold"]).await?).await?;
    let refreshed = alice.control("refreshed").await?;
    assert!(ends_at(&refreshed) > first_end + 1000, "{refreshed}, before {first_end}");
    push(first_end + 1000).await?;
    service.push(&tagged("gold", n)).await?;
    assert_eq!(alice.numbers(n as usize + 1).await?, (0..=n).collect::<Vec<_>>());
    alice.send_acked(&json!({"id": "after", "messageType": "order.placed"})).await?;
    // The new resume token is one of the new session.
    let token = refreshed["resumeToken"].as_str().unwrap();
    let mut again = edge.client("alice", "app").token(token).cursor(alice.cursor()).connect().await?;
    assert_eq!(ends_at(&again.welcome), ends_at(&refreshed));
    assert!(again.resumed());
    // And that one ends as well.
    assert_eq!(alice.close_code().await?, 3000);
    assert!(now_ms() >= ends_at(&refreshed));
    assert_eq!(again.close_code().await?, 3000);
    Ok(())
}

#[tokio::test]
async fn a_refresh_that_is_not_of_this_identity_is_refused_and_changes_nothing() -> Result<()> {
    let (_setup, edge, service) = start().await?;
    let mut alice = edge.client("alice", "app").tags(&["gold"]).connect().await?;
    let end = ends_at(&alice.welcome);
    let good = ticket(&edge, "alice", "app", &["gold"]).await?;
    let resume = alice.resume_token();
    for (what, token) in [
        ("another uniqueId", ticket(&edge, "bob", "app", &["gold"]).await?),
        ("another clientType", ticket(&edge, "alice", "h5", &["gold"]).await?),
        ("forged", format!("{}AAAA", &good[..good.len() - 4])),
        ("no token", "x".to_owned()),
        ("a resume token", resume),
    ] {
        refresh(&mut alice, &token).await?;
        let error = alice.control("error").await?;
        assert_eq!(error["about"], "refresh", "{what}: {error}");
        assert!(!error.to_string().contains(&token) || token == "x", "{what}: the answer repeats the token");
    }
    for n in 0..2 {
        service.push(&if n == 0 { payment("alice", n) } else { tagged("gold", n) }).await?;
    }
    service.push(&payment("bob", 9)).await?;
    alice.send_acked(&json!({"id": "as-it-was", "messageType": "order.placed"})).await?;
    assert_eq!(alice.numbers(2).await?, [0, 1]);
    assert_eq!(alice.close_code().await?, 3000);
    assert!((end..end + 4000).contains(&now_ms()), "the session ended at another time than it had");
    assert!(alice.pushes().is_empty(), "{:?}", alice.pushes());
    Ok(())
}

#[tokio::test]
async fn tags_that_a_refresh_does_not_name_stop_at_once() -> Result<()> {
    let (_setup, edge, service) = start().await?;
    let mut alice = edge.client("alice", "app").tags(&["gold", "berlin"]).connect().await?;
    service.push(&tagged("gold", 0)).await?;
    service.push(&tagged("berlin", 1)).await?;
    assert_eq!(alice.numbers(2).await?, [0, 1]);
    refresh(&mut alice, &ticket(&edge, "alice", "app", &["berlin", "vip"]).await?).await?;
    let refreshed = alice.control("refreshed").await?;
    let audience =
        json!({"messageType": "payment.completed", "toUniqueId": "alice", "tags": ["gold"], "content": {"n": 2}});
    service.push_all([tagged("gold", 2), audience, tagged("berlin", 3), tagged("vip", 4)]).await?;
    assert_eq!(alice.numbers(2).await?, [3, 4]);
    // Also on the way that needs no token call.
    let token = refreshed["resumeToken"].as_str().unwrap();
    let cursor = alice.cursor();
    alice.reset();
    eventually("the old socket's end is noticed", Duration::from_secs(10), || async {
        Ok(edge.metric("wirepost_edge_connections").await? == 0.0)
    })
    .await?;
    service.push_all([tagged("gold", 5), tagged("vip", 6)]).await?;
    let mut back = edge.client("alice", "app").token(token).cursor(cursor).connect().await?;
    assert_eq!(back.numbers(1).await?, [6]);
    Ok(())
}
