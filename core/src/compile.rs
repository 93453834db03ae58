//! Declarations → broker topology and edge configuration. Pure and deterministic: equal declarations give equal results, in any order.
//!
//! One bad business never stops another. The business type belongs to the oldest resource that claims it, even while that resource is
//! otherwise invalid: a typo must not hand a team's queues to another team.

mod config;
mod policies;
mod queues;
mod retention;
mod topology;

pub use config::MAX_CONFIG_BYTES;
pub use policies::{shared_policies, shared_policy_of};
pub(crate) use queues::merge as merge_queues;

use std::collections::BTreeMap;

use kube::core::ObjectMeta;
use serde::Serialize;

use crate::{
    business::WsBusiness,
    contract::{condition::Reason, edge_config::BusinessConfig},
    problem::Problem,
    topology::Topology,
    validate,
};

/// What all declarations together come to.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Compilation {
    /// Businesses that run, sorted by business type.
    pub accepted: Vec<Compiled>,
    /// Those that don't, sorted by owner.
    pub rejected: Vec<Rejection>,
}

/// One business that runs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Compiled {
    /// The business type.
    pub business: String,
    /// `namespace/name` of the resource.
    pub owner: String,
    /// What it needs on the broker.
    pub topology: Topology,
    /// What the edges run. `auth.apiKeys` is empty: whoever holds the keys adds them.
    pub config: BusinessConfig,
}

/// One business that does not run.
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
    /// The reason for the `Accepted` condition: that of the first problem.
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
            problems: vec![taken(business, &owner.owner())],
        };
        out.rejected.extend(others.iter().map(taken));
        match compile_one(owner) {
            Ok(compiled) => out.accepted.push(compiled),
            Err(rejection) => out.rejected.push(rejection),
        }
    }
    out.rejected.sort_by(|a, b| a.owner.cmp(&b.owner));
    out
}

/// Who claims which business type, each list with the rightful owner first. Deterministic: oldest `creationTimestamp` (a resource without
/// one is newest), then namespace and name.
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

/// Of several resources that claim one business type, the one with the least seniority key owns it: the oldest `creationTimestamp` (a
/// resource without one is newest), then namespace and name.
pub fn seniority(metadata: &ObjectMeta) -> impl Ord + '_ {
    let created = metadata.creation_timestamp.as_ref().map(|time| time.0);
    (created.is_none(), created, &metadata.namespace, &metadata.name)
}

/// Compiles one declaration, without regard to who else claims its business type.
///
/// # Errors
/// Everything that is wrong with it. A resource may be stored that today's schema would refuse, so all is checked again here.
pub fn compile_one(business: &WsBusiness) -> Result<Compiled, Rejection> {
    let problems = validate::check_resource(business);
    if !problems.is_empty() {
        return Err(Rejection { business: business.business_type().to_owned(), owner: business.owner(), problems });
    }
    Ok(compiled(business))
}

/// Compiles a declaration that was accepted once, which today's rules may refuse. `None`: its queues contradict each other, so that it can't
/// have been accepted.
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
pub fn taken(business: &str, owner: &str) -> Problem {
    Problem::new(
        "spec.businessType",
        Reason::BusinessTypeTaken,
        format!("business type {business} belongs to {owner}"),
        "set spec.businessType to a name of your own, or delete the other resource",
    )
}

#[cfg(test)]
mod tests;
