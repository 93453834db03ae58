//! A client that sends and a service that pushes, without pause, while something else happens to the edge or the broker. What was
//! confirmed to them is remembered, so that a test can ask where it is.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use crate::broker::PATIENCE;
use crate::client::Client;
use crate::service::{Service, next_json, payment};
use crate::setup::Setup;

/// Between two messages: enough of them to hit every moment of an outage, few enough for a busy machine.
const PACE: Duration = Duration::from_millis(20);
/// Between two attempts of a pusher to connect.
const RETRY: Duration = Duration::from_millis(200);

/// What became of one order.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Its number.
    pub n: u64,
    /// The answer's frame.
    pub answer: Value,
    /// From the send to the answer.
    pub took: Duration,
}

impl Outcome {
    /// Whether the edge said that the broker has it.
    pub fn acked(&self) -> bool {
        self.answer["op"] == "ack"
    }
}

/// A client that sends orders one after the other, each after the answer of the last.
#[derive(Debug)]
pub struct Sender {
    stop: watch::Sender<bool>,
    acked: watch::Receiver<u64>,
    task: JoinHandle<Result<(Client, Vec<Outcome>)>>,
}

impl Sender {
    /// Sends as `client`, whose pushes are kept until it comes back from [`Sender::stop`].
    pub fn start(mut client: Client) -> Self {
        let (stop, stopped) = watch::channel(false);
        let (count, acked) = watch::channel(0);
        let task = tokio::spawn(async move {
            let mut outcomes = Vec::new();
            while !*stopped.borrow() {
                let n = outcomes.len() as u64;
                let id = format!("order-{n}");
                let sent = Instant::now();
                client.send(&json!({"id": id, "messageType": "order.placed", "content": {"n": n}})).await?;
                let answer = client.answer().await?;
                ensure!(answer["id"] == id, "an answer to another message than {id}: {answer}");
                let outcome = Outcome { n, answer, took: sent.elapsed() };
                if outcome.acked() {
                    count.send_modify(|count| *count += 1);
                }
                outcomes.push(outcome);
                sleep(PACE).await;
            }
            Ok((client, outcomes))
        });
        Self { stop, acked, task }
    }

    /// Waits until one more order is acknowledged.
    pub async fn next_ack(&mut self, limit: Duration) -> Result<()> {
        let seen = *self.acked.borrow_and_update();
        timeout(limit, self.acked.wait_for(|count| *count > seen))
            .await
            .with_context(|| format!("no order is acknowledged within {limit:?}"))??;
        Ok(())
    }

    /// Ends it: the client and what became of every order.
    pub async fn stop(self) -> Result<(Client, Vec<Outcome>)> {
        self.stop.send_replace(true);
        timeout(PATIENCE, self.task).await.context("the sender does not end")??
    }
}

/// A service that pushes numbered payments to one identity, and repeats each until it is confirmed, as every service must.
#[derive(Debug)]
pub struct Pusher {
    stop: watch::Sender<bool>,
    confirmed: watch::Receiver<u64>,
    task: JoinHandle<Result<u64>>,
}

impl Pusher {
    /// Pushes to `to`.
    pub fn start(setup: &Setup, business: &str, to: &str) -> Self {
        let (setup, business) = (setup.clone(), business.to_owned());
        let connect = move || {
            let (setup, business) = (setup.clone(), business.clone());
            async move { Service::of(&setup, &business).await }
        };
        Self::by(connect, to)
    }

