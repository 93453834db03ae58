//! Public keys of an issuer (RFC 7517), as issuers write them: with padded or plain base64, leading zero bytes, a number as `kid`, and keys
//! for other purposes in between. `wirepost check`, the operator and the edges read a set with this one function, so a set that the check
//! accepts is a set that edges can use.

use base64::{
    Engine,
    alphabet::URL_SAFE,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use serde_json::{Map, Value};

/// Most keys of a set.
pub const MAX_KEYS: usize = 64;
/// RSA moduli that can check a signature, in bytes: 2048 bits (NIST SP 800-131A) to 8192 bits.
const RSA_BYTES: std::ops::RangeInclusive<usize> = 256..=1024;
/// Longest RSA exponent in bytes; larger ones only make every check slow.
const MAX_EXPONENT: usize = 4;
/// A coordinate on P-256, and an Ed25519 key.
const CURVE_BYTES: usize = 32;

/// The unused bits of base64 and its `=` padding mean nothing for a key.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &URL_SAFE,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// The one algorithm that a key is for (RFC 7518, section 3.1; RFC 8037), and the key. A token can't choose how it is checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyMaterial {
    /// RS256. Big-endian, without leading zero bytes.
    Rsa {
        /// Modulus.
        n: Vec<u8>,
        /// Exponent.
        e: Vec<u8>,
    },
    /// ES256: an uncompressed point, 65 bytes.
    P256(Vec<u8>),
    /// EdDSA: 32 bytes.
    Ed25519(Vec<u8>),
}

/// A key that can check signatures of tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicKey {
    /// `kid`; a number counts as its decimal digits. Several keys of a set may have the same one.
    pub id: Option<String>,
    /// What it is.
    pub material: KeyMaterial,
}

/// A key of a set that can't check signatures of tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnusableKey {
    /// `kid`, as far as it can be read.
    pub id: Option<String>,
    /// Why.
    pub reason: KeyDefect,
}

/// Why a key can't check signatures of tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyDefect {
    /// Not a JSON object.
    #[error("it is not an object")]
    NotAnObject,
    /// Its `kid` can't be matched with a token's.
    #[error("its `kid` is neither text nor a whole number")]
    Id,
    /// Its `use` is another one than `sig`.
    #[error("the key is not for signatures (its `use`)")]
    Use,
    /// Its `key_ops` lack `verify`.
    #[error("the key is not for signatures (its `key_ops`)")]
    Operations,
    /// A kind of key that edges don't know.
    #[error("its type or curve is none of RSA, P-256, Ed25519")]
    Kind,
    /// An algorithm that edges don't know.
    #[error("its algorithm is none of RS256, ES256, EdDSA")]
    Algorithm,
    /// A part of it can't be decoded.
    #[error("a part of the key is not base64url")]
    Encoding,
    /// It has a certificate alone.
    #[error("it has a certificate (`x5c`) without the key's own parts")]
    CertificateOnly,
    /// A part is missing.
    #[error("a part of the key is missing")]
    Incomplete,
    /// RSA, too short.
    #[error("it is an RSA key of less than 2048 bits")]
    TooShort,
    /// RSA, too long.
    #[error("it is an RSA key of more than 8192 bits, or with an exponent that nobody uses")]
    TooLong,
    /// P-256, not a point of the curve's size.
    #[error("its point is not one of P-256")]
    Point,
    /// Ed25519, of another length.
    #[error("it does not have 32 bytes")]
    Length,
}

/// Not a set at all. A single unusable key in it is not an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeySetError {
    /// Not of the form that the message shows.
    #[error("key set is not of the form {{\"keys\": [{{\"kty\": …}}]}} (RFC 7517)")]
    Form,
    /// Too many keys.
    #[error("key set has {0} keys, at most {MAX_KEYS} are allowed")]
    TooMany(usize),
}

