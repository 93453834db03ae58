//! Token checks where a library's defaults are not enough (CASES 16), through the HTTP call as clients make it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, ensure};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use wirepost_core::edge_config::Jwks;
use wirepost_testing::edge::Edge;
use wirepost_testing::setup::Setup;

/// The issuer of one business: an RS256 key for signatures and one for encryption.
struct Issuer {
    key: EncodingKey,
    public_pem: String,
    encryption: EncodingKey,
    set: Value,
}

impl Issuer {
    fn new() -> Result<Self> {
        let pair = || rcgen::KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048);
        let jwk = |key: &EncodingKey, kid: &str, purpose: &str| -> Result<Value> {
            let mut jwk = serde_json::to_value(Jwk::from_encoding_key(key, Algorithm::RS256)?)?;
            jwk["kid"] = json!(kid);
            jwk["use"] = json!(purpose);
            Ok(jwk)
        };
        let (signing, encrypting) = (pair()?, pair()?);
        let key = EncodingKey::from_rsa_pem(signing.serialize_pem().as_bytes())?;
        let encryption = EncodingKey::from_rsa_pem(encrypting.serialize_pem().as_bytes())?;
        let set = json!({"keys": [
            jwk(&encryption, "enc", "enc")?,
            {"kty": "AKP", "kid": "of-a-later-kind", "alg": "ML-DSA-65", "pub": "AAAA"},
            jwk(&key, "sig", "sig")?,
        ]});
        Ok(Self { key, public_pem: signing.public_key_pem(), encryption, set })
    }

    fn sign(&self, kid: &str, claims: &Value) -> Result<String> {
        let header = Header { kid: Some(kid.to_owned()), ..Header::new(Algorithm::RS256) };
        Ok(encode(&header, claims, &self.key)?)
    }
}

fn declaration(name: &str, issuer: &str, set: &Value) -> String {
    json!({
        "apiVersion": "wirepost.dev/v1alpha1",
        "kind": "WsBusiness",
        "metadata": {"name": name, "namespace": "shop"},
        "spec": {
            "clientTypes": ["app", "h5"],
            "routes": [{"messageType": "order.placed", "sendType": "ClientToServer", "queue": {"name": "orders"}}],
            "auth": {"jwt": {
                "issuer": issuer, "audiences": ["shop"], "jwks": {"inline": set},
                "claims": {"uniqueId": "sub", "clientType": "client_type", "tags": "groups"},
            }},
        },
    })
    .to_string()
}

fn now() -> i64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64)
}

fn claims() -> Value {
    json!({
        "iss": "https://id.example", "aud": "shop", "sub": "alice", "client_type": "app", "groups": ["gold"],
        "exp": now() + 300, "nbf": now() - 10, "iat": now() - 10,
    })
}

/// The claims with one of them changed, or left out where it is null.
fn with(name: &str, value: Value) -> Value {
    let mut claims = claims();
    match value {
        Value::Null => drop(claims.as_object_mut().map(|claims| claims.remove(name))),
        value => claims[name] = value,
    }
    claims
}

/// The token call of a client.
async fn call(edge: &Edge, business: &str, token: &str) -> Result<(u16, Value)> {
    let client = reqwest::Client::builder().no_proxy().build()?;
    let url = format!("http://{}/{business}/websocket/token", edge.public);
    let answer = client.get(url).bearer_auth(token).send().await?;
    let status = answer.status().as_u16();
    let body = answer.text().await?;
    Ok((status, serde_json::from_str(&body).unwrap_or(Value::String(body))))
}

