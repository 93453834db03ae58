//! What changed classes mean for the businesses of a cluster. A class changes nothing that runs, except what becomes of messages when a
//! resource is deleted; what it gives and forbids comes with the next change of each declaration.

use serde_json::Value;
use wirepost_core::{
    Problem, WsBusiness, business::DeletionPolicy, class::WsBusinessClass, compile::compile_accepted,
    topology::Topology, validate,
};

use super::{
    Extent,
    applied::Applied,
    changes::{Declared, changes, fields},
};
use crate::declarations::classes::Classes;

/// A class that is to be applied.
pub(super) struct Compared {
    /// One for each field that differs, and for each business that notices; empty: nothing changes.
    pub lines: Vec<String>,
    /// How much would change.
    pub extent: Extent,
}

/// Compares a class with the stored one. `now`, `after`: all classes, without and with what is to be applied. `businesses`: all that are
/// in the cluster and are not applied together with it.
pub(super) fn compare(
    class: &WsBusinessClass,
    (now, after): (&Classes, &Classes),
    businesses: &[&Applied],
) -> Compared {
    let name = class.metadata.name.as_deref().unwrap_or_default();
    let spec = |class: &WsBusinessClass| serde_json::to_value(&class.spec).unwrap_or_default();
    let mut lines = Vec::new();
    fields("", &now.named(name).map_or(Value::Null, spec), &spec(class), &mut lines);
    let mut extent = if lines.is_empty() { Extent::Nothing } else { Extent::Changes };
    for business in businesses {
        let of = |classes: &Classes| classes.name_of(&business.declared) == Some(name);
        if extent == Extent::Nothing || !(of(now) || of(after)) {
            continue;
        }
        let owner = business.declared.owner();
        let (was, will) = (Effect::of(business, now), Effect::of(business, after));
        if will.deletes != was.deletes {
            lines.push(if will.deletes {
                format!("! {owner}: from now on its messages are deleted with the resource (defaults.deletionPolicy)")
            } else {
                format!("~ {owner}: from now on its messages are kept when the resource is deleted (defaults.deletionPolicy)")
            });
        }
        // What an earlier change of the class means is no news.
        if will.next != was.next {
            lines.extend(will.next.iter().map(|line| {
                let (sign, rest) = line.split_at(1);
                format!("{sign} {owner}, with its next change:{rest}")
            }));
        }
        if (will.destroys && !was.destroys) || (will.deletes && !was.deletes) {
            extent = Extent::Destructive;
        }
    }
    Compared { lines, extent }
}

/// What the classes mean for a business that runs.
struct Effect {
    /// Its messages are deleted with it.
    deletes: bool,
    /// What comes with the next change of its declaration, whatever that is.
    next: Vec<String>,
    destroys: bool,
}

impl Effect {
    fn of(applied: &Applied, classes: &Classes) -> Self {
        let own = applied.declared.spec.deletion_policy;
        let class = classes.class_of(&applied.declared).ok().flatten();
        let given = class.and_then(|class| class.spec.defaults.as_ref()?.deletion_policy);
        let deletes = own.or(given) == Some(DeletionPolicy::Delete);
        match next(applied, classes) {
            Ok((next, destroys)) => Self { deletes, next, destroys },
            Err(problems) => {
                let refused = problems.iter().map(|Problem { field, message, .. }| {
                    format!("! it is refused until it complies: {field}: {message}")
                });
                Self { deletes, next: refused.collect(), destroys: false }
            }
        }
    }
}

/// What comes with the next change of a declaration, and whether it destroys messages.
fn next(applied: &Applied, classes: &Classes) -> Result<(Vec<String>, bool), Vec<Problem>> {
    let after = permitted(applied, classes)?;
    let Some(topology) = topology(&after) else { return Ok((Vec::new(), false)) };
    let changes = changes(Some(applied.declared()), Declared { business: &after, topology: &topology });
    Ok((changes.all(), !changes.destroyed.is_empty()))
}

/// What was applied, as it would be accepted under these classes.
///
/// # Errors
/// What they forbid.
pub(super) fn permitted(applied: &Applied, classes: &Classes) -> Result<WsBusiness, Vec<Problem>> {
    let mut after = applied.declared.clone();
    let problems = classes.forbidden(&mut after);
    if !problems.is_empty() {
        return Err(problems);
    }
    match (classes.class_of(&applied.declared), applied.class()) {
        (Ok(None), Some(before)) if classes.are_known() => Err(vec![validate::class::lost(before)]),
        _ => Ok(after),
    }
}

pub(super) fn topology(business: &WsBusiness) -> Option<Topology> {
    Some(compile_accepted(business)?.topology)
}
