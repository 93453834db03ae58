//! Which namespace a business type belongs to, as the broker records it. The owner of a type gets a user that may read its queues, so a type
//! of which anything is left is only given to a namespace that is known to own it.
//!
//! The record is an exchange, [`names::owner_mark`], whose argument names the namespace. It is part of an export of definitions and of the
//! snapshot that is read anyway, so it survives the loss of every record in the cluster. It is the first object of a business to be created,
//! and the last one to be deleted.

use serde_json::{Value, json};
use wirepost_core::names;

use crate::actual;
use crate::report::Problem;
use crate::step::Step;

/// Argument of the mark.
const NAMESPACE: &str = "x-wirepost-namespace";

/// The owner of a declaration. Two are equal if their namespaces are: the evidence grows as soon as a business runs, which is no reason to
/// compare it with the broker again.
#[derive(Clone, Debug)]
pub struct BusinessOwner {
    /// Its namespace.
    pub namespace: String,
    /// What proves that objects of the business type belong to it.
    pub evidence: Evidence,
}

/// See [`BusinessOwner::evidence`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Evidence {
    /// Only what the broker records.
    None,
    /// Enough where the broker has no record: an administrator took over the vhost, or the declaration was in force before there were marks.
    Unmarked,
    /// The caller's own record, which takes precedence over the broker's: the business runs, or an administrator has handed it over.
    Record,
}

impl PartialEq for BusinessOwner {
    fn eq(&self, other: &Self) -> bool {
        self.namespace == other.namespace
    }
}

impl Eq for BusinessOwner {}

impl BusinessOwner {
    /// The step that makes the broker name this owner, if one is needed; or why nothing may be done. `mark`: the namespace that the broker
    /// names; `left`: whether it has any object of the business.
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

/// The namespace that a mark names. Empty if it can't be read: then the type belongs to nobody.
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
