//! What a business team sees of the operator with kubectl: apply, look, change, delete.

use anyhow::{Context, Result, ensure};
use wirepost_testing::broker::{eventually, publish};
use wirepost_testing::operator::{World, condition_of};
use wirepost_testing::setup::PAYMENTS;

/// The business of most tests, with access for its services.
fn payments() -> String {
    format!("{PAYMENTS}  access: {{secretName: payments-wirepost}}\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn apply_gives_a_topology_credentials_and_a_configuration() -> Result<()> {
    let world = World::new().await?;
    let _operator = world.operator("one").start().await?;
    world.apply(&payments()).await?;
    let wsb = world.condition("payments", "Provisioned", "True").await?;

    let status = wsb.status.context("no status")?;
    ensure!(status.business_type.as_deref() == Some("payments"));
    ensure!(status.token_url.as_deref() == Some("https://ws.example.com/payments/websocket/token"));
    ensure!(status.queues.contains(&"wirepost.payments.q.orders".to_owned()), "{:?}", status.queues);
    ensure!(status.binding.context("no binding")?.name == "payments-wirepost");
    ensure!(world.config_map("payments").await?.is_some());

    // What the Secret says works, and only what it says.
    let secret = world.secret("payments-wirepost").await?.context("no Secret")?;
    ensure!(secret["type"] == "rabbitmq" && secret["provider"] == "wirepost", "{:?}", secret.keys());
    let connection = lapin::Connection::connect(&secret["uri"], lapin::ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    channel.confirm_select(lapin::options::ConfirmSelectOptions::default()).await?;
    publish(&channel, &secret["push-exchange"], "", b"{}").await?;
    let refused = publish(&channel, "wirepost.payments.receive", "order.new", b"{}").await;
    ensure!(refused.is_err(), "a service may not pretend to be a client");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn without_edges_the_business_says_so() -> Result<()> {
    let world = World::new().await?;
    let _operator = world.operator("one").start().await?;
    world.apply(PAYMENTS).await?;
    let wsb = world.reason("payments", "Ready", "NoEdges").await?;
    let programmed = condition_of(&wsb, "Programmed").context("no Programmed")?;
    ensure!(programmed.status == "False" && programmed.message.contains("edge"), "{programmed:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn delete_takes_everything_away() -> Result<()> {
    let world = World::new().await?;
    let _operator = world.operator("one").start().await?;
    world.apply(&payments()).await?;
    world.condition("payments", "Provisioned", "True").await?;
    world.cluster.delete(&world.team.name, "payments").await?;
    world.cluster.wait_gone(&world.team.name, "payments").await?;
    ensure!(world.config_map("payments").await?.is_none());
    ensure!(world.secret("payments-wirepost").await?.is_none());
    eventually("nothing of it is left on the broker", wirepost_testing::broker::PATIENCE, || async {
        let left = wirepost_topology::Actual::read(&world.setup.management()?).await?;
        Ok(left.exchanges.iter().all(|e| wirepost_core::names::owner(&e.name).is_none())
            && left.queues.iter().all(|queue| wirepost_core::names::owner(&queue.name).is_none())
            && left.policies.iter().all(|policy| wirepost_core::names::owner(&policy.name).is_none()))
    })
    .await
}
