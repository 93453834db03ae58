//! How clients reach this edge.

use axum::http::{HeaderMap, header, uri::Authority};

use super::answer::{Code, Refusal};
use crate::config::settings::Settings;

/// The base URL for clients: the configured one, or the host of this request.
pub(super) fn public_url(settings: &Settings, headers: &HeaderMap) -> Result<String, Refusal> {
    if let Some(url) = &settings.public_url {
        return Ok(url.websocket());
    }
    let host = headers
        .get(header::HOST)
        .and_then(|host| host.to_str().ok())
        .and_then(|host| host.parse::<Authority>().ok())
        .filter(|host| !host.as_str().contains('@'))
        .ok_or_else(|| Refusal::new(Code::BadRequest, "the Host header is missing or not a host"))?;
    let behind_tls = || {
        let first = headers.get("x-forwarded-proto")?.to_str().ok()?.split(',').next()?.trim();
        Some(first.eq_ignore_ascii_case("https") || first.eq_ignore_ascii_case("wss"))
    };
    let secure = settings.tls.is_some() || behind_tls().unwrap_or(false);
    Ok(format!("{}://{host}", if secure { "wss" } else { "ws" }))
}
