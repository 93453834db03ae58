//! The oldest RabbitMQ that works, 4.0: one business from declaration to message. All else is tested on 4.3.

use serde_json::json;
use wirepost_core::business::WsBusiness;
use wirepost_core::compile::compile_one;
use wirepost_rabbitmq::{ManagementClient, ManagementSettings};
use wirepost_testing::broker::{PATIENCE, PrivateBroker, consume, depth, eventually, next_body, publish, publish_for};
use wirepost_topology::{Options, Scope, apply};

#[tokio::test]
async fn a_business_is_created_is_stable_and_carries_messages_on_rabbitmq_4_0() {
    let broker = PrivateBroker::start("oldest", &["--suite", "trixie"]).await.unwrap();
    assert!(broker.ctl(&["version"]).await.unwrap().contains("4.0."));
    let vhost = broker.vhost().await.unwrap();
    let resource: WsBusiness = serde_json::from_value(json!({
        "apiVersion": "wirepost.dev/v1alpha1", "kind": "WsBusiness",
        "metadata": { "name": "pay", "namespace": "test" },
        "spec": {
            "clientTypes": ["app"],
            "routes": [
                { "messageType": "order.*", "sendType": "ClientToServer", "queue": { "name": "orders" } },
                { "messageType": "paid", "sendType": "ServerToClient", "to": ["app"] },
            ],
        },
    }))
    .unwrap();
    let topology = compile_one(&resource).unwrap().topology;
    let (url, name) = (broker.management.clone(), vhost.name.clone());
    let management = ManagementClient::new(ManagementSettings {
        url,
        vhost: name,
        credentials: None,
        tls: wirepost_rabbitmq::TlsFiles::default(),
        timeout: None,
    })
    .unwrap();
    let options = Options { scope: Scope::Everything, amqp: None, delete_messages: false };
    let made = apply(&management, &topology, options).await.unwrap();
    assert!(made.is_clean() && !made.changes.is_empty(), "{made:?}");
    let again = apply(&management, &topology, options).await.unwrap();
    assert!(again.is_clean() && again.changes.is_empty(), "{again:?}");

    let (_connection, channel) = vhost.channel().await.unwrap();
    publish_for(&channel, "wirepost.pay.receive", "order.new", "wirepost.pay.q.orders", b"{}").await.unwrap();
    let mut orders = consume(&channel, "wirepost.pay.q.orders", 1).await.unwrap();
    assert_eq!(next_body(&mut orders).await.unwrap(), b"{}");
    publish(&channel, "wirepost.pay.push", "", b"{}").await.unwrap();
    publish(&channel, "wirepost.pay.receive", "no.such.route", b"{}").await.unwrap();
    assert_eq!(depth(&channel, "wirepost.pay.unrouted").await.unwrap(), 1);

    // It tells of operator policies with statistics alone, seconds late.
    let path = format!("/api/operator-policies/{}/cap", vhost.name);
    let cap = r#"{"pattern": ".*", "apply-to": "queues", "definition": {"message-ttl": 100000000}}"#;
    vhost.broker.call("PUT", &path, cap).await.unwrap();
    eventually("the operator policy is named", PATIENCE, || async {
        let problems = apply(&management, &topology, options).await?.problems;
        let named = "operator policy cap changes message-ttl on wirepost.pay.q.orders";
        Ok(problems.iter().any(|problem| problem.to_string().starts_with(named)))
    })
    .await
    .unwrap();
}
