use aws_lc_rs::{
    encoding::{AsDer, Pkcs8V1Der, PublicKeyX509Der},
    rand::SystemRandom,
    rsa::{KeyPair as RsaKeyPair, KeySize},
    signature::{
        ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P521_SHA512_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _,
        RsaPublicKeyComponents,
    },
};
use jsonwebtoken::{Algorithm, EncodingKey};
use rstest::rstest;
use serde_json::json;
use std::sync::LazyLock;

use super::*;
use wirepost_core::key_set::Algorithm as Accepted;

/// Issuer `https://id.example` with one key of each kind and one for encryption.
struct Issuer {
    rsa: EncodingKey,
    rsa_pem: String,
    ec: EncodingKey,
    ed: EncodingKey,
    set: Value,
}

static ISSUER: LazyLock<Issuer> = LazyLock::new(|| {
    let b64 = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    let rsa = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
    let parts: RsaPublicKeyComponents<Vec<u8>> = rsa.public_key().into();
    let spki: PublicKeyX509Der<'_> = rsa.public_key().as_der().unwrap();
    let pem = |label: &str, der: &[u8]| {
        let body = base64::engine::general_purpose::STANDARD.encode(der);
        let lines: Vec<_> = body.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
        format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
    };
    let rsa_der: Pkcs8V1Der<'_> = rsa.as_der().unwrap();
    let ec = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
    let point = ec.public_key().as_ref().to_vec();
    let ed = Ed25519KeyPair::generate().unwrap();
    let set = json!({"keys": [
        {"kty": "RSA", "kid": "rsa", "use": "sig", "alg": "RS256", "n": b64(&parts.n), "e": b64(&parts.e)},
        {"kty": "RSA", "kid": "enc", "use": "enc", "n": b64(&parts.n), "e": b64(&parts.e)},
        {"kty": "EC", "kid": "ec", "crv": "P-256", "x": b64(&point[1..33]), "y": b64(&point[33..])},
        {"kty": "OKP", "kid": "ed", "crv": "Ed25519", "x": b64(ed.public_key().as_ref())},
        {"kty": "AKP", "kid": "later", "alg": "ML-DSA-65", "pub": "AAAA"},
    ]});
    Issuer {
        rsa: EncodingKey::from_rsa_pem(pem("PRIVATE KEY", rsa_der.as_ref()).as_bytes()).unwrap(),
        rsa_pem: pem("PUBLIC KEY", spki.as_ref()),
        ec: EncodingKey::from_ec_der(ec.to_pkcs8v1().unwrap().as_ref()),
        ed: EncodingKey::from_ed_der(ed.to_pkcs8().unwrap().as_ref()),
        set,
    }
});

pub(crate) fn config() -> JwtConfig {
    JwtConfig {
        issuer: "https://id.example".into(),
        audiences: vec!["shop".into(), "shop-beta".into()],
        jwks: Jwks::Inline(ISSUER.set.clone()),
        claims: Claims {
            unique_id: "sub".into(),
            client_type: Some("client_type".into()),
            tags: Some("https://id.example/groups".into()),
        },
        client_types: None,
        trusted_issuers: Vec::new(),
    }
}

/// An Ed25519 key under an id.
pub(crate) struct Keypair {
    id: String,
    pair: Ed25519KeyPair,
}

impl Keypair {
    pub(crate) fn new(id: &str) -> Self {
        Self { id: id.into(), pair: Ed25519KeyPair::generate().unwrap() }
    }

    pub(crate) fn jwk(&self) -> Value {
        let x = URL_SAFE_NO_PAD.encode(self.pair.public_key().as_ref());
        json!({"kty": "OKP", "crv": "Ed25519", "kid": self.id, "x": x})
    }

    pub(crate) fn sign(&self, claims: &Value) -> String {
        self.sign_as(&self.id, claims)
    }

    pub(crate) fn sign_as(&self, kid: &str, claims: &Value) -> String {
        let key = EncodingKey::from_ed_der(self.pair.to_pkcs8().unwrap().as_ref());
        token(Algorithm::EdDSA, kid, &key, claims)
    }
}

