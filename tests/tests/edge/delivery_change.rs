//! A business that becomes `Transient` and `Durable` again while its clients are connected.

use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};
use tokio::time::Instant;
use wirepost_core::names;
use wirepost_testing::broker::{PATIENCE, eventually};
use wirepost_testing::client::{Client, End};
use wirepost_testing::edge::Edge;
use wirepost_testing::service::Service;
use wirepost_testing::setup::Setup;

fn ticker(delivery: &str) -> String {
    format!(
        r"
apiVersion: wirepost.dev/v1alpha1
kind: WsBusiness
metadata: {{name: ticker, namespace: shop}}
spec:
  clientTypes: [app]
  routes: [{{messageType: price, sendType: ServerToClient, to: [app]}}]
  push: {{delivery: {delivery}}}
"
    )
}

const OTHER: &str = r"
apiVersion: wirepost.dev/v1alpha1
kind: WsBusiness
metadata: {name: other, namespace: shop}
spec:
  clientTypes: [app]
  routes: [{messageType: price, sendType: ServerToClient, to: [app]}]
";

fn price(to: &str, n: u64) -> Value {
    json!({"messageType": "price", "toUniqueId": to, "content": {"n": n}})
}

/// Pushes until one arrives: on a busy machine a client of a `Transient` business is greeted before its edge's queue is there, and not told
/// when it is.
async fn hears(service: &Service, client: &mut Client, n: u64) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        service.push(&price("alice", n)).await?;
        match client.push_within(Duration::from_secs(1)).await {
            Ok(push) => {
                assert_eq!(push["content"]["n"], n);
                return Ok(());
            }
            Err(error) if Instant::now() > deadline => return Err(error),
            Err(_) => {}
        }
    }
}

/// Declares it so, the stream gone or there as the operator would have it, and waits for the clients' end.
async fn change(setup: &Setup, delivery: &str, clients: &mut [&mut Client]) -> Result<()> {
    if delivery == "Transient" {
        setup.delete_queue(&names::stream("ticker")).await?;
    }
    setup.declare(&[&ticker(delivery), OTHER]).await?;
    for client in clients {
        let End::Closed(code, reason) = client.end().await? else { panic!("no close frame") };
        assert_eq!(code, 1012);
        assert!(reason.contains("reconnect"), "{reason}");
    }
    Ok(())
}

async fn queue_is_gone(setup: &Setup, edge: &Edge) -> Result<()> {
    let path = format!("/api/queues/{}/{}", setup.vhost().name, names::edge_queue("ticker", &edge.name));
    eventually("the edge's queue is gone", PATIENCE, || async {
        Ok(setup.vhost().broker.call("GET", &path, "").await.is_err_and(|error| error.to_string().contains("404")))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_are_told_to_come_back_and_get_pushes_after_each_change() -> Result<()> {
    let setup = Setup::new(&[&ticker("Durable"), OTHER]).await?;
    let edge = setup.edge("e1").start().await?;
    let service = Service::connect(&setup).await?;
    let mut bystander = edge.client("eve", "app").business("other").connect().await?;
    let mut alice = edge.client("alice", "app").connect().await?;
    let mut bob = edge.client("bob", "app").plain().connect().await?;
    service.push(&price("alice", 1)).await?;
    assert_eq!(alice.numbers(1).await?, [1]);
    let (durable, token) = (alice.cursor(), alice.resume_token());

    change(&setup, "Transient", &mut [&mut alice, &mut bob]).await?;
    // With the cursor of before: no error, but the word that something may be missing.
    let mut alice = edge.client("alice", "app").token(token).cursor(&durable).greeted().await?;
    assert!(!alice.resumed());
    assert_eq!(alice.gap().await?, "incarnation");
    assert!(alice.welcome["cursor"].is_null(), "{}", alice.welcome);
    hears(&service, &mut alice, 2).await?;
    let token = alice.resume_token();

    change(&setup, "Durable", &mut [&mut alice]).await?;
    queue_is_gone(&setup, &edge).await?;
    let mut alice = edge.client("alice", "app").token(token).cursor(&durable).connect().await?;
    assert!(!alice.resumed());
    assert_eq!(alice.gap().await?, "incarnation");
    service.push(&price("alice", 3)).await?;
    assert_eq!(alice.numbers(1).await?, [3]);
    // From here on it is resumed as ever.
    let (cursor, token) = (alice.cursor(), alice.resume_token());
    alice.reset();
    service.push(&price("alice", 4)).await?;
    let mut alice = edge.client("alice", "app").token(token).cursor(cursor).connect().await?;
    assert!(alice.resumed());
    assert_eq!(alice.numbers(1).await?, [4]);

    bystander.sync().await?;
    // The edge waits a little for each client's end of the TCP connection before it counts the close.
    edge.await_metric("wirepost_edge_closes_total{kind=\"delivery_changed\"}", 3.0).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transient_business_that_goes_leaves_no_queue_behind() -> Result<()> {
    let setup = Setup::new(&[&ticker("Transient"), OTHER]).await?;
    let edge = setup.edge("e1").start().await?;
    let mut alice = edge.client("alice", "app").connect().await?;
    hears(&Service::of(&setup, "ticker").await?, &mut alice, 0).await?;
    setup.declare(&[OTHER]).await?;
    assert_eq!(alice.close_code().await?, 4010);
    queue_is_gone(&setup, &edge).await?;
    // And back: its next life reads a queue of its own.
    setup.declare(&[&ticker("Transient"), OTHER]).await?;
    eventually("it is back", PATIENCE, || async { Ok(edge.token("ticker", "alice", "app", &[]).await.is_ok()) })
        .await?;
    let mut alice = edge.client("alice", "app").business("ticker").connect().await?;
    hears(&Service::of(&setup, "ticker").await?, &mut alice, 1).await
}
