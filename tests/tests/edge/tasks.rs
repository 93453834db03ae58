//! A task that panics never leaves an edge that is ready and does nothing: the edge ends and says why, or the task is back.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use futures_util::{StreamExt, TryStreamExt, stream};
use serde_json::json;
use wirepost_testing::broker::{PATIENCE, eventually};
use wirepost_testing::edge::{Edge, EdgeBuilder};
use wirepost_testing::service::{Service, payment};
use wirepost_testing::setup::{PAYMENTS, Setup, TRANSIENT};
use wirepost_testing::tls::Authority;

/// Nothing listens at the address of its issuer's key set.
const ISSUED: &str = r"
apiVersion: wirepost.dev/v1alpha1
kind: WsBusiness
metadata: {name: issued, namespace: shop}
spec:
  clientTypes: [app]
  routes: [{messageType: price, sendType: ServerToClient, to: [app]}]
  auth: {jwt: {issuer: https://id.example, audiences: [shop], jwks: {uri: https://127.0.0.1:9/keys}, claims: {uniqueId: sub, clientType: type}}}
";
/// Edges at the same time.
const EDGES: usize = 3;
/// Longest time for an edge's end: its drain window and what the tests' machine adds.
const END: Duration = Duration::from_secs(20);

/// An edge whose task panics on demand. It has clients of a `Durable` and of a `Transient` business, so that both are read, and a
/// certificate, if that is watched.
async fn edge(setup: &Setup, task: &str) -> Result<Edge> {
    let edge = setup.edge(&task.replace(' ', "-")).panics(task);
    if task == "certificate" {
        return with_tls(edge, setup)?.start().await;
    }
    let edge = edge.start().await.with_context(|| format!("edge for {task}"))?;
    for (business, readers) in [("payments", 1.0), ("ticker", 2.0)] {
        edge.client("alice", "app").business(business).connect().await?.reset();
        edge.await_metric("wirepost_edge_readers", readers).await?;
    }
    eventually("both are read", PATIENCE, || async { Ok(edge.metric("wirepost_edge_readers_down").await? == 0.0) })
        .await?;
    Ok(edge)
}

fn with_tls(edge: EdgeBuilder, setup: &Setup) -> Result<EdgeBuilder> {
    let (certificate, key) = Authority::new()?.sign()?;
    let file = |name: &str| setup.dir().join(name);
    std::fs::write(file("tls.crt"), certificate)?;
    std::fs::write(file("tls.key"), key)?;
    Ok(edge.flag("tls-certificate", file("tls.crt").display()).flag("tls-key", file("tls.key").display()))
}

#[tokio::test]
async fn a_task_that_panics_ends_the_edge_with_its_name_in_the_log() -> Result<()> {
    let setup = Setup::new(&[PAYMENTS, TRANSIENT]).await?;
    let tasks = [
        "public port",
        "admin port",
        "configurations",
        "key file",
        "alarm poll",
        "broker health",
        "stream subscription",
        "stream connection",
        "transient reader",
        "certificate",
    ];
    stream::iter(tasks)
        .map(|task| {
            let setup = &setup;
            async move {
                let edge = edge(setup, task).await?;
                edge.panic()?;
                let status = edge.exited(END).await.with_context(|| format!("{task} panicked"))?;
                let log = edge.log();
                let line = log.lines().find(|line| line.contains(&format!("task=\"{task}\""))).unwrap_or_default();
                ensure!(line.contains("ERROR") && line.contains("panicked: a test asked for it"), "{task}: {log}");
                ensure!(status.code() == Some(1), "{task}: {status}");
                Ok(())
            }
        })
        .buffer_unordered(EDGES)
        .try_collect()
        .await
}

#[tokio::test]
async fn what_reads_for_one_business_is_back_after_a_panic_and_counted() -> Result<()> {
    let setup = Setup::new(&[PAYMENTS, TRANSIENT]).await?;
    let service = Service::connect(&setup).await?;
    let prices = Service::of(&setup, "ticker").await?;
    for task in ["push reader", "stream reader", "stream frames", "transient consumer"] {
        let edge = edge(&setup, task).await?;
        edge.panic()?;
        edge.await_metric(&format!("wirepost_edge_task_restarts_total{{task=\"{task}\"}}"), 1.0).await?;
        let mut alice = edge.client("alice", "app").connect().await?;
        service.push(&payment("alice", 1)).await?;
        assert_eq!(alice.numbers(1).await?, [1], "{task}");
        let mut bob = edge.client("bob", "app").business("ticker").connect().await?;
        prices.push(&json!({"messageType": "price", "toUniqueId": "*", "content": {"n": 2}})).await?;
        assert_eq!(bob.numbers(1).await?, [2], "{task}");
        assert_eq!(edge.readyz().await?.0, 200, "{task}");
    }
    Ok(())
}

#[tokio::test]
async fn a_lane_that_panics_is_back_and_clients_stay_connected() -> Result<()> {
    let setup = Setup::new(&[PAYMENTS]).await?;
    let edge = setup.edge("e1").panics("lane").start().await?;
    let mut clients = Vec::new();
    for n in 0..8 {
        clients.push(edge.client(&format!("c{n}"), "h5").connect().await?);
    }
    edge.panic()?;
    edge.await_metric("wirepost_edge_task_restarts_total{task=\"lane\"}", 1.0).await?;
    // Eight clients use both lanes.
    for client in &mut clients {
        let message = json!({"id": "m-1", "messageType": "qr.refresh", "content": {"qrId": "q"}});
        client.send(&message).await?;
        while client.answer().await?["op"] != "ack" {
            client.send(&message).await?;
        }
    }
    assert_eq!(edge.readyz().await?.0, 200);
    Ok(())
}

#[tokio::test]
async fn clients_that_are_disconnected_by_a_panic_miss_nothing() -> Result<()> {
    let setup = Setup::new(&[PAYMENTS]).await?;
    let edge = setup.edge("e1").panics("push reader").start().await?;
    let service = Service::connect(&setup).await?;
    let mut alice = edge.client("alice", "app").connect().await?;
    service.push(&payment("alice", 1)).await?;
    assert_eq!(alice.numbers(1).await?, [1]);
    let (token, cursor) = (alice.resume_token(), alice.cursor());
    edge.panic()?;
    assert_eq!(alice.close_code().await?, 1012);
    service.push(&payment("alice", 2)).await?;
    let mut alice = edge.client("alice", "app").token(&token).cursor(&cursor).connect().await?;
    assert!(alice.resumed(), "{}", alice.welcome);
    assert_eq!(alice.numbers(1).await?, [2]);
    Ok(())
}

#[tokio::test]
async fn a_panic_in_one_connection_ends_no_other() -> Result<()> {
    let setup = Setup::new(&[PAYMENTS]).await?;
    for task in ["connection", "public connection"] {
        let edge = setup.edge(&task.replace(' ', "-")).panics(task).start().await?;
        let service = Service::connect(&setup).await?;
        let mut clients = Vec::new();
        for n in 0..3 {
            clients.push(edge.client(&format!("c{n}"), "app").connect().await?);
        }
        edge.panic()?;
        // Sockets are no longer HTTP's: this leaves a connection that is.
        edge.get("/payments/websocket/token", &[("uniqueId", "x"), ("clientType", "app")]).await.ok();
        edge.await_metric(&format!("wirepost_edge_task_panics_total{{task=\"{task}\"}}"), 1.0).await?;
        let mut served = 0;
        for (n, client) in clients.iter_mut().enumerate() {
            service.push(&payment(&format!("c{n}"), 1)).await?;
            served += usize::from(client.numbers(1).await.is_ok());
        }
        assert!(served >= 2, "{task}: one connection at most may suffer");
        assert_eq!(edge.readyz().await?.0, 200, "{task}");
    }
    Ok(())
}

#[tokio::test]
async fn a_panic_in_what_serves_one_call_ends_that_call_only_and_is_counted() -> Result<()> {
    let setup = Setup::new(&[PAYMENTS, TRANSIENT, ISSUED]).await?;
    for task in ["key set fetch", "admin connection", "queue deletion"] {
        let edge = setup.edge(&task.replace(' ', "-")).panics(task).start().await?;
        let mut prices = edge.client("bob", "app").business("ticker").connect().await?;
        edge.await_metric("wirepost_edge_readers", 1.0).await?;
        edge.panic()?;
        match task {
            "key set fetch" => {
                let parts = [json!({"alg": "RS256", "kid": "k"}), json!({"iss": "https://id.example", "aud": "shop"})];
                let [header, claims] = parts.map(|part| URL_SAFE_NO_PAD.encode(part.to_string()));
                let url = format!("http://{}/issued/websocket/token", edge.public);
                let call = reqwest::Client::builder().no_proxy().build()?.get(url);
                let answer = call.bearer_auth(format!("{header}.{claims}.c2ln")).send().await?;
                ensure!(answer.status() == 503, "{answer:?}");
            }
            "queue deletion" => {
                // As `Durable` it has no queue of this edge.
                setup.declare(&[PAYMENTS, ISSUED, &TRANSIENT.replace("Transient", "Durable")]).await?;
                prices.close_code().await?;
            }
            _ => {}
        }
        let panics = format!("wirepost_edge_task_panics_total{{task=\"{task}\"}}");
        // The request that asks may be the one that suffers.
        eventually(task, PATIENCE, || async { Ok(edge.metric(&panics).await.unwrap_or(0.0) >= 1.0) }).await?;
        assert_eq!(edge.readyz().await?.0, 200, "{task}");
        edge.client("alice", "app").connect().await?;
    }
    Ok(())
}
