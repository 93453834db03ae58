//! Browsers: which pages may call, by the business's `allowedOrigins` (the Fetch standard's CORS protocol). It protects people's browsers,
//! not the edge: programs send no Origin and are judged by their credential alone.

use std::sync::Arc;

use axum::{
    extract::{RawPathParams, Request, State as Shared},
    http::{HeaderMap, HeaderValue, Method, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};

use super::answer::Refusal;
use crate::state::State;

/// How long browsers may remember a preflight, in seconds.
const MAX_AGE: u32 = 600;

/// Whether a request with this Origin header may pass. `allowed` holds exact origins, or `*` for all; empty = no page may.
pub fn allowed(allowed: &[String], origin: Option<&HeaderValue>) -> bool {
    origin.is_none_or(|origin| allowed.iter().any(|one| one == "*" || one.as_bytes() == origin.as_bytes()))
}

/// Answers preflights, refuses foreign pages, and lets allowed ones read the answer. For routes with `{business}` in their path.
pub async fn layer(Shared(state): Shared<Arc<State>>, params: RawPathParams, request: Request, next: Next) -> Response {
    let Some(origin) = request.headers().get(header::ORIGIN).cloned() else {
        return vary(next.run(request).await);
    };
    let name = params.iter().find_map(|(name, value)| (name == "business").then_some(value)).unwrap_or_default();
    let business = match super::business(&state.catalog, name) {
        Ok(business) => business,
        Err(refusal) => return vary(refusal.into_response()),
    };
    if !allowed(&business.config.auth.allowed_origins, Some(&origin)) {
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

/// The answer depends on the Origin, also where there was none: a cache must not mix them up.
fn vary(mut response: Response) -> Response {
    response.headers_mut().append(header::VARY, HeaderValue::from_static("origin"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_passes_by_its_exact_origin() {
        let shop = ["https://shop.example".to_owned()];
        let any = ["*".to_owned()];
        for (list, origin, expected) in [
            (&shop[..], Some("https://shop.example"), true),
            (&shop, Some("https://shop.example.evil.example"), false),
            (&shop, Some("http://shop.example"), false),
            (&shop, Some("https://shop.example:8443"), false),
            (&shop, Some("null"), false),
            (&shop, None, true),
            (&any, Some("https://evil.example"), true),
            (&[], Some("https://shop.example"), false),
            (&[], None, true),
        ] {
            let header = origin.map(HeaderValue::from_static);
            assert_eq!(allowed(list, header.as_ref()), expected, "{origin:?} of {list:?}");
        }
    }
}
