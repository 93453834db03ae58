//! Reading from a broker that behaves.

use std::time::Duration;

use anyhow::Result;
use lapin::{
    BasicProperties,
    types::{AMQPValue, FieldTable},
};
use tokio::time::timeout;
use wirepost_stream::{Client, Event, Start, Value};
use wirepost_testing::broker::{PATIENCE, Vhost, eventually};

use crate::raw::{RawPublisher, data_message, entry, sub_batch};
use crate::support::{Publisher, USER, attached, client, config, event, host_of, numbers, range, take};

#[tokio::test]
async fn first_reads_everything_and_goes_on_live() -> Result<()> {
    let vhost = Vhost::create().await?;
    let publisher = Publisher::connect(&vhost).await?;
    publisher.declare("s").await?;
    publisher.numbers("s", 0..500).await?;
    let client = client(&vhost);
    let mut subscription = client.subscribe("s", Start::First);
    assert_eq!(attached(&mut subscription).await, None);
    let mut messages = take(&mut subscription, 500).await;
    publisher.numbers("s", 500..600).await?;
    messages.extend(take(&mut subscription, 100).await);
    assert_eq!(numbers(&messages), range(0..600));
    assert!(messages.is_sorted_by(|a, b| a.offset() < b.offset()));
    assert_eq!(subscription.lag(), 0);
    client.close().await;
    assert!(subscription.recv().await.is_none());
    Ok(())
}

#[tokio::test]
async fn what_was_received_and_not_taken_counts_as_lag() -> Result<()> {
    let vhost = Vhost::create().await?;
    let publisher = Publisher::connect(&vhost).await?;
    publisher.declare("s").await?;
    // A chunk each, since each waits for its confirm.
    for n in 0..20 {
        publisher.numbers("s", n..n + 1).await?;
    }
    let client = client(&vhost);
    let mut subscription = client.subscribe("s", Start::First);
    attached(&mut subscription).await;
    assert!(subscription.lag() > 0, "nothing was taken yet");
    let mut taken = 0;
    while taken < 20 {
        if let Event::Messages(batch) = event(&mut subscription).await {
            taken += batch.iter().count();
        }
        // The reader runs ahead.
        eventually("the reader has received more", PATIENCE, || async {
            Ok(client.counters().held_bytes.get() > 0 || taken == 20)
        })
        .await?;
        assert_eq!(subscription.lag() == 0, taken == 20, "after {taken}");
    }
    Ok(())
}

#[tokio::test]
async fn next_tells_the_last_message_and_reads_only_what_follows() -> Result<()> {
    let vhost = Vhost::create().await?;
    let publisher = Publisher::connect(&vhost).await?;
    publisher.declare("s").await?;
    let client = client(&vhost);
    let mut on_empty = client.subscribe("s", Start::Next);
    assert_eq!(attached(&mut on_empty).await, None);
    publisher.numbers("s", 0..100).await?;
    let before = take(&mut on_empty, 100).await;
    assert_eq!(numbers(&before), range(0..100));

    let mut subscription = client.subscribe("s", Start::Next);
    assert_eq!(attached(&mut subscription).await, Some(before[99].position()));
    publisher.numbers("s", 100..110).await?;
    assert_eq!(numbers(&take(&mut subscription, 10).await), range(100..110));
    Ok(())
}

#[tokio::test]
async fn a_stream_that_is_declared_later_is_read_from_its_first_message() -> Result<()> {
    let vhost = Vhost::create().await?;
    let publisher = Publisher::connect(&vhost).await?;
    let client = client(&vhost);
    let mut subscription = client.subscribe("later", Start::Next);
    let Event::Down { reason } = event(&mut subscription).await else { panic!("the stream does not exist") };
    assert!(reason.is_stream_absent(), "{reason}");
    publisher.declare("later").await?;
    publisher.numbers("later", 0..10).await?;
    assert_eq!(numbers(&take(&mut subscription, 10).await), range(0..10));
    Ok(())
}

