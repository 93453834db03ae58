//! Token, socket, and the three kinds of message on a real RabbitMQ.

use anyhow::Result;
use serde_json::json;
use wirepost_tests::service::{Service, next_json};
use wirepost_tests::setup::{PAYMENTS, Setup};

#[tokio::test]
async fn a_client_s_message_reaches_the_queue_of_its_route() -> Result<()> {
    let setup = Setup::new(&[PAYMENTS]).await?;
    let edge = setup.edge("e1").start().await?;
    let service = Service::connect(&setup).await?;
    let mut orders = service.consume("orders", 10).await?;
    let mut alice = edge.client("alice", "app").connect().await?;
    alice.send_acked(&json!({"id": "o1", "messageType": "order.placed.eu", "content": {"n": 1}})).await?;
    let order = next_json(&mut orders).await?;
    assert_eq!(order["fromUniqueId"], "alice");
    Ok(())
}

#[tokio::test]
async fn a_push_of_a_plain_amqp_publisher_reaches_the_identity_that_it_names() -> Result<()> {
    let setup = Setup::new(&[PAYMENTS]).await?;
    let edge = setup.edge("e1").start().await?;
    let service = Service::connect(&setup).await?;
    let mut alice = edge.client("alice", "app").connect().await?;
    service.push(&json!({"messageType": "payment.completed", "toUniqueId": "alice", "content": {"n": 1}})).await?;
    assert_eq!(alice.content().await?, json!({"n": 1}));
    Ok(())
}
