//! `GET /{business}/websocket/token`: a client presents its token, or a service its API key and the client's identity;
//! the answer is the URL to connect to, with a ticket in it.

use std::sync::Arc;

use axum::{
    extract::{Path, Query, State as Shared, rejection::QueryRejection},
    http::HeaderMap,
    response::{IntoResponse, Response},
};
use wirepost_core::{envelope::EVERYONE, identity};

use super::{
    answer::{self, Code, Refusal},
    caller::{self, Credential},
    origin::{self, Page},
    public_url::public_url,
    state::State,
};
use crate::{
    business::Business,
    clock,
    config::settings::Settings,
    identity::{
        grant::{self, Grant},
        jwt::JwtError,
        ticket::{self, Purpose, Ticket},
    },
    metrics::label,
};

/// The handler.
pub(super) async fn token(
    Shared(state): Shared<Arc<State>>,
    Path(business): Path<String>,
    query: Result<Query<Vec<(String, String)>>, QueryRejection>,
    headers: HeaderMap,
) -> Response {
    let outcome = issue(&state, &business, query, &headers).await;
    state.metrics.tokens.get_or_create(&label(if outcome.is_ok() { "ok" } else { "refused" })).inc();
    match outcome {
        Ok((url, None)) => answer::ok(url),
        Ok((url, Some(note))) => answer::ok_but(&note, url),
        Err(refusal) => refusal.into_response(),
    }
}

async fn issue(
    state: &State,
    business: &str,
    query: Result<Query<Vec<(String, String)>>, QueryRejection>,
    headers: &HeaderMap,
) -> Result<(String, Option<String>), Refusal> {
    let business = state.business(business)?;
    let Query(query) =
        query.map_err(|_| Refusal::new(Code::BadRequest, "the query can't be read; percent-encode its values"))?;
    let base = public_url(&state.settings, headers)?;
    let query = TokenQuery::parse(query)?;
    let subject = identify(&business, Credential::of(headers)?, query).await?;
    let lacks_tags = subject.lacks_tags.clone();
    // The layer has refused any other.
    let page = origin::judge(state, &business, headers).unwrap_or(Page::Any);
    let ticket = make(&business, &state.settings, subject, page, clock::now_ms())?;
    let note = lacks_tags.map(|claim| without_tags(state, business.name(), &claim));
    Ok((format!("{base}/socket/{}", ticket::seal(&state.keys, &ticket)), note))
}

/// Not every token has groups, so this is not a refusal. But a misnamed claim looks the same, and must not go
/// unnoticed.
fn without_tags(state: &State, business: &str, claim: &str) -> String {
    state.metrics.tokens_without_tags.inc();
    if let Some(left_out) = state.log_throttle.permit("tags", business) {
        tracing::info!(business, claim, left_out, "a token lacks the declared tags claim; its session has no tags");
    }
    format!("ok; the token has no claim {claim}, so the session has no tags")
}

/// Parameters of the call.
#[derive(Debug, Default)]
struct TokenQuery {
    unique_id: Option<String>,
    client_type: Option<String>,
    tags: Vec<String>,
}

impl TokenQuery {
    /// `uniqueId` and `clientType` once at most, `tags` with commas or repeated; other parameters are ignored.
    fn parse(query: Vec<(String, String)>) -> Result<Self, Refusal> {
        let mut parsed = Self::default();
        for (name, value) in query {
            let single = match name.as_str() {
                "uniqueId" => &mut parsed.unique_id,
                "clientType" => &mut parsed.client_type,
                "tags" => {
                    parsed
                        .tags
                        .extend(value.split(',').map(str::trim).filter(|tag| !tag.is_empty()).map(str::to_owned));
                    continue;
                }
                _ => continue,
            };
            if single.replace(value).is_some() {
                return Err(Refusal::new(Code::BadRequest, format!("parameter {name} occurs twice")));
            }
        }
        Ok(parsed)
    }
}

/// Whose ticket it becomes.
#[derive(Debug)]
struct Subject {
    unique_id: String,
    client_type: String,
    tags: Vec<String>,
    /// See [`crate::identity::jwt::Identity`].
    lacks_tags: Option<String>,
    /// Of the presented token, ms since the epoch.
    expires_at: Option<i64>,
    /// What was presented, as grants name it.
    credential: u64,
}

