//! Many unconfirmed messages at a time: which outcome belongs to which message, and who is hurt by what fails.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use futures_util::future::join_all;
use lapin::{
    Channel, ExchangeKind,
    options::{BasicConsumeOptions, ExchangeDeclareOptions, ExchangeDeleteOptions},
    types::FieldTable,
};
use tokio::time::{sleep, timeout};
use wirepost_broker::{Broker, PublishError, rabbit::RabbitBroker};
use wirepost_testing::broker as services;
use wirepost_testing::broker::{PATIENCE, PrivateBroker, Vhost, eventually};

use crate::support::*;

/// Senders, each with many messages in flight: together more than all windows.
const SENDERS: u64 = 20;
const IN_FLIGHT: u64 = 30;
const OTHER: &str = "wirepost.other.receive";
const OTHER_QUEUE: &str = "wirepost.other.q.in";

/// Published behind everything else.
const END: &[u8] = b"end";

/// A message of a sender, by the number of the sender and its own.
type Id = (u64, u64);
type Outcomes = BTreeMap<Id, Result<(), PublishError>>;

/// One sender: publishes `IN_FLIGHT` at a time until told to stop; every outcome.
async fn send(
    broker: &RabbitBroker,
    exchange: &str,
    sender: u64,
    key: impl Fn(u64) -> &'static str,
    stop: &AtomicBool,
) -> Result<Outcomes> {
    let mut outcomes = Outcomes::new();
    let mut next = 0;
    while !stop.load(Ordering::Relaxed) {
        let confirms: Vec<_> = (next..next + IN_FLIGHT)
            .map(|n| ((sender, n), broker.publish(sender, message(exchange, key(n), &format!("{sender} {n}")))))
            .collect();
        next += IN_FLIGHT;
        for (id, confirm) in confirms {
            outcomes.insert(id, timeout(PATIENCE, confirm).await.context("a publish was not answered")??);
        }
        if outcomes.values().next_back().is_some_and(Result::is_err) {
            sleep(Duration::from_millis(200)).await;
        }
    }
    Ok(outcomes)
}

async fn send_all(
    broker: &RabbitBroker,
    exchange: &str,
    key: impl Fn(u64) -> &'static str + Copy,
    stop: &AtomicBool,
) -> Result<Outcomes> {
    let senders = join_all((1..=SENDERS).map(|sender| send(broker, exchange, sender, key, stop))).await;
    let mut all = Outcomes::new();
    for outcomes in senders {
        all.extend(outcomes?);
    }
    Ok(all)
}

/// Everything in a queue, in order.
async fn contents(channel: &Channel, queue: &str) -> Result<Vec<Id>> {
    services::publish(channel, "", queue, END).await?;
    let no_ack = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
    let mut consumer = channel.basic_consume(queue.into(), "".into(), no_ack, FieldTable::default()).await?;
    let mut ids = Vec::new();
    loop {
        let delivery = services::next(&mut consumer).await?;
        if delivery.data == END {
            return Ok(ids);
        }
        let (sender, number) =
            std::str::from_utf8(&delivery.data)?.split_once(' ').context("a body of another test")?;
        ids.push((sender.parse()?, number.parse()?));
    }
}

/// What was confirmed is there, what is said not to have arrived is not, and each sender's messages are in order.
fn check(outcomes: &Outcomes, contents: &[Id]) -> Result<()> {
    let there: BTreeSet<Id> = contents.iter().copied().collect();
    ensure!(there.len() == contents.len(), "a message is there twice");
    for (id, outcome) in outcomes {
        match outcome {
            Ok(()) => ensure!(there.contains(id), "{id:?} was confirmed and is lost"),
            Err(PublishError::Unknown(_)) => {}
            Err(error) => ensure!(!there.contains(id), "{id:?} arrived, and its sender was told otherwise: {error}"),
        }
    }
    let mut last: BTreeMap<u64, u64> = BTreeMap::new();
    for (sender, number) in contents {
        let before = last.insert(*sender, *number);
        ensure!(before.is_none_or(|before| before < *number), "{sender}: {number} after {before:?}");
    }
    Ok(())
}

