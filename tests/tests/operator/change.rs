//! A declaration changes while messages wait and flow: nothing of them is lost, and the broker follows with as little as will do.

use anyhow::{Context, Result, ensure};
use lapin::{Connection, ConnectionProperties};
use wirepost_core::business::WsBusiness;
use wirepost_testing::broker::{depth, eventually, key_of};
use wirepost_testing::cluster::PATIENCE;
use wirepost_testing::hand::{
    Picture, all_there_in_two_rows, differences, of_business, publish_numbers, publish_orders, read_numbers,
    read_numbers_over,
};
use wirepost_testing::operator::{Operator, World, condition_of};
use wirepost_testing::witness::Witness;

const RECEIVE: &str = "wirepost.payments.receive";
const PUSH: &str = "wirepost.payments.push";
const ORDERS: &str = "wirepost.payments.q.orders";
const STREAM: &str = "wirepost.payments.stream";
const UNROUTED: &str = "wirepost.payments.unrouted";

/// The business with this route for orders and this push.
fn payments(route: &str, push: &str) -> String {
    format!(
        r#"
apiVersion: wirepost.dev/v1alpha1
kind: WsBusiness
metadata: {{name: payments}}
spec:
  clientTypes: [app]
  push: {{{push}}}
  access: {{secretName: payments-wirepost}}
  deletionPolicy: Delete
  routes:
    - {{messageType: "refund.#", sendType: ClientToServer, queue: {{name: refunds}}}}
    - {{messageType: payment.completed, sendType: ServerToClient, to: [app]}}
{route}"#
    )
}

fn orders(message_type: &str, queue: &str) -> String {
    format!("    - {{messageType: \"{message_type}\", sendType: ClientToServer, queue: {{{queue}}}}}\n")
}

/// Runs an operator, with this declaration in force.
async fn start(declaration: &str) -> Result<(World, Operator)> {
    let world = World::new().await?;
    let operator = world.operator("one").start().await?;
    change(&world, declaration).await?;
    Ok((world, operator))
}

/// Makes this the declaration, waits until the broker has it and nothing else, and returns what `Provisioned` says.
async fn change(world: &World, declaration: &str) -> Result<String> {
    world.apply(declaration).await?;
    let settled = |wsb: &WsBusiness| {
        condition_of(wsb, "Provisioned").is_some_and(|c| {
            let current = c.observed_generation == wsb.metadata.generation;
            current && c.status == "True" && !c.message.contains("until every edge runs")
        })
    };
    let wsb = world.wait("payments", "be provisioned, and rid of what was before", settled).await?;
    Ok(condition_of(&wsb, "Provisioned").context("no Provisioned")?.message.clone())
}

