//! Users of businesses on a real RabbitMQ: made, repaired, removed, and what they may and may not do (case 19).
//!
//! Users are global on a broker, so each test's business is called as its vhost.

#![allow(clippy::unwrap_used)] // a panic fails the test, also in a helper

use lapin::options::{
    BasicGetOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::FieldTable;
use lapin::{Channel, Connection, ConnectionProperties, ExchangeKind};
use serde_json::json;
use wirepost_testing::broker::{PATIENCE, Vhost, consume, eventually, key_of, next_body, publish};
use wirepost_topology::{
    ApplyOptions, DesiredUser, KeepReason, Looks, Problem, Snapshot, UserLimits, business_user, user_tag,
};

use crate::support::{business, management, problems, round, route};

const PASSWORD: &str = "a-very/s3cret+password";

fn user(vhost: &Vhost) -> DesiredUser {
    business_user(&vhost.name, &vhost.name, "0a1b2c3d", PASSWORD)
}

async fn connect_as(vhost: &Vhost, user: &str, password: &str) -> lapin::Result<Connection> {
    let host =
        vhost.broker.amqp.rsplit_once('@').map_or_else(|| vhost.broker.amqp.clone(), |(_, host)| host.to_owned());
    let password = password.replace('/', "%2F").replace('+', "%2B");
    let uri = format!("amqp://{user}:{password}@{host}/{}", vhost.name);
    Connection::connect(&uri, ConnectionProperties::default()).await
}

#[tokio::test]
async fn a_user_is_created_changed_by_hand_repaired_rotated_and_removed() {
    let vhost = Vhost::create().await.unwrap();
    let (name, management) = (vhost.name.as_str(), management(&vhost));
    let (topology, user) = (business(name, &json!([route("a", "q")])), user(&vhost));
    let apply = async |users: &[DesiredUser]| {
        let report = round(&management, name, &topology, users, ApplyOptions::default()).await;
        assert_eq!(problems(&report), [""; 0]);
        report.changes
    };
    let made = apply(std::slice::from_ref(&user)).await;
    let (set_user, set_permissions) =
        (format!("set user {}", user.name), format!("set permissions of user {}", user.name));
    assert!(made.ends_with(&[set_user.clone(), set_permissions.clone()]), "{made:?}");
    assert_eq!(apply(std::slice::from_ref(&user)).await, [""; 0]);
    connect_as(&vhost, &user.name, PASSWORD).await.unwrap();
    assert!(connect_as(&vhost, &user.name, "wrong").await.is_err());

    let put = async |path: String, body: String| vhost.broker.call("PUT", &path, &body).await.unwrap();
    let (users, tag) = (format!("/api/users/{}", user.name), user_tag(name));
    put(users.clone(), format!(r#"{{"password":"guessed","tags":"{tag}"}}"#)).await;
    assert_eq!(apply(std::slice::from_ref(&user)).await, [&*set_user]);
    connect_as(&vhost, &user.name, PASSWORD).await.unwrap();
    // As a broker that hashes otherwise would have it.
    put(users.clone(), format!(r#"{{"password":"{PASSWORD}","tags":"{tag},monitoring"}}"#)).await;
    assert_eq!(apply(std::slice::from_ref(&user)).await, [&*set_user]);
    let permissions = format!("/api/permissions/{name}/{}", user.name);
    put(permissions.clone(), r#"{"configure":".*","write":".*","read":".*"}"#.to_owned()).await;
    assert_eq!(apply(std::slice::from_ref(&user)).await, [&*set_permissions]);
    vhost.broker.call("DELETE", &permissions, "").await.unwrap();
    assert_eq!(apply(std::slice::from_ref(&user)).await, [&*set_permissions]);
    vhost.broker.call("DELETE", &users, "").await.unwrap();
    assert_eq!(apply(std::slice::from_ref(&user)).await, [set_user, set_permissions]);

    let next = business_user(name, name, "4e5f6a7b", "another");
    assert_eq!(apply(&[user.clone(), next.clone()]).await.len(), 2);
    assert_eq!(apply(std::slice::from_ref(&next)).await, [format!("delete user {}", user.name)]);
    assert!(connect_as(&vhost, &user.name, PASSWORD).await.is_err());
    apply(&[]).await;
    assert!(connect_as(&vhost, &next.name, "another").await.is_err());
}

#[tokio::test]
async fn a_user_has_no_more_connections_than_it_may() {
    let vhost = Vhost::create().await.unwrap();
    let (name, management) = (vhost.name.as_str(), management(&vhost));
    let topology = business(name, &json!([route("a", "q")]));
    let apply = async |connections, channels| {
        let users = [user(&vhost).with_limits(UserLimits { connections, channels })];
        round(&management, name, &topology, &users, ApplyOptions::default()).await.changes
    };
    let set = [format!("set limits of user {}", user(&vhost).name)];
    assert!(apply(Some(2), Some(9)).await.ends_with(&set));
    assert_eq!(apply(Some(2), Some(9)).await, [""; 0]);
    let path = format!("/api/user-limits/{}/max-connections", user(&vhost).name);
    vhost.broker.call("PUT", &path, r#"{"value":77}"#).await.unwrap();
    assert_eq!(apply(Some(2), Some(9)).await, set, "changed by hand");
    let connect = || async { connect_as(&vhost, &user(&vhost).name, PASSWORD).await };
    let open = [connect().await.unwrap(), connect().await.unwrap()];
    eventually("a third one is refused", PATIENCE, || async { Ok(connect().await.is_err()) }).await.unwrap();
    assert_eq!(apply(None, Some(9)).await, set);
    connect().await.unwrap();
    drop(open);
}

#[tokio::test]
async fn a_foreign_user_or_one_of_another_wirepost_is_not_touched() {
    let vhost = Vhost::create().await.unwrap();
    let (name, management) = (vhost.name.as_str(), management(&vhost));
    let (topology, user) = (business(name, &json!([route("a", "q")])), user(&vhost));
    let path = format!("/api/users/{}", user.name);
    for tags in [user_tag("another vhost"), "administrator".to_owned(), String::new()] {
        let body = format!(r#"{{"password":"theirs","tags":"{tags}"}}"#);
        vhost.broker.call("PUT", &path, &body).await.unwrap();
        let before = vhost.broker.call("GET", &path, "").await.unwrap();
        let report = round(&management, name, &topology, std::slice::from_ref(&user), ApplyOptions::default()).await;
        assert!(matches!(&report.problems[..], [Problem::UserTaken { .. }]), "{report:?}");
        let removed = Snapshot::read(&management).await.unwrap().plan(name, &topology, Some(&[]));
        assert!(removed.is_empty(), "{removed:?}");
        assert_eq!(vhost.broker.call("GET", &path, "").await.unwrap(), before);
    }
    vhost.broker.call("DELETE", &path, "").await.unwrap();
}

#[tokio::test]
async fn the_last_user_stays_while_its_queue_contains_messages() {
    let vhost = Vhost::create().await.unwrap();
    let (name, management) = (vhost.name.as_str(), management(&vhost));
    let (topology, user) = (business(name, &json!([route("a", "q")])), user(&vhost));
    round(&management, name, &topology, std::slice::from_ref(&user), ApplyOptions::default()).await;
    let (connection, channel) = vhost.channel().await.unwrap();
    publish(&channel, &format!("wirepost.{name}.receive"), &key_of(&format!("wirepost.{name}.q.q")), b"1")
        .await
        .unwrap();
    let looks = Looks::default();
    let options =
        ApplyOptions { amqp: Some(&connection), looks: Some(&looks), delete_streams: true, ..ApplyOptions::default() };
    let nothing = wirepost_core::topology::Topology::default();
    let report = round(&management, name, &nothing, &[], options).await;
    let full = |problem: &Problem| matches!(problem, Problem::Kept { because: KeepReason::Messages(1), .. });
    assert!(report.problems.iter().any(full), "{report:?}");
    let theirs = connect_as(&vhost, &user.name, PASSWORD).await.unwrap();
    let queue = format!("wirepost.{name}.q.q");
    let consumer = theirs.create_channel().await.unwrap();
    assert_eq!(next_body(&mut consume(&consumer, &queue, 1).await.unwrap()).await.unwrap(), b"1");
    consumer.close(200, "done".into()).await.unwrap();
    // The broker takes a moment to hear that the message is acknowledged and the consumer gone.
    eventually("the last user goes with the queue", PATIENCE, async || {
        let report = round(&management, name, &nothing, &[], options).await;
        Ok(report.is_clean() && report.changes.last() == Some(&format!("delete user {}", user.name)))
    })
    .await
    .unwrap();
    assert_eq!(Snapshot::read(&management).await.unwrap().businesses().next(), None);
}

/// Each try has a channel of its own: a refusal closes it.
async fn refused<T>(connection: &Connection, what: &str, try_it: impl AsyncFnOnce(Channel) -> lapin::Result<T>) {
    let channel = connection.create_channel().await.unwrap();
    channel.confirm_select(lapin::options::ConfirmSelectOptions::default()).await.unwrap();
    let error = try_it(channel).await.err().unwrap_or_else(|| panic!("{what} was allowed")).to_string();
    assert!(error.contains("ACCESS_REFUSED") || error.contains("ACCESS-REFUSED"), "{what}: {error}");
}

async fn publish_to(channel: Channel, exchange: &str, key: &str) -> lapin::Result<()> {
    let options = lapin::options::BasicPublishOptions::default();
    let properties = lapin::BasicProperties::default();
    channel.basic_publish(exchange.into(), key.into(), options, b"{}", properties).await?.await?;
    // A refusal arrives as the end of the channel, maybe after the confirm was given up.
    channel.close(200, "done".into()).await
}

#[tokio::test]
async fn a_user_reaches_the_objects_of_its_own_business_only() {
    let vhost = Vhost::create().await.unwrap();
    let (mine, management) = (vhost.name.as_str(), management(&vhost));
    // One that begins alike, and one that differs where an unescaped dot would not care.
    let others = [format!("{mine}ments"), format!("{mine}-q-orders")];
    let routes = json!([route("order.*", "orders")]);
    for name in others.iter().map(String::as_str).chain([mine]) {
        let users = if name == mine { vec![user(&vhost)] } else { vec![] };
        let report = round(&management, name, &business(name, &routes), &users, ApplyOptions::default()).await;
        assert_eq!(problems(&report), [""; 0]);
    }
    let connection = connect_as(&vhost, &user(&vhost).name, PASSWORD).await.unwrap();
    let table = FieldTable::default;

    // Its own work: pushes, queues, dead letters, events.
    let channel = connection.create_channel().await.unwrap();
    channel.confirm_select(lapin::options::ConfirmSelectOptions::default()).await.unwrap();
    publish(&channel, &format!("wirepost.{mine}.push"), "", b"{}").await.unwrap();
    let (_admin, edge) = vhost.channel().await.unwrap();
    publish(&edge, &format!("wirepost.{mine}.receive"), &key_of(&format!("wirepost.{mine}.q.orders")), b"1")
        .await
        .unwrap();
    let mut orders = consume(&channel, &format!("wirepost.{mine}.q.orders"), 1).await.unwrap();
    assert_eq!(next_body(&mut orders).await.unwrap(), b"1");
    consume(&channel, &format!("wirepost.{mine}.dead"), 1).await.unwrap();
    // A dead letter goes back into its queue, and into no other one of the vhost.
    let replay = format!("wirepost.{mine}.replay");
    publish(&channel, &replay, &format!("wirepost.{mine}.q.orders"), b"again").await.unwrap();
    assert_eq!(next_body(&mut orders).await.unwrap(), b"again");
    for queue in [format!("wirepost.{}.q.orders", others[0]), format!("wirepost.{mine}.dead"), "theirs".to_owned()] {
        let error = publish(&channel, &replay, &queue, b"x").await.unwrap_err().to_string();
        assert!(error.contains("NO_ROUTE") || error.contains("312"), "{queue}: {error}");
    }
    let (events, audit) = (format!("wirepost.{mine}.events"), format!("wirepost.{mine}.events.audit"));
    channel.queue_declare(audit.as_str().into(), QueueDeclareOptions::durable(), table()).await.unwrap();
    channel
        .queue_bind(audit.as_str().into(), events.as_str().into(), "#".into(), QueueBindOptions::default(), table())
        .await
        .unwrap();
    publish(&edge, &events, "connected", b"hello").await.unwrap();
    assert_eq!(next_body(&mut consume(&channel, &audit, 1).await.unwrap()).await.unwrap(), b"hello");
    // The operator leaves that queue and its binding alone.
    let users = [user(&vhost)];
    let plan = Snapshot::read(&management).await.unwrap().plan(mine, &business(mine, &routes), Some(&users));
    assert!(plan.is_empty(), "{plan:?}");

    for other in &others {
        let name = |rest: &str| format!("wirepost.{other}.{rest}");
        for exchange in ["push", "receive", "events", "dlx", "unrouted", "replay"].map(name) {
            refused(&connection, &exchange, async |c| publish_to(c, &exchange, "order.new").await).await;
        }
        for queue in ["q.orders", "dead", "unrouted", "stream"].map(name) {
            refused(&connection, &queue, async |c| {
                c.basic_get(queue.as_str().into(), BasicGetOptions::default()).await
            })
            .await;
        }
        refused(&connection, "binding to another's events", async |c| {
            let events = name("events");
            c.queue_bind(audit.as_str().into(), events.into(), "#".into(), QueueBindOptions::default(), table()).await
        })
        .await;
        for queue in ["events.mine", "q.mine"].map(name) {
            refused(&connection, &queue, async |c| {
                c.queue_declare(queue.as_str().into(), QueueDeclareOptions::durable(), table()).await
            })
            .await;
        }
    }
    // What is the edges' or the operator's of its own, and what is nobody's.
    let name = |rest: &str| format!("wirepost.{mine}.{rest}");
    for exchange in [name("receive"), name("events"), name("unrouted"), String::new(), "amq.topic".to_owned()] {
        refused(&connection, &exchange, async |c| publish_to(c, &exchange, "order.new").await).await;
    }
    for queue in ["unrouted", "stream"].map(name) {
        refused(&connection, &queue, async |c| c.basic_get(queue.as_str().into(), BasicGetOptions::default()).await)
            .await;
    }
    refused(&connection, "deleting a queue", async |c| {
        c.queue_delete(name("q.orders").into(), QueueDeleteOptions::default()).await
    })
    .await;
    refused(&connection, "declaring a queue of a route", async |c| {
        c.queue_declare(name("q.more").into(), QueueDeclareOptions::durable(), table()).await
    })
    .await;
    refused(&connection, "declaring an exchange", async |c| {
        let options = ExchangeDeclareOptions::default();
        c.exchange_declare(name("push2").into(), ExchangeKind::Fanout, options, table()).await
    })
    .await;
    refused(&connection, "binding a queue of its own to replay", async |c| {
        let replay = name("replay");
        c.queue_bind(audit.as_str().into(), replay.into(), "#".into(), QueueBindOptions::default(), table()).await
    })
    .await;
    // Sideways into its own stream, past what the edges check? Only `push` leads there.
    refused(&connection, "binding a queue of a route to push", async |c| {
        let (queue, push) = (name("q.orders"), name("push"));
        c.queue_bind(queue.into(), push.into(), "".into(), QueueBindOptions::default(), table()).await
    })
    .await;
    assert!(round(&management, mine, &business(mine, &routes), &[], ApplyOptions::default()).await.is_clean());
}