async fn identify(business: &Business, credential: Credential<'_>, query: TokenQuery) -> Result<Subject, Refusal> {
    if credential.is_service(business) {
        let TokenQuery { unique_id, client_type, tags } = query;
        let missing = |name| Refusal::new(Code::InvalidIdentity, format!("parameter {name} is missing"));
        return Ok(Subject {
            unique_id: unique_id.ok_or_else(|| missing("uniqueId"))?,
            client_type: client_type.ok_or_else(|| missing("clientType"))?,
            tags,
            lacks_tags: None,
            expires_at: None,
            credential: credential.digest(),
        });
    }
    let (Credential::Bearer(token), Some(verifier)) = (credential, &business.jwt) else {
        return Err(caller::unknown_api_key());
    };
    let identity = verifier.verify(token, query.client_type.as_deref()).await.map_err(|error| match error {
        JwtError::KeysNotLoaded(_) => Refusal::new(Code::IssuerUnavailable, error.to_string()),
        // An API key is not a JWT either; the description must help both callers.
        JwtError::Malformed(_) => {
            Refusal::unauthorized(format!("{error}; nor is it a current API key of this business"))
        }
        JwtError::NoClientType | JwtError::ClientTypeMismatch | JwtError::ClientTypeNotListed(_) => {
            Refusal::new(Code::InvalidIdentity, error.to_string())
        }
        _ => Refusal::unauthorized(error.to_string()),
    })?;
    if query.unique_id.is_some_and(|query| query != identity.unique_id) || !query.tags.is_empty() {
        return Err(Refusal::new(
            Code::InvalidIdentity,
            "identity and tags of a client come from its token; leave uniqueId and tags out, or call with an API key",
        ));
    }
    Ok(Subject {
        unique_id: identity.unique_id,
        client_type: identity.client_type,
        tags: identity.tags,
        lacks_tags: identity.lacks_tags,
        expires_at: Some(identity.expires_at),
        credential: business.config.auth.jwt.as_ref().map_or(0, |jwt| grant::issuer(&jwt.issuer)),
    })
}

fn make(
    business: &Business,
    settings: &Settings,
    subject: Subject,
    page: Page<'_>,
    now: i64,
) -> Result<Ticket, Refusal> {
    let Subject { unique_id, client_type, mut tags, lacks_tags: _, expires_at, credential } = subject;
    let refuse = |reason: String| Refusal::new(Code::InvalidIdentity, reason);
    check_text("uniqueId", &unique_id).map_err(refuse)?;
    if unique_id == EVERYONE {
        return Err(refuse("uniqueId * addresses everyone and can't be anybody's".into()));
    }
    check_text("clientType", &client_type).map_err(refuse)?;
    if !business.config.client_types.contains(&client_type) {
        return Err(refuse(format!(
            "clientType {client_type:?} is not declared; declared are {}",
            business.config.client_types.join(", ")
        )));
    }
    tags.retain(|tag| !tag.is_empty());
    tags.sort_unstable();
    tags.dedup();
    for tag in &tags {
        check_text("a tag", tag).map_err(refuse)?;
    }
    let session = i64::try_from(business.config.session_max_seconds).unwrap_or(i64::MAX).saturating_mul(1000);
    let session_ends_at = now.saturating_add(session).min(expires_at.unwrap_or(i64::MAX));
    let lifetime = i64::try_from(settings.ticket_ttl.as_millis()).unwrap_or(i64::MAX);
    let ticket = Ticket {
        purpose: Purpose::Connect,
        business: business.name().to_owned(),
        unique_id,
        client_type,
        tags,
        session_ends_at,
        expires_at: now.saturating_add(lifetime).min(session_ends_at),
        id: rand::random(),
        grant: Grant::new(now, credential, page.digest()),
    };
    ticket.check_size().map_err(|error| refuse(error.to_string()))?;
    Ok(ticket)
}

fn check_text(what: &str, text: &str) -> Result<(), String> {
    identity::check(text).map_err(|defect| format!("{what} {defect}"))
}