async fn picture(world: &World) -> Result<Picture> {
    Ok(of_business(&world.setup.picture().await?, "payments"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renamed_queue_is_unbound_once_no_edge_uses_it_and_goes_when_its_messages_are_consumed() -> Result<()> {
    let (world, _operator) = start(&payments(&orders("order.#", "name: orders, maxLength: 1000"), "")).await?;
    let vhost = world.setup.vhost();
    let before = publish_orders(vhost, ORDERS, 1..6).await?;
    // Some are under way while the queue is renamed.
    let (message, meanwhile) = tokio::try_join!(
        async {
            world.apply(&payments(&orders("order.#", "name: purchases, maxLength: 1000"), "")).await?;
            world
                .wait("payments", "name the old queue", |wsb| {
                    condition_of(wsb, "Provisioned")
                        .is_some_and(|c| c.status == "True" && c.message.contains("consume or purge"))
                })
                .await
        },
        publish_orders(vhost, ORDERS, 6..206),
    )?;
    ensure!(before.len() + meanwhile.len() == 205, "a client was refused");
    let told = condition_of(&message, "Provisioned").context("no Provisioned")?;
    ensure!(told.message.contains(ORDERS), "it does not name the queue: {}", told.message);
    let after = publish_orders(vhost, "wirepost.payments.q.purchases", 206..211).await?;

    let now = picture(&world).await?;
    ensure!(!now.contains_key(&format!("binding {RECEIVE} -> {ORDERS} with '{}'", key_of(ORDERS))), "{now:#?}");
    ensure!(world.setup.policy_in_force(ORDERS).await?.1["max-length"] == 1000, "the old queue lost its limit");
    let (_connection, channel) = vhost.channel().await?;
    let depths = async || Ok((depth(&channel, ORDERS).await?, depth(&channel, "wirepost.payments.q.purchases").await?));
    // This edge has no operator: its messages to the old queue take the detour over `unrouted` after the unbinding.
    let all_there = || async { depths().await.map(|(old, new)| old + new == 210) };
    eventually("every message lies in one of the two queues", PATIENCE, all_there).await?;
    let (old, new) = depths().await?;
    // The business's own services consume the rest.
    let secret = world.secret("payments-wirepost").await?.context("no Secret")?;
    let service = Connection::connect(&secret["uri"], ConnectionProperties::default()).await?;
    let mut all = read_numbers_over(&service, ORDERS, old as usize).await?;
    ensure!(all.starts_with(&before), "{all:?}");
    all.extend(read_numbers_over(&service, "wirepost.payments.q.purchases", new as usize).await?);
    all.sort_unstable();
    ensure!(all == [before, meanwhile, after].concat(), "{all:?}");
    service.close(200, "done".into()).await?;

    let gone = || async { Ok(!picture(&world).await?.keys().any(|key| key.contains(ORDERS))) };
    eventually("the old queue and its policy are gone", PATIENCE, gone).await?;
    let quiet = |wsb: &_| condition_of(wsb, "Provisioned").is_some_and(|c| !c.message.contains(ORDERS));
    world.wait("payments", "forget the old queue", quiet).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renamed_route_leaves_binding_and_messages_as_they_are() -> Result<()> {
    let (world, _operator) = start(&payments(&orders("order.#", "name: orders"), "")).await?;
    let vhost = world.setup.vhost();
    publish_orders(vhost, ORDERS, 1..4).await?;
    let before = picture(&world).await?;
    change(&world, &payments(&orders("purchase.*", "name: orders"), "")).await?;
    let after = picture(&world).await?;
    ensure!(before == after, "{:#?}", differences(&before, &after));
    publish_orders(vhost, ORDERS, 4..6).await?;
    ensure!(read_numbers(vhost, ORDERS, 5).await? == [1, 2, 3, 4, 5]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn changed_limits_of_a_queue_change_its_policy_and_nothing_else() -> Result<()> {
    let (world, _operator) = start(&payments(&orders("order.#", "name: orders"), "")).await?;
    let vhost = world.setup.vhost();
    publish_orders(vhost, ORDERS, 1..4).await?;
    let before = picture(&world).await?;
    for (settings, key, value) in [
        (", maxLength: 700", "max-length", 700),
        (", maxLength: 800", "max-length", 800),
        (", messageTtlSeconds: 3600", "message-ttl", 3_600_000),
        (", deliveryLimit: 3", "delivery-limit", 3),
        ("", "delivery-limit", 20),
    ] {
        change(&world, &payments(&orders("order.#", &format!("name: orders{settings}")), "")).await?;
        let (_, definition) = world.setup.policy_in_force(ORDERS).await?;
        ensure!(definition[key] == value, "{settings}: {definition}");
        ensure!(definition["overflow"] == "reject-publish", "{settings}: {definition}");
        let mut after = picture(&world).await?;
        after.remove(&format!("policy {ORDERS}"));
        ensure!(after == before, "{settings}: {:#?}", differences(&before, &after));
    }
    ensure!(read_numbers(vhost, ORDERS, 3).await? == [1, 2, 3]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_retention_keeps_the_stream_with_what_it_holds() -> Result<()> {
    let route = orders("order.#", "name: orders");
    let (world, _operator) = start(&payments(&route, "")).await?;
    let vhost = world.setup.vhost();
    let sent = publish_numbers(vhost, PUSH, "any", 1..4).await?;
    change(&world, &payments(&route, "retention: {seconds: 600, bytes: 10Mi}")).await?;
    let (_, definition) = world.setup.policy_in_force(STREAM).await?;
    ensure!(definition["max-age"] == "600s" && definition["max-length-bytes"] == 10 << 20, "{definition}");
    ensure!(read_numbers(vhost, STREAM, 3).await? == sent);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn stream_and_keeper_of_pushes_follow_the_delivery_there_and_back() -> Result<()> {
    let route = orders("order.#", "name: orders");
    let (world, _operator) = start(&payments(&route, "delivery: Durable")).await?;
    let vhost = world.setup.vhost();
    let durable = picture(&world).await?;
    ensure!(durable.contains_key(&format!("queue {STREAM}")));
    publish_numbers(vhost, PUSH, "any", 1..4).await?;

    change(&world, &payments(&route, "delivery: Transient")).await?;
    let transient = picture(&world).await?;
    ensure!(!transient.keys().any(|key| key.contains(STREAM)), "{transient:#?}");
    // No edge: nobody is there, the publisher hears it, and nothing piles up.
    ensure!(publish_numbers(vhost, PUSH, "any", 4..6).await?.is_empty());
    let (_connection, channel) = vhost.channel().await?;
    ensure!(depth(&channel, UNROUTED).await? == 0);

    change(&world, &payments(&route, "delivery: Durable")).await?;
    let back = picture(&world).await?;
    ensure!(back == durable, "{:#?}", differences(&durable, &back));
    let sent = publish_numbers(vhost, PUSH, "any", 6..9).await?;
    ensure!(read_numbers(vhost, STREAM, 3).await? == sent);
    // And a lost binding loses nothing again.
    let witness = Witness::of(&world, "payments").await?;
    world.setup.unbind(PUSH, STREAM, "").await?;
    let kept = publish_numbers(vhost, PUSH, "any", 9..12).await?;
    witness.sees("Provisioned", "Drifted", STREAM).await?;
    all_there_in_two_rows(&[sent, kept].concat(), &read_numbers(vhost, STREAM, 6).await?)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_queue_of_a_removed_route_goes_once_no_edge_uses_it_and_it_is_empty() -> Result<()> {
    let both = [orders("order.#", "name: orders"), orders("claim.#", "name: claims")].concat();
    let (world, _operator) = start(&payments(&both, "")).await?;
    let vhost = world.setup.vhost();
    publish_orders(vhost, ORDERS, 1..4).await?;
    let message = change(&world, &payments("", "")).await?;
    ensure!(message.contains(ORDERS) && message.contains("3 messages"), "{message}");
    let now = picture(&world).await?;
    let bound = now.keys().filter(|key| key.starts_with(&format!("binding {RECEIVE}"))).count();
    ensure!(bound == 1, "{now:#?}");
    let gone = || async { Ok(!picture(&world).await?.contains_key("queue wirepost.payments.q.claims")) };
    eventually("the empty queue is gone", PATIENCE, gone).await?;
    ensure!(read_numbers(vhost, ORDERS, 3).await? == [1, 2, 3]);
    let gone = || async { Ok(!picture(&world).await?.contains_key(&format!("queue {ORDERS}"))) };
    eventually("the drained queue is gone", PATIENCE, gone).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_route_that_comes_back_takes_up_its_old_queue() -> Result<()> {
    let route = orders("order.#", "name: orders");
    let (world, _operator) = start(&payments(&route, "")).await?;
    let vhost = world.setup.vhost();
    let before = picture(&world).await?;
    publish_orders(vhost, ORDERS, 1..4).await?;
    change(&world, &payments("", "")).await?;
    change(&world, &payments(&route, "")).await?;
    let after = picture(&world).await?;
    ensure!(after == before, "{:#?}", differences(&before, &after));
    publish_orders(vhost, ORDERS, 4..6).await?;
    ensure!(read_numbers(vhost, ORDERS, 5).await? == [1, 2, 3, 4, 5]);
    Ok(())
}
