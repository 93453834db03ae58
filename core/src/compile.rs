//! Declarations → broker topology and edge configuration. Pure and deterministic: equal declarations give equal results, in any order.
//!
//! An invalid business never affects another. The business type belongs to the oldest resource that claims it, even while that resource is
//! invalid: a typo must not give a team's queues to another team.

mod config;
mod policies;
mod queues;
mod retention;
mod topology;

pub use config::MAX_CONFIG_BYTES;
pub(crate) use policies::{DEFAULT_MAX_LENGTH, RECEIPTS_BYTES};
pub use policies::{GROUP_SIZE, shared_policies, shared_policy_of};
pub(crate) use queues::merge as merge_queues;
pub(crate) use retention::{quantity, quantity_text};

pub use crate::business::seniority;

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::{
    business::WsBusiness,
    contract::{condition::Reason, edge_config::BusinessConfig},
    problem::Problem,
    topology::Topology,
    validate,
};

/// The result for all declarations.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Compilation {
    /// Accepted businesses, sorted by business type.
    pub accepted: Vec<Compiled>,
    /// Rejected ones, sorted by owner.
    pub rejected: Vec<Rejection>,
}

/// An accepted business.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Compiled {
    /// The business type.
    pub business: String,
    /// `namespace/name` of the resource.
    pub owner: String,
    /// What it needs on the broker.
    pub topology: Topology,
    /// What the edges run. `auth.apiKeys` is empty: the operator adds them.
    pub config: BusinessConfig,
}

impl Compiled {
    /// Leads this business's messages to these others, which accept them, and to no one else, and tells its edges.
    /// Whoever compiles a declaration alone knows of the others and calls this; they must have their push exchanges
    /// already.
    pub fn share_with(&mut self, acceptors: &BTreeSet<String>) {
        topology::share(&mut self.topology, &self.business, acceptors);
        self.config.accepted_by = acceptors.iter().cloned().collect();
    }
}

/// A rejected business.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Rejection {
    /// The business type it asks for.
    pub business: String,
    /// `namespace/name` of the resource.
    pub owner: String,
    /// What is wrong; never empty.
    pub problems: Vec<Problem>,
}

impl Rejection {
    /// The reason for the `Accepted` condition: the first problem's.
    pub fn reason(&self) -> Reason {
        self.problems.first().map_or(Reason::InvalidSpec, |problem| problem.reason)
    }
}

/// Compiles all declarations of a cluster (or of a folder).
pub fn compile(businesses: &[WsBusiness]) -> Compilation {
    let mut out = Compilation::default();
    for (business, claimants) in claims(businesses) {
        let Some((owner, others)) = claimants.split_first() else {
            continue;
        };
        let taken = |other: &&WsBusiness| Rejection {
            business: business.to_owned(),
            owner: other.owner(),
            problems: vec![business_type_taken(business, &owner.owner())],
        };
        out.rejected.extend(others.iter().map(taken));
        match compile_one(owner) {
            Ok(compiled) => out.accepted.push(compiled),
            Err(rejection) => out.rejected.push(rejection),
        }
    }
    out.rejected.sort_by(|a, b| a.owner.cmp(&b.owner));
    share_all(&mut out.accepted);
    out
}

/// Leads the messages of each to those of the others that accept them.
fn share_all(accepted: &mut [Compiled]) {
    let mut acceptors: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for compiled in &*accepted {
        for accepts in &compiled.config.accepts {
            acceptors.entry(accepts.business_type.clone()).or_default().insert(compiled.business.clone());
        }
    }
    for compiled in accepted {
        if let Some(acceptors) = acceptors.get(&compiled.business) {
            compiled.share_with(acceptors);
        }
    }
}

/// Business type → its claimants, the owner first. Deterministic: oldest `creationTimestamp` (a resource without one is newest), then
/// namespace and name.
pub fn claims(businesses: &[WsBusiness]) -> BTreeMap<&str, Vec<&WsBusiness>> {
    let mut claims: BTreeMap<&str, Vec<&WsBusiness>> = BTreeMap::new();
    for business in businesses {
        claims.entry(business.business_type()).or_default().push(business);
    }
    for claimants in claims.values_mut() {
        claimants.sort_by(|a, b| seniority(&a.metadata).cmp(&seniority(&b.metadata)));
    }
    claims
}

/// Compiles one declaration, regardless of other claimants of its business type.
///
/// # Errors
/// Everything that is wrong with it. A stored resource may be one that today's schema would reject, so everything is checked again here.
pub fn compile_one(business: &WsBusiness) -> Result<Compiled, Rejection> {
    let problems = validate::check_resource(business);
    if !problems.is_empty() {
        return Err(Rejection { business: business.business_type().to_owned(), owner: business.owner(), problems });
    }
    Ok(compiled(business))
}

/// Compiles a declaration that was accepted once, which today's rules may reject. `None`: its queues contradict each other, so it can't have
/// been accepted.
pub fn compile_accepted(business: &WsBusiness) -> Option<Compiled> {
    merge_queues(&business.spec.routes).ok()?;
    Some(compiled(business))
}

fn compiled(business: &WsBusiness) -> Compiled {
    let name = business.business_type();
    Compiled {
        business: name.to_owned(),
        owner: business.owner(),
        topology: topology::topology(name, &business.spec),
        config: config::config(business),
    }
}

pub(crate) use config::config as edge_config;

/// The problem of a resource whose business type belongs to `owner`, an older one (`namespace/name`).
pub fn business_type_taken(business: &str, owner: &str) -> Problem {
    Problem::new(
        "spec.businessType",
        Reason::BusinessTypeTaken,
        format!("business type {business} belongs to {owner}"),
        "set spec.businessType to a name of your own, or delete the other resource",
    )
}

#[cfg(test)]
mod tests;
