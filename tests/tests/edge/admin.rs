//! The admin port: probes, metrics, what is loaded; and that none of it is on the public one.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use wirepost_core::edge_config::BusinessConfig;
use wirepost_testing::broker::{PATIENCE, eventually};
use wirepost_testing::edge::Edge;
use wirepost_testing::raw::Raw;
use wirepost_testing::service::{Service, payment};
use wirepost_testing::setup::{PAYMENTS, Setup};

async fn configz(edge: &Edge) -> Result<Value> {
    let (status, text) = edge.admin("/configz").await?;
    assert_eq!(status, 200);
    Ok(serde_json::from_str(&text)?)
}

/// What the operator wrote, and compares with.
fn hash(setup: &Setup) -> Result<String> {
    let config = std::fs::read(setup.dir().join("config/payments.json"))?;
    Ok(serde_json::from_slice::<BusinessConfig>(&config)?.hash())
}

#[tokio::test]
async fn configz_tells_what_is_loaded_and_a_bad_configuration_changes_nothing() -> Result<()> {
    let setup = Setup::new(&[PAYMENTS]).await?;
    let edge = setup.edge("edge-7").start().await?;
    eventually("the broker is up", PATIENCE, || async { Ok(configz(&edge).await?["broker"] == "up") }).await?;
    let loaded = configz(&edge).await?;
    assert_eq!(loaded["edge"], "edge-7");
    assert!(loaded["version"].as_str().is_some_and(|version| !version.is_empty()), "{loaded}");
    assert_eq!(loaded["businesses"], json!({"payments": hash(&setup)?}));
    // How far each business is behind the broker is reported here, since names are not labels.
    assert!(loaded["lags"].is_object(), "{loaded}");
    // A change is loaded, and its clients stay.
    let mut alice = edge.client("alice", "app").connect().await?;
    setup.reconfigure("payments", |config| config.generation += 1)?;
    let changed = hash(&setup)?;
    assert_ne!(loaded["businesses"]["payments"], json!(changed));
    eventually("the change is loaded", PATIENCE, || async {
        Ok(configz(&edge).await?["businesses"]["payments"] == json!(changed))
    })
    .await?;
    // What can't be read or run is refused; the last good one stays.
    let file = setup.dir().join("config/payments.json");
    std::fs::write(&file, "{")?;
    eventually("it is noticed", PATIENCE, || async { Ok(edge.log().contains("the last good one stays in use")) })
        .await?;
    setup.reconfigure("payments", |config| config.routes[0].schema = Some(json!({"type": "no-such-type"})))?;
    edge.await_metric("wirepost_edge_bad_configs_total", 1.0).await?;
    assert_eq!(configz(&edge).await?["businesses"]["payments"], json!(changed));
    assert_eq!(edge.readyz().await?.0, 200);
    alice.send_acked(&json!({"id": "o", "messageType": "order.placed"})).await
}

#[tokio::test]
async fn an_edge_is_live_at_once_and_ready_when_its_configuration_is_there() -> Result<()> {
    let setup = Setup::new(&[PAYMENTS]).await?;
    let later = setup.dir().join("later");
    let edge = setup.edge("e1").flag("config-dir", later.display()).start_unready().await?;
    assert_eq!(edge.admin("/livez").await?, (200, "ok\n".to_owned()));
    let (status, pending) = edge.readyz().await?;
    assert_eq!(status, 503);
    assert!(pending.contains("configuration"), "it names what is pending: {pending}");
    std::fs::rename(setup.dir().join("config"), later)?;
    eventually("the edge is ready", PATIENCE, || async { Ok(edge.readyz().await? == (200, "ok\n".to_owned())) })
        .await?;
    edge.client("alice", "app").connect().await?;
    Ok(())
}

#[tokio::test]
async fn the_public_port_has_none_of_it_and_the_admin_port_nothing_else() -> Result<()> {
    let setup = Setup::new(&[PAYMENTS]).await?;
    let edge = setup.edge("e1").start().await?;
    assert_ne!(edge.public, edge.admin);
    for path in ["/livez", "/readyz", "/metrics", "/configz"] {
        assert_eq!(edge.admin(path).await?.0, 200, "{path}");
        let (status, body) = edge.get(path, &[]).await?;
        assert_eq!((status, body["result"].as_u64()), (404, Some(40_401)), "{path}: {body}");
    }
    for path in ["/payments/websocket/token?uniqueId=a&clientType=app", "/payments/asyncapi.json", "/socket/x"] {
        assert_eq!(edge.admin(path).await?.0, 404, "{path}");
    }
    Ok(())
}

