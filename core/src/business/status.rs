//! What the operator reports.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::KubeSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::route::any_object;

/// What the operator found and did.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct WsBusinessStatus {
    /// The generation that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// The business type in use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub business_type: Option<String>,
    /// The class that applies to it, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class_name: Option<String>,
    /// What its class gave the accepted declaration for fields that it leaves out, as the class writes it (`defaults`, `limits`). A class that
    /// was changed since counts from the next change on. Absent: no class applied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "any_object")]
    pub terms: Option<Value>,
    /// How long the broker keeps pushes. Absent: there is no stream, or it is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention: Option<RetentionStatus>,
    /// Accepted, Provisioned, Programmed, and Ready, which sums them up. Permitted: where a class applies. Linked:
    /// where it accepts messages of other businesses, or they accept its own. Reconciling or Stalled: while it is not
    /// ready.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = kube::core::ListMerge::Map(vec!["type".to_owned()]))]
    pub conditions: Vec<Condition>,
    /// Address of the token call.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_url: Option<String>,
    /// Exchanges for the business's services.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exchanges: Option<ExchangesStatus>,
    /// Queues that the business's services consume, by full name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 128))]
    pub queues: Vec<String>,
    /// The Secret with the credentials, as Service Binding for Kubernetes names it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub binding: Option<LocalReference>,
    /// How many edges run this generation, with a short delay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub edges: Option<EdgesStatus>,
    /// How many connections clients have on all edges, in two significant digits, as of about a minute ago. Absent: not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clients: Option<i64>,
}

/// Exchanges for the business's services, by full name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ExchangesStatus {
    /// Where messages of clients arrive.
    pub receive: String,
    /// Where the business publishes to clients.
    pub push: String,
    /// Where connections and receipts are reported.
    pub events: String,
}

/// An object in the resource's namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct LocalReference {
    /// Its name.
    pub name: String,
}

/// What is in force on the stream of a business. A change to less destroys messages.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct RetentionStatus {
    /// Age in seconds. Absent: any age.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds: Option<i64>,
    /// Size as a quantity, such as 500Mi. Absent: any size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<String>,
}

/// How many edges run this generation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct EdgesStatus {
    /// Edges that run it.
    pub programmed: i32,
    /// Ready edges.
    pub total: i32,
    /// Both for people: `2/3`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub summary: Option<String>,
}