/// Claims of a valid token, some replaced; null removes one.
pub(crate) fn claims(changes: &Value) -> Value {
    let now = clock::now_ms() / 1000;
    let mut claims = json!({
        "iss": "https://id.example", "aud": "shop", "sub": "alice", "exp": now + 300, "nbf": now - 5, "iat": now - 5,
        "client_type": "app", "https://id.example/groups": ["vip", "eu"],
    });
    for (name, value) in changes.as_object().unwrap() {
        if value.is_null() {
            claims.as_object_mut().unwrap().remove(name);
        } else {
            claims[name] = value.clone();
        }
    }
    claims
}

fn token(algorithm: Algorithm, kid: &str, key: &EncodingKey, claims: &Value) -> String {
    let mut header = jsonwebtoken::Header::new(algorithm);
    header.kid = Some(kid.into());
    jsonwebtoken::encode(&header, claims, key).unwrap()
}

pub(crate) fn signed(changes: &Value) -> String {
    token(Algorithm::RS256, "rsa", &ISSUER.rsa, &claims(changes))
}

const TAGS: &str = "a list of strings or whole numbers, or one";

async fn verify(token: &str) -> Result<Identity, JwtError> {
    JwtVerifier::try_new(&config()).unwrap().verify(token, None).await
}

#[rstest]
#[case::rs256(Algorithm::RS256, "rsa", &ISSUER.rsa)]
#[case::es256(Algorithm::ES256, "ec", &ISSUER.ec)]
#[case::eddsa(Algorithm::EdDSA, "ed", &ISSUER.ed)]
#[tokio::test]
async fn a_valid_token_proves_its_identity(#[case] algorithm: Algorithm, #[case] kid: &str, #[case] key: &EncodingKey) {
    let claims = claims(&json!({}));
    let identity = verify(&token(algorithm, kid, key, &claims)).await.unwrap();
    let expected = Identity {
        unique_id: "alice".into(),
        client_type: "app".into(),
        tags: vec!["vip".into(), "eu".into()],
        lacks_tags: None,
        expires_at: claims["exp"].as_i64().unwrap() * 1000,
    };
    assert_eq!(identity, expected);
}

/// Times are seconds from now.
#[rstest]
#[case::thirty_seconds_of_skew(&["nbf", "iat"], 30, None)]
#[case::nbf_an_hour_ahead(&["nbf"], 3600, Some(JwtError::NotYet))]
#[case::iat_an_hour_ahead(&["iat"], 3600, Some(JwtError::IssuedInFuture))]
#[case::exp_two_minutes_ago(&["exp"], -120, Some(JwtError::Expired))]
#[case::exp_a_second_ago(&["exp"], -1, Some(JwtError::Expired))]
#[tokio::test]
async fn times_are_checked(#[case] names: &[&str], #[case] offset: i64, #[case] expected: Option<JwtError>) {
    let changes: Map<String, Value> =
        names.iter().map(|name| ((*name).to_owned(), json!(clock::now_ms() / 1000 + offset))).collect();
    assert_eq!(verify(&signed(&Value::Object(changes))).await.err(), expected);
}

#[rstest]
#[case::no_exp(json!({"exp": null}), JwtError::Missing("end (exp)"))]
#[case::no_aud(json!({"aud": null}), JwtError::Missing("audience (aud)"))]
#[case::no_iss(json!({"iss": null}), JwtError::Missing("issuer (iss)"))]
#[case::no_sub(json!({"sub": null}), JwtError::Missing("subject (sub)"))]
#[case::wrong_aud(json!({"aud": "bank"}), JwtError::Audience)]
#[case::wrong_auds(json!({"aud": ["bank", "shop2"]}), JwtError::Audience)]
#[case::no_auds(json!({"aud": []}), JwtError::Audience)]
#[case::other_issuer(json!({"iss": "https://id.example/other"}), JwtError::Issuer)]
#[case::text_exp(json!({"exp": "tomorrow"}), wrong_type("exp", "a number of seconds since the epoch"))]
#[case::list_iss(json!({"iss": ["https://id.example"]}), wrong_type("iss", "a string"))]
#[case::number_aud(json!({"aud": 7}), wrong_type("aud", "a string or a list of strings"))]
#[case::no_client_type(json!({"client_type": null}), JwtError::MissingClaim("client_type".into()))]
#[case::tags_in_an_object(json!({"https://id.example/groups": {"roles": ["vip"]}}), wrong_type("https://id.example/groups", TAGS))]
#[case::tags_of_lists(json!({"https://id.example/groups": [["vip"]]}), wrong_type("https://id.example/groups", TAGS))]
#[case::tags_of_fractions(json!({"https://id.example/groups": [1.5]}), wrong_type("https://id.example/groups", TAGS))]
#[tokio::test]
async fn a_wrong_claim_is_named(#[case] changes: Value, #[case] expected: JwtError) {
    assert_eq!(verify(&signed(&changes)).await, Err(expected));
}

