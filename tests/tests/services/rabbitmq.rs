//! The helpers themselves, and the facts about RabbitMQ that the rest is built on.

use lapin::options::{BasicAckOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use wirepost_testing::broker::{self, PrivateBroker, TestBroker, Vhost, consume, depth, eventually, publish};

#[tokio::test]
async fn a_vhost_is_there_for_one_test_and_gone_afterwards() {
    let broker = TestBroker::from_env().unwrap();
    let vhost = Vhost::create().await.unwrap();
    let path = format!("/api/vhosts/{}", vhost.name);
    broker.call("GET", &path, "").await.unwrap();
    tokio::task::spawn_blocking(|| drop(vhost)).await.unwrap();
    let error = broker.call("GET", &path, "").await.unwrap_err().to_string();
    assert!(error.contains("404"), "{error}");
}

#[tokio::test]
async fn publish_tells_a_message_that_arrived_from_one_that_no_queue_took() {
    let vhost = Vhost::create().await.unwrap();
    let (_connection, channel) = vhost.channel().await.unwrap();
    publish(&channel, "", "nobody", b"lost").await.unwrap_err();
    channel.queue_declare("somebody".into(), QueueDeclareOptions::durable(), FieldTable::default()).await.unwrap();
    publish(&channel, "", "somebody", b"kept").await.unwrap();
    assert_eq!(depth(&channel, "somebody").await.unwrap(), 1);
    let mut consumer = consume(&channel, "somebody", 1).await.unwrap();
    let delivery = broker::next(&mut consumer).await.unwrap();
    assert_eq!(delivery.data, b"kept");
    delivery.ack(BasicAckOptions::default()).await.unwrap();
}

#[tokio::test]
async fn a_private_broker_can_be_killed_frozen_and_comes_back_with_its_data() {
    let broker = PrivateBroker::start("helpers", &[]).await.unwrap();
    let vhost = broker.vhost().await.unwrap();
    let (_connection, channel) = vhost.channel().await.unwrap();
    channel.queue_declare("q".into(), QueueDeclareOptions::durable(), FieldTable::default()).await.unwrap();
    publish(&channel, "", "q", b"kept").await.unwrap();
    broker.kill9().await.unwrap();
    vhost.connect().await.unwrap_err();
    broker.start_again().await.unwrap();
    let (_connection, channel) = vhost.channel().await.unwrap();
    assert_eq!(depth(&channel, "q").await.unwrap(), 1);
    broker.pause().await.unwrap();
    let frozen = tokio::time::timeout(std::time::Duration::from_secs(1), depth(&channel, "q")).await;
    assert!(frozen.is_err(), "a frozen broker answered");
    broker.resume().await.unwrap();
    eventually("the thawed broker answers", broker::PATIENCE, || async {
        let (_connection, channel) = vhost.channel().await?;
        Ok(depth(&channel, "q").await? == 1)
    })
    .await
    .unwrap();
}
