//! `receiptsWithinSeconds`: what it needs on the broker comes and goes with the declaration, and is put right.

use anyhow::{Context, Result, ensure};
use lapin::options::{QueueBindOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use serde_json::json;
use wirepost_core::business::WsBusiness;
use wirepost_core::contract::config_map::CONFIG_KEY;
use wirepost_testing::broker::{PATIENCE, consume, eventually, publish};
use wirepost_testing::operator::edges::client;
use wirepost_testing::operator::{World, condition_of};
use wirepost_testing::service::{Service, next_json, payment};

const OBJECTS: [&str; 4] = [
    "exchange wirepost.payments.judge",
    "queue wirepost.payments.receipts",
    "binding wirepost.payments.judge -> wirepost.payments.receipts with ''",
    "binding wirepost.payments.events -> wirepost.payments.receipts with 'delivered'",
];

fn business(within: &str) -> String {
    format!(
        "
apiVersion: wirepost.dev/v1alpha1
kind: WsBusiness
metadata: {{name: payments}}
spec:
  clientTypes: [app]
  routes: [{{messageType: payment.completed, sendType: ServerToClient, to: [app], receipts: true{within}}}]
  access: {{secretName: payments-wirepost}}
"
    )
}

async fn there(world: &World, there: bool) -> Result<()> {
    let as_it_should = || async {
        let picture = world.setup.picture().await?;
        Ok(OBJECTS.iter().all(|object| picture.contains_key(*object) == there))
    };
    eventually(&format!("the objects are there: {there}"), PATIENCE, as_it_should).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_judging_needs_comes_and_goes_with_the_declaration() -> Result<()> {
    let world = World::new().await?;
    let _operator = world.operator("one").start().await?;
    let edge = world.edge("edge-1").await?;
    world.apply(&business("")).await?;
    world.condition("payments", "Ready", "True").await?;
    there(&world, false).await?;
    world.apply(&business(", receiptsWithinSeconds: 5")).await?;
    there(&world, true).await?;
    let secret = world.secret("payments-wirepost").await?.context("no Secret")?;
    let service = Service::with(&secret).await?;
    let (queue, durable) =
        ("wirepost.payments.events.test", QueueDeclareOptions { durable: true, ..Default::default() });
    service.channel.queue_declare(queue.into(), durable, FieldTable::default()).await?;
    let (exchange, options) = ("wirepost.payments.events", QueueBindOptions::default());
    service
        .channel
        .queue_bind(queue.into(), exchange.into(), "undelivered".into(), options, FieldTable::default())
        .await?;
    let mut events = consume(&service.channel, queue, 100).await?;
    let judges = || async { Ok(edge.count("wirepost_edge_judging").await? == 1) };
    eventually("the edge judges", PATIENCE, judges).await?;
    let told = || async {
        service.push(&payment("nobody", 1)).await?;
        Ok(edge.count("wirepost_edge_undelivered_total").await? > 0)
    };
    eventually("a push without a receipt is reported", PATIENCE, told).await?;
    ensure!(next_json(&mut events).await?["uniqueId"] == "nobody");
    // Taken away by hand, it is put right; here by the sweep.
    world.setup.delete_exchange("wirepost.payments.judge").await?;
    there(&world, true).await?;
    // Nobody has to allow that the stream goes: the business has had all of it.
    world.apply(&business("")).await?;
    there(&world, false).await?;
    world.condition("payments", "Provisioned", "True").await?;
    let rests = || async { Ok(edge.count("wirepost_edge_judging").await? == 0) };
    eventually("the edge judges no longer", PATIENCE, rests).await
}

/// The name of the stream is taken by a queue with messages, which nobody deletes.
#[tokio::test(flavor = "multi_thread")]
async fn a_route_whose_receipts_can_not_be_judged_stays_as_it_was_and_the_others_do_not_wait() -> Result<()> {
    let world = World::new().await?;
    let _operator = world.operator("one").start().await?;
    let edge = world.edge("edge-1").await?;
    world.apply(&business("")).await?;
    world.condition("payments", "Ready", "True").await?;
    let taken = "wirepost.payments.receipts";
    let vhost = &world.setup.vhost().name;
    let queue = json!({"durable": true, "auto_delete": false, "arguments": {"x-queue-type": "classic"}});
    world.setup.call("PUT", &["queues", vhost, taken], &queue).await?;
    let (_connection, channel) = world.setup.vhost().channel().await?;
    publish(&channel, "", taken, b"somebody's").await?;

    let with_another = business(", receiptsWithinSeconds: 5").replace(
        "  access:",
        "  - {messageType: news, sendType: ServerToClient, to: [app], audience: Everyone}\n  access:",
    );
    let with_another = with_another.replace("routes: [{", "routes:\n  - {").replace("5}]", "5}");
    world.apply(&with_another).await?;
    let waits = |wsb: &WsBusiness| {
        condition_of(wsb, "Provisioned").is_some_and(|c| c.status == "False" && c.message.contains("payment.completed"))
    };
    world.wait("payments", "say which route waits", waits).await?;
    let runs = async || -> Result<String> {
        let map = world.config_map("payments").await?.context("no ConfigMap")?;
        map.data.and_then(|mut data| data.remove(CONFIG_KEY)).context("no configuration")
    };
    let others = || async { Ok(runs().await?.contains("news")) };
    eventually("the other route does not wait", PATIENCE, others).await?;
    ensure!(!runs().await?.contains("receiptsWithinSeconds"), "nobody could judge its receipts");
    let secret = world.secret("payments-wirepost").await?.context("no Secret")?;
    let mut alice = client(&edge, &secret, "alice", "app").await?;
    Service::with(&secret).await?.push(&payment("alice", 1)).await?;
    ensure!(alice.push().await?["content"]["n"] == 1, "what was declared before goes on");

    world.setup.delete_queue(taken).await?;
    there(&world, true).await?;
    world.condition("payments", "Ready", "True").await?;
    ensure!(runs().await?.contains("receiptsWithinSeconds"));
    let judges = || async { Ok(edge.count("wirepost_edge_judging").await? == 1) };
    eventually("the edge judges", PATIENCE, judges).await
}