#[tokio::test]
async fn after_continues_behind_every_message() -> Result<()> {
    let vhost = Vhost::create().await?;
    let publisher = Publisher::connect(&vhost).await?;
    publisher.declare("s").await?;
    publisher.numbers("s", 0..40).await?;
    let client = client(&vhost);
    let all = take(&mut client.subscribe("s", Start::First), 40).await;
    for (i, message) in all.iter().enumerate() {
        let mut subscription = client.subscribe("s", Start::After(message.position()));
        assert_eq!(attached(&mut subscription).await, Some(message.position()));
        assert_eq!(numbers(&take(&mut subscription, 39 - i).await), range(i as u64 + 1..40));
    }
    assert_eq!(client.counters().resets.get() + client.counters().gaps.get(), 0);
    Ok(())
}

#[tokio::test]
async fn properties_headers_and_annotations_are_there() -> Result<()> {
    let vhost = Vhost::create().await?;
    let publisher = Publisher::connect(&vhost).await?;
    publisher.declare("s").await?;
    let mut headers = FieldTable::default();
    headers.insert("message-type".into(), AMQPValue::LongString("a.b".into()));
    headers.insert("n".into(), AMQPValue::LongLongInt(-5));
    let properties = BasicProperties::default()
        .with_message_id("id-1".into())
        .with_correlation_id("id-0".into())
        .with_content_type("application/json".into())
        .with_timestamp(1_700_000_000)
        .with_headers(headers);
    publisher.publish_with("s", ["{}"], properties).await?;
    // As a publisher that wrote microseconds: the date is nonsense, the message is not.
    publisher.publish_with("s", ["odd"], BasicProperties::default().with_timestamp(10_000_000_000_000)).await?;
    let messages = take(&mut client(&vhost).subscribe("s", Start::First), 2).await;
    let sections = messages[0].sections();
    assert_eq!(messages[0].body().as_ref(), b"{}");
    assert_eq!(sections.message_id(), Some(Value::String("id-1")));
    assert_eq!(sections.correlation_id(), Some(Value::String("id-0")));
    assert_eq!(sections.content_type(), Some("application/json"));
    assert_eq!(sections.creation_time(), Some(1_700_000_000_000), "{sections:?}");
    assert_eq!(sections.application_property("message-type").and_then(Value::as_str), Some("a.b"));
    assert_eq!(sections.application_property("n"), Some(Value::Signed(-5)));
    assert_eq!(sections.annotation("x-routing-key").and_then(Value::as_str), Some("s"));
    assert_eq!(messages[1].body().as_ref(), b"odd");
    Ok(())
}

#[tokio::test]
async fn garbage_and_compressed_batches_are_skipped_and_counted() -> Result<()> {
    let vhost = Vhost::create().await?;
    Publisher::connect(&vhost).await?.declare("s").await?;
    let mut raw = RawPublisher::connect(&vhost, "s").await?;
    let message = |n: u64| data_message(n.to_string().as_bytes());
    let entries = [
        entry(&message(0)),
        entry(b"{\"no\":\"amqp\"}"),
        entry(b""),
        sub_batch(0, &[&message(1), &message(2)]),
        sub_batch(1, &[b"x", b"y", b"z"]),
        entry(&[0; 3000]),
        entry(&message(3)),
    ];
    raw.publish(&entries).await?;
    let client = client(&vhost);
    let mut subscription = client.subscribe("s", Start::First);
    let messages = take(&mut subscription, 4).await;
    assert_eq!(numbers(&messages), range(0..4));
    assert_eq!(messages.iter().map(wirepost_stream::Message::offset).collect::<Vec<_>>(), [0, 3, 4, 9]);
    assert_eq!(client.counters().skipped_messages.get(), 6);

    // A stream that ends with unreadable messages has an end like any other.
    raw.publish(&[sub_batch(1, &[b"x"])]).await?;
    let read = client.read("s", 10, 1 << 20, PATIENCE).await?;
    assert!(read.at_end && read.next == 11, "{read:?}");
    let mut resumed = client.subscribe("s", Start::After(messages[3].position()));
    assert_eq!(attached(&mut resumed).await, Some(messages[3].position()));
    raw.publish(&[entry(&message(4))]).await?;
    assert_eq!(numbers(&take(&mut resumed, 1).await), [4]);
    assert_eq!(numbers(&take(&mut subscription, 1).await), [4]);
    Ok(())
}

