//! Key sets written in a declaration (RFC 7517, 7518, 8037).

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::Value;

/// Most keys in a set.
const MAX_KEYS: usize = 64;
/// Shortest RSA modulus in bytes (NIST SP 800-131A: 2048 bits).
const MIN_RSA_BYTES: usize = 256;

/// Checks that the set holds a key that tokens can be verified with, and no secret. Keys of kinds that edges don't know are passed over.
///
/// # Errors
/// What is wrong and what to do.
pub(super) fn check(set: &Value) -> Result<(), (String, &'static str)> {
    const FORM: &str = "write a key set as in RFC 7517: keys: [{kty: ..., ...}]";
    let keys = set.get("keys").and_then(Value::as_array).ok_or_else(|| ("has no list of keys".to_owned(), FORM))?;
    if keys.len() > MAX_KEYS {
        return Err((format!("has {} keys", keys.len()), "list at most 64 keys, those in use"));
    }
    for (i, key) in keys.iter().enumerate() {
        if ["d", "k", "p", "q"].iter().any(|part| key.get(*part).is_some()) {
            return Err((
                format!("key {i} is a secret, anyone who can read the resource could sign tokens"),
                "replace that key at the issuer, then list public keys only",
            ));
        }
    }
    if keys.iter().any(usable) {
        Ok(())
    } else {
        Err((
            "has no key that tokens can be verified with".to_owned(),
            "add an RSA (2048 bits or more), P-256 or Ed25519 public key for signatures",
        ))
    }
}

/// Whether a key can verify a signature by RS256, ES256 or EdDSA.
fn usable(key: &Value) -> bool {
    let text = |name: &str| key.get(name).and_then(Value::as_str);
    let bytes =
        |name: &str| text(name).and_then(|value| URL_SAFE_NO_PAD.decode(value).ok()).map_or(0, |bytes| bytes.len());
    if text("use").is_some_and(|usage| usage != "sig") {
        return false;
    }
    let (algorithm, complete) = match (text("kty"), text("crv")) {
        (Some("RSA"), _) => ("RS256", bytes("n") >= MIN_RSA_BYTES && bytes("e") > 0),
        (Some("EC"), Some("P-256")) => ("ES256", bytes("x") == 32 && bytes("y") == 32),
        (Some("OKP"), Some("Ed25519")) => ("EdDSA", bytes("x") == 32),
        _ => return false,
    };
    complete && text("alg").is_none_or(|alg| alg == algorithm || (alg == "Ed25519" && algorithm == "EdDSA"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn x() -> String {
        URL_SAFE_NO_PAD.encode([7; 32])
    }

    #[test]
    fn a_set_needs_one_key_that_verifies() {
        let ed = json!({"kty": "OKP", "crv": "Ed25519", "x": x()});
        let ec = json!({"kty": "EC", "crv": "P-256", "x": x(), "y": x(), "alg": "ES256", "use": "sig"});
        let rsa = json!({"kty": "RSA", "n": URL_SAFE_NO_PAD.encode([7; 256]), "e": "AQAB"});
        let strange = json!({"kty": "LATTICE"});
        for key in [&ed, &ec, &rsa] {
            assert_eq!(check(&json!({"keys": [strange, key]})), Ok(()), "{key}");
        }
        let short = json!({"kty": "RSA", "n": URL_SAFE_NO_PAD.encode([7; 128]), "e": "AQAB"});
        let mut encryption = ec.clone();
        encryption["use"] = "enc".into();
        let mut secret = ed.clone();
        secret["d"] = x().into();
        let shared = json!({"kty": "oct", "k": x()});
        for (set, part) in [
            (json!({}), "no list"),
            (json!({"keys": []}), "no key that"),
            (json!({"keys": [strange]}), "no key that"),
            (json!({"keys": [short]}), "no key that"),
            (json!({"keys": [encryption]}), "no key that"),
            (json!({"keys": [ed, secret]}), "key 1 is a secret"),
            (json!({"keys": [shared]}), "key 0 is a secret"),
            (json!({"keys": vec![ed.clone(); 65]}), "65 keys"),
        ] {
            let (message, _) = check(&set).expect_err(&set.to_string());
            assert!(message.contains(part), "{message} has no {part}");
        }
    }
}
