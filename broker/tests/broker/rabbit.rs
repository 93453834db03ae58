//! The edge's RabbitMQ side on a healthy broker that others use too: each test has its own vhost.

use std::{collections::HashMap, fs, time::Duration};

use anyhow::{Context, Result};
use bytes::Bytes;
use lapin::{
    options::{QueueDeleteOptions, QueuePurgeOptions},
    types::ShortString,
};
use tokio::time::timeout;
use wirepost_broker::{Broker, Feed, FeedEvent, Health, Position, PublishError, Start};
use wirepost_core::edge_config::Delivery;
use wirepost_runtime::tasks::Supervisor;
use wirepost_testing::broker as services;
use wirepost_testing::broker::{PATIENCE, Vhost, eventually};

use crate::support::*;

fn refused(outcome: &Result<(), PublishError>) -> bool {
    matches!(outcome, Err(PublishError::Refused(_) | PublishError::Unrouted(_)))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_confirmed_message_is_in_the_queue_with_its_properties() -> Result<()> {
    let vhost = Vhost::create().await?;
    let (_connection, channel) = vhost.channel().await?;
    declare(&channel).await?;
    let broker = start(config(&vhost.broker, &vhost.name)).await?;
    publish(&broker, 1, message(RECEIVE, "qr.refresh", "hello")).await??;
    let mut consumer = services::consume(&channel, QUEUE, 1).await?;
    let delivery = services::next(&mut consumer).await?;
    assert_eq!(delivery.data, b"hello");
    assert_eq!(delivery.routing_key.as_str(), "qr.refresh");
    let properties = &delivery.properties;
    assert_eq!(*properties.delivery_mode(), Some(2));
    assert_eq!(properties.message_id().as_ref().map(ShortString::as_str), Some("id-hello"));
    assert_eq!(properties.content_type().as_ref().map(ShortString::as_str), Some("application/json"));
    assert_eq!(*properties.timestamp(), Some(1_700_000_000));
    assert!(properties.kind().is_none(), "`type` can make the broker drop the connection");
    let headers = properties.headers().as_ref().context("no headers")?;
    assert_eq!(headers.inner()["message-type"].as_long_string().map(ToString::to_string), Some("qr.refresh".into()));
    broker.close().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_exchange_fails_only_its_own_publish() -> Result<()> {
    let vhost = Vhost::create().await?;
    let (_connection, channel) = vhost.channel().await?;
    declare(&channel).await?;
    let mut one_lane = config(&vhost.broker, &vhost.name);
    one_lane.connections = 1;
    let broker = start(one_lane).await?;
    // A few at a time: each failure costs the lane its channel, and all of them have two seconds for an answer.
    for first in (0..30).step_by(6) {
        let publish = |number: u64| {
            let exchange = if number % 3 == 1 { "wirepost.gone.receive" } else { RECEIVE };
            (number, broker.publish(number % 5, message(exchange, "a", &number.to_string())))
        };
        let confirms: Vec<_> = (first..first + 6).map(publish).collect();
        for (number, confirm) in confirms {
            let outcome = timeout(PATIENCE, confirm).await??;
            assert_eq!(refused(&outcome), number % 3 == 1, "{number}: {outcome:?}");
            assert_eq!(outcome.is_ok(), number % 3 != 1, "{number}: {outcome:?}");
        }
    }
    assert_eq!(services::depth(&channel, QUEUE).await?, 20);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unroutable_message_is_refused_until_a_queue_is_bound() -> Result<()> {
    let vhost = Vhost::create().await?;
    let (_connection, channel) = vhost.channel().await?;
    declare(&channel).await?;
    let broker = start(config(&vhost.broker, &vhost.name)).await?;
    assert!(refused(&publish(&broker, 1, message("", "later", "a")).await?));
    declare_queue(&channel, "later", "quorum").await?;
    publish(&broker, 1, message("", "later", "a")).await??;
    let too_long = "k".repeat(256);
    assert!(refused(&publish(&broker, 1, message(RECEIVE, &too_long, "a")).await?));
    Ok(())
}

/// Publishes `per_key` messages of each of `keys` at once, numbered from `from`; bodies are `key:number`. Returns the confirmed ones.
async fn burst(broker: &impl Broker, keys: u64, from: u64, per_key: u64) -> Result<Vec<(u64, u64)>> {
    let mut confirms = Vec::new();
    for number in from..from + per_key {
        for key in 0..keys {
            confirms.push((key, number, broker.publish(key, message(RECEIVE, "a", &format!("{key}:{number}")))));
        }
    }
    let mut confirmed = Vec::new();
    for (key, number, confirm) in confirms {
        if timeout(PATIENCE, confirm).await??.is_ok() {
            confirmed.push((key, number));
        }
    }
    Ok(confirmed)
}

/// Takes what is in the queue; the numbers of each key in the order of their first arrival.
async fn arrived(vhost: &Vhost) -> Result<HashMap<u64, Vec<u64>>> {
    let (_connection, channel) = vhost.channel().await?;
    let depth = services::depth(&channel, QUEUE).await?;
    let mut consumer = services::consume(&channel, QUEUE, 500).await?;
    let mut arrived: HashMap<u64, Vec<u64>> = HashMap::new();
    for _ in 0..depth {
        let body = String::from_utf8(services::next_body(&mut consumer).await?)?;
        let (key, number) = body.split_once(':').context("no colon")?;
        let numbers = arrived.entry(key.parse()?).or_default();
        let number = number.parse()?;
        if !numbers.contains(&number) {
            numbers.push(number);
        }
    }
    Ok(arrived)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_order_of_each_key_is_kept_across_lost_connections() -> Result<()> {
    let vhost = Vhost::create().await?;
    let (_connection, channel) = vhost.channel().await?;
    declare(&channel).await?;
    let broker = std::sync::Arc::new(start(config(&vhost.broker, &vhost.name)).await?);
    let publishing = {
        let broker = broker.clone();
        tokio::spawn(async move {
            let mut confirmed = Vec::new();
            // A last round on the new connections.
            let mut cut = false;
            for round in 0.. {
                confirmed.extend(burst(&*broker, 20, round * 50, 50).await?);
                if std::mem::replace(&mut cut, counter(&broker, "connections_lost") >= 2) {
                    break;
                }
            }
            anyhow::Ok(confirmed)
        })
    };
    // The broker closes the edge's publishing connections in the middle of it.
    let closed = eventually("the edge's connections are listed", PATIENCE, || async {
        Ok(close_connections(&vhost, "publishing").await? == 2)
    });
    closed.await?;
    let confirmed = publishing.await??;
    let arrived = arrived(&vhost).await?;
    for (key, numbers) in &arrived {
        assert!(numbers.is_sorted(), "key {key}: {numbers:?}");
    }
    for (key, number) in &confirmed {
        assert!(arrived[key].contains(number), "{key}:{number} was confirmed and is not there");
    }
    Ok(())
}

type Done = Option<Box<dyn FnOnce() + Send>>;

/// The next records, each with its position and time, and what acknowledges them.
async fn records(feed: &mut dyn Feed) -> Result<(Vec<(Position, i64, Bytes)>, Done)> {
    match next_event(feed).await? {
        FeedEvent::Records(batch) => {
            let records = batch.records.into_iter().map(|record| (record.position, record.timestamp, record.body));
            Ok((records.collect(), batch.done))
        }
        event => anyhow::bail!("{event:?} instead of records"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn transient_records_come_again_until_they_are_done() -> Result<()> {
    let vhost = Vhost::create().await?;
    let (_connection, channel) = vhost.channel().await?;
    declare(&channel).await?;
    let broker = start(config(&vhost.broker, &vhost.name)).await?;
    let mut feed = broker.tail("pay", Delivery::Transient, Start::Next);
    until_attached(&mut *feed).await?;
    services::publish(&channel, PUSH, "m", b"a").await?;
    let (first, undone) = records(&mut *feed).await?;
    drop(undone);
    // As the same: a push without id gets its id and its end from these.
    let (again, done) = records(&mut *feed).await?;
    assert_eq!(again, first);
    done.context("to be acknowledged")?();
    // Cut while unacknowledged: it comes again after the rebuild, and no gap is reported.
    services::publish(&channel, PUSH, "m", b"b").await?;
    let (held, undone) = records(&mut *feed).await?;
    eventually("the consuming connection is listed", PATIENCE, || async {
        Ok(close_connections(&vhost, "consuming").await? == 1)
    })
    .await?;
    assert_eq!(until_attached(&mut *feed).await?, ["down"]);
    drop(undone);
    let (again, done) = records(&mut *feed).await?;
    assert_eq!(again, held);
    done.context("to be acknowledged")?();
    eventually("all is acknowledged", PATIENCE, || async {
        let queue = vhost.broker.call("GET", &format!("/api/queues/{}/{EDGE_QUEUE}", vhost.name), "").await?;
        let queue: serde_json::Value = serde_json::from_str(&queue)?;
        Ok(queue["messages"] == 0)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_transient_queue_is_a_gap_and_messages_of_an_earlier_reader_are_not_read() -> Result<()> {
    let vhost = Vhost::create().await?;
    let (_connection, channel) = vhost.channel().await?;
    declare(&channel).await?;
    let broker = start(config(&vhost.broker, &vhost.name)).await?;
    let mut feed = broker.tail("pay", Delivery::Transient, Start::Next);
    until_attached(&mut *feed).await?;
    channel.queue_delete(EDGE_QUEUE.into(), QueueDeleteOptions::default()).await?;
    assert_eq!(until_attached(&mut *feed).await?, ["down", "gap"]);
    services::publish(&channel, PUSH, "m", b"a").await?;
    assert_eq!(bodies(&mut *feed, 1).await?, ["a"]);
    drop(feed);
    services::publish(&channel, PUSH, "m", b"left behind").await?;
    let mut next = broker.tail("pay", Delivery::Transient, Start::Next);
    until_attached(&mut *next).await?;
    services::publish(&channel, PUSH, "m", b"b").await?;
    assert_eq!(bodies(&mut *next, 1).await?, ["b"]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_edge_of_the_same_name_waits_and_takes_over() -> Result<()> {
    let vhost = Vhost::create().await?;
    let (_connection, channel) = vhost.channel().await?;
    declare(&channel).await?;
    let (one, two) =
        (start(config(&vhost.broker, &vhost.name)).await?, start(config(&vhost.broker, &vhost.name)).await?);
    let mut first = one.tail("pay", Delivery::Transient, Start::Next);
    until_attached(&mut *first).await?;
    let mut second = two.tail("pay", Delivery::Transient, Start::Next);
    match next_event(&mut *second).await? {
        FeedEvent::Down { reason } => assert!(reason.contains("edge of this name"), "{reason}"),
        event => panic!("{event:?}"),
    }
    for number in 0..10 {
        services::publish(&channel, PUSH, "m", number.to_string().as_bytes()).await?;
    }
    assert_eq!(bodies(&mut *first, 10).await?, ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]);
    one.close().await;
    until_attached(&mut *second).await?;
    services::publish(&channel, PUSH, "m", b"x").await?;
    assert_eq!(bodies(&mut *second, 1).await?, ["x"]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_is_followed_and_read_in_pages_and_malformed_bodies_keep_their_offsets() -> Result<()> {
    let vhost = Vhost::create().await?;
    let (_connection, channel) = vhost.channel().await?;
    declare(&channel).await?;
    let broker = start(config(&vhost.broker, &vhost.name)).await?;
    services::publish(&channel, PUSH, "m", b"before").await?;
    let mut feed = broker.tail("pay", Delivery::Durable, Start::Next);
    let FeedEvent::Attached { position: Some(before) } = next_event(&mut *feed).await? else {
        panic!("no position of the last message");
    };
    assert_eq!(before.offset, 0);
    for body in ["a", "", "b"] {
        publish(&broker, 1, message(PUSH, "m", body)).await??;
    }
    assert_eq!(bodies(&mut *feed, 3).await?, ["a", "", "b"]);
    let piece = broker.read("pay", 1, 1 << 20).await?;
    let read: Vec<_> = piece.records.iter().map(|record| (record.position.offset, &record.body[..])).collect();
    assert_eq!(read, [(1, &b"a"[..]), (2, b""), (3, b"b")]);
    assert_eq!((piece.first_offset, piece.at_end), (Some(0), true));
    let mut resumed = broker.tail("pay", Delivery::Durable, Start::After(piece.records[1].position));
    assert_eq!(bodies(&mut *resumed, 1).await?, ["b"]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recreated_stream_is_a_reset_and_its_first_message_is_read() -> Result<()> {
    let vhost = Vhost::create().await?;
    let (_connection, channel) = vhost.channel().await?;
    declare(&channel).await?;
    let broker = start(config(&vhost.broker, &vhost.name)).await?;
    for body in ["a", "b"] {
        services::publish(&channel, PUSH, "m", body.as_bytes()).await?;
    }
    let mut feed = broker.tail("pay", Delivery::Durable, Start::First);
    assert_eq!(bodies(&mut *feed, 2).await?, ["a", "b"]);
    channel.queue_delete(STREAM.into(), QueueDeleteOptions::default()).await?;
    declare(&channel).await?;
    for body in ["c", "d", "e"] {
        services::publish(&channel, PUSH, "m", body.as_bytes()).await?;
    }
    assert!(until_attached(&mut *feed).await?.contains(&"reset"));
    assert_eq!(bodies(&mut *feed, 3).await?, ["c", "d", "e"]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn events_arrive_and_a_missing_exchange_stops_no_other_events() -> Result<()> {
    let vhost = Vhost::create().await?;
    let (_connection, channel) = vhost.channel().await?;
    declare(&channel).await?;
    declare_queue(&channel, "heard", "quorum").await?;
    bind(&channel, "heard", EVENTS, "connected").await?;
    let broker = start(config(&vhost.broker, &vhost.name)).await?;
    let mut consumer = services::consume(&channel, "heard", 10).await?;
    eventually("an event arrives", PATIENCE, || {
        broker.emit(message(EVENTS, "connected", "one"));
        async { Ok(services::depth(&channel, "heard").await.is_ok() && counter(&broker, "events") > 0) }
    })
    .await?;
    assert_eq!(services::next_body(&mut consumer).await?, b"one");
    broker.emit(message("wirepost.gone.events", "connected", "lost"));
    channel.queue_purge("heard".into(), QueuePurgeOptions::default()).await?;
    // The one in between may share the end of the channel; events are of small worth, but the next ones pass.
    let heard = async {
        loop {
            broker.emit(message(EVENTS, "connected", "two"));
            if let Ok(Ok(body)) = timeout(Duration::from_millis(200), services::next_body(&mut consumer)).await
                && body == b"two"
            {
                return;
            }
        }
    };
    timeout(PATIENCE, heard).await.context("events stopped")
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_checked_against_the_ca_and_rotated_credentials_are_used() -> Result<()> {
    let vhost = Vhost::create().await?;
    let (_connection, channel) = vhost.channel().await?;
    declare(&channel).await?;
    let (user, folder) = (format!("edge-{}", vhost.name), tempfile::tempdir()?);
    let set_password = async |password: &str| -> Result<()> {
        let body = format!(r#"{{"password":"{password}","tags":""}}"#);
        vhost.broker.call("PUT", &format!("/api/users/{user}"), &body).await?;
        fs::write(folder.path().join("password"), format!("{password}\n"))?;
        Ok(())
    };
    set_password("one").await?;
    let all = r#"{"configure":".*","write":".*","read":".*"}"#;
    vhost.broker.call("PUT", &format!("/api/permissions/{}/{user}", vhost.name), all).await?;
    fs::write(folder.path().join("username"), &user)?;

    let mut tls = config(&vhost.broker, &vhost.name);
    tls.amqp = vec![vhost.tls_amqp()?.replace("127.0.0.1", "localhost")];
    tls.username_file = Some(folder.path().join("username"));
    tls.password_file = Some(folder.path().join("password"));
    tls.ca_file = vhost.broker.tls_ca.clone();
    let broker = start(tls.clone()).await?;
    publish(&broker, 1, message(RECEIVE, "a", "1:1")).await??;
    set_password("two").await?;
    eventually("the connections are closed", PATIENCE, || async {
        Ok(close_connections(&vhost, "publishing").await? == 2)
    })
    .await?;
    eventually("publishing goes on with the new password", PATIENCE, || async {
        Ok(publish(&broker, 1, message(RECEIVE, "a", "1:2")).await?.is_ok() && counter(&broker, "connects") >= 4)
    })
    .await?;

    // An authority that did not sign the broker's certificate.
    let stranger = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()])?;
    fs::write(folder.path().join("ca.pem"), stranger.cert.pem())?;
    tls.ca_file = Some(folder.path().join("ca.pem"));
    let distrusting = wirepost_broker::rabbit::RabbitBroker::start(tls, &Supervisor::default())?;
    until_health(
        &distrusting,
        PATIENCE,
        |health| matches!(health, Health::Away(reason) if reason.to_lowercase().contains("certificate")),
    )
    .await?;
    vhost.broker.call("DELETE", &format!("/api/users/{user}"), "").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn closing_finishes_accepted_publishes_and_leaves_no_connection() -> Result<()> {
    let vhost = Vhost::create().await?;
    let (connection, channel) = vhost.channel().await?;
    declare(&channel).await?;
    let broker = start(config(&vhost.broker, &vhost.name)).await?;
    let mut feeds: Vec<Box<dyn Feed>> =
        vec![broker.tail("pay", Delivery::Transient, Start::Next), broker.tail("pay", Delivery::Durable, Start::Next)];
    for feed in &mut feeds {
        until_attached(&mut **feed).await?;
    }
    let confirms: Vec<_> =
        (0..500).map(|number| broker.publish(number, message(RECEIVE, "a", &number.to_string()))).collect();
    broker.close().await;
    for confirm in confirms {
        timeout(PATIENCE, confirm).await???;
    }
    let late = publish(&broker, 1, message(RECEIVE, "a", "late")).await?;
    assert!(matches!(late, Err(PublishError::Unavailable(_))), "{late:?}");
    connection.close(200, "".into()).await?;
    eventually("no connection is left", PATIENCE, || async {
        let list = vhost.broker.call("GET", &format!("/api/vhosts/{}/connections", vhost.name), "").await?;
        Ok(list.trim() == "[]")
    })
    .await
}
