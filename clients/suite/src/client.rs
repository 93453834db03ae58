//! One client of a driver, as a scenario commands and watches it.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};
use wirepost_testing::broker::PATIENCE;

use crate::driver::{Driver, Event, Events};

/// Events that a failure shows.
const SHOWN: usize = 40;
/// Characters of an event that are shown.
const SHOWN_OF_EVENT: usize = 200;

pub(crate) struct Client {
    pub(crate) name: String,
    driver: Arc<Driver>,
    events: Arc<Events>,
}

impl Client {
    pub(crate) fn new(driver: &Arc<Driver>, name: &str) -> Self {
        Self { name: name.to_owned(), driver: Arc::clone(driver), events: driver.register(name) }
    }

    /// A command with further fields.
    pub(crate) fn tell(&self, action: &str, mut fields: Value) -> Result<()> {
        fields["do"] = action.into();
        fields["client"] = self.name.as_str().into();
        self.driver.tell(fields)
    }

    pub(crate) fn events(&self) -> Vec<Event> {
        self.events.borrow().clone()
    }

    /// Waits until this holds of it.
    pub(crate) async fn until_so(&self, what: &str, holds: impl Fn(&Self) -> bool) -> Result<()> {
        let mut events = self.events.subscribe();
        let wait = async {
            loop {
                // Not locked while it is asked: it locks its events itself, and behind a writer nobody reads a second time.
                let ended = events.borrow_and_update().last().is_some_and(|last| last.is("the driver has ended"));
                if holds(self) {
                    return Ok(());
                }
                ensure!(!ended, "the driver has ended");
                events.changed().await?;
            }
        };
        let held = timeout(PATIENCE, wait).await.unwrap_or_else(|_| Err(anyhow!("not within {PATIENCE:?}")));
        held.with_context(|| format!("waiting until {} {what}; its events:\n{}", self.name, self.tail()))
    }

    /// Waits until its events show something. `find` reads what it is given, not this client: its events are locked
    /// meanwhile.
    pub(crate) async fn until<T>(&self, what: &str, find: impl Fn(&[Event]) -> Option<T>) -> Result<T> {
        let mut events = self.events.subscribe();
        let wait = async {
            loop {
                {
                    let events = events.borrow_and_update();
                    if let Some(found) = find(&events) {
                        return Ok(found);
                    }
                    if let Some(last) = events.last().filter(|last| last.is("the driver has ended")) {
                        bail!("{}", last.value);
                    }
                }
                events.changed().await?;
            }
        };
        let found = timeout(PATIENCE, wait).await.unwrap_or_else(|_| Err(anyhow!("not within {PATIENCE:?}")));
        found.with_context(|| format!("waiting until {} {what}; its events:\n{}", self.name, self.tail()))
    }

    /// The end of its events, for people.
    pub(crate) fn tail(&self) -> String {
        let events = self.events.borrow();
        let begin = events.first().map(|event| event.at);
        let lines = events.iter().skip(events.len().saturating_sub(SHOWN)).map(|event| {
            let at = begin.map_or(0.0, |begin| (event.at - begin).as_secs_f64());
            let text: String = event.value.to_string().chars().take(SHOWN_OF_EVENT).collect();
            format!("  {at:8.3} {text}\n")
        });
        lines.collect()
    }

    /// Waits until it reports this state for the nth time.
    pub(crate) async fn state(&self, state: &str, times: usize) -> Result<()> {
        self.until(&format!("is {state} for the {times}. time"), |events| {
            (events.iter().filter(|event| event.is("state") && event.value["state"] == state).count() >= times)
                .then_some(())
        })
        .await
    }

    pub(crate) async fn open(&self) -> Result<()> {
        self.state("open", 1).await
    }

    /// The state that it reported last.
    pub(crate) fn last_state(&self) -> String {
        let events = self.events.borrow();
        let last = events.iter().rev().find(|event| event.is("state"));
        last.and_then(|event| event.value["state"].as_str().map(str::to_owned)).unwrap_or_default()
    }

