//! The helpers themselves, and the facts about RabbitMQ that the rest is built on.

use lapin::options::{BasicAckOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use wirepost_testing::broker::{
    self, BrokerCluster, PATIENCE, PrivateBroker, TestBroker, Vhost, consume, depth, eventually, publish,
};

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
    assert!(!matches!(frozen, Ok(Ok(_))), "a frozen broker answered");
    broker.resume().await.unwrap();
    eventually("the thawed broker answers", broker::PATIENCE, || async {
        let (_connection, channel) = vhost.channel().await?;
        Ok(depth(&channel, "q").await? == 1)
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn a_cluster_of_three_goes_on_without_the_leader_of_a_queue() {
    let cluster = BrokerCluster::start("helpers").await.unwrap();
    let vhost = cluster.node(0).vhost().await.unwrap();
    let (_connection, channel) = vhost.channel().await.unwrap();
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    channel.queue_declare("q".into(), QueueDeclareOptions::durable(), arguments).await.unwrap();
    publish(&channel, "", "q", b"kept").await.unwrap();
    assert_eq!(cluster.members(0, &vhost.name, "q").await.unwrap(), [0, 1, 2]);
    let leader = cluster.leader(0, &vhost.name, "q").await.unwrap();
    let other = (leader + 1) % 3;
    cluster.node(leader).kill9().await.unwrap();
    let there = broker::Vhost { broker: (*cluster.node(other)).clone(), name: vhost.name.clone() };
    eventually("another node leads", PATIENCE, || async {
        let (_connection, channel) = there.channel().await?;
        publish(&channel, "", "q", b"more").await?;
        Ok(depth(&channel, "q").await? >= 2)
    })
    .await
    .unwrap();
    assert_ne!(cluster.leader(other, &vhost.name, "q").await.unwrap(), leader);
    cluster.node(leader).start_again().await.unwrap();
}
