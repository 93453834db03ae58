//! `apply` on a real RabbitMQ: what it makes, repairs, keeps, reports and leaves alone.

#![allow(clippy::unwrap_used)] // a panic fails the test, also in a helper

use lapin::options::{QueueBindOptions, QueueDeclareOptions, QueuePurgeOptions};
use lapin::types::FieldTable;
use serde_json::json;
use wirepost_core::topology::Topology;
use wirepost_rabbitmq::{Credentials, ManagementClient, ManagementError, ManagementSettings};
use wirepost_testing::broker::{Vhost, depth, publish, publish_for};
use wirepost_topology::{Actual, Error, KeepReason, Options, Problem, Scope, UnknownDepth, apply, merge, plan};

use crate::support::{apply_all, business, management, problems, route};

#[tokio::test]
async fn a_business_is_created_and_a_second_run_finds_nothing_to_do() {
    let vhost = Vhost::create().await.unwrap();
    let topology = business("pay", &json!([route("order.*", "orders"), route("bill.#", "bills")]));
    let made = apply_all(&vhost, &topology).await;
    assert_eq!(problems(&made), Vec::<String>::new());
    let again = apply_all(&vhost, &topology).await;
    assert_eq!((again.changes, again.problems), (vec![], vec![]));
    let (_connection, channel) = vhost.channel().await.unwrap();
    publish_for(&channel, "wirepost.pay.receive", "order.new", "wirepost.pay.q.orders", b"1").await.unwrap();
    assert_eq!(depth(&channel, "wirepost.pay.q.orders").await.unwrap(), 1);
    // A key that no route has: kept, not lost.
    publish(&channel, "wirepost.pay.receive", "strange", b"2").await.unwrap();
    assert_eq!(depth(&channel, "wirepost.pay.unrouted").await.unwrap(), 1);
}

/// Left by an older operator, whose bindings were the routes' patterns, or made by hand.
#[tokio::test]
async fn bindings_by_keys_of_every_kind_are_unbound() {
    let vhost = Vhost::create().await.unwrap();
    let keys = ["a.%2F.b", "a/b", "~", "*.#", "🚚.ü", "a~b", "&=?", "{x}"];
    let topology = business("odd", &json!([route("one", "all")]));
    assert_eq!(problems(&apply_all(&vhost, &topology).await), Vec::<String>::new());
    let (_connection, channel) = vhost.channel().await.unwrap();
    for key in keys {
        let (queue, receive) = ("wirepost.odd.q.all".into(), "wirepost.odd.receive".into());
        channel
            .queue_bind(queue, receive, key.into(), QueueBindOptions::default(), FieldTable::default())
            .await
            .unwrap();
    }
    let changed = apply_all(&vhost, &topology).await;
    assert_eq!((changed.changes.len(), problems(&changed)), (keys.len(), vec![]));
    assert_eq!(plan(&topology, &Actual::read(&management(&vhost)).await.unwrap(), Scope::Everything).steps, []);
}

#[tokio::test]
async fn what_is_deleted_or_changed_by_hand_is_repaired() {
    let vhost = Vhost::create().await.unwrap();
    let topology = business("pay", &json!([route("order.*", "orders")]));
    apply_all(&vhost, &topology).await;
    let v = &vhost.name;
    for path in [
        "bindings/V/e/wirepost.pay.push/q/wirepost.pay.stream/~",
        "queues/V/wirepost.pay.q.orders",
        "exchanges/V/wirepost.pay.receive",
        "policies/V/wirepost.keepers",
        "policies/V/wirepost.pay.stream",
    ] {
        vhost.broker.call("DELETE", &format!("/api/{}", path.replace("/V/", &format!("/{v}/"))), "").await.unwrap();
    }
    let policy = r#"{"pattern":".*","definition":{"max-length":1},"apply-to":"all"}"#;
    vhost.broker.call("PUT", &format!("/api/policies/{v}/wirepost.queues"), policy).await.unwrap();
    let repaired = apply_all(&vhost, &topology).await;
    assert_eq!(
        repaired.changes,
        [
            "set policy wirepost.pay.stream",
            "set policy wirepost.keepers",
            "set policy wirepost.queues",
            "create queue wirepost.pay.q.orders",
            "bind queue wirepost.pay.q.orders to exchange wirepost.pay.replay with 'wirepost.pay.q.orders'",
            "create exchange wirepost.pay.receive",
            "bind queue wirepost.pay.stream to exchange wirepost.pay.push with ''",
            "bind queue wirepost.pay.q.orders to exchange wirepost.pay.receive with 'queue wirepost.pay.q.orders'",
        ]
    );
    assert_eq!(problems(&repaired), Vec::<String>::new());
}

