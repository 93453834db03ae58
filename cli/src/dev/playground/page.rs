//! The files of the page, as they are in `cli/playground/`.

use axum::{
    Router,
    extract::Path,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};

/// `client.js` is the TypeScript client; `make playground` writes it, and a test fails while it is not the newest.
macro_rules! files {
    ($($name:literal $kind:literal),* $(,)?) => {
        &[$(($name, $kind, include_str!(concat!("../../../playground/", $name)))),*]
    };
}

const HTML: &str = "text/html; charset=utf-8";
const FILES: &[(&str, &str, &str)] = files![
    "index.html" "text/html; charset=utf-8",
    "style.css" "text/css; charset=utf-8",
    "icon.svg" "image/svg+xml",
    "client.js" "text/javascript; charset=utf-8",
    "app.js" "text/javascript; charset=utf-8",
    "api.js" "text/javascript; charset=utf-8",
    "clients.js" "text/javascript; charset=utf-8",
    "dom.js" "text/javascript; charset=utf-8",
    "explain.js" "text/javascript; charset=utf-8",
    "forms.js" "text/javascript; charset=utf-8",
    "line.js" "text/javascript; charset=utf-8",
    "service.js" "text/javascript; charset=utf-8",
    "snippets.js" "text/javascript; charset=utf-8",
];

/// The page below `/playground`.
pub(super) fn router() -> Router {
    Router::new()
        .route("/playground", get(async || file("index.html")))
        .route("/playground/", get(async || file("index.html")))
        .route("/playground/{file}", get(async |Path(name): Path<String>| file(&name)))
}

fn file(name: &str) -> Response {
    match FILES.iter().find(|(known, ..)| *known == name) {
        Some((_, kind, text)) => ([(header::CONTENT_TYPE, *kind)], *text).into_response(),
        None => (StatusCode::NOT_FOUND, "there is no such file\n").into_response(),
    }
}

/// A page that says why there is no playground.
pub(super) fn notice(text: &str) -> Response {
    let page = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>wirepost playground</title><p>{text}</p>"
    );
    (StatusCode::FORBIDDEN, [(header::CONTENT_TYPE, HTML)], page).into_response()
}

/// What every answer of the playground forbids a browser. `edge`: where its sockets go, as `ws://host:port`.
pub(super) fn headers(edge: &str) -> Vec<(header::HeaderName, HeaderValue)> {
    let policy = format!(
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self' {edge}; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
    );
    // Only an address of our own is in it.
    let policy = HeaderValue::from_str(&policy).unwrap_or(HeaderValue::from_static("default-src 'none'"));
    let fixed = HeaderValue::from_static;
    vec![
        (header::CONTENT_SECURITY_POLICY, policy),
        (header::X_CONTENT_TYPE_OPTIONS, fixed("nosniff")),
        (header::REFERRER_POLICY, fixed("no-referrer")),
        (header::CACHE_CONTROL, fixed("no-store")),
        (header::HeaderName::from_static("cross-origin-resource-policy"), fixed("same-origin")),
        (header::HeaderName::from_static("cross-origin-opener-policy"), fixed("same-origin")),
    ]
}
