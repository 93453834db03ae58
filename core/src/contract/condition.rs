//! The conditions of a `WsBusiness`, and every reason that one can have.
//!
//! | condition | True | False | Unknown |
//! |---|---|---|---|
//! | Accepted | `Accepted` | `BusinessTypeTaken`, `BusinessTypeReserved`, `InvalidRoute`, `InvalidSchema`, `InvalidAuth`, `InvalidSpec`, `Destructive`, `QueueNotFound`, `QueueNotOpen`, `ClassForbids`, `ClassNotFound` | |
//! | Provisioned | `Provisioned` | `NotAsDeclared`, `Destructive`, `TooFewReplicas`, `Drifted`, `VhostNotOurs`, `SecretTaken`, `WriteRefused`, `Deleting`, `MassDeletion` | `BrokerUnavailable`, `BrokerRefused`, `NotAccepted`, `Pending` |
//! | Programmed | `Programmed` | `EdgesBehind`, `NoEdges`, `Deleting` | `EdgesUnreachable`, `NotAccepted`, `Pending` |
//! | Ready | `Ready` | the reason of the first condition that is not True, if one is False | the same, if none is False |
//!
//! One more exists only where a class applies. It does not affect readiness: a declaration that its class forbids later keeps running.
//!
//! | condition | True | False | Unknown |
//! |---|---|---|---|
//! | Permitted | `ClassAllows` | `ClassForbids`, `ClassNotFound` | |
//!
//! Another one exists where a declaration accepts messages of other businesses, or others accept its own. It does not
//! affect readiness.
//!
//! | condition | True | False | Unknown |
//! |---|---|---|---|
//! | Linked | `Linked` | `SenderNotFound` | |
//!
//! Two more follow the convention of kstatus, which Flux, Argo CD and Helm understand: they exist only while they are True.
//!
//! | condition | True |
//! |---|---|
//! | Reconciling | it is not ready yet, and needs no help: the reason of the first condition that is not True |
//! | Stalled | it is not ready, and an administrator or its team must act: the first reason that needs it, see [`Reason::needs_help`] |

use std::fmt;

use serde::Serialize;

/// A condition of a `WsBusiness`, in the order in which they come true.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ConditionType {
    /// The declaration is valid and the business type is its own.
    Accepted,
    /// The broker has exactly the topology, and the credentials are where they belong.
    Provisioned,
    /// Enough ready edges run this generation.
    Programmed,
    /// All of the others are true.
    Ready,
    /// Its class allows the declaration. Exists only where a class applies.
    Permitted,
    /// Every business exists whose messages it accepts. Exists only where it accepts any, or others accept its own.
    Linked,
    /// Not ready yet; nobody has to act. Exists only while it is True.
    Reconciling,
    /// Not ready until somebody acts. Exists only while it is True.
    Stalled,
}

impl ConditionType {
    /// Every condition.
    pub const ALL: [Self; 8] = [
        Self::Accepted,
        Self::Provisioned,
        Self::Programmed,
        Self::Ready,
        Self::Permitted,
        Self::Linked,
        Self::Reconciling,
        Self::Stalled,
    ];

