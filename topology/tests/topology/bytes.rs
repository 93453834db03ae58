//! Queues are bounded in bytes, and a new bound removes nothing that is stored.

#![allow(clippy::unwrap_used)] // a panic fails the test

use std::time::Instant;

use lapin::options::{QueueBindOptions, QueueDeclareOptions, QueuePurgeOptions};
use lapin::types::{AMQPValue, FieldTable};
use serde_json::{Value, json};
use wirepost_testing::broker::{PATIENCE, Vhost, depth, eventually, publish, publish_for};

use wirepost_topology::depth::LOOKS_APART;
use wirepost_topology::{ApplyOptions, Plan, Problem, Snapshot, Step, apply_plan};

use crate::kept::Kept;
use crate::support::{apply_all, business, management, problems, route};

const QUEUE: &str = "wirepost.pay.q.orders";
/// The policy that gives it more room.
const ROOM: &str = "wirepost.pay.room.orders";
const LISTENER: &str = "wirepost.pay.events.online";
/// A stream.
const AUDIT: &str = "wirepost.pay.events.audit";

#[tokio::test]
async fn a_bound_below_what_a_queue_holds_removes_nothing_and_refuses_more() {
    let vhost = Vhost::create().await.unwrap();
    let policy = async |name: &str, body: Value| {
        vhost.broker.call("PUT", &format!("/api/policies/{}/{name}", vhost.name), &body.to_string()).await.unwrap()
    };
    apply_all(&vhost, &business("pay", &json!([route("order", "orders")]))).await;
    policy("wirepost.queues", former()).await;
    let (_connection, channel) = vhost.channel().await.unwrap();
    let body = vec![b'x'; 60_000];
    let send = async || publish_for(&channel, "wirepost.pay.receive", "order", QUEUE, &body).await;
    for _ in 0..3 {
        send().await.unwrap();
    }
    let mut orders = route("order", "orders");
    orders["queue"]["maxLengthBytes"] = json!("100k");
    assert_eq!(problems(&apply_all(&vhost, &business("pay", &json!([orders]))).await), [""; 0]);
    eventually("the queue is full", PATIENCE, || async { Ok(send().await.is_err()) }).await.unwrap();
    assert!(depth(&channel, QUEUE).await.unwrap() >= 3, "what was stored is gone");
    channel.queue_purge(QUEUE.into(), QueuePurgeOptions::default()).await.unwrap();
    eventually("it accepts messages again", PATIENCE, || async { Ok(send().await.is_ok()) }).await.unwrap();
}

/// The shared policy as a version without a limit in bytes left it.
fn former() -> Value {
    json!({
        "pattern": r"^wirepost\.[a-z0-9-]+\.q\..+$", "apply-to": "quorum_queues", "priority": 400,
        "definition": {"dead-letter-strategy": "at-least-once", "delivery-limit": 20, "max-length": 1_000_000,
            "overflow": "reject-publish"},
    })
}

/// The statistics of a queue, once they count its messages.
async fn counted(vhost: &Vhost, least: u64) {
    eventually("statistics", PATIENCE, || async {
        let path = format!("/api/queues/{}/{QUEUE}?columns=message_bytes", vhost.name);
        let answer: Value = serde_json::from_str(&vhost.broker.call("GET", &path, "").await?)?;
        Ok(answer["message_bytes"].as_u64().is_some_and(|bytes| bytes >= least))
    })
    .await
    .unwrap();
}

/// The policy in force, once it is this one.
async fn in_force(vhost: &Vhost, queue: &str, policy: &str) {
    eventually(policy, PATIENCE, || async {
        let answer = vhost.broker.call("GET", &format!("/api/queues/{}/{queue}", vhost.name), "").await?;
        Ok(serde_json::from_str::<Value>(&answer)?["policy"] == policy)
    })
    .await
    .unwrap();
}

/// An upgrade brings the limit; here it is 100 kB.
#[tokio::test]
async fn a_queue_that_holds_more_than_a_new_default_goes_on_until_its_team_says_how_much() {
    let vhost = Vhost::create().await.unwrap();
    let topology = business("pay", &json!([route("order", "orders"), route("refund", "refunds")]));
    apply_all(&vhost, &topology).await;
    let path = format!("/api/policies/{}/wirepost.queues", vhost.name);
    vhost.broker.call("PUT", &path, &former().to_string()).await.unwrap();
    let (_connection, channel) = vhost.channel().await.unwrap();
    let body = vec![b'x'; 60_000];
    let send = async || publish_for(&channel, "wirepost.pay.receive", "order", QUEUE, &body).await;
    for _ in 0..3 {
        send().await.unwrap();
    }
    counted(&vhost, 180_000).await;
    let management = management(&vhost);
    let snapshot = Snapshot::read(&management).await.unwrap();
    assert!(snapshot.is_without_bytes());
    snapshot.leave_room(&management, 100_000, None).await.unwrap();
    let report = apply_all(&vhost, &topology).await;
    let [Problem::MoreRoom { queue, bytes: Some(1_073_741_824), .. }] = &report.problems[..] else {
        panic!("{:?}", report.problems)
    };
    assert_eq!(queue, QUEUE);
    in_force(&vhost, QUEUE, ROOM).await;
    in_force(&vhost, "wirepost.pay.q.refunds", "wirepost.queues").await;
    send().await.unwrap();

    let mut orders = route("order", "orders");
    orders["queue"]["maxLengthBytes"] = json!("100k");
    let topology = business("pay", &json!([orders, route("refund", "refunds")]));
    assert_eq!(problems(&apply_all(&vhost, &topology).await), [""; 0]);
    in_force(&vhost, QUEUE, QUEUE).await;
    eventually("the queue is full", PATIENCE, || async { Ok(send().await.is_err()) }).await.unwrap();
}

