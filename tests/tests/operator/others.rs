//! Businesses beside each other, objects that nobody claims, and what belongs to others.

use anyhow::{Context, Result, ensure};
use lapin::options::{BasicGetOptions, ConfirmSelectOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{Channel, Connection, ConnectionProperties};
use serde_json::{Value, json};
use wirepost_core::names;
use wirepost_testing::broker::{depth, eventually, publish};
use wirepost_testing::cluster::PATIENCE;
use wirepost_testing::hand::{differences, of_others, read_numbers};
use wirepost_testing::operator::World;
use wirepost_topology::user_tag;

/// Queues called like our own objects; limits and a retention of its own if `small`.
fn business(name: &str, small: bool) -> String {
    let (limit, retention) = if small { (", maxLength: 10", ", retention: {bytes: 1Mi}") } else { ("", "") };
    let queues = ["orders", "push", "dead", "unrouted", "events", "push_e1", "stream"];
    let routes = queues.map(|queue| {
        format!("    - {{messageType: \"{queue}.#\", sendType: ClientToServer, queue: {{name: {queue}{limit}}}}}\n")
    });
    format!(
        "
apiVersion: wirepost.dev/v1alpha1
kind: WsBusiness
metadata: {{name: {name}}}
spec:
  clientTypes: [app]
  push: {{delivery: Durable{retention}}}
  access: {{secretName: {name}-access}}
  routes:
{}",
        routes.concat()
    )
}

/// As one of the business's services: each attempt on a channel of its own, because the broker closes one with a refusal.
struct As(Connection);

impl As {
    async fn service(world: &World, business: &str) -> Result<Self> {
        let secret = world.secret(&format!("{business}-access")).await?.context("no Secret")?;
        Ok(Self(Connection::connect(&secret["uri"], ConnectionProperties::default()).await?))
    }

    async fn channel(&self) -> Result<Channel> {
        let channel = self.0.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        Ok(channel)
    }

    async fn push(&self, exchange: &str) -> Result<()> {
        publish(&self.channel().await?, exchange, "any", b"{}").await
    }

    async fn get(&self, queue: &str) -> Result<()> {
        self.channel().await?.basic_get(queue.into(), BasicGetOptions::default()).await?;
        Ok(())
    }

    async fn listen(&self, queue: &str, exchange: &str) -> Result<()> {
        let channel = self.channel().await?;
        let table = FieldTable::default;
        channel
            .queue_declare(
                queue.into(),
                QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() },
                table(),
            )
            .await?;
        let bind = channel.queue_bind(queue.into(), exchange.into(), "#".into(), QueueBindOptions::default(), table());
        Ok(bind.await?)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_business_can_do_nothing_with_the_objects_of_another_whose_name_its_own_begins() -> Result<()> {
    let world = World::new().await?;
    let _operator = world.operator("one").start().await?;
    for name in ["pay", "payments"] {
        world.apply(&business(name, false)).await?;
        world.condition(name, "Provisioned", "True").await?;
    }
    for (own, other) in [("pay", "payments"), ("payments", "pay")] {
        let service = As::service(&world, own).await?;
        service.push(&names::push_exchange(own)).await?;
        for queue in ["orders", "push", "dead", "push_e1"] {
            service.get(&names::route_queue(own, queue)).await.context(queue)?;
        }
        service.get(&names::dead_queue(own)).await?;
        let events = names::events_queue(own, "audit");
        service.listen(&events, &names::events_exchange(own)).await?;

        let theirs = names::events_queue(other, "audit");
        let attempts = [
            ("push", service.push(&names::push_exchange(other)).await),
            ("pretend to be a client of its own", service.push(&names::receive_exchange(own)).await),
            ("pretend to be a client", service.push(&names::receive_exchange(other)).await),
            ("pretend an event", service.push(&names::events_exchange(other)).await),
            ("consume", service.get(&names::route_queue(other, "orders")).await),
            ("read dead ones", service.get(&names::dead_queue(other)).await),
            ("read pushes", service.get(&names::stream(other)).await),
            ("listen to events", service.listen(&events, &names::events_exchange(other)).await),
            ("listen in its name", service.listen(&theirs, &names::events_exchange(other)).await),
            ("declare", service.listen("anything", &names::events_exchange(own)).await),
        ];
        for (what, attempt) in attempts {
            ensure!(attempt.is_err(), "{own} can {what} at {other}");
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_of_a_business_do_not_reach_another_whose_name_its_own_begins() -> Result<()> {
    let world = World::new().await?;
    let _operator = world.operator("one").start().await?;
    let vhost = world.setup.vhost().name.as_str();
    world.apply(&business("payments", false)).await?;
    world.condition("payments", "Provisioned", "True").await?;
    let mine = |picture: &wirepost_testing::hand::Picture| {
        let mine: Vec<_> = picture.iter().filter(|(key, _)| key.contains(" wirepost.payments.")).collect();
        format!("{mine:#?}")
    };
    let before = mine(&world.setup.picture().await?);
    world.apply(&business("pay", true)).await?;
    world.condition("pay", "Provisioned", "True").await?;

    ensure!(world.setup.policy_in_force("wirepost.pay.q.orders").await?.1["max-length"] == 10);
    ensure!(world.setup.policy_in_force("wirepost.payments.q.orders").await?.1["max-length"] == 1_000_000);
    ensure!(world.setup.policy_in_force("wirepost.pay.stream").await?.1["max-length-bytes"] == 1 << 20);
    ensure!(world.setup.policy_in_force("wirepost.payments.stream").await?.1["max-length-bytes"] != 1 << 20);
    world.cluster.delete(&world.team.name, "pay").await?;
    world.cluster.wait_gone(&world.team.name, "pay").await?;
    ensure!(mine(&world.setup.picture().await?) == before, "{vhost}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_claims_goes_but_for_messages_and_what_is_not_ours() -> Result<()> {
    let world = World::new().await?;
    let vhost = world.setup.vhost().name.as_str();
    world.setup.neighbours().await?;
    let before = of_others(&world.setup.picture().await?);
    let quorum = json!({"durable": true, "arguments": {"x-queue-type": "quorum"}});
    let stream = json!({"durable": true, "arguments": {"x-queue-type": "stream"}});
    let topic = json!({"type": "topic", "durable": true});
    let user = "wirepost.gone.0a1b2c3d";
    let objects: [(&[&str], &Value); 6] = [
        (&["exchanges", vhost, "wirepost.gone.receive"], &topic),
        (&["queues", vhost, "wirepost.gone.q.empty"], &quorum),
        (&["queues", vhost, "wirepost.gone.q.full"], &quorum),
        (&["queues", vhost, "wirepost.gone.stream"], &stream),
        (&["queues", vhost, "wirepost.gone.events.audit"], &quorum),
        (&["users", user], &json!({"password": "x", "tags": user_tag(vhost)})),
    ];
    for (path, body) in objects {
        world.setup.call("PUT", path, body).await?;
    }
    let (_connection, channel) = world.setup.vhost().channel().await?;
    publish(&channel, "", "wirepost.gone.q.full", b"1").await?;
    publish(&channel, "", "wirepost.gone.stream", b"1").await?;

    let operator = world.operator("one").flag("orphan-grace-seconds", 1).start().await?;
    world.apply(&business("payments", false)).await?;
    world.condition("payments", "Provisioned", "True").await?;
    let has = async |key: &str| anyhow::Ok(world.setup.picture().await?.contains_key(key));
    let gone =
        || async { Ok(!has("queue wirepost.gone.q.empty").await? && !has("exchange wirepost.gone.receive").await?) };
    eventually("what nobody claims is gone", PATIENCE, gone).await?;
    ensure!(depth(&channel, "wirepost.gone.q.full").await? == 1, "a message is gone");
    ensure!(has("queue wirepost.gone.stream").await?, "a stream is gone");
    ensure!(read_numbers(world.setup.vhost(), "wirepost.gone.q.full", 1).await? == [1]);
    let gone =
        || async { Ok(!has("queue wirepost.gone.q.full").await? && !has("exchange wirepost.gone.receive").await?) };
    eventually("the drained queue is gone", PATIENCE, gone).await?;

    // A business's own listener outlives it.
    ensure!(has("queue wirepost.gone.events.audit").await?);
    let after = of_others(&world.setup.picture().await?);
    ensure!(after == before, "{:#?}", differences(&before, &after));
    ensure!(operator.running());
    Ok(())
}
