//! The edge's RabbitMQ side when the broker is away, blocked, frozen or killed: on brokers of these tests' own.

use std::{collections::BTreeSet, fs, time::Duration};

use anyhow::{Context, Result, ensure};
use tokio::{
    sync::{Mutex, MutexGuard},
    time::{Instant, sleep, timeout},
};
use wirepost_broker::{
    Broker, FeedEvent, Health, PublishError, Start,
    rabbit::{Config, RabbitBroker},
};
use wirepost_core::edge_config::Delivery;
use wirepost_runtime::tasks::Supervisor;
use wirepost_testing::broker as services;
use wirepost_testing::broker::{PATIENCE, PrivateBroker, eventually};

use crate::support::*;

/// Clients are told within 2 s; the rest is for a busy machine.
const ANSWERED: Duration = Duration::from_secs(6);
/// Refused without waiting, which would take 1.8 s.
const AT_ONCE: Duration = Duration::from_millis(1500);
/// Everything works again this long after the broker does.
const RECOVERED: Duration = Duration::from_secs(15);

/// Heartbeats, and several attempts to connect again, end within it.
const FROZEN: Duration = Duration::from_secs(20);

/// One at a time in a process: a test counts the threads of its own.
async fn one_at_a_time() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::const_new(());
    ONE.lock().await
}

/// Publishes on all lanes at once; every outcome, which must come in time.
async fn outcomes(broker: &RabbitBroker) -> Result<Vec<Result<(), PublishError>>> {
    let begin = Instant::now();
    let confirms: Vec<_> = (0..200).map(|key| broker.publish(key, message(RECEIVE, "a", &key.to_string()))).collect();
    let mut outcomes = Vec::new();
    for confirm in confirms {
        outcomes.push(timeout(PATIENCE, confirm).await.context("a publish was not answered")??);
    }
    ensure!(begin.elapsed() < ANSWERED, "answers took {:?}", begin.elapsed());
    Ok(outcomes)
}

async fn until_publishing(broker: &RabbitBroker) -> Result<()> {
    eventually("publishing works again", RECOVERED, || async {
        Ok(publish(broker, 1, message(RECEIVE, "a", "again")).await?.is_ok())
    })
    .await
}