fn count(outcomes: &Outcomes, wanted: impl Fn(&Result<(), PublishError>) -> bool) -> usize {
    outcomes.values().filter(|outcome| wanted(outcome)).count()
}

async fn declare_other(channel: &Channel) -> Result<()> {
    let durable = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
    channel.exchange_declare(OTHER.into(), ExchangeKind::Topic, durable, FieldTable::default()).await?;
    declare_queue(channel, OTHER_QUEUE, "quorum").await?;
    bind(channel, OTHER_QUEUE, OTHER, "#").await
}

#[tokio::test(flavor = "multi_thread")]
async fn returned_messages_inside_full_windows_are_exactly_those_that_no_queue_takes() -> Result<()> {
    let vhost = Vhost::create().await?;
    let (_connection, channel) = vhost.channel().await?;
    declare(&channel).await?;
    let durable = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
    channel.exchange_declare(OTHER.into(), ExchangeKind::Topic, durable, FieldTable::default()).await?;
    declare_queue(&channel, OTHER_QUEUE, "quorum").await?;
    bind(&channel, OTHER_QUEUE, OTHER, "taken").await?;
    let broker = start(config(&vhost.broker, &vhost.name)).await?;
    let key = |n: u64| if n.is_multiple_of(7) { "lost" } else { "taken" };
    let stop = AtomicBool::new(false);
    let (outcomes, ()) = tokio::join!(send_all(&broker, OTHER, key, &stop), async {
        sleep(Duration::from_secs(1)).await;
        stop.store(true, Ordering::Relaxed);
    });
    let outcomes = outcomes?;
    for ((_, n), outcome) in &outcomes {
        let fits =
            if n.is_multiple_of(7) { matches!(outcome, Err(PublishError::Unrouted(_))) } else { outcome.is_ok() };
        ensure!(fits, "{n}: {outcome:?}");
    }
    check(&outcomes, &contents(&channel, OTHER_QUEUE).await?)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exchange_that_is_deleted_under_full_windows_costs_no_other_exchange_a_message() -> Result<()> {
    let vhost = Vhost::create().await?;
    let (_connection, channel) = vhost.channel().await?;
    declare(&channel).await?;
    declare_other(&channel).await?;
    let broker = start(config(&vhost.broker, &vhost.name)).await?;
    let stop = AtomicBool::new(false);
    let deleting = async {
        sleep(Duration::from_millis(300)).await;
        channel.exchange_delete(OTHER.into(), ExchangeDeleteOptions::default()).await?;
        sleep(Duration::from_millis(700)).await;
        declare_other(&channel).await?;
        let again = eventually("the exchange works again", PATIENCE, || async {
            Ok(publish(&broker, 99, message(OTHER, "a", "99 1")).await?.is_ok())
        });
        let result = again.await;
        stop.store(true, Ordering::Relaxed);
        result
    };
    let all = |_| "a";
    let (good, bad, deleted) =
        tokio::join!(send_all(&broker, RECEIVE, all, &stop), send_all(&broker, OTHER, all, &stop), deleting);
    deleted?;
    let (good, bad) = (good?, bad?);
    ensure!(good.values().all(Result::is_ok), "{:?}", good.values().find(|outcome| outcome.is_err()));
    ensure!(counter(&broker, "connections_lost") == 0);
    let refused = count(&bad, |outcome| matches!(outcome, Err(PublishError::Refused(_))));
    let unknown = count(&bad, |outcome| matches!(outcome, Err(PublishError::Unknown(_))));
    // At most the windows of one moment are unknown; what came after them was refused for what it was.
    ensure!(refused > 0 && unknown <= 4096, "{refused} refused, {unknown} unknown of {}", bad.len());
    check(&good, &contents(&channel, QUEUE).await?)?;
    let there: Vec<Id> =
        contents(&channel, OTHER_QUEUE).await?.into_iter().filter(|(sender, _)| *sender != 99).collect();
    check(&bad, &there)
}

#[tokio::test(flavor = "multi_thread")]
async fn kills_under_full_windows_lose_nothing_confirmed_and_keep_each_senders_order() -> Result<()> {
    let private = PrivateBroker::start("windows-killed", &["--suite", "sid"]).await?;
    let vhost = private.vhost().await?;
    let (_connection, channel) = vhost.channel().await?;
    declare_receiving(&channel).await?;
    // RabbitMQ 4.3.6 forgets what is in its first queue when it is killed within the next second or so.
    sleep(Duration::from_secs(4)).await;
    let broker = start(config(&private, &vhost.name)).await?;
    let stop = AtomicBool::new(false);
    let killing = async {
        for round in 1..=2 {
            eventually("windows are full", PATIENCE, || async { Ok(counter(&broker, "in_flight") >= 200) }).await?;
            sleep(Duration::from_millis(200 * round)).await;
            private.kill9().await?;
            private.start_again().await?;
            eventually("publishing works again", PATIENCE, || async {
                Ok(publish(&broker, 99, message(RECEIVE, "a", &format!("99 {round}"))).await?.is_ok())
            })
            .await?;
        }
        anyhow::Ok(())
    };
    let killing = async {
        let result = killing.await;
        stop.store(true, Ordering::Relaxed);
        result
    };
    let (outcomes, killed) = tokio::join!(send_all(&broker, RECEIVE, |_| "a", &stop), killing);
    killed?;
    let outcomes = outcomes?;
    let unknown = count(&outcomes, |outcome| matches!(outcome, Err(PublishError::Unknown(_))));
    ensure!(unknown > 0, "nothing was in flight when the broker was killed");
    let (_connection, channel) = vhost.channel().await?;
    let there: Vec<Id> = contents(&channel, QUEUE).await?.into_iter().filter(|(sender, _)| *sender != 99).collect();
    check(&outcomes, &there)
}

/// A listener's queue as without a majority, or with a leader that hangs: RabbitMQ would read nothing more from the connection.
#[tokio::test(flavor = "multi_thread")]
async fn events_to_a_queue_that_does_not_answer_hold_up_no_other_exchange() -> Result<()> {
    let private = PrivateBroker::start("windows-events", &[]).await?;
    let vhost = private.vhost().await?;
    let (_connection, channel) = vhost.channel().await?;
    declare(&channel).await?;
    declare_queue(&channel, "heard", "quorum").await?;
    bind(&channel, "heard", EVENTS, "#").await?;
    let mut config = config(&private, &vhost.name);
    config.connections = 1;
    let broker = start(config).await?;
    let leader = format!("whereis('{}_heard')", vhost.name);
    private.ctl(&["eval", &format!("sys:suspend({leader}).")]).await?;
    let mut sent = 0;
    eventually("events are dropped", PATIENCE, || {
        for _ in 0..100 {
            broker.emit(message(EVENTS, "connected", "early"));
        }
        sent += 1;
        let message = message(RECEIVE, "a", &format!("1 {sent}"));
        let broker = &broker;
        async move {
            publish(broker, 1, message).await?.expect("a message of another exchange is confirmed");
            Ok(counter(broker, "dropped_events") > 0)
        }
    })
    .await?;
    for n in 0..50 {
        publish(&broker, 2, message(RECEIVE, "a", &format!("2 {n}"))).await??;
    }
    private.ctl(&["eval", &format!("sys:resume({leader}).")]).await?;
    let mut heard = services::consume(&channel, "heard", 1000).await?;
    let late = async {
        loop {
            broker.emit(message(EVENTS, "connected", "late"));
            if services::next_body(&mut heard).await? == b"late" {
                return anyhow::Ok(());
            }
        }
    };
    timeout(PATIENCE, late).await.context("events stopped")??;
    ensure!(counter(&broker, "connections_lost") == 0, "the connection was lost");
    Ok(())
}
