//! Whatever others do to our objects on the broker is put right within 30 s, and said; no message is lost by it.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use wirepost_core::topology::shared_policies;
use wirepost_testing::broker::{depth, eventually, key_of, publish};
use wirepost_testing::cluster::PATIENCE;
use wirepost_testing::hand::{all_there_in_two_rows, differences, publish_numbers, publish_orders, read_numbers};
use wirepost_testing::operator::{Operator, World};
use wirepost_testing::witness::Witness;
use wirepost_topology::user_tag;

/// A business with limits of its own on a queue and on the stream, and with access for its services.
const PAYMENTS: &str = r#"
apiVersion: wirepost.dev/v1alpha1
kind: WsBusiness
metadata: {name: payments}
spec:
  clientTypes: [app]
  routes:
    - {messageType: "order.#", sendType: ClientToServer, queue: {name: orders}}
    - {messageType: "refund.#", sendType: ClientToServer, queue: {name: refunds, maxLength: 500}}
    - {messageType: payment.completed, sendType: ServerToClient, to: [app]}
  push: {retention: {seconds: 3600, bytes: 100Mi}}
  access: {secretName: payments-wirepost}
"#;

const RECEIVE: &str = "wirepost.payments.receive";
const PUSH: &str = "wirepost.payments.push";
const ORDERS: &str = "wirepost.payments.q.orders";
const REFUNDS: &str = "wirepost.payments.q.refunds";
const STREAM: &str = "wirepost.payments.stream";
const UNROUTED: &str = "wirepost.payments.unrouted";

/// The business as declared on the broker, with an operator that keeps it so.
async fn provisioned() -> Result<(World, Operator)> {
    let world = World::new().await?;
    let operator = world.operator("one").start().await?;
    world.apply(PAYMENTS).await?;
    world.condition("payments", "Provisioned", "True").await?;
    Ok((world, operator))
}