    /// The same as a service that connects in its own way.
    pub fn by<F>(connect: impl Fn() -> F + Send + 'static, to: &str) -> Self
    where
        F: Future<Output = Result<Service>> + Send + 'static,
    {
        let (stop, stopped) = watch::channel(false);
        let (count, confirmed) = watch::channel(0);
        let to = to.to_owned();
        let task = tokio::spawn(async move {
            let mut n = 0;
            let mut service = None;
            while !*stopped.borrow() {
                if service.is_none() {
                    let connecting = timeout(PATIENCE, connect()).await;
                    service = connecting.ok().and_then(Result::ok);
                }
                let Some(open) = &service else {
                    sleep(RETRY).await;
                    continue;
                };
                let mut push = payment(&to, n);
                push["id"] = json!(format!("push-{n}"));
                // Without an end for a broker that neither answers nor closes.
                if let Ok(Ok(())) = timeout(PATIENCE, open.push(&push)).await {
                    n += 1;
                    count.send_replace(n);
                } else {
                    service = None;
                }
                sleep(PACE).await;
            }
            Ok(n)
        });
        Self { stop, confirmed, task }
    }

    /// Waits until one more push is confirmed.
    pub async fn next_confirm(&mut self, limit: Duration) -> Result<()> {
        let seen = *self.confirmed.borrow_and_update();
        timeout(limit, self.confirmed.wait_for(|count| *count > seen))
            .await
            .with_context(|| format!("no push is confirmed within {limit:?}"))??;
        Ok(())
    }

    /// Ends it: all numbers below the returned one were confirmed.
    pub async fn stop(self) -> Result<u64> {
        self.stop.send_replace(true);
        timeout(PATIENCE * 2, self.task).await.context("the pusher does not end")??
    }
}

/// Checks that a client got every push below `count` in order; a repeat is allowed where the pusher had to repeat, with the same id.
pub async fn all_pushed(client: &mut Client, count: u64) -> Result<()> {
    let mut next = 0;
    while next < count {
        let push = client.push().await.with_context(|| format!("{next} of {count} pushes came"))?;
        pushed_in_order(&push, &mut next)?;
    }
    Ok(())
}

/// Checks that a push of a [`Pusher`] is the one that is due, or a repeat; counts what has come.
pub fn pushed_in_order(push: &Value, next: &mut u64) -> Result<()> {
    let n = push["content"]["n"].as_u64().with_context(|| format!("no number in {push}"))?;
    ensure!(push["id"] == format!("push-{n}"), "{push}");
    ensure!(n <= *next, "push {n} came where {next} was due");
    *next = (*next).max(n + 1);
    Ok(())
}

/// Checks that every order that was acknowledged is in its queue, in the order of sending (first copies), and that each message there
/// was sent.
pub async fn all_queued(setup: &Setup, business: &str, outcomes: &[Outcome]) -> Result<()> {
    all_queued_but(setup, business, outcomes, 0).await
}

/// The same, where this many had been put aside for a lost binding and were moved back: those may come after later ones.
pub async fn all_queued_but(setup: &Setup, business: &str, outcomes: &[Outcome], moved: u32) -> Result<()> {
    in_queue(&Service::of(setup, business).await?, outcomes, moved).await
}

/// The same for a service that is connected already.
pub async fn all_in_queue(service: &Service, outcomes: &[Outcome]) -> Result<()> {
    in_queue(service, outcomes, 0).await
}

async fn in_queue(service: &Service, outcomes: &[Outcome], moved: u32) -> Result<()> {
    let mut orders = service.consume("orders", 100).await?;
    let mut missing: BTreeSet<u64> =
        outcomes.iter().filter(|outcome| outcome.acked()).map(|outcome| outcome.n).collect();
    let (mut last, mut late) = (None, 0);
    while !missing.is_empty() {
        let order =
            next_json(&mut orders).await.with_context(|| format!("acknowledged, and not in the queue: {missing:?}"))?;
        let n = order["content"]["n"].as_u64().with_context(|| format!("no number in {order}"))?;
        ensure!(
            order["id"] == format!("order-{n}") && outcomes.iter().any(|outcome| outcome.n == n),
            "never sent: {order}"
        );
        if !missing.remove(&n) {
            continue;
        }
        if last < Some(n) {
            last = Some(n);
        } else {
            late += 1;
            ensure!(late <= moved, "order {n} stands behind {last:?}, and {moved} were moved");
        }
    }
    Ok(())
}
