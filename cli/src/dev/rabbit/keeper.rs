//! Makes the topology, looks at it again and again, repairs it, and moves back what a lost binding had put aside.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use lapin::{Connection, uri::AMQPUri};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use wirepost_amqp::Address;
use wirepost_core::{Compiled, names, topology::Topology};
use wirepost_topology::{Management, Options, Problem, Report, Scope, apply, unrouted};

use super::{Desired, connect};
use crate::output::Console;

/// Between two looks at a broker that is as it should be,
const INTERVAL: Duration = Duration::from_secs(10);
/// and at one that is away.
const RETRY: Duration = Duration::from_secs(2);
/// Longest time for one business; a frozen broker answers nothing.
const ROUND_TIMEOUT: Duration = Duration::from_secs(30);

/// How a sentence about trouble that passes ends.
const TRYING: &str = "; trying again";

struct Keeper {
    management: Management,
    uri: AMQPUri,
    connection: Option<Arc<Connection>>,
    console: Console,
    /// What was said already, so that it is not said every ten seconds.
    said: BTreeSet<String>,
    /// Topologies that were applied in full, to tell making from repairing.
    made: BTreeMap<String, Topology>,
    /// Businesses that are gone, until nothing of theirs is left.
    leaving: BTreeSet<String>,
}

/// Until dropped. `done` counts the rounds.
pub(super) async fn run(
    management: Management,
    uri: AMQPUri,
    mut desired: watch::Receiver<Desired>,
    done: watch::Sender<u64>,
    console: Console,
) {
    let mut keeper = Keeper {
        management,
        uri,
        connection: None,
        console,
        said: BTreeSet::new(),
        made: BTreeMap::new(),
        leaving: BTreeSet::new(),
    };
    // Nothing is known yet of what is wanted.
    if desired.changed().await.is_err() {
        return;
    }
    loop {
        let wish = desired.borrow_and_update().clone();
        let pause = match keeper.round(&wish).await {
            Ok(()) => INTERVAL,
            Err(error) => {
                keeper.connection = None;
                keeper.say_once(format!("broker: topology not made: {error}{TRYING}")).await;
                RETRY
            }
        };
        done.send_modify(|rounds| *rounds += 1);
        tokio::select! {
            () = sleep(pause) => {}
            changed = desired.changed() => if changed.is_err() { return },
        }
    }
}

impl Keeper {
    async fn round(&mut self, wish: &Desired) -> Result<(), String> {
        let connection = self.connect().await?;
        let mut now = BTreeSet::new();
        let names: BTreeSet<&str> = wish.businesses.iter().map(|compiled| compiled.business.as_str()).collect();
        let gone: Vec<String> = self.made.keys().filter(|name| !names.contains(name.as_str())).cloned().collect();
        for name in gone {
            self.made.remove(&name);
            self.leaving.insert(name);
        }
        self.leaving.retain(|name| !names.contains(name.as_str()));
        for compiled in &wish.businesses {
            let report = self.apply(&connection, &compiled.business, &compiled.topology, &mut now).await?;
            // Moved now, a message for such a queue would come back, behind all the others.
            let no_place =
                |p: &Problem| matches!(p, Problem::MissingQueue { .. } | Problem::QueueNotOpen { bound: false, .. });
            if report.changes.is_empty()
                && !report.problems.iter().any(no_place)
                && let Err(error) = self.move_back(compiled, &mut now).await
            {
                // One business's message must not keep others from being repaired.
                let text = format!("broker: {}: unrouted messages stay: {error}", compiled.business);
                now.insert(text.clone());
                self.say_once(text).await;
            }
        }
        for name in self.leaving.clone() {
            let report = self.apply(&connection, &name, &Topology::default(), &mut now).await?;
            if report.is_clean() {
                self.leaving.remove(&name);
            }
        }
        if self.said.iter().any(|said| said.ends_with(TRYING)) {
            self.console.say("broker: the topology is as declared").await;
        }
        // What is not wrong any more may be said again when it is.
        self.said = now;
        Ok(())
    }

    async fn connect(&mut self) -> Result<Arc<Connection>, String> {
        if let Some(connection) = self.connection.as_ref().filter(|connection| connection.status().connected()) {
            return Ok(Arc::clone(connection));
        }
        let connection = connect(&self.uri, "topology").await.map_err(|error| format!("cannot connect: {error}"))?;
        Ok(Arc::clone(self.connection.insert(Arc::new(connection))))
    }

    async fn apply(
        &mut self,
        connection: &Connection,
        name: &str,
        topology: &Topology,
        now: &mut BTreeSet<String>,
    ) -> Result<Report, String> {
        let options = Options { scope: Scope::Business(name), amqp: Some(connection), delete_messages: false };
        let report = timeout(ROUND_TIMEOUT, apply(&self.management, topology, options))
            .await
            .map_err(|_| format!("no answer within {ROUND_TIMEOUT:?}"))?
            .map_err(|error| error.to_string())?;
        if !report.changes.is_empty() {
            if self.made.get(name) == Some(topology) {
                for change in &report.changes {
                    self.console.say(format!("broker: {name}: repaired: {change}")).await;
                }
            } else {
                let what = if topology.exchanges.is_empty() { "topology taken down" } else { "topology made" };
                self.console.say(format!("broker: {name}: {what}, {} changes", report.changes.len())).await;
            }
        }
        for problem in &report.problems {
            let text = format!("broker: {name}: {problem}");
            now.insert(text.clone());
            self.say_once(text).await;
        }
        if topology.exchanges.is_empty() {
            self.made.remove(name);
        } else if self.made.get(name) != Some(topology) {
            self.made.insert(name.to_owned(), topology.clone());
        }
        Ok(report)
    }

    async fn move_back(&mut self, compiled: &Compiled, now: &mut BTreeSet<String>) -> Result<(), String> {
        let name = &compiled.business;
        let address = Address::new(&self.uri, None, "wirepost dev: unrouted").map_err(|error| error.to_string())?;
        let moved = timeout(ROUND_TIMEOUT, unrouted::move_back(&address, name, &compiled.topology, &|| true))
            .await
            .map_err(|_| format!("no answer within {ROUND_TIMEOUT:?}"))?
            .map_err(|error| error.to_string())?;
        if moved.moved > 0 {
            self.console.say(format!("broker: {name}: {} unrouted messages moved back", moved.moved)).await;
        }
        if moved.set_aside > 0 {
            let (messages, dead) = (moved.set_aside, names::dead_queue(name));
            self.console
                .say(format!("broker: {name}: {messages} unrouted messages can't be moved; they are in {dead}"))
                .await;
        }
        let strays = (moved.strays > 0)
            .then(|| format!("{} messages in {} fit no route and stay there", moved.strays, names::unrouted(name)));
        for text in moved.stopped.map(|stopped| stopped.to_string()).into_iter().chain(strays) {
            let text = format!("broker: {name}: {text}");
            now.insert(text.clone());
            self.say_once(text).await;
        }
        Ok(())
    }

    async fn say_once(&mut self, text: String) {
        if self.said.insert(text.clone()) {
            self.console.say(text).await;
        }
    }
}
