//! Uses the operator's [`Keeper`] to create and repair the topology and to move back unrouted messages, and prints what
//! it did.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::future::join_all;
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep},
};
use wirepost_core::{Compiled, contract::configz::DECISIONS_VALID_FOR, destruction::destructions, names};
use wirepost_topology::{
    KeepReason, Problem, Report,
    keeper::{BrokerFailure, Businesses, Desired as KeeperDesired, Destroying, Event, Keeper, Owner, Phase},
    unrouted::Moved,
};

use super::Desired;
use crate::output::Console;

/// Interval of sweeps.
pub(super) const INTERVAL: Duration = Duration::from_secs(10);
/// Retry interval while the broker is unreachable.
const RETRY_INTERVAL: Duration = Duration::from_secs(2);

/// `wirepost dev` as the keeper's owner.
#[derive(Default)]
pub(super) struct Dev {
    /// Notified when something differs or messages were moved.
    again: Notify,
    /// Business type → what was done with its unrouted messages, until it is printed.
    moved: Mutex<BTreeMap<String, Moved>>,
}

impl Owner for Dev {
    fn may_write(&self) -> bool {
        true
    }

    fn ensure_again(&self, _: Businesses<'_>) {
        self.again.notify_one();
    }

    /// The vhost may contain businesses of others.
    fn claimed(&self) -> Option<BTreeSet<String>> {
        None
    }

    fn report(&self, event: Event<'_>) {
        if let Event::Unrouted { business, moved } = event {
            let mut all = self.moved.lock().unwrap_or_else(PoisonError::into_inner);
            let sum = all.entry(business.to_owned()).or_default();
            let before = std::mem::replace(sum, moved.clone());
            sum.moved += before.moved;
            sum.set_aside += before.set_aside;
            self.again.notify_one();
        }
    }
}

struct Rounds {
    keeper: Keeper,
    console: Console,
    /// The lines printed last, so that they are not printed every ten seconds.
    printed: BTreeSet<String>,
    /// Whether the last attempt failed.
    failing: bool,
    /// Business type → the applied topology, and the report.
    applied: BTreeMap<String, (Arc<KeeperDesired>, Arc<Report>)>,
    /// Businesses that are no longer declared, until their topology is removed.
    leaving: BTreeSet<String>,
}

/// Runs until dropped. `done` tells what the last round was for.
pub(super) async fn run(
    keeper: Keeper,
    dev: Arc<Dev>,
    mut desired: watch::Receiver<Desired>,
    done: watch::Sender<u64>,
    console: Console,
) {
    let mut rounds = Rounds {
        keeper,
        console,
        printed: BTreeSet::new(),
        failing: false,
        applied: BTreeMap::new(),
        leaving: BTreeSet::new(),
    };
    // Nothing is declared yet.
    if desired.changed().await.is_err() {
        return;
    }
    let mut wanted = Desired::default();
    let mut changed_at = Instant::now();
    loop {
        let now = desired.borrow_and_update().clone();
        if now.businesses != wanted.businesses {
            changed_at = Instant::now();
        }
        wanted = now;
        // The edge gets its configuration after a round, and may still finish messages by the former one.
        let settled = DECISIONS_VALID_FOR.saturating_sub(changed_at.elapsed());
        let phase = if settled.is_zero() { Phase::Shrink } else { Phase::Grow };
        let moved = std::mem::take(&mut *dev.moved.lock().unwrap_or_else(PoisonError::into_inner));
        let next = match rounds.round(&wanted, phase, moved).await {
            Ok(()) if !settled.is_zero() => Some(settled),
            Ok(()) if rounds.leaving.is_empty() => None,
            Ok(()) => Some(INTERVAL),
            Err(failure) => {
                rounds.failed(&failure).await;
                Some(RETRY_INTERVAL)
            }
        };
        done.send_replace(wanted.number);
        tokio::select! {
            () = dev.again.notified() => {}
            () = sleep(next.unwrap_or_default()), if next.is_some() => {}
            changed = desired.changed() => if changed.is_err() { return },
        }
    }
}

/// Steps that wait only until the edge has its configuration.
fn is_for_a_moment(problem: &Problem) -> bool {
    matches!(problem, Problem::Kept { because: KeepReason::Edges, .. })
}