#[tokio::test]
async fn only_a_token_that_passes_every_check_becomes_a_session_and_no_log_holds_it() -> Result<()> {
    let issuer = Issuer::new()?;
    let other = Issuer::new()?;
    let setup = Setup::new(&[
        &declaration("payments", "https://id.example", &issuer.set),
        &declaration("bank", "https://bank.example", &other.set),
    ])
    .await?;
    let edge = setup.edge("e1").start().await?;

    let rs256 = |claims: &Value| issuer.sign("sig", claims);
    let header = |alg: &str| URL_SAFE_NO_PAD.encode(json!({"alg": alg, "typ": "JWT", "kid": "sig"}).to_string());
    let unsigned = format!("{}.{}.", header("none"), URL_SAFE_NO_PAD.encode(claims().to_string()));
    let hmac = Header { kid: Some("sig".to_owned()), ..Header::new(Algorithm::HS256) };
    let confused = encode(&hmac, &claims(), &EncodingKey::from_secret(issuer.public_pem.as_bytes()))?;
    let good = rs256(&claims())?;
    let (signed, signature) = good.rsplit_once('.').context("a JWT")?;
    let altered = {
        let (head, _) = signed.split_once('.').context("a JWT")?;
        format!("{head}.{}.{signature}", URL_SAFE_NO_PAD.encode(with("sub", json!("ceo")).to_string()))
    };
    let encrypting = Header { kid: Some("enc".to_owned()), ..Header::new(Algorithm::RS256) };
    let mut padded = claims();
    padded["padding"] = json!("x".repeat(48 << 10));

    // Token, and the word that tells which check failed; none where it is good.
    let cases: Vec<(&str, String, Option<&str>)> = vec![
        ("good", good.clone(), None),
        ("alg none", unsigned, Some("alg")),
        ("HS256 with the public key's PEM", confused, Some("alg")),
        ("altered", altered, Some("signature")),
        ("no exp", rs256(&with("exp", Value::Null))?, Some("exp")),
        ("exp 2 min ago", rs256(&with("exp", json!(now() - 120)))?, Some("exp")),
        ("exp 45 s ago", rs256(&with("exp", json!(now() - 45)))?, Some("exp")),
        ("nbf 1 h ahead", rs256(&with("nbf", json!(now() + 3600)))?, Some("nbf")),
        ("iat 1 h ahead", rs256(&with("iat", json!(now() + 3600)))?, Some("iat")),
        (
            "nbf and iat 30 s ahead",
            {
                let mut skewed = claims();
                skewed["nbf"] = json!(now() + 30);
                skewed["iat"] = json!(now() + 30);
                rs256(&skewed)?
            },
            None,
        ),
        ("no aud", rs256(&with("aud", Value::Null))?, Some("aud")),
        ("wrong aud", rs256(&with("aud", json!("bank")))?, Some("aud")),
        ("empty aud", rs256(&with("aud", json!([])))?, Some("aud")),
        ("aud list containing ours", rs256(&with("aud", json!(["bank", "shop"])))?, None),
        ("no iss", rs256(&with("iss", Value::Null))?, Some("iss")),
        ("another business's issuer", rs256(&with("iss", json!("https://bank.example")))?, Some("iss")),
        ("another business's key", other.sign("sig", &claims())?, Some("signature")),
        ("no sub", rs256(&with("sub", Value::Null))?, Some("sub")),
        ("unknown kid", issuer.sign("none-such", &claims())?, Some("kid")),
        ("kid of an encryption key", encode(&encrypting, &claims(), &issuer.encryption)?, Some("kid")),
        ("64 kB", rs256(&padded)?, Some("bytes")),
        ("no JWT", "opaque-token-of-somebody".to_owned(), Some("token")),
    ];
    assert!(cases.iter().any(|(_, token, _)| token.len() > 60_000), "a token of 64 kB");
    let mut tickets = Vec::new();
    for (what, token, failed) in &cases {
        let (status, body) = call(&edge, "payments", token).await.with_context(|| (*what).to_owned())?;
        match failed {
            None => {
                assert_eq!((status, &body["result"]), (200, &json!(0)), "{what}: {body}");
                let url = body["data"].as_str().context("a URL")?;
                tickets.push(url.rsplit('/').next().unwrap_or_default().to_owned());
            }
            // A header of 64 kB is more than any part of the edge takes: it need not even be read as a request.
            Some(_) if token.len() > 60_000 => assert!((400..500).contains(&status), "{what}: {status}: {body}"),
            Some(word) => {
                assert_eq!(status, 401, "{what}: {body}");
                assert!(body["result"].as_u64() > Some(0), "{what}: {body}");
                let description = body["description"].as_str().unwrap_or_default();
                assert!(description.contains(word), "{what}: {description:?} does not name {word}");
                assert!(!body.to_string().contains(token.as_str()), "{what}: the answer repeats the token");
            }
        }
    }
    // The identity is the token's; what a client asks for beside it is not believed.
    let mut alice = edge.client("-", "-").token(tickets[0].as_str()).connect().await?;
    alice
        .send_acked(
            &json!({"id": "o1", "messageType": "order.placed", "fromUniqueId": "alice", "fromClientType": "app"}),
        )
        .await?;
    let (status, body) = call(&edge, "bank", &good).await?;
    assert_eq!(status, 401, "a token is of one business: {body}");
    let end = alice.welcome["sessionEndsAt"].as_i64().unwrap_or_default();
    assert!(end <= (now() + 300) * 1000, "a session outlives its token");

    // Neither a token, nor a part that one could use, nor a ticket.
    let log = edge.log();
    assert!(log.contains("/{business}/websocket/token") || log.contains("token"), "requests are logged: {log}");
    for (what, token, _) in &cases {
        for secret in std::iter::once(token.as_str()).chain(token.split('.').skip(1).filter(|part| part.len() > 40)) {
            let start = &secret[..secret.len().min(100)];
            assert!(!log.contains(start), "{what}: the log holds a part of the token");
        }
    }
    for ticket in tickets.iter().chain([&alice.resume_token()]) {
        assert!(!log.contains(ticket.as_str()), "the log holds a ticket");
    }
    assert!(!log.contains(setup.api_key()), "the log holds the API key");
    Ok(())
}

/// Serves a key set, and counts who asks for it.
struct KeyServer {
    address: String,
    asked: Arc<AtomicUsize>,
}