#[tokio::test]
async fn idle_connections_to_the_admin_port_keep_no_probe_out() -> Result<()> {
    let setup = Setup::new(&[PAYMENTS]).await?;
    let edge = setup.edge("e1").start().await?;
    let mut idle = Vec::new();
    for n in 0..80 {
        let mut raw = Raw::connect(edge.admin).await?;
        if n % 2 == 0 {
            // It may be cut already.
            let _ = raw.send("GET /livez HTTP/1.1\r\nhost").await;
        }
        idle.push(raw);
    }
    for path in ["/livez", "/readyz", "/metrics"] {
        let mut probe = Raw::connect(edge.admin).await?;
        probe.send(format!("GET {path} HTTP/1.1\r\nhost: edge\r\nconnection: close\r\n\r\n")).await?;
        let answer = probe.end(Duration::from_secs(5)).await.context("the kubelet would take it as dead")?;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    Ok(())
}

#[tokio::test]
async fn a_process_that_may_open_few_files_refuses_clients_and_answers_probes() -> Result<()> {
    let setup = Setup::new(&[PAYMENTS]).await?;
    let edge = setup.edge("e1").open_files(200).start().await?;
    assert!(edge.log().contains("this process may open 184 files"), "nobody is told: {}", edge.log());
    let mut clients = Vec::new();
    let mut refused = false;
    for n in 0..150 {
        match edge.client(&format!("client-{n}"), "app").connect().await {
            Ok(client) => clients.push(client),
            Err(error) => {
                assert!(error.to_string().contains("503"), "{error:#}");
                refused = true;
                break;
            }
        }
    }
    assert!(refused && clients.len() > 50, "{} clients", clients.len());
    // Strangers who hold what is left: clients hang then, and probes do not.
    let mut strangers = Vec::new();
    for _ in 0..100 {
        strangers.push(Raw::connect(edge.public).await?);
    }
    for _ in 0..5 {
        assert_eq!(edge.admin("/livez").await?.0, 200);
        assert_eq!(edge.readyz().await?.0, 200);
    }
    assert_eq!(edge.count("wirepost_edge_accept_errors_total").await?, 0, "the public port takes what it can't have");
    for client in &mut clients {
        client.sync().await?;
    }
    Ok(())
}

#[tokio::test]
async fn metrics_count_what_happened_in_closed_sets_of_labels() -> Result<()> {
    let setup = Setup::new(&[PAYMENTS]).await?;
    let edge = setup.edge("e1").start().await?;
    let service = Service::connect(&setup).await?;
    let mut alice = edge.client("alice-of-this-test", "app").connect().await?;
    let bob = edge.client("bob-of-this-test", "h5").connect().await?;
    for n in 0..3 {
        alice.send_acked(&json!({"id": format!("id-of-this-test-{n}"), "messageType": "order.placed"})).await?;
    }
    alice.send(&json!({"id": "n", "messageType": "no.such"})).await?;
    alice.nack("n").await?;
    service.push_all((0..5).map(|n| payment("alice-of-this-test", n))).await?;
    assert_eq!(alice.numbers(5).await?.len(), 5);
    service.push(&json!({"messageType": "payment.completed"})).await?;
    edge.get("/none-of-this-test/websocket/token", &[]).await?;
    edge.client("alice", "app").token("forged").plain().connect().await.unwrap_err();
    bob.leave().await?;
    for (series, least) in [
        ("wirepost_edge_connections", 1.0),
        ("wirepost_edge_connections_opened_total", 2.0),
        ("wirepost_edge_closes_total{kind=\"client\"}", 1.0),
        ("wirepost_edge_frames_total{kind=\"in\"}", 4.0),
        ("wirepost_edge_frames_total{kind=\"out\"}", 10.0),
        ("wirepost_edge_acks_total", 3.0),
        ("wirepost_edge_nacks_total{kind=\"unknown_route\"}", 1.0),
        ("wirepost_edge_deliveries_total", 5.0),
        ("wirepost_edge_rejected_pushes_total{kind=\"nobody\"}", 1.0),
        ("wirepost_edge_log_bytes", 1.0),
        ("wirepost_edge_readers", 1.0),
        ("wirepost_edge_tokens_total{kind=\"ok\"}", 2.0),
        ("wirepost_edge_tokens_total{kind=\"refused\"}", 1.0),
        ("wirepost_edge_refused_total{kind=\"socket\"}", 1.0),
        ("wirepost_broker_confirmed", 3.0),
        ("wirepost_broker_stream_messages", 6.0),
        ("wirepost_broker_stream_subscriptions", 1.0),
    ] {
        edge.await_metric(series, least).await?;
    }
    let (_, text) = edge.admin("/metrics").await?;
    assert!(text.ends_with("# EOF\n"), "OpenMetrics ends so");
    // What is watched for queues, drops, lag and restarts is there also while it is zero.
    for name in [
        "wirepost_edge_outbound_bytes",
        "wirepost_broker_waiting",
        "wirepost_broker_waiting_bytes",
        "wirepost_broker_dropped_events",
        "wirepost_broker_stream_restarts",
        "wirepost_broker_stream_watchdog_restarts",
        "wirepost_broker_stream_skipped_messages",
        "wirepost_broker_connections_lost",
        "wirepost_edge_reader_lag",
    ] {
        assert!(
            text.lines().any(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(' '))),
            "no {name} in {text}"
        );
    }
    assert!(!text.contains("of-this-test"), "a label is made of what clients say: {text}");
    let mut labels = BTreeSet::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let series = line.split_once(' ').context("a value")?.0;
        if let Some((_, inside)) = series.split_once('{') {
            labels.extend(inside.split(',').filter_map(|label| Some(label.split_once('=')?.0.to_owned())));
        }
    }
    // Names of tasks are a closed set too: they stand in the program.
    assert_eq!(labels.into_iter().collect::<Vec<_>>(), ["kind", "task"]);
    Ok(())
}
