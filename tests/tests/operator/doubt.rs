//! Nothing is deleted in doubt: a queue that can't be counted is kept.

use anyhow::{Result, ensure};
use kube::api::{Patch, PatchParams};
use serde_json::json;
use wirepost_testing::broker::{BrokerCluster, PrivateBroker, depth, eventually};
use wirepost_testing::cluster::PATIENCE;
use wirepost_testing::hand::{of_business, publish_numbers, publish_orders, read_numbers};
use wirepost_testing::operator::{World, condition_of};
use wirepost_testing::setup::PAYMENTS;

const ORDERS: &str = "wirepost.payments.q.orders";

async fn provisioned(world: &World) -> Result<()> {
    world.apply(PAYMENTS).await?;
    world.condition("payments", "Provisioned", "True").await?;
    Ok(())
}

/// As during a broker's restart: the leader of a queue is not elected yet, so its depth is reported as 0, and there are no statistics.
#[tokio::test(flavor = "multi_thread")]
async fn a_queue_whose_leader_does_not_answer_is_not_taken_for_empty() -> Result<()> {
    let broker = PrivateBroker::start("doubt", &[]).await?;
    let world = World::on_broker(&broker).await?;
    let operator = world.operator("one").flag("orphan-grace-seconds", 1).start().await?;
    provisioned(&world).await?;
    let vhost = world.setup.vhost();
    ensure!(publish_orders(vhost, ORDERS, 1..4).await?.len() == 3, "refused");
    world.cluster.delete(&world.team.name, "payments").await?;
    let counted = |wsb: &_| condition_of(wsb, "Provisioned").is_some_and(|c| c.message.contains("3 messages"));
    world.wait("payments", "name its messages", counted).await?;

    let leader = format!("whereis('{}_{ORDERS}')", vhost.name);
    broker.ctl(&["eval", &format!("sys:suspend({leader}).")]).await?;
    for _ in 0..3 {
        broker.ctl(&["eval", "ets:delete_all_objects(queue_coarse_metrics)."]).await?;
        broker.call("DELETE", "/api/reset", "").await?;
        operator.looks(3).await?;
    }
    broker.ctl(&["eval", &format!("sys:resume({leader}).")]).await?;
    eventually("the leader answers", PATIENCE, || async {
        let (_connection, channel) = vhost.channel().await?;
        Ok(depth(&channel, ORDERS).await? == 3)
    })
    .await?;
    ensure!(read_numbers(vhost, ORDERS, 3).await? == [1, 2, 3]);
    world.cluster.wait_gone(&world.team.name, "payments").await
}

#[tokio::test(flavor = "multi_thread")]
async fn without_statistics_an_empty_queue_is_kept_until_a_person_says_that_it_may_go() -> Result<()> {
    let conf = ["--conf", "management_agent.disable_metrics_collector = true"];
    let broker = PrivateBroker::start("uncounted", &conf).await?;
    let world = World::on_broker(&broker).await?;
    let operator = world.operator("one").start().await?;
    provisioned(&world).await?;
    world.cluster.delete(&world.team.name, "payments").await?;
    let told =
        |wsb: &_| condition_of(wsb, "Provisioned").is_some_and(|c| c.message.contains("disable_metrics_collector"));
    world.wait("payments", "say why its queues are kept", told).await?;
    operator.looks(10).await?;
    ensure!(of_business(&world.setup.picture().await?, "payments").contains_key(&format!("queue {ORDERS}")));

    let patch = json!({"metadata": {"annotations": {"wirepost.dev/delete-queues": "now"}}});
    world.team.businesses().patch("payments", &PatchParams::default(), &Patch::Merge(patch)).await?;
    world.cluster.wait_gone(&world.team.name, "payments").await?;
    ensure!(of_business(&world.setup.picture().await?, "payments").is_empty());
    Ok(())
}

/// The nodes restart one after another, as in an upgrade of the broker, while the business is deleted.
#[tokio::test(flavor = "multi_thread")]
async fn a_business_that_is_deleted_while_the_nodes_restart_loses_no_message() -> Result<()> {
    let cluster = BrokerCluster::start("rolling").await?;
    let world = World::on_broker(cluster.node(0)).await?;
    let operator = world.operator("one").flag("orphan-grace-seconds", 1).flag("deletion-deadline-seconds", 5);
    let operator = operator.start().await?;
    provisioned(&world).await?;
    let vhost = world.setup.vhost();
    ensure!(publish_orders(vhost, ORDERS, 1..101).await?.len() == 100, "refused");
    let pushed = publish_numbers(vhost, "wirepost.payments.push", "any", 1..4).await?;
    world.cluster.delete(&world.team.name, "payments").await?;
    for node in [1, 2, 0] {
        cluster.node(node).stop().await?;
        cluster.node(node).start_again().await?;
    }
    world.cluster.wait_gone(&world.team.name, "payments").await?;
    operator.looks(15).await?;
    ensure!(read_numbers(vhost, ORDERS, 100).await? == (1..101).collect::<Vec<_>>());
    ensure!(read_numbers(vhost, "wirepost.payments.stream", 3).await? == pushed);
    // Once nothing is in it the rest goes, without a person.
    let gone = || async {
        let left = of_business(&world.setup.picture().await?, "payments");
        Ok(!left.contains_key(&format!("queue {ORDERS}")))
    };
    eventually("the queue goes when it is empty", PATIENCE * 2, gone).await
}
