//! Key sets in a declaration.

use serde_json::Value;

use crate::key_set::{self, KeyDefect, KeySetError};

/// Parts of private and shared keys (RFC 7518, sections 6.2.2, 6.3.2 and 6.4; `priv` of newer kinds).
const SECRETS: [&str; 9] = ["d", "p", "q", "dp", "dq", "qi", "oth", "k", "priv"];

/// Checks that the set contains a key that can verify tokens, and no secret. Keys of kinds that edges don't know are skipped.
///
/// # Errors
/// What is wrong and what to do.
pub(super) fn check(set: &Value) -> Result<(), (String, &'static str)> {
    let keys = key_set::read(set).map_err(|error| match error {
        KeySetError::Form => {
            ("has no list of keys".to_owned(), "write a key set as in RFC 7517: keys: [{kty: ..., ...}]")
        }
        KeySetError::TooMany(count) => (format!("has {count} keys"), "list at most 64 keys, those in use"),
    })?;
    for (i, key) in set["keys"].as_array().into_iter().flatten().enumerate() {
        if SECRETS.iter().any(|part| key.get(*part).is_some()) {
            return Err((
                format!("key {i} is a secret, anyone who can read the resource could sign tokens"),
                "replace that key at the issuer, then list public keys only",
            ));
        }
    }
    // In an issuer's own set such a key is skipped. Here its author can correct it, and no token would ever match it.
    let unnamed = keys.iter().position(|key| key.as_ref().is_err_and(|unusable| unusable.reason == KeyDefect::Id));
    if let Some(i) = unnamed {
        return Err((format!("key {i}: {}", KeyDefect::Id), "put the kid in quotes, as the issuer's tokens name it"));
    }
    if keys.iter().any(Result::is_ok) {
        return Ok(());
    }
    let reasons = key_set::reasons(keys.iter().filter_map(|key| key.as_ref().err()));
    Err((
        format!("has no key that tokens can be verified with{reasons}"),
        "add an RSA (2048 bits or more), P-256, P-384, P-521 or Ed25519 public key for signatures",
    ))
}

#[cfg(test)]
mod tests {
    use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
    use serde_json::json;

    use super::*;

    fn x() -> String {
        URL_SAFE_NO_PAD.encode([7; 32])
    }

    #[test]
    fn a_set_needs_one_key_that_verifies() {
        let ed = json!({"kty": "OKP", "crv": "Ed25519", "x": x()});
        let ec = json!({"kty": "EC", "crv": "P-256", "x": x(), "y": x(), "alg": "ES256", "use": "sig"});
        let rsa = json!({"kty": "RSA", "n": URL_SAFE_NO_PAD.encode([7; 256]), "e": "AQAB", "kid": 17});
        let strange = json!({"kty": "LATTICE"});
        for key in [&ed, &ec, &rsa] {
            assert_eq!(check(&json!({"keys": [strange, key]})), Ok(()), "{key}");
        }
        let short = json!({"kty": "RSA", "n": URL_SAFE_NO_PAD.encode([7; 128]), "e": "AQAB"});
        let with = |key: &Value, name: &str, value: Value| {
            let mut key = key.clone();
            key[name] = value;
            key
        };
        for (set, part) in [
            (json!({}), "no list"),
            (json!({"keys": []}), "no key that"),
            (json!({"keys": [strange]}), "no key that"),
            (json!({"keys": [short]}), "less than 2048 bits"),
            (json!({"keys": [with(&ec, "use", json!("enc"))]}), "`use`"),
            (json!({"keys": [with(&ec, "key_ops", json!(["sign"]))]}), "`key_ops`"),
            (json!({"keys": [{"kty": "RSA", "x5c": ["MIIB"]}]}), "x5c"),
            (json!({"keys": [ed, with(&ed, "kid", json!(1.5))]}), "key 1: its `kid`"),
            (json!({"keys": [ed, with(&ed, "d", json!(x()))]}), "key 1 is a secret"),
            (json!({"keys": [with(&rsa, "dp", json!(x()))]}), "key 0 is a secret"),
            (json!({"keys": [{"kty": "oct", "k": x()}]}), "key 0 is a secret"),
            (json!({"keys": vec![ed.clone(); 65]}), "65 keys"),
        ] {
            let (message, _) = check(&set).expect_err(&set.to_string());
            assert!(message.contains(part), "{message} has no {part}");
        }
    }
}
