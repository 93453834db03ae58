//! The operator's way on a real RabbitMQ: one snapshot, a plan for each business, carried out in parallel.

#![allow(clippy::unwrap_used)] // a panic fails the test, also in a helper

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use futures_util::{StreamExt, stream};
use lapin::types::FieldTable;
use serde_json::json;
use tokio::time::Instant;
use wirepost_rabbitmq::{ManagementClient, ManagementError, ManagementSettings};
use wirepost_testing::broker::{PATIENCE, Vhost, depth, eventually, publish, publish_for};
use wirepost_topology::{Actual, ApplyOptions, Error, KeepReason, Problem, Snapshot, apply_plan, unrouted};

use crate::support::{business, declared, management, problems, round, route};

const PUSH: &str = "wirepost.pay.push";
const STREAM: &str = "wirepost.pay.stream";
const UNROUTED: &str = "wirepost.pay.unrouted";

#[tokio::test]
async fn a_business_changes_its_delivery_and_changes_it_back() {
    let vhost = Vhost::create().await.unwrap();
    let management = management(&vhost);
    let (connection, channel) = vhost.channel().await.unwrap();
    let options = ApplyOptions { amqp: Some(&connection), delete_streams: true, ..ApplyOptions::default() };
    let routes = json!([route("a", "q")]);
    let (durable, transient) = (business("pay", &routes), declared("pay", &routes, &json!({"delivery": "Transient"})));
    let unbind = async || {
        channel.queue_unbind(STREAM.into(), PUSH.into(), "".into(), FieldTable::default()).await.unwrap();
    };

    for turn in 0..2 {
        let report = round(&management, "pay", &durable, &[], options).await;
        assert_eq!(problems(&report), [""; 0]);
        publish(&channel, PUSH, "", b"kept by the stream").await.unwrap();
        assert_eq!(depth(&channel, UNROUTED).await.unwrap(), turn);
        // As a lost binding would have it: kept, not lost, not returned.
        unbind().await;
        publish(&channel, PUSH, "", b"kept by the alternate").await.unwrap();
        assert_eq!(depth(&channel, UNROUTED).await.unwrap(), turn + 1);

        let report = round(&management, "pay", &transient, &[], options).await;
        assert_eq!(problems(&report), [""; 0]);
        assert!(report.changes.contains(&format!("delete stream {STREAM}")), "{report:?}");
        // No edge reads: the publisher gets a return, and nothing goes to `unrouted`.
        let error = publish(&channel, PUSH, "", b"for nobody").await.unwrap_err().to_string();
        assert!(error.contains("NO_ROUTE"), "{error}");
        assert_eq!(depth(&channel, UNROUTED).await.unwrap(), turn + 1);
        assert!(round(&management, "pay", &transient, &[], options).await.changes.is_empty());
    }
    // Without the permission to delete it, its history stays, but nothing else is in the way of the switch.
    round(&management, "pay", &durable, &[], options).await;
    let careful = ApplyOptions { delete_streams: false, ..options };
    let report = round(&management, "pay", &transient, &[], careful).await;
    assert!(
        matches!(&report.problems[..], [Problem::Kept { queue, because: KeepReason::Stream }] if queue == STREAM),
        "{report:?}"
    );
    assert!(publish(&channel, PUSH, "", b"for nobody").await.is_err());
}

