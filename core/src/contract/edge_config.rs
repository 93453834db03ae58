//! What an edge knows about a business: made by [`crate::compile`](mod@crate::compile), carried in one [ConfigMap](super::config_map)
//! (or one file) per business, read by the edge.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::{SendType, hex};

/// The format that this build writes and the newest that it reads.
pub const FORMAT: u32 = 1;

/// One business as an edge runs it. Every default is already filled in: an absent limit can't mean "unlimited" here.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BusinessConfig {
    /// [`FORMAT`] at the time of writing. An edge rejects a larger one only if `requires` names something that it lacks.
    pub format: u32,
    /// Features without which this configuration would be misunderstood; an edge that lacks one keeps the last accepted configuration.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub requires: Vec<String>,
    /// The business type.
    pub business_type: String,
    /// Namespace and name of the declaring resource, for messages to people.
    pub owner: String,
    /// The resource's generation.
    pub generation: i64,
    /// Who may connect.
    pub client_types: Vec<String>,
    /// Routes in the order of the declaration; the first that matches decides.
    pub routes: Vec<RouteConfig>,
    /// How pushes travel.
    pub delivery: Delivery,
    /// What the stream keeps (`Durable`): quiet clients get their position well before it expires.
    pub retention: Retention,
    /// Who is let in.
    pub auth: AuthConfig,
    /// Limits of each edge.
    pub limits: Limits,
    /// Longest session in seconds; a token of the issuer may end it earlier.
    pub session_max_seconds: u64,
    /// What other businesses may send to this one's clients. (`acceptFrom` was a list of names, without effect.)
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub accepts: Vec<Accepts>,
    /// Businesses that accept messages of this one, and that the broker copies them to, sorted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub accepted_by: Vec<String>,
}

/// What a business accepts from another one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Accepts {
    /// The other one.
    pub business_type: String,
    /// Patterns of message types.
    pub message_types: Vec<String>,
}

impl BusinessConfig {
    /// Whether it accepts anything from another business.
    pub fn accepts_from(&self, business: &str) -> bool {
        self.accepts.iter().any(|accepts| accepts.business_type == business)
    }

    /// Hex SHA-256 of the JSON: what `/configz` reports and what `Programmed` compares.
    pub fn hash(&self) -> String {
        let json = serde_json::to_vec(self).unwrap_or_default();
        hex(Sha256::digest(json))
    }
}

/// How pushes of a business get from the broker to the edges.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Delivery {
    /// Through a stream; clients resume by cursor.
    #[default]
    Durable,
    /// Through a queue of each edge; nothing to resume.
    Transient,
}

/// What the push stream keeps; the smaller of the two counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Retention {
    /// Age.
    pub seconds: u64,
    /// Size.
    pub bytes: u64,
}

/// One declared message.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RouteConfig {
    /// AMQP topic pattern of the message type.
    pub message_type: String,
    /// Direction.
    pub send_type: SendType,
    /// Client types that may send it; empty for ServerToClient.
    pub from: Vec<String>,
    /// Client types that may get it; empty for ClientToServer.
    pub to: Vec<String>,
    /// Full name of the queue that a ClientToServer route fills. Absent in configurations of an older operator, which binds queues by
    /// the routes' patterns.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue: Option<String>,
    /// Seconds after acceptance after which it is not delivered any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_seconds: Option<u64>,
    /// Whether everyone may be addressed.
    pub audience: Audience,
    /// Whether the business hears of receipts.
    #[serde(default)]
    pub receipts: bool,
    /// Seconds within which an identity that a push names gives a receipt, else the business hears that it did not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receipts_within_seconds: Option<u64>,
    /// JSON Schema of `content`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schema: Option<Value>,
    /// Which pushes the schema judges. An edge that does not know it judges those by HTTP only.
    #[serde(default, skip_serializing_if = "Validate::is_default")]
    pub validate: Validate,
}

impl RouteConfig {
    /// Whether edges judge the content of pushes that they read from the broker.
    pub fn judges_pushes(&self) -> bool {
        self.send_type == SendType::ServerToClient && self.validate == Validate::Always && self.schema.is_some()
    }
}

/// Which pushes of services are judged by their route's schema.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Validate {
    /// Those by the HTTP call, before they are published.
    #[default]
    Http,
    /// Those by AMQP as well: each edge judges what it reads.
    Always,
}

impl Validate {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// Whom a push of a route may address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Audience {
    /// An identity or tags must be named.
    #[default]
    Addressed,
    /// `"toUniqueId": "*"` is allowed as well.
    Everyone,
}

