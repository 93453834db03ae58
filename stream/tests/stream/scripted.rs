//! What no real broker does on demand, shown by a scripted one.

use std::{collections::HashMap, time::Duration};

use anyhow::{Result, ensure};
use tokio::time::{Instant, timeout};
use wirepost_stream::{Client, Error, Event, Start};
use wirepost_testing::broker::{PATIENCE, eventually};

use crate::fake::{FakeBroker, OK};
use crate::support::{attached, config, event, numbers, take};

fn client(broker: &FakeBroker) -> Client {
    Client::new(config(broker.address.clone(), "/"))
}

#[tokio::test]
async fn a_broker_that_answers_nothing_is_given_up() -> Result<()> {
    let broker = FakeBroker::bind("4.3.6").await?;
    let mut config = config(broker.address.clone(), "/");
    config.connect_timeout = Duration::from_millis(300);
    let error = Client::new(config).stats("s").await.unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }), "{error}");
    Ok(())
}

#[tokio::test]
async fn an_unanswered_call_times_out_and_the_connection_lives_on() -> Result<()> {
    let broker = FakeBroker::bind("4.3.6").await?;
    let mut config = config(broker.address.clone(), "/");
    config.call_timeout = Duration::from_millis(300);
    let client = Client::new(config);
    let script = tokio::spawn(async move {
        let mut peer = broker.accept().await?;
        peer.expect(0x1c).await?;
        let second = peer.expect(0x1c).await?;
        peer.answer_stats(&second, 0, 7).await?;
        anyhow::Ok(peer)
    });
    let error = client.stats("s").await.unwrap_err();
    assert!(matches!(error, Error::Timeout { what: "stream stats", .. }), "{error}");
    assert_eq!(client.stats("s").await?.end(), Some(7));
    assert_eq!(client.counters().connects.get(), 1);
    script.await??;
    Ok(())
}

#[tokio::test]
async fn a_connection_that_answers_no_call_is_given_up_though_it_sends_heartbeats() -> Result<()> {
    let broker = FakeBroker::bind("4.3.6").await?;
    let mut config = config(broker.address.clone(), "/");
    config.call_timeout = Duration::from_millis(500);
    let client = Client::new(config);
    let script = tokio::spawn(async move {
        let mut mute = broker.accept().await?;
        let mut peer = loop {
            tokio::select! {
                peer = broker.accept() => break peer?,
                () = tokio::time::sleep(Duration::from_millis(100)) => drop(mute.send(0x17, 1, &[]).await),
            }
        };
        let request = peer.expect(0x1c).await?;
        peer.answer_stats(&request, 0, 7).await?;
        anyhow::Ok(peer)
    });
    let answered = timeout(PATIENCE, async {
        loop {
            if let Ok(stats) = client.stats("s").await {
                return stats.end();
            }
        }
    });
    assert_eq!(answered.await?, Some(7));
    assert_eq!(client.counters().connections_lost.get(), 1);
    script.await??;
    Ok(())
}

#[tokio::test]
async fn a_broker_with_messages_that_sends_none_is_asked_again_at_the_exact_offset() -> Result<()> {
    let broker = FakeBroker::bind("4.3.6").await?;
    let client = client(&broker);
    let mut subscription = client.subscribe("s", Start::First);
    let script = tokio::spawn(async move {
        let mut peer = broker.accept().await?;
        let first = peer.subscribed(&HashMap::from([("s", (0, 1))])).await?;
        ensure!(first.kind == 1, "{first:?}");
        peer.deliver(first.id, 0, &["0", "1"]).await?;
        // Three messages more, and silence. The last chunk is [2, 3, 4].
        let again = peer.subscribed(&HashMap::from([("s", (0, 4))])).await?;
        ensure!((again.kind, again.offset) == (4, Some(1)), "{again:?}");
        peer.deliver(again.id, 0, &["0", "1"]).await?;
        peer.deliver(again.id, 2, &["2", "3", "4"]).await?;
        anyhow::Ok(peer)
    });
    assert_eq!(attached(&mut subscription).await, None);
    assert_eq!(numbers(&take(&mut subscription, 5).await), [0, 1, 2, 3, 4]);
    assert_eq!(client.counters().watchdog_restarts.get(), 1);
    script.await??;
    Ok(())
}

