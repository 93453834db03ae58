//! Several routes take one message type. Each decides on its own, and a message is in the queues of those that admitted it, nowhere else.

use anyhow::{Context, Result};
use lapin::options::BasicGetOptions;
use lapin::types::FieldTable;
use serde_json::{Value, json};
use wirepost_core::names;
use wirepost_testing::broker::{PATIENCE, depth, next};
use wirepost_testing::client::Client;
use wirepost_testing::service::{Service, header, next_json};
use wirepost_testing::setup::Setup;

const LOGS: &str = r##"
apiVersion: wirepost.dev/v1alpha1
kind: WsBusiness
metadata: {name: logs, namespace: shop}
spec:
  clientTypes: [h5, app, pos, ops]
  routes:
    - {messageType: "log.*", sendType: ClientToServer, from: [h5, ops], queue: {name: everything}}
    - {messageType: log.admin, sendType: ClientToServer, from: [app, ops], queue: {name: admins},
       schema: {type: object, required: [admin]}}
    - {messageType: "#.admin", sendType: ClientToServer, from: [ops], queue: {name: everything}}
"##;
const RECEIVE: &str = "wirepost.logs.receive";

async fn nacked(client: &mut Client, id: &str, content: Value) -> Result<String> {
    client.send(&json!({"id": id, "messageType": "log.admin", "content": content})).await?;
    Ok(client.nack(id).await?["code"].as_str().context("no code")?.to_owned())
}

async fn log(client: &mut Client, id: &str, content: Value) -> Result<()> {
    client.send_acked(&json!({"id": id, "messageType": "log.admin", "content": content})).await
}

#[tokio::test]
async fn a_message_reaches_only_the_queues_of_routes_that_admitted_it() -> Result<()> {
    let setup = Setup::new(&[LOGS]).await?;
    let edge = setup.edge("e1").start().await?;
    let service = Service::connect(&setup).await?;
    let mut h5 = edge.client("hal", "h5").connect().await?;
    let mut app = edge.client("ann", "app").connect().await?;
    let mut pos = edge.client("pat", "pos").connect().await?;
    let mut ops = edge.client("oli", "ops").connect().await?;

    // Not of the sender of the second route, and without what its schema asks for.
    log(&mut h5, "h5", json!({})).await?;
    // The first route is not for it; the second one is.
    log(&mut app, "app", json!({"admin": 1})).await?;
    // Every route is for it, and one queue is named twice.
    log(&mut ops, "ops", json!({"admin": 2})).await?;
    log(&mut ops, "ops-part", json!({})).await?;
    // The answer is of the route that it came closest to.
    assert_eq!(nacked(&mut app, "bad", json!({})).await?, "schema_mismatch");
    assert_eq!(nacked(&mut pos, "pos", json!({"admin": 1})).await?, "not_allowed");

    for (queue, expected) in [("everything", vec!["h5", "ops", "ops-part"]), ("admins", vec!["app", "ops"])] {
        assert_eq!(service.depth(queue).await? as usize, expected.len(), "{queue}");
        let mut messages = service.consume(queue, 10).await?;
        for id in expected {
            let delivery = next(&mut messages).await?;
            let envelope: Value = serde_json::from_slice(&delivery.data)?;
            assert_eq!((&envelope["id"], delivery.routing_key.as_str()), (&json!(id), "log.admin"), "{queue}");
            assert_eq!(header(&delivery, "queue").context("no header")?, names::route_queue("logs", queue));
            let headers = delivery.properties.headers().as_ref().context("no headers")?;
            assert!(!headers.inner().contains_key("BCC"), "{headers:?}");
        }
    }
    assert_eq!(depth(&service.channel, &names::unrouted("logs")).await?, 0);
    Ok(())
}