/// A former version left no bound where the broker had no statistics, and this one leaves an estimate.
#[tokio::test]
async fn room_without_a_known_size_becomes_twice_the_size_once_that_is_known() {
    let vhost = Vhost::create().await.unwrap();
    let topology = business("pay", &json!([route("order", "orders")]));
    apply_all(&vhost, &topology).await;
    let management = management(&vhost);
    let mut room = former();
    room["pattern"] = json!(r"^wirepost\.pay\.q\.orders$");
    room["priority"] = json!(510);
    vhost.broker.call("PUT", &format!("/api/policies/{}/{ROOM}", vhost.name), &room.to_string()).await.unwrap();
    let corrections = async || {
        let snapshot = Snapshot::read(&management).await.unwrap();
        snapshot.room_corrections(&management, 200_000, None).await.0
    };
    let (_connection, channel) = vhost.channel().await.unwrap();
    let body = vec![b'x'; 60_000];
    for _ in 0..3 {
        publish_for(&channel, "wirepost.pay.receive", "order", QUEUE, &body).await.unwrap();
    }
    counted(&vhost, 180_000).await;
    let steps = corrections().await;
    let [Step::PutPolicy(policy)] = &steps[..] else { panic!("{steps:?}") };
    assert_eq!((policy.name.as_str(), policy.priority), (ROOM, 510));
    assert_eq!(
        (&policy.definition["max-length-bytes"], &policy.definition["max-length"]),
        (&json!(1 << 30), &json!(1_000_000))
    );
    let mut plan = Plan::default();
    plan.steps = steps;
    apply_plan(&management, plan, ApplyOptions::default()).await.unwrap();
    assert_eq!(corrections().await, []);

    // The same for an estimate; and it is maintained like any other until then.
    room["priority"] = json!(511);
    room["definition"]["max-length-bytes"] = json!(7_u64 << 30);
    vhost.broker.call("PUT", &format!("/api/policies/{}/{ROOM}", vhost.name), &room.to_string()).await.unwrap();
    let report = apply_all(&vhost, &topology).await;
    assert!(matches!(&report.problems[..], [Problem::MoreRoom { bytes: Some(7_516_192_768), .. }]), "{report:?}");
    assert!(matches!(&corrections().await[..], [Step::PutPolicy(policy)] if policy.priority == 510));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_gets_the_default_when_two_looks_find_much_less_in_it() {
    let kept = Kept::of(Vhost::create().await.unwrap(), None).await.unwrap();
    kept.ensure("pay", false).await.unwrap();
    let (_connection, channel) = kept.vhost.channel().await.unwrap();
    publish_for(&channel, "wirepost.pay.receive", "order", QUEUE, b"x").await.unwrap();
    counted(&kept.vhost, 1).await;
    let management = management(&kept.vhost);
    let snapshot = Snapshot::read(&management).await.unwrap();
    assert!(!snapshot.is_without_bytes());
    // Without the sweep that would take it away at once.
    kept.owner.may_write.send_replace(false);
    snapshot.leave_room(&management, 0, None).await.unwrap();
    in_force(&kept.vhost, QUEUE, ROOM).await;
    kept.owner.may_write.send_replace(true);
    let begun = Instant::now();
    in_force(&kept.vhost, QUEUE, "wirepost.queues").await;
    assert!(begun.elapsed() >= LOOKS_APART, "one look was enough");
}

#[tokio::test]
async fn a_listener_that_has_stopped_keeps_its_events_and_is_bounded() {
    let vhost = Vhost::create().await.unwrap();
    apply_all(&vhost, &business("pay", &json!([route("order", "orders")]))).await;
    vhost.broker.call("DELETE", &format!("/api/policies/{}/wirepost.events", vhost.name), "").await.unwrap();
    let (_connection, channel) = vhost.channel().await.unwrap();
    // It drops its oldest messages, so no policy bounds it.
    let mut stream = FieldTable::default();
    stream.insert("x-queue-type".into(), AMQPValue::LongString("stream".into()));
    channel.queue_declare(AUDIT.into(), QueueDeclareOptions::durable(), stream).await.unwrap();
    let (queue, table) = (|| LISTENER.into(), FieldTable::default);
    channel.queue_declare(queue(), QueueDeclareOptions::durable(), table()).await.unwrap();
    let bind = QueueBindOptions::default();
    channel.queue_bind(queue(), "wirepost.pay.events".into(), "#".into(), bind, table()).await.unwrap();
    publish(&channel, "wirepost.pay.events", "connected", b"{}").await.unwrap();
    apply_all(&vhost, &business("pay", &json!([route("order", "orders")]))).await;
    eventually("the queue has its bounds", PATIENCE, || async {
        let answer = vhost.broker.call("GET", &format!("/api/queues/{}/{LISTENER}", vhost.name), "").await?;
        let answer: Value = serde_json::from_str(&answer)?;
        let bounds = &answer["effective_policy_definition"];
        Ok(bounds["max-length-bytes"] == 256 << 20 && bounds["overflow"] == "reject-publish")
    })
    .await
    .unwrap();
    assert_eq!(depth(&channel, LISTENER).await.unwrap(), 1);
    let answer = vhost.broker.call("GET", &format!("/api/queues/{}/{AUDIT}", vhost.name), "").await.unwrap();
    let answer: Value = serde_json::from_str(&answer).unwrap();
    assert_eq!(answer["effective_policy_definition"], json!({}), "{answer}");
}
