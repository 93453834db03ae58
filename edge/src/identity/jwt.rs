//! Tokens of clients, issued by the business's issuer. The signature is checked with the primitives of the TLS stack,
//! every claim here: JWT libraries are too lax (in jsonwebtoken 11 `nbf` is off by default, a missing `aud` passes, and
//! the leeway also extends `exp`), and none has ES512.

use std::sync::Arc;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Map, Value};
use tokio::time::Instant;
use wirepost_core::{
    edge_config::{Claims, Jwks, JwtConfig},
    key_set::{self, Algorithm, KeyDefect},
};

use super::{
    claims,
    jwks::{
        Source,
        fetch::{FetchError, Location},
    },
    key_set::{KeySet, KeySetError, NoKeyError, signed},
};
use crate::clock;

/// Longest token, in bytes.
pub const MAX_TOKEN: usize = 16 << 10;
/// How far the issuer's clock may be ahead of ours, in seconds. It never extends `exp`: a token is short-lived, and an
/// expired one is refused immediately.
pub const LEEWAY: f64 = 60.0;

/// Checks tokens for one business.
#[derive(Debug)]
pub struct JwtVerifier {
    issuer: String,
    audiences: Vec<String>,
    claims: Claims,
    client_types: Option<Vec<String>>,
    keys: Keys,
}

/// Where the keys are.
#[derive(Debug)]
enum Keys {
    Inline(KeySet),
    Fetched(Arc<Source>),
}

/// The identity that a token proves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The identity.
    pub unique_id: String,
    /// The kind of client; not yet checked against the declared ones.
    pub client_type: String,
    /// Tags.
    pub tags: Vec<String>,
    /// The declared tags claim, if the token lacks it: usually a misnamed claim, or one that the issuer omits.
    pub lacks_tags: Option<String>,
    /// The token's end, ms since the epoch.
    pub expires_at: i64,
}

