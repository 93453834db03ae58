//! The form of every answer: `{"result": 0, "description": "ok", "data": …}`, and the closed table of errors.

use std::{borrow::Cow, time::Duration};

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;

use crate::catalog::Absent;

/// An error. Its number is the HTTP status followed by two digits; it keeps its meaning forever.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Code {
    /// A parameter, a header or the body can't be read.
    BadRequest,
    /// The body (or an item of it) is not an envelope, or a field of it is wrong.
    InvalidEnvelope,
    /// The envelope names no recipient.
    NoAudience,
    /// No declared route takes the message type.
    UnknownRoute,
    /// The route does not allow this audience or client type.
    NotAllowed,
    /// `content` does not match the route's schema.
    SchemaMismatch,
    /// The message has expired.
    Expired,
    /// The requested identity, client type or tags are not possible.
    InvalidIdentity,
    /// Neither a bearer token nor an API key was sent.
    NoCredential,
    /// A token or ticket was refused.
    InvalidToken,
    /// The API key is unknown or has expired.
    UnknownApiKey,
    /// The browser's origin is not among `allowedOrigins`.
    Origin,
    /// Another business does not accept the message.
    NotAccepted,
    /// There is no such path.
    NotFound,
    /// No such business on this edge.
    UnknownBusiness,
    /// The path has no such method.
    MethodNotAllowed,
    /// The request did not arrive in time.
    RequestTimeout,
    /// The message or the batch is too large.
    TooLarge,
    /// To check `content` against the route's schema would take too long.
    TooComplex,
    /// The path of the socket, requested without a WebSocket upgrade.
    UpgradeRequired,
    /// The request's header is too large.
    HeaderTooLarge,
    /// The broker is unreachable or blocked, or refused the message.
    BrokerUnavailable,
    /// This edge has reached a limit of its own.
    Overloaded,
    /// The issuer's key set could not be fetched yet.
    IssuerUnavailable,
    /// This edge has no configuration of the business, and another edge may have it.
    BusinessNotHere,
    /// No confirm came in time: the message may have arrived.
    ConfirmTimeout,
}

impl Code {
    /// Every code, for documentation and tests.
    pub const ALL: [Self; 26] = [
        Self::BadRequest,
        Self::InvalidEnvelope,
        Self::NoAudience,
        Self::UnknownRoute,
        Self::NotAllowed,
        Self::SchemaMismatch,
        Self::Expired,
        Self::InvalidIdentity,
        Self::NoCredential,
        Self::InvalidToken,
        Self::UnknownApiKey,
        Self::Origin,
        Self::NotAccepted,
        Self::NotFound,
        Self::UnknownBusiness,
        Self::MethodNotAllowed,
        Self::RequestTimeout,
        Self::TooLarge,
        Self::TooComplex,
        Self::UpgradeRequired,
        Self::HeaderTooLarge,
        Self::BrokerUnavailable,
        Self::Overloaded,
        Self::IssuerUnavailable,
        Self::BusinessNotHere,
        Self::ConfirmTimeout,
    ];

    /// `result` of the answer.
    pub fn number(self) -> u32 {
        match self {
            Self::BadRequest => 40_001,
            Self::InvalidEnvelope => 40_002,
            Self::NoAudience => 40_003,
            Self::UnknownRoute => 40_004,
            Self::NotAllowed => 40_005,
            Self::SchemaMismatch => 40_006,
            Self::Expired => 40_007,
            Self::InvalidIdentity => 40_008,
            Self::NoCredential => 40_101,
            Self::InvalidToken => 40_102,
            Self::UnknownApiKey => 40_103,
            Self::Origin => 40_301,
            Self::NotAccepted => 40_302,
            Self::NotFound => 40_401,
            Self::UnknownBusiness => 40_402,
            Self::MethodNotAllowed => 40_501,
            Self::RequestTimeout => 40_801,
            Self::TooLarge => 41_301,
            Self::TooComplex => 41_302,
            Self::UpgradeRequired => 42_601,
            Self::HeaderTooLarge => 43_101,
            Self::BrokerUnavailable => 50_301,
            Self::Overloaded => 50_302,
            Self::IssuerUnavailable => 50_303,
            Self::BusinessNotHere => 50_304,
            Self::ConfirmTimeout => 50_401,
        }
    }

    /// HTTP status.
    pub fn status(self) -> StatusCode {
        #[expect(clippy::expect_used)]
        u16::try_from(self.number() / 100)
            .ok()
            .and_then(|status| StatusCode::from_u16(status).ok())
            .expect("every number begins with an HTTP status, see the test")
    }

    /// Label in metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::BadRequest => "bad_request",
            Self::InvalidEnvelope => "invalid_envelope",
            Self::NoAudience => "no_audience",
            Self::UnknownRoute => "unknown_route",
            Self::NotAllowed => "not_allowed",
            Self::SchemaMismatch => "schema_mismatch",
            Self::Expired => "expired",
            Self::InvalidIdentity => "invalid_identity",
            Self::NoCredential | Self::InvalidToken | Self::UnknownApiKey => "unauthorized",
            Self::Origin => "origin",
            Self::NotAccepted => "not_accepted",
            Self::NotFound => "not_found",
            Self::UnknownBusiness => "unknown_business",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::RequestTimeout => "request_timeout",
            Self::TooLarge => "too_large",
            Self::TooComplex => "too_complex",
            Self::UpgradeRequired => "upgrade_required",
            Self::HeaderTooLarge => "header_too_large",
            Self::BrokerUnavailable => "broker_unavailable",
            Self::Overloaded => "overloaded",
            Self::IssuerUnavailable => "issuer_unavailable",
            Self::BusinessNotHere => "business_not_here",
            Self::ConfirmTimeout => "confirm_timeout",
        }
    }

    /// Whether a caller is refused like this who has shown nothing, or something wrong.
    pub fn is_of_a_stranger(self) -> bool {
        matches!(
            self,
            Self::NoCredential
                | Self::InvalidToken
                | Self::UnknownApiKey
                | Self::Origin
                | Self::NotFound
                | Self::UnknownBusiness
                | Self::HeaderTooLarge
        )
    }

    /// Whether the same request may pass later.
    pub fn retryable(self) -> bool {
        self.status().is_server_error() || self == Self::RequestTimeout
    }
}

