//! What was ensured of each business, and what of it others have changed since.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use wirepost_core::names;

use super::{Desired, Ensured, Phase, actor::Context, unrouted::Strays};
use crate::{Problem, Report, Snapshot, Step};

/// Every business that was ensured.
#[derive(Default)]
pub(super) struct BusinessStates(HashMap<String, BusinessState>);

/// A business as it was last ensured.
pub(super) struct BusinessState {
    pub(super) desired: Arc<Desired>,
    report: Arc<Report>,
    /// Steps that were left undone with good reason.
    left: Vec<Step>,
    /// Some of them wait for [`Phase::Shrink`].
    waits_for_edges: bool,
    /// No change since is known.
    current: bool,
    /// Messages in `unrouted` that no route takes. Known as long as nothing is changed on the broker.
    pub(super) strays: Option<Strays>,
}

/// What a comparison found.
#[derive(Default)]
pub(super) struct Comparison {
    /// Businesses to ensure again.
    pub(super) differ: HashSet<String>,
    /// What others have changed, as sentences, by business.
    pub(super) drifts: HashMap<String, Vec<String>>,
    /// Businesses whose messages are routed as declared.
    pub(super) intact: HashSet<String>,
}

impl BusinessStates {
    /// The last result, if the same was ensured then, nothing has changed since, and nothing waited for this phase.
    pub(super) fn current_report(&self, business: &str, desired: &Desired, phase: Phase) -> Option<Ensured> {
        let state = self.0.get(business).filter(|state| state.current && *state.desired == *desired)?;
        let waits_for_edges = state.waits_for_edges;
        if waits_for_edges && phase == Phase::Shrink {
            return None;
        }
        Some(Ensured { report: Arc::clone(&state.report), repaired: false, waits_for_edges })
    }

    /// Keeps what was ensured. Whether anything was changed, or it is new here.
    pub(super) fn ensured(
        &mut self,
        business: String,
        desired: Arc<Desired>,
        report: &Arc<Report>,
        left: Vec<Step>,
        waits_for_edges: bool,
    ) -> bool {
        let changed = !report.changes.is_empty();
        let before = self.0.get(&business);
        let same = before.filter(|state| state.desired == desired && !changed);
        let strays = same.and_then(|state| state.strays);
        let changed = changed || before.is_none();
        // What failed may succeed the next time.
        let current = !report.problems.iter().any(Problem::may_pass);
        let report = Arc::clone(report);
        self.0.insert(business, BusinessState { desired, report, left, waits_for_edges, current, strays });
        changed
    }

    /// It was not ensured, or not in full.
    pub(super) fn failed(&mut self, business: &str) {
        if let Some(state) = self.0.get_mut(business) {
            state.current = false;
        }
    }

    /// Each has to be ensured again.
    pub(super) fn recheck_all(&mut self) {
        self.0.values_mut().for_each(|state| state.current = false);
    }

    pub(super) fn remove(&mut self, business: &str) {
        self.0.remove(business);
    }

    pub(super) fn retain(&mut self, claimed: &BTreeSet<String>) {
        self.0.retain(|business, _| claimed.contains(business));
    }

    pub(super) fn get_mut(&mut self, business: &str) -> Option<&mut BusinessState> {
        self.0.get_mut(business)
    }

    pub(super) fn contains(&self, business: &str) -> bool {
        self.0.contains_key(business)
    }

    /// Business types, in no order.
    pub(super) fn names(&self) -> impl Iterator<Item = &String> {
        self.0.keys()
    }

    /// Exchanges from which something is declared to lead to this business's pushes.
    pub(super) fn links_to(&self, business: &str) -> BTreeSet<String> {
        let to = names::push_exchange(business);
        let links = self.0.values().flat_map(|state| &state.desired.topology.links);
        links.filter(|link| link.to == to).map(|link| link.from.clone()).collect()
    }

    /// Messages in `unrouted` that no route takes, of all businesses.
    pub(super) fn strays(&self) -> u64 {
        self.0.values().filter_map(|state| state.strays).map(|strays| u64::from(strays.count)).sum()
    }

    /// Compares a snapshot with what was ensured, except for the businesses that it shows in the middle of a change.
    pub(super) fn compare(
        &mut self,
        snapshot: &Snapshot,
        context: &Context,
        unsettled: &HashSet<String>,
    ) -> Comparison {
        let mut found = Comparison::default();
        for (business, state) in self.0.iter_mut().filter(|(business, _)| !unsettled.contains(*business)) {
            let compared = || state.desired.plan(business, snapshot, context.mode);
            let Ok(plan) = context.caught("comparing a business with the broker", compared) else {
                state.current = false;
                found.differ.insert(business.clone());
                continue;
            };
            let drift: Vec<String> =
                plan.steps.iter().filter(|step| !state.left.contains(step)).map(Step::to_string).collect();
            let planned = plan.problems.iter().filter(|problem| shows_in_a_plan(problem));
            let same_problems = planned.eq(state.report.problems.iter().filter(|problem| shows_in_a_plan(problem)));
            if !plan.steps.is_empty() || !same_problems || !state.report.is_clean() {
                state.current = false;
                found.differ.insert(business.clone());
            }
            if !drift.is_empty() {
                found.drifts.insert(business.clone(), drift);
            } else if routes(&plan.problems) && routes(&state.report.problems) {
                found.intact.insert(business.clone());
            }
        }
        found
    }
}

/// Whether a plan shows it; other problems show only when the plan is applied.
fn shows_in_a_plan(problem: &Problem) -> bool {
    matches!(
        problem,
        Problem::Differs { .. }
            | Problem::MissingQueue { .. }
            | Problem::NoTarget { .. }
            | Problem::QueueNotOpen { .. }
            | Problem::LeadsBack { .. }
            | Problem::MoreRoom { .. }
            | Problem::Reserved { .. }
            | Problem::Held { shared: Some(_), .. }
            | Problem::UserTaken { .. }
    )
}

/// Whether messages are routed. A queue that waits to be emptied, or a foreign policy, does not prevent that.
fn routes(problems: &[Problem]) -> bool {
    use Problem::{Differs, Failed, MissingQueue, QueueNotOpen, Refused, Reserved};
    let astray = |p: &Problem| {
        matches!(
            p,
            Differs { .. }
                | MissingQueue { .. }
                | QueueNotOpen { bound: false, .. }
                | Refused { .. }
                | Failed { .. }
                | Reserved { .. }
        )
    };
    !problems.iter().any(astray)
}