    /// The condition of that name; `None` for an unknown word.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text)
    }

    /// Whether it exists only while it is True: it then reports that something is not as it should be.
    pub fn is_abnormal(self) -> bool {
        matches!(self, Self::Reconciling | Self::Stalled)
    }

    /// As it stands in the status.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "Accepted",
            Self::Provisioned => "Provisioned",
            Self::Programmed => "Programmed",
            Self::Ready => "Ready",
            Self::Permitted => "Permitted",
            Self::Linked => "Linked",
            Self::Reconciling => "Reconciling",
            Self::Stalled => "Stalled",
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
    /// Enough ready edges run this generation.
    Programmed,
    /// Clients can connect and messages flow.
    Ready,

    /// Another resource owns the business type: the one that runs, else the oldest.
    BusinessTypeTaken,
    /// Something of the business type is left on the broker, which belongs to another namespace, or to nobody knows whom.
    BusinessTypeReserved,
    /// Something in `spec.routes` is wrong.
    InvalidRoute,
    /// A route's JSON Schema is wrong.
    InvalidSchema,
    /// Something in `spec.auth` is wrong.
    InvalidAuth,
    /// Anything else in the resource is wrong.
    InvalidSpec,
    /// The change would destroy messages, so it waits for confirmation.
    Destructive,
    /// A route names a queue of the team's own (`existing: true`) that does not exist.
    QueueNotFound,
    /// A route names a queue whose owner has not opened it to this business.
    QueueNotOpen,
    /// The class of the business forbids something in the declaration.
    ClassForbids,
    /// The declaration names a class that does not exist or can't be read.
    ClassNotFound,
    /// The operator does not know the classes: it can't list them, or their CustomResourceDefinition is too old.
    ClassesUnknown,
    /// The class of the business allows the declaration.
    ClassAllows,
    /// All businesses exist whose messages it accepts.
    Linked,
    /// The declaration accepts messages of a business that does not exist.
    SenderNotFound,
    /// The installed CustomResourceDefinition lacks fields that this operator knows. Only in events: to write a
    /// condition would make the API server drop newer fields of the resource.
    CustomResourceDefinitionOutdated,

    /// Something on the broker differs in a way that only a person can put right.
    NotAsDeclared,
    /// Queues or streams have copies on fewer nodes of the broker than they should.
    TooFewReplicas,
    /// Others changed something on the broker; it is about to be repaired.
    Drifted,
    /// The broker does not answer. A retry may help.
    BrokerUnavailable,
    /// The broker refuses the operator. A person has to act.
    BrokerRefused,
    /// The vhost belongs to another installation of wirepost, or may: an administrator must decide.
    VhostNotOurs,
    /// A Secret of that name exists and was not made by the operator.
    SecretTaken,
    /// The API server refuses the Secret or the ConfigMap: a quota, an admission policy.
    WriteRefused,
    /// The resource is being deleted.
    Deleting,
    /// The resource is being deleted, together with most others: nothing is removed until an administrator confirms it.
    MassDeletion,

    /// Edges still run another generation.
    EdgesBehind,
    /// Edges do not answer the operator.
    EdgesUnreachable,
    /// No edge is ready.
    NoEdges,

    /// This generation is not accepted, so nothing of it was provisioned or programmed.
    NotAccepted,
    /// Not evaluated yet.
    Pending,
}

impl Reason {
    /// Whether it lasts until somebody acts: the team on its declaration, or an administrator on the broker or the cluster. Everything else
    /// passes without help.
    pub fn needs_help(self) -> bool {
        match self {
            Self::BusinessTypeTaken
            | Self::BusinessTypeReserved
            | Self::Destructive
            | Self::VhostNotOurs
            | Self::MassDeletion
            | Self::InvalidRoute
            | Self::InvalidSchema
            | Self::InvalidAuth
            | Self::InvalidSpec
            | Self::QueueNotFound
            | Self::QueueNotOpen
            | Self::ClassForbids
            | Self::ClassNotFound
            | Self::ClassesUnknown
            | Self::CustomResourceDefinitionOutdated
            | Self::NotAsDeclared
            | Self::TooFewReplicas
            | Self::BrokerRefused
            | Self::SecretTaken
            | Self::WriteRefused => true,
            Self::Accepted
            | Self::Provisioned
            | Self::Programmed
            | Self::Ready
            | Self::ClassAllows
            | Self::Linked
            | Self::SenderNotFound
            | Self::Drifted
            | Self::BrokerUnavailable
            | Self::Deleting
            | Self::EdgesBehind
            | Self::EdgesUnreachable
            | Self::NoEdges
            | Self::NotAccepted
            | Self::Pending => false,
        }
    }

    /// Whether it often passes within seconds and concerns every business at the same time: an edge or the broker did not answer once.
    pub fn may_pass(self) -> bool {
        matches!(
            self,
            Self::BrokerUnavailable | Self::BrokerRefused | Self::EdgesBehind | Self::EdgesUnreachable | Self::NoEdges
        )
    }

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