#[rstest]
#[case::an_aud_list_with_ours(json!({"aud": ["bank", "shop-beta"]}))]
#[case::no_iat(json!({"iat": null}))]
#[case::no_nbf(json!({"nbf": null}))]
#[case::fractions(json!({"exp": clock::now_ms() as f64 / 1000.0 + 10.5}))]
#[case::no_tags(json!({"https://id.example/groups": null}))]
#[case::more_claims(json!({"nested": {"sub": "ceo"}}))]
#[tokio::test]
async fn other_forms_of_a_valid_token_pass(#[case] changes: Value) {
    assert_eq!(verify(&signed(&changes)).await.unwrap().unique_id, "alice");
}

#[rstest]
#[case::whole_number(json!(42), Ok("42"))]
#[case::negative(json!(-1), Ok("-1"))]
#[case::fraction(json!(1.5), Err(wrong_type("sub", "a string or a whole number")))]
#[case::list(json!(["alice"]), Err(wrong_type("sub", "a string or a whole number")))]
#[case::empty(json!(""), Err(JwtError::Missing("subject (sub)")))]
#[tokio::test]
async fn a_subject_is_a_text_or_a_whole_number(#[case] sub: Value, #[case] expected: Result<&str, JwtError>) {
    let identity = verify(&signed(&json!({"sub": sub}))).await;
    assert_eq!(identity.map(|identity| identity.unique_id), expected.map(str::to_owned));
}

#[tokio::test]
async fn a_token_can_not_choose_how_it_is_checked() {
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let good = claims(&json!({}));
    let none = format!("{}.{}.", part(&json!({"alg": "none", "kid": "rsa"})), part(&good));
    let hmac = |kid| token(Algorithm::HS256, kid, &EncodingKey::from_secret(ISSUER.rsa_pem.as_bytes()), &good);
    let altered = {
        let whole = signed(&json!({}));
        let parts: Vec<_> = whole.split('.').collect();
        format!("{}.{}.{}", parts[0], part(&claims(&json!({"sub": "ceo"}))), parts[2])
    };
    let critical = format!("{}.{}.AAAA", part(&json!({"alg": "RS256", "crit": ["b64"], "b64": false})), part(&good));
    let unnamed = jsonwebtoken::encode(&jsonwebtoken::Header::new(Algorithm::RS256), &good, &ISSUER.rsa).unwrap();
    for (name, token, expected) in [
        ("alg none", none, JwtError::Algorithm),
        ("HS256 with the public key as secret", hmac("rsa"), JwtError::Algorithm),
        ("unknown kid", token(Algorithm::RS256, "x", &ISSUER.rsa, &good), JwtError::UnknownKey),
        ("no kid among several keys", unnamed, JwtError::UnnamedKey),
        (
            "kid of an encryption key",
            token(Algorithm::RS256, "enc", &ISSUER.rsa, &good),
            JwtError::UnusableKey(KeyDefect::Use),
        ),
        (
            "RS384 with a key for RS256",
            token(Algorithm::RS384, "rsa", &ISSUER.rsa, &good),
            JwtError::KeyAlgorithm(Accepted::Rs256),
        ),
        (
            "another key's id",
            token(Algorithm::RS256, "ec", &ISSUER.rsa, &good),
            JwtError::KeyAlgorithm(Accepted::Es256),
        ),
        ("signed by another key", token(Algorithm::ES256, "ec", &foreign_ec(), &good), JwtError::Signature),
        ("altered", altered, JwtError::Signature),
        ("critical extension", critical, JwtError::Malformed("its header asks for an extension (crit)")),
        ("64 kB", "a".repeat(64_000), JwtError::TooLong(64_000)),
        ("no token", "alice".into(), JwtError::Malformed("it does not have three parts")),
        ("no header", "!.a.b".into(), JwtError::Malformed("its header is not base64url")),
        ("no JSON", "AAAA.a.b".into(), JwtError::Malformed("its header is not a JSON object")),
    ] {
        assert_eq!(verify(&token).await, Err(expected), "{name}");
    }
}

