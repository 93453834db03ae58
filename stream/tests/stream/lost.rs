//! What is lost to a reader, and what only seems to be, shown by a scripted broker: real ones are too fast.

use std::collections::HashMap;

use anyhow::{Context, Result, ensure};
use tokio::time::timeout;
use wirepost_stream::{Client, Event, ReadBatch, Start, Subscription};
use wirepost_testing::broker::PATIENCE;

use crate::fake::{FakeBroker, OK, Peer};
use crate::raw::data_message;
use crate::support::{attached, config, event, numbers, take};

/// First offset and committed end of the only stream.
fn stats(first: i64, end: i64) -> HashMap<&'static str, (i64, i64)> {
    HashMap::from([("s", (first, end))])
}

fn read(batch: &ReadBatch) -> Vec<u64> {
    numbers(&batch.batches.iter().flat_map(|batch| batch.iter()).collect::<Vec<_>>())
}

/// A reader that has got the first two messages of a stream with this end: the broker, its side of the connection, the subscription's
/// number there, and the subscription.
async fn read_two(end: i64) -> Result<(FakeBroker, Peer, u8, Subscription)> {
    let broker = FakeBroker::bind("4.3.6").await?;
    let client = Client::new(config(broker.address.clone(), "/"));
    let mut subscription = client.subscribe("s", Start::First);
    let mut peer = timeout(PATIENCE, broker.accept()).await??;
    let first = peer.subscribed(&stats(0, end)).await?;
    peer.deliver(first.id, 0, &["0", "1"]).await?;
    attached(&mut subscription).await;
    assert_eq!(numbers(&take(&mut subscription, 2).await), [0, 1]);
    Ok((broker, peer, first.id, subscription))
}

/// Sends a message behind missing offsets, and answers what the client asks then: where the stream begins now, and its end.
async fn skip(peer: &mut Peer, id: u8, next: u64, (first, end): (i64, i64)) -> Result<()> {
    peer.deliver(id, next, &["2"]).await?;
    let asked = peer.expect(0x1c).await?;
    peer.answer_stats(&asked, first, end).await
}

#[tokio::test]
async fn retention_that_passes_a_chunk_on_its_way_as_well_is_a_gap() -> Result<()> {
    let (_broker, mut peer, first, mut subscription) = read_two(1200).await?;
    // 2 to 499 are deleted before they are sent, and 500 before it is read.
    skip(&mut peer, first, 500, (1000, 1200)).await?;
    let Event::Gap { first_offset: 500 } = event(&mut subscription).await else { panic!("expected a gap") };
    assert_eq!(numbers(&take(&mut subscription, 1).await), [2]);
    Ok(())
}

/// Retention deletes what comes next; then the stream is declared anew, while what was left of it is on its way.
#[tokio::test]
async fn what_another_stream_of_that_name_has_says_nothing_of_missing_offsets() -> Result<()> {
    let (_broker, mut peer, first, mut subscription) = read_two(1200).await?;
    skip(&mut peer, first, 500, (0, 6)).await?;
    let Event::Gap { first_offset: 500 } = event(&mut subscription).await else { panic!("expected a gap") };
    assert_eq!(numbers(&take(&mut subscription, 1).await), [2]);
    Ok(())
}

/// It may be the same stream, of which retention has deleted what was seen, or another one: nothing is there to tell.
#[tokio::test]
async fn a_stream_that_begins_right_behind_what_was_seen_is_a_gap() -> Result<()> {
    let (_broker, mut peer, _, mut subscription) = read_two(1).await?;
    peer.send(0x10, 1, &[0, 6, 0, 1, b's']).await?;
    let again = peer.subscribed(&stats(2, 1200)).await?;
    skip(&mut peer, again.id, 2, (2, 1200)).await?;
    let gap = loop {
        match event(&mut subscription).await {
            Event::Down { .. } => {}
            other => break other,
        }
    };
    assert!(matches!(gap, Event::Gap { first_offset: 2 }), "{gap:?}");
    assert_eq!(attached(&mut subscription).await, None);
    assert_eq!(numbers(&take(&mut subscription, 1).await), [2]);
    Ok(())
}

