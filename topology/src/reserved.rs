//! Whose a business type is, as the broker knows it. Whoever gets a type gets a user that may read its queues, so nobody gets one of which
//! anything is left, unless it is known to be his.
//!
//! The record is an exchange, [`names::owner_mark`], whose argument names the namespace. It is part of an export of definitions and of the
//! snapshot that is read anyway, so it outlives the loss of every record in the cluster. It is the first object of a business and the last one
//! that goes.

use serde_json::{Value, json};
use wirepost_core::names;

use crate::actual;
use crate::report::Problem;
use crate::step::Step;

/// Argument of the mark.
const NAMESPACE: &str = "x-wirepost-namespace";

/// Who declares a business. Equal are those of one namespace: the evidence grows as soon as a business runs, and nothing has to be compared
/// with the broker again for that.
#[derive(Clone, Debug)]
pub struct BusinessOwner {
    /// Its namespace.
    pub namespace: String,
    /// What shows that what is left of the business type is its own.
    pub evidence: Evidence,
}

/// See [`BusinessOwner::evidence`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Evidence {
    /// Nothing but what the broker says.
    None,
    /// Enough where the broker says nothing: an administrator took over the vhost, or the declaration was in force before there were marks.
    Unmarked,
    /// A record of the caller's own, which counts more than the broker's: the business runs, or an administrator has handed it over.
    Record,
}

impl PartialEq for BusinessOwner {
    fn eq(&self, other: &Self) -> bool {
        self.namespace == other.namespace
    }
}

impl Eq for BusinessOwner {}

impl BusinessOwner {
    /// What has to be done so that the broker names this owner; or why nothing may be done. `mark`: the namespace that it names; `left`:
    /// whether it has anything of the business.
    pub(crate) fn mark(&self, business: &str, mark: Option<&str>, left: bool) -> Result<Option<Step>, Problem> {
        let Self { namespace, evidence } = self;
        let is_theirs = match mark {
            Some(mark) if mark == namespace => return Ok(None),
            Some(_) => left && *evidence != Evidence::Record,
            None => left && *evidence == Evidence::None,
        };
        if is_theirs {
            return Err(Problem::Reserved { business: business.to_owned(), namespace: mark.map(str::to_owned) });
        }
        let (business, namespace) = (business.to_owned(), namespace.clone());
        Ok(Some(Step::MarkBusiness { business, namespace, instead: mark.is_some() }))
    }
}

/// The business of a mark.
pub(crate) fn marked(exchange: &str) -> Option<&str> {
    names::owner(exchange).filter(|business| names::owner_mark(business) == exchange)
}

/// The namespace that a mark names; empty for one that can't be read, which is nobody's.
pub(crate) fn namespace(mark: &actual::Exchange) -> String {
    mark.arguments.get(NAMESPACE).and_then(Value::as_str).unwrap_or_default().to_owned()
}

/// A mark as the management API wants it. Not internal: an export of definitions leaves internal exchanges out.
pub(crate) fn body(namespace: &str) -> Value {
    json!({"type": "fanout", "durable": true, "auto_delete": false, "arguments": {NAMESPACE: namespace}})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_for_its_namespace_or_for_whom_a_record_names() {
        use Evidence::{None as Nothing, Record, Unmarked};
        let decide =
            |evidence, mark, left| BusinessOwner { namespace: "shop".to_owned(), evidence }.mark("pay", mark, left);
        let set = |instead| {
            Ok(Some(Step::MarkBusiness { business: "pay".to_owned(), namespace: "shop".to_owned(), instead }))
        };
        let reserved = |namespace: Option<&str>| {
            Err(Problem::Reserved { business: "pay".to_owned(), namespace: namespace.map(str::to_owned) })
        };
        for evidence in [Nothing, Unmarked, Record] {
            assert_eq!(decide(evidence, Some("shop"), true), Ok(None));
            assert_eq!(decide(evidence, Some("bank"), false), set(true), "a mark of nothing");
            assert_eq!(decide(evidence, None, false), set(false));
        }
        assert_eq!(decide(Nothing, None, true), reserved(None));
        assert_eq!(decide(Unmarked, None, true), set(false));
        for evidence in [Nothing, Unmarked] {
            assert_eq!(decide(evidence, Some("bank"), true), reserved(Some("bank")));
        }
        assert_eq!(decide(Record, Some("bank"), true), set(true));
    }
}
