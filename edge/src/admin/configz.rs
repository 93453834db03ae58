//! `GET /configz`: the loaded configurations. The operator compares them with what it wrote; with `?wait=` a request is
//! answered when they change.

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    Json, Router,
    extract::{Query, State as Shared},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use sha2::{Digest, Sha256};
use tokio::{
    sync::Semaphore,
    time::{Duration, Instant, timeout_at},
};
use tokio_util::sync::CancellationToken;
use wirepost_core::{
    contract::configz::{Broker, Configz, Loaded, PATH, Query as Question},
    hex,
};

use crate::{broker::Health, http::state::State, push::reading::Reading};

/// Longest wait for a change; more is taken as this much.
const MAX_WAIT_SECONDS: u64 = 30;
/// Requests that wait at the same time; two replicas of an operator have one each. Beyond it a request is answered
/// immediately.
const MAX_WAITERS: usize = 16;

struct Configs {
    state: Arc<State>,
    waiters: Semaphore,
    closing: CancellationToken,
}

/// The route.
pub(super) fn router(state: Arc<State>, closing: CancellationToken) -> Router {
    let configs = Configs { state, waiters: Semaphore::new(MAX_WAITERS), closing };
    Router::new().route(PATH, get(configz)).with_state(Arc::new(configs))
}

async fn configz(
    Shared(configs): Shared<Arc<Configs>>,
    Query(Question { wait }): Query<Question>,
    headers: HeaderMap,
) -> Response {
    let known = headers.get(header::IF_NONE_MATCH).and_then(|value| value.to_str().ok());
    let mut version = configs.state.catalog.version();
    let deadline = Instant::now() + Duration::from_secs(wait.unwrap_or_default().min(MAX_WAIT_SECONDS));
    let mut waiting = None;
    loop {
        version.mark_unchanged();
        let loaded = configs.loaded();
        let tag = tag(&loaded);
        if !known.is_some_and(|known| matches(known, &tag)) {
            return configs.answer(loaded, tag);
        }
        let unchanged = || (StatusCode::NOT_MODIFIED, [(header::ETAG, tag.clone())]).into_response();
        if waiting.is_none() {
            let Ok(place) = configs.waiters.try_acquire() else { return unchanged() };
            waiting = Some(place);
        }
        tokio::select! {
            changed = timeout_at(deadline, version.changed()) => if !matches!(changed, Ok(Ok(()))) {
                return unchanged();
            },
            () = configs.closing.cancelled() => return unchanged(),
        }
    }
}

impl Configs {
    fn loaded(&self) -> Loaded {
        Loaded {
            edge: self.state.settings.edge.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            businesses: self.state.catalog.hashes(),
            keys: Some(self.state.keys.ids()),
        }
    }

    fn answer(&self, loaded: Loaded, tag: String) -> Response {
        let (mut unread, mut lags) = (Vec::new(), BTreeMap::new());
        for (business, reading) in self.state.catalog.readings() {
            match reading {
                Reading::Idle => {}
                Reading::Down => {
                    lags.insert(business.clone(), None);
                    unread.push(business);
                }
                Reading::Up(lag) => drop(lags.insert(business, lag)),
            }
        }
        let broker = match *self.state.broker.health().borrow() {
            Health::Up if !unread.is_empty() => Broker::Unread,
            Health::Up => Broker::Up,
            Health::Blocked(_) => Broker::Blocked,
            Health::Away(_) => Broker::Away,
        };
        let connections = self.state.catalog.connections();
        let body = Configz { loaded, broker, unread, lags, connections };
        ([(header::ETAG, tag)], Json(body)).into_response()
    }
}

/// Weak (RFC 9110, section 8.8.3): bodies with the same tag may differ in health and lags.
fn tag(loaded: &Loaded) -> String {
    let json = serde_json::to_vec(loaded).unwrap_or_default();
    let mut hash = hex(Sha256::digest(json));
    hash.truncate(32);
    format!("W/\"{hash}\"")
}

/// Weak comparison (RFC 9110, section 13.1.2): the header may list several tags.
fn matches(known: &str, tag: &str) -> bool {
    let strong = |tag: &str| tag.trim().trim_start_matches("W/").to_owned();
    known.split(',').any(|known| known.trim() == "*" || strong(known) == strong(tag))
}
