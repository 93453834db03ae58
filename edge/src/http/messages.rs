//! `POST /{business}/websocket/messages`: a service pushes an envelope, or an array of them, and gets the broker's
//! answer for each.
//!
//! *Status*: the status of the items if all have the same result (200 if all succeed), otherwise 207 with a result for
//! each. *Order*: items are published in order. *A retry* after `mayHaveArrived` must carry the same `id`, which the
//! answer always contains.

use std::sync::Arc;

use axum::{
    Extension,
    body::{Body, BodyDataStream},
    extract::{Path, State as Shared},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use serde::Serialize;
use serde_json::value::RawValue;
use tokio::time::{Instant, timeout_at};
use wirepost_core::{
    Envelope,
    contract::headers,
    envelope::{AtMost, MAX_BATCH, unmarked},
};

use super::{
    addresses::Judging,
    answer::{self, Code, Refusal},
    bodies,
    caller::{self, Credential},
    state::State,
};
use crate::{
    broker::{Confirm, PublishError},
    budget::{Budget, Full},
    business::{Business, check_pool::Busy, share::Beyond},
    clock,
    config::settings::CONFIRM_TIMEOUT,
    metrics::label,
    push::{
        across,
        check::{Prepared, PushRefusal, check_push},
        rejection::Rejection,
    },
};

/// Largest body, unless one `pushBytes` is larger.
const MAX_BODY: usize = 8 << 20;
/// Bytes of a larger one that are read before it is refused.
const MAX_DISCARDED: usize = 64 << 20;
/// Room above `pushBytes` for white space that is not published.
const BODY_ROOM: usize = 64 << 10;
/// Additional time for confirms for each further item of a batch: they wait in one lane.
const CONFIRM_PER_ITEM: std::time::Duration = std::time::Duration::from_millis(20);
/// `result` if the items' results differ.
const MIXED: u32 = 20_700;

/// The handler.
pub(super) async fn messages(
    Shared(state): Shared<Arc<State>>,
    Extension(budget): Extension<Budget>,
    judging: Option<Extension<Judging>>,
    Path(business): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let Extension(judging) = judging.unwrap_or_default();
    match push(&state, &budget, &judging, &business, &headers, body).await {
        Ok(results) => results,
        Err(refusal) => refusal.into_response(),
    }
}

async fn push(
    state: &State,
    budget: &Budget,
    judging: &Judging,
    business: &str,
    headers: &HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    let business = state.business(business)?;
    if !Credential::of(headers)?.is_service(&business) {
        return Err(caller::unknown_api_key());
    }
    judging.is_known();
    let limit = MAX_BODY.max(business.config.limits.push_bytes + BODY_ROOM);
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
    let body = body.into_data_stream();
    if announced.is_some_and(|length| length > limit) {
        let _ = tokio::time::timeout(state.settings.header_timeout, discard(body)).await;
        return Err(too_large(limit));
    }
    let share = business.config.limits.per_edge;
    let _held = budget.take(business.name(), announced.unwrap_or(limit), share.memory_bytes).map_err(|full| {
        if full == Full::Business {
            state.metrics.business_limited.get_or_create(&label("bodies")).inc();
        }
        bodies::refusal(full)
    })?;
    let body = tokio::time::timeout(state.settings.header_timeout, read(body, announced.unwrap_or(0), limit))
        .await
        .map_err(|_| Refusal::new(Code::RequestTimeout, "the body did not arrive in time"))??;
    let traceparent = traceparent(headers);
    let body = unmarked(&body);
    let single = body.iter().find(|byte| !byte.is_ascii_whitespace()) != Some(&b'[');
    if single {
        charge(state, &business, 1, body.len())?;
        let until = Until { checks: Instant::now() + CONFIRM_TIMEOUT, confirms: None };
        let pending = start(state, rand::random(), &business, body, traceparent, until).await;
        return Ok(single_answer(&pending.outcome(Instant::now() + CONFIRM_TIMEOUT).await));
    }
    let AtMost { items, more } = AtMost::<&RawValue, MAX_BATCH>::of(body).map_err(|error| {
        Refusal::new(Code::InvalidEnvelope, format!("the body is not a JSON array of envelopes: {error}"))
    })?;
    if items.is_empty() {
        return Err(Refusal::new(Code::BadRequest, "the array is empty"));
    }
    if more > 0 {
        let count = items.len() + more;
        let description = format!("{count} messages in one call, at most {MAX_BATCH} are taken; send several calls");
        return Err(Refusal::new(Code::TooLarge, description));
    }
    charge(state, &business, items.len(), body.len())?;
    let mut deadline = Instant::now() + CONFIRM_TIMEOUT + CONFIRM_PER_ITEM * items.len() as u32;
    // One lane keeps their order; a random lane spreads calls over all lanes.
    let lane = rand::random();
    let checks_until = Instant::now() + CONFIRM_TIMEOUT;
    let mut pending = Vec::with_capacity(items.len());
    for item in &items {
        // Checks may have taken long.
        deadline = deadline.max(Instant::now() + CONFIRM_TIMEOUT);
        let until = Until { checks: checks_until, confirms: Some(deadline) };
        pending.push(start(state, lane, &business, item.get().as_bytes(), traceparent, until).await);
        // Each check may have taken a while.
        tokio::task::yield_now().await;
    }
    let deadline = deadline.max(Instant::now() + CONFIRM_TIMEOUT);
    let mut results = Vec::with_capacity(pending.len());
    for one in pending {
        results.push(one.outcome(deadline).await);
    }
    Ok(batch_answer(&results))
}

/// Charges the business for pushes of so many bytes in all.
fn charge(state: &State, business: &Business, count: usize, bytes: usize) -> Result<(), Refusal> {
    let Some(hub) = state.catalog.hub(business.name()) else { return Ok(()) };
    hub.share.pushes(count, bytes, &business.config.limits.per_edge, Instant::now()).map_err(|Beyond { unit, wait }| {
        let ms = wait.as_millis();
        let description =
            format!("this business pushes more {unit} to this edge than it may in a second, wait {ms} ms");
        Refusal::overloaded(description).after(wait)
    })
}

/// Charges it for a push that the broker stores once for each business that takes it.
fn charge_copies(state: &State, business: &Business, prepared: &Prepared) {
    let copies = prepared.businesses.iter().filter(|(_, verdict)| verdict.is_ok()).count();
    if copies > 1
        && let Some(hub) = state.catalog.hub(business.name())
    {
        let besides = (copies - 1) * prepared.publication.body.len();
        hub.share.push_copies(besides, &business.config.limits.per_edge, Instant::now());
    }
}

fn too_large(limit: usize) -> Refusal {
    Refusal::new(Code::TooLarge, format!("the body is larger than {limit} bytes; send several calls"))
}

/// Reads and discards the rest, up to a bound: answering and closing while the caller still writes would reset the
/// connection, and the caller would see that instead of the answer.
async fn discard(mut parts: BodyDataStream) {
    let mut left = MAX_DISCARDED;
    while left > 0
        && let Some(Ok(part)) = parts.next().await
    {
        left = left.saturating_sub(part.len());
    }
}

async fn read(mut parts: BodyDataStream, announced: usize, limit: usize) -> Result<Bytes, Refusal> {
    let mut whole = BytesMut::with_capacity(announced.min(limit));
    while let Some(part) = parts.next().await {
        let part = part.map_err(|error| Refusal::new(Code::BadRequest, format!("the body broke off: {error}")))?;
        if whole.len() + part.len() > limit {
            drop(whole);
            discard(parts).await;
            return Err(too_large(limit));
        }
        whole.extend_from_slice(&part);
    }
    Ok(whole.freeze())
}

/// W3C trace context, if it is well formed (55 characters in version 00); anything else would become a header of the
/// broker's message.
fn traceparent(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(headers::TRACEPARENT)?.to_str().ok()?;
    let well_formed = value.len() == 55 && value.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
    well_formed.then_some(value)
}

/// An item: refused, or being published.
struct Pending {
    id: Option<String>,
    confirm: Result<Confirm, PushRefusal>,
    /// See [`Prepared::businesses`].
    businesses: Vec<(String, Result<(), PushRefusal>)>,
}

impl Pending {
    fn refused(id: Option<String>, refusal: PushRefusal) -> Self {
        Self { id, confirm: Err(refusal), businesses: Vec::new() }
    }
}

/// How long a call waits for what.
#[derive(Clone, Copy, Debug)]
struct Until {
    checks: Instant,
    /// `None`: the usual time.
    confirms: Option<Instant>,
}

async fn start(
    state: &State,
    lane: u64,
    business: &Arc<Business>,
    item: &[u8],
    traceparent: Option<&str>,
    until: Until,
) -> Pending {
    let envelope = match Envelope::parse(item) {
        Ok(envelope) => envelope,
        Err(error) => return Pending::refused(Envelope::readable_id(item).map(Into::into), error.into()),
    };
    let id = envelope.id.as_deref().map(str::to_owned);
    let heavy = across::is_heavy(business, &envelope);
    let checked = if !heavy {
        check_push(business, envelope, clock::now_ms())
    } else if Instant::now() < until.checks {
        check_heavy(state, business, item).await
    } else {
        // The caller is waiting: items after many long checks must be sent again.
        Err(Busy.into())
    };
    match checked {
        Err(refusal) => Pending::refused(id, refusal),
        Ok(mut prepared) => {
            prepared
                .publication
                .headers
                .extend(traceparent.map(|value| (headers::TRACEPARENT.into(), value.to_owned())));
            charge_copies(state, business, &prepared);
            let (broker, publication) = (&state.broker, prepared.publication);
            let confirm = match until.confirms {
                None => broker.publish(lane, publication),
                Some(deadline) => broker.publish_by(lane, publication, deadline),
            };
            Pending { id: Some(prepared.id), confirm: Ok(confirm), businesses: prepared.businesses }
        }
    }
}

/// The same check off the threads that serve sockets.
async fn check_heavy(state: &State, business: &Arc<Business>, item: &[u8]) -> Result<Prepared, PushRefusal> {
    let item = Bytes::copy_from_slice(item);
    let name = Arc::clone(&business.push_exchange);
    let business = Arc::clone(business);
    let bytes = item.len();
    let check = move || check_push(&business, Envelope::parse(&item)?, clock::now_ms());
    state.checks.run(&name, bytes, check).await?
}

impl Pending {
    async fn outcome(self, deadline: Instant) -> Outcome {
        let Self { id, confirm, businesses } = self;
        let (published, businesses) = match confirm {
            Err(PushRefusal::ByAll(refusals)) => {
                (Verdict::ok(), refusals.into_iter().map(|(business, why)| (business, Err(why))).collect())
            }
            Err(refusal) => (Verdict::refused(&refusal), businesses),
            Ok(confirm) => (Verdict::of_broker(confirm, deadline).await, businesses),
        };
        // One publish for all that take it, and one confirm.
        let of_each = businesses.into_iter().map(|(business, verdict)| {
            let verdict = verdict.map_or_else(|refusal| Verdict::refused(&refusal), |()| published.clone());
            BusinessOutcome { business, verdict: verdict.shown(), code: verdict.code }
        });
        let businesses = of_each.collect();
        Outcome::new(id, &published, businesses)
    }
}

/// What became of a message, as far as one business is concerned.
#[derive(Clone, Debug)]
struct Verdict {
    code: Option<Code>,
    description: String,
    field: Option<&'static str>,
}

impl Verdict {
    fn ok() -> Self {
        Self { code: None, description: "ok".to_owned(), field: None }
    }

    fn refused(refusal: &PushRefusal) -> Self {
        Self { code: Some(code(refusal)), description: refusal.to_string(), field: refusal.field() }
    }

    async fn of_broker(confirm: Confirm, deadline: Instant) -> Self {
        let answer = match timeout_at(deadline, confirm).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(PublishError::Unknown("the edge is stopping".into())),
            Err(_) => Err(PublishError::Unknown("the broker did not answer in time".into())),
        };
        let Err(error) = answer else { return Self::ok() };
        let code = match error {
            PublishError::Unavailable(_)
            | PublishError::Overloaded { .. }
            | PublishError::Refused(_)
            | PublishError::Unrouted(_) => Code::BrokerUnavailable,
            PublishError::Unknown(_) => Code::ConfirmTimeout,
        };
        Self { code: Some(code), description: error.to_string(), field: None }
    }

    fn shown(&self) -> Shown {
        Shown {
            result: self.code.map_or(0, Code::number),
            description: self.description.clone(),
            field: self.field,
            retryable: self.code.is_some_and(Code::retryable),
            may_have_arrived: self.code == Some(Code::ConfirmTimeout),
        }
    }
}