/// Why keys can't check tokens, each reason once, as the end of a sentence: `: reason; reason`. Empty without keys.
pub fn reasons<'a>(unusable: impl IntoIterator<Item = &'a UnusableKey>) -> String {
    let mut reasons: Vec<KeyDefect> = Vec::new();
    for key in unusable {
        if !reasons.contains(&key.reason) {
            reasons.push(key.reason);
        }
    }
    let reasons: Vec<String> = reasons.iter().map(KeyDefect::to_string).collect();
    if reasons.is_empty() { String::new() } else { format!(": {}", reasons.join("; ")) }
}

/// Every key of a set, in its order.
///
/// # Errors
/// See [`KeySetError`].
pub fn read(set: &Value) -> Result<Vec<Result<PublicKey, UnusableKey>>, KeySetError> {
    let keys = set.get("keys").and_then(Value::as_array).ok_or(KeySetError::Form)?;
    if keys.len() > MAX_KEYS {
        return Err(KeySetError::TooMany(keys.len()));
    }
    Ok(keys.iter().map(one).collect())
}

/// Text of a `kid`, of a key or in a token's header. `None` = it has none.
///
/// # Errors
/// [`KeyDefect::Id`].
pub fn id(kid: Option<&Value>) -> Result<Option<String>, KeyDefect> {
    match kid {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(id)) => Ok(Some(id.clone())),
        // RFC 7517 requires a string, but `kid: 20260101` in YAML is a number. A fraction or an exponent has no single form.
        Some(Value::Number(id)) if id.is_i64() || id.is_u64() => Ok(Some(id.to_string())),
        Some(_) => Err(KeyDefect::Id),
    }
}

fn one(key: &Value) -> Result<PublicKey, UnusableKey> {
    let unusable = |id, reason| UnusableKey { id, reason };
    let key = key.as_object().ok_or_else(|| unusable(None, KeyDefect::NotAnObject))?;
    let id = id(key.get("kid")).map_err(|reason| unusable(None, reason))?;
    match material(key) {
        Ok(material) => Ok(PublicKey { id, material }),
        Err(reason) => Err(unusable(id, reason)),
    }
}

fn material(key: &Map<String, Value>) -> Result<KeyMaterial, KeyDefect> {
    let text = |name: &str| key.get(name).and_then(Value::as_str);
    if text("use").is_some_and(|purpose| purpose != "sig") {
        return Err(KeyDefect::Use);
    }
    if let Some(operations) = key.get("key_ops").and_then(Value::as_array)
        && !operations.iter().any(|operation| operation == "verify")
    {
        return Err(KeyDefect::Operations);
    }
    let names: &[&str] = match (text("kty"), text("crv")) {
        (Some("RSA"), _) => &["RS256"],
        (Some("EC"), Some("P-256")) => &["ES256"],
        // RFC 9864 names the algorithm after the curve; RFC 8037 called it EdDSA.
        (Some("OKP"), Some("Ed25519")) => &["EdDSA", "Ed25519"],
        _ => return Err(KeyDefect::Kind),
    };
    if text("alg").is_some_and(|alg| !names.contains(&alg)) {
        return Err(KeyDefect::Algorithm);
    }
    let number = |name: &str| match text(name) {
        Some(text) => unsigned(text).ok_or(KeyDefect::Encoding),
        None if key.contains_key("x5c") => Err(KeyDefect::CertificateOnly),
        None => Err(KeyDefect::Incomplete),
    };
    match names[0] {
        "RS256" => {
            let (n, e) = (number("n")?, number("e")?);
            if n.len() < *RSA_BYTES.start() {
                return Err(KeyDefect::TooShort);
            }
            if n.len() > *RSA_BYTES.end() || e.is_empty() || e.len() > MAX_EXPONENT {
                return Err(KeyDefect::TooLong);
            }
            Ok(KeyMaterial::Rsa { n, e })
        }
        "ES256" => {
            let mut point = vec![4];
            for coordinate in [number("x")?, number("y")?] {
                point.extend(filled(&coordinate).ok_or(KeyDefect::Point)?);
            }
            Ok(KeyMaterial::P256(point))
        }
        _ => {
            // Not a number: each of its bytes counts.
            let x = text("x").map(bytes).ok_or(KeyDefect::Incomplete)?;
            let x = x.ok_or(KeyDefect::Encoding)?;
            if x.len() == CURVE_BYTES { Ok(KeyMaterial::Ed25519(x)) } else { Err(KeyDefect::Length) }
        }
    }
}