#[rstest]
#[case::rs256(Algorithm::RS256)]
#[case::rs384(Algorithm::RS384)]
#[case::rs512(Algorithm::RS512)]
#[case::ps256(Algorithm::PS256)]
#[case::ps384(Algorithm::PS384)]
#[case::ps512(Algorithm::PS512)]
#[tokio::test]
async fn an_rsa_key_is_for_its_algorithm_or_for_all_of_rsa(#[case] algorithm: Algorithm) {
    let good = token(algorithm, "rsa", &ISSUER.rsa, &claims(&json!({})));
    for alg in [json!(format!("{algorithm:?}")), Value::Null] {
        assert!(rsa_set(&json!({"alg": alg}), &[]).verify(&good, None).await.is_ok(), "{alg}");
    }
    let other = if algorithm == Algorithm::PS512 { "RS512" } else { "PS512" };
    let refused = rsa_set(&json!({"alg": other}), &[]).verify(&good, None).await;
    assert!(matches!(refused, Err(JwtError::KeyAlgorithm(_))), "{refused:?}");
    // Another algorithm than the signature's, claimed afterwards.
    let (_, rest) = good.split_once('.').unwrap();
    let header = json!({"alg": other, "kid": "rsa"}).to_string();
    let claimed = format!("{}.{rest}", URL_SAFE_NO_PAD.encode(header));
    assert_eq!(rsa_set(&json!({"alg": null}), &[]).verify(&claimed, None).await, Err(JwtError::Signature));
}

#[rstest]
#[case::es384("ES384", "P-384", &aws_lc_rs::signature::ECDSA_P384_SHA384_FIXED_SIGNING)]
#[case::es512("ES512", "P-521", &ECDSA_P521_SHA512_FIXED_SIGNING)]
#[tokio::test]
async fn longer_curves_are_accepted(
    #[case] alg: &str,
    #[case] curve: &str,
    #[case] kind: &'static aws_lc_rs::signature::EcdsaSigningAlgorithm,
) {
    let pair = EcdsaKeyPair::generate(kind).unwrap();
    let point = &pair.public_key().as_ref()[1..];
    let (x, y) = point.split_at(point.len() / 2);
    let key = json!({
        "kty": "EC", "crv": curve, "kid": "long", "x": URL_SAFE_NO_PAD.encode(x), "y": URL_SAFE_NO_PAD.encode(y),
    });
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let message = format!("{}.{}", part(&json!({"alg": alg, "kid": "long"})), part(&claims(&json!({}))));
    let signature = pair.sign(&SystemRandom::new(), message.as_bytes()).unwrap();
    let token = format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature.as_ref()));
    let verifier = JwtVerifier::try_new(&JwtConfig { jwks: Jwks::Inline(json!({"keys": [key]})), ..config() }).unwrap();
    assert_eq!(verifier.verify(&token, None).await.map(|identity| identity.unique_id), Ok("alice".into()));
    let other = format!("{}.{}", message.replacen('.', "A.", 1), URL_SAFE_NO_PAD.encode(signature.as_ref()));
    assert!(verifier.verify(&other, None).await.is_err());
}

fn foreign_ec() -> EncodingKey {
    let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
    EncodingKey::from_ec_der(key.to_pkcs8v1().unwrap().as_ref())
}

/// The RSA key of the issuer as a set of its own.
fn rsa_set(changes: &Value, more: &[Value]) -> JwtVerifier {
    let mut key = ISSUER.set["keys"][0].clone();
    for (name, value) in changes.as_object().unwrap() {
        key[name] = value.clone();
    }
    let keys: Vec<_> = more.iter().cloned().chain([key]).collect();
    JwtVerifier::try_new(&JwtConfig { jwks: Jwks::Inline(json!({"keys": keys})), ..config() }).unwrap()
}

