//! A confirm is not an arrival (CASES 6): what was confirmed to a publisher or acknowledged to a client is somewhere, and arrives after the
//! repair.

use anyhow::Result;
use serde_json::{Value, json};
use wirepost_core::names;
use wirepost_testing::broker::{PATIENCE, depth, eventually};
use wirepost_testing::client::Client;
use wirepost_testing::service::{Service, next_json, payment};
use wirepost_testing::setup::{PAYMENTS, Setup};

const PUSH: &str = "wirepost.payments.push";
const RECEIVE: &str = "wirepost.payments.receive";
const STREAM: &str = "wirepost.payments.stream";

#[tokio::test]
async fn pushes_outlive_a_lost_binding_of_the_stream() -> Result<()> {
    let setup = Setup::new(&[PAYMENTS]).await?;
    let edge = setup.edge("e1").start().await?;
    let service = Service::connect(&setup).await?;
    let mut alice = edge.client("alice", "app").connect().await?;
    setup.unbind(PUSH, STREAM, "").await?;
    service.push_all((0..10).map(|n| payment("alice", n))).await?;
    let (status, answer) = edge.post(&payment("alice", 10)).await?;
    assert_eq!(status, 200, "kept in unrouted: {answer}");
    assert_eq!(depth(&service.channel, &names::unrouted("payments")).await?, 11);

    assert!(!setup.repair().await?.changes.is_empty());
    assert_eq!(setup.move_back("payments").await?.moved, 11);
    assert_eq!(alice.numbers(11).await?, (0..=10).collect::<Vec<_>>());
    Ok(())
}

#[tokio::test]
async fn pushes_to_a_missing_exchange_are_refused_and_those_after_the_repair_arrive() -> Result<()> {
    let setup = Setup::new(&[PAYMENTS]).await?;
    let edge = setup.edge("e1").start().await?;
    let service = Service::connect(&setup).await?;
    let mut alice = edge.client("alice", "app").connect().await?;
    setup.delete_exchange(PUSH).await?;
    service.push(&payment("alice", 100)).await.unwrap_err();
    let (status, answer) = edge.post(&payment("alice", 101)).await?;
    assert_eq!(status, 503, "{answer}");
    assert_eq!(
        (&answer["data"]["retryable"], &answer["data"]["mayHaveArrived"]),
        (&json!(true), &json!(false)),
        "{answer}"
    );

    setup.repair().await?;
    // That error closed the service's channel.
    let service = Service::connect(&setup).await?;
    service.push_all((0..10).map(|n| payment("alice", n))).await?;
    eventually("pushes by HTTP are taken again", PATIENCE, || async {
        Ok(edge.post(&payment("alice", 10)).await?.0 == 200)
    })
    .await?;
    assert_eq!(alice.numbers(11).await?, (0..=10).collect::<Vec<_>>());
    Ok(())
}

#[tokio::test]
async fn pushes_outlive_their_stream() -> Result<()> {
    let setup = Setup::new(&[PAYMENTS]).await?;
    let edge = setup.edge("e1").start().await?;
    let service = Service::connect(&setup).await?;
    let mut alice = edge.client("alice", "app").connect().await?;
    setup.delete_queue(STREAM).await?;
    service.push_all((0..10).map(|n| payment("alice", n))).await?;
    setup.repair().await?;
    assert_eq!(setup.move_back("payments").await?.moved, 10);
    assert_eq!(alice.gap().await?, "incarnation", "what the old stream held is gone");
    assert_eq!(alice.numbers(10).await?, (0..10).collect::<Vec<_>>());
    Ok(())
}

/// Sends orders one by one; the numbers of those that were acknowledged. The others were refused, with their nacks, all retryable.
async fn send(client: &mut Client, numbers: std::ops::Range<u64>) -> Result<(Vec<u64>, Vec<Value>)> {
    let (mut acked, mut nacks) = (Vec::new(), Vec::new());
    for n in numbers {
        let id = format!("o{n}");
        client.send(&json!({"id": id, "messageType": "order.placed", "content": {"n": n}})).await?;
        let answer = client.answer().await?;
        assert_eq!(answer["id"], id);
        if answer["op"] == "ack" {
            acked.push(n);
        } else {
            assert_eq!(answer["retryable"], true, "{answer}");
            nacks.push(answer);
        }
    }
    Ok((acked, nacks))
}