/// Base64 in its own alphabet or that of URLs, with or without padding and line ends.
fn bytes(text: &str) -> Option<Vec<u8>> {
    let plain: Vec<u8> = text
        .bytes()
        .filter(|byte| !byte.is_ascii_whitespace())
        .map(|byte| match byte {
            b'+' => b'-',
            b'/' => b'_',
            other => other,
        })
        .collect();
    BASE64.decode(plain).ok()
}

/// A big-endian number. Java's `BigInteger` puts a zero byte in front where the first bit is set (RFC 7518, section 2, forbids it), and the
/// signature check would then refuse the key.
fn unsigned(text: &str) -> Option<Vec<u8>> {
    let mut bytes = bytes(text)?;
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    bytes.drain(..zeros);
    Some(bytes)
}

/// Some issuers omit the leading zero bytes that RFC 7518, section 6.2.1.2, requires.
fn filled(number: &[u8]) -> Option<[u8; CURVE_BYTES]> {
    let mut full = [0; CURVE_BYTES];
    full.get_mut(CURVE_BYTES.checked_sub(number.len())?..)?.copy_from_slice(number);
    Some(full)
}

#[cfg(test)]
mod tests {
    use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
    use serde_json::json;

    use super::*;

    fn the_one(key: &Value) -> Result<PublicKey, UnusableKey> {
        read(&json!({"keys": [key]})).unwrap().remove(0)
    }

    #[test]
    fn all_writings_of_a_key_are_the_same_key() {
        let modulus: Vec<u8> = (0..=255).map(|n| n ^ 0xfb).collect();
        let with_zero: Vec<u8> = std::iter::once(0).chain(modulus.iter().copied()).collect();
        let expected = KeyMaterial::Rsa { n: modulus.clone(), e: vec![1, 0, 1] };
        let folded = STANDARD
            .encode(&modulus)
            .as_bytes()
            .chunks(64)
            .fold(String::new(), |all, line| format!("{all}{}\n", String::from_utf8_lossy(line)));
        for (name, n, e) in [
            ("plain", URL_SAFE_NO_PAD.encode(&modulus), "AQAB"),
            ("a leading zero byte", URL_SAFE_NO_PAD.encode(&with_zero), "AAEAAQ"),
            ("padded", format!("{}==", URL_SAFE_NO_PAD.encode(&modulus)), "AQAB"),
            ("the other alphabet", STANDARD.encode(&modulus), "AQAB"),
            ("line ends", folded, "AQAB"),
        ] {
            let key = the_one(&json!({"kty": "RSA", "n": n, "e": e}));
            assert_eq!(key.map(|key| key.material), Ok(expected.clone()), "{name}");
        }
    }

    #[test]
    fn a_coordinate_has_32_bytes_however_it_is_written() {
        let x: Vec<u8> = std::iter::once(0).chain([9; 31]).collect();
        let expected = KeyMaterial::P256([&[4][..], &x, &[7; 32]].concat());
        for x in [&x[..], &x[1..]] {
            let (x, y) = (URL_SAFE_NO_PAD.encode(x), URL_SAFE_NO_PAD.encode([7; 32]));
            let key = the_one(&json!({"kty": "EC", "crv": "P-256", "x": x, "y": y}));
            assert_eq!(key.map(|key| key.material), Ok(expected.clone()));
        }
        // An Ed25519 key is no number: a zero byte of it counts.
        let x = URL_SAFE_NO_PAD.encode([[0; 1].as_slice(), &[9; 31]].concat());
        assert!(the_one(&json!({"kty": "OKP", "crv": "Ed25519", "x": x})).is_ok());
    }

