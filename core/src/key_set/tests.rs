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
    let expected = KeyMaterial::Ec { curve: Curve::P256, point: [&[4][..], &x, &[7; 32]].concat() };
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
fn a_key_is_for_its_own_algorithm_or_for_those_of_its_kind() {
    let n = URL_SAFE_NO_PAD.encode([7; 256]);
    let coordinate = |bytes: usize| URL_SAFE_NO_PAD.encode(vec![7; bytes]);
    let ec = |curve: &str, bytes| json!({"kty": "EC", "crv": curve, "x": coordinate(bytes), "y": coordinate(bytes)});
    for (key, expected) in [
        (json!({"kty": "RSA", "n": n, "e": "AQAB"}), "RS256 RS384 RS512 PS256 PS384 PS512"),
        (json!({"kty": "RSA", "n": n, "e": "AQAB", "alg": "PS512"}), "PS512"),
        (ec("P-256", 32), "ES256"),
        (ec("P-384", 48), "ES384"),
        (ec("P-521", 66), "ES512"),
        (json!({"kty": "OKP", "crv": "Ed25519", "x": coordinate(32)}), "EdDSA"),
        (json!({"kty": "OKP", "crv": "Ed25519", "x": coordinate(32), "alg": "Ed25519"}), "EdDSA"),
    ] {
        let key = the_one(&key).unwrap();
        let names: Vec<_> = key.algorithms().iter().map(|algorithm| algorithm.name()).collect();
        assert_eq!(names.join(" "), expected);
    }
    for never in ["none", "HS256", "HS512", "RSA1_5", "ES256K", ""] {
        assert_eq!(Algorithm::named(never), None, "{never}");
    }
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
        (json!({"kty": "EC", "kid": "k", "crv": "secp256k1", "x": "AAAA", "y": "AAAA"}), "type or curve"),
        (json!({"kty": "RSA", "kid": "k", "use": "enc", "n": n, "e": "AQAB"}), "`use`"),
        (json!({"kty": "RSA", "kid": "k", "key_ops": ["encrypt"], "n": n, "e": "AQAB"}), "`key_ops`"),
        (json!({"kty": "RSA", "kid": "k", "alg": "RSA-OAEP", "n": n, "e": "AQAB"}), "algorithm"),
        (json!({"kty": "RSA", "kid": "k", "alg": "ES256", "n": n, "e": "AQAB"}), "algorithm"),
        (json!({"kty": "RSA", "kid": "k", "alg": "HS256", "n": n, "e": "AQAB"}), "algorithm"),
        (json!({"kty": "RSA", "kid": "k", "n": n}), "missing"),
        (json!({"kty": "RSA", "kid": "k", "x5c": ["MIIB"]}), "certificate"),
        (json!({"kty": "RSA", "kid": "k", "n": "!", "e": "AQAB"}), "base64url"),
        (json!({"kty": "RSA", "kid": "k", "n": "AQAB", "e": "AQAB"}), "2048"),
        (json!({"kty": "RSA", "kid": "k", "n": n, "e": "AAAA"}), "exponent"),
        (json!({"kty": "OKP", "kid": "k", "crv": "Ed25519", "x": "AAAA"}), "32 bytes"),
        (json!({"kty": "EC", "kid": "k", "crv": "P-256", "x": n, "y": n}), "its curve"),
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

#[test]
fn a_token_is_checked_with_a_bounded_number_of_keys() {
    let x = URL_SAFE_NO_PAD.encode([7; 32]);
    let key =
        |kid: Option<usize>| json!({"kty": "OKP", "crv": "Ed25519", "x": x, "kid": kid.map(|kid| kid.to_string())});
    let nameless: Vec<_> = (0..MAX_KEYS).map(|_| key(None)).collect();
    let usable = |keys: &[Value]| read(&json!({"keys": keys})).unwrap().iter().filter(|key| key.is_ok()).count();
    assert_eq!(usable(&nameless), MAX_ALIKE);
    assert_eq!(usable(&(0..MAX_KEYS).map(|n| key(Some(n))).collect::<Vec<_>>()), MAX_KEYS);
    let other = json!({"kty": "EC", "crv": "P-256", "x": x, "y": x});
    assert_eq!(usable(&[&nameless[1..], &[other]].concat()), MAX_ALIKE + 1, "of another algorithm");
}
