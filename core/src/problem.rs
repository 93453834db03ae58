//! What is wrong with a declaration, for people and for conditions.

use std::fmt;

use serde::Serialize;

/// Why a business is not accepted: the reason of `Accepted=False`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum Reason {
    /// Another, older resource has the business type.
    BusinessTypeTaken,
    /// Something in `spec.routes`.
    InvalidRoute,
    /// A route's JSON Schema.
    InvalidSchema,
    /// Something in `spec.auth`.
    InvalidAuth,
    /// Anything else.
    InvalidSpec,
}

impl Reason {
    /// The word in conditions.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::BusinessTypeTaken => "BusinessTypeTaken",
            Self::InvalidRoute => "InvalidRoute",
            Self::InvalidSchema => "InvalidSchema",
            Self::InvalidAuth => "InvalidAuth",
            Self::InvalidSpec => "InvalidSpec",
        }
    }

    /// The reason for a problem at this field.
    pub fn of(field: &str) -> Self {
        if field.starts_with("spec.auth") {
            Self::InvalidAuth
        } else if !field.starts_with("spec.routes") {
            Self::InvalidSpec
        } else if field.contains("].schema") {
            Self::InvalidSchema
        } else {
            Self::InvalidRoute
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

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
}

impl Problem {
    /// A problem whose reason follows from the field.
    pub fn at(field: impl Into<String>, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        let field = field.into();
        Self { reason: Reason::of(&field), field, message: message.into(), remedy: remedy.into() }
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