/// Threads of lapin in this process: one for each connection that it has not given up.
fn lapin_threads() -> usize {
    let tasks = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let names = tasks.filter_map(|task| fs::read_to_string(task.path().join("comm")).ok());
    names.filter(|name| name.starts_with("lapin")).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_broker_everything_starts_and_every_publish_is_answered() -> Result<()> {
    // Nobody listens on port 1.
    let mut away = Config::new("e1", "amqp://127.0.0.1:1");
    away.stream = Some(vec![("127.0.0.1".into(), 1)]);
    let broker = RabbitBroker::start(away, &Supervisor::default())?;
    for _ in 0..3 {
        let outcomes = outcomes(&broker).await?;
        assert!(outcomes.iter().all(|outcome| matches!(outcome, Err(PublishError::Unavailable(_)))), "{outcomes:?}");
    }
    until_health(&broker, PATIENCE, |health| matches!(health, Health::Away(reason) if reason.contains("127.0.0.1:1")))
        .await?;
    // By now waiting is known to be vain.
    let begin = Instant::now();
    assert!(publish(&broker, 1, message(RECEIVE, "a", "x")).await?.is_err());
    assert!(begin.elapsed() < AT_ONCE, "refused only after {:?}", begin.elapsed());
    assert!(timeout(PATIENCE, broker.read("pay", 0, 1000)).await?.is_err());
    timeout(PATIENCE, broker.close()).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_alarm_refuses_publishes_immediately_and_readers_continue() -> Result<()> {
    let _one = one_at_a_time().await;
    let private = PrivateBroker::start("edge-alarm", &["--suite", "sid"]).await?;
    let vhost = private.vhost().await?;
    let (_connection, channel) = vhost.channel().await?;
    declare(&channel).await?;
    let told = config(&private, &vhost.name);
    let mut asking = told.clone();
    asking.edge = "e2".into();
    asking.management = Some(private.management.clone());
    let (told, asking) = (start(told).await?, start(asking).await?);
    let mut feed = told.tail("pay", Delivery::Durable, Start::Next);
    until_attached(&mut *feed).await?;
    services::publish(&channel, PUSH, "m", b"before").await?;

    private.ctl(&["set_vm_memory_high_watermark", "0.00001"]).await?;
    // The one that asks knows before it has published anything.
    until_health(&asking, PATIENCE, |health| matches!(health, Health::Blocked(reason) if reason.contains("memory")))
        .await?;
    let begin = Instant::now();
    let refused = publish(&asking, 1, message(RECEIVE, "a", "x")).await?;
    assert!(matches!(refused, Err(PublishError::Unavailable(_))), "{refused:?}");
    assert!(begin.elapsed() < AT_ONCE, "refused only after {:?}", begin.elapsed());
    // The other learns it from what it publishes: those may arrive later.
    let victims = outcomes(&told).await?;
    assert!(victims.iter().all(Result::is_err), "{victims:?}");
    until_health(&told, PATIENCE, |health| matches!(health, Health::Blocked(_))).await?;
    let refused = publish(&told, 1, message(RECEIVE, "a", "x")).await?;
    assert!(matches!(refused, Err(PublishError::Unavailable(_))), "{refused:?}");
    assert_eq!(bodies(&mut *feed, 1).await?, ["before"]);
    assert_eq!(told.read("pay", 0, 1000).await?.records.len(), 1);

    private.ctl(&["set_vm_memory_high_watermark", "0.6"]).await?;
    for broker in [&told, &asking] {
        until_publishing(broker).await?;
    }
    // What was answered "unknown" did arrive, what was answered "unavailable" did not.
    let unknown = victims.iter().filter(|outcome| matches!(outcome, Err(PublishError::Unknown(_)))).count();
    let again = counter(&told, "confirmed") + counter(&asking, "confirmed");
    eventually("the queue holds what was confirmed and what may have arrived", PATIENCE, || async {
        let depth = u64::from(services::depth(&channel, QUEUE).await?);
        Ok((again..=again + unknown as u64).contains(&depth))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn publishes_to_a_frozen_broker_are_answered_and_it_recovers() -> Result<()> {
    let _one = one_at_a_time().await;
    let private = PrivateBroker::start("edge-frozen", &["--suite", "sid"]).await?;
    let vhost = private.vhost().await?;
    let (_connection, channel) = vhost.channel().await?;
    declare(&channel).await?;
    let broker = start(config(&private, &vhost.name)).await?;
    let mut durable = broker.tail("pay", Delivery::Durable, Start::Next);
    let mut transient = broker.tail("pay", Delivery::Transient, Start::Next);
    until_attached(&mut *durable).await?;
    until_attached(&mut *transient).await?;
    assert!(outcomes(&broker).await?.iter().all(Result::is_ok));
    let threads = lapin_threads();

    private.pause().await?;
    let frozen = Instant::now();
    let mut away = false;
    while frozen.elapsed() < FROZEN {
        let outcomes = outcomes(&broker).await?;
        assert!(outcomes.iter().all(Result::is_err), "{outcomes:?}");
        away |= matches!(&*broker.health().borrow(), Health::Away(_));
        sleep(Duration::from_millis(500)).await;
    }
    assert!(away, "health stayed {:?}", *broker.health().borrow());
    assert!(lapin_threads() <= threads + 4, "attempts pile up: {} threads", lapin_threads());
    private.resume().await?;
    until_publishing(&broker).await?;

    let (_connection, channel) = vhost.channel().await?;
    services::publish(&channel, PUSH, "m", b"after").await?;
    assert_eq!(timeout(RECOVERED, bodies(&mut *durable, 1)).await??, ["after"]);
    assert_eq!(timeout(RECOVERED, bodies(&mut *transient, 1)).await??, ["after"]);
    // This test's second connection has one of its own.
    eventually("threads of dead connections end", PATIENCE, || async { Ok(lapin_threads() <= threads + 1) }).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exchange_that_makes_the_broker_close_connections_does_not_stop_others() -> Result<()> {
    let _one = one_at_a_time().await;
    let private = PrivateBroker::start("edge-broken", &["--suite", "sid"]).await?;
    let vhost = private.vhost().await?;
    let (_connection, channel) = vhost.channel().await?;
    declare_receiving(&channel).await?;
    sleep(Duration::from_secs(4)).await;
    // The first stream of a broker, killed at once: see `rabbit/breaker.rs`.
    declare_queue(&channel, "broken", "stream").await?;
    private.kill9().await?;
    private.start_again().await?;
    let broker = start(config(&private, &vhost.name)).await?;
    let mut seen = Vec::new();
    let end = Instant::now() + PATIENCE;
    loop {
        let outcome = publish(&broker, 1, message("", "broken", "x")).await?;
        if matches!(&outcome, Err(PublishError::Refused(reason)) if reason.contains("tried again later")) {
            break;
        }
        seen.push(outcome);
        ensure!(Instant::now() < end, "never refused: {seen:?}");
        sleep(Duration::from_millis(50)).await;
    }
    let lost = counter(&broker, "connections_lost");
    ensure!((3..20).contains(&lost), "{lost} connections lost");
    until_publishing(&broker).await?;
    for key in 0..50 {
        drop(broker.publish(key, message("", "broken", "x")));
    }
    let good = outcomes(&broker).await?;
    let passed = good.iter().filter(|outcome| outcome.is_ok()).count();
    ensure!(passed >= 100, "only {passed} of 200 passed");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_broker_loses_nothing_that_was_confirmed() -> Result<()> {
    let _one = one_at_a_time().await;
    let private = PrivateBroker::start("edge-killed", &["--suite", "sid"]).await?;
    let vhost = private.vhost().await?;
    let (_connection, channel) = vhost.channel().await?;
    declare(&channel).await?;
    let broker = start(config(&private, &vhost.name)).await?;
    let mut transient = broker.tail("pay", Delivery::Transient, Start::Next);
    until_attached(&mut *transient).await?;

    // RabbitMQ 4.3.6 forgets the insides of its first stream when it is killed within the next second or so.
    sleep(Duration::from_secs(4)).await;

    let mut confirmed = 0;
    for round in 0..2 {
        // Killed while messages are on their way.
        let (outcomes, killed) = tokio::join!(outcomes(&broker), async {
            sleep(Duration::from_millis(20 * round)).await;
            private.kill9().await
        });
        killed?;
        confirmed += outcomes?.iter().filter(|outcome| outcome.is_ok()).count();
        let refused = self::outcomes(&broker).await?;
        assert!(refused.iter().all(Result::is_err), "{refused:?}");
        private.start_again().await?;
        until_publishing(&broker).await?;
        confirmed += 1;
    }
    let (_connection, channel) = vhost.channel().await?;
    let depth = services::depth(&channel, QUEUE).await? as usize;
    assert!(depth >= confirmed, "{confirmed} were confirmed, {depth} are there");
    services::publish(&channel, PUSH, "m", b"after").await?;
    assert_eq!(timeout(RECOVERED, bodies(&mut *transient, 1)).await??, ["after"]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transient_queue_is_replaced_while_its_node_is_down_and_not_while_it_is_slow() -> Result<()> {
    let _one = one_at_a_time().await;
    let cluster = services::BrokerCluster::start("transient").await?;
    let vhost = cluster.node(0).vhost().await?;
    let (_connection, channel) = vhost.channel().await?;
    declare(&channel).await?;
    // On the first node, while the edge is connected to others.
    declare_queue(&channel, EDGE_QUEUE, "classic").await?;
    let there = services::Vhost { broker: (*cluster.node(1)).clone(), name: vhost.name.clone() };
    let mut config = config(cluster.node(0), &vhost.name);
    config.amqp = (1..3).map(|node| format!("{}/{}", cluster.node(node).amqp, vhost.name)).collect();
    let broker = start(config).await?;
    let mut feed = broker.tail("pay", Delivery::Transient, Start::Next);
    until_attached(&mut *feed).await?;
    services::publish(&channel, PUSH, "m", b"before").await?;
    assert_eq!(bodies(&mut *feed, 1).await?, ["before"]);

    // While the queue is only slow it stays, with what is in it, however often it does not answer.
    services::publish(&channel, PUSH, "m", b"held").await?;
    let FeedEvent::Records(held) = next_event(&mut *feed).await? else { panic!("no records") };
    let process = format!(
        r#"{{ok, Q}} = rabbit_amqqueue:lookup(rabbit_misc:r(<<"{}">>, queue, <<"{EDGE_QUEUE}">>)), amqqueue:get_pid(Q)"#,
        vhost.name
    );
    cluster.node(0).ctl(&["eval", &format!("sys:suspend(begin {process} end).")]).await?;
    let failures = counter(&broker, "connect_failures");
    // The management's list knows a connection some seconds after it was opened.
    eventually("the consuming connection is closed", PATIENCE, || async {
        Ok(close_connections(&there, "consuming").await? == 1)
    })
    .await?;
    drop(held);
    eventually("it is asked in vain twice", FROZEN * 4, || async {
        Ok(counter(&broker, "connect_failures") >= failures + 2)
    })
    .await?;
    cluster.node(0).ctl(&["eval", &format!("sys:resume(begin {process} end).")]).await?;
    // It comes again, perhaps more than once when outages follow, and before what is published now: nothing is lost.
    services::publish(&channel, PUSH, "m", b"awake").await?;
    let mut came = BTreeSet::new();
    while !came.contains("awake") {
        came.extend(bodies(&mut *feed, 1).await?);
    }
    assert_eq!(came, BTreeSet::from(["awake".to_owned(), "held".to_owned()]));

    cluster.node(0).kill9().await?;
    assert_eq!(timeout(RECOVERED * 2, until_attached(&mut *feed)).await??, ["down", "gap"]);
    // And publishers are no longer refused because of the queue that is down.
    let (_connection, channel) = there.channel().await?;
    services::publish(&channel, PUSH, "m", b"after").await?;
    assert_eq!(bodies(&mut *feed, 1).await?, ["after"]);
    cluster.node(0).start_again().await?;
    services::publish(&channel, PUSH, "m", b"later").await?;
    assert_eq!(bodies(&mut *feed, 1).await?, ["later"]);
    Ok(())
}
