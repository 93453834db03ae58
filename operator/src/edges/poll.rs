//! What an edge runs, by long polls of its admin port.

use std::{
    collections::{HashMap, HashSet},
    net::SocketAddr,
    sync::{Arc, PoisonError},
    time::Duration,
};

use reqwest::{StatusCode, header};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use wirepost_core::contract::configz::{Loaded, PATH, Reported};

use super::Edges;

/// Seconds that an edge may keep a poll unanswered.
const WAIT_SECONDS: u64 = 10;
/// Longest time for an answer.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Between two polls of an edge that answers immediately.
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// Between two polls of an edge that does not answer.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// Largest answer: 10,000 businesses.
const MAX_ANSWER: usize = 4 << 20;

/// The client that polls edges.
pub(super) fn client() -> reqwest::Result<reqwest::Client> {
    reqwest::Client::builder()
        .no_proxy()
        .connect_timeout(CONNECT_TIMEOUT)
        .timeout(ANSWER_TIMEOUT)
        .redirect(reqwest::redirect::Policy::none())
        .build()
}

impl Edges {
    /// Polls one edge until `cancel`.
    pub(super) async fn follow(self: Arc<Self>, address: SocketAddr, cancel: CancellationToken) {
        let mut etag: Option<String> = None;
        let mut complete: Option<Instant> = None;
        let (within, wait) =
            (self.clients.heard_within(), self.clients.heard_within().as_secs().clamp(1, WAIT_SECONDS));
        loop {
            let asked = Instant::now();
            // Numbers of clients are no change that an answer comes for.
            if complete.is_none_or(|at| at.elapsed() >= within) {
                etag = None;
            }
            let answer = tokio::select! {
                answer = self.ask(address, etag.as_deref(), wait) => answer,
                () = cancel.cancelled() => return,
            };
            let pause = match answer {
                Ok(Some((reported, tag))) => {
                    (etag, complete) = (tag, Some(asked));
                    self.polled(address, Some(reported));
                    POLL_INTERVAL
                }
                Ok(None) => {
                    self.polled(address, None);
                    POLL_INTERVAL
                }
                Err(error) => {
                    // What it answered before counts no more: the next answer must be complete.
                    etag = None;
                    self.poll_failed(address, error.to_string());
                    RETRY_INTERVAL
                }
            };
            tokio::select! {
                () = sleep(pause.saturating_sub(asked.elapsed())) => {}
                () = cancel.cancelled() => return,
            }
        }
    }

    /// `None` = nothing has changed.
    async fn ask(
        &self,
        address: SocketAddr,
        etag: Option<&str>,
        wait: u64,
    ) -> Result<Option<(Reported, Option<String>)>, PollError> {
        let request = match etag {
            Some(etag) => {
                self.http.get(format!("http://{address}{PATH}?wait={wait}")).header(header::IF_NONE_MATCH, etag)
            }
            None => self.http.get(format!("http://{address}{PATH}")),
        };
        let mut answer = request.send().await?;
        if answer.status() == StatusCode::NOT_MODIFIED {
            return Ok(None);
        }
        if !answer.status().is_success() {
            return Err(PollError::Status(answer.status()));
        }
        let etag = answer.headers().get(header::ETAG).and_then(|tag| tag.to_str().ok()).map(str::to_owned);
        let mut body = Vec::new();
        while let Some(chunk) = answer.chunk().await? {
            body.extend_from_slice(&chunk);
            if body.len() > MAX_ANSWER {
                return Err(PollError::TooLong);
            }
        }
        Ok(Some((serde_json::from_slice(&body)?, etag)))
    }

    fn polled(&self, address: SocketAddr, reported: Option<Reported>) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(edge) = known.get_mut(&address) else { return };
        let back = edge.failure.take().is_some() && edge.ready;
        if back {
            tracing::info!(edge = edge.name, "the edge answers again");
        }
        let mut changed = HashSet::new();
        if let Some(Reported { loaded: Loaded { businesses: hashes, keys, .. }, connections }) = reported {
            edge.keys = keys;
            edge.connections = connections;
            let now = Instant::now();
            let first = edge.hashes.is_none();
            if first {
                (edge.since, edge.answers_since) = (HashMap::new(), now);
            }
            let before = edge.hashes.take().unwrap_or_default();
            let differs = |(name, hash): &(&String, &String)| before.get(*name) != Some(hash);
            changed.extend(hashes.iter().filter(differs).map(|(name, _)| name.clone()));
            changed.extend(before.keys().filter(|name| !hashes.contains_key(*name)).cloned());
            if !first {
                edge.since.retain(|name, _| hashes.contains_key(name));
                let changed = changed.iter().filter(|name| hashes.contains_key(*name));
                edge.since.extend(changed.map(|name| (name.clone(), now)));
            }
            edge.hashes = Some(hashes);
        }
        self.count(&known);
        drop(known);
        if back {
            self.triggers.trigger_all();
        } else {
            self.triggers.trigger_businesses(&changed);
        }
    }

    fn poll_failed(&self, address: SocketAddr, reason: String) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(edge) = known.get_mut(&address) else { return };
        let first = edge.failure.is_none() && edge.ready;
        if first {
            tracing::warn!(edge = edge.name, reason, "the edge does not answer");
        }
        // What it runs is not known now.
        edge.failure = Some(reason);
        edge.keys = None;
        if let Some(hashes) = edge.hashes.take() {
            edge.last = Some(hashes);
        }
        self.count(&known);
        drop(known);
        if first {
            self.triggers.trigger_all();
        }
    }
}

/// Why an edge's answer is missing.
#[derive(Debug, thiserror::Error)]
enum PollError {
    /// The way to it. The address is in the log already.
    #[error("{}", with_causes(.0))]
    Http(reqwest::Error),
    #[error("{PATH} answers {0}")]
    Status(StatusCode),
    #[error("{PATH} is longer than {MAX_ANSWER} bytes")]
    TooLong,
    #[error("{PATH} is not understood: {0}")]
    Body(#[from] serde_json::Error),
}

impl From<reqwest::Error> for PollError {
    fn from(error: reqwest::Error) -> Self {
        Self::Http(error.without_url())
    }
}

fn with_causes(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
