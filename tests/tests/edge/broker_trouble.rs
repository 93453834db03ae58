//! Broker outages: sockets stay open, clients get an answer in time, everything recovers within 15 s after the broker, and what was
//! confirmed is not lost. Alarms are in `private_broker.rs`. `WIREPOST_SOAK_SECONDS` makes outages longer.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout};
use wirepost_testing::broker::{PATIENCE, PrivateBroker, eventually};
use wirepost_testing::client::Client;
use wirepost_testing::edge::Edge;
use wirepost_testing::proxy::{Network, Proxy};
use wirepost_testing::service::{Service, payment};
use wirepost_testing::setup::{PAYMENTS, Setup};
use wirepost_testing::traffic::{Outcome, Pusher, Sender, all_pushed, all_queued, all_queued_but};

/// A client is answered within 2 s; the rest is for a busy machine.
const ANSWER: Duration = Duration::from_secs(6);
/// From the broker's return.
const RECOVERY: Duration = Duration::from_secs(15);

fn outage() -> Duration {
    let seconds = std::env::var("WIREPOST_SOAK_SECONDS").ok().and_then(|seconds| seconds.parse().ok());
    Duration::from_secs(seconds.unwrap_or(20))
}

async fn refused(client: &mut Client, id: &str) -> Result<Value> {
    let sent = Instant::now();
    client.send(&json!({"id": id, "messageType": "order.placed"})).await?;
    let nack = client.nack(id).await?;
    ensure!(sent.elapsed() < ANSWER, "answered after {:?}: {nack}", sent.elapsed());
    ensure!(
        nack["code"] == "broker_unavailable" && nack["retryable"] == true && nack["mayHaveArrived"] == false,
        "{nack}"
    );
    Ok(nack)
}

/// Every answer came in time; refusals say what to do.
fn check_answers(outcomes: &[Outcome]) -> Result<()> {
    for outcome in outcomes {
        ensure!(outcome.took < ANSWER, "answered after {:?}: {:?}", outcome.took, outcome.answer);
        if !outcome.acked() {
            let answer = &outcome.answer;
            ensure!(answer["code"] == "broker_unavailable" || answer["code"] == "timeout", "{answer}");
            ensure!(answer["retryable"] == true && answer["mayHaveArrived"].is_boolean(), "{answer}");
        }
    }
    Ok(())
}

/// What an edge does for clients also while the broker is away.
async fn serves_without_broker(edge: &Edge) -> Result<Client> {
    assert_eq!((edge.admin("/livez").await?.0, edge.readyz().await?.0), (200, 200));
    let mut new = edge.client("new", "app").greeted().await?;
    ensure!(new.welcome["resumeToken"].is_string(), "{}", new.welcome);
    new.sync().await?;
    Ok(new)
}

/// Waits until a client that came during the trouble knows where it stands; an edge that has read before knows that at once.
async fn placed(client: &mut Client) -> Result<()> {
    if !client.welcome["resumed"].is_null() {
        return Ok(());
    }
    let placed = async {
        client.unread().await?;
        client.position().await
    };
    timeout(RECOVERY, placed).await.context("a new client does not get its position")?
}

#[tokio::test]
async fn an_edge_starts_without_the_broker_and_works_once_it_is_there() -> Result<()> {
    let broker = PrivateBroker::start("away", &[]).await?;
    let setup = Setup::on(broker.vhost().await?, &[PAYMENTS]).await?;
    broker.stop().await?;
    let edge = setup.edge("e1").start().await?;
    let mut alice = serves_without_broker(&edge).await?;
    for n in 0..3 {
        refused(&mut alice, &format!("away-{n}")).await?;
    }
    let (status, answer) = timeout(ANSWER, edge.post(&payment("new", 0))).await.context("no answer")??;
    assert_eq!((status, &answer["data"]["mayHaveArrived"]), (503, &json!(false)), "{answer}");
    assert_eq!(edge.admin("/configz").await?.1.parse::<Value>()?["broker"], "away");

    broker.start_again().await?;
    timeout(RECOVERY, async {
        alice.unread().await?;
        alice.position().await?;
        for n in 0.. {
            alice.send(&json!({"id": format!("back-{n}"), "messageType": "order.placed"})).await?;
            if alice.answer().await?["op"] == "ack" {
                break;
            }
            sleep(Duration::from_millis(50)).await;
        }
        Service::connect(&setup).await?.push(&payment("new", 1)).await?;
        assert_eq!(alice.numbers(1).await?, [1]);
        anyhow::Ok(())
    })
    .await
    .context("not recovered in time")??;
    assert_eq!(edge.admin("/configz").await?.1.parse::<Value>()?["broker"], "up");
    assert!((edge.metric("wirepost_edge_connections_opened_total").await? - 1.0).abs() < 0.5, "the socket stayed open");
    Ok(())
}