#[tokio::test]
async fn a_wrong_type_is_reported_and_neither_accepted_nor_replaced() {
    let vhost = Vhost::create().await.unwrap();
    let (_connection, channel) = vhost.channel().await.unwrap();
    channel
        .queue_declare("wirepost.pay.q.orders".into(), QueueDeclareOptions::durable(), FieldTable::default())
        .await
        .unwrap();
    publish(&channel, "", "wirepost.pay.q.orders", b"precious").await.unwrap();
    let topology = business("pay", &json!([route("order.*", "orders")]));
    for _ in 0..2 {
        let report = apply_all(&vhost, &topology).await;
        assert!(
            problems(&report)[0]
                .starts_with("queue wirepost.pay.q.orders is durable classic and should be durable quorum"),
            "{:?}",
            problems(&report)
        );
    }
    assert_eq!(depth(&channel, "wirepost.pay.q.orders").await.unwrap(), 1);
    // The rest works nevertheless, also into that queue.
    publish_for(&channel, "wirepost.pay.receive", "order.new", "wirepost.pay.q.orders", b"2").await.unwrap();
    assert_eq!(depth(&channel, "wirepost.pay.q.orders").await.unwrap(), 2);
}

#[tokio::test]
async fn an_undeclared_queue_with_messages_is_unbound_and_deleted_once_it_is_empty() {
    let vhost = Vhost::create().await.unwrap();
    let mut orders = route("order.*", "orders");
    orders["queue"]["maxLength"] = json!(100);
    apply_all(&vhost, &business("pay", &json!([orders, route("bill", "bills")]))).await;
    let (_connection, channel) = vhost.channel().await.unwrap();
    publish_for(&channel, "wirepost.pay.receive", "order.new", "wirepost.pay.q.orders", b"1").await.unwrap();
    let fewer = business("pay", &json!([route("bill", "bills")]));
    let kept = apply_all(&vhost, &fewer).await;
    assert_eq!(
        problems(&kept),
        ["queue wirepost.pay.q.orders is no longer declared but holds 1 messages; consume or purge them, and it goes"]
    );
    assert_eq!(
        kept.changes,
        [
            "unbind wirepost.pay.q.orders from exchange wirepost.pay.receive with 'queue wirepost.pay.q.orders'",
            "unbind wirepost.pay.q.orders from exchange wirepost.pay.replay with 'wirepost.pay.q.orders'",
        ]
    );
    publish_for(&channel, "wirepost.pay.receive", "order.new", "wirepost.pay.q.orders", b"2").await.unwrap();
    assert_eq!(depth(&channel, "wirepost.pay.q.orders").await.unwrap(), 1);
    // Its limits and its dead letters stay with it: the policy goes with the queue.
    channel.queue_purge("wirepost.pay.q.orders".into(), QueuePurgeOptions::default()).await.unwrap();
    let gone = apply_all(&vhost, &fewer).await;
    assert_eq!(gone.changes, ["delete queue wirepost.pay.q.orders", "delete policy wirepost.pay.q.orders"]);
    assert_eq!(problems(&gone), Vec::<String>::new());
}

