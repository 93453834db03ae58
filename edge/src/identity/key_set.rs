//! Public keys of an issuer, parsed: each pinned to one algorithm, so that a token can't choose how it is checked.

use jsonwebtoken::{Algorithm, DecodingKey};
use serde_json::Value;
use wirepost_core::key_set::{self, KeyDefect, KeyMaterial, PublicKey, UnusableKey};

/// The usable keys of a set, and the ids of ignored keys with the reason.
#[derive(Debug, Default)]
pub struct KeySet {
    keys: Vec<Key>,
    ignored: Vec<UnusableKey>,
}

#[derive(Debug)]
struct Key {
    id: Option<String>,
    algorithm: Algorithm,
    decoding: DecodingKey,
}

/// A key set that can't be used. A single unusable key in it is not a reason (Keats/jsonwebtoken 252).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeySetError {
    /// Not a set.
    #[error(transparent)]
    Form(#[from] key_set::KeySetError),
    /// No key in it can check a signature.
    #[error("key set has no key that can be used (RS256, ES256 or EdDSA, for signatures){0}")]
    Empty(String),
}

/// Why no key of the set matches a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoKeyError {
    /// No key has that id. Another set may have it.
    Unknown,
    /// The key exists but is not for signatures of tokens.
    Ignored(KeyDefect),
    /// The key is for another algorithm.
    OtherAlgorithm(Algorithm),
    /// The token names no key, and several have names.
    Unnamed,
}

impl KeySet {
    /// Reads a set. Keys of unknown types, for encryption or for other algorithms are ignored.
    ///
    /// # Errors
    /// See [`KeySetError`].
    pub fn parse(set: &Value) -> Result<Self, KeySetError> {
        let mut result = Self::default();
        for key in key_set::read(set)? {
            match key {
                Ok(key) => result.keys.push(Key::new(key)),
                Err(unusable) => result.ignored.push(unusable),
            }
        }
        if result.keys.is_empty() {
            return Err(KeySetError::Empty(key_set::reasons(&result.ignored)));
        }
        Ok(result)
    }

    /// The keys that may have signed a token with this header, never none: issuers use one id for several keys during a
    /// rotation, and some omit ids.
    ///
    /// # Errors
    /// See [`NoKeyError`].
    pub fn find(&self, kid: Option<&str>, algorithm: Algorithm) -> Result<Vec<&DecodingKey>, NoKeyError> {
        let with = |id: Option<&str>| self.keys.iter().filter(|key| key.id.as_deref() == id).collect::<Vec<_>>();
        let ignored = self.ignored.iter().find(|unusable| kid.is_some() && unusable.id.as_deref() == kid);
        let candidates = match (with(kid), ignored, self.keys.as_slice()) {
            (named, _, _) if !named.is_empty() => named,
            (_, Some(unusable), _) => return Err(NoKeyError::Ignored(unusable.reason)),
            (_, None, [only]) if kid.is_none() => vec![only],
            // A key without an id may be the one that a token names.
            _ => with(None),
        };
        if candidates.is_empty() {
            return Err(if kid.is_some() { NoKeyError::Unknown } else { NoKeyError::Unnamed });
        }
        let fitting: Vec<_> =
            candidates.iter().filter(|key| key.algorithm == algorithm).map(|key| &key.decoding).collect();
        if fitting.is_empty() { Err(NoKeyError::OtherAlgorithm(candidates[0].algorithm)) } else { Ok(fitting) }
    }
}

impl Key {
    fn new(key: PublicKey) -> Self {
        let PublicKey { id, material } = key;
        let (algorithm, decoding) = match material {
            KeyMaterial::Rsa { n, e } => (Algorithm::RS256, DecodingKey::from_rsa_raw_components(&n, &e)),
            // Despite its name it takes the point, not DER.
            KeyMaterial::P256(point) => (Algorithm::ES256, DecodingKey::from_ec_der(&point)),
            KeyMaterial::Ed25519(x) => (Algorithm::EdDSA, DecodingKey::from_ed_der(&x)),
        };
        Self { id, algorithm, decoding }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn unusable_keys_are_ignored_and_the_usable_one_works() {
        let rsa = |more: Value| {
            let mut key = json!({"kty": "RSA", "n": "_".repeat(342), "e": "AQAB"});
            key.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            key
        };
        let set = KeySet::parse(&json!({"keys": [
            {"kty": "AKP", "kid": "new", "alg": "ML-DSA-44", "pub": "AAAA"},
            rsa(json!({"kid": "enc", "use": "enc"})),
            rsa(json!({"kid": "ps", "alg": "PS256"})),
            {"kty": "oct", "kid": "secret", "k": "AAAA"},
            {"kty": "RSA", "kid": "half", "n": "AQAB"},
            "text", 1, null,
            rsa(json!({"kid": "good"})),
        ]}))
        .unwrap();
        assert!(set.find(Some("good"), Algorithm::RS256).is_ok());
        assert!(set.find(None, Algorithm::RS256).is_ok(), "the only usable key needs no name");
        for kid in ["new", "enc", "ps", "secret", "half"] {
            assert!(matches!(set.find(Some(kid), Algorithm::RS256), Err(NoKeyError::Ignored(_))), "{kid}");
        }
        assert_eq!(set.find(Some("none"), Algorithm::RS256).err(), Some(NoKeyError::Unknown));
        assert_eq!(set.find(Some("good"), Algorithm::ES256).err(), Some(NoKeyError::OtherAlgorithm(Algorithm::RS256)));
    }

    #[test]
    fn a_set_without_a_usable_key_is_refused_with_the_reason() {
        for (set, expected) in [
            (json!({}), "not of the form"),
            (json!({"keys": []}), "no key that can be used"),
            (json!({"keys": [{"kty": "RSA", "use": "enc", "n": "AQAB", "e": "AQAB"}]}), "not for signatures"),
            (json!({"keys": vec![json!({}); 65]}), "at most 64"),
        ] {
            let error = KeySet::parse(&set).unwrap_err().to_string();
            assert!(error.contains(expected), "{set}: {error}");
        }
    }
}
