//! Against a scripted issuer that counts fetches.

use std::sync::atomic::AtomicUsize;

use axum::{Router, extract::State, http::StatusCode, response::IntoResponse, routing::get};
use serde_json::{Value, json};
use tokio::sync::Notify;
use wirepost_core::{
    edge_config::{Jwks, JwtConfig},
    issuer_address::{self, AddressDefect},
};

use super::{fetch::MAX_BYTES, *};
use crate::identity::jwt::{
    JwtError, JwtVerifier,
    tests::{Keypair, claims, config},
};
use crate::identity::key_set::KeySetError;

#[derive(Clone)]
enum Mode {
    Keys(Value),
    /// When told.
    Later(Value, Arc<Notify>),
    Text(&'static str),
    Status(u16),
    Hang,
    Large,
    Redirect,
}

#[derive(Clone)]
struct Server {
    mode: Arc<Mutex<Mode>>,
    fetches: Arc<AtomicUsize>,
    asked: Arc<Notify>,
    uri: String,
}

async fn serve(State(server): State<Server>) -> axum::response::Response {
    server.fetches.fetch_add(1, Ordering::SeqCst);
    server.asked.notify_one();
    let mode = server.mode.lock().unwrap().clone();
    match mode {
        Mode::Keys(set) => axum::Json(set).into_response(),
        Mode::Later(set, now) => {
            now.notified().await;
            axum::Json(set).into_response()
        }
        Mode::Text(text) => text.into_response(),
        Mode::Status(status) => StatusCode::from_u16(status).unwrap().into_response(),
        Mode::Hang => std::future::pending().await,
        Mode::Large => " ".repeat(MAX_BYTES + 1).into_response(),
        Mode::Redirect => (StatusCode::FOUND, [("location", server.uri.as_str())]).into_response(),
    }
}

impl Server {
    async fn start(mode: Mode) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let uri = format!("http://{}/jwks", listener.local_addr().unwrap());
        let server = Self { mode: Arc::new(Mutex::new(mode)), fetches: Arc::default(), asked: Arc::default(), uri };
        let router = Router::new().route("/jwks", get(serve)).with_state(server.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        server
    }

    fn becomes(&self, mode: Mode) {
        *self.mode.lock().unwrap() = mode;
    }

    fn fetches(&self) -> usize {
        self.fetches.load(Ordering::SeqCst)
    }

    fn trusted(&self) -> Vec<String> {
        issuer_address::trusted_entry(&self.uri).into_iter().collect()
    }

    fn verifier(&self) -> JwtVerifier {
        let jwks = Jwks::Uri(self.uri.clone());
        JwtVerifier::try_new(&JwtConfig { jwks, trusted_issuers: self.trusted(), ..config() }).unwrap()
    }

