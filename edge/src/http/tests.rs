//! The calls as their users see them, with the real state and a scripted broker.

mod calls;
mod messages;
mod token;
mod upgrade;

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, Ordering},
};

use axum::{
    Router,
    body::{Body, to_bytes},
    http::{HeaderMap, Request, StatusCode},
};
use futures_util::future::BoxFuture;
use prometheus_client::{metrics::gauge::Gauge, registry::Registry};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::{
    sync::{oneshot, watch},
    time::Instant,
};
use tower::ServiceExt;
use wirepost_core::edge_config::{BusinessConfig, Delivery};
use wirepost_runtime::{readiness::Readiness, tasks::Supervisor};

use super::state::State;
use crate::{
    app::App,
    broker::{Broker, Confirm, Feed, FeedEvent, Health, Page, Publication, PublishError, ReadError, Start},
    config::settings::Settings,
    identity::{jwt, keys::KeyRing},
};

/// A key of the services of `payments`.
pub(super) const API_KEY: &str = "key-of-payments";

/// The stub's answer to a publish.
#[derive(Clone)]
pub(super) enum Answer {
    Now(Result<(), PublishError>),
    Dropped,
    Never,
}

type Script = Box<dyn Fn(&Publication) -> Answer + Send>;

pub(super) struct Stub {
    pub(super) published: Mutex<Vec<(u64, Publication)>>,
    answer: Mutex<Script>,
    unanswered: Mutex<Vec<oneshot::Sender<Result<(), PublishError>>>>,
    /// Until when callers of batches wait.
    pub(super) deadlines: Mutex<Vec<Instant>>,
    health: watch::Sender<Health>,
    pub(super) closed: AtomicBool,
}

struct Silent;

impl Feed for Silent {
    fn recv(&mut self) -> BoxFuture<'_, FeedEvent> {
        Box::pin(std::future::pending())
    }
}

impl Broker for Stub {
    fn publish(&self, lane: u64, publication: Publication) -> Confirm {
        let (sender, confirm) = oneshot::channel();
        match self.answer.lock().unwrap()(&publication) {
            Answer::Now(answer) => drop(sender.send(answer)),
            Answer::Dropped => drop(sender),
            Answer::Never => self.unanswered.lock().unwrap().push(sender),
        }
        self.published.lock().unwrap().push((lane, publication));
        confirm
    }

    fn publish_by(&self, lane: u64, publication: Publication, deadline: Instant) -> Confirm {
        self.deadlines.lock().unwrap().push(deadline);
        self.publish(lane, publication)
    }

    fn emit(&self, _: Publication) {}

    fn tail(&self, _: &str, _: Delivery, _: Start) -> Box<dyn Feed> {
        Box::new(Silent)
    }

    fn read<'a>(&'a self, _: &'a str, _: u64, _: usize) -> BoxFuture<'a, Result<Page, ReadError>> {
        Box::pin(async { Err(ReadError("not here".into())) })
    }

    fn health(&self) -> watch::Receiver<Health> {
        self.health.subscribe()
    }

    fn register(&self, registry: &mut Registry) {
        let published = Gauge::<i64>::default();
        published.set(7);
        registry.sub_registry_with_prefix("wirepost_broker").register("published", "Of this stub", published);
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        self.closed.store(true, Ordering::Relaxed);
        Box::pin(async {})
    }
}

/// An edge with the businesses `payments` and `bare` (neither JWT nor keys nor origins).
pub(super) struct Edge {
    pub(super) state: Arc<State>,
    pub(super) stub: Arc<Stub>,
    router: Router,
    app: App,
}

pub(super) struct Reply {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Value,
}

fn digest(key: &str) -> String {
    wirepost_core::hex(Sha256::digest(key))
}

