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
use crate::{Error, KeepReason, Problem, Report, Snapshot};

/// Orphans that wait or are removed at the same time: what is declared comes first.
const MAX_AT_ONCE: usize = 32;
/// Checks in a row without a change before an orphan rests: the broker's statistics come seconds late.
const FRUITLESS_LOOKS: u32 = 6;
/// Sweeps that it rests then: a check costs calls, and a stream with messages stays for good.
const REST_SWEEPS: u32 = 18;

/// Businesses that have objects and are not declared.
#[derive(Default)]
pub(super) struct Orphans(HashMap<String, Orphan>);

struct Orphan {
    since: Instant,
    /// When it was last checked.
    looked: Option<Instant>,
    /// Checks in a row in which everything left of it had a lasting reason to stay.
    fruitless: u32,
}

impl Orphans {
    /// `found`: businesses that have objects. `claimed`: those that are declared; `None` = not known.
    fn update<'a>(&mut self, found: impl Iterator<Item = &'a str>, claimed: Option<&BTreeSet<String>>) {
        let Some(claimed) = claimed else { return self.0.clear() };
        let found: HashSet<&str> = found.filter(|business| !claimed.contains(*business)).collect();
        self.0.retain(|business, _| found.contains(business.as_str()));
        for business in found {
            let new = || Orphan { since: Instant::now(), looked: None, fruitless: 0 };
            self.0.entry(business.to_owned()).or_insert_with(new);
        }
    }

    /// Those that have been so for long enough.
    fn due(&self, grace: Duration) -> impl Iterator<Item = &String> {
        self.0.iter().filter(move |(_, orphan)| orphan.since.elapsed() >= grace).map(|(business, _)| business)
    }

    /// Those that must be checked now, the longest waiting first.
    fn to_look_at(&self, grace: Duration, rest: Duration) -> Vec<&String> {
        let rests = |business: &str| {
            let orphan = self.0.get(business).filter(|orphan| orphan.fruitless >= FRUITLESS_LOOKS);
            orphan.and_then(|orphan| orphan.looked).is_some_and(|looked| looked.elapsed() < rest)
        };
        let mut all: Vec<_> = self.due(grace).filter(|business| !rests(business)).collect();
        all.sort_by_key(|business| (self.0.get(*business).and_then(|orphan| orphan.looked), *business));
        all
    }

    /// One was checked.
    fn looked_at(&mut self, business: &str, result: &Result<Report, Error>) {
        let Some(orphan) = self.0.get_mut(business) else { return };
        orphan.looked = Some(Instant::now());
        let fruitless = result.as_ref().is_ok_and(|report| {
            report.changes.is_empty() && !report.left.is_empty() && !report.problems.iter().any(passes_soon)
        });
        orphan.fruitless = if fruitless { orphan.fruitless.saturating_add(1) } else { 0 };
    }
}

/// Whether the next check may find something else although nobody has done anything.
fn passes_soon(problem: &Problem) -> bool {
    let unknown = matches!(problem, Problem::Kept { because: KeepReason::Unknown(_), .. });
    unknown || problem.is_confirming() || problem.may_pass()
}

impl Actor {
    /// Removes what has been unclaimed for a while. Queues with messages and streams stay, and everything where this many businesses would end
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
        // An orphan that only waits to be emptied serves nobody.
        let held = !self.context.owner.may_end(&ending, &others);
        let room = MAX_AT_ONCE.saturating_sub(self.work.orphans());
        let due = self.orphans.to_look_at(self.orphan_grace, self.sweep * REST_SWEEPS).into_iter();
        let due = due.filter(|business| !held || !live.contains(business.as_str()));
        let due = due.filter(|business| !unsettled.contains(*business) && !self.work.has(business));
        let due: Vec<String> = due.take(room).cloned().collect();
        for business in due {
            self.work.add(Job::orphan(business), None);
        }
    }

    pub(super) fn orphan_removed(&mut self, done: JobResult) {
        let business = done.job.business;
        self.orphans.looked_at(&business, &done.result);
        if !done.result.as_ref().is_ok_and(|report| report.changes.is_empty()) {
            self.snapshots.changed(&business, true);
            self.snapshots.discard();
        }
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
    use crate::Step;

    #[tokio::test(start_paused = true)]
    async fn an_orphan_that_stays_rests_and_gives_its_turn_to_others() {
        const REST: Duration = Duration::from_mins(3);
        let mut orphans = Orphans::default();
        orphans.update(["a", "b"].into_iter(), Some(&BTreeSet::new()));
        let due = |orphans: &Orphans| orphans.to_look_at(Duration::ZERO, REST).into_iter().cloned().collect::<Vec<_>>();
        let kept = |because| {
            let stream = "wirepost.a.stream".to_owned();
            let problem = Problem::Kept { queue: stream.clone(), because };
            Ok(Report { problems: vec![problem], left: vec![Step::DeleteStream(stream)], ..Report::default() })
        };
        orphans.looked_at("a", &kept(KeepReason::Confirming));
        assert_eq!(due(&orphans), ["b", "a"], "the other one has waited longer");
        for _ in 0..FRUITLESS_LOOKS {
            assert_eq!(due(&orphans), ["b", "a"]);
            orphans.looked_at("a", &kept(KeepReason::Stream));
        }
        assert_eq!(due(&orphans), ["b"]);
        orphans.looked_at("b", &Ok(Report { changes: vec!["delete".to_owned()], ..Report::default() }));
        assert_eq!(due(&orphans), ["b"]);
        tokio::time::advance(REST).await;
        assert_eq!(due(&orphans), ["a", "b"]);
    }

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