/// Who is let in.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AuthConfig {
    /// Tokens of clients; absent = only the business's services hand out sessions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jwt: Option<JwtConfig>,
    /// Origins of browsers, exact (`https://shop.example`) or `*`; empty = no browser origin is accepted, programs without an Origin are.
    pub allowed_origins: Vec<String>,
    /// Keys of the business's services.
    #[serde(default)]
    pub api_keys: Vec<ApiKey>,
    /// Whether anybody may read the description; else only the business's services.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub public_description: bool,
}

/// A key of a business's service; only its digest is known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ApiKey {
    /// Hex SHA-256 of the key. Keys are 256 random bits, so a plain digest can't be reversed by search.
    pub sha256: String,
    /// Ms since the epoch after which it is refused; absent = no end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<i64>,
}

/// How tokens of clients are checked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct JwtConfig {
    /// Required `iss`.
    pub issuer: String,
    /// One of these must be in `aud`.
    pub audiences: Vec<String>,
    /// The keys.
    pub jwks: Jwks,
    /// Which claims mean what.
    pub claims: Claims,
    /// What the holder of a token may be. Absent: what the claim says; without one, in a configuration that was accepted before this field
    /// was, any declared client type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_types: Option<Vec<String>>,
    /// Hosts, by name or `name:port`, whose keys may be fetched over http and from addresses that are not public.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub trusted_issuers: Vec<String>,
}

impl JwtConfig {
    /// What edges ask for the keys, if they are not in the declaration: a key set or the issuer.
    pub fn key_address(&self) -> Option<&str> {
        match &self.jwks {
            Jwks::Uri(uri) => Some(uri),
            Jwks::Discovery => Some(&self.issuer),
            Jwks::Inline(_) => None,
        }
    }
}

/// Where keys come from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Jwks {
    /// Fetched from this address.
    Uri(String),
    /// Fetched from `jwks_uri` of the issuer's discovery document (OpenID Connect Discovery 1.0).
    Discovery,
    /// Written in the declaration (RFC 7517 key set).
    Inline(Value),
}

/// Claims that carry identity.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Claims {
    /// The identity; default `sub`.
    pub unique_id: String,
    /// The client type; absent = the token call's `clientType` parameter, checked against `clientTypes`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_type: Option<String>,
    /// Tags (a list of strings, or one string); absent = none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tags: Option<String>,
}

/// Limits of one edge.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Limits {
    /// Largest message from a client, in bytes.
    pub message_bytes: usize,
    /// Largest push, in bytes.
    pub push_bytes: usize,
    /// Sustained messages a second from one identity.
    pub messages_per_second: u32,
    /// Messages at once from one identity.
    pub burst: u32,
    /// Connections of one identity; the oldest is replaced.
    pub connections_per_id: u32,
    /// What the whole business may use.
    #[serde(skip_serializing_if = "EdgeShare::is_unlimited")]
    pub per_edge: EdgeShare,
}

/// What a whole business may use of one edge; absent = as much as the edge has, but for bytes a second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EdgeShare {
    /// Connections of all its clients.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connections: Option<u32>,
    /// Messages a second from all its clients.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub messages_per_second: Option<u32>,
    /// Bytes a second of messages from all its clients, for each copy that is stored; as many of pushes that it sends by
    /// HTTP. Absent: [`DEFAULT_BYTES_PER_SECOND`], so that edges of an earlier version compute the same hash.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_per_second: Option<u32>,
    /// Pushes a second: those that it sends by HTTP, and those that are read for its clients.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pushes_per_second: Option<u32>,
    /// Bytes of messages on their way to its clients; as many of messages on their way in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<usize>,
}

impl EdgeShare {
    fn is_unlimited(&self) -> bool {
        *self == Self::default()
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            message_bytes: 64 << 10,
            push_bytes: 256 << 10,
            messages_per_second: 20,
            burst: 40,
            connections_per_id: 8,
            per_edge: EdgeShare::default(),
        }
    }
}

/// Longest session that a declaration may allow, in seconds: 30 days.
pub const MAX_SESSION_SECONDS: u64 = 2_592_000;
/// Longest session by default, in seconds: a day.
pub const DEFAULT_SESSION_SECONDS: u64 = 86_400;

/// [`EdgeShare::bytes_per_second`] where none is declared: more small messages than a broker takes from one edge. Large ones would keep its
/// disk from everybody.
pub const DEFAULT_BYTES_PER_SECOND: u32 = 16 << 20;
