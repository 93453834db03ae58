//! What is not known must not read as fine, and what one client sends must not read as a disaster.

use anyhow::{Context, Result};
use serde_json::{Value, json};
use wirepost_core::Cursor;
use wirepost_testing::broker::{PATIENCE, eventually};
use wirepost_testing::edge::Edge;
use wirepost_testing::proxy::{Network, Proxy};
use wirepost_testing::service::{Service, payment};
use wirepost_testing::setup::{PAYMENTS, Setup};

async fn configz(edge: &Edge) -> Result<Value> {
    serde_json::from_str(&edge.admin("/configz").await?.1).context("configz")
}

#[tokio::test]
async fn a_stream_listener_out_of_reach_does_not_read_as_fine() -> Result<()> {
    let setup = Setup::new(&[PAYMENTS]).await?;
    let (network, stream) = Proxy::of_uri(&setup.vhost().broker.stream).await?;
    let edge = setup.edge("e1").flag("stream", stream).start().await?;
    let service = Service::connect(&setup).await?;
    // Nobody needs it: there is nothing to know.
    eventually("the broker is up", PATIENCE, || async { Ok(configz(&edge).await?["broker"] == "up") }).await?;
    assert_eq!(configz(&edge).await?["lags"], json!({}));
    let mut alice = edge.client("alice", "app").connect().await?;
    service.push(&payment("alice", 0)).await?;
    alice.push().await?;
    assert_eq!(configz(&edge).await?["lags"], json!({"payments": 0}));
    assert_eq!(edge.count("wirepost_edge_readers_down").await?, 0);

    network.set(Network::Stalled);
    eventually("it is said that pushes are not read", PATIENCE, || async {
        let configz = configz(&edge).await?;
        Ok(configz["broker"] == "unread" && configz["unread"] == json!(["payments"]))
    })
    .await?;
    assert_eq!(configz(&edge).await?["lags"], json!({"payments": null}));
    assert_eq!(edge.count("wirepost_edge_readers_down").await?, 1);
    assert!(edge.metric("wirepost_edge_reader_lag").await?.is_nan(), "nobody knows how far it is behind");
    // Publishing is another matter.
    assert_eq!(edge.count("wirepost_edge_broker_up").await?, 1);
    alice.send_acked(&json!({"id": "o", "messageType": "order.placed"})).await?;

    network.set(Network::Fine);
    eventually("all is known again", PATIENCE, || async {
        let configz = configz(&edge).await?;
        Ok(configz["broker"] == "up" && configz["unread"] == json!([]) && configz["lags"] == json!({"payments": 0}))
    })
    .await?;
    assert_eq!(edge.count("wirepost_edge_readers_down").await?, 0);
    assert!(!edge.metric("wirepost_edge_reader_lag").await?.is_nan());
    Ok(())
}

#[tokio::test]
async fn alarms_that_cant_be_asked_for_are_said_to_be_unknown() -> Result<()> {
    let setup = Setup::new(&[PAYMENTS]).await?;
    let (network, management) = Proxy::of_uri(&setup.vhost().broker.management).await?;
    let edge = setup.edge("e1").flag("management", management).start().await?;
    let unknown = "wirepost_broker_alarms_unknown";
    eventually("they are known", PATIENCE, || async { Ok(edge.count(unknown).await? == 0) }).await?;
    network.set(Network::Stalled);
    edge.await_metric(unknown, 1.0).await?;
    network.set(Network::Fine);
    eventually("they are known again", PATIENCE, || async { Ok(edge.count(unknown).await? == 0) }).await
}

#[tokio::test]
async fn a_clients_garbage_cursor_is_no_replaced_stream() -> Result<()> {
    const FOREIGN: &str = "wirepost_edge_gaps_total{kind=\"cursor\"}";
    const INCARNATION: &str = "wirepost_edge_gaps_total{kind=\"incarnation\"}";
    const REPLACED: &str = "wirepost_edge_streams_replaced_total";
    let setup = Setup::new(&[PAYMENTS]).await?;
    let edge = setup.edge("e1").start().await?;
    let service = Service::connect(&setup).await?;
    let mut alice = edge.client("alice", "app").connect().await?;
    service.push(&payment("alice", 0)).await?;
    alice.push().await?;
    let own: Cursor = alice.cursor().parse()?;
    let of_another_business = Cursor { business: "orders".to_owned(), ..own.clone() }.to_string();
    for cursor in ["garbage", "0", of_another_business.as_str()] {
        let mut mallory = edge.client("mallory", "app").cursor(cursor).connect().await?;
        // What she is told stays as it was.
        assert_eq!(mallory.gap().await?, "incarnation", "{cursor}");
    }
    assert_eq!((edge.count(FOREIGN).await?, edge.count(INCARNATION).await?), (3, 0));
    // A cursor that could be one: she can make that up as well, and no alert asks for it.
    let forged = Cursor { fingerprint: own.fingerprint ^ 1, ..own };
    let mut mallory = edge.client("mallory", "app").cursor(forged.to_string()).connect().await?;
    assert_eq!(mallory.gap().await?, "incarnation");
    assert_eq!(edge.count(REPLACED).await?, 0);
    // What the reader finds on its own is another matter.
    setup.delete_queue("wirepost.payments.stream").await?;
    setup.repair().await?;
    service.push(&payment("alice", 1)).await?;
    edge.await_metric(REPLACED, 1.0).await
}
