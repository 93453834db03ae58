//! The backend of a client's user: gives it a connection URL when it asks, or what a scenario wants it to answer.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Result;
use axum::Router;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use wirepost_testing::edge::Edge;

use crate::world::{BUSINESS, CLIENT_TYPE};

/// What it answers once, instead of a URL.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Answer {
    /// This status, with `Retry-After` in seconds.
    Status(u16, Option<u32>),
    /// A ticket that no edge accepts, as an expired one.
    Expired,
    /// 200 and a page, as the login of a public network does.
    Page,
    /// Nothing, ever.
    Never,
}

pub(crate) struct Backend {
    address: SocketAddr,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

struct Shared {
    /// Gives the tickets.
    edge: Mutex<Arc<Edge>>,
    /// Where the URLs lead.
    proxy: SocketAddr,
    plan: Mutex<VecDeque<Answer>>,
    calls: Mutex<Vec<Instant>>,
}

impl Backend {
    pub(crate) async fn start(edge: Arc<Edge>, proxy: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await?;
        let address = listener.local_addr()?;
        let shared =
            Arc::new(Shared { edge: Mutex::new(edge), proxy, plan: Mutex::default(), calls: Mutex::default() });
        let router = Router::new().route("/token/{client}", get(token)).with_state(Arc::clone(&shared));
        let task = tokio::spawn(async move {
            let _ = axum::serve(listener, router).await;
        });
        Ok(Self { address, shared, task })
    }

    /// Where a client of this identity asks.
    pub(crate) fn url(&self, unique_id: &str) -> String {
        format!("http://{}/token/{unique_id}", self.address)
    }

    /// The next calls are answered like this.
    pub(crate) fn plan(&self, answers: impl IntoIterator<Item = Answer>) {
        *lock(&self.shared.plan) = answers.into_iter().collect();
    }

    /// When it was called.
    pub(crate) fn calls(&self) -> Vec<Instant> {
        lock(&self.shared.calls).clone()
    }

    /// Another edge gives the tickets from now on.
    pub(crate) fn move_to(&self, edge: &Arc<Edge>) {
        *lock(&self.shared.edge) = Arc::clone(edge);
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn token(State(shared): State<Arc<Shared>>, Path(client): Path<String>) -> Response {
    lock(&shared.calls).push(Instant::now());
    let planned = lock(&shared.plan).pop_front();
    let base = format!("ws://{}/socket/", shared.proxy);
    let mut response = match planned {
        Some(Answer::Status(status, retry_after)) => {
            let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            let result = u32::from(status.as_u16()) * 100 + 1;
            let mut response =
                (status, json!({"result": result, "description": "as planned"}).to_string()).into_response();
            if let Some(seconds) = retry_after {
                response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
            }
            response
        }
        Some(Answer::Page) => "<!doctype html><title>Welcome to our Wi-Fi</title>".into_response(),
        Some(Answer::Never) => std::future::pending().await,
        Some(Answer::Expired) => url(&format!("{base}AQexpired")),
        None => {
            let edge = Arc::clone(&lock(&shared.edge));
            match edge.token(BUSINESS, &client, CLIENT_TYPE, &[]).await {
                Ok(real) => url(&format!("{base}{}", real.rsplit('/').next().unwrap_or_default())),
                Err(error) => (StatusCode::BAD_GATEWAY, format!("{error:#}")).into_response(),
            }
        }
    };
    let any = header::HeaderValue::from_static("*");
    response.headers_mut().insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, any);
    let seen = header::HeaderValue::from_static("retry-after");
    response.headers_mut().insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, seen);
    response
}

fn url(url: &str) -> Response {
    json!({"result": 0, "description": "ok", "data": url}).to_string().into_response()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