fn code(refusal: &PushRefusal) -> Code {
    match refusal {
        PushRefusal::Envelope(_)
        | PushRefusal::NoMessageType
        | PushRefusal::Direction
        | PushRefusal::Rejected(Rejection::Invalid(_) | Rejection::Unreadable(_) | Rejection::OtherBusiness(_)) => {
            Code::InvalidEnvelope
        }
        PushRefusal::Rejected(Rejection::TooLarge { .. }) => Code::TooLarge,
        PushRefusal::Rejected(Rejection::UnknownRoute(_)) => Code::UnknownRoute,
        PushRefusal::Rejected(Rejection::Nobody) => Code::NoAudience,
        PushRefusal::Rejected(Rejection::EveryoneNotAllowed | Rejection::ClientType(_) | Rejection::Reserved(_)) => {
            Code::NotAllowed
        }
        PushRefusal::Rejected(Rejection::Expired { .. }) => Code::Expired,
        PushRefusal::Rejected(Rejection::SchemaMismatch(_)) => Code::SchemaMismatch,
        PushRefusal::Rejected(Rejection::TooComplex) => Code::TooComplex,
        PushRefusal::Rejected(
            Rejection::NotAccepted { .. } | Rejection::NoRouteThere { .. } | Rejection::NotCopied { .. },
        )
        | PushRefusal::ByAll(_) => Code::NotAccepted,
        PushRefusal::NotHere(_) => Code::BusinessNotHere,
        PushRefusal::Busy(_) => Code::Overloaded,
    }
}

