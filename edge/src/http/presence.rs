//! `GET /{business}/websocket/presence?uniqueId=…&tag=…&clientType=…`: a service asks which of its clients are connected,
//! on all edges; `POST` with a list of identities: which of them are.
//!
//! An edge that does not answer is named, and the answer says that it is not complete: nobody counts as absent whose
//! edge was not heard.

use std::{collections::HashSet, sync::Arc};

use axum::{
    Extension,
    body::{Body, to_bytes},
    extract::{Path, Query, State as Shared, rejection::QueryRejection},
    http::{HeaderMap, header},
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, timeout};
use wirepost_core::envelope::MAX_IDENTITY;

use super::{
    addresses::Judging,
    answer::{self, Code, Refusal},
    bodies,
    caller::{self, Credential},
    state::State,
};
use crate::{
    budget::{Budget, Full},
    business::Business,
    identity::ticket::MAX_TAGS,
    metrics::label,
    peers::Answer,
    presence::{self, Connection, PageOf, Question},
    push::present::Filter,
};

/// Identities of one GET.
const MAX_NAMED: usize = 100;
/// Identities of one POST.
const MAX_IDENTITIES: usize = 10_000;
/// Largest body of one.
const MAX_BODY: usize = 1 << 20;
/// Identities that cost as much as one question.
const IDENTITIES_PER_UNIT: usize = 1000;
/// Connections of a page: at most, and if nothing is said.
const MAX_PAGE: usize = 500;
const PAGE: usize = 100;

/// The answer's `data`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Presence {
    connections: u64,
    /// Whether every edge has answered.
    complete: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    unique_ids: Option<Vec<OfIdentity>>,
    /// Those of a POST that have a connection, in its order.
    #[serde(skip_serializing_if = "Option::is_none")]
    online: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    list: Option<Vec<Connection>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
    edges: Vec<OfEdge>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct OfIdentity {
    unique_id: String,
    connections: u64,
}

/// One edge.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct OfEdge {
    /// Its name, or its address where that is not known.
    edge: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    instance: Option<String>,
    state: EdgeState,
    #[serde(skip_serializing_if = "Option::is_none")]
    connections: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum EdgeState {
    Answered,
    Gone,
    Unknown,
}

/// The body of a POST.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Named {
    unique_ids: Vec<String>,
    #[serde(default)]
    tags: Vec<String>,
    #[serde(default)]
    client_types: Vec<String>,
}

/// The handler of GET.
pub(super) async fn presence(
    Shared(state): Shared<Arc<State>>,
    Path(business): Path<String>,
    query: Result<Query<Vec<(String, String)>>, QueryRejection>,
    headers: HeaderMap,
) -> Response {
    let answer = async {
        let business = admit(&state, &business, &headers)?;
        let Query(query) = query.map_err(|_| bad("the query can't be read; percent-encode its values".to_owned()))?;
        let question = asked(business.name(), query)?;
        charge(&state, &business, 1)?;
        ask(&state, question, false).await
    };
    answer.await.unwrap_or_else(IntoResponse::into_response)
}

/// The handler of POST.
pub(super) async fn online(
    Shared(state): Shared<Arc<State>>,
    judging: Option<axum::Extension<Judging>>,
    Extension(budget): Extension<Budget>,
    Path(business): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let answer = async {
        let business = admit(&state, &business, &headers)?;
        judging.unwrap_or_default().is_known();
        let announced = headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
        if announced.is_some_and(|length: usize| length > MAX_BODY) {
            return Err(too_large());
        }
        let share = business.config.limits.per_edge;
        let _held =
            budget.take(business.name(), announced.unwrap_or(MAX_BODY), share.memory_bytes).map_err(|full| {
                if full == Full::Business {
                    state.metrics.business_limited.get_or_create(&label("bodies")).inc();
                }
                bodies::refusal(full)
            })?;
        let body = timeout(state.settings.header_timeout, to_bytes(body, MAX_BODY))
            .await
            .map_err(|_| Refusal::new(Code::RequestTimeout, "the body did not arrive in time"))?
            .map_err(|_| too_large())?;
        let filter = named(&body)?;
        charge(&state, &business, 1 + filter.unique_ids.len() / IDENTITIES_PER_UNIT)?;
        ask(&state, Question { business: business.name().to_owned(), filter, page: None }, true).await
    };
    answer.await.unwrap_or_else(IntoResponse::into_response)
}

fn admit(state: &State, business: &str, headers: &HeaderMap) -> Result<Arc<Business>, Refusal> {
    let business = state.business(business)?;
    if Credential::of(headers)?.is_service(&business) { Ok(business) } else { Err(caller::unknown_api_key()) }
}