impl Rounds {
    async fn round(
        &mut self,
        wanted: &Desired,
        phase: Phase,
        moved: BTreeMap<String, Moved>,
    ) -> Result<(), BrokerFailure> {
        let names: BTreeSet<&String> = wanted.businesses.iter().map(|compiled| &compiled.business).collect();
        let gone = self.applied.keys().filter(|name| !names.contains(name)).cloned();
        self.leaving.extend(gone.collect::<Vec<_>>());
        self.leaving.retain(|name| !names.contains(name));
        let keeper = &self.keeper;
        let ensure = || {
            wanted.businesses.iter().map(async |compiled| {
                let wanted = KeeperDesired {
                    topology: compiled.topology.clone(),
                    destroying: self.destroying(compiled),
                    ..KeeperDesired::default()
                };
                let wanted = Arc::new(wanted);
                (&compiled.business, Arc::clone(&wanted), keeper.ensure(&compiled.business, wanted, phase).await)
            })
        };
        let mut ensured = join_all(ensure()).await;
        // What leads from one business to another is bound once both are there.
        let waits = |problem: &Problem| matches!(problem, Problem::NoTarget { .. });
        if ensured.iter().any(|(.., reply)| reply.as_ref().is_ok_and(|it| it.report.problems.iter().any(waits))) {
            ensured = join_all(ensure()).await;
        }
        let mut lines = Vec::new();
        for (name, wanted, reply) in ensured {
            let report = reply?.report;
            self.print_changes(name, &wanted, &report).await;
            let problems = report.problems.iter().filter(|problem| !is_for_a_moment(problem));
            lines.extend(problems.map(|problem| format!("broker: {name}: {problem}")));
            self.applied.insert(name.clone(), (wanted, report));
        }
        for name in self.leaving.clone().into_iter().filter(|_| phase == Phase::Shrink) {
            let report = self.remove(&name).await?;
            lines.extend(report.problems.iter().map(|problem| format!("broker: {name}: {problem}")));
        }
        for (name, moved) in moved {
            lines.extend(self.print_moved(&name, moved).await);
        }
        if std::mem::take(&mut self.failing) {
            self.console.say("broker: the topology is as declared").await;
        }
        for line in &lines {
            if !self.printed.contains(line) {
                self.console.say(line.clone()).await;
            }
        }
        // A solved problem is printed again if it comes back.
        self.printed = lines.into_iter().collect();
        Ok(())
    }

    /// Who makes a retention smaller under a running `dev` has decided. Who starts it may not know what the broker has. A stream is deleted
    /// in neither case.
    fn destroying(&self, compiled: &Compiled) -> Destroying {
        let Some((before, _)) = self.applied.get(&compiled.business) else { return Destroying::Held };
        let destroys = !destructions(&before.topology, &compiled.topology).is_empty();
        if destroys { Destroying::Allowed } else { before.destroying }
    }

    async fn failed(&mut self, failure: &BrokerFailure) {
        self.failing = true;
        let line = format!("broker: topology not applied: {failure}; retrying");
        if self.printed.insert(line.clone()) {
            self.console.say(line).await;
        }
    }

    async fn remove(&mut self, name: &str) -> Result<Arc<Report>, BrokerFailure> {
        let report = self.keeper.remove(name, None, false).await?;
        self.applied.remove(name);
        if !report.changes.is_empty() {
            let changes = report.changes.len();
            self.console.say(format!("broker: {name}: topology removed, {changes} changes")).await;
        }
        if report.is_clean() {
            self.leaving.remove(name);
        }
        Ok(report)
    }

    async fn print_changes(&self, name: &str, wanted: &KeeperDesired, report: &Arc<Report>) {
        let before = self.applied.get(name);
        // The same report: the keeper had nothing to do.
        let printed = before.is_some_and(|(_, before)| Arc::ptr_eq(before, report));
        if printed || report.changes.is_empty() {
            return;
        }
        let was_waiting = before.is_some_and(|(_, report)| report.problems.iter().any(is_for_a_moment));
        let same = before.is_some_and(|(before, _)| **before == *wanted);
        if same && was_waiting {
            let changes = report.changes.len();
            self.console.say(format!("broker: {name}: what is no longer declared is removed, {changes} changes")).await;
        } else if same {
            for change in &report.changes {
                self.console.say(format!("broker: {name}: repaired: {change}")).await;
            }
        } else {
            self.console.say(format!("broker: {name}: topology applied, {} changes", report.changes.len())).await;
        }
    }

    /// Prints what was moved; returns a line for each reason why messages stay.
    async fn print_moved(&self, name: &str, moved: Moved) -> Vec<String> {
        let Moved { moved, strays, set_aside, stopped, waiting: _ } = moved;
        if moved > 0 {
            self.console.say(format!("broker: {name}: {moved} unrouted messages moved back")).await;
        }
        if set_aside > 0 {
            let dead = names::dead_queue(name);
            let line = format!("broker: {name}: {set_aside} unrouted messages can't be moved; they are in {dead}");
            self.console.say(line).await;
        }
        let stay = (strays > 0)
            .then(|| format!("{strays} messages in {} match no route and stay in it", names::unrouted(name)));
        let lines = stopped.map(|stopped| stopped.to_string()).into_iter().chain(stay);
        lines.map(|line| format!("broker: {name}: {line}")).collect()
    }
}
