//! Public keys of an issuer (RFC 7517), made ready: each pinned to one algorithm, so that a token can't choose how it is checked.

use jsonwebtoken::{Algorithm, DecodingKey};
use serde_json::{Map, Value};

/// Most keys of a set that are looked at.
const MAX_KEYS: usize = 64;

/// The usable keys of a set, and the ids of those left aside with the reason.
#[derive(Debug, Default)]
pub struct KeySet {
    keys: Vec<Key>,
    ignored: Vec<(String, &'static str)>,
}

#[derive(Debug)]
struct Key {
    id: Option<String>,
    algorithm: Algorithm,
    decoding: DecodingKey,
}

/// A key set that can't be used. One odd key in it is no reason (Keats/jsonwebtoken 252).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadKeySet {
    /// Not of the form.
    #[error("key set is not of the form {{\"keys\": [{{\"kty\": …}}]}} (RFC 7517)")]
    Form,
    /// Too many keys.
    #[error("key set has {0} keys, at most {MAX_KEYS} are taken")]
    TooMany(usize),
    /// Nothing in it can check a signature.
    #[error("key set has no key that can be used (RS256, ES256 or EdDSA, for signatures){0}")]
    Empty(String),
}

/// Why no key of the set fits a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoKey {
    /// No key has that id. Another set may have it.
    Unknown,
    /// The key is there but may not check signatures of tokens.
    Ignored(&'static str),
    /// The key is for another algorithm.
    OtherAlgorithm(Algorithm),
    /// The token names no key and there are several.
    Unnamed,
}

impl KeySet {
    /// Reads a set. Keys of unknown types, for encryption or for other algorithms are left aside.
    ///
    /// # Errors
    /// See [`BadKeySet`].
    pub fn parse(set: &Value) -> Result<Self, BadKeySet> {
        let keys = set.get("keys").and_then(Value::as_array).ok_or(BadKeySet::Form)?;
        if keys.len() > MAX_KEYS {
            return Err(BadKeySet::TooMany(keys.len()));
        }
        let mut result = Self::default();
        let mut reasons = Vec::new();
        for key in keys {
            let id = key.get("kid").and_then(Value::as_str).map(str::to_owned);
            match key.as_object().ok_or("not an object").and_then(usable) {
                Ok((algorithm, decoding)) => result.keys.push(Key { id, algorithm, decoding }),
                Err(reason) => {
                    reasons.push(reason);
                    if let Some(id) = id {
                        result.ignored.push((id, reason));
                    }
                }
            }
        }
        if result.keys.is_empty() {
            reasons.dedup();
            let reasons = if reasons.is_empty() { String::new() } else { format!(": {}", reasons.join("; ")) };
            return Err(BadKeySet::Empty(reasons));
        }
        Ok(result)
    }

    /// The key for a token's header.
    ///
    /// # Errors
    /// See [`NoKey`].
    pub fn find(&self, kid: Option<&str>, algorithm: Algorithm) -> Result<&DecodingKey, NoKey> {
        let Some(kid) = kid else {
            return match self.keys.as_slice() {
                [key] if key.algorithm == algorithm => Ok(&key.decoding),
                [key] => Err(NoKey::OtherAlgorithm(key.algorithm)),
                _ => Err(NoKey::Unnamed),
            };
        };
        let mut other = None;
        for key in self.keys.iter().filter(|key| key.id.as_deref() == Some(kid)) {
            if key.algorithm == algorithm {
                return Ok(&key.decoding);
            }
            other = Some(NoKey::OtherAlgorithm(key.algorithm));
        }
        let ignored = || self.ignored.iter().find(|(id, _)| id == kid).map(|(_, reason)| NoKey::Ignored(reason));
        Err(other.or_else(ignored).unwrap_or(NoKey::Unknown))
    }
}