#[tokio::test]
async fn limits_of_its_own_come_and_go_with_the_declaration() {
    let vhost = Vhost::create().await.unwrap();
    let (management, queue) = (management(&vhost), "wirepost.pay.q.q");
    let (connection, channel) = vhost.channel().await.unwrap();
    let options = ApplyOptions { amqp: Some(&connection), ..ApplyOptions::default() };
    let mut small = route("a", "q");
    small["queue"]["maxLength"] = json!(2);
    let limited = business("pay", &json!([small, route("b", "old")]));
    let report = round(&management, "pay", &limited, &[], options).await;
    assert_eq!(problems(&report), [""; 0]);
    for _ in 0..2 {
        publish_for(&channel, "wirepost.pay.receive", "a", queue, b"x").await.unwrap();
    }
    publish_for(&channel, "wirepost.pay.receive", "b", "wirepost.pay.q.old", b"x").await.unwrap();
    eventually("the queue is full", PATIENCE, async || {
        Ok(publish_for(&channel, "wirepost.pay.receive", "a", queue, b"x").await.is_err())
    })
    .await
    .unwrap();
    // A queue that is kept for its messages does not keep another's limits.
    let report = round(&management, "pay", &business("pay", &json!([route("a", "q")])), &[], options).await;
    assert!(report.changes.contains(&format!("delete policy {queue}")), "{report:?}");
    assert_eq!(report.problems.len(), 1, "{report:?}");
    publish_for(&channel, "wirepost.pay.receive", "a", queue, b"x").await.unwrap();
}

#[tokio::test]
async fn a_closed_gate_stops_before_the_next_write() {
    let vhost = Vhost::create().await.unwrap();
    let (management, topology) = (management(&vhost), business("pay", &json!([route("a", "q")])));
    let snapshot = Snapshot::read(&management).await.unwrap();
    apply_plan(&management, snapshot.plan_shared(), ApplyOptions::default()).await.unwrap();
    let left = AtomicU32::new(7);
    let gate = || left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1)).is_ok();
    let options = ApplyOptions { gate: Some(&gate), ..ApplyOptions::default() };
    let plan = snapshot.plan("pay", &topology, None);
    let error = apply_plan(&management, plan.clone(), options).await.unwrap_err();
    assert!(matches!(error, Error::Stopped { .. }), "{error}");
    let rest = Snapshot::read(&management).await.unwrap().plan("pay", &topology, None);
    assert_eq!(plan.steps.len() - rest.steps.len(), 7);
    // The next process that may write continues from there.
    assert!(apply_plan(&management, rest, ApplyOptions::default()).await.unwrap().is_clean());
    assert!(Snapshot::read(&management).await.unwrap().plan("pay", &topology, None).is_empty());
}

#[tokio::test]
async fn a_missing_vhost_is_reported_and_created() {
    let broker = wirepost_testing::broker::TestBroker::from_env().unwrap();
    let name = format!("made/by us {}", std::process::id());
    let settings = ManagementSettings {
        url: broker.management.clone(),
        vhost: name.clone(),
        credentials: None,
        tls: wirepost_rabbitmq::TlsFiles::default(),
        timeout: Some(Duration::from_secs(5)),
    };
    let management = ManagementClient::new(settings).unwrap();
    assert!(management.version().await.unwrap().starts_with("4."));
    assert!(
        matches!(Snapshot::read(&management).await.unwrap_err(), ManagementError::NoVhost { vhost, .. } if vhost == name)
    );
    assert!(matches!(Actual::read(&management).await.unwrap_err(), ManagementError::NoVhost { .. }));
    // A plan that was made before the vhost went.
    let topology = business("pay", &json!([route("a", "q")]));
    let plan =
        wirepost_topology::plan(&topology, &wirepost_topology::Actual::default(), wirepost_topology::Scope::Everything);
    let error = apply_plan(&management, plan, ApplyOptions::default()).await.unwrap_err();
    assert!(matches!(error, Error::Management(ManagementError::NoVhost { .. })), "{error}");
    management.create_vhost().await.unwrap();
    management.create_vhost().await.unwrap();
    let report = round(&management, "pay", &topology, &[], ApplyOptions::default()).await;
    assert_eq!(problems(&report), [""; 0]);
    let path = format!("/api/vhosts/{}", name.replace('/', "%2F").replace(' ', "%20"));
    broker.call("DELETE", &path, "").await.unwrap();
}

