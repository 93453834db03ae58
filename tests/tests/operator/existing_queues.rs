//! `existing: true` names a queue of somebody else: only one that its owner, or the platform team, has opened is filled.

use anyhow::{Context, Result, ensure};
use serde_json::json;
use wirepost_testing::broker::{depth, key_of, publish, publish_for};
use wirepost_testing::cluster::PATIENCE;
use wirepost_testing::operator::{World, condition_of};

const THEIRS: &str = "team-b-orders";
const RECEIVE: &str = "wirepost.thief.receive";

/// A business that names this queue.
fn thief(queue: &str) -> String {
    format!(
        "
apiVersion: wirepost.dev/v1alpha1
kind: WsBusiness
metadata: {{name: thief}}
spec:
  clientTypes: [app]
  routes:
    - {{messageType: order.new, sendType: ClientToServer, queue: {{name: {queue}, existing: true}}}}
"
    )
}

/// A queue of somebody, of each kind that a broker has.
async fn declare(world: &World, name: &str, kind: &str, accept: Option<&str>) -> Result<()> {
    let mut arguments = json!({"x-queue-type": kind});
    if let Some(accept) = accept {
        arguments["x-wirepost-accept"] = json!(accept);
    }
    let path = ["queues", &world.setup.vhost().name, name];
    world.setup.call("PUT", &path, &json!({"durable": true, "arguments": arguments})).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_of_another_team_is_not_filled_until_its_owner_opens_it() -> Result<()> {
    let world = World::new().await?;
    let operator = world.operator("one").start().await?;
    declare(&world, THEIRS, "quorum", Some("team-b, thieves")).await?;
    world.apply(&thief(THEIRS)).await?;
    let refused = world.reason("thief", "Accepted", "QueueNotOpen").await?;
    let message = &condition_of(&refused, "Accepted").context("no Accepted")?.message;
    for text in [THEIRS, "x-wirepost-accept: thief", "--existing-queues"] {
        ensure!(message.contains(text), "{message}");
    }
    ensure!(world.config_map("thief").await?.is_none(), "edges would take its messages");
    let bound = || async {
        Ok::<_, anyhow::Error>(
            world.setup.picture().await?.keys().any(|k| k.contains(THEIRS) && k.starts_with("binding")),
        )
    };
    ensure!(!bound().await?, "it is bound");

    // A queue can't change its arguments: its owner declares it again.
    for kind in ["quorum", "classic", "stream"] {
        world.setup.delete_queue(THEIRS).await?;
        world.reason("thief", "Accepted", "QueueNotFound").await?;
        declare(&world, THEIRS, kind, Some("team-b, thief")).await?;
        world.condition("thief", "Provisioned", "True").await.context(kind)?;
        ensure!(bound().await?);
    }
    operator.had_every_right()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_platform_team_opens_queues_to_a_namespace_by_how_their_names_begin() -> Result<()> {
    let world = World::new().await?;
    for queue in [THEIRS, "shop-orders"] {
        declare(&world, queue, "classic", None).await?;
    }
    let open = format!("elsewhere=team-b,{}=shop-", world.team.name);
    let operator = world.operator("one").flag("existing-queues", open).start().await?;
    world.apply(&thief(THEIRS)).await?;
    world.reason("thief", "Accepted", "QueueNotOpen").await?;
    world.apply(&thief("shop-orders")).await?;
    world.condition("thief", "Provisioned", "True").await?;
    let (_connection, channel) = world.setup.vhost().channel().await?;
    publish_for(&channel, RECEIVE, "order.new", "shop-orders", b"{}").await?;
    ensure!(depth(&channel, "shop-orders").await? == 1);

    // No longer opened: it is said, and what ran goes on; nothing that is acknowledged has no place.
    operator.sigterm()?;
    operator.exited(PATIENCE).await?;
    let operator = world.operator("two").start().await?;
    world.reason("thief", "Accepted", "QueueNotOpen").await?;
    operator.looks(3).await?;
    publish(&channel, RECEIVE, &key_of("shop-orders"), b"{}").await?;
    ensure!(depth(&channel, "shop-orders").await? == 2);
    Ok(())
}