/// The one algorithm that a key is for (RFC 7518, section 3.1; RFC 8037), and the key.
fn usable(key: &Map<String, Value>) -> Result<(Algorithm, DecodingKey), &'static str> {
    let text = |name: &str| key.get(name).and_then(Value::as_str);
    if text("use").is_some_and(|purpose| purpose != "sig") {
        return Err("the key is not for signatures (its `use`)");
    }
    if let Some(operations) = key.get("key_ops").and_then(Value::as_array)
        && !operations.iter().any(|operation| operation == "verify")
    {
        return Err("the key is not for signatures (its `key_ops`)");
    }
    let (algorithm, names): (_, &[&str]) = match (text("kty"), text("crv")) {
        (Some("RSA"), _) => (Algorithm::RS256, &["RS256"]),
        (Some("EC"), Some("P-256")) => (Algorithm::ES256, &["ES256"]),
        // RFC 9864 gives the curve's own name to what RFC 8037 called EdDSA.
        (Some("OKP"), Some("Ed25519")) => (Algorithm::EdDSA, &["EdDSA", "Ed25519"]),
        _ => return Err("its type or curve is none of RSA, P-256, Ed25519"),
    };
    if text("alg").is_some_and(|alg| !names.contains(&alg)) {
        return Err("its algorithm is none of RS256, ES256, EdDSA");
    }
    let part = |name: &str| text(name).ok_or("a part of the key is missing");
    let decoding = match algorithm {
        Algorithm::RS256 => DecodingKey::from_rsa_components(part("n")?, part("e")?),
        Algorithm::ES256 => DecodingKey::from_ec_components(part("x")?, part("y")?),
        _ => DecodingKey::from_ed_components(part("x")?),
    };
    Ok((algorithm, decoding.map_err(|_| "a part of the key is not base64url")?))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn odd_keys_are_left_aside_and_the_good_one_works() {
        let set = KeySet::parse(&json!({"keys": [
            {"kty": "AKP", "kid": "new", "alg": "ML-DSA-44", "pub": "AAAA"},
            {"kty": "RSA", "kid": "enc", "use": "enc", "n": "AQAB", "e": "AQAB"},
            {"kty": "RSA", "kid": "ops", "key_ops": ["encrypt"], "n": "AQAB", "e": "AQAB"},
            {"kty": "RSA", "kid": "ps", "alg": "PS256", "n": "AQAB", "e": "AQAB"},
            {"kty": "oct", "kid": "secret", "k": "AAAA"},
            {"kty": "EC", "kid": "p384", "crv": "P-384", "x": "AAAA", "y": "AAAA"},
            {"kty": "RSA", "kid": "half", "n": "AQAB"},
            "text", 1, null,
            {"kty": "RSA", "kid": "good", "n": "AQAB", "e": "AQAB"},
        ]}))
        .unwrap();
        assert!(set.find(Some("good"), Algorithm::RS256).is_ok());
        assert!(set.find(None, Algorithm::RS256).is_ok(), "the only usable key needs no name");
        for kid in ["new", "enc", "ops", "ps", "secret", "p384", "half"] {
            assert!(matches!(set.find(Some(kid), Algorithm::RS256), Err(NoKey::Ignored(_))), "{kid}");
        }
        assert_eq!(set.find(Some("none"), Algorithm::RS256).err(), Some(NoKey::Unknown));
        assert_eq!(set.find(Some("good"), Algorithm::ES256).err(), Some(NoKey::OtherAlgorithm(Algorithm::RS256)));
    }

    #[test]
    fn a_set_without_a_usable_key_is_refused_with_the_reason() {
        for (set, expected) in [
            (json!({}), "not of the form"),
            (json!([]), "not of the form"),
            (json!({"keys": {}}), "not of the form"),
            (json!({"keys": []}), "no key that can be used"),
            (json!({"keys": [{"kty": "RSA", "use": "enc", "n": "AQAB", "e": "AQAB"}]}), "not for signatures"),
            (json!({"keys": vec![json!({}); 65]}), "at most 64"),
        ] {
            let error = KeySet::parse(&set).unwrap_err().to_string();
            assert!(error.contains(expected), "{set}: {error}");
        }
    }
}