#[tokio::test]
async fn a_call_without_an_answer_ends_in_time() {
    // Takes connections and says nothing.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let settings = ManagementSettings {
        url: format!("http://guest:guest@{}", silent.local_addr().unwrap()),
        vhost: "/".to_owned(),
        credentials: None,
        tls: wirepost_rabbitmq::TlsFiles::default(),
        timeout: Some(Duration::from_millis(100)),
    };
    let error = Snapshot::read(&ManagementClient::new(settings).unwrap()).await.unwrap_err();
    assert!(error.is_retryable(), "{error}");
}

#[tokio::test]
async fn businesses_with_unrouted_messages_are_found_among_others() {
    let vhost = Vhost::create().await.unwrap();
    let management = management(&vhost);
    for name in ["one", "two", "three"] {
        let report =
            round(&management, name, &business(name, &json!([route("a", "q")])), &[], ApplyOptions::default()).await;
        assert_eq!(problems(&report), [""; 0]);
    }
    let (connection, channel) = vhost.channel().await.unwrap();
    let mut all: Vec<String> = (0..30).map(|i| format!("not-there-{i}")).collect();
    all.extend(["one", "two", "three"].map(str::to_owned));
    assert_eq!(unrouted::waiting(&connection, &all).await.unwrap(), []);
    for _ in 0..2 {
        publish(&channel, "wirepost.two.receive", "strange", b"x").await.unwrap();
    }
    assert_eq!(unrouted::waiting(&connection, &all).await.unwrap(), [("two".to_owned(), 2)]);
    assert_eq!(unrouted::waiting(&connection, &[""; 0]).await.unwrap(), []);
}

/// Prints how long 50 new businesses take one after the other and side by side; run with `--nocapture`.
#[tokio::test]
async fn many_businesses_are_applied_at_the_same_time() {
    for at_once in [1, 8] {
        let vhost = Vhost::create().await.unwrap();
        let management = management(&vhost);
        let snapshot = Snapshot::read(&management).await.unwrap();
        apply_plan(&management, snapshot.plan_shared(), ApplyOptions::default()).await.unwrap();
        let names: Vec<String> = (0..50).map(|i| format!("b{i}")).collect();
        let start = Instant::now();
        let reports: Vec<_> = stream::iter(names.clone())
            .map(|name| {
                let topology = business(&name, &json!([route("a", "q"), route("b", "r")]));
                let plan = snapshot.plan(&name, &topology, None);
                apply_plan(&management, plan, ApplyOptions::default())
            })
            .buffer_unordered(at_once)
            .collect()
            .await;
        println!("50 new businesses, {at_once} at once: {:?}", start.elapsed());
        for report in reports {
            assert_eq!(problems(&report.unwrap()), [""; 0]);
        }
        let after = Snapshot::read(&management).await.unwrap();
        assert_eq!(after.businesses().count(), 50);
        for name in names {
            assert!(after.plan(&name, &business(&name, &json!([route("a", "q"), route("b", "r")])), None).is_empty());
        }
    }
}

#[tokio::test]
async fn a_connection_that_closes_as_it_is_used_again_fails_no_call() {
    use std::io::{Read, Write};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    // Answers one request on each connection, takes a second one and closes.
    let server = tokio::task::spawn_blocking(move || {
        for _ in 0..3 {
            let mut socket = listener.accept().unwrap().0;
            let mut buffer = [0; 4096];
            let read = socket.read(&mut buffer).unwrap();
            assert!(read > 0);
            let body = r#"{"rabbitmq_version":"4.3.6"}"#;
            write!(socket, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()).unwrap();
            let _ = socket.read(&mut buffer);
        }
    });
    let settings = ManagementSettings {
        url: format!("http://guest:guest@{address}"),
        vhost: "/".to_owned(),
        credentials: None,
        tls: wirepost_rabbitmq::TlsFiles::default(),
        timeout: None,
    };
    let management = ManagementClient::new(settings).unwrap();
    for _ in 0..3 {
        assert_eq!(management.version().await.unwrap(), "4.3.6");
    }
    drop(management);
    server.await.unwrap();
}
