//! The declaration: one `WsBusiness` resource says which messages the clients of one business may send and receive. The CRD, the offline
//! check and the operator are all based on these types; what the types can't express is a CEL rule of [`rules`].
//!
//! Every string and list is bounded, so that the rules stay within the API server's cost budget. An absent limit means its default, never
//! "unlimited"; what a whole business may use of an edge is bounded by the edge.

// The KubeSchema derive copies each type into a function, where `pub` has no effect.
#![allow(unreachable_pub)]

mod auth;
mod route;
pub mod rules;
mod status;

pub use auth::{Auth, ClaimNames, Jwt, KeySource};
pub use route::{Queue, Route};
pub use status::{EdgesStatus, ExchangesStatus, LocalReference, RetentionStatus, WsBusinessStatus};

use kube::{CustomResource, KubeSchema, core::ObjectMeta};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::contract::edge_config::Delivery;

/// The API group.
pub const GROUP: &str = "wirepost.dev";
/// `apiVersion` of the resource.
pub const API_VERSION: &str = "wirepost.dev/v1alpha1";
/// `kind` of the resource.
pub const KIND: &str = "WsBusiness";

/// Seconds for which pushes are kept by default: a day.
pub const DEFAULT_RETENTION_SECONDS: i64 = 86_400;
/// Bytes of pushes that are kept by default.
pub const DEFAULT_RETENTION_BYTES: &str = "1Gi";
/// Most bytes in the queue of a route, by default.
pub const DEFAULT_QUEUE_BYTES: &str = "1Gi";

/// What the clients of one business may send and receive, who they are, and how long pushes are kept.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "wirepost.dev",
    version = "v1alpha1",
    kind = "WsBusiness",
    plural = "wsbusinesses",
    singular = "wsbusiness",
    shortname = "wsb",
    category = "wirepost",
    namespaced,
    status = "WsBusinessStatus",
    derive = "PartialEq",
    doc = "WsBusiness declares which WebSocket messages the clients of one business may send and receive.",
    validation = rules::BUSINESS_TYPE_FROM_NAME.to_kube(),
    validation = rules::RESERVED_NAME.to_kube(),
    validation = rules::BUSINESS_TYPE_IMMUTABLE.to_kube(),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status"
    ),
    printcolumn(
        name = "Type",
        type_ = "string",
        description = "The business type: first part of the URL and of every broker object.",
        json_path = ".status.businessType"
    ),
    printcolumn(
        name = "Edges",
        type_ = "string",
        description = "Edges that run this generation, of all that are ready.",
        json_path = ".status.edges.summary"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(
        name = "Clients",
        type_ = "integer",
        priority = 1,
        description = "Connections of clients on all edges, as of about a minute ago.",
        json_path = ".status.clients"
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        priority = 1,
        json_path = ".status.conditions[?(@.type==\"Ready\")].reason"
    )
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = rules::FROM_IS_CLIENT_TYPE.to_kube(),
    validation = rules::TO_IS_CLIENT_TYPE.to_kube(),
    validation = rules::TOKEN_CLIENT_TYPE.to_kube(),
    validation = rules::TOKEN_CLIENT_TYPE_IS_DECLARED.to_kube(),
    validation = rules::BUSINESS_TYPE_SYNTAX.to_kube(),
    validation = rules::RESERVED_TYPE.to_kube(),
    validation = rules::ACCEPTS_OTHERS.to_kube(),
    validation = rules::RECEIPTS_WITHIN_NEEDS_DURABLE.to_kube(),
    validation = rules::RECEIPTS_WITHIN_RETENTION.to_kube(),
)]
pub struct WsBusinessSpec {
    /// Name of the business in URLs, envelopes and broker objects: a-z, 0-9 and hyphens, at most 40 characters, one owner in the cluster.
    /// Default: metadata.name. Can't be changed later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 40))]
    pub business_type: Option<String>,

    /// The WsBusinessClass that applies: the platform team's policy. Default: the default class, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub class_name: Option<String>,

    /// Kinds of clients that may connect, such as app, h5, pos.
    #[schemars(length(min = 1, max = 16), inner(length(min = 1, max = 40)))]
    #[x_kube(validation = rules::CLIENT_TYPE_SYNTAX.to_kube(), merge_strategy = kube::core::ListMerge::Set)]
    pub client_types: Vec<String>,

    /// Messages that may flow. The first route that fits a message decides. Each combination of sendType and
    /// messageType may occur only once.
    #[schemars(length(min = 1, max = 100))]
    #[x_kube(merge_strategy = kube::core::ListMerge::Map(vec!["sendType".to_owned(), "messageType".to_owned()]))]
    pub routes: Vec<Route>,

    /// How pushes travel and how long they are kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub push: Option<Push>,

    /// Who is let in. Absent: only the business's services, by API key, hand out sessions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth: Option<Auth>,

    /// Limits of each edge.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<LimitsSpec>,

    /// How long a client may stay without a new token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<Session>,

    /// Credentials for the business's own services. Absent: none are made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access: Option<Access>,

    /// Businesses whose messages may reach this business's clients, where they name it in the envelope's `businesses`
    /// and a route here takes them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    #[x_kube(merge_strategy = kube::core::ListMerge::Map(vec!["businessType".to_owned()]))]
    pub accept_from: Vec<AcceptFrom>,