#[tokio::test]
async fn a_key_works_as_issuers_write_it() {
    let modulus = URL_SAFE_NO_PAD.decode(ISSUER.set["keys"][0]["n"].as_str().unwrap()).unwrap();
    let with_zero: Vec<u8> = std::iter::once(0).chain(modulus.iter().copied()).collect();
    let foreign = json!({"kty": "RSA", "kid": "rsa", "n": URL_SAFE_NO_PAD.encode([0xfb; 256]), "e": "AQAB"});
    let unnamed_foreign = json!({"kty": "RSA", "n": URL_SAFE_NO_PAD.encode([0xfb; 256]), "e": "AQAB"});
    let good = claims(&json!({}));
    let rsa = |kid: &str| token(Algorithm::RS256, kid, &ISSUER.rsa, &good);
    let numbered = jsonwebtoken::encode(&jsonwebtoken::Header::new(Algorithm::RS256), &good, &ISSUER.rsa).unwrap();
    for (name, set, token) in [
        ("a leading zero byte", rsa_set(&json!({"n": URL_SAFE_NO_PAD.encode(&with_zero)}), &[]), rsa("rsa")),
        (
            "padding",
            rsa_set(&json!({"n": base64::engine::general_purpose::URL_SAFE.encode(&modulus)}), &[]),
            rsa("rsa"),
        ),
        ("a number as kid", rsa_set(&json!({"kid": 20_260_101}), std::slice::from_ref(&foreign)), rsa("20260101")),
        ("another key of the same kid first", rsa_set(&json!({}), std::slice::from_ref(&foreign)), rsa("rsa")),
        ("the key has no kid", rsa_set(&json!({"kid": null}), std::slice::from_ref(&unnamed_foreign)), rsa("any")),
        ("nobody has a kid", rsa_set(&json!({"kid": null}), &[unnamed_foreign]), numbered),
    ] {
        assert_eq!(set.verify(&token, None).await.map(|identity| identity.unique_id), Ok("alice".into()), "{name}");
    }
    // As JWT libraries refuse to write it; an issuer's own code may.
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let message = format!("{}.{}", part(&json!({"alg": "RS256", "kid": 7, "typ": null})), part(&good));
    let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &ISSUER.rsa, Algorithm::RS256).unwrap();
    let by_number = rsa_set(&json!({"kid": "7"}), &[foreign]).verify(&format!("{message}.{signature}"), None).await;
    assert!(by_number.is_ok(), "a number in the token's header names the key too: {by_number:?}");
    let none = rsa_set(&json!({}), &[]).verify(&token(Algorithm::RS256, "rsa", &foreign_rsa(), &good), None).await;
    assert_eq!(none, Err(JwtError::Signature));
}

fn foreign_rsa() -> EncodingKey {
    let key = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
    let der: Pkcs8V1Der<'_> = key.as_der().unwrap();
    let body = base64::engine::general_purpose::STANDARD.encode(der.as_ref());
    let pem = format!("-----BEGIN PRIVATE KEY-----\n{body}\n-----END PRIVATE KEY-----\n");
    EncodingKey::from_rsa_pem(pem.as_bytes()).unwrap()
}

#[tokio::test]
async fn no_refusal_holds_a_part_of_the_token() {
    let token = signed(&json!({"sub": "alice-secret", "aud": "bank-secret", "iss": "https://id.example"}));
    let error = verify(&token).await.unwrap_err();
    let said = format!("{error} {error:?}");
    assert!(!said.contains("secret") && token.split('.').all(|part| !said.contains(part)), "{said}");
}

