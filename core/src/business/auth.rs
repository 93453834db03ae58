//! Who is let in.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{route::any_object, rules};

/// Who is let in.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Auth {
    /// Tokens of clients. Absent: only the business's services, by API key, hand out sessions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jwt: Option<Jwt>,
    /// Origins of pages and apps that may connect, such as https://shop.example or capacitor://localhost, or `*` for all. The edge's own
    /// address always may, and so may programs that send no Origin. Empty: no others. "null" (in quotes) stands for pages without an
    /// origin. Any page can send it from a sandboxed frame, so it allows nearly as much as `*`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 256)))]
    #[x_kube(validation = rules::ORIGIN_SYNTAX.to_kube(), merge_strategy = kube::core::ListMerge::Set)]
    pub allowed_origins: Vec<String>,
    /// Whether anybody may read the AsyncAPI description of the business's messages at the edges. Default: only its services, by API key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public_description: Option<bool>,
}

/// How tokens of clients are checked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = rules::DISCOVERED_ISSUER.to_kube())]
pub struct Jwt {
    /// Required `iss`.
    #[schemars(length(min = 1, max = 512))]
    pub issuer: String,
    /// One of these must be in `aud`.
    #[schemars(length(min = 1, max = 16), inner(length(min = 1, max = 256)))]
    #[x_kube(merge_strategy = kube::core::ListMerge::Set)]
    pub audiences: Vec<String>,
    /// The issuer's keys. Absent: `jwks_uri` of its OpenID Connect discovery document (issuer + `/.well-known/openid-configuration`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jwks: Option<KeySource>,
    /// Which claims carry what.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claims: Option<ClaimNames>,
    /// What the holder of a token may be: some of the declared client types. Where no claim has the client type, the token call chooses one
    /// of these. May be left out if claims.clientType is set, or if only one client type is declared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 16), inner(length(min = 1, max = 40)))]
    #[x_kube(merge_strategy = kube::core::ListMerge::Set)]
    pub client_types: Option<Vec<String>>,
}

/// Where the issuer's keys come from: exactly one of the two.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = rules::ONE_KEY_SOURCE.to_kube())]
pub struct KeySource {
    /// Address of the key set, https with a public name; others only where the platform team trusts the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    #[x_kube(validation = rules::KEY_URI.to_kube())]
    pub uri: Option<String>,
    /// The key set itself (RFC 7517), public keys only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "any_object")]
    pub inline: Option<Value>,
}

/// Which claims carry what: names of claims, or paths into nested ones with dots (`realm_access.roles`) or as JSON pointers
/// (`/realm_access/roles`, RFC 6901). A claim of exactly that name wins over a path.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClaimNames {
    /// The identity, text or a whole number. Default: sub.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 200))]
    pub unique_id: Option<String>,
    /// The client type. Absent: the token call's `clientType`, see clientTypes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 200))]
    pub client_type: Option<String>,
    /// Tags, a list of texts or whole numbers, or one. Absent: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 200))]
    pub tags: Option<String>,
}