#[tokio::test]
async fn read_goes_to_the_committed_end_in_bounded_steps() -> Result<()> {
    let vhost = Vhost::create().await?;
    let publisher = Publisher::connect(&vhost).await?;
    publisher.declare("s").await?;
    let client = client(&vhost);
    let empty = client.read("s", 0, 1 << 20, PATIENCE).await?;
    assert!(empty.at_end && empty.batches.is_empty() && empty.first_offset.is_none(), "{empty:?}");

    for step in 0..20 {
        publisher.publish("s", (0..100).map(|i| format!("{:0200}", step * 100 + i))).await?;
    }
    for from in [0, 1, 777, 1998, 1999] {
        let (mut next, mut got, mut steps) = (from, Vec::new(), 0);
        loop {
            let read = client.read("s", next, 30_000, PATIENCE).await?;
            got.extend(read.batches.iter().flatten());
            next = read.next;
            steps += 1;
            if read.at_end {
                break;
            }
        }
        assert_eq!(numbers(&got), range(from..2000));
        assert!(from > 0 || steps > 5, "{steps} steps");
    }
    let beyond = client.read("s", 2000, 30_000, PATIENCE).await?;
    assert!(beyond.at_end && beyond.batches.is_empty() && beyond.next == 2000, "{beyond:?}");
    let beyond = client.read("s", 5000, 30_000, PATIENCE).await?;
    assert!(beyond.at_end && beyond.batches.is_empty(), "{beyond:?}");

    let absent = client.read("absent", 0, 1, PATIENCE).await.unwrap_err();
    assert!(absent.is_stream_absent(), "{absent}");
    Ok(())
}

#[tokio::test]
async fn holes_in_the_numbering_are_no_gaps() -> Result<()> {
    let vhost = Vhost::create().await?;
    let publisher = Publisher::connect(&vhost).await?;
    publisher.declare_with("s", &[("x-stream-max-segment-size-bytes", 50_000)]).await?;
    let client = client(&vhost);
    let mut live = client.subscribe("s", Start::First);
    for step in 0..40 {
        publisher.publish("s", (0..50).map(|i| format!("{:0500}", step * 50 + i))).await?;
        // The end can be a hole at any time: it must be recognised as the end.
        let read = client.read("s", 0, usize::MAX, PATIENCE).await?;
        assert!(read.at_end);
        assert_eq!(numbers(&read.batches.iter().flatten().collect::<Vec<_>>()).len(), (step + 1) * 50);
    }
    let messages = take(&mut live, 2000).await;
    assert_eq!(numbers(&messages), range(0..2000));
    assert!(messages[1999].offset() > 1999, "the broker made no holes, nothing was tested");
    for message in messages.iter().step_by(97).chain(messages.last()) {
        let mut subscription = client.subscribe("s", Start::After(message.position()));
        assert_eq!(attached(&mut subscription).await, Some(message.position()));
    }
    assert_eq!(client.counters().gaps.get() + client.counters().resets.get(), 0);
    Ok(())
}

#[tokio::test]
async fn one_connection_carries_250_subscriptions_and_a_reader_that_sleeps_holds_up_nobody() -> Result<()> {
    let vhost = Vhost::create().await?;
    let publisher = Publisher::connect(&vhost).await?;
    for stream in ["busy", "quiet"] {
        publisher.declare(stream).await?;
    }
    let mut config = config(host_of(&vhost.broker.stream), &vhost.name);
    config.subscriptions_per_connection = Some(250);
    // The broker may send two of the four chunks only, of one message each: 20 sleepers hold 40 kB at least.
    config.byte_budget = 20_000;
    let client = Client::new(config);
    // Never read: its chunks exhaust the budget and stay where they are.
    let _asleep: Vec<_> = (0..20).map(|_| client.subscribe("busy", Start::First)).collect();
    let mut readers: Vec<_> = (0..230).map(|_| client.subscribe("quiet", Start::First)).collect();
    for reader in &mut readers {
        attached(reader).await;
    }
    assert_eq!(client.counters().connections.get(), 1);
    for step in 0..20 {
        publisher.publish("busy", (0..50).map(|i| format!("{:01000}", step * 50 + i))).await?;
    }
    eventually("the sleepers hold more than the budget", PATIENCE, || async {
        Ok(client.counters().held_bytes.get() > 20_000)
    })
    .await?;
    for _ in 0..10 {
        publisher.numbers("quiet", 0..20).await?;
    }
    for reader in &mut readers {
        take(reader, 200).await;
    }
    assert!(client.counters().withheld_credits.get() > 0, "the budget was not tested");
    // One more makes a second connection.
    attached(&mut client.subscribe("quiet", Start::Next)).await;
    assert_eq!(client.counters().connections.get(), 2);
    Ok(())
}