#[tokio::test]
async fn without_a_claim_for_it_the_call_chooses_among_the_listed_client_types() {
    let without_claim = |listed: Option<&[&str]>| {
        let mut config = config();
        config.claims.client_type = None;
        config.client_types = listed.map(|listed| listed.iter().map(|&listed| listed.to_owned()).collect());
        JwtVerifier::try_new(&config).unwrap()
    };
    let token = signed(&json!({}));
    let two = without_claim(Some(&["app", "h5"]));
    assert_eq!(two.verify(&token, Some("h5")).await.unwrap().client_type, "h5");
    assert_eq!(two.verify(&token, None).await, Err(JwtError::NoClientType));
    assert_eq!(two.verify(&token, Some("pos")).await, Err(JwtError::ClientTypeNotListed("app, h5".into())));
    let one = without_claim(Some(&["app"]));
    assert_eq!(one.verify(&token, None).await.unwrap().client_type, "app", "there is no choice");
    assert!(one.verify(&token, Some("pos")).await.is_err());
    let before = without_claim(None);
    assert_eq!(before.verify(&token, Some("pos")).await.unwrap().client_type, "pos", "as it was accepted");
}

#[tokio::test]
async fn a_claim_names_only_a_listed_client_type() {
    let listed = JwtConfig { client_types: Some(vec!["h5".into()]), ..config() };
    let verifier = JwtVerifier::try_new(&listed).unwrap();
    let refused = verifier.verify(&signed(&json!({})), None).await;
    assert_eq!(refused, Err(JwtError::ClientTypeNotListed("h5".into())));
    assert!(verifier.verify(&signed(&json!({"client_type": "h5"})), None).await.is_ok());
}

#[tokio::test]
async fn a_call_can_not_contradict_the_tokens_client_type() {
    let verifier = JwtVerifier::try_new(&config()).unwrap();
    assert_eq!(verifier.verify(&signed(&json!({})), Some("pos")).await, Err(JwtError::ClientTypeMismatch));
    assert!(verifier.verify(&signed(&json!({})), Some("app")).await.is_ok());
}

#[tokio::test]
async fn another_claim_can_carry_the_identity() {
    let mut config = config();
    config.claims.unique_id = "user_id".into();
    let verifier = JwtVerifier::try_new(&config).unwrap();
    assert_eq!(verifier.verify(&signed(&json!({"user_id": 42})), None).await.unwrap().unique_id, "42");
    assert_eq!(verifier.verify(&signed(&json!({})), None).await, Err(JwtError::MissingClaim("user_id".into())));
    assert!(verifier.verify(&signed(&json!({"user_id": 4.2})), None).await.is_err());
}

#[tokio::test]
async fn claims_are_found_inside_others_and_under_any_name() {
    let mut config = config();
    config.claims = Claims {
        unique_id: "user.id".into(),
        client_type: Some("https://id.example/claims.client".into()),
        tags: Some("realm_access.roles".into()),
    };
    let verifier = JwtVerifier::try_new(&config).unwrap();
    let changes = json!({
        "sub": null, "user": {"id": 7}, "https://id.example/claims": {"client": "app"},
        "realm_access": {"roles": ["vip", 42]},
    });
    let identity = verifier.verify(&signed(&changes), None).await.unwrap();
    assert_eq!((&*identity.unique_id, &*identity.client_type), ("7", "app"));
    assert_eq!((identity.tags, identity.lacks_tags), (vec!["vip".to_owned(), "42".to_owned()], None));
    let mut exact = changes.clone();
    exact["user.id"] = "exact".into();
    exact["realm_access"] = json!({});
    let identity = verifier.verify(&signed(&exact), None).await.unwrap();
    assert_eq!(identity.unique_id, "exact", "a claim of that very name wins over the path");
    assert_eq!(identity.lacks_tags.as_deref(), Some("realm_access.roles"));
    assert_eq!(
        verifier.verify(&signed(&json!({"user": "alice"})), None).await,
        Err(JwtError::MissingClaim("user.id".into()))
    );
}

#[test]
fn a_configuration_that_lets_everybody_in_is_refused() {
    assert_eq!(
        JwtVerifier::try_new(&JwtConfig { audiences: vec![], ..config() }).err(),
        Some(JwtConfigError::Empty("audiences"))
    );
    assert_eq!(
        JwtVerifier::try_new(&JwtConfig { issuer: String::new(), ..config() }).err(),
        Some(JwtConfigError::Empty("issuer"))
    );
    let empty = JwtConfig { jwks: Jwks::Inline(json!({"keys": []})), ..config() };
    assert!(matches!(JwtVerifier::try_new(&empty), Err(JwtConfigError::KeySet(_))));
}
