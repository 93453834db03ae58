//! Objects of ours that no declaration claims any more.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    time::Duration,
};

use tokio::time::Instant;

use super::{
    Event,
    actor::Actor,
    job::{Job, JobResult},
};
use crate::Snapshot;

/// Businesses that have objects and are not declared, and since when.
#[derive(Default)]
pub(super) struct Orphans(HashMap<String, Instant>);

impl Orphans {
    /// `found`: businesses that have objects. `claimed`: those that are declared; `None` = not known.
    fn update<'a>(&mut self, found: impl Iterator<Item = &'a str>, claimed: Option<&BTreeSet<String>>) {
        let Some(claimed) = claimed else { return self.0.clear() };
        let found: HashSet<&str> = found.filter(|business| !claimed.contains(*business)).collect();
        self.0.retain(|business, _| found.contains(business.as_str()));
        for business in found {
            self.0.entry(business.to_owned()).or_insert_with(Instant::now);
        }
    }

    /// Those that have been so for long enough.
    fn due(&self, grace: Duration) -> impl Iterator<Item = &String> {
        self.0.iter().filter(move |(_, since)| since.elapsed() >= grace).map(|(business, _)| business)
    }
}

impl Actor {
    /// Removes what has been unclaimed for a while. Queues with messages and streams stay, and everything where so many businesses would end
    /// at the same time that it is most likely a mistake ([`super::Owner::may_end`]).
    pub(super) fn remove_orphans(&mut self, snapshot: &Snapshot, unsettled: &HashSet<String>) {
        let present = snapshot.present().map(str::to_owned).collect();
        self.context.owner.report(Event::Present(present));
        let claimed = self.context.owner.claimed();
        self.orphans.update(snapshot.businesses(), claimed.as_ref());
        if let Some(claimed) = &claimed {
            self.businesses.retain(claimed);
        }
        let live: HashSet<&str> = snapshot.live().collect();
        let due = self.orphans.due(self.orphan_grace);
        let ending: BTreeSet<String> = due.filter(|business| live.contains(business.as_str())).cloned().collect();
        let others = live.iter().map(|business| (*business).to_owned()).filter(|it| !ending.contains(it)).collect();
        // What only waits to be emptied ends nobody's service.
        let held = !self.context.owner.may_end(&ending, &others);
        let due = self.orphans.due(self.orphan_grace).filter(|business| !held || !live.contains(business.as_str()));
        let due: Vec<String> = due.cloned().collect();
        for business in due {
            if !unsettled.contains(&business) && !self.work.has(&business) {
                self.work.add(Job::orphan(business), None);
            }
        }
    }

    pub(super) fn orphan_removed(&mut self, done: JobResult) {
        let business = done.job.business;
        self.snapshots.discard();
        match done.result {
            Ok(report) if !report.changes.is_empty() => {
                tracing::info!(business, changes = ?report.changes, "removed objects that no resource claims");
            }
            Ok(_) => {}
            Err(error) => tracing::warn!(business, %error, "objects that no resource claims stay"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_orphan_is_due_after_the_grace_and_a_claim_saves_it() {
        const GRACE: Duration = Duration::from_mins(1);
        let claimed = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
        let mut orphans = Orphans::default();
        let due = |orphans: &Orphans| orphans.due(GRACE).cloned().collect::<Vec<_>>();
        orphans.update(["a", "b"].into_iter(), Some(&claimed(&["b"])));
        assert!(due(&orphans).is_empty());
        tokio::time::advance(GRACE).await;
        orphans.update(["a", "b"].into_iter(), Some(&claimed(&["b"])));
        assert_eq!(due(&orphans), ["a"]);
        orphans.update(["a", "b"].into_iter(), Some(&claimed(&["a"])));
        assert!(due(&orphans).is_empty(), "it is claimed again, and the other one for the first time");
        tokio::time::advance(GRACE).await;
        orphans.update(["a", "b"].into_iter(), None);
        orphans.update(["a", "b"].into_iter(), Some(&claimed(&[])));
        assert!(due(&orphans).is_empty(), "the grace begins again once the claims are known");
    }
}