/// Seconds in `Retry-After` if nothing better is known.
const RETRY_AFTER: u32 = 2;

/// A refusal: a code and a description. The description never contains a credential.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The error.
    pub code: Code,
    /// What failed and what to do.
    pub description: Cow<'static, str>,
    /// Seconds in `Retry-After`, if the same request may pass later.
    pub retry_after: u32,
}

impl Refusal {
    /// A refusal.
    pub fn new(code: Code, description: impl Into<Cow<'static, str>>) -> Self {
        Self { code, description: description.into(), retry_after: RETRY_AFTER }
    }

    /// A token or ticket was refused.
    pub fn unauthorized(description: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Code::InvalidToken, description)
    }

    /// This edge has reached a limit of its own.
    pub fn overloaded(description: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Code::Overloaded, description)
    }

    /// With the time after which the same request may pass, if it is longer than the usual one.
    #[must_use]
    pub fn after(mut self, wait: Duration) -> Self {
        self.retry_after = u32::try_from(wait.as_secs() + 1).unwrap_or(u32::MAX).max(RETRY_AFTER);
        self
    }

    /// The request's header is larger than any legitimate one.
    pub fn header_too_large() -> Self {
        Self::new(
            Code::HeaderTooLarge,
            "the request's header is larger than 32 KiB; send fewer cookies, or a smaller token",
        )
    }

    /// The business is not served here, perhaps permanently.
    pub fn absent(name: &str, why: Absent) -> Self {
        let shown: String = name.chars().take(64).collect();
        match why {
            Absent::NotYet => Self::not_here(name),
            Absent::Removed => Self::new(
                Code::UnknownBusiness,
                format!("business {shown:?} was removed; come back later, in case it returns"),
            ),
            Absent::Unknown => Self::new(
                Code::UnknownBusiness,
                format!("business {shown:?} is not served here; check the path and that its WsBusiness is Ready"),
            ),
        }
    }

    /// This edge has no configuration of the business, and another edge may have it.
    pub fn not_here(name: &str) -> Self {
        let shown: String = name.chars().take(64).collect();
        Self::new(
            Code::BusinessNotHere,
            format!("this edge has no configuration of business {shown:?} yet, another one may; try again"),
        )
    }

    /// For the layers that count refusals and write them down, also where the answer is another one.
    pub(super) fn note(self, response: &mut Response) {
        response.extensions_mut().insert(self.code);
        response.extensions_mut().insert(self);
    }

    /// The page's origin is not allowed.
    pub fn origin() -> Self {
        Self::new(
            Code::Origin,
            "this page's or app's origin is not among the business's allowedOrigins; the edge's log names it",
        )
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let body = Body::<()> { result: self.code.number(), description: &self.description, data: None };
        let mut response = answer(self.code.status(), &body);
        if self.code.retryable() {
            response.headers_mut().insert(header::RETRY_AFTER, self.retry_after.into());
        }
        if self.code.status() == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if self.code == Code::UpgradeRequired {
            // What would be accepted: RFC 9110, section 15.5.22, and RFC 6455, section 4.4.
            let headers = response.headers_mut();
            headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
            headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
            headers.insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
        }
        self.note(&mut response);
        response
    }
}

/// The form of every answer.
#[derive(Debug, Serialize)]
pub struct Body<'a, T> {
    /// 0, or [`Code::number`].
    pub result: u32,
    /// An explanation.
    pub description: &'a str,
    /// What was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<T>,
}

/// A successful answer.
pub fn ok<T: Serialize>(data: T) -> Response {
    ok_but("ok", data)
}

/// [`ok()`], with a note for the caller.
pub fn ok_but<T: Serialize>(note: &str, data: T) -> Response {
    answer(StatusCode::OK, &Body { result: 0, description: note, data: Some(data) })
}

/// Any answer. Answers are never cached: most contain a token or describe a moment.
pub fn answer<T: Serialize>(status: StatusCode, body: &Body<'_, T>) -> Response {
    let mut response = (status, Json(body)).into_response();
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_number_is_unique_and_begins_with_its_status() {
        let numbers: HashSet<_> = Code::ALL.iter().map(|code| code.number()).collect();
        assert_eq!(numbers.len(), Code::ALL.len());
        for code in Code::ALL {
            assert!(code.status().is_client_error() || code.status().is_server_error(), "{code:?}");
        }
    }

    #[test]
    fn a_refusal_says_when_to_retry() {
        let response = Refusal::overloaded("full").into_response();
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(response.headers()[header::RETRY_AFTER], "2");
        assert_eq!(response.headers()[header::CACHE_CONTROL], "no-store");
    }
}
