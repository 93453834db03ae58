//! As a platform team would: `helm install`, `kubectl apply`, a token, a socket, all three kinds of message.

use anyhow::{Context, Result, ensure};
use lapin::options::ConfirmSelectOptions;
use serde_json::json;
use wirepost_tests::broker::{consume, next, publish};
use wirepost_tests::node::Node;
use wirepost_tests::operator::condition_of;

const PAYMENTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/payments.yaml");

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a cluster with nodes: make cluster-test"]
async fn install_apply_and_all_three_kinds_of_message() -> Result<()> {
    let node = Node::connect().await?;
    node.install(&[]).await?;

    node.namespace("shop").await?;
    node.kubectl(&["apply", "--filename", PAYMENTS]).await?;
    let wsb = node
        .cluster
        .wait_for("shop", "payments", "get Ready=True for its generation", |wsb| {
            condition_of(wsb, "Ready")
                .is_some_and(|ready| ready.status == "True" && ready.observed_generation == wsb.metadata.generation)
        })
        .await?;
    let edges = wsb.status.and_then(|status| status.edges).context("no edges")?;
    ensure!(edges.summary.as_deref() == Some("2/2"), "{edges:?}");

    let payments = node.business("shop", "payments", "payments-wirepost").await?;
    let amqp = payments.amqp().await?;
    let channel = amqp.create_channel().await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    let mut alice = payments.client("alice", "app").await?;
    let mut bob = payments.client("bob", "h5").await?;

    // Client to server.
    let mut queue = consume(&channel, &payments.secret["queue.qr-refresh"], 1).await?;
    bob.send_acked(&json!({"messageType": "qr.refresh", "id": "m-1", "content": {"qrId": "q-1"}})).await?;
    let delivery = next(&mut queue).await?;
    ensure!(serde_json::from_slice::<serde_json::Value>(&delivery.data)?["content"]["qrId"] == "q-1");

    // Server to client, by both ways.
    let push = json!({"messageType": "payment.completed", "toUniqueId": "alice", "content": {"orderId": "o-1"}});
    publish(&channel, &payments.secret["push-exchange"], "", push.to_string().as_bytes()).await?;
    ensure!(alice.content().await?["orderId"] == "o-1");
    payments.post(&push).await?;
    ensure!(alice.content().await?["orderId"] == "o-1");

    // Client to client.
    let share = json!({"messageType": "cart.share", "toUniqueId": "bob", "id": "m-2", "content": {"cartId": "c-7"}});
    alice.send_acked(&share).await?;
    ensure!(bob.content().await?["cartId"] == "c-7");
    Ok(())
}