    /// Whether messages are kept when this resource is deleted. Default: Retain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deletion_policy: Option<DeletionPolicy>,
}

/// Whether messages are kept when a resource is deleted: by a person, by GitOps, or with its namespace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum DeletionPolicy {
    /// Queues with messages and the stream stay on the broker, and the business type stays reserved for the namespace, so that a resource
    /// applied there again finds them. A change that would destroy messages waits for the annotation wirepost.dev/allow-destructive.
    #[default]
    Retain,
    /// Queues and the stream are deleted with their messages.
    Delete,
}

/// How pushes travel and how long they are kept.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = rules::TRANSIENT_KEEPS_NOTHING.to_kube())]
pub struct Push {
    /// Durable: through a stream; clients resume by cursor within the retention. Transient: a queue for each edge; what a client misses is
    /// gone. A change closes the business's connections once; from Durable to Transient, what the stream keeps goes.
    #[serde(default)]
    pub delivery: Delivery,
    /// How long a Durable push is kept; whichever bound is reached first. Default: a day, 1Gi.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention: Option<Retention>,
}

/// How long pushes are kept: whichever bound is reached first.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Retention {
    /// Age in seconds. Default: 86400, a day.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 31_536_000))]
    pub seconds: Option<i64>,
    /// Size as a quantity, such as 500Mi; from 100k to 1Ti. Default: 1Gi.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 20))]
    #[x_kube(validation = rules::RETENTION_BYTES.to_kube())]
    pub bytes: Option<String>,
}

/// Limits of each edge. An absent one means its default.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct LimitsSpec {
    /// Largest message from a client, in bytes. Default: 65536.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 128, max = 1_048_576))]
    pub message_bytes: Option<i64>,
    /// Largest push, in bytes. Default: 262144.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 128, max = 4_194_304))]
    pub push_bytes: Option<i64>,
    /// Sustained messages a second from one identity, all its connections together. Default: 20.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10_000))]
    pub messages_per_second: Option<i64>,
    /// Messages at once from one identity. Default: 40.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 20_000))]
    pub burst: Option<i64>,
    /// Connections of one identity; a further one replaces the oldest. Default: 8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000))]
    pub connections_per_id: Option<i64>,
    /// What the whole business may use of each edge, whatever its clients and services do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per_edge: Option<EdgeShareSpec>,
}

/// What a whole business may use of each edge. An absent one: as much as the class allows, and as the edge has for all.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct EdgeShareSpec {
    /// Connections of all clients; a further one is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub connections: Option<i64>,
    /// Messages a second from all clients; a further one is refused with rate_limited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub messages_per_second: Option<i64>,
    /// Bytes a second of messages from all clients, and as many of pushes by HTTP; further ones are refused. Default: 16777216, 16 MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 65_536, max = 1_000_000_000))]
    pub bytes_per_second: Option<i64>,
    /// Pushes a second. By HTTP a further one is refused; pushes from the broker are read later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub pushes_per_second: Option<i64>,
    /// Bytes of messages on their way to clients, and as many of messages on their way in. Beyond it clients that do not read are closed,
    /// and messages and calls wait or are refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1_048_576, max = 17_179_869_184_i64))]
    pub memory_bytes: Option<i64>,
}

/// What is accepted from another business.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct AcceptFrom {
    /// The business type. It need not exist yet.
    #[schemars(length(min = 1, max = 40))]
    #[x_kube(validation = rules::ACCEPT_FROM_SYNTAX.to_kube())]
    pub business_type: String,
    /// Its messages that are accepted; patterns as in routes.
    #[schemars(length(min = 1, max = 16), inner(length(min = 1, max = 200)))]
    #[x_kube(validation = rules::ACCEPTED_TYPE_SYNTAX.to_kube(), merge_strategy = kube::core::ListMerge::Set)]
    pub message_types: Vec<String>,
}

/// How long a client may stay without a new token.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Session {
    /// Longest session in seconds; the token may end it earlier. Default: 86400, a day.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 5, max = 2_592_000))]
    pub max_seconds: Option<i64>,
}

/// Credentials for the business's own services.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Access {
    /// Name of the Secret, in the resource's namespace, that receives them.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = rules::SECRET_NAME.to_kube())]
    pub secret_name: String,
}

impl WsBusiness {
    /// The business type: `spec.businessType`, else the resource's name.
    pub fn business_type(&self) -> &str {
        self.spec.business_type.as_deref().or(self.metadata.name.as_deref()).unwrap_or_default()
    }

    /// `namespace/name`, for messages to people.
    pub fn owner(&self) -> String {
        format!(
            "{}/{}",
            self.metadata.namespace.as_deref().unwrap_or("default"),
            self.metadata.name.as_deref().unwrap_or_default()
        )
    }
}

/// Sort key of claimants: the least one owns the business type. The oldest `creationTimestamp` first (a resource without one is newest), then
/// namespace and name.
pub fn seniority(metadata: &ObjectMeta) -> impl Ord + '_ {
    let created = metadata.creation_timestamp.as_ref().map(|time| time.0);
    (created.is_none(), created, &metadata.namespace, &metadata.name)
}
