//! `receiptsWithinSeconds`: who gave no receipt in time is reported, whatever becomes of edges and broker meanwhile.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use lapin::Consumer;
use lapin::options::{QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use serde_json::{Value, json};
use tokio::time::timeout;
use wirepost_testing::broker::{PATIENCE, PrivateBroker, consume, eventually};
use wirepost_testing::client::Client;
use wirepost_testing::edge::Edge;
use wirepost_testing::service::{Service, next_json};
use wirepost_testing::setup::{PAYMENTS, Setup};
use wirepost_topology::{Access, EDGE_RIGHTS};

const WITHIN: Duration = Duration::from_secs(8);

/// [`PAYMENTS`], whose payments are to be reported within so many seconds.
pub(crate) fn waiting(seconds: u32) -> String {
    PAYMENTS.replace("receipts: true", &format!("receipts: true, receiptsWithinSeconds: {seconds}"))
}

fn payment(id: &str, to: &str) -> Value {
    json!({"id": id, "messageType": "payment.completed", "toUniqueId": to, "content": {}})
}

/// The edge that judges.
async fn judge<'e>(edges: &[&'e Edge]) -> Result<&'e Edge> {
    let found = Mutex::new(None);
    let judges = || async {
        for edge in edges {
            if edge.count("wirepost_edge_judging").await? == 1 {
                *found.lock().unwrap_or_else(PoisonError::into_inner) = Some(*edge);
                return Ok(true);
            }
        }
        Ok(false)
    };
    eventually("an edge judges", PATIENCE, judges).await?;
    found.into_inner().unwrap_or_else(PoisonError::into_inner).context("no edge")
}

/// Pushes to somebody who is not there until that is reported: from then on everything is followed.
async fn follows(service: &Service, events: &mut Consumer) -> Result<()> {
    for n in 0..10 {
        service.push(&payment(&format!("begin-{n}"), "nobody")).await?;
        if let Ok(event) = timeout(WITHIN * 2, next_json(events)).await {
            ensure!(event?["uniqueId"] == "nobody");
            return Ok(());
        }
    }
    bail!("nothing is reported")
}

async fn report(client: &mut Client, id: &str) -> Result<()> {
    client.send(&json!({"op": "received", "ids": [id]})).await?;
    assert_eq!(client.control("receipt").await?["ids"], json!([id]));
    Ok(())
}

/// How often each was reported, until the last one is.
async fn reported(events: &mut Consumer, last: &str) -> Result<BTreeMap<String, usize>> {
    let mut all = BTreeMap::new();
    loop {
        let event = next_json(events).await?;
        let text = |field: &str| event[field].as_str().unwrap_or_default().to_owned();
        let (id, key) = (text("id"), format!("{} {}", text("id"), text("uniqueId")));
        if !id.starts_with("begin-") {
            *all.entry(key).or_default() += 1;
        }
        if id == last {
            return Ok(all);
        }
    }
}

fn once(keys: &[&str]) -> BTreeMap<String, usize> {
    keys.iter().map(|key| ((*key).to_owned(), 1)).collect()
}

