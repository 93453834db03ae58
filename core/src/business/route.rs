//! One declared message.

use kube::KubeSchema;
use schemars::{Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::rules;
use crate::{
    SendType,
    edge_config::{Audience, Validate},
};

/// One declared message: its type, its direction, and what holds for it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = rules::CLIENT_TO_SERVER_NEEDS_QUEUE.to_kube(),
    validation = rules::SERVER_TO_CLIENT_NEEDS_TO.to_kube(),
    validation = rules::CLIENT_TO_CLIENT_NEEDS_FROM.to_kube(),
    validation = rules::CLIENT_TO_CLIENT_NEEDS_TO.to_kube(),
    validation = rules::QUEUE_IS_FOR_CLIENT_TO_SERVER.to_kube(),
    validation = rules::SERVER_TO_CLIENT_HAS_NO_FROM.to_kube(),
    validation = rules::CLIENT_TO_SERVER_HAS_NO_TO.to_kube(),
    validation = rules::TTL_IS_FOR_PUSHES.to_kube(),
    validation = rules::AUDIENCE_IS_FOR_PUSHES.to_kube(),
    validation = rules::RECEIPTS_ARE_FOR_SERVER_TO_CLIENT.to_kube(),
    validation = rules::RECEIPTS_WITHIN_NEEDS_RECEIPTS.to_kube(),
    validation = rules::VALIDATE_IS_FOR_SERVER_TO_CLIENT.to_kube(),
    validation = rules::VALIDATE_NEEDS_SCHEMA.to_kube(),
)]
pub struct Route {
    /// What happened, dotted words such as payment.completed; as an AMQP topic pattern `*` stands for one word and `#` for any number of
    /// words.
    #[schemars(length(min = 1, max = 200))]
    #[x_kube(
        validation = rules::MESSAGE_TYPE_SYNTAX.to_kube(),
        validation = rules::MESSAGE_TYPE_BYTES.to_kube(),
    )]
    pub message_type: String,
    /// Direction.
    pub send_type: SendType,
    /// Client types that may send it. Default for ClientToServer: every client type.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 16), inner(length(min = 1, max = 40)))]
    pub from: Vec<String>,
    /// Client types that may get it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 16), inner(length(min = 1, max = 40)))]
    pub to: Vec<String>,
    /// Where the business's service takes it from; for ClientToServer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue: Option<Queue>,
    /// Seconds after which it is not delivered any more. Absent: as long as the retention keeps it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 31_536_000))]
    pub ttl_seconds: Option<i64>,
    /// Addressed: a push must name an identity or tags. Everyone: `"toUniqueId": "*"` is allowed as well. Default: Addressed.
    #[serde(default, skip_serializing_if = "is_default")]
    pub audience: Audience,
    /// Whether the business gets an event when a client has received it; for ServerToClient. Default: false.
    #[serde(default, skip_serializing_if = "is_default")]
    pub receipts: bool,
    /// Seconds within which an identity that a push names must have reported it; else the business gets the event `undelivered`. For
    /// routes with receipts, and pushes that are Durable. Absent: nobody waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 5, max = 3_600))]
    pub receipts_within_seconds: Option<i64>,
    /// JSON Schema that `content` must fulfil, at most 64 KiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "any_object")]
    pub schema: Option<Value>,
    /// Which pushes the schema judges; for ServerToClient. Http: those by the HTTP call. Always: those by AMQP as well, by each edge that
    /// reads them; one that does not fit is delivered to nobody and reported by the event `rejected`. Default: Http.
    #[serde(default, skip_serializing_if = "is_default")]
    pub validate: Validate,
}

/// A queue that a route fills. Routes that name one queue share its settings: give each setting once, or the same each time.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = rules::QUEUE_NAME_SYNTAX.to_kube(),
    validation = rules::EXISTING_QUEUE_NAME.to_kube(),
    validation = rules::EXISTING_QUEUE_HAS_NO_SETTINGS.to_kube(),
)]
pub struct Queue {
    /// Short name; the queue is called wirepost.<businessType>.q.<name>. With `existing: true` the exact name of the team's own queue.
    #[schemars(length(min = 1, max = 200))]
    pub name: String,
    /// The queue is the team's own: it is bound, and otherwise left alone. Default: false.
    #[serde(default, skip_serializing_if = "is_default")]
    pub existing: bool,
    /// Most messages in the queue; further ones are refused to their sender. Default: 1000000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100_000_000))]
    pub max_length: Option<i64>,
    /// Most bytes in the queue, as a quantity such as 500Mi; from 100k to 1Ti. Further messages are refused to their sender. Default: 1Gi.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 20))]
    #[x_kube(validation = rules::QUEUE_BYTES.to_kube())]
    pub max_length_bytes: Option<String>,
    /// Seconds after which an unread message moves to the dead queue. Absent: it waits forever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 31_536_000))]
    pub message_ttl_seconds: Option<i64>,
    /// Failed deliveries after which a message moves to the dead queue. Default: 20.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000))]
    pub delivery_limit: Option<i64>,
}

/// Leaves a default out of what is written, and so out of the CRD. A default that the API server fills in inside a list item looks like a
/// change of the whole list to every tool that compares a file with what is stored.
fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// An object that the API server keeps as it is. Its size is bounded by [`crate::validate`].
pub(super) fn any_object(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "object", "x-kubernetes-preserve-unknown-fields": true})
}