#[tokio::test]
async fn restarted_killed_or_frozen_the_broker_loses_nothing_that_was_confirmed() -> Result<()> {
    let broker = PrivateBroker::start("trouble", &[]).await?;
    let setup = Setup::on(broker.vhost().await?, &[PAYMENTS]).await?;
    let edge = setup.edge("e1").start().await?;
    let mut bob = edge.client("bob", "app").connect().await?;
    let mut sender = Sender::start(edge.client("alice", "app").connect().await?);
    let mut pusher = Pusher::start(&setup, "payments", "bob");
    sender.next_ack(PATIENCE).await?;
    pusher.next_confirm(PATIENCE).await?;
    let mut news = Vec::new();
    for trouble in ["restarted", "killed -9", "frozen"] {
        match trouble {
            "restarted" => broker.stop().await?,
            "killed -9" => broker.kill9().await?,
            _ => broker.pause().await?,
        }
        let away = async {
            news.push(serves_without_broker(&edge).await?);
            sleep(if trouble == "frozen" { outage() } else { Duration::from_secs(3) }).await;
            assert_eq!((edge.admin("/livez").await?.0, edge.readyz().await?.0), (200, 200));
            anyhow::Ok(())
        };
        away.await.context(trouble)?;
        match trouble {
            "frozen" => broker.resume().await?,
            _ => broker.start_again().await?,
        }
        sender.next_ack(RECOVERY).await.context(trouble)?;
        pusher.next_confirm(RECOVERY * 2).await.context(trouble)?;
        // Clients that have connected meanwhile get their position.
        let new = news.last_mut().context("one")?;
        placed(new).await.context(trouble)?;
    }
    let count = pusher.stop().await?;
    all_pushed(&mut bob, count).await?;
    assert!(bob.controls().is_empty(), "no gap: {:?}", bob.controls());
    let (mut alice, outcomes) = sender.stop().await?;
    alice.sync().await?;
    check_answers(&outcomes)?;
    let refused = outcomes.iter().filter(|outcome| outcome.answer["code"] == "broker_unavailable").count();
    assert!(refused > 0, "no client was told that the broker is away");
    all_queued(&setup, "payments", &outcomes).await?;
    // All sockets that were opened are open.
    assert!((edge.metric("wirepost_edge_connections").await? - 2.0 - news.len() as f64).abs() < 0.5);
    Ok(())
}

#[tokio::test]
async fn packets_of_amqp_that_are_dropped_are_noticed_and_nothing_hangs() -> Result<()> {
    let setup = Setup::new(&[PAYMENTS]).await?;
    let (network, amqp) = Proxy::of_uri(&setup.vhost().amqp()).await?;
    let edge = setup.edge("e1").flag("amqp", amqp).start().await?;
    let mut sender = Sender::start(edge.client("alice", "app").connect().await?);
    for trouble in [Network::Stalled, Network::DownStalled, Network::UpStalled] {
        sender.next_ack(RECOVERY).await?;
        network.set(trouble);
        sleep(Duration::from_secs(5)).await;
        network.set(Network::Fine);
    }
    sender.next_ack(RECOVERY).await?;
    network.cut();
    sender.next_ack(RECOVERY).await?;
    let (_, outcomes) = sender.stop().await?;
    check_answers(&outcomes)?;
    all_queued(&setup, "payments", &outcomes).await
}