#[tokio::test]
async fn a_close_by_the_broker_is_answered() -> Result<()> {
    let broker = FakeBroker::bind("4.3.6").await?;
    let client = client(&broker);
    let mut subscription = client.subscribe("s", Start::First);
    let script = tokio::spawn(async move {
        let mut peer = broker.accept().await?;
        peer.subscribed(&HashMap::new()).await?;
        peer.send(0x16, 1, &[&[0, 0, 0, 9, 0, OK as u8, 0, 3][..], b"bye"].concat()).await?;
        let answer = peer.expect(0x8016).await?;
        ensure!(answer.body == [0, 0, 0, 9, 0, OK as u8], "{answer:?}");
        anyhow::Ok(broker)
    });
    attached(&mut subscription).await;
    let Event::Down { reason } = event(&mut subscription).await else { panic!("expected an outage") };
    assert!(reason.to_string().contains("bye"), "{reason}");
    let broker = script.await??;
    // And it comes back.
    let mut peer = timeout(PATIENCE, broker.accept()).await??;
    peer.subscribed(&HashMap::new()).await?;
    attached(&mut subscription).await;
    Ok(())
}

#[tokio::test]
async fn more_chunks_than_credit_end_that_subscription_only() -> Result<()> {
    let broker = FakeBroker::bind("4.3.6").await?;
    let mut config = config(broker.address.clone(), "/");
    config.credits = 1;
    let client = Client::new(config);
    let mut greedy = client.subscribe("greedy", Start::First);
    let mut peer_task = timeout(PATIENCE, broker.accept()).await??;
    let stats = HashMap::new();
    let first = peer_task.subscribed(&stats).await?;
    attached(&mut greedy).await;
    let mut modest = client.subscribe("modest", Start::First);
    let second = peer_task.subscribed(&stats).await?;
    attached(&mut modest).await;
    // Nobody reads `greedy`: its queues fill up.
    for n in 0..20 {
        peer_task.deliver(first.id, n, &["1"]).await?;
    }
    peer_task.deliver(second.id, 0, &["7"]).await?;
    assert_eq!(numbers(&take(&mut modest, 1).await), [7]);
    assert_eq!(client.counters().connections_lost.get(), 0);
    Ok(())
}

#[tokio::test]
async fn nonsense_ends_the_connection_and_nothing_else() -> Result<()> {
    let broker = FakeBroker::bind("4.3.6").await?;
    let client = client(&broker);
    let mut subscription = client.subscribe("s", Start::First);
    let nonsense: [&[u8]; 5] = [
        &[0, 0, 0, 1, 9],                                  // a frame smaller than its header
        &[0, 0, 0, 5, 0, 8, 0, 1, 0],                      // a chunk without a header
        &[0, 0, 0, 4, 0, 0x10, 0, 1],                      // a metadata update about nothing
        &[0, 0, 0, 5, 0x80, 0x1c, 0, 1, 0],                // an answer without a correlation id
        &[0xff, 0xff, 0xff, 0xff, 0, 0x16, 0, 1, 0, 0, 0], // four gigabytes of a close
    ];
    for bytes in nonsense {
        let mut peer = timeout(PATIENCE, broker.accept()).await??;
        peer.subscribed(&HashMap::new()).await?;
        attached(&mut subscription).await;
        peer.bytes(bytes).await?;
        peer.bytes(&[0; 200]).await?;
        let Event::Down { reason } = event(&mut subscription).await else { panic!("expected an outage") };
        assert!(matches!(reason, Error::Protocol(_)), "{reason}");
    }
    Ok(())
}

#[tokio::test]
async fn an_old_broker_gets_a_connection_for_each_subscription() -> Result<()> {
    let broker = FakeBroker::bind("4.0.5").await?;
    let client = client(&broker);
    let script = tokio::spawn(async move {
        let mut peers = Vec::new();
        for _ in 0..3 {
            let mut peer = broker.accept().await?;
            peer.subscribed(&HashMap::new()).await?;
            peers.push(peer);
        }
        anyhow::Ok(peers)
    });
    let mut subscriptions: Vec<_> = (0..3).map(|_| client.subscribe("s", Start::First)).collect();
    for subscription in &mut subscriptions {
        attached(subscription).await;
    }
    assert_eq!(client.counters().connections.get(), 3);
    script.await??;
    Ok(())
}

