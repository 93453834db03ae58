//! Delivery `Transient`: a queue for each edge, acknowledged after the hand-over to the sockets; nothing to resume.

use anyhow::Result;
use serde_json::{Value, json};
use wirepost_core::names;
use wirepost_testing::broker::{PATIENCE, depth, eventually};
use wirepost_testing::service::Service;
use wirepost_testing::setup::{Setup, TRANSIENT};

fn price(to: &str, n: u64) -> Value {
    json!({"messageType": "price", "toUniqueId": to, "content": {"n": n}})
}

#[tokio::test]
async fn every_edge_delivers_from_a_queue_of_its_own_and_acknowledges() -> Result<()> {
    let setup = Setup::new(&[TRANSIENT]).await?;
    let (e1, e2) = (setup.edge("e1").start().await?, setup.edge("e2").start().await?);
    let service = Service::connect(&setup).await?;
    let mut alice = e1.client("alice", "app").connect().await?;
    let mut bob = e2.client("bob", "app").connect().await?;
    assert!(alice.welcome["cursor"].is_null(), "there is nothing to resume: {}", alice.welcome);

    service.push_all((0..500).map(|n| price("*", n))).await?;
    let all: Vec<_> = (0..500).collect();
    assert_eq!(alice.numbers(500).await?, all);
    assert_eq!(bob.numbers(500).await?, all);
    service.push(&price("bob", 500)).await?;
    alice.send_acked(&json!({"id": "w", "messageType": "wave", "toUniqueId": "bob", "content": {"n": 501}})).await?;
    assert_eq!(bob.numbers(2).await?, [500, 501]);

    for edge in ["e1", "e2"] {
        let queue = names::edge_queue("ticker", edge);
        eventually("nothing is left unacknowledged", PATIENCE, || async {
            // Of a queue without its consumer everything unacknowledged would come back.
            Ok(depth(&service.channel, &queue).await? == 0)
        })
        .await?;
    }
    // Statistics: they come late.
    eventually("both consumers are to acknowledge, and are bounded", PATIENCE, || async {
        let text = setup.vhost().broker.call("GET", &format!("/api/consumers/{}", setup.vhost().name), "").await?;
        let consumers: Vec<Value> = serde_json::from_str(&text)?;
        let right =
            |consumer: &&Value| consumer["ack_required"] == true && consumer["prefetch_count"].as_u64() > Some(0);
        Ok(consumers.iter().filter(right).count() == 2)
    })
    .await?;
    Ok(())
}

#[tokio::test]
async fn what_was_acknowledged_is_gone_and_what_was_not_comes_back_after_a_crash() -> Result<()> {
    let setup = Setup::new(&[TRANSIENT]).await?;
    let edge = setup.edge("e1").start().await?;
    let service = Service::connect(&setup).await?;
    let queue = names::edge_queue("ticker", "e1");
    let mut alice = edge.client("alice", "app").connect().await?;
    service.push_all((0..10).map(|n| price("alice", n))).await?;
    assert_eq!(alice.numbers(10).await?, (0..10).collect::<Vec<_>>());
    eventually("all are acknowledged", PATIENCE, || async {
        let text = setup.vhost().broker.call("GET", &format!("/api/queues/{}/{queue}", setup.vhost().name), "").await?;
        let queue: Value = serde_json::from_str(&text)?;
        Ok(queue["messages"] == 0 && queue["messages_unacknowledged"] == 0)
    })
    .await?;
    edge.kill9()?;
    eventually("the broker notices", PATIENCE, || async { Ok(depth(&service.channel, &queue).await? == 0) }).await?;
    // The queue stays a minute for an edge of that name.
    service.push(&price("alice", 10)).await?;
    assert_eq!(depth(&service.channel, &queue).await?, 1);
    Ok(())
}

#[tokio::test]
async fn a_client_that_comes_back_with_any_cursor_is_told_that_messages_may_be_missing() -> Result<()> {
    let setup = Setup::new(&[TRANSIENT]).await?;
    let edge = setup.edge("e1").start().await?;
    let service = Service::connect(&setup).await?;
    let mut alice = edge.client("alice", "app").cursor("AQAAAAAAAAAAAAEAAAAAAAAAAXRpY2tlcg").connect().await?;
    assert!(!alice.resumed());
    assert_eq!(alice.gap().await?, "incarnation");
    service.push(&price("alice", 1)).await?;
    assert_eq!(alice.numbers(1).await?, [1]);
    Ok(())
}

#[tokio::test]
async fn an_exchange_that_was_made_again_is_heard_again() -> Result<()> {
    let setup = Setup::new(&[TRANSIENT]).await?;
    let edge = setup.edge("e1").start().await?;
    let service = Service::connect(&setup).await?;
    let mut alice = edge.client("alice", "app").connect().await?;
    service.push(&price("*", 1)).await?;
    assert_eq!(alice.numbers(1).await?, [1]);
    setup.delete_exchange("wirepost.ticker.push").await?;
    setup.repair().await?;
    eventually("pushes arrive again", PATIENCE, || async {
        // Returned while nobody is bound.
        Ok(service.push(&price("*", 2)).await.is_ok())
    })
    .await?;
    assert_eq!(alice.numbers(1).await?, [2]);
    Ok(())
}