/// Waits until the condition has told of the change that concerns this object, and then of its repair.
async fn drifted_and_repaired(world: &World, witness: &Witness, object: &str) -> Result<()> {
    witness.sees("Provisioned", "Drifted", object).await?;
    world.condition("payments", "Provisioned", "True").await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_delete_or_alter_is_put_right_and_said() -> Result<()> {
    let (world, operator) = provisioned().await?;
    let secret = world.secret("payments-wirepost").await?.context("no Secret")?;
    let vhost = world.setup.vhost().name.as_str();
    let (user, tag) = (secret["username"].as_str(), user_tag(vhost));
    let before = world.setup.picture().await?;
    let witness = Witness::of(&world, "payments").await?;

    let binding = ["bindings", vhost, "e", RECEIVE, "q", ORDERS];
    let everything = json!({"configure": ".*", "write": ".*", "read": ".*"});
    let loose = json!({"pattern": "^wirepost", "apply-to": "all", "priority": 500, "definition": {"max-length": 1}});
    let cases: &[(&str, &str, &str, &[&str], Value)] = &[
        (
            "a lost binding",
            ORDERS,
            "DELETE",
            &[&binding[..], &["queue%20wirepost.payments.q.orders"]].concat(),
            Value::Null,
        ),
        ("one binding more", ORDERS, "POST", &binding, json!({"routing_key": "#"})),
        ("a lost queue", ORDERS, "DELETE", &["queues", vhost, ORDERS], Value::Null),
        ("a lost exchange", RECEIVE, "DELETE", &["exchanges", vhost, RECEIVE], Value::Null),
        ("a lost keeper", UNROUTED, "DELETE", &["queues", vhost, UNROUTED], Value::Null),
        ("a lost way to the keeper", UNROUTED, "DELETE", &["exchanges", vhost, UNROUTED], Value::Null),
        ("a lost stream", STREAM, "DELETE", &["queues", vhost, STREAM], Value::Null),
        ("a lost policy", REFUNDS, "DELETE", &["policies", vhost, REFUNDS], Value::Null),
        ("another policy", REFUNDS, "PUT", &["policies", vhost, REFUNDS], loose),
        ("a lost user", user, "DELETE", &["users", user], Value::Null),
        ("another password", user, "PUT", &["users", user], json!({"password": "known", "tags": tag})),
        (
            "one tag more",
            user,
            "PUT",
            &["users", user],
            json!({"password": secret["password"], "tags": [&tag, "administrator"]}),
        ),
        ("lost permissions", user, "DELETE", &["permissions", vhost, user], Value::Null),
        ("wider permissions", user, "PUT", &["permissions", vhost, user], everything),
    ];
    for (what, object, method, path, body) in cases {
        witness.take();
        world.setup.call(method, path, body).await.context(*what)?;
        drifted_and_repaired(&world, &witness, object).await.context(*what)?;
        let after = world.setup.picture().await?;
        ensure!(after == before, "{what}: {:#?}", differences(&before, &after));
        let told = || async {
            let notes = world.events("payments").await?.into_iter().filter(|e| e.reason.as_deref() == Some("Repaired"));
            Ok(notes.filter_map(|event| event.note).any(|note| note.contains(object)))
        };
        eventually("an event says what was repaired", PATIENCE, told).await.context(*what)?;
        // With the credentials that it has had all the time.
        lapin::Connection::connect(&secret["uri"], lapin::ConnectionProperties::default()).await.context(*what)?;
    }
    ensure!(operator.running(), "it needed a restart");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_all_businesses_share_is_put_right() -> Result<()> {
    let (world, _operator) = provisioned().await?;
    let vhost = world.setup.vhost().name.as_str();
    let before = world.setup.picture().await?;
    let loose = json!({"pattern": "^nothing$", "apply-to": "queues", "definition": {"max-length": 1}});
    for policy in shared_policies() {
        for (method, body) in [("DELETE", &Value::Null), ("PUT", &loose)] {
            world.setup.call(method, &["policies", vhost, &policy.name], body).await?;
            let same = || async { Ok(world.setup.picture().await? == before) };
            eventually(&format!("{} is back", policy.name), PATIENCE, same).await?;
        }
    }
    let (policy, definition) = world.setup.policy_in_force(ORDERS).await?;
    ensure!(policy.starts_with("wirepost."), "{policy} is in force on {ORDERS}");
    ensure!(definition["overflow"] == "reject-publish", "{definition}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_that_lost_our_tag_is_named_and_left_alone_until_someone_deletes_it() -> Result<()> {
    let (world, _operator) = provisioned().await?;
    let secret = world.secret("payments-wirepost").await?.context("no Secret")?;
    let path = ["users", secret["username"].as_str()];
    let witness = Witness::of(&world, "payments").await?;
    world.setup.call("PUT", &path, &json!({"password": "theirs", "tags": "monitoring"})).await?;
    witness.sees("Provisioned", "NotAsDeclared", path[1]).await?;
    ensure!(world.setup.ask(&path).await?["tags"] == json!(["monitoring"]));
    world.setup.call("DELETE", &path, &Value::Null).await?;
    world.condition("payments", "Provisioned", "True").await?;
    lapin::Connection::connect(&secret["uri"], lapin::ConnectionProperties::default()).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_binding_loses_no_message_of_a_client() -> Result<()> {
    let (world, operator) = provisioned().await?;
    let vhost = world.setup.vhost();
    let witness = Witness::of(&world, "payments").await?;
    let mut sent = publish_orders(vhost, ORDERS, 1..21).await?;
    world.setup.unbind(RECEIVE, ORDERS, &key_of(ORDERS)).await?;
    // Goes on through the loss and the repair.
    sent.extend(publish_orders(vhost, ORDERS, 21..521).await?);
    ensure!(sent.len() == 520, "a client was refused: {sent:?}");
    drifted_and_repaired(&world, &witness, ORDERS).await?;
    all_there_in_two_rows(&sent, &read_numbers(vhost, ORDERS, sent.len()).await?)?;

    let (_connection, channel) = vhost.channel().await?;
    eventually("nothing is left in unrouted", PATIENCE, || async { Ok(depth(&channel, UNROUTED).await? == 0) }).await?;
    let moved = operator.metric("wirepost_operator_unrouted_moved_back_total").await?;
    ensure!(moved > 0.0, "none was unrouted; {}", operator.admin("/metrics").await?.1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_lost_while_no_operator_ran_comes_back_in_order() -> Result<()> {
    let (world, operator) = provisioned().await?;
    operator.sigterm()?;
    operator.exited(PATIENCE).await?;
    world.setup.unbind(RECEIVE, ORDERS, &key_of(ORDERS)).await?;
    world.setup.unbind(PUSH, STREAM, "").await?;
    let vhost = world.setup.vhost();
    let orders = publish_orders(vhost, ORDERS, 1..101).await?;
    let pushes = publish_numbers(vhost, PUSH, "any", 1..101).await?;
    ensure!(orders.len() == 100 && pushes.len() == 100, "refused: {orders:?}, {pushes:?}");
    let (_connection, channel) = vhost.channel().await?;
    ensure!(depth(&channel, UNROUTED).await? == 200);
    ensure!(depth(&channel, ORDERS).await? == 0);

    let _operator = world.operator("two").start().await?;
    ensure!(read_numbers(vhost, ORDERS, 100).await? == orders);
    ensure!(read_numbers(vhost, STREAM, 100).await? == pushes);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_receive_exchange_or_queue_loses_nothing_that_was_confirmed_since() -> Result<()> {
    let (world, _operator) = provisioned().await?;
    let vhost = world.setup.vhost();
    for (object, kind) in [(RECEIVE, "exchanges"), (ORDERS, "queues")] {
        let witness = Witness::of(&world, "payments").await?;
        world.setup.call("DELETE", &[kind, &vhost.name, object], &Value::Null).await?;
        let sent = publish_orders(vhost, ORDERS, 1..201).await?;
        drifted_and_repaired(&world, &witness, object).await?;
        let more = publish_orders(vhost, ORDERS, 201..211).await?;
        ensure!(more.len() == 10, "refused after the repair of {object}: {more:?}");
        let sent = [sent, more].concat();
        all_there_in_two_rows(&sent, &read_numbers(vhost, ORDERS, sent.len()).await?).context(object)?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_push_exchange_stream_or_binding_loses_nothing_that_was_confirmed_since() -> Result<()> {
    let (world, _operator) = provisioned().await?;
    let vhost = world.setup.vhost();
    let binding = ["bindings", &vhost.name, "e", PUSH, "q", STREAM, "~"];
    let cases: [(&str, &[&str]); 3] =
        [(PUSH, &["exchanges", &vhost.name, PUSH]), (STREAM, &binding), (STREAM, &["queues", &vhost.name, STREAM])];
    let mut sent = Vec::new();
    for (round, (object, path)) in (1..).zip(cases) {
        if path[0] == "queues" {
            // What the stream had kept went with it.
            sent.clear();
        }
        let witness = Witness::of(&world, "payments").await?;
        world.setup.call("DELETE", path, &Value::Null).await?;
        sent.extend(publish_numbers(vhost, PUSH, "any", round * 1000..round * 1000 + 200).await?);
        drifted_and_repaired(&world, &witness, object).await?;
        let after = round * 1000 + 200..round * 1000 + 210;
        let more = publish_numbers(vhost, PUSH, "any", after).await?;
        ensure!(more.len() == 10, "refused after the repair of {object}: {more:?}");
        sent.extend(more);
        all_there_in_two_rows(&sent, &read_numbers(vhost, STREAM, sent.len()).await?).context(object)?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exchange_of_another_type_is_named_and_kept_until_someone_deletes_it() -> Result<()> {
    let (world, _operator) = provisioned().await?;
    let path = ["exchanges", &world.setup.vhost().name, RECEIVE];
    let witness = Witness::of(&world, "payments").await?;
    let theirs = json!({"type": "headers", "durable": true});
    // The operator may be faster.
    let replace = || async {
        world.setup.call("DELETE", &path, &Value::Null).await?;
        Ok(world.setup.call("PUT", &path, &theirs).await.is_ok())
    };
    eventually("the exchange is of another type", PATIENCE, replace).await?;
    for text in [RECEIVE, "durable headers", "durable topic"] {
        witness.sees("Provisioned", "NotAsDeclared", text).await?;
    }
    ensure!(world.setup.ask(&path).await?["type"] == "headers", "it was replaced");
    world.setup.call("DELETE", &path, &Value::Null).await?;
    world.condition("payments", "Provisioned", "True").await?;
    ensure!(world.setup.ask(&path).await?["type"] == "topic");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_with_other_arguments_is_named_and_keeps_its_messages() -> Result<()> {
    let world = World::new().await?;
    let vhost = world.setup.vhost();
    let path = ["queues", &vhost.name, ORDERS];
    world.setup.call("PUT", &path, &json!({"durable": true, "arguments": {"x-max-priority": 3}})).await?;
    let (_connection, channel) = vhost.channel().await?;
    publish(&channel, "", ORDERS, b"precious").await?;

    let _operator = world.operator("one").start().await?;
    world.apply(PAYMENTS).await?;
    let witness = Witness::of(&world, "payments").await?;
    for text in [ORDERS, "durable classic with x-max-priority=3", "durable quorum"] {
        witness.sees("Provisioned", "NotAsDeclared", text).await?;
    }
    ensure!(depth(&channel, ORDERS).await? == 1, "its message is gone");
    world.setup.call("DELETE", &path, &Value::Null).await?;
    world.condition("payments", "Provisioned", "True").await?;
    ensure!(world.setup.ask(&path).await?["type"] == "quorum");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_policy_that_wins_is_named_as_long_as_it_does() -> Result<()> {
    let (world, _operator) = provisioned().await?;
    let vhost = &world.setup.vhost().name;
    let witness = Witness::of(&world, "payments").await?;
    // One that wins, one that limits what we set, and two that set what we leave alone.
    for (kind, apply_to, key) in [
        ("policies", "queues", "max-length"),
        ("operator-policies", "queues", "max-length"),
        ("operator-policies", "queues", "message-ttl"),
        ("operator-policies", "all", "expires"),
    ] {
        let path = [kind, vhost, "platform-limits"];
        // Longer than any test, shorter than forever.
        let value = if key == "max-length" { 5 } else { 100_000_000 };
        let policy = json!({"pattern": ".*", "apply-to": apply_to, "priority": 900, "definition": {key: value}});
        world.setup.call("PUT", &path, &policy).await?;
        witness.sees("Provisioned", "NotAsDeclared", "platform-limits").await.context(key)?;
        ensure!(world.setup.ask(&path).await?["priority"] == 900, "it was touched");
        world.setup.call("DELETE", &path, &Value::Null).await?;
        world.condition("payments", "Provisioned", "True").await.context(kind)?;
        witness.take();
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_of_the_team_that_goes_is_named_and_its_messages_wait_for_it_in_order() -> Result<()> {
    let world = World::new().await?;
    let vhost = world.setup.vhost();
    let path = ["queues", &vhost.name, "team.orders"];
    let quorum = json!({"durable": true, "arguments": {"x-queue-type": "quorum", "x-wirepost-accept": "payments"}});
    world.setup.call("PUT", &path, &quorum).await?;
    let operator = world.operator("one").start().await?;
    world.apply(&PAYMENTS.replace("{name: orders}", "{name: team.orders, existing: true}")).await?;
    world.condition("payments", "Provisioned", "True").await?;

    world.setup.call("DELETE", &path, &Value::Null).await?;
    let sent = publish_orders(vhost, "team.orders", 1..101).await?;
    ensure!(sent.len() == 100, "a client was refused: {sent:?}");
    world.reason("payments", "Accepted", "QueueNotFound").await?;
    // It must not try to move them while they have no place: the first would be the last.
    operator.looks(8).await?;
    world.setup.call("PUT", &path, &quorum).await?;
    world.condition("payments", "Provisioned", "True").await?;
    ensure!(read_numbers(vhost, "team.orders", 100).await? == sent);
    Ok(())
}
