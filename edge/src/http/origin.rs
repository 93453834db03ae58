//! Browsers: which pages may call, by the business's `allowedOrigins` (the CORS protocol of the Fetch standard). It
//! protects users of browsers, not the edge: programs send no Origin and are checked by their credential alone.

use std::{net::IpAddr, sync::Arc};

use axum::{
    extract::{RawPathParams, Request, State as Shared},
    http::{HeaderMap, HeaderValue, Method, StatusCode, header, uri::Authority},
    middleware::Next,
    response::{IntoResponse, Response},
};

use wirepost_core::{origin::Origin, public_url::PublicUrl};

use super::{answer::Refusal, state::State};
use crate::{business::Business, identity::grant};

/// How long browsers may remember a preflight, in seconds.
const MAX_AGE: u32 = 600;
/// Characters of a foreign origin that are written to the log.
const MAX_TOLD: usize = 200;

/// An Origin header that is allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Page<'a> {
    /// There is none, or it is the edge's own address.
    Any,
    /// Of an origin that the business allows.
    Declared(&'a str),
}

impl Page<'_> {
    /// As grants name it.
    pub fn digest(self) -> u64 {
        match self {
            Self::Any => 0,
            Self::Declared(origin) => grant::origin(origin.as_bytes()),
        }
    }
}

/// Judges a request's Origin header. Allowed is none, an allowed origin, and the edge's own address: React Native on
/// Android sends that, and a page of the edge's own host needs no permission. `None`: it is not allowed.
///
/// The caller counts a refusal, and logs it ([`tell`]).
pub fn judge<'a>(state: &State, business: &Business, headers: &'a HeaderMap) -> Option<Page<'a>> {
    let Some(origin) = headers.get(header::ORIGIN) else { return Some(Page::Any) };
    let public = state.settings.public_url.as_ref();
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let host = host.filter(|host| state.settings.trust_host_names || is_address(host));
    // Every origin is ASCII; other bytes match none.
    let origin = origin.to_str().ok()?;
    if business.allows_origin(origin) {
        return Some(Page::Declared(origin));
    }
    is_own(origin, public, host).then_some(Page::Any)
}

/// Logs a refused Origin header, since neither a browser nor an app shows its developer which origin it sent.
pub fn tell(state: &State, business: &Business, headers: &HeaderMap) {
    let Some(origin) = headers.get(header::ORIGIN) else { return };
    let business = business.name();
    if let Some(left_out) = state.log_throttle.permit("origin", business) {
        let origin: String = String::from_utf8_lossy(origin.as_bytes()).chars().take(MAX_TOLD).collect();
        tracing::info!(business, origin, left_out, "refused an origin that is not in allowedOrigins");
    }
}

/// Whether a page's origin is the edge's own address: its public URL, or the Host of this request if no public URL is
/// configured. Anyone can point a name to this edge (DNS rebinding), so with a public URL no Host counts. TLS may be
/// terminated before the edge, so the scheme of a Host is not known.
fn is_own(origin: &str, public: Option<&PublicUrl>, host: Option<&str>) -> bool {
    let Some(origin) = Origin::parse(origin).filter(|origin| is_web(origin.scheme()) && origin.has_host()) else {
        return false;
    };
    let own = match public {
        Some(url) => url.origin(),
        None => host.and_then(|host| Origin::of(origin.scheme(), host)),
    };
    own.is_some_and(|own| origin.is(&own))
}

/// Whether a Host is an IP address, or `localhost`: no stranger can have a page there.
fn is_address(host: &str) -> bool {
    let Ok(authority) = host.parse::<Authority>() else { return false };
    let name = authority.host();
    name.eq_ignore_ascii_case("localhost") || name.trim_matches(['[', ']']).parse::<IpAddr>().is_ok()
}

fn is_web(scheme: &str) -> bool {
    scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https")
}

/// Answers preflights, refuses other origins, and lets allowed ones read the answer. For routes with `{business}` in
/// their path.
pub async fn layer(Shared(state): Shared<Arc<State>>, params: RawPathParams, request: Request, next: Next) -> Response {
    let Some(origin) = request.headers().get(header::ORIGIN).cloned() else {
        return vary(next.run(request).await);
    };
    let name = params.iter().find_map(|(name, value)| (name == "business").then_some(value)).unwrap_or_default();
    let business = match state.business(name) {
        Ok(business) => business,
        Err(refusal) => return vary(refusal.into_response()),
    };
    if judge(&state, &business, request.headers()).is_none() {
        tell(&state, &business, request.headers());
        return vary(Refusal::origin().into_response());
    }
    let preflight =
        request.method() == Method::OPTIONS && request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
    let mut response = if preflight { preflight_answer() } else { next.run(request).await };
    let headers = response.headers_mut();
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static("retry-after"));
    vary(response)
}

fn preflight_answer() -> Response {
    let mut headers = HeaderMap::new();
    headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST"));
    headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static("authorization, content-type"));
    headers.insert(header::ACCESS_CONTROL_MAX_AGE, MAX_AGE.into());
    (StatusCode::NO_CONTENT, headers).into_response()
}

/// The answer depends on the Origin, even if there is none: a cache must not mix them up.
fn vary(mut response: Response) -> Response {
    response.headers_mut().append(header::VARY, HeaderValue::from_static("origin"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_edges_own_address_is_allowed_and_no_similar_one() {
        let url: PublicUrl = "wss://ws.example/base".parse().unwrap();
        let public = Some(&url);
        for (origin, public, host, expected) in [
            ("https://ws.example", public, None, true),
            ("https://ws.example:443", public, Some("10.0.0.7:8080"), true),
            ("HTTPS://WS.example", public, None, true),
            ("http://ws.example", public, None, false),
            ("https://ws.example:8443", public, None, false),
            ("https://evil.example", public, Some("ws.example"), false),
            // A foreign name that points to this edge.
            ("https://evil.example", public, Some("evil.example"), false),
            ("http://10.0.0.7:8080", public, Some("10.0.0.7:8080"), false),
            ("https://ws.example", None, Some("ws.example"), true),
            ("https://ws.example", None, Some("WS.example:443"), true),
            ("http://10.0.2.2:8080", None, Some("10.0.2.2:8080"), true),
            ("http://ws.example", None, Some("ws.example:443"), false),
            ("https://ws.example.evil.example", None, Some("ws.example"), false),
            ("capacitor://ws.example", None, Some("ws.example"), false),
            ("null", None, Some("null"), false),
            ("https://", None, Some(""), false),
            ("https://ws.example", None, None, false),
        ] {
            assert_eq!(is_own(origin, public, host), expected, "{origin} at {public:?}, Host {host:?}");
        }
    }
}
