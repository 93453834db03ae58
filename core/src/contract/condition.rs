//! The conditions of a `WsBusiness`, and every reason that one can have.
//!
//! | condition | True | False | Unknown |
//! |---|---|---|---|
//! | Accepted | `Accepted` | `BusinessTypeTaken`, `InvalidRoute`, `InvalidSchema`, `InvalidAuth`, `InvalidSpec`, `QueueNotFound`, `QueueNotOpen`, `CustomResourceDefinitionOutdated` | |
//! | Provisioned | `Provisioned` | `NotAsDeclared`, `Drifted`, `BrokerUnavailable`, `BrokerRefused`, `SecretTaken`, `WriteRefused`, `Deleting` | `NotAccepted`, `Pending` |
//! | Programmed | `Programmed` | `EdgesBehind`, `EdgesUnreachable`, `NoEdges`, `Deleting` | `NotAccepted`, `Pending` |
//! | Ready | `Ready` | the reason of the first condition that is not True | |

use std::fmt;

use serde::Serialize;

/// A condition of a `WsBusiness`, in the order in which they come true.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ConditionType {
    /// The declaration is valid and the business type is its own.
    Accepted,
    /// The broker has exactly the topology, and the credentials are where they belong.
    Provisioned,
    /// Every ready edge runs this generation.
    Programmed,
    /// All of the others are true.
    Ready,
}

impl ConditionType {
    /// As it stands in the status.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "Accepted",
            Self::Provisioned => "Provisioned",
            Self::Programmed => "Programmed",
            Self::Ready => "Ready",
        }
    }
}

impl fmt::Display for ConditionType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $name:ident,)*) => {
        /// Why a condition has its status: one CamelCase word, which alerts and scripts may rely on. The message beside it is for people.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
        pub enum Reason {
            $($(#[doc = $doc])+ $name,)*
        }

        impl Reason {
            /// Every reason.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// As it stands in a condition.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => stringify!($name),)*
                }
            }
        }
    };
}

reasons! {
    /// The declaration is valid.
    Accepted,
    /// The broker has the topology.
    Provisioned,
    /// Every ready edge runs this generation.
    Programmed,
    /// Clients can connect and messages flow.
    Ready,

    /// Another, older resource has the business type.
    BusinessTypeTaken,
    /// Something in `spec.routes` is wrong.
    InvalidRoute,
    /// A route's JSON Schema is wrong.
    InvalidSchema,
    /// Something in `spec.auth` is wrong.
    InvalidAuth,
    /// Anything else in the resource is wrong.
    InvalidSpec,
    /// A route names a queue of the team's own (`existing: true`) that does not exist.
    QueueNotFound,
    /// A route names a queue whose owner has not opened it to this business.
    QueueNotOpen,
    /// The installed CustomResourceDefinition lacks fields that this operator knows.
    CustomResourceDefinitionOutdated,

    /// Something on the broker differs in a way that only a person can put right.
    NotAsDeclared,
    /// Others changed something on the broker; it is about to be repaired.
    Drifted,
    /// The broker does not answer. A retry may help.
    BrokerUnavailable,
    /// The broker refuses the operator. A person has to act.
    BrokerRefused,
    /// A Secret of that name exists and was not made by the operator.
    SecretTaken,
    /// The API server refuses the Secret or the ConfigMap: a quota, an admission policy.
    WriteRefused,
    /// The resource is being deleted.
    Deleting,

    /// Edges still run another generation.
    EdgesBehind,
    /// Edges do not answer the operator.
    EdgesUnreachable,
    /// No edge is ready.
    NoEdges,

    /// This generation is not accepted, so nothing of it was provisioned or programmed.
    NotAccepted,
    /// Not looked at yet.
    Pending,
}

impl Reason {
    /// The reason of that name; `None` for a word that is not one of ours.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.iter().find(|reason| reason.as_str() == text).copied()
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_reads_back() {
        for reason in Reason::ALL {
            assert_eq!(Reason::parse(reason.as_str()), Some(*reason));
        }
        assert_eq!(Reason::parse("Sideways"), None);
    }

    /// The API server takes CamelCase words alone.
    #[test]
    fn every_reason_is_one_camel_case_word() {
        for reason in Reason::ALL {
            let word = reason.as_str();
            assert!(
                word.starts_with(|c: char| c.is_ascii_uppercase()) && word.chars().all(|c| c.is_ascii_alphabetic())
            );
        }
    }
}