#[tokio::test]
async fn a_page_goes_over_unused_offsets_and_ends_before_deleted_ones() -> Result<()> {
    let broker = FakeBroker::bind("4.3.6").await?;
    let client = Client::new(config(broker.address.clone(), "/"));
    let script = tokio::spawn(async move {
        let mut peer = broker.accept().await?;
        let page = peer.subscribed(&stats(0, 1200)).await?;
        peer.deliver(page.id, 0, &["0", "1"]).await?;
        // The first offset of a new segment.
        skip(&mut peer, page.id, 3, (0, 1200)).await?;
        skip(&mut peer, page.id, 500, (400, 1200)).await?;
        // And of the next page the first message is there, and nothing after it.
        let page = peer.subscribed(&stats(0, 1200)).await?;
        peer.deliver(page.id, 3, &["2"]).await?;
        skip(&mut peer, page.id, 500, (400, 1200)).await?;
        anyhow::Ok(peer)
    });
    let page = client.read("s", 1, 1 << 20, PATIENCE).await?;
    assert_eq!((read(&page), page.next, page.lost, page.at_end), (vec![1, 2], 4, true, false));
    let page = client.read("s", 3, 1 << 20, PATIENCE).await?;
    assert_eq!((read(&page), page.next, page.lost, page.at_end), (vec![2], 4, true, false));
    script.await??;
    Ok(())
}

#[tokio::test]
async fn a_page_ends_before_a_chunk_that_is_too_large() -> Result<()> {
    let broker = FakeBroker::bind("4.3.6").await?;
    let mut config = config(broker.address.clone(), "/");
    config.max_frame_bytes = 1000;
    let client = Client::new(config);
    let script = tokio::spawn(async move {
        let mut peer = broker.accept().await?;
        let page = peer.subscribed(&stats(0, 3)).await?;
        peer.deliver(page.id, 0, &["0", "1"]).await?;
        peer.deliver(page.id, 2, &[&"2".repeat(2000)]).await?;
        peer.deliver(page.id, 3, &["3"]).await?;
        anyhow::Ok(peer)
    });
    let page = client.read("s", 0, 1 << 20, PATIENCE).await?;
    assert_eq!((read(&page), page.next, page.lost, page.at_end), (vec![0, 1], 2, true, false));
    script.await??;
    Ok(())
}

#[tokio::test]
async fn a_last_message_that_is_not_amqp_has_the_position_at_which_reading_goes_on() -> Result<()> {
    let broker = FakeBroker::bind("4.3.6").await?;
    let client = Client::new(config(broker.address.clone(), "/"));
    let mut subscription = client.subscribe("s", Start::First);
    let mut peer = timeout(PATIENCE, broker.accept()).await??;
    let messages = [data_message(b"0"), b"no amqp".to_vec()];
    let first = peer.subscribed(&stats(0, 1)).await?;
    peer.deliver_raw(first.id, 0, &messages).await?;
    attached(&mut subscription).await;
    let Event::Messages(batch) = event(&mut subscription).await else { panic!("expected messages") };
    let last = batch.iter().last().context("two messages")?;
    assert!(last.is_malformed() && last.body().is_empty());
    let position = last.position();
    drop(batch);
    peer.send(0x10, 1, &[0, 6, 0, 1, b's']).await?;
    let again = peer.subscribed(&stats(0, 1)).await?;
    peer.deliver_raw(again.id, 0, &messages).await?;
    assert_eq!(attached(&mut subscription).await, Some(position));
    Ok(())
}

/// A replica that has the first message only, and names the members when it is asked.
async fn lags(peer: &mut Peer, members: &[&(String, u16)]) -> Result<()> {
    loop {
        let request = peer.request().await?;
        match request.key {
            0x1c => peer.answer_stats(&request, 0, 0).await?,
            0x0f => peer.answer_members(&request, members).await?,
            0x0c => peer.answer(&request, OK, &[]).await?,
            0x09 => {}
            other => anyhow::bail!("unexpected {other:#x}"),
        }
    }
}

#[tokio::test]
async fn a_replica_that_lags_is_no_new_stream() -> Result<()> {
    let (replica, leader) = (FakeBroker::bind("4.3.6").await?, FakeBroker::bind("4.3.6").await?);
    let client = Client::new(config(replica.address.clone(), "/"));
    let mut subscription = client.subscribe("s", Start::First);
    let members = [leader.address.clone(), replica.address.clone()];
    let behind = tokio::spawn(async move {
        let mut peer = replica.accept().await?;
        let first = peer.subscribed(&stats(0, 2)).await?;
        peer.deliver(first.id, 0, &["0", "1", "2"]).await?;
        // The subscription ends, as when the node goes; the one that is asked next is behind it.
        peer.send(0x10, 1, &[0, 6, 0, 1, b's']).await?;
        lags(&mut peer, &members.each_ref()).await
    });
    let script = tokio::spawn(async move {
        let mut peer = leader.accept().await?;
        let again = peer.subscribed(&stats(0, 3)).await?;
        peer.deliver(again.id, 0, &["0", "1", "2"]).await?;
        peer.deliver(again.id, 3, &["3"]).await?;
        anyhow::Ok(peer)
    });
    assert_eq!(numbers(&take(&mut subscription, 4).await), [0, 1, 2, 3]);
    assert_eq!(client.counters().resets.get(), 0);
    ensure!(!behind.is_finished(), "{:?}", behind.await);
    script.await??;
    Ok(())
}