    fn source(&self) -> Arc<Source> {
        Source::of(Location::Set(self.uri.clone()), &self.trusted())
    }
}

fn keys(pairs: &[&Keypair]) -> Mode {
    Mode::Keys(json!({"keys": pairs.iter().map(|pair| pair.jwk()).collect::<Vec<_>>()}))
}

async fn check(verifier: &JwtVerifier, pair: &Keypair) -> Result<(), JwtError> {
    verifier.verify(&pair.sign(&claims(&json!({}))), None).await.map(drop)
}

/// Simulates that this time has passed since the last fetches. (A paused clock does not work with real sockets.)
async fn later(server: &Server, time: Duration) {
    let source = server.source();
    let mut history = source.history.lock().await;
    for begun in &mut history.begun {
        *begun -= time;
    }
}

#[tokio::test]
async fn a_new_key_works_at_its_first_use_and_a_revoked_one_stops() {
    let (old, new) = (Keypair::new("old"), Keypair::new("new"));
    let server = Server::start(keys(&[&old])).await;
    let verifier = server.verifier();
    assert_eq!(server.fetches(), 0, "nothing is fetched before a token needs it");
    assert_eq!(check(&verifier, &old).await, Ok(()));
    assert_eq!(check(&verifier, &old).await, Ok(()));
    assert_eq!(server.fetches(), 1);
    server.becomes(keys(&[&new]));
    assert_eq!(check(&verifier, &new).await, Ok(()));
    assert_eq!(check(&verifier, &old).await, Err(JwtError::UnknownKey));
    assert_eq!(server.fetches(), 2);
}

#[tokio::test]
async fn an_unknown_key_is_not_waited_for_a_second_time() {
    let (good, unknown) = (Keypair::new("good"), Keypair::new("unknown"));
    let server = Server::start(keys(&[&good])).await;
    let verifier = server.verifier();
    assert_eq!(check(&verifier, &unknown).await, Err(JwtError::UnknownKey));
    assert_eq!(server.fetches(), 1, "that set is as new as the call");
    // An old set is fetched again first, in vain and for as long as a fetch may take; then it is known to the call.
    age(&server, MAX_AGE * 2);
    server.becomes(Mode::Hang);
    let asked = Instant::now();
    assert_eq!(check(&verifier, &unknown).await, Err(JwtError::UnknownKey));
    assert!(asked.elapsed() < fetch::TIMEOUT * 2, "{:?}", asked.elapsed());
}

#[tokio::test]
async fn a_key_that_changed_under_its_id_works_at_its_first_use() {
    let (old, new) = (Keypair::new("same"), Keypair::new("same"));
    let server = Server::start(keys(&[&old])).await;
    let verifier = server.verifier();
    assert_eq!(check(&verifier, &old).await, Ok(()));
    server.becomes(keys(&[&new]));
    assert_eq!(check(&verifier, &new).await, Ok(()));
    assert_eq!(check(&verifier, &old).await, Err(JwtError::Signature));
}

#[tokio::test]
async fn random_key_ids_reach_the_issuer_twice() {
    let good = Keypair::new("good");
    let server = Server::start(keys(&[&good])).await;
    let verifier = Arc::new(server.verifier());
    check(&verifier, &good).await.unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for i in 0..200 {
        let verifier = Arc::clone(&verifier);
        let token = good.sign_as(&format!("random-{i}"), &claims(&json!({})));
        tasks.spawn(async move { verifier.verify(&token, None).await });
    }
    while let Some(result) = tasks.join_next().await {
        assert_eq!(result.unwrap(), Err(JwtError::UnknownKey));
    }
    assert_eq!(server.fetches(), FETCHES);
    assert_eq!(check(&verifier, &good).await, Ok(()));
    later(&server, COOL_DOWN).await;
    let new = Keypair::new("new");
    server.becomes(keys(&[&good, &new]));
    assert_eq!(check(&verifier, &new).await, Ok(()), "after the cool-down a new key works again");
}

#[tokio::test]
async fn many_calls_at_the_start_make_one_fetch() {
    let good = Keypair::new("good");
    let server = Server::start(keys(&[&good])).await;
    let verifier = server.verifier();
    let results = futures_util::future::join_all((0..50).map(|_| check(&verifier, &good))).await;
    assert!(results.iter().all(Result::is_ok), "{results:?}");
    assert_eq!(server.fetches(), 1);
}

#[tokio::test]
async fn a_caller_that_disconnects_cancels_no_fetch() {
    let good = Keypair::new("good");
    let (Mode::Keys(set), now) = (keys(&[&good]), Arc::new(Notify::new())) else { panic!("keys are a set") };
    let server = Server::start(Mode::Later(set, Arc::clone(&now))).await;
    let verifier = Arc::new(server.verifier());
    let token = good.sign(&claims(&json!({})));
    let caller = tokio::spawn({
        let verifier = Arc::clone(&verifier);
        async move { verifier.verify(&token, None).await }
    });
    server.asked.notified().await;
    caller.abort();
    assert!(caller.await.unwrap_err().is_cancelled());
    now.notify_one();
    assert_eq!(check(&verifier, &good).await, Ok(()), "the keys that it asked for are there");
    assert_eq!(server.fetches(), 1);
}

#[tokio::test]
async fn a_failing_issuer_keeps_the_last_valid_set() {
    let (good, unknown) = (Keypair::new("good"), Keypair::new("unknown"));
    for trouble in [
        Mode::Keys(json!({"keys": []})),
        Mode::Text("<html>"),
        Mode::Status(500),
        Mode::Hang,
        Mode::Large,
        Mode::Redirect,
    ] {
        let server = Server::start(keys(&[&good])).await;
        let verifier = server.verifier();
        check(&verifier, &good).await.unwrap();
        server.becomes(trouble);
        assert_eq!(check(&verifier, &unknown).await, Err(JwtError::UnknownKey));
        assert_eq!(server.fetches(), 2, "it was asked");
        assert_eq!(check(&verifier, &good).await, Ok(()));
    }
}

#[tokio::test]
async fn an_issuer_that_is_down_at_the_start_is_reported_and_recovers() {
    let good = Keypair::new("good");
    for (trouble, expected) in [
        (Mode::Status(500), FetchError::Status(500)),
        (Mode::Status(404), FetchError::Status(404)),
        (Mode::Redirect, FetchError::Status(302)),
        (Mode::Text("<html>"), FetchError::NotJson),
        (Mode::Large, FetchError::TooLarge),
        (Mode::Hang, FetchError::Timeout),
        (Mode::Text("{}"), FetchError::KeySet(KeySetError::Form(wirepost_core::key_set::KeySetError::Form))),
    ] {
        let server = Server::start(trouble).await;
        let verifier = server.verifier();
        let error = check(&verifier, &good).await.unwrap_err();
        assert_eq!(error, JwtError::KeysNotLoaded(expected.clone()));
        assert!(!error.to_string().contains(&expected.to_string()), "callers learn nothing of it: {error}");
        assert_eq!(check(&verifier, &good).await, Err(JwtError::KeysNotLoaded(expected)), "at once, from memory");
        assert_eq!(server.fetches(), 1);
        server.becomes(keys(&[&good]));
        later(&server, FIRST_COOL_DOWN).await;
        assert_eq!(check(&verifier, &good).await, Ok(()));
    }
}

#[tokio::test]
async fn an_unusable_key_does_not_spoil_the_set() {
    let good = Keypair::new("good");
    let set = json!({"keys": [
        {"kty": "AKP", "kid": "later", "alg": "ML-DSA-65", "pub": "AAAA"},
        {"kty": "RSA", "kid": "enc", "use": "enc", "n": "AQAB", "e": "AQAB"},
        good.jwk(),
    ]});
    let server = Server::start(Mode::Keys(set)).await;
    assert_eq!(check(&server.verifier(), &good).await, Ok(()));
}

#[tokio::test]
async fn a_changed_configuration_keeps_the_keys() {
    let good = Keypair::new("good");
    let server = Server::start(keys(&[&good])).await;
    let before = server.verifier();
    check(&before, &good).await.unwrap();
    server.becomes(Mode::Status(500));
    let after = server.verifier();
    drop(before);
    assert_eq!(check(&after, &good).await, Ok(()));
}

#[tokio::test]
async fn an_old_set_is_fetched_again() {
    let (old, new) = (Keypair::new("old"), Keypair::new("new"));
    let server = Server::start(keys(&[&old])).await;
    let verifier = server.verifier();
    check(&verifier, &old).await.unwrap();
    server.becomes(keys(&[&new]));
    assert_eq!(check(&verifier, &old).await, Ok(()), "still in memory");
    age(&server, MAX_AGE);
    assert_eq!(check(&verifier, &old).await, Err(JwtError::UnknownKey), "the issuer revoked it");
}

#[tokio::test]
async fn a_set_in_use_is_fetched_again_before_it_is_old_and_nobody_waits() {
    let good = Keypair::new("good");
    let server = Server::start(keys(&[&good])).await;
    let verifier = server.verifier();
    check(&verifier, &good).await.unwrap();
    server.asked.notified().await;
    server.becomes(Mode::Hang);
    age(&server, REFRESH_AGE);
    assert_eq!(check(&verifier, &good).await, Ok(()));
    server.asked.notified().await;
    assert_eq!(check(&verifier, &good).await, Ok(()), "while it is fetched");
    assert_eq!(server.fetches(), 2);
}

/// An issuer with a discovery document, whose keys are at `/jwks`.
async fn issuer(mode: Mode, document: impl FnOnce(&str) -> Value) -> (Server, JwtConfig) {
    let mut server = Server::start(mode).await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let issuer = format!("http://{}/realms/shop", listener.local_addr().unwrap());
    server.uri = format!("{issuer}/keys");
    let document = document(&issuer);
    let router = Router::new()
        .route("/realms/shop/.well-known/openid-configuration", get(async move || axum::Json(document)))
        .route("/realms/shop/keys", get(serve))
        .with_state(server.clone());
    tokio::spawn(async move { axum::serve(listener, router).await });
    let trusted_issuers = issuer_address::trusted_entry(&issuer).into_iter().collect();
    let config = JwtConfig { issuer, jwks: Jwks::Discovery, trusted_issuers, ..config() };
    (server, config)
}

#[tokio::test]
async fn keys_are_discovered_from_the_issuer_alone() {
    let good = Keypair::new("good");
    let document =
        |issuer: &str| json!({"issuer": issuer, "jwks_uri": format!("{issuer}/keys"), "scopes_supported": []});
    let (server, config) = issuer(keys(&[&good]), document).await;
    let verifier = JwtVerifier::try_new(&config).unwrap();
    let token = good.sign(&claims(&json!({"iss": config.issuer})));
    assert_eq!(verifier.verify(&token, None).await.map(drop), Ok(()));
    assert_eq!(server.fetches(), 1);
}

#[tokio::test]
async fn a_discovery_document_can_not_answer_for_another_issuer_or_lead_inside() {
    let good = Keypair::new("good");
    type Document = fn(&str) -> Value;
    let cases: [(Document, FetchError); 4] = [
        (
            |_| json!({"issuer": "https://other.example", "jwks_uri": "https://other.example/keys"}),
            FetchError::OtherIssuer,
        ),
        (|issuer| json!({"issuer": issuer}), FetchError::NotDiscovery),
        (
            |issuer| json!({"issuer": issuer, "jwks_uri": "https://169.254.169.254/keys"}),
            FetchError::Address(AddressDefect::NotPublic),
        ),
        (
            |issuer| json!({"issuer": issuer, "jwks_uri": "http://127.0.0.1:9090/metrics"}),
            FetchError::Address(AddressDefect::Insecure),
        ),
    ];
    for (document, expected) in cases {
        let (server, config) = issuer(keys(&[&good]), document).await;
        let verifier = JwtVerifier::try_new(&config).unwrap();
        let token = good.sign(&claims(&json!({"iss": config.issuer})));
        assert_eq!(verifier.verify(&token, None).await.map(drop), Err(JwtError::KeysNotLoaded(expected)));
        assert_eq!(server.fetches(), 0);
    }
}

#[tokio::test]
async fn an_address_that_nobody_trusts_is_not_asked() {
    let good = Keypair::new("good");
    let server = Server::start(keys(&[&good])).await;
    let config = JwtConfig { jwks: Jwks::Uri(server.uri.clone()), ..config() };
    let verifier = JwtVerifier::try_new(&config).unwrap();
    let refused = FetchError::Address(AddressDefect::Insecure);
    assert_eq!(check(&verifier, &good).await, Err(JwtError::KeysNotLoaded(refused)));
    assert_eq!(server.fetches(), 0);
}

/// Makes the set in use one of this age.
fn age(server: &Server, age: Duration) {
    let source = server.source();
    let loaded = source.current.swap(None).unwrap();
    let Ok(loaded) = Arc::try_unwrap(loaded) else { panic!("the set is in use") };
    let at = loaded.at - age - Duration::from_secs(1);
    source.current.store(Some(Arc::new(Loaded { at, ..loaded })));
}
