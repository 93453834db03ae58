//! What an edge may do on the broker: everything that it needs, and nothing else.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, ensure};
use futures_util::StreamExt;
use futures_util::future::try_join_all;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use wirepost_testing::broker::{PATIENCE, eventually, publish};
use wirepost_testing::client::{Client, Event};
use wirepost_testing::edge::Edge;
use wirepost_testing::service::{Service, payment};
use wirepost_testing::setup::{PAYMENTS, Setup, TRANSIENT};
use wirepost_topology::{Access, EDGE_RIGHTS, EdgeRight};

use crate::sweep::{Object, objects, tried};
use crate::undelivered::waiting;

/// What the second business accepts of the first one.
const ACCEPTS: &str = "  acceptFrom: [{businessType: payments, messageTypes: [price]}]\n";

/// What an edge does on the broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Work {
    /// A client's message gets to the service.
    Send,
    /// A push by HTTP is taken.
    Push,
    /// A push by HTTP to the clients of two businesses is taken.
    Share,
    /// A `Durable` push gets to a client.
    Durable,
    /// A `Transient` one.
    Transient,
    /// The service hears that a client connected.
    Event,
    /// Sessions are revoked at this edge.
    Revoke,
    /// The edge hears of a revocation.
    Hear,
}

const ALL: [Work; 8] =
    [Work::Send, Work::Push, Work::Share, Work::Durable, Work::Transient, Work::Event, Work::Revoke, Work::Hear];

/// What fails without a right. `None`: nothing of that, see [`judging`](crate::undelivered).
fn fails_without(right: &EdgeRight) -> Result<Option<Work>> {
    Ok(Some(match (right.access, right.objects) {
        (Access::Write, "wirepost.B.judge") | (Access::Read, "wirepost.B.receipts") => return Ok(None),
        (_, "wirepost.B.edge.*") | (Access::Read, "wirepost.B.push") => Work::Transient,
        (Access::Write, "wirepost.B.receive") => Work::Send,
        (Access::Write, "wirepost.B.push") => Work::Push,
        (Access::Write, "wirepost.B.share") => Work::Share,
        (Access::Write, "wirepost.B.events") => Work::Event,
        (Access::Read, "wirepost.B.stream") => Work::Durable,
        (Access::Write, "wirepost.control") => Work::Revoke,
        (Access::Read, "wirepost.control") => Work::Hear,
        _ => anyhow::bail!("{right:?} is new: say here what fails without it"),
    }))
}

/// What works, by the edge's name.
#[derive(Clone, Default)]
struct Seen(Arc<Mutex<BTreeSet<(String, Work)>>>);

impl Seen {
    fn works(&self, edge: &str, work: Work) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert((edge.to_owned(), work));
    }

    fn all(&self) -> BTreeSet<(String, Work)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Notes what arrives at a client.
async fn follow(mut client: Client, edge: String, seen: Seen, push: Work) -> Result<()> {
    loop {
        match client.event(PATIENCE).await? {
            Event::Push(_) => seen.works(&edge, push),
            Event::Control(frame) if frame["op"] == "ack" => seen.works(&edge, Work::Send),
            Event::Control(_) | Event::Position(_) => {}
            Event::End(_) => return Ok(()),
        }
    }
}

/// A client of each business, and a message and a push by way of this edge.
async fn use_it(edge: &Edge, name: &str, seen: &Seen) -> Result<[Client; 3]> {
    let mut alice = edge.client(&format!("of-{name}"), "app").greeted().await?;
    alice.send(&json!({"id": "m", "messageType": "order.placed", "content": {}})).await?;
    let bob = edge.client("bob", "app").business("ticker").greeted().await?;
    if edge.post(&payment("nobody", 1)).await?.0 == 200 {
        seen.works(name, Work::Push);
    }
    let shared = json!({"messageType": "price", "toUniqueId": "nobody", "businesses": ["ticker"], "content": {}});
    if edge.post(&shared).await?.0 == 200 {
        seen.works(name, Work::Share);
    }
    if revoke(edge, &format!("nobody-{name}")).await? {
        seen.works(name, Work::Revoke);
    }
    let carol = edge.client(&format!("revoked-at-{name}"), "app").greeted().await?;
    Ok([alice, bob, carol])
}

/// Ends the sessions of an identity; whether this edge could.
async fn revoke(edge: &Edge, unique_id: &str) -> Result<bool> {
    let url = format!("http://{}/payments/websocket/sessions?uniqueId={unique_id}", edge.public);
    let http = reqwest::Client::builder().no_proxy().build()?;
    Ok(http.delete(url).header("x-api-key", edge.setup.api_key()).send().await?.status().is_success())
}

