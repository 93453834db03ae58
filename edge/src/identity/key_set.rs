//! Public keys of an issuer: each pinned to its algorithm, or to those of its kind, so that a token can't choose a
//! weaker check.

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ECDSA_P521_SHA512_FIXED, ED25519, RSA_PKCS1_2048_8192_SHA256,
    RSA_PKCS1_2048_8192_SHA384, RSA_PKCS1_2048_8192_SHA512, RSA_PSS_2048_8192_SHA256, RSA_PSS_2048_8192_SHA384,
    RSA_PSS_2048_8192_SHA512, RsaParameters, RsaPublicKeyComponents, UnparsedPublicKey, VerificationAlgorithm,
};
use serde_json::Value;
use wirepost_core::key_set::{self, Algorithm, Curve, KeyDefect, KeyMaterial, PublicKey, UnusableKey};

/// The usable keys of a set, and the ids of ignored keys with the reason.
#[derive(Debug, Default)]
pub struct KeySet {
    keys: Vec<PublicKey>,
    ignored: Vec<UnusableKey>,
}

/// A key set that can't be used. A single unusable key in it is not a reason (Keats/jsonwebtoken 252).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeySetError {
    /// Not a set.
    #[error(transparent)]
    Form(#[from] key_set::KeySetError),
    /// No key in it can check a signature.
    #[error("key set has no key that can be used (RSA, P-256, P-384, P-521 or Ed25519, for signatures){0}")]
    Empty(String),
}

/// Why no key of the set matches a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoKeyError {
    /// No key has that id. Another set may have it.
    Unknown,
    /// The key exists but is not for signatures of tokens.
    Ignored(KeyDefect),
    /// The key is for another algorithm, such as this one.
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
                Ok(key) => result.keys.push(key),
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
    pub fn find(&self, kid: Option<&str>, algorithm: Algorithm) -> Result<Vec<&PublicKey>, NoKeyError> {
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
        let other = candidates[0].algorithms()[0];
        let fitting: Vec<_> = candidates.into_iter().filter(|key| key.is_for(algorithm)).collect();
        if fitting.is_empty() { Err(NoKeyError::OtherAlgorithm(other)) } else { Ok(fitting) }
    }
}

/// Did this key sign the message? The caller made sure that the key is for the algorithm.
pub fn signed(key: &PublicKey, algorithm: Algorithm, message: &[u8], signature: &[u8]) -> bool {
    match &key.material {
        KeyMaterial::Rsa { n, e } => rsa(algorithm)
            .is_some_and(|check| RsaPublicKeyComponents { n, e }.verify(check, message, signature).is_ok()),
        KeyMaterial::Ec { curve, point } => {
            let check: &'static dyn VerificationAlgorithm = match curve {
                Curve::P256 => &ECDSA_P256_SHA256_FIXED,
                Curve::P384 => &ECDSA_P384_SHA384_FIXED,
                Curve::P521 => &ECDSA_P521_SHA512_FIXED,
            };
            UnparsedPublicKey::new(check, point).verify(message, signature).is_ok()
        }
        KeyMaterial::Ed25519(x) => UnparsedPublicKey::new(&ED25519, x).verify(message, signature).is_ok(),
    }
}

fn rsa(algorithm: Algorithm) -> Option<&'static RsaParameters> {
    match algorithm {
        Algorithm::Rs256 => Some(&RSA_PKCS1_2048_8192_SHA256),
        Algorithm::Rs384 => Some(&RSA_PKCS1_2048_8192_SHA384),
        Algorithm::Rs512 => Some(&RSA_PKCS1_2048_8192_SHA512),
        Algorithm::Ps256 => Some(&RSA_PSS_2048_8192_SHA256),
        Algorithm::Ps384 => Some(&RSA_PSS_2048_8192_SHA384),
        Algorithm::Ps512 => Some(&RSA_PSS_2048_8192_SHA512),
        Algorithm::Es256 | Algorithm::Es384 | Algorithm::Es512 | Algorithm::EdDsa => None,
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
            rsa(json!({"kid": "oaep", "alg": "RSA-OAEP"})),
            {"kty": "oct", "kid": "secret", "k": "AAAA"},
            {"kty": "RSA", "kid": "half", "n": "AQAB"},
            "text", 1, null,
            rsa(json!({"kid": "good"})),
        ]}))
        .unwrap();
        assert!(set.find(Some("good"), Algorithm::Rs256).is_ok());
        assert!(set.find(None, Algorithm::Rs256).is_ok(), "the only usable key needs no name");
        for kid in ["new", "enc", "oaep", "secret", "half"] {
            assert!(matches!(set.find(Some(kid), Algorithm::Rs256), Err(NoKeyError::Ignored(_))), "{kid}");
        }
        assert_eq!(set.find(Some("none"), Algorithm::Rs256).err(), Some(NoKeyError::Unknown));
        assert_eq!(set.find(Some("good"), Algorithm::Es256).err(), Some(NoKeyError::OtherAlgorithm(Algorithm::Rs256)));
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
