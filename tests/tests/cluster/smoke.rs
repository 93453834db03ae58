//! As a platform team would: `helm install`, `kubectl apply`, a token, a socket, all three kinds of message.

use anyhow::{Context, Result, ensure};
use lapin::options::{BasicAckOptions, ConfirmSelectOptions};
use serde_json::{Value, json};
use wirepost_testing::broker::{consume, next, publish};
use wirepost_testing::node::Node;

const EXAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples");
/// Where each of the examples is, and its name.
const BUSINESSES: [(&str, &str); 4] =
    [("shop", "payments"), ("shop", "chat"), ("energy", "charging-port"), ("identity", "qr-login")];

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a cluster with nodes: make cluster-test"]
async fn install_apply_and_all_three_kinds_of_message() -> Result<()> {
    let node = Node::connect().await?;
    node.install(&[]).await?;
    let mut made = Vec::new();
    for (namespace, name) in BUSINESSES {
        // Somebody who tries the examples on this cluster keeps them.
        if node.kubectl(&["get", "namespace", namespace, "--ignore-not-found", "--output", "name"]).await?.is_empty() {
            made.push((namespace, name));
        }
        node.namespace(namespace).await?;
    }
    let used = uses_examples(&node).await;
    for (namespace, name) in made {
        remove(&node, namespace, name).await.with_context(|| format!("removing {namespace}/{name}, after {used:?}"))?;
    }
    used
}

async fn remove(node: &Node, namespace: &str, name: &str) -> Result<()> {
    let now = "wirepost.dev/delete-queues=now";
    node.kubectl(&["annotate", "wsbusinesses", "--all", now, "--overwrite", "--namespace", namespace]).await?;
    node.kubectl(&["delete", "namespace", namespace, "--wait=false"]).await?;
    node.cluster.wait_gone(namespace, name).await
}

async fn uses_examples(node: &Node) -> Result<()> {
    node.kubectl(&["apply", "--filename", EXAMPLES]).await?;
    for (namespace, name) in BUSINESSES {
        let edges = node.ready(namespace, name).await?.status.and_then(|status| status.edges);
        let summary = edges.and_then(|edges| edges.summary);
        ensure!(summary.as_deref() == Some("2/2"), "{name}: {summary:?}");
    }

    let payments = node.business("shop", "payments", "payments-wirepost").await?;
    let amqp = payments.amqp().await?;
    let channel = amqp.create_channel().await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    // Unlike those of another run, whose messages the broker may still have.
    let id = |what: &str| format!("{what}-{:08x}", rand::random::<u32>());
    let (to_alice, to_bob) = (id("alice"), id("bob"));
    let mut alice = payments.client(&to_alice, "app").await?;
    let mut bob = payments.client(&to_bob, "h5").await?;

    // Client to server.
    let mut queue = consume(&channel, &payments.secret["queue.qr-refresh"], 100).await?;
    let qr = id("q");
    bob.send_acked(&json!({"messageType": "qr.refresh", "id": id("m"), "content": {"qrId": qr}})).await?;
    loop {
        let delivery = next(&mut queue).await.context("the refresh is not in the queue")?;
        if serde_json::from_slice::<Value>(&delivery.data)?["content"]["qrId"] == qr {
            delivery.ack(BasicAckOptions::default()).await?;
            break;
        }
    }

    // Server to client, by both ways.
    let push = |order: &str| json!({"messageType": "payment.completed", "toUniqueId": to_alice, "content": {"orderId": order}});
    let (by_amqp, by_http) = (id("amqp"), id("http"));
    publish(&channel, &payments.secret["push-exchange"], "", push(&by_amqp).to_string().as_bytes()).await?;
    ensure!(alice.content().await?["orderId"] == by_amqp);
    payments.post(&push(&by_http)).await?;
    ensure!(alice.content().await?["orderId"] == by_http);

    // Client to client.
    let cart = id("c");
    let share = json!({"messageType": "cart.share", "toUniqueId": to_bob, "id": id("m"), "content": {"cartId": cart}});
    alice.send_acked(&share).await?;
    ensure!(bob.content().await?["cartId"] == cart);
    alice.leave().await?;
    bob.leave().await
}
