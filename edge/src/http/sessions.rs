//! `DELETE /{business}/websocket/sessions?uniqueId=…|connectionId=…|issuedBefore=…`: a service ends sessions of its
//! clients before their time. Answered once the broker has confirmed it: then no restart of any edge forgets it.

use std::sync::Arc;

use axum::{
    extract::{Path, Query, State as Shared, rejection::QueryRejection},
    http::HeaderMap,
    response::{IntoResponse, Response},
};
use serde::Serialize;
use tokio::time::{Instant, timeout};
use wirepost_core::{
    contract::{control::Revocation, edge_config::MAX_SESSION_SECONDS},
    identity,
};

use super::{
    answer::{self, Code, Refusal},
    caller::{self, Credential},
    state::State,
};
use crate::{
    address::ClientAddress,
    broker::PublishError,
    clock,
    config::settings::CONFIRM_TIMEOUT,
    identity::grant,
    push::time_unit::TimeUnit,
    revocation::publish::{By, publish},
};

/// How far the clocks of edges may differ: a session that another edge let in just before counts as before.
const CLOCKS_APART_MS: i64 = 1000;

/// The handler.
pub(super) async fn revoke(
    Shared(state): Shared<Arc<State>>,
    Path(business): Path<String>,
    query: Result<Query<Vec<(String, String)>>, QueryRejection>,
    address: ClientAddress,
    headers: HeaderMap,
) -> Response {
    match end(&state, &business, query, address, &headers).await {
        Ok(revoked) => answer::ok(revoked),
        Err(refusal) => refusal.into_response(),
    }
}

/// The answer's `data`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Revoked {
    issued_before: i64,
}

async fn end(
    state: &State,
    business: &str,
    query: Result<Query<Vec<(String, String)>>, QueryRejection>,
    address: ClientAddress,
    headers: &HeaderMap,
) -> Result<Revoked, Refusal> {
    let business = state.business(business)?;
    if !Credential::of(headers)?.is_service(&business) {
        return Err(caller::unknown_api_key());
    }
    let Query(query) = query.map_err(|_| bad("the query can't be read; percent-encode its values".into()))?;
    let revocation = asked(business.name(), query, clock::now_ms())?;
    let gate = &state.sockets.gate;
    if !gate.hears() {
        let description =
            "the edges of this installation read no streams, so no edge would hear of it: nothing was revoked";
        return Err(Refusal::new(Code::BrokerUnavailable, description));
    }
    if !gate.outbox.may_send(business.name(), By::Service, Instant::now()) {
        return Err(Refusal::overloaded(
            "this business revokes too much one by one; wait, or end all its sessions at once by issuedBefore",
        ));
    }
    let confirmed = match timeout(CONFIRM_TIMEOUT, publish(&*state.broker, &revocation)).await {
        Ok(Ok(confirmed)) => confirmed,
        Ok(Err(_)) => Err(PublishError::Unknown("the edge is stopping".into())),
        Err(_) => Err(PublishError::Unknown("the broker did not answer in time".into())),
    };
    match confirmed {
        Ok(()) => {
            tracing::info!(
                target: "wirepost_edge::audit",
                action = "revoke",
                outcome = "done",
                business = business.name(),
                address = %address.0,
                unique_id = revocation.unique_id,
                session = revocation.session,
                issued_before = revocation.issued_before,
                "audit"
            );
            Ok(Revoked { issued_before: revocation.issued_before })
        }
        Err(error @ PublishError::Unknown(_)) => {
            let description = format!("{error}; it may be in force all the same: repeat the call");
            Err(Refusal::new(Code::ConfirmTimeout, description))
        }
        Err(error) => {
            let description = format!("nothing was revoked: {error}");
            Err(Refusal::new(Code::BrokerUnavailable, description))
        }
    }
}

fn bad(description: String) -> Refusal {
    Refusal::new(Code::BadRequest, description)
}

/// What a query asks for: an identity, a connection's session, or all sessions; issued until now, or before.
fn asked(business: &str, query: Vec<(String, String)>, now: i64) -> Result<Revocation, Refusal> {
    let (mut unique_id, mut connection_id, mut issued_before) = (None, None, None);
    for (name, value) in query {
        let parameter = match name.as_str() {
            "uniqueId" => &mut unique_id,
            "connectionId" => &mut connection_id,
            "issuedBefore" => &mut issued_before,
            // One that was misspelled must not end more than was meant.
            _ => {
                return Err(bad(format!(
                    "there is no parameter {name:?}; give uniqueId, connectionId or issuedBefore"
                )));
            }
        };
        if parameter.replace(value).is_some() {
            return Err(bad(format!("parameter {name} occurs twice")));
        }
    }
    if unique_id.is_none() && connection_id.is_none() && issued_before.is_none() {
        return Err(bad("say whose sessions end: give uniqueId, connectionId or issuedBefore".into()));
    }
    if let Some(unique_id) = &unique_id {
        if connection_id.is_some() {
            return Err(bad("give uniqueId or connectionId, not both".into()));
        }
        let wrong = |defect| Refusal::new(Code::InvalidIdentity, format!("uniqueId {defect}"));
        identity::check(unique_id).map_err(wrong)?;
    }
    let session = connection_id
        .map(|id| grant::session_of(&id).ok_or_else(|| bad("connectionId is none of ours".into())))
        .transpose()?;
    let issued_before = match issued_before {
        Some(text) => time(&text, now)?,
        None => now + CLOCKS_APART_MS,
    };
    // Not what is declared today: a session may be of a time when more was.
    let longest = i64::try_from(MAX_SESSION_SECONDS).unwrap_or(i64::MAX).saturating_mul(1000);
    Ok(Revocation {
        business: business.to_owned(),
        unique_id,
        session: session.map(grant::session_text),
        generation: None,
        issued_before,
        until: issued_before.saturating_add(longest).saturating_add(CLOCKS_APART_MS),
    })
}

fn time(text: &str, now: i64) -> Result<i64, Refusal> {
    let time: i64 =
        text.parse().map_err(|_| bad(format!("issuedBefore must be a time in ms since the epoch, such as {now}")))?;
    if let Some(unit) = TimeUnit::of(time) {
        return Err(bad(format!("issuedBefore {time} is in {unit}; give milliseconds since the epoch, such as {now}")));
    }
    if time > now + CLOCKS_APART_MS {
        return Err(bad(format!("issuedBefore {time} is in the future: it is {now}; sessions to come can't be ended")));
    }
    Ok(time)
}