#[tokio::test]
async fn a_read_beyond_the_end_of_a_replica_is_answered_by_the_leader() -> Result<()> {
    let (replica, leader) = (FakeBroker::bind("4.3.6").await?, FakeBroker::bind("4.3.6").await?);
    let client = Client::new(config(replica.address.clone(), "/"));
    let members = [leader.address.clone(), replica.address.clone()];
    let behind = tokio::spawn(async move {
        let mut peer = replica.accept().await?;
        lags(&mut peer, &members.each_ref()).await
    });
    let script = tokio::spawn(async move {
        let mut peer = leader.accept().await?;
        let page = peer.subscribed(&stats(0, 3)).await?;
        peer.deliver(page.id, 3, &["3"]).await?;
        anyhow::Ok(peer)
    });
    let page = client.read("s", 3, 1 << 20, PATIENCE).await?;
    assert_eq!((read(&page), page.at_end), (vec![3], true));
    ensure!(!behind.is_finished(), "{:?}", behind.await);
    script.await??;
    Ok(())
}

#[tokio::test]
async fn a_page_goes_over_unreadable_messages_of_any_size() -> Result<()> {
    let broker = FakeBroker::bind("4.3.6").await?;
    let client = Client::new(config(broker.address.clone(), "/"));
    let script = tokio::spawn(async move {
        let mut peer = broker.accept().await?;
        let page = peer.subscribed(&stats(0, 1200)).await?;
        peer.deliver(page.id, 0, &["0"]).await?;
        // As many chunks as there are credits, with this one and the last.
        for chunk in 0..2 {
            peer.deliver_compressed(page.id, 1 + 50 * chunk, 50, 1000).await?;
        }
        peer.deliver(page.id, 101, &["101"]).await?;
        anyhow::Ok(peer)
    });
    let page = client.read("s", 0, 1000, PATIENCE).await?;
    assert_eq!((read(&page), page.next, page.lost, page.at_end), (vec![0, 101], 102, false, false));
    assert_eq!((page.batches.len(), client.counters().skipped_messages.get()), (2, 100), "they take no memory");
    script.await??;
    Ok(())
}

#[tokio::test]
async fn next_does_not_begin_in_the_past_of_a_replica_that_lags() -> Result<()> {
    // It has nothing of the stream yet; it has a part of it.
    for newest in [-1, 2] {
        let (replica, leader) = (FakeBroker::bind("4.3.6").await?, FakeBroker::bind("4.3.6").await?);
        let client = Client::new(config(replica.address.clone(), "/"));
        let mut subscription = client.subscribe("s", Start::Next);
        let members = [leader.address.clone(), replica.address.clone()];
        let at_replica = tokio::spawn(async move {
            let mut peer = replica.accept().await?;
            peer.subscribed_as(&stats(newest.min(0), newest), &members.each_ref()).await
        });
        let script = tokio::spawn(async move {
            let mut peer = leader.accept().await?;
            let members = [leader.address.clone()];
            let last = peer.subscribed_as(&stats(0, 5), &members.each_ref()).await?;
            ensure!(last.kind == 2, "{last:?}");
            peer.deliver(last.id, 4, &["4", "5"]).await?;
            peer.deliver(last.id, 6, &["6"]).await?;
            anyhow::Ok(peer)
        });
        assert_eq!(attached(&mut subscription).await.map(|position| position.offset), Some(5));
        assert_eq!(numbers(&take(&mut subscription, 1).await), [6]);
        ensure!(!at_replica.is_finished(), "it was read: {:?}", at_replica.await);
        script.await??;
    }
    Ok(())
}

#[tokio::test]
async fn next_begins_at_a_replica_that_has_what_its_leader_has_or_whose_leader_is_out_of_reach() -> Result<()> {
    for reachable in [true, false] {
        let (replica, leader) = (FakeBroker::bind("4.3.6").await?, FakeBroker::bind("4.3.6").await?);
        let client = Client::new(config(replica.address.clone(), "/"));
        let mut subscription = client.subscribe("s", Start::Next);
        let members = [leader.address.clone(), replica.address.clone()];
        let asked = if reachable {
            tokio::spawn(async move {
                let mut peer = leader.accept().await?;
                peer.subscribed_as(&stats(0, 5), &[]).await
            })
        } else {
            drop(leader);
            tokio::spawn(std::future::pending())
        };
        let mut peer = timeout(PATIENCE, replica.accept()).await??;
        let last = peer.subscribed_as(&stats(0, 5), &members.each_ref()).await?;
        ensure!(last.kind == 2, "{last:?}");
        peer.deliver(last.id, 4, &["4", "5"]).await?;
        assert_eq!(attached(&mut subscription).await.map(|position| position.offset), Some(5));
        ensure!(!asked.is_finished(), "the leader was read: {:?}", asked.await);
    }
    Ok(())
}