/// The next `n` orders.
async fn arrived(setup: &Setup, count: usize) -> Result<Vec<Value>> {
    // By a service of its own: one that is still consuming when its queue is deleted is another story.
    let service = Service::connect(setup).await?;
    let mut orders = service.consume("orders", 100).await?;
    let mut numbers = Vec::new();
    for _ in 0..count {
        numbers.push(next_json(&mut orders).await?["content"]["n"].take());
    }
    service.connection.close(200, "done".into()).await?;
    Ok(numbers)
}

#[tokio::test]
async fn messages_of_clients_outlive_a_lost_binding_and_a_lost_queue() -> Result<()> {
    let setup = Setup::new(&[PAYMENTS]).await?;
    let edge = setup.edge("e1").start().await?;
    let mut alice = edge.client("alice", "app").connect().await?;
    let orders = names::route_queue("payments", "orders");
    setup.unbind(RECEIVE, &orders, &names::queue_key(&orders)).await?;
    assert_eq!(send(&mut alice, 0..10).await?.0.len(), 10, "each is kept in unrouted");
    setup.repair().await?;
    assert_eq!(setup.move_back("payments").await?.moved, 10);
    assert_eq!(arrived(&setup, 10).await?, (0..10).map(Value::from).collect::<Vec<_>>());

    setup.delete_queue(&names::route_queue("payments", "orders")).await?;
    assert_eq!(send(&mut alice, 10..20).await?.0.len(), 10, "each is kept in unrouted");
    setup.repair().await?;
    assert_eq!(setup.move_back("payments").await?.moved, 10);
    assert_eq!(arrived(&setup, 10).await?, (10..20).map(Value::from).collect::<Vec<_>>());
    Ok(())
}

#[tokio::test]
async fn without_its_exchange_no_client_gets_an_ack_and_another_business_feels_nothing() -> Result<()> {
    let other = PAYMENTS.replace("name: payments", "name: other");
    let setup = Setup::new(&[PAYMENTS, &other]).await?;
    let edge = setup.edge("e1").start().await?;
    let mut alice = edge.client("alice", "app").connect().await?;
    let mut carol = edge.client("carol", "app").business("other").connect().await?;
    setup.delete_exchange(RECEIVE).await?;
    let (acked, nacks) = send(&mut alice, 0..10).await?;
    assert!(acked.is_empty(), "{acked:?}");
    for nack in nacks {
        assert_eq!((&nack["code"], &nack["mayHaveArrived"]), (&json!("broker_unavailable"), &json!(false)), "{nack}");
    }
    assert_eq!(send(&mut carol, 0..10).await?.0.len(), 10);
    setup.repair().await?;
    let (acked, _) = send(&mut alice, 10..20).await?;
    assert!(!acked.is_empty(), "nothing is taken after the repair");
    assert_eq!(arrived(&setup, acked.len()).await?, acked.into_iter().map(Value::from).collect::<Vec<_>>());
    Ok(())
}

#[tokio::test]
async fn a_full_queue_refuses_its_senders() -> Result<()> {
    let small = PAYMENTS.replace("queue: {name: orders}", "queue: {name: orders, maxLength: 5}");
    let setup = Setup::new(&[&small]).await?;
    let edge = setup.edge("e1").start().await?;
    let mut alice = edge.client("alice", "app").connect().await?;
    let (acked, nacks) = send(&mut alice, 0..20).await?;
    assert!((5..20).contains(&acked.len()), "{acked:?}");
    // Another queue of the same route could have taken it: whether it arrived anywhere the broker does not say.
    assert!(nacks.iter().all(|nack| nack["mayHaveArrived"] == true), "{nacks:?}");
    assert_eq!(arrived(&setup, acked.len()).await?, acked.into_iter().map(Value::from).collect::<Vec<_>>());
    Ok(())
}