fn charge(state: &State, business: &Business, units: usize) -> Result<(), Refusal> {
    let Some(hub) = state.catalog.hub(business.name()) else { return Ok(()) };
    hub.share.questions(units, Instant::now()).map_err(|_| {
        Refusal::overloaded("this business asks who is here too often; wait, or ask for many identities in one call")
    })
}

fn bad(description: String) -> Refusal {
    Refusal::new(Code::BadRequest, description)
}

fn too_large() -> Refusal {
    let description = format!("a body may have {MAX_BODY} bytes and {MAX_IDENTITIES} identities; send several calls");
    Refusal::new(Code::TooLarge, description)
}

/// What a query asks for.
fn asked(business: &str, query: Vec<(String, String)>) -> Result<Question, Refusal> {
    let mut filter = Filter::default();
    let (mut list, mut limit, mut after) = (None, None, None);
    for (name, value) in query {
        let single = match name.as_str() {
            "uniqueId" => {
                filter.unique_ids.push(value);
                continue;
            }
            "tag" => {
                filter.tags.push(value);
                continue;
            }
            "clientType" => {
                filter.client_types.push(value);
                continue;
            }
            "list" => &mut list,
            "limit" => &mut limit,
            "after" => &mut after,
            // One that was misspelled would mean everyone.
            _ => {
                return Err(bad(format!(
                    "there is no parameter {name:?}; give uniqueId, tag, clientType, list, limit or after"
                )));
            }
        };
        if single.replace(value).is_some() {
            return Err(bad(format!("parameter {name} occurs twice")));
        }
    }
    if filter.unique_ids.len() > MAX_NAMED {
        return Err(bad(format!("at most {MAX_NAMED} uniqueId are taken; send more of them by POST")));
    }
    let list = match list.as_deref() {
        None | Some("false") => false,
        Some("true") => true,
        Some(_) => return Err(bad("list must be true or false".to_owned())),
    };
    if !list && (limit.is_some() || after.is_some()) {
        return Err(bad("limit and after belong to list=true".to_owned()));
    }
    let limit = limit.map_or(Some(PAGE), |limit| limit.parse().ok().filter(|limit| (1..=MAX_PAGE).contains(limit)));
    let limit = limit.ok_or_else(|| bad(format!("limit must be a number from 1 to {MAX_PAGE}")))?;
    let after = after.map(|after| {
        let id = uuid::Uuid::try_parse(&after).map(|id| id.to_string());
        id.map_err(|_| bad("after must be the next of an earlier answer".to_owned()))
    });
    let page = list.then_some(PageOf { limit, after: after.transpose()?, bytes: None });
    check(&mut filter)?;
    Ok(Question { business: business.to_owned(), filter, page })
}

/// What a body asks for.
fn named(body: &[u8]) -> Result<Filter, Refusal> {
    let form = |error: serde_json::Error| {
        bad(format!(
            "the body must be of the form {{\"uniqueIds\": [\"alice\", …]}}, with tags and clientTypes at will: {error}"
        ))
    };
    let Named { unique_ids, tags, client_types } =
        serde_json::from_slice(wirepost_core::envelope::unmarked(body)).map_err(form)?;
    // Nobody is not everybody.
    if unique_ids.is_empty() {
        return Err(bad("uniqueIds is empty".to_owned()));
    }
    if unique_ids.len() > MAX_IDENTITIES {
        return Err(too_large());
    }
    let mut filter = Filter { unique_ids, tags, client_types };
    check(&mut filter)?;
    Ok(filter)
}

/// Each identity counts once.
fn check(filter: &mut Filter) -> Result<(), Refusal> {
    if filter.tags.len() > MAX_TAGS || filter.client_types.len() > MAX_TAGS {
        return Err(bad(format!("at most {MAX_TAGS} tags and {MAX_TAGS} client types are taken")));
    }
    let texts = [&filter.unique_ids, &filter.tags, &filter.client_types].into_iter().flatten();
    for text in texts {
        if text.is_empty() {
            return Err(bad("an identity, a tag or a client type is empty".to_owned()));
        }
        // Nobody can be called so, and every edge would be asked for it.
        if text.len() > MAX_IDENTITY {
            return Err(bad(format!("an identity, a tag or a client type has more than {MAX_IDENTITY} bytes")));
        }
    }
    let mut seen = HashSet::new();
    filter.unique_ids.retain(|id| seen.insert(id.clone()));
    Ok(())
}

