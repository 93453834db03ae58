//! What is wrong with a declaration, for people and for conditions.

use std::fmt;

use serde::Serialize;

use crate::{business::rules::CelRule, contract::condition::Reason};

/// One thing that is wrong, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// Where, such as `spec.routes[0].queue`; empty for the whole resource.
    pub field: String,
    /// The class of problem.
    pub reason: Reason,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub remedy: String,
    #[serde(skip)]
    pub(crate) found_by: FoundBy,
}

/// Which check found a problem, where another check depends on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum FoundBy {
    /// The schema has no such field. The API server drops it, and every rule can still be evaluated.
    UnknownField,
    /// This rule.
    Rule(CelRule),
    /// Any other check.
    #[default]
    Other,
}

impl Problem {
    /// A problem with this reason.
    pub fn new(
        field: impl Into<String>,
        reason: Reason,
        message: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            field: field.into(),
            reason,
            message: message.into(),
            remedy: remedy.into(),
            found_by: FoundBy::default(),
        }
    }

    /// A problem whose reason follows from the field.
    pub fn at(field: impl Into<String>, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        let field = field.into();
        let reason = reason_for(&field);
        Self::new(field, reason, message, remedy)
    }

    pub(crate) fn found_by(self, found_by: FoundBy) -> Self {
        Self { found_by, ..self }
    }
}

fn reason_for(field: &str) -> Reason {
    if field.starts_with("spec.auth") {
        Reason::InvalidAuth
    } else if !field.starts_with("spec.routes") {
        Reason::InvalidSpec
    } else if field.contains("].schema") {
        Reason::InvalidSchema
    } else {
        Reason::InvalidRoute
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        write!(f, "{}: {}", self.message, self.remedy)
    }
}