    #[test]
    fn a_kid_is_text_or_a_whole_number() {
        let key = |kid: Value| the_one(&json!({"kty": "OKP", "crv": "Ed25519", "x": "A".repeat(43), "kid": kid}));
        assert_eq!(key(json!("a")).unwrap().id.as_deref(), Some("a"));
        assert_eq!(key(json!(20_260_101)).unwrap().id.as_deref(), Some("20260101"));
        assert_eq!(key(json!(null)).unwrap().id, None);
        for odd in [json!(1.5), json!(true), json!(["a"]), json!(12_345_678_901_234_567_890_123_f64)] {
            assert_eq!(key(odd).unwrap_err().reason, KeyDefect::Id);
        }
    }

    #[test]
    fn keys_that_can_not_check_tokens_say_why() {
        let n = URL_SAFE_NO_PAD.encode([7; 256]);
        for (key, expected) in [
            (json!({"kty": "AKP", "kid": "k", "alg": "ML-DSA-44", "pub": "AAAA"}), "type or curve"),
            (json!({"kty": "oct", "kid": "k"}), "type or curve"),
            (json!({"kid": "k"}), "type or curve"),
            (json!({"kty": "EC", "kid": "k", "crv": "P-384", "x": "AAAA", "y": "AAAA"}), "type or curve"),
            (json!({"kty": "RSA", "kid": "k", "use": "enc", "n": n, "e": "AQAB"}), "`use`"),
            (json!({"kty": "RSA", "kid": "k", "key_ops": ["encrypt"], "n": n, "e": "AQAB"}), "`key_ops`"),
            (json!({"kty": "RSA", "kid": "k", "alg": "PS256", "n": n, "e": "AQAB"}), "algorithm"),
            (json!({"kty": "RSA", "kid": "k", "n": n}), "missing"),
            (json!({"kty": "RSA", "kid": "k", "x5c": ["MIIB"]}), "certificate"),
            (json!({"kty": "RSA", "kid": "k", "n": "!", "e": "AQAB"}), "base64url"),
            (json!({"kty": "RSA", "kid": "k", "n": "AQAB", "e": "AQAB"}), "2048"),
            (json!({"kty": "RSA", "kid": "k", "n": n, "e": "AAAA"}), "exponent"),
            (json!({"kty": "OKP", "kid": "k", "crv": "Ed25519", "x": "AAAA"}), "32 bytes"),
            (json!({"kty": "EC", "kid": "k", "crv": "P-256", "x": n, "y": n}), "P-256"),
        ] {
            let UnusableKey { id, reason } = the_one(&key).unwrap_err();
            assert!(reason.to_string().contains(expected) && id.as_deref() == Some("k"), "{key}: {reason}");
        }
        assert_eq!(the_one(&json!("text")).unwrap_err().id, None);
    }

    #[test]
    fn each_reason_is_named_once() {
        let key = |reason| UnusableKey { id: None, reason };
        assert_eq!(
            reasons(&[key(KeyDefect::Point), key(KeyDefect::Length), key(KeyDefect::Point)]),
            format!(": {}; {}", KeyDefect::Point, KeyDefect::Length)
        );
        assert_eq!(reasons(&[]), "");
    }

    #[test]
    fn what_is_no_set_is_refused() {
        for set in [json!({}), json!([]), json!({"keys": {}}), json!(null)] {
            assert_eq!(read(&set), Err(KeySetError::Form));
        }
        assert_eq!(read(&json!({"keys": vec![json!({}); 65]})), Err(KeySetError::TooMany(65)));
    }
}