#[tokio::test]
async fn a_removed_business_loses_its_empty_objects_and_others_are_not_touched() {
    let vhost = Vhost::create().await.unwrap();
    let (pay, payments) = (business("pay", &json!([route("a", "q")])), business("payments", &json!([route("a", "q")])));
    apply_all(&vhost, &merge([&pay, &payments])).await;
    let (connection, channel) = vhost.channel().await.unwrap();
    channel.queue_declare("theirs".into(), QueueDeclareOptions::durable(), FieldTable::default()).await.unwrap();
    let events = "wirepost.payments.events";
    channel
        .queue_bind("theirs".into(), events.into(), "#".into(), QueueBindOptions::default(), FieldTable::default())
        .await
        .unwrap();
    publish(&channel, "wirepost.pay.push", "", b"{}").await.unwrap();
    let scope = Scope::Business("pay");
    let management = management(&vhost);
    // Asked right after the confirm, when the broker's own numbers still say that the stream is empty.
    let options = Options { scope, amqp: Some(&connection), delete_messages: false };
    let report = apply(&management, &Topology::default(), options).await.unwrap();
    assert!(
        matches!(&report.problems[..], [Problem::Kept { queue, .. }] if queue == "wirepost.pay.stream"),
        "{report:?}"
    );
    let options = Options { scope, amqp: Some(&connection), delete_messages: true };
    let report = apply(&management, &Topology::default(), options).await.unwrap();
    assert_eq!(problems(&report), Vec::<String>::new());
    let left = Actual::read(&management).await.unwrap();
    assert!(!left.exchanges.iter().any(|e| e.name.starts_with("wirepost.pay.")), "{left:?}");
    assert!(!left.queues.iter().any(|q| q.name.starts_with("wirepost.pay.")), "{left:?}");
    assert!(!left.policies.iter().any(|p| p.name.starts_with("wirepost.pay.")), "{left:?}");
    assert!(left.bindings.iter().any(|b| b.source == events && b.destination == "theirs"));
    let rest = apply_all(&vhost, &payments).await;
    assert_eq!((rest.changes, rest.problems), (vec![], vec![]));
}

#[tokio::test]
async fn without_amqp_a_queue_is_never_deleted() {
    let vhost = Vhost::create().await.unwrap();
    apply_all(&vhost, &business("pay", &json!([route("a", "q")]))).await;
    let options = Options { scope: Scope::Everything, amqp: None, delete_messages: false };
    let report = apply(&management(&vhost), &Topology::default(), options).await.unwrap();
    assert!(problems(&report).iter().any(|p| p.contains("there is no AMQP connection")), "{report:?}");
    assert!(!report.changes.iter().any(|change| change.starts_with("delete queue")), "{report:?}");
    let left = Actual::read(&management(&vhost)).await.unwrap();
    assert!(left.queues.iter().any(|q| q.name == "wirepost.pay.q.q"));
}

#[tokio::test]
async fn a_queue_that_cannot_be_counted_stays_and_delays_nothing_else() {
    let vhost = Vhost::create().await.unwrap();
    apply_all(&vhost, &business("pay", &json!([route("order.*", "orders")]))).await;
    let connection = vhost.connect().await.unwrap();
    connection.close(200, "lost".into()).await.unwrap();
    let options = Options { scope: Scope::Everything, amqp: Some(&connection), delete_messages: false };
    let moved = business("pay", &json!([route("order.*", "moved")]));
    let report = apply(&management(&vhost), &moved, options).await.unwrap();
    let because = KeepReason::Unknown(UnknownDepth::NoAnswer);
    assert_eq!(report.problems, [Problem::Kept { queue: "wirepost.pay.q.orders".to_owned(), because }]);
    assert!(report.changes.iter().any(|change| change.contains("wirepost.pay.q.moved")), "{:?}", report.changes);
}