#[tokio::test]
async fn whoever_reports_in_time_is_not_reported_and_who_is_late_or_away_is_once() -> Result<()> {
    let setup = Setup::new(&[&waiting(8)]).await?;
    let (e1, e2) = (setup.edge("e1").start().await?, setup.edge("e2").start().await?);
    let service = Service::connect(&setup).await?;
    let (mut events, mut delivered) = (service.events("undelivered").await?, service.events("delivered").await?);
    judge(&[&e1, &e2]).await?;
    follows(&service, &mut events).await?;
    let mut clients = [e1.client("alice", "app").connect().await?, e2.client("bob", "app").connect().await?];
    let mut late = e2.client("late", "app").connect().await?;
    for id in ["by-amqp", "by-http"] {
        for to in ["alice", "bob"] {
            let push = payment(&format!("{id}-{to}"), to);
            if id == "by-amqp" {
                service.push(&push).await?;
            } else {
                assert_eq!(e1.post(&push).await?.0, 200);
            }
        }
    }
    service.push(&payment("late", "late")).await?;
    assert_eq!(e2.post(&payment("away", "away")).await?.0, 200);
    // Nobody is named, or no receipt is asked for, or it is no push of the business.
    service.push(&json!({"id": "tags", "messageType": "payment.completed", "tags": ["vip"]})).await?;
    service.push(&json!({"id": "plain", "messageType": "till.notice", "toUniqueId": "alice"})).await?;
    service.push(&json!({"id": "unknown", "messageType": "unknown", "toUniqueId": "alice"})).await?;
    // Shorter than the time: it is over for clients, and the time goes on.
    let mut short = payment("short", "away");
    short["expiresAt"] = json!(SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis() as u64 + 2_000);
    service.push(&short).await?;
    for client in &mut clients {
        for _ in 0..2 {
            let id = client.push().await?["id"].as_str().context("no id")?.to_owned();
            report(client, &id).await?;
            assert_eq!(next_json(&mut delivered).await?["ids"], json!([id]));
        }
    }
    // Given again in time, with the same id: clients drop it, and do not report it again.
    service.push(&payment("by-amqp-alice", "alice")).await?;
    service.push(&payment("end", "end")).await?;
    let all = reported(&mut events, "end").await?;
    assert_eq!(all, once(&["late late", "away away", "short away", "end end"]));
    let id = late.push().await?["id"].as_str().context("no id")?.to_owned();
    report(&mut late, &id).await?;
    assert_eq!(next_json(&mut delivered).await?["ids"], json!(["late"]), "it comes all the same");
    let told = e1.count("wirepost_edge_undelivered_total").await? + e2.count("wirepost_edge_undelivered_total").await?;
    ensure!(told >= 4, "{told}");
    Ok(())
}

#[tokio::test]
async fn an_edge_that_dies_between_push_and_time_is_replaced_and_knows_who_reported_meanwhile() -> Result<()> {
    let setup = Setup::new(&[&waiting(8)]).await?;
    let (e1, e2) = (setup.edge("e1").start().await?, setup.edge("e2").start().await?);
    let service = Service::connect(&setup).await?;
    let mut events = service.events("undelivered").await?;
    let dies = judge(&[&e1, &e2]).await?;
    let lives = if std::ptr::eq(dies, &raw const e1) { &e2 } else { &e1 };
    follows(&service, &mut events).await?;
    let mut alice = lives.client("alice", "app").connect().await?;
    service.push(&payment("missing", "bob")).await?;
    service.push(&payment("received", "alice")).await?;
    dies.kill9()?;
    assert_eq!(alice.push().await?["id"], "received");
    report(&mut alice, "received").await?;
    service.push(&payment("end", "end")).await?;
    let all = reported(&mut events, "end").await?;
    ensure!(all.keys().collect::<Vec<_>>() == ["end end", "missing bob"], "{all:?}");
    assert_eq!(lives.count("wirepost_edge_judging").await?, 1);
    assert_eq!(lives.count("wirepost_edge_judge_gaps_total").await?, 0);
    Ok(())
}