async fn ask(state: &State, question: Question, online: bool) -> Result<Response, Refusal> {
    let busy = |_| Refusal::overloaded("too many questions who is here wait for the other edges; wait");
    let edge = &state.settings.edge;
    let own = presence::look(&state.catalog, edge, &question);
    let (own, others) = tokio::join!(own, state.peers.ask(&question));
    let mut edges = vec![OfEdge::answered(edge.clone(), state.instance.clone(), own.connections)];
    let mut parts = vec![own];
    for answer in others.map_err(busy)? {
        edges.push(match answer {
            Answer::Told(told) => {
                let of = OfEdge::answered(told.edge, told.instance, told.part.connections);
                parts.push(told.part);
                of
            }
            Answer::Gone(name) => OfEdge::silent(name, EdgeState::Gone, None),
            Answer::Unknown(name, why) => OfEdge::silent(name, EdgeState::Unknown, Some(why)),
        });
    }
    edges.sort_by(|one, other| one.edge.cmp(&other.edge));
    let whole = presence::whole(&question, parts);
    let unknown: Vec<&str> =
        edges.iter().filter(|one| one.state == EdgeState::Unknown).map(|one| one.edge.as_str()).collect();
    let complete = unknown.is_empty();
    let note = if complete {
        "ok".to_owned()
    } else {
        format!("not complete: no answer from {}; the numbers are at least these", unknown.join(", "))
    };
    state.metrics.presence.get_or_create(&label(if complete { "complete" } else { "incomplete" })).inc();
    let of_each = question.filter.unique_ids.into_iter().zip(whole.of_identities);
    let (mut unique_ids, mut found) = (None, None);
    if online {
        found = Some(of_each.filter(|(_, connections)| *connections > 0).map(|(id, _)| id).collect());
    } else if of_each.len() > 0 {
        let of_identity = |(unique_id, connections)| OfIdentity { unique_id, connections };
        unique_ids = Some(of_each.map(of_identity).collect());
    }
    Ok(answer::ok_but(
        &note,
        Presence {
            connections: whole.connections,
            complete,
            unique_ids,
            online: found,
            list: question.page.map(|_| whole.page),
            next: whole.next,
            edges,
        },
    ))
}

impl OfEdge {
    fn answered(edge: String, instance: String, connections: u64) -> Self {
        let (instance, connections) = (Some(instance), Some(connections));
        Self { edge, instance, state: EdgeState::Answered, connections, reason: None }
    }

    fn silent(edge: String, state: EdgeState, reason: Option<String>) -> Self {
        Self { edge, instance: None, state, connections: None, reason }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(text: &str) -> Vec<(String, String)> {
        let pair = |pair: &str| pair.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
        text.split('&').filter_map(pair).collect()
    }

    #[test]
    fn a_query_that_could_mean_more_than_was_meant_is_refused() {
        let question =
            asked("pay", pairs("uniqueId=a&uniqueId=b&uniqueId=a&clientType=app&list=true&limit=7")).unwrap();
        assert_eq!((question.filter.unique_ids.len(), question.page.unwrap().limit), (2, 7));
        assert_eq!(asked("pay", Vec::new()).unwrap().page, None);
        for (query, why) in [
            ("uniqueid=a", "there is no parameter \"uniqueid\""),
            ("uniqueId=", "is empty"),
            ("list=yes", "true or false"),
            ("limit=3", "belong to list=true"),
            ("list=true&limit=0", "from 1 to 500"),
            ("list=true&limit=501", "from 1 to 500"),
            ("list=true&after=x", "the next of an earlier answer"),
            ("list=true&list=true", "occurs twice"),
        ] {
            let refusal = asked("pay", pairs(query)).unwrap_err();
            assert!(refusal.code == Code::BadRequest && refusal.description.contains(why), "{query}: {refusal:?}");
        }
        let many = (0..=MAX_NAMED).map(|n| ("uniqueId".to_owned(), n.to_string())).collect();
        assert!(asked("pay", many).is_err());
    }

    #[test]
    fn a_body_names_somebody_and_not_too_many() {
        assert_eq!(named(br#"{"uniqueIds":["a","b"],"tags":["vip"]}"#).unwrap().unique_ids, ["a", "b"]);
        for (body, code) in [
            (r#"{"uniqueIds":[]}"#.to_owned(), Code::BadRequest),
            (r#"["a"]"#.to_owned(), Code::BadRequest),
            (r#"{"uniqueIds":["a"],"tag":["vip"]}"#.to_owned(), Code::BadRequest),
            (r#"{"uniqueIds":[""]}"#.to_owned(), Code::BadRequest),
            (serde_json::json!({"uniqueIds": ["x".repeat(MAX_IDENTITY + 1)]}).to_string(), Code::BadRequest),
            (serde_json::json!({"uniqueIds": vec!["a"; MAX_IDENTITIES + 1]}).to_string(), Code::TooLarge),
        ] {
            assert_eq!(named(body.as_bytes()).unwrap_err().code, code, "{}", &body[..body.len().min(60)]);
        }
    }
}