/// Why a token is refused: which check failed. Never contains a part of the token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JwtError {
    /// Too long to be checked.
    #[error("token has {0} bytes, at most {MAX_TOKEN} are looked at")]
    TooLong(usize),
    /// Not a signed JWT.
    #[error("token is not a signed JWT: {0}")]
    Malformed(&'static str),
    /// An algorithm that is never accepted, `none` and the HMAC ones among them.
    #[error("token's algorithm (alg) is not accepted, sign with EdDSA, or RS, PS or ES with 256, 384 or 512 bits")]
    Algorithm,
    /// The key is for another algorithm than the token claims.
    #[error("token's algorithm (alg) is not the one of its key, which is for {}", .0.name())]
    KeyAlgorithm(Algorithm),
    /// The key set has no such key.
    #[error("token's key (kid) is not in the issuer's key set")]
    UnknownKey,
    /// The token names no key.
    #[error("token names no key (kid) and the issuer's key set has several")]
    UnnamedKey,
    /// The key exists, for another purpose.
    #[error("token's key (kid) can't check tokens: {0}")]
    UnusableKey(KeyDefect),
    /// Forged or altered.
    #[error("token's signature is wrong")]
    Signature,
    /// A claim that every token needs.
    #[error("token has no {0}")]
    Missing(&'static str),
    /// A claim of the wrong type.
    #[error("token's {claim} must be {expected}")]
    Type {
        /// Which.
        claim: String,
        /// The expected type.
        expected: &'static str,
    },
    /// From another issuer.
    #[error("token's issuer (iss) is not the one of this business")]
    Issuer,
    /// For another audience.
    #[error("token's audience (aud) does not name this business's")]
    Audience,
    /// Too late.
    #[error("token expired (exp), get a new one")]
    Expired,
    /// Too early.
    #[error("token is not valid yet (nbf); check the issuer's clock")]
    NotYet,
    /// From the future.
    #[error("token was issued in the future (iat); check the issuer's clock")]
    IssuedInFuture,
    /// The configured claim is not there.
    #[error("token has no claim {0}, which this business takes for the identity or client type")]
    MissingClaim(String),
    /// The declaration does not list the client type.
    #[error("a client with a token of this business can't be that clientType; it may be {0}")]
    ClientTypeNotListed(String),
    /// The call names another client type than the token.
    #[error("clientType of the call is not the one of the token")]
    ClientTypeMismatch,
    /// Neither the token nor the call names a client type.
    #[error("name a client type with ?clientType=")]
    NoClientType,
    /// The issuer's keys could not be fetched yet.
    // The reason stands in the log: a caller must not learn what the edge reaches.
    #[error("the issuer's key set is not loaded yet, retry in a few seconds")]
    KeysNotLoaded(FetchError),
}

/// An invalid configuration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JwtConfigError {
    /// The inline key set.
    #[error(transparent)]
    KeySet(#[from] KeySetError),
    /// No issuer or no audience: any token would be accepted.
    #[error("{0} must not be empty")]
    Empty(&'static str),
}

impl JwtVerifier {
    /// Creates a verifier. A key set from a URI is fetched when it is first needed, so that a failing issuer does not
    /// keep an edge from starting.
    ///
    /// # Errors
    /// See [`JwtConfigError`].
    pub fn try_new(config: &JwtConfig) -> Result<Self, JwtConfigError> {
        let JwtConfig { issuer, audiences, jwks, claims, client_types, trusted_issuers } = config;
        if issuer.is_empty() {
            return Err(JwtConfigError::Empty("issuer"));
        }
        if audiences.is_empty() || audiences.iter().any(String::is_empty) {
            return Err(JwtConfigError::Empty("audiences"));
        }
        let keys = match jwks {
            Jwks::Inline(set) => Keys::Inline(KeySet::parse(set)?),
            Jwks::Uri(uri) => Keys::Fetched(Source::of(Location::Set(uri.clone()), trusted_issuers)),
            Jwks::Discovery => Keys::Fetched(Source::of(Location::OfIssuer(issuer.clone()), trusted_issuers)),
        };
        let client_types = client_types.clone();
        Ok(Self { issuer: issuer.clone(), audiences: audiences.clone(), claims: claims.clone(), client_types, keys })
    }

    /// Checks a token. `client_type` is the call's parameter: it chooses among several listed client types if no claim
    /// has the client type, and is never allowed to contradict the claim.
    ///
    /// # Errors
    /// See [`JwtError`].
    pub async fn verify(&self, token: &str, client_type: Option<&str>) -> Result<Identity, JwtError> {
        let header = Header::parse(token)?;
        let claims = match &self.keys {
            Keys::Inline(set) => header.check_signature(set, token)?,
            Keys::Fetched(source) => {
                let asked = Instant::now();
                let known = source.get().await.map_err(JwtError::KeysNotLoaded)?;
                match header.check_signature(&known.set, token) {
                    // A key that is new, or new under its old id.
                    Err(error) if error.may_pass_with_newer_keys() => match source.newer_than(&known, asked).await {
                        Some(newer) => header.check_signature(&newer.set, token)?,
                        None => return Err(error),
                    },
                    other => other?,
                }
            }
        };
        let expires_at = self.check_claims(&claims, clock::now_ms())?;
        let (tags, lacks_tags) = self.tags(&claims)?;
        Ok(Identity {
            unique_id: self.unique_id(&claims)?,
            client_type: self.client_type(&claims, client_type)?,
            tags,
            lacks_tags,
            expires_at,
        })
    }

    /// Checks the claims that every token needs (RFC 7519, section 4.1); returns its end in ms.
    fn check_claims(&self, claims: &Map<String, Value>, now: i64) -> Result<i64, JwtError> {
        let now = now as f64 / 1000.0;
        match claims.get("iss") {
            Some(Value::String(issuer)) if *issuer == self.issuer => {}
            None | Some(Value::Null) => return Err(JwtError::Missing("issuer (iss)")),
            Some(Value::String(issuer)) if issuer.is_empty() => return Err(JwtError::Missing("issuer (iss)")),
            Some(Value::String(_)) => return Err(JwtError::Issuer),
            Some(_) => return Err(wrong_type("iss", "a string")),
        }
        let names_us = |audience: &str| self.audiences.iter().any(|ours| ours == audience);
        let for_us = match claims.get("aud").ok_or(JwtError::Missing("audience (aud)"))? {
            Value::String(audience) => names_us(audience),
            Value::Array(list) => list.iter().filter_map(Value::as_str).any(names_us),
            _ => return Err(wrong_type("aud", "a string or a list of strings")),
        };
        if !for_us {
            return Err(JwtError::Audience);
        }
        let expires = seconds(claims, "exp")?.ok_or(JwtError::Missing("end (exp)"))?;
        if now >= expires {
            return Err(JwtError::Expired);
        }
        // Many issuers omit it; if present it is checked.
        let not_before = seconds(claims, "nbf")?.unwrap_or_default();
        if not_before > now + LEEWAY {
            return Err(JwtError::NotYet);
        }
        if seconds(claims, "iat")?.is_some_and(|issued| issued > now + LEEWAY) {
            return Err(JwtError::IssuedInFuture);
        }
        Ok((expires * 1000.0) as i64)
    }

    fn unique_id(&self, claims: &Map<String, Value>) -> Result<String, JwtError> {
        let name = &self.claims.unique_id;
        let missing = || match name.as_str() {
            "sub" => JwtError::Missing("subject (sub)"),
            _ => JwtError::MissingClaim(name.clone()),
        };
        let claim = claims::find(claims, name).ok_or_else(missing)?;
        let id = claims::text(claim).ok_or_else(|| wrong_type(name, "a string or a whole number"))?;
        // An empty name is not an identity; an issuer that leaves a claim empty has none.
        if id.is_empty() { Err(missing()) } else { Ok(id) }
    }

    fn client_type(&self, claims: &Map<String, Value>, asked: Option<&str>) -> Result<String, JwtError> {
        let client_type = match (&self.claims.client_type, self.client_types.as_deref(), asked) {
            (Some(name), _, asked) => match claims::find(claims, name) {
                Some(Value::String(client_type)) if asked.is_none_or(|asked| asked == client_type) => client_type,
                Some(Value::String(_)) => return Err(JwtError::ClientTypeMismatch),
                None => return Err(JwtError::MissingClaim(name.clone())),
                Some(_) => return Err(wrong_type(name, "a string")),
            },
            (None, _, Some(asked)) => asked,
            (None, Some([only]), None) => only,
            (None, _, None) => return Err(JwtError::NoClientType),
        };
        match &self.client_types {
            Some(listed) if !listed.iter().any(|listed| listed == client_type) => {
                Err(JwtError::ClientTypeNotListed(listed.join(", ")))
            }
            _ => Ok(client_type.to_owned()),
        }
    }

    /// The tags, and the claim's name if the token lacks it. A claim that is present but malformed is refused: a
    /// session without tags would miss what its groups receive, without any explanation.
    fn tags(&self, claims: &Map<String, Value>) -> Result<(Vec<String>, Option<String>), JwtError> {
        let Some(name) = &self.claims.tags else {
            return Ok((Vec::new(), None));
        };
        let Some(claim) = claims::find(claims, name) else {
            return Ok((Vec::new(), Some(name.clone())));
        };
        let tags =
            claims::texts(claim).ok_or_else(|| wrong_type(name, "a list of strings or whole numbers, or one"))?;
        Ok((tags, None))
    }
}

/// The part of a token's header that decides how it is checked.
struct Header {
    algorithm: Algorithm,
    kid: Option<String>,
}

impl Header {
    fn parse(token: &str) -> Result<Self, JwtError> {
        if token.len() > MAX_TOKEN {
            return Err(JwtError::TooLong(token.len()));
        }
        let mut parts = token.split('.');
        let (Some(header), Some(_), Some(_), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
            return Err(JwtError::Malformed("it does not have three parts"));
        };
        let header = URL_SAFE_NO_PAD.decode(header).map_err(|_| JwtError::Malformed("its header is not base64url"))?;
        let header: Map<String, Value> =
            serde_json::from_slice(&header).map_err(|_| JwtError::Malformed("its header is not a JSON object"))?;
        // Extensions that must be understood (RFC 7515, section 4.1.11); none is supported.
        if header.contains_key("crit") {
            return Err(JwtError::Malformed("its header asks for an extension (crit)"));
        }
        let algorithm =
            header.get("alg").and_then(Value::as_str).and_then(Algorithm::named).ok_or(JwtError::Algorithm)?;
        let kid = key_set::id(header.get("kid"))
            .map_err(|_| JwtError::Malformed("its kid is neither text nor a whole number"))?;
        Ok(Self { algorithm, kid })
    }

    /// The claims, if a key of the set signed them.
    fn check_signature(&self, keys: &KeySet, token: &str) -> Result<Map<String, Value>, JwtError> {
        let candidates = keys.find(self.kid.as_deref(), self.algorithm).map_err(|error| match error {
            NoKeyError::Unknown => JwtError::UnknownKey,
            NoKeyError::Ignored(reason) => JwtError::UnusableKey(reason),
            NoKeyError::OtherAlgorithm(algorithm) => JwtError::KeyAlgorithm(algorithm),
            NoKeyError::Unnamed => JwtError::UnnamedKey,
        })?;
        let (message, signature) = token.rsplit_once('.').ok_or(JwtError::Signature)?;
        let signature = URL_SAFE_NO_PAD.decode(signature).map_err(|_| JwtError::Signature)?;
        if !candidates.into_iter().any(|key| signed(key, self.algorithm, message.as_bytes(), &signature)) {
            return Err(JwtError::Signature);
        }
        let payload = message.split_once('.').and_then(|(_, payload)| URL_SAFE_NO_PAD.decode(payload).ok());
        let claims = payload.and_then(|payload| serde_json::from_slice(&payload).ok());
        claims.ok_or(JwtError::Malformed("its payload is not a JSON object"))
    }
}

impl JwtError {
    fn may_pass_with_newer_keys(&self) -> bool {
        matches!(
            self,
            Self::UnknownKey | Self::UnnamedKey | Self::UnusableKey(_) | Self::KeyAlgorithm(_) | Self::Signature
        )
    }
}

fn wrong_type(claim: &str, expected: &'static str) -> JwtError {
    JwtError::Type { claim: claim.to_owned(), expected }
}

/// Seconds since the epoch, fractions allowed (RFC 7519, section 2, NumericDate).
fn seconds(claims: &Map<String, Value>, name: &'static str) -> Result<Option<f64>, JwtError> {
    match claims.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => value.as_f64().map(Some).ok_or_else(|| wrong_type(name, "a number of seconds since the epoch")),
    }
}

#[cfg(test)]
pub(crate) mod tests;