impl KeyServer {
    async fn start(set: &Value) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let (address, asked, set) = (listener.local_addr()?.to_string(), Arc::default(), set.to_string());
        let count: Arc<AtomicUsize> = Arc::clone(&asked);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::SeqCst);
                let _ = stream.read(&mut [0; 4096]).await;
                let head = format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", set.len());
                let _ = stream.write_all(format!("{head}{set}").as_bytes()).await;
            }
        });
        Ok(Self { address, asked })
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

#[tokio::test]
async fn unknown_keys_without_end_reach_the_issuer_a_few_times() -> Result<()> {
    let issuer = Issuer::new()?;
    let server = KeyServer::start(&issuer.set).await?;
    let setup = Setup::new(&[&declaration("payments", "https://id.example", &issuer.set)]).await?;
    setup.reconfigure("payments", |config| {
        let jwt = config.auth.jwt.as_mut();
        if let Some(jwt) = jwt {
            jwt.jwks = Jwks::Uri(format!("http://{}/keys", server.address));
            jwt.trusted_issuers = vec![server.address.clone()];
        }
    })?;
    let edge = setup.edge("e1").start().await?;
    ensure!(call(&edge, "payments", &issuer.sign("sig", &claims())?).await?.0 == 200);
    ensure!(server.asked() == 1);
    let began = std::time::Instant::now();
    for n in 0..300 {
        let (status, body) = call(&edge, "payments", &issuer.sign(&format!("none-{n}"), &claims())?).await?;
        ensure!(status == 401, "{status}: {body}");
    }
    // Two in ten seconds, and the first one before.
    let allowed = 1 + 2 * (1 + began.elapsed().as_secs() as usize / 10);
    ensure!(server.asked() <= allowed, "{} fetches in {:?}", server.asked(), began.elapsed());
    ensure!(
        call(&edge, "payments", &issuer.sign("sig", &claims())?).await?.0 == 200,
        "a good token passes all the while"
    );
    Ok(())
}

#[tokio::test]
async fn keys_inside_the_network_are_not_asked_for_and_callers_learn_nothing() -> Result<()> {
    let issuer = Issuer::new()?;
    let server = KeyServer::start(&issuer.set).await?;
    let (_, port) = server.address.split_once(':').context("a port")?;
    let addresses = [
        format!("http://127.0.0.1:{port}/keys"),
        format!("https://127.0.0.1:{port}/keys"),
        format!("https://localhost:{port}/keys"),
        format!("https://[::ffff:127.0.0.1]:{port}/keys"),
        format!("https://2130706433:{port}/keys"),
        "https://169.254.169.254/latest/meta-data".to_owned(),
        "https://kubernetes.default.svc/api".to_owned(),
    ];
    let names: Vec<_> = (0..addresses.len()).map(|n| format!("of-{n}")).collect();
    let declared: Vec<_> = names.iter().map(|name| declaration(name, "https://id.example", &issuer.set)).collect();
    let setup = Setup::new(&declared.iter().map(String::as_str).collect::<Vec<_>>()).await?;
    for (name, address) in names.iter().zip(&addresses) {
        setup.reconfigure(name, |config| {
            config.auth.jwt.iter_mut().for_each(|jwt| jwt.jwks = Jwks::Uri(address.clone()));
        })?;
    }
    let edge = setup.edge("e1").start().await?;
    let token = issuer.sign("sig", &claims())?;
    let mut said = Vec::new();
    for (name, address) in names.iter().zip(&addresses) {
        let (status, body) = call(&edge, name, &token).await?;
        ensure!(status == 503 && body["result"] == 50_303, "{address}: {status}: {body}");
        said.push(body["description"].as_str().context("no description")?.to_owned());
    }
    ensure!(server.asked() == 0, "{} connections came", server.asked());
    said.dedup();
    ensure!(said.len() == 1 && !said[0].contains("127"), "callers can tell addresses apart: {said:?}");
    Ok(())
}

#[tokio::test]
async fn a_session_of_an_issuer_that_is_not_declared_any_more_ends() -> Result<()> {
    let issuer = Issuer::new()?;
    let setup = Setup::new(&[&declaration("payments", "https://id.example", &issuer.set)]).await?;
    let edge = setup.edge("e1").start().await?;
    let (_, body) = call(&edge, "payments", &issuer.sign("sig", &claims())?).await?;
    let ticket = body["data"].as_str().and_then(|url| url.rsplit('/').next()).context("a ticket")?;
    let mut alice = edge.client("alice", "app").token(ticket).connect().await?;
    // Whom a service has let in is none of the issuer's.
    let mut bob = edge.client("bob", "app").connect().await?;
    setup.reconfigure("payments", |config| config.auth.jwt = None)?;
    assert_eq!(alice.close_code().await?, 3000);
    let again = edge.client("alice", "app").token(alice.resume_token()).upgrade().await?.close_code().await?;
    assert_eq!(again, 3000);
    bob.sync().await
}