#[tokio::test]
async fn a_stream_on_another_node_is_read_there() -> Result<()> {
    let (here, there) = (FakeBroker::bind("4.3.6").await?, FakeBroker::bind("4.3.6").await?);
    let client = client(&here);
    let mut subscription = client.subscribe("s", Start::First);
    let elsewhere = there.address.clone();
    let script = tokio::spawn(async move {
        let mut peer = here.accept().await?;
        let stats = peer.expect(0x1c).await?;
        peer.answer(&stats, 6, &[]).await?;
        let metadata = peer.expect(0x0f).await?;
        peer.answer_members(&metadata, &[&elsewhere]).await?;
        // It may ask here again: a node's own address need not be reachable.
        let mut at_home = tokio::spawn(async move {
            while let Ok(mut peer) = here.accept().await {
                while let Ok(request) = peer.request().await {
                    let _ = peer.answer(&request, 6, &[]).await;
                }
            }
        });
        let mut peer = tokio::select! { peer = there.accept() => peer?, _ = &mut at_home => unreachable!() };
        let subscribe = peer.subscribed(&HashMap::from([("s", (0, 0))])).await?;
        peer.deliver(subscribe.id, 0, &["42"]).await?;
        at_home.abort();
        anyhow::Ok(peer)
    });
    let Event::Down { reason } = event(&mut subscription).await else { panic!("it is not here") };
    assert!(reason.to_string().contains("not available"), "{reason}");
    assert_eq!(numbers(&take(&mut subscription, 1).await), [42]);
    script.await??;
    Ok(())
}

#[tokio::test]
async fn closing_does_not_wait_for_a_frozen_broker() -> Result<()> {
    let broker = FakeBroker::bind("4.3.6").await?;
    let client = client(&broker);
    let mut subscription = client.subscribe("s", Start::First);
    let mut peer = timeout(PATIENCE, broker.accept()).await??;
    peer.subscribed(&HashMap::new()).await?;
    attached(&mut subscription).await;
    let begin = Instant::now();
    client.close().await;
    assert!(begin.elapsed() < Duration::from_secs(4), "{:?}", begin.elapsed());
    assert!(subscription.recv().await.is_none());
    // It said goodbye all the same.
    timeout(PATIENCE, peer.expect(0x16)).await??;
    Ok(())
}

#[tokio::test]
async fn a_connection_without_work_is_closed_with_a_goodbye() -> Result<()> {
    let broker = FakeBroker::bind("4.3.6").await?;
    let mut config = config(broker.address.clone(), "/");
    config.idle_timeout = Duration::from_millis(500);
    let client = Client::new(config);
    let subscription = client.subscribe("s", Start::First);
    let mut peer = timeout(PATIENCE, broker.accept()).await??;
    peer.subscribed(&HashMap::new()).await?;
    drop(subscription);
    let unsubscribe = timeout(PATIENCE, peer.expect(0x0c)).await??;
    peer.answer(&unsubscribe, OK, &[]).await?;
    timeout(PATIENCE, peer.expect(0x16)).await??;
    eventually("the connection is gone", PATIENCE, || async { Ok(client.counters().connections.get() == 0) }).await?;
    assert_eq!(client.counters().connections_lost.get(), 0);
    Ok(())
}

#[tokio::test]
async fn a_stream_that_has_just_started_is_neither_empty_nor_another_one() -> Result<()> {
    let broker = FakeBroker::bind("4.3.6").await?;
    let client = client(&broker);
    let mut resumed = client.subscribe("s", Start::First);
    let script = tokio::spawn(async move {
        let mut peer = broker.accept().await?;
        let first = peer.subscribed(&HashMap::from([("s", (0, 1))])).await?;
        peer.deliver(first.id, 0, &["0", "1"]).await?;
        // It goes away and comes back, its first offset known, its committed end not yet: for longer than any doubt takes.
        let starting = Instant::now();
        peer.send(0x10, 1, &[0, 6, 0, 1, b's']).await?;
        while starting.elapsed() < Duration::from_secs(4) {
            let request = peer.request().await?;
            match request.key {
                0x1c => peer.answer_stats(&request, 0, -1).await?,
                0x0c => peer.answer(&request, OK, &[]).await?,
                _ => {}
            }
        }
        let again = peer.subscribed(&HashMap::from([("s", (0, 1))])).await?;
        peer.deliver(again.id, 0, &["0", "1"]).await?;
        peer.deliver(again.id, 2, &["2"]).await?;
        anyhow::Ok(peer)
    });
    assert_eq!(numbers(&take(&mut resumed, 3).await), [0, 1, 2]);
    assert_eq!(client.counters().resets.get(), 0);
    script.await??;
    Ok(())
}

#[tokio::test]
async fn a_read_from_a_stream_that_has_just_started_is_no_end() -> Result<()> {
    let broker = FakeBroker::bind("4.3.6").await?;
    let client = client(&broker);
    let script = tokio::spawn(async move {
        let mut peer = broker.accept().await?;
        let stats = peer.expect(0x1c).await?;
        peer.answer_stats(&stats, 0, -1).await?;
        anyhow::Ok(peer)
    });
    let error = client.read("s", 0, 1000, PATIENCE).await.unwrap_err();
    assert!(matches!(error, Error::NotReady), "{error}");
    script.await??;
    Ok(())
}