#[tokio::test]
async fn one_businesss_missing_exchange_and_stream_are_not_anothers_trouble() -> Result<()> {
    let bank = PAYMENTS.replace("name: payments", "name: bank");
    let setup = Setup::new(&[PAYMENTS, &bank]).await?;
    let edge = setup.edge("e1").start().await?;
    let mut payments = Sender::start(edge.client("alice", "app").connect().await?);
    let mut bank = Sender::start(edge.client("alice", "app").business("bank").connect().await?);
    let mut carol = edge.client("carol", "app").business("bank").connect().await?;
    let mut pusher = Pusher::start(&setup, "bank", "carol");
    payments.next_ack(PATIENCE).await?;
    bank.next_ack(PATIENCE).await?;
    for _ in 0..2 {
        setup.delete_exchange("wirepost.payments.receive").await?;
        setup.delete_exchange("wirepost.payments.push").await?;
        setup.delete_exchange("wirepost.payments.events").await?;
        setup.delete_queue("wirepost.payments.stream").await?;
        // The other one's traffic all the while.
        for _ in 0..20 {
            bank.next_ack(ANSWER).await?;
            pusher.next_confirm(ANSWER).await?;
        }
        setup.repair().await?;
        payments.next_ack(RECOVERY).await?;
    }
    let (mut alice, outcomes) = payments.stop().await?;
    check_answers(&outcomes)?;
    assert!(outcomes.iter().any(|outcome| !outcome.acked()), "nobody noticed the missing exchange");
    // Between an exchange and its bindings lies a moment in which messages go to `unrouted`: kept, and moved back by who repairs.
    let moved = setup.move_back("payments").await?;
    assert_eq!(moved.stopped, None);
    all_queued_but(&setup, "payments", &outcomes, moved.moved).await?;
    // It has a new stream: its clients get a gap, and pushes arrive.
    assert_eq!(alice.gap().await?, "incarnation");
    let (_, outcomes) = bank.stop().await?;
    // Who waits for longer than 2 s is refused: nobody did.
    assert!(outcomes.iter().all(Outcome::acked), "the bank was refused something");
    all_queued(&setup, "bank", &outcomes).await?;
    let count = pusher.stop().await?;
    all_pushed(&mut carol, count).await?;
    assert!(carol.controls().is_empty(), "{:?}", carol.controls());
    Service::connect(&setup).await?.push(&payment("alice", 7)).await?;
    let seven = timeout(RECOVERY, async {
        loop {
            // Each new stream may be reported.
            match alice.push().await {
                Ok(push) => break anyhow::Ok(push),
                Err(_) => assert_eq!(alice.gap().await?, "incarnation"),
            }
        }
    });
    assert_eq!(seven.await.context("nothing comes any more")??["content"]["n"], 7);
    Ok(())
}

#[tokio::test]
async fn credentials_are_read_again_from_their_files() -> Result<()> {
    let setup = Setup::new(&[PAYMENTS]).await?;
    let vhost = setup.vhost().name.clone();
    let user = format!("edge-of-{vhost}");
    let set_password = async |password: &str| {
        setup.call("PUT", &["users", &user], &json!({"password": password, "tags": "monitoring"})).await
    };
    let write = |name: &str, content: &str| -> Result<String> {
        let (path, new) = (setup.dir().join(name), setup.dir().join(format!("{name}.new")));
        std::fs::write(&new, content)?;
        std::fs::rename(new, &path)?;
        Ok(path.display().to_string())
    };
    set_password("pass-8d41").await?;
    let everything = json!({"configure": ".*", "write": ".*", "read": ".*"});
    setup.call("PUT", &["permissions", &vhost, &user], &everything).await?;
    let (username_file, password_file) = (write("username", &user)?, write("password", "pass-8d41\n")?);
    let edge = setup
        .edge("e1")
        .flag("amqp-username-file", username_file)
        .flag("amqp-password-file", password_file)
        .start()
        .await?;
    let mut bob = edge.client("bob", "app").connect().await?;
    let mut sender = Sender::start(edge.client("alice", "app").connect().await?);
    let mut pusher = Pusher::start(&setup, "payments", "bob");
    sender.next_ack(PATIENCE).await?;

    // The password changes, the file follows later, as a mounted Secret does.
    set_password("pass-c07e").await?;
    let lost = edge.metric("wirepost_broker_connections_lost").await?;
    eventually("the edge's connections are closed", PATIENCE, || async {
        setup.call("DELETE", &["connections", "username", &user], &Value::Null).await?;
        Ok(edge.metric("wirepost_broker_connections_lost").await? >= lost + 2.0
            && edge.metric("wirepost_broker_stream_connections_lost").await? >= 1.0)
    })
    .await?;
    let mut late = edge.client("late", "app").greeted().await?;
    refused(&mut late, "old-password").await?;
    write("password", "pass-c07e\n")?;
    sender.next_ack(RECOVERY).await?;
    pusher.next_confirm(RECOVERY).await?;
    placed(&mut late).await?;
    let count = pusher.stop().await?;
    all_pushed(&mut bob, count).await?;
    let (_, outcomes) = sender.stop().await?;
    check_answers(&outcomes)?;
    all_queued(&setup, "payments", &outcomes).await?;
    for password in ["pass-8d41", "pass-c07e"] {
        assert!(!edge.log().contains(password), "the log holds a password");
    }
    setup.call("DELETE", &["users", &user], &Value::Null).await
}