/// The result of one item.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Outcome {
    /// Absent if it could not be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    #[serde(flatten)]
    verdict: Shown,
    /// Of each business that it names.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    businesses: Vec<BusinessOutcome>,
    /// The first error.
    #[serde(skip)]
    code: Option<Code>,
}

/// The result of an item at one of the businesses that it names.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct BusinessOutcome {
    business: String,
    #[serde(flatten)]
    verdict: Shown,
    #[serde(skip)]
    code: Option<Code>,
}

/// A [`Verdict`] for the caller.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Shown {
    result: u32,
    description: String,
    /// The field at fault.
    #[serde(skip_serializing_if = "Option::is_none")]
    field: Option<&'static str>,
    retryable: bool,
    may_have_arrived: bool,
}

impl Outcome {
    /// `verdict`: of a message that names no business. The result of one that does is that of each, where they are the
    /// same.
    fn new(id: Option<String>, verdict: &Verdict, businesses: Vec<BusinessOutcome>) -> Self {
        let Some(first) = businesses.first() else {
            return Self { id, verdict: verdict.shown(), businesses, code: verdict.code };
        };
        let code = businesses.iter().find_map(|business| business.code);
        let same = businesses.iter().all(|business| business.code == first.code);
        let not_taking = businesses.iter().filter(|business| business.code.is_some()).count();
        let description = match not_taking {
            0 => "ok".to_owned(),
            _ => format!("{not_taking} of {} businesses did not take it, see businesses", businesses.len()),
        };
        let verdict = Shown {
            result: if same { first.verdict.result } else { MIXED },
            description,
            field: if same { first.verdict.field } else { Some("businesses") },
            retryable: businesses.iter().any(|business| business.verdict.retryable),
            may_have_arrived: businesses.iter().any(|business| business.verdict.may_have_arrived),
        };
        Self { id, verdict, businesses, code }
    }