#[tokio::test(flavor = "multi_thread")]
async fn each_right_of_an_edge_is_needed_for_one_thing_and_nothing_else_fails_without_it() -> Result<()> {
    let setup = Setup::new(&[PAYMENTS, &format!("{TRANSIENT}{ACCEPTS}")]).await?;
    let (payments, ticker) = (Service::connect(&setup).await?, Service::of(&setup, "ticker").await?);
    let mut connected = payments.events("connected").await?;
    let mut expected = BTreeSet::from_iter(ALL.map(|work| ("whole".to_owned(), work)));
    let mut edges = vec![("whole".to_owned(), setup.edge("whole").start().await?)];
    for (number, without) in EDGE_RIGHTS.iter().enumerate() {
        let name = format!("without-{number}");
        let fails = fails_without(without)?;
        expected.extend(ALL.into_iter().filter(|work| Some(*work) != fails).map(|work| (name.clone(), work)));
        let rights: Vec<_> = EDGE_RIGHTS.into_iter().filter(|right| right != without).collect();
        edges.push((name.clone(), setup.edge(&name).flag("amqp", setup.edge_amqp_with(&rights).await?).start().await?));
    }

    let (seen, mut tasks) = (Seen::default(), JoinSet::new());
    for ((name, _), [alice, bob, mut carol]) in
        edges.iter().zip(try_join_all(edges.iter().map(|(name, edge)| use_it(edge, name, &seen))).await?)
    {
        tasks.spawn(follow(alice, name.clone(), seen.clone(), Work::Durable));
        tasks.spawn(follow(bob, name.clone(), seen.clone(), Work::Transient));
        let (heard, at) = (seen.clone(), name.clone());
        tasks.spawn(async move {
            carol.end().await?;
            heard.works(&at, Work::Hear);
            Ok(())
        });
    }
    for (name, _) in &edges {
        ensure!(revoke(&edges[0].1, &format!("revoked-at-{name}")).await?, "the whole edge can't revoke");
    }
    let heard = seen.clone();
    tasks.spawn(async move {
        while let Some(Ok(delivery)) = connected.next().await {
            let event: Value = serde_json::from_slice(&delivery.data)?;
            heard.works(event["edge"].as_str().context("an event without its edge")?, Work::Event);
        }
        Ok(())
    });
    let all_work = || async {
        for (name, _) in &edges {
            payments.push(&payment(&format!("of-{name}"), 2)).await?;
        }
        // An edge gets it from the moment on at which it has bound its queue.
        publish(&ticker.channel, "wirepost.ticker.push", "", price().to_string().as_bytes()).await?;
        let missing: Vec<_> = expected.difference(&seen.all()).cloned().collect();
        ensure!(missing.is_empty(), "these do not work: {missing:?}");
        Ok(true)
    };
    eventually("everything works that needs no missing right", PATIENCE, all_work).await?;
    // What works on one edge has had as much time on the others.
    let more: Vec<_> = seen.all().difference(&expected).cloned().collect();
    ensure!(more.is_empty(), "nothing needs the right that these lack: {more:?}");

    // The tag is for alarms.
    let (_, whole) = &edges[0];
    const UNKNOWN: &str = "wirepost_broker_alarms_unknown";
    eventually("alarms are known", PATIENCE, || async { Ok(whole.count(UNKNOWN).await? == 0) }).await?;
    let uri = setup.edge_amqp().await?;
    let user = uri.split(['/', ':']).nth(3).context("no user")?;
    setup.call("PUT", &["users", user], &json!({"password": "edge", "tags": ""})).await?;
    whole.await_metric(UNKNOWN, 1.0).await
}

fn price() -> Value {
    json!({"messageType": "price", "toUniqueId": "*", "content": {}})
}

/// What these rights are meant to allow.
fn meant(rights: &[EdgeRight], objects: &BTreeSet<Object>) -> BTreeSet<(Access, String)> {
    let is = |right: &EdgeRight, name: &str| {
        if !right.objects.starts_with("wirepost.B.") {
            return name == right.objects;
        }
        let Some((prefix, rest)) = name.split_once('.') else { return false };
        let Some((_business, rest)) = rest.split_once('.') else { return false };
        let wanted = right.objects.trim_start_matches("wirepost.B.");
        let matches = wanted.strip_suffix('*').map_or(rest == wanted, |start| rest.starts_with(start));
        prefix == "wirepost" && matches
    };
    let of = |right: &EdgeRight| {
        let access = right.access;
        let right = *right;
        objects.iter().map(Object::name).filter(move |name| is(&right, name)).map(move |name| (access, name.to_owned()))
    };
    rights.iter().flat_map(of).collect()
}

#[tokio::test]
async fn an_edge_can_do_nothing_else_and_a_right_more_would_show() -> Result<()> {
    let setup = Setup::new(&[&waiting(60), &format!("{TRANSIENT}{ACCEPTS}")]).await?;
    let edge = setup.edge("e1").start().await?;
    let _client = edge.client("bob", "app").business("ticker").connect().await?;
    let objects = objects(&setup).await?;
    let own = ("wirepost.payments.edge.probe", "wirepost.payments.push");
    let allowed = tried(&setup.edge_amqp().await?, own, &objects).await?;
    ensure!(
        allowed == meant(&EDGE_RIGHTS, &objects),
        "an edge may do {:#?}",
        allowed.symmetric_difference(&meant(&EDGE_RIGHTS, &objects)).collect::<Vec<_>>()
    );
    for forbidden in ["q.orders", "q.qr-refresh", "dead", "unrouted"].map(|part| format!("wirepost.payments.{part}")) {
        ensure!(objects.iter().any(|it| it.name() == forbidden), "{forbidden} is not there");
        ensure!(allowed.iter().all(|(_, name)| *name != forbidden), "an edge can touch {forbidden}");
    }
    // A right more is seen.
    let more = EdgeRight { access: Access::Read, objects: "wirepost.B.q.*", why: "" };
    let rights: Vec<_> = EDGE_RIGHTS.into_iter().chain([more]).collect();
    let wider = tried(&setup.edge_amqp_with(&rights).await?, own, &objects).await?;
    let seen: BTreeSet<_> = wider.difference(&allowed).cloned().collect();
    ensure!(seen == meant(&[more], &objects) && !seen.is_empty(), "a right more is not seen: {seen:?}");
    Ok(())
}