pub(super) fn payments() -> Value {
    json!({
        "format": 1,
        "businessType": "payments",
        "owner": "shop/payments",
        "generation": 1,
        "clientTypes": ["h5", "app", "pos"],
        "routes": [
            {"messageType": "payment.completed", "sendType": "ServerToClient", "from": [], "to": ["h5", "app"],
             "ttlSeconds": 600, "audience": "Addressed"},
            {"messageType": "shop.closed", "sendType": "ServerToClient", "from": [], "to": ["h5", "app", "pos"],
             "audience": "Everyone",
             "schema": {"type": "object", "required": ["until"], "properties": {"until": {"type": "string"}}}},
            {"messageType": "cart.share", "sendType": "ClientToClient", "from": ["app"], "to": ["h5"], "audience": "Addressed"},
        ],
        "delivery": "Durable",
        "retention": {"seconds": 86400, "bytes": 1 << 30},
        "auth": {
            "jwt": jwt::tests::config(),
            "allowedOrigins": ["https://shop.example"],
            "apiKeys": [{"sha256": digest(API_KEY)}, {"sha256": digest("old-key"), "expiresAt": 1000}],
        },
        "limits": {"messageBytes": 65536, "pushBytes": 4096, "messagesPerSecond": 20, "burst": 40, "connectionsPerId": 8},
        "sessionMaxSeconds": 3600,
    })
}

impl Edge {
    pub(super) async fn start() -> Self {
        Self::with(Settings::default()).await
    }

    pub(super) async fn with(settings: Settings) -> Self {
        let loopback = ([127, 0, 0, 1], 0).into();
        let settings = Settings { listen: loopback, admin: loopback, ..settings };
        let stub = Arc::new(Stub {
            published: Mutex::default(),
            answer: Mutex::new(Box::new(|_| Answer::Now(Ok(())))),
            unanswered: Mutex::default(),
            deadlines: Mutex::default(),
            health: watch::Sender::new(Health::Up),
            closed: AtomicBool::new(false),
        });
        let app = App::start(
            settings,
            Arc::new(KeyRing::random()),
            Arc::clone(&stub) as Arc<dyn Broker>,
            Readiness::default(),
            Supervisor::default(),
        )
        .await
        .unwrap();
        let config = |value| serde_json::from_value::<BusinessConfig>(value).unwrap();
        let mut bare = payments();
        bare["businessType"] = "bare".into();
        bare["auth"] = json!({"allowedOrigins": [], "publicDescription": true});
        let bad = app.state.catalog.replace(vec![config(payments()), config(bare)], &[]);
        assert!(bad.is_empty(), "{bad:?}");
        let state = Arc::clone(&app.state);
        Self { router: super::router(Arc::clone(&state)), state, stub, app }
    }

    /// Sets the broker's answers from now on.
    pub(super) fn broker_answers(&self, answer: impl Fn(&Publication) -> Answer + Send + 'static) {
        *self.stub.answer.lock().unwrap() = Box::new(answer);
    }

    /// Bodies published so far, in order.
    pub(super) fn published(&self) -> Vec<Value> {
        let published = self.stub.published.lock().unwrap();
        published.iter().map(|(_, publication)| serde_json::from_slice(&publication.body).unwrap()).collect()
    }

    pub(super) async fn call(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Body>,
    ) -> Reply {
        call(self.router.clone(), method, path, headers, body).await
    }

    pub(super) async fn get(&self, path: &str, headers: &[(&str, &str)]) -> Reply {
        self.call("GET", path, headers, Body::empty()).await
    }
}

pub(super) async fn call(
    router: Router,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: impl Into<Body>,
) -> Reply {
    let mut request = Request::builder().method(method).uri(path);
    if !headers.iter().any(|(name, _)| *name == "host") {
        request = request.header("host", "edge.example");
    }
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = router.oneshot(request.body(body.into()).unwrap()).await.unwrap();
    let (parts, body) = response.into_parts();
    let bytes = to_bytes(body, 1 << 24).await.unwrap();
    let body = if bytes.is_empty() {
        Value::Null
    } else {
        serde_json::from_slice(&bytes).unwrap_or_else(|_| String::from_utf8_lossy(&bytes).into_owned().into())
    };
    Reply { status: parts.status, headers: parts.headers, body }
}