    fn status(&self) -> StatusCode {
        if self.verdict.result == MIXED {
            return StatusCode::MULTI_STATUS;
        }
        self.code.map_or(StatusCode::OK, Code::status)
    }
}

fn single_answer(outcome: &Outcome) -> Response {
    let Shown { result, description, .. } = &outcome.verdict;
    let body = answer::Body { result: *result, description, data: Some(outcome) };
    finish(answer::answer(outcome.status(), &body), std::slice::from_ref(outcome))
}

fn batch_answer(outcomes: &[Outcome]) -> Response {
    let failed = outcomes.iter().filter(|outcome| outcome.code.is_some()).count();
    // One comparison for both: a result begins with its status.
    let (status, result) = match outcomes {
        [first, rest @ ..] if rest.iter().all(|other| other.verdict.result == first.verdict.result) => {
            (first.status(), first.verdict.result)
        }
        _ => (StatusCode::MULTI_STATUS, MIXED),
    };
    let description = match failed {
        0 => "ok".to_owned(),
        _ => format!("{failed} of {} messages were not taken, see data", outcomes.len()),
    };
    let body = answer::Body { result, description: &description, data: Some(outcomes) };
    finish(answer::answer(status, &body), outcomes)
}

fn finish(mut response: Response, outcomes: &[Outcome]) -> Response {
    if outcomes.iter().any(|outcome| outcome.verdict.retryable) {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("2"));
    }
    if let Some(code) = outcomes.iter().find_map(|outcome| outcome.code) {
        response.extensions_mut().insert(code);
    }
    response
}