#[tokio::test]
async fn a_slow_reader_gets_everything_and_holds_bounded_memory() -> Result<()> {
    let vhost = Vhost::create().await?;
    let publisher = Publisher::connect(&vhost).await?;
    publisher.declare("s").await?;
    for step in 0..30 {
        publisher.publish("s", (0..100).map(|i| format!("{:01000}", step * 100 + i))).await?;
    }
    let mut config = config(host_of(&vhost.broker.stream), &vhost.name);
    config.credits = 2;
    let client = Client::new(config);
    let mut subscription = client.subscribe("s", Start::First);
    let (mut got, mut pauses) = (Vec::new(), 3);
    while got.len() < 3000 {
        // Longer than the watchdog takes: slowness is no stall.
        if pauses > 0 {
            pauses -= 1;
            tokio::time::sleep(Duration::from_secs(3)).await;
        }
        if let Event::Messages(batch) = event(&mut subscription).await {
            got.extend(numbers(&batch.iter().collect::<Vec<_>>()));
        }
    }
    assert_eq!(got, range(0..3000));
    assert_eq!(client.counters().restarts.get(), 0);
    Ok(())
}

#[tokio::test]
async fn a_chunk_above_the_limit_is_a_gap_and_the_next_one_comes() -> Result<()> {
    let vhost = Vhost::create().await?;
    let publisher = Publisher::connect(&vhost).await?;
    publisher.declare("s").await?;
    let mut config = config(host_of(&vhost.broker.stream), &vhost.name);
    config.max_frame_bytes = 100_000;
    let client = Client::new(config);
    let mut subscription = client.subscribe("s", Start::First);
    attached(&mut subscription).await;
    publisher.numbers("s", 0..1).await?;
    assert_eq!(numbers(&take(&mut subscription, 1).await), [0]);
    publisher.publish("s", [vec![b'x'; 300_000]]).await?;
    publisher.numbers("s", 1..2).await?;
    let Event::Gap { first_offset } = event(&mut subscription).await else { panic!("expected a gap") };
    assert_eq!(first_offset, 2);
    assert_eq!(numbers(&take(&mut subscription, 1).await), [1]);
    assert_eq!(client.counters().oversized_chunks.get(), 1);
    assert_eq!(client.counters().connects.get(), 1);
    Ok(())
}

#[tokio::test]
async fn wrong_credentials_and_a_missing_vhost_are_named() -> Result<()> {
    let vhost = Vhost::create().await?;
    let host = host_of(&vhost.broker.stream);
    let mut wrong = config(host.clone(), &vhost.name);
    wrong.credentials =
        std::sync::Arc::new(|| wirepost_stream::Credentials { username: USER.into(), password: "wrong".into() });
    let error = Client::new(wrong).stats("s").await.unwrap_err();
    assert!(error.is_access() && error.to_string().contains("password"), "{error}");
    let error = Client::new(config(host, "no-such-vhost")).stats("s").await.unwrap_err();
    assert!(error.is_access(), "{error}");
    Ok(())
}

#[tokio::test]
async fn dropping_a_subscription_frees_its_place() -> Result<()> {
    let vhost = Vhost::create().await?;
    Publisher::connect(&vhost).await?.declare("s").await?;
    let mut config = config(host_of(&vhost.broker.stream), &vhost.name);
    config.subscriptions_per_connection = Some(1);
    config.idle_timeout = Duration::from_secs(1);
    let client = Client::new(config);
    for _ in 0..50 {
        let mut subscription = client.subscribe("s", Start::First);
        attached(&mut subscription).await;
    }
    eventually("no subscription is left", PATIENCE, || async { Ok(client.counters().subscriptions.get() == 0) })
        .await?;
    eventually("idle connections are closed", PATIENCE, || async { Ok(client.counters().connections.get() == 0) })
        .await?;
    assert_eq!(client.counters().connections_lost.get(), 0);
    // And it wakes up again.
    timeout(PATIENCE, client.stats("s")).await??;
    Ok(())
}
