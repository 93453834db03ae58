//! `receiptsWithinSeconds`: what it needs on the broker comes and goes with the declaration, and is put right.

use anyhow::{Context, Result, ensure};
use lapin::options::{QueueBindOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use wirepost_testing::broker::{PATIENCE, consume, eventually};
use wirepost_testing::operator::World;
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