#[tokio::test]
async fn a_foreign_policy_that_wins_is_reported() {
    let vhost = Vhost::create().await.unwrap();
    let topology = business("pay", &json!([route("a", "q")]));
    apply_all(&vhost, &topology).await;
    let path = format!("/api/policies/{}/platform-default", vhost.name);
    let policy = r#"{"pattern":"q$","definition":{"max-length":1},"apply-to":"queues","priority":1000}"#;
    vhost.broker.call("PUT", &path, policy).await.unwrap();
    let report = apply_all(&vhost, &topology).await;
    assert_eq!(
        problems(&report),
        ["policy platform-default is in force on wirepost.pay.q.q instead of wirepost.queues; \
          lower its priority or narrow its pattern"]
    );
    vhost.broker.call("DELETE", &path, "").await.unwrap();
    assert!(apply_all(&vhost, &topology).await.is_clean());
}

#[tokio::test]
async fn an_operator_policy_that_lowers_a_limit_is_reported() {
    let vhost = Vhost::create().await.unwrap();
    let topology = business("pay", &json!([route("a", "q")]));
    let path = format!("/api/operator-policies/{}/cap", vhost.name);
    let policy = r#"{"pattern":"q$","definition":{"max-length":7},"apply-to":"queues","priority":1}"#;
    vhost.broker.call("PUT", &path, policy).await.unwrap();
    let report = apply_all(&vhost, &topology).await;
    let overview = vhost.broker.call("GET", "/api/overview?columns=rabbitmq_version", "").await.unwrap();
    let expected = if overview.contains("\"4.0.") {
        vec![] // that version does not tell what is in force
    } else {
        vec!["operator policy cap changes max-length on wirepost.pay.q.q; widen it, or declare what it allows"]
    };
    assert_eq!(problems(&report), expected);
}

#[tokio::test]
async fn a_refused_user_a_missing_vhost_and_an_unreachable_broker_are_told_apart() {
    let vhost = Vhost::create().await.unwrap();
    let host = vhost.broker.management.rsplit_once('@').unwrap().1.to_owned();
    let try_with = async |url: String, name: &str| {
        let settings = ManagementSettings {
            url,
            vhost: name.to_owned(),
            credentials: None,
            tls: wirepost_rabbitmq::TlsFiles::default(),
            timeout: None,
        };
        let options = Options { scope: Scope::Everything, amqp: None, delete_messages: false };
        apply(&ManagementClient::new(settings).unwrap(), &Topology::default(), options).await.unwrap_err()
    };
    let wrong = try_with(format!("http://guest:wr0ng@{host}"), &vhost.name).await;
    assert!(
        matches!(wrong, Error::Management(ManagementError::Refused { .. })) && !wrong.to_string().contains("wr0ng"),
        "{wrong}"
    );
    let missing = try_with(format!("http://guest:guest@{host}"), "no/such").await;
    assert!(!missing.is_retryable() && missing.to_string().contains("rabbitmqctl add_vhost no/such"), "{missing}");
    // A port that is taken and then let go: nothing listens there.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let away = try_with(format!("http://guest:guest@127.0.0.1:{port}"), &vhost.name).await;
    assert!(away.is_retryable() && away.to_string().contains("refused"), "{away}");
}

#[tokio::test]
async fn credentials_in_files_are_read_again_for_every_call() {
    let vhost = Vhost::create().await.unwrap();
    let folder = std::env::temp_dir().join(format!("wirepost-{}", vhost.name));
    std::fs::create_dir_all(&folder).unwrap();
    let (user, password) = (folder.join("user"), folder.join("password"));
    std::fs::write(&user, "guest\n").unwrap();
    std::fs::write(&password, "old\n").unwrap();
    let settings = ManagementSettings {
        url: format!("http://{}", vhost.broker.management.rsplit_once('@').unwrap().1),
        vhost: vhost.name.clone(),
        credentials: Some(Credentials::from_files(user, password.clone())),
        tls: wirepost_rabbitmq::TlsFiles::default(),
        timeout: None,
    };
    let management = ManagementClient::new(settings).unwrap();
    Actual::read(&management).await.unwrap_err();
    std::fs::write(&password, "guest\n").unwrap();
    Actual::read(&management).await.unwrap();
    std::fs::remove_file(&password).unwrap();
    assert!(Actual::read(&management).await.unwrap_err().is_retryable());
    std::fs::remove_dir_all(&folder).unwrap();
}
