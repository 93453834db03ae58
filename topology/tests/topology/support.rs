//! What the tests of this crate share.

#![allow(clippy::unwrap_used)] // a panic fails the test

use serde_json::{Value, json};
use wirepost_core::business::WsBusiness;
use wirepost_core::compile::compile_one;
use wirepost_core::topology::Topology;
use wirepost_rabbitmq::{ManagementClient, ManagementSettings};
use wirepost_testing::broker::Vhost;
use wirepost_topology::{ApplyOptions, DesiredUser, Options, Report, Scope, Snapshot, apply, apply_plan};

/// A business with the given routes and a small stream.
pub(crate) fn business(name: &str, routes: &Value) -> Topology {
    let push = json!({ "delivery": "Durable", "retention": { "seconds": 3600, "bytes": "100Mi" } });
    declared(name, routes, &push)
}

/// What is compiled for a business with these parts of a declaration.
pub(crate) fn declared(name: &str, routes: &Value, push: &Value) -> Topology {
    let resource: WsBusiness = serde_json::from_value(json!({
        "apiVersion": "wirepost.dev/v1alpha1", "kind": "WsBusiness",
        "metadata": { "name": name, "namespace": "test" },
        "spec": {
            "clientTypes": ["app"], "routes": routes, "push": push,
        },
    }))
    .unwrap();
    compile_one(&resource).unwrap().topology
}

/// A client-to-server route into `queue`.
pub(crate) fn route(message_type: &str, queue: &str) -> Value {
    json!({ "messageType": message_type, "sendType": "ClientToServer", "queue": { "name": queue } })
}

pub(crate) fn management(vhost: &Vhost) -> ManagementClient {
    let (url, vhost) = (vhost.broker.management.clone(), vhost.name.clone());
    ManagementClient::new(ManagementSettings {
        url,
        vhost,
        credentials: None,
        tls: wirepost_rabbitmq::TlsFiles::default(),
        timeout: None,
    })
    .unwrap()
}

/// One round of the operator for one business: snapshot, plan, apply.
pub(crate) async fn round(
    management: &ManagementClient,
    name: &str,
    topology: &Topology,
    users: &[DesiredUser],
    options: ApplyOptions<'_>,
) -> Report {
    let snapshot = Snapshot::read(management).await.unwrap();
    assert!(apply_plan(management, snapshot.plan_shared(), options).await.unwrap().is_clean());
    apply_plan(management, snapshot.plan(name, topology, Some(users)), options).await.unwrap()
}

/// Applies with a fresh AMQP connection, everything in scope.
pub(crate) async fn apply_all(vhost: &Vhost, desired: &Topology) -> Report {
    let connection = vhost.connect().await.unwrap();
    let options = Options { scope: Scope::Everything, amqp: Some(&connection), delete_messages: false };
    apply(&management(vhost), desired, options).await.unwrap()
}

pub(crate) fn problems(report: &Report) -> Vec<String> {
    report.problems.iter().map(ToString::to_string).collect()
}
