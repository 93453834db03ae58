//! `GET /{business}/asyncapi.json`: what clients and services exchange with the business, generated from the current
//! declaration. For the business's services; where its declaration allows that, everybody and pages of any origin get what
//! clients need.
//!
//! A description may have a megabyte, and who asks for it need not be known. So it is made once for each form that it is
//! asked for in, off the threads that serve sockets; all answers share its bytes; and a business has so many made a second.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
};

use axum::{
    extract::{Path, State as Shared},
    http::{HeaderMap, HeaderValue, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use tokio::time::Instant;
use wirepost_core::asyncapi::{Part, asyncapi};

use super::{
    answer::{Code, Refusal},
    caller::{self, Credential},
    public_url::public_url,
    state::State,
};
use crate::business::{Business, check_pool::Busy};

/// Descriptions that are kept: of each part of one business, by the names that edges have, and bytes of all.
const KEPT_OF_ONE: usize = 4;
const KEPT_BYTES: usize = 16 << 20;

/// Descriptions that were made, the one last used last.
#[derive(Debug, Default)]
pub struct Descriptions(Mutex<VecDeque<Made>>);

#[derive(Debug)]
struct Made {
    business: Arc<Business>,
    base: String,
    part: Part,
    text: Bytes,
}

impl Descriptions {
    fn find(&self, business: &Arc<Business>, base: &str, part: Part) -> Option<Bytes> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_it = |made: &Made| Arc::ptr_eq(&made.business, business) && made.base == base && made.part == part;
        // Forms that nobody asks for again make room before one that is in use.
        let found = kept.iter().position(is_it)?;
        let found = kept.remove(found)?;
        let text = found.text.clone();
        kept.push_back(found);
        Some(text)
    }

    fn keep(&self, new: Made) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // What its former declarations said is of no use.
        kept.retain(|made| made.business.name() != new.business.name() || Arc::ptr_eq(&made.business, &new.business));
        let of_it = |made: &Made| made.part == new.part && Arc::ptr_eq(&made.business, &new.business);
        if kept.iter().filter(|made| of_it(made)).count() >= KEPT_OF_ONE
            && let Some(oldest) = kept.iter().position(of_it)
        {
            kept.remove(oldest);
        }
        kept.push_back(new);
        while kept.iter().map(|made| made.text.len()).sum::<usize>() > KEPT_BYTES {
            // The business that has most makes room, and not the others for it.
            let mut sizes: HashMap<&str, usize> = HashMap::new();
            for made in &*kept {
                *sizes.entry(made.business.name()).or_default() += made.text.len();
            }
            let most = sizes.into_iter().max_by_key(|(_, bytes)| *bytes).map(|(name, _)| name.to_owned());
            let Some(oldest) = kept.iter().position(|made| most.as_deref() == Some(made.business.name())) else {
                return;
            };
            kept.remove(oldest);
        }
    }
}

/// The handler. It returns the bare document, not in the form of other answers: tools read it by its URL.
pub(super) async fn describe(
    Shared(state): Shared<Arc<State>>,
    Path(business): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let business = state.business(&business)?;
    let public = business.config.auth.public_description;
    let credential = Credential::of(&headers).ok();
    let part = match credential {
        Some(credential) if credential.is_service(&business) => Part::All,
        // A credential that is none of the business's is no reason to show less than to a stranger.
        _ if public => Part::Clients,
        Some(_) => return Err(caller::unknown_api_key()),
        None => return Err(not_public()),
    };
    let base = public_url(&state.settings, &headers)?;
    let text = match state.descriptions.find(&business, &base, part) {
        Some(text) => text,
        None => make(&state, business, base, part).await?,
    };
    let answer = [
        (header::CONTENT_TYPE, "application/json"),
        (header::CACHE_CONTROL, "no-cache"),
        (header::VARY, "x-api-key, authorization"),
    ];
    let mut response = (answer, text).into_response();
    if public {
        response.headers_mut().insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    }
    Ok(response)
}

async fn make(state: &Arc<State>, business: Arc<Business>, base: String, part: Part) -> Result<Bytes, Refusal> {
    let (of_job, name) = (Arc::clone(state), Arc::clone(&business.push_exchange));
    let job = move || {
        // Others have waited for the same.
        if let Some(made) = of_job.descriptions.find(&business, &base, part) {
            return Some(made);
        }
        // A team's own calls are not kept from it by strangers.
        let hub = of_job.catalog.hub(business.name()).filter(|_| part == Part::Clients);
        if hub.is_some_and(|hub| hub.share.description(Instant::now()).is_err()) {
            return None;
        }
        let text: Bytes = serde_json::to_vec(&asyncapi(&business.config, &base, part)).unwrap_or_default().into();
        of_job.descriptions.keep(Made { business, base, part, text: text.clone() });
        Some(text)
    };
    match state.checks.run(&name, 0, job).await {
        Ok(Some(text)) => Ok(text),
        Ok(None) => Err(Refusal::overloaded("this business is described in too many forms at once; wait")),
        Err(Busy) => Err(Refusal::overloaded("this edge has too much to check and to describe; wait")),
    }
}

fn not_public() -> Refusal {
    Refusal::new(
        Code::NoCredential,
        "the description of this business is for its services: send an API key, or set auth.publicDescription in its WsBusiness",
    )
}

#[cfg(test)]
mod tests {
    use wirepost_core::compile::compile_one;

    use super::*;

    fn business(name: &str) -> Arc<Business> {
        let declared = serde_json::json!({
            "apiVersion": "wirepost.dev/v1alpha1", "kind": "WsBusiness", "metadata": {"name": name, "namespace": "shop"},
            "spec": {"clientTypes": ["app"], "routes": [{"messageType": "n", "sendType": "ServerToClient", "to": ["app"]}]},
        });
        let compiled = compile_one(&serde_json::from_value(declared).unwrap()).unwrap();
        Arc::new(Business::try_new(compiled.config).unwrap())
    }

    #[test]
    fn few_forms_of_a_business_are_kept_and_none_of_a_former_declaration() {
        let (descriptions, pay, chat) = (Descriptions::default(), business("pay"), business("chat"));
        let keep = |business: &Arc<Business>, base: &str, bytes: usize| {
            let (business, base) = (Arc::clone(business), base.to_owned());
            descriptions.keep(Made { business, base, part: Part::All, text: vec![0; bytes].into() });
        };
        let has = |business: &Arc<Business>, base: &str| descriptions.find(business, base, Part::All).is_some();
        keep(&chat, "ws://a", 1);
        for n in 0..10 {
            keep(&pay, &format!("ws://{n}"), 1);
        }
        assert!(has(&chat, "ws://a") && has(&pay, "ws://9") && !has(&pay, "ws://5") && has(&pay, "ws://6"));
        // The one that was used last stays, whatever names strangers make up.
        for n in 10..40 {
            assert!(has(&pay, "ws://6"));
            keep(&pay, &format!("ws://{n}"), 1);
        }
        keep(&pay, "ws://9", 1);
        assert_eq!(descriptions.find(&pay, "ws://9", Part::Clients), None);
        let changed = business("pay");
        assert!(!has(&changed, "ws://9"));
        keep(&changed, "ws://9", 1);
        assert!(has(&changed, "ws://9") && !has(&pay, "ws://8"));
        for n in 0..4 {
            keep(&changed, &format!("ws://large-{n}"), KEPT_BYTES / 3);
        }
        assert!(has(&changed, "ws://large-3") && !has(&changed, "ws://large-0"), "it makes room for itself");
        assert!(has(&chat, "ws://a"));
    }
}