    /// The messages so far, in order.
    pub(crate) fn messages(&self) -> Vec<Value> {
        messages(&self.events.borrow())
    }

    /// The numbers in the contents of the messages so far.
    pub(crate) fn numbers(&self) -> Vec<u64> {
        self.messages().iter().filter_map(number).collect()
    }

    /// Waits for the number of the last message that was pushed, and checks that all from 0 to it came once and in order.
    pub(crate) async fn all_in_order(&self, last: u64) -> Result<()> {
        self.until(&format!("gets message {last}"), |events| {
            messages(events).iter().rev().any(|message| number(message) == Some(last)).then_some(())
        })
        .await?;
        // A repeat would come now.
        sleep(Duration::from_millis(300)).await;
        let numbers = self.numbers();
        let expected: Vec<u64> = (0..=last).collect();
        if numbers == expected {
            return Ok(());
        }
        let missing: Vec<_> = expected.iter().filter(|n| !numbers.contains(n)).collect();
        let mut seen = std::collections::HashSet::new();
        let twice: Vec<_> = numbers.iter().filter(|n| !seen.insert(**n)).collect();
        bail!(
            "{}: of 0 to {last} are missing: {missing:?}; were handed over twice: {twice:?}; in order: {}",
            self.name,
            numbers.is_sorted()
        )
    }

    pub(crate) fn gaps(&self) -> usize {
        self.events.borrow().iter().filter(|event| event.is("gap")).count()
    }

    /// Starts a send whose content is a number.
    pub(crate) fn send_number(&self, n: u64) -> Result<()> {
        self.send(&format!("s{n}"), &json!({"messageType": "order.placed", "content": {"n": n}}))
    }

    pub(crate) fn send(&self, name: &str, message: &Value) -> Result<()> {
        self.tell("send", json!({"as": name, "message": message}))
    }

    /// Waits for what became of a send or request.
    pub(crate) async fn outcome(&self, name: &str) -> Result<Value> {
        let value = self
            .until(&format!("reports the outcome of {name}"), |events| {
                let found =
                    events.iter().find(|event| (event.is("sent") || event.is("answered")) && event.value["as"] == name);
                found.map(|event| event.value.clone())
            })
            .await?;
        Ok(value)
    }

    /// Waits until these numbered sends are acknowledged.
    pub(crate) async fn acked(&self, numbers: std::ops::Range<u64>) -> Result<()> {
        for n in numbers {
            let outcome = self.outcome(&format!("s{n}")).await?;
            ensure!(outcome["result"] == "ack", "{} sent {n}: {outcome}", self.name);
        }
        Ok(())
    }

    /// What its cursor store contains.
    pub(crate) async fn cursor(&self) -> Result<Option<String>> {
        let count = |events: &[Event]| events.iter().filter(|event| event.is("cursor")).count();
        let seen = count(&self.events.borrow());
        self.tell("cursor", json!({}))?;
        self.until("reports its cursor", |events| {
            let found = events.iter().filter(|event| event.is("cursor")).nth(seen);
            found.map(|event| event.value["cursor"].as_str().map(str::to_owned))
        })
        .await
    }

    /// Changes how its handler behaves, for all messages that are pushed after this returns.
    pub(crate) async fn handler(&self, behaviour: Value) -> Result<()> {
        self.tell("handler", behaviour)?;
        // Commands are taken in order, so the answer to a later one says that this one was taken.
        self.cursor().await.map(drop)
    }

    /// Closes it, and waits until it says so.
    pub(crate) async fn close(&self) -> Result<()> {
        self.tell("close", json!({}))?;
        self.state("closed", 1).await
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        if self.last_state() != "closed" {
            let _ = self.tell("close", json!({}));
        }
        self.driver.forget(&self.name);
    }
}

fn messages(events: &[Event]) -> Vec<Value> {
    events.iter().filter(|event| event.is("message")).map(|event| event.value["message"].clone()).collect()
}

/// The number in a message's content.
pub(crate) fn number(message: &Value) -> Option<u64> {
    message["content"]["n"].as_u64()
}
