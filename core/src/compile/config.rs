//! What the edges run for one business.

use super::{
    retention::retention,
    topology::{queue_of, senders},
};
use crate::{
    business::{AcceptFrom, Auth, EdgeShareSpec, Jwt, KeySource, LimitsSpec, Route, WsBusiness},
    contract::edge_config::{
        Accepts, AuthConfig, BusinessConfig, Claims, DEFAULT_SESSION_SECONDS, Delivery, EdgeShare, FORMAT, Jwks,
        JwtConfig, Limits, RouteConfig,
    },
};

/// Largest edge configuration of one business, as JSON text in bytes: it travels in a ConfigMap, which holds 1 MiB, beside room for keys.
pub const MAX_CONFIG_BYTES: usize = 900 << 10;

pub(crate) fn config(business: &WsBusiness) -> BusinessConfig {
    let spec = &business.spec;
    BusinessConfig {
        format: FORMAT,
        requires: Vec::new(),
        business_type: business.business_type().to_owned(),
        owner: business.owner(),
        generation: business.metadata.generation.unwrap_or_default(),
        client_types: spec.client_types.clone(),
        routes: spec.routes.iter().map(|r| route(business.business_type(), r, &spec.client_types)).collect(),
        delivery: spec.push.as_ref().map_or(Delivery::default(), |p| p.delivery),
        retention: retention(spec.push.as_ref().and_then(|p| p.retention.as_ref())),
        auth: spec.auth.as_ref().map(|declared| auth(declared, &spec.client_types)).unwrap_or_default(),
        limits: limits(spec.limits.as_ref()),
        session_max_seconds: spec
            .session
            .as_ref()
            .and_then(|s| s.max_seconds)
            .map_or(DEFAULT_SESSION_SECONDS, i64::unsigned_abs),
        accepts: spec.accept_from.iter().map(accepts).collect(),
        accepted_by: Vec::new(),
    }
}

fn route(business: &str, route: &Route, client_types: &[String]) -> RouteConfig {
    RouteConfig {
        message_type: route.message_type.clone(),
        send_type: route.send_type,
        from: senders(route, client_types),
        to: route.to.clone(),
        queue: queue_of(business, route),
        ttl_seconds: route.ttl_seconds.map(i64::unsigned_abs),
        audience: route.audience,
        receipts: route.receipts,
        receipts_within_seconds: route.receipts_within_seconds.map(i64::unsigned_abs),
        schema: route.schema.clone(),
        validate: route.validate,
    }
}

fn accepts(accepted: &AcceptFrom) -> Accepts {
    Accepts { business_type: accepted.business_type.clone(), message_types: accepted.message_types.clone() }
}

fn auth(auth: &Auth, client_types: &[String]) -> AuthConfig {
    AuthConfig {
        jwt: auth.jwt.as_ref().and_then(|declared| jwt(declared, client_types)),
        allowed_origins: auth.allowed_origins.clone(),
        public_description: auth.public_description.unwrap_or_default(),
        api_keys: Vec::new(),
    }
}

/// `None` only with an empty key source, which validation rejects.
fn jwt(jwt: &Jwt, client_types: &[String]) -> Option<JwtConfig> {
    let jwks = match &jwt.jwks {
        None => Jwks::Discovery,
        Some(KeySource { uri: Some(uri), .. }) => Jwks::Uri(uri.clone()),
        Some(KeySource { inline: Some(keys), .. }) => Jwks::Inline(keys.clone()),
        Some(KeySource { uri: None, inline: None }) => return None,
    };
    let claims = jwt.claims.clone().unwrap_or_default();
    // Of one declared client type everybody is.
    let only = || (claims.client_type.is_none() && client_types.len() == 1).then(|| client_types.to_vec());
    Some(JwtConfig {
        client_types: jwt.client_types.clone().or_else(only),
        trusted_issuers: Vec::new(),
        issuer: jwt.issuer.clone(),
        audiences: jwt.audiences.clone(),
        jwks,
        claims: Claims {
            unique_id: claims.unique_id.unwrap_or_else(|| "sub".into()),
            client_type: claims.client_type,
            tags: claims.tags,
        },
    })
}

fn limits(declared: Option<&LimitsSpec>) -> Limits {
    let default = Limits::default();
    let Some(declared) = declared else {
        return default;
    };
    // Validation keeps every number within a few millions.
    let number =
        |declared: Option<i64>, default: usize| declared.map_or(default, |n| usize::try_from(n).unwrap_or(default));
    let rate = |declared: Option<i64>, default: u32| declared.map_or(default, |n| u32::try_from(n).unwrap_or(default));
    Limits {
        message_bytes: number(declared.message_bytes, default.message_bytes),
        push_bytes: number(declared.push_bytes, default.push_bytes),
        messages_per_second: rate(declared.messages_per_second, default.messages_per_second),
        burst: rate(declared.burst, default.burst),
        connections_per_id: rate(declared.connections_per_id, default.connections_per_id),
        per_edge: declared.per_edge.as_ref().map(share).unwrap_or_default(),
    }
}

fn share(declared: &EdgeShareSpec) -> EdgeShare {
    let number = |declared: Option<i64>| declared.and_then(|n| u32::try_from(n).ok());
    EdgeShare {
        connections: number(declared.connections),
        messages_per_second: number(declared.messages_per_second),
        bytes_per_second: number(declared.bytes_per_second),
        pushes_per_second: number(declared.pushes_per_second),
        memory_bytes: declared.memory_bytes.and_then(|n| usize::try_from(n).ok()),
    }
}