#[tokio::test]
async fn a_broker_that_is_restarted_forgets_nobody() -> Result<()> {
    let broker = PrivateBroker::start("undelivered", &[]).await?;
    let setup = Setup::on(broker.vhost().await?, &[&waiting(8)]).await?;
    let (e1, e2) = (setup.edge("e1").start().await?, setup.edge("e2").start().await?);
    let service = Service::connect(&setup).await?;
    // A queue that outlives its connection.
    let queue = "wirepost.payments.events.kept";
    let mut quorum = FieldTable::default();
    quorum.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    service.channel.queue_declare(queue.into(), durable, quorum).await?;
    let (exchange, options) = ("wirepost.payments.events", QueueBindOptions::default());
    service
        .channel
        .queue_bind(queue.into(), exchange.into(), "undelivered".into(), options, FieldTable::default())
        .await?;
    judge(&[&e1, &e2]).await?;
    let mut alice = e1.client("alice", "app").connect().await?;
    let judging = || async {
        service.push(&payment("begin-x", "nobody")).await?;
        Ok(e1.count("wirepost_edge_undelivered_total").await? + e2.count("wirepost_edge_undelivered_total").await? > 0)
    };
    eventually("pushes are followed", PATIENCE, judging).await?;
    service.push(&payment("missing", "bob")).await?;
    service.push(&payment("received", "alice")).await?;
    assert_eq!(alice.push().await?["id"], "received");
    report(&mut alice, "received").await?;
    broker.kill9().await?;
    broker.start_again().await?;
    let back = || async { Ok(Service::connect(&setup).await.is_ok()) };
    eventually("the broker is back", PATIENCE * 2, back).await?;
    let service = Service::connect(&setup).await?;
    let mut events = consume(&service.channel, queue, 100).await?;
    service.push(&payment("end", "end")).await?;
    let all = timeout(PATIENCE * 2, reported(&mut events, "end")).await.context("not judged in time")??;
    ensure!(all.keys().collect::<Vec<_>>() == ["end end", "missing bob"], "{all:?}");
    Ok(())
}

#[tokio::test]
async fn without_one_of_its_two_rights_an_edge_judges_nothing() -> Result<()> {
    let setup = Setup::new(&[&waiting(8)]).await?;
    let rights = [(Access::Write, "wirepost.B.judge"), (Access::Read, "wirepost.B.receipts")];
    let mut without = Vec::new();
    for (number, right) in rights.iter().enumerate() {
        let others: Vec<_> = EDGE_RIGHTS.into_iter().filter(|has| (has.access, has.objects) != *right).collect();
        ensure!(others.len() == EDGE_RIGHTS.len() - 1, "{right:?} is no right of an edge");
        let amqp = setup.edge_amqp_with(&others).await?;
        without.push(setup.edge(&format!("without-{number}")).flag("amqp", amqp).start().await?);
    }
    // They have had more time than the one that can.
    let whole = setup.edge("whole").start().await?;
    let service = Service::connect(&setup).await?;
    let mut events = service.events("undelivered").await?;
    judge(&[&whole]).await?;
    follows(&service, &mut events).await?;
    // One reads that another edge judges, the other can't know.
    let late = "wirepost_edge_judge_late_seconds";
    without[1].await_metric(late, 20.0).await?;
    for edge in [&whole, &without[0]] {
        let late = edge.metric(late).await?;
        ensure!(late < 15.0, "{late}");
    }
    for edge in &without {
        assert_eq!(edge.count("wirepost_edge_judging").await?, 0);
        assert_eq!(edge.count("wirepost_edge_undelivered_total").await?, 0);
    }
    Ok(())
}

#[tokio::test]
async fn a_stream_of_receipts_that_is_gone_is_noticed_and_what_was_due_meanwhile_is_reported_when_it_is_back()
-> Result<()> {
    let setup = Setup::new(&[&waiting(8)]).await?;
    let edge = setup.edge("e1").start().await?;
    let service = Service::connect(&setup).await?;
    let mut events = service.events("undelivered").await?;
    judge(&[&edge]).await?;
    follows(&service, &mut events).await?;
    let late = "wirepost_edge_judge_late_seconds";
    ensure!(edge.metric(late).await? < 10.0);
    setup.delete_queue("wirepost.payments.receipts").await?;
    service.push(&payment("missing", "bob")).await?;
    edge.await_metric(late, 12.0).await?;
    setup.repair().await?;
    service.push(&payment("end", "end")).await?;
    let all = timeout(PATIENCE * 2, reported(&mut events, "end")).await.context("not judged in time")??;
    ensure!(all.keys().collect::<Vec<_>>() == ["end end", "missing bob"], "{all:?}");
    let in_time = || async { Ok(edge.metric(late).await? < 10.0) };
    eventually("it judges in time", PATIENCE, in_time).await
}