#[tokio::test]
async fn a_message_for_two_queues_is_whole_though_one_of_them_has_lost_its_binding() -> Result<()> {
    let setup = Setup::new(&[LOGS]).await?;
    let edge = setup.edge("e1").start().await?;
    let service = Service::connect(&setup).await?;
    let mut ops = edge.client("oli", "ops").connect().await?;
    let admins = names::route_queue("logs", "admins");
    setup.unbind(RECEIVE, &admins, &names::queue_key(&admins)).await?;
    log(&mut ops, "m", json!({"admin": 1})).await?;
    assert_eq!((service.depth("everything").await?, service.depth("admins").await?), (1, 0));
    assert_eq!(depth(&service.channel, &names::unrouted("logs")).await?, 1, "the other copy is kept");
    setup.repair().await?;
    assert_eq!(setup.move_back("logs").await?.moved, 1);
    assert_eq!((service.depth("everything").await?, service.depth("admins").await?), (1, 1));
    assert_eq!(next_json(&mut service.consume("admins", 1).await?).await?["id"], "m");
    Ok(())
}

/// The code, or `ack`.
async fn nack_or_ack(client: &mut Client) -> Result<String> {
    client.send(&json!({"id": "h5", "messageType": "log.admin", "content": {}})).await?;
    let answer = client.answer().await?;
    Ok(answer["code"].as_str().unwrap_or("ack").to_owned())
}

/// Edges and the operator are not replaced at the same moment.
#[tokio::test]
async fn nothing_that_was_acknowledged_is_lost_while_edges_and_topology_are_of_two_versions() -> Result<()> {
    let setup = Setup::new(&[LOGS]).await?;
    let service = Service::connect(&setup).await?;
    let edge = setup.edge("e1").start().await?;
    let mut h5 = edge.client("hal", "h5").connect().await?;
    let mut ops = edge.client("oli", "ops").connect().await?;

    // A newer edge by an older operator's configuration and bindings: those by pattern deliver to every route, so each must admit it.
    for (queue, pattern) in [("everything", "log.*"), ("everything", "#.admin"), ("admins", "log.admin")] {
        let queue = names::route_queue("logs", queue);
        let bind = service.channel.queue_bind(
            queue.as_str().into(),
            RECEIVE.into(),
            pattern.into(),
            lapin::options::QueueBindOptions::default(),
            FieldTable::default(),
        );
        bind.await?;
        setup.unbind(RECEIVE, &queue, &names::queue_key(&queue)).await?;
    }
    setup.reconfigure("logs", |config| config.routes.iter_mut().for_each(|route| route.queue = None))?;
    // Until the edge has read it.
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while nack_or_ack(&mut h5).await? != "not_allowed" {
        assert!(tokio::time::Instant::now() < deadline, "the edge goes on with the newer configuration");
    }
    // Until then it went by a newer one, to which those bindings were strange.
    let before = (service.depth("everything").await?, service.depth("admins").await?);
    let put_aside = depth(&service.channel, &names::unrouted("logs")).await?;
    log(&mut ops, "both", json!({"admin": 1})).await?;
    assert_eq!((service.depth("everything").await?, service.depth("admins").await?), (before.0 + 1, before.1 + 1));
    assert_eq!(depth(&service.channel, &names::unrouted("logs")).await?, put_aside);

    // An older edge under newer bindings: its message says nothing of queues.
    setup.repair().await?;
    service.channel.queue_purge(names::unrouted("logs").into(), lapin::options::QueuePurgeOptions::default()).await?;
    let body = br#"{"id": "old", "messageType": "log.admin", "content": {}}"#;
    wirepost_testing::broker::publish(&service.channel, RECEIVE, "log.admin", body).await?;
    assert_eq!(setup.move_back("logs").await?.moved, 1);
    assert_eq!((service.depth("everything").await?, service.depth("admins").await?), (before.0 + 2, before.1 + 1));
    let unrouted = names::unrouted("logs");
    assert!(service.channel.basic_get(unrouted.into(), BasicGetOptions::default()).await?.is_none());
    Ok(())
}
