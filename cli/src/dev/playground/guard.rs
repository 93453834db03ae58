//! Who may use the playground: a page of its own in a browser on this machine, and programs on this machine.
//!
//! A browser also runs pages of strangers. They can send requests to addresses of this machine, and a name of theirs can
//! point to it (DNS rebinding). So the Host must be this machine by number or as `localhost`, which no stranger can make
//! point elsewhere, and a request that says where it comes from must come from the playground itself.

use axum::{
    extract::Request,
    http::{HeaderMap, Method, StatusCode, header, uri::Authority},
    middleware::Next,
    response::{IntoResponse, Response},
};

/// Set by browsers: how the page that asks and the address that it asks are related.
const FETCH_SITE: &str = "sec-fetch-site";
/// What the answer is for.
const FETCH_DEST: &str = "sec-fetch-dest";
/// Calls, as opposed to files of the page.
const CALLS: &str = "/playground/api/";

/// Answers what may not pass.
pub(super) async fn layer(request: Request, next: Next) -> Response {
    match check(request.method(), request.uri().path(), request.headers()) {
        Ok(()) => next.run(request).await,
        Err(reason) => (StatusCode::FORBIDDEN, format!("wirepost dev refuses this: {reason}\n")).into_response(),
    }
}

/// # Errors
/// Why it may not pass, as a sentence.
fn check(method: &Method, path: &str, headers: &HeaderMap) -> Result<(), String> {
    let host = one(headers, header::HOST.as_str())?.unwrap_or_default();
    if !is_this_machine(host) {
        return Err(format!("the Host {host:?} is not this machine; open it as http://127.0.0.1 or http://localhost"));
    }
    if let Some(origin) = one(headers, header::ORIGIN.as_str())?
        && !origin.eq_ignore_ascii_case(&format!("http://{host}"))
    {
        return Err(format!("a page of {origin:?} may not use the playground"));
    }
    let is_link = method == Method::GET && !path.starts_with(CALLS) && one(headers, FETCH_DEST)? == Some("document");
    match one(headers, FETCH_SITE)? {
        None | Some("same-origin" | "none") => {}
        // The page whose link it is can't read the answer.
        Some(_) if is_link => {}
        Some(site) => return Err(format!("it comes from another page ({site})")),
    }
    if method == Method::GET {
        return Ok(());
    }
    // A form of another page can't send this type.
    match one(headers, header::CONTENT_TYPE.as_str())? {
        Some("application/json") => Ok(()),
        _ => Err("its content type must be application/json".into()),
    }
}

/// A header's only value.
fn one<'a>(headers: &'a HeaderMap, name: &str) -> Result<Option<&'a str>, String> {
    let mut values = headers.get_all(name).iter();
    let first = values.next().map(|value| value.to_str()).transpose();
    match (first, values.next()) {
        (Ok(value), None) => Ok(value),
        _ => Err(format!("the header {name} occurs twice or can't be read")),
    }
}

/// Whether a Host is an address that only this machine has. Its port does not matter: a tunnel has another one.
fn is_this_machine(host: &str) -> bool {
    let Ok(authority) = host.parse::<Authority>() else { return false };
    let name = authority.host();
    !host.contains('@')
        && (name.eq_ignore_ascii_case("localhost")
            || name.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback()))
}

#[cfg(test)]
mod tests {
    use axum::http::{HeaderName, HeaderValue};

    use super::*;

    fn passes(method: &Method, headers: &[(&'static str, &'static str)]) -> bool {
        passes_at(method, "/playground/api/state", headers)
    }

    fn passes_at(method: &Method, path: &str, headers: &[(&'static str, &'static str)]) -> bool {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        check(method, path, &map).is_ok()
    }

    const HOST: (&str, &str) = ("host", "127.0.0.1:9090");
    const JSON: (&str, &str) = ("content-type", "application/json");

    #[test]
    fn only_names_of_this_machine_are_a_host() {
        for host in ["127.0.0.1:9090", "localhost:9090", "LOCALHOST", "[::1]:9090", "127.0.0.1", "localhost:1"] {
            assert!(passes(&Method::GET, &[("host", host)]), "{host}");
        }
        for host in [
            "evil.example:9090",
            "127.0.0.1.evil.example",
            "localhost.evil.example:9090",
            "127.0.0.1@evil.example",
            "evil.example@127.0.0.1",
            "192.168.0.2:9090",
            "0.0.0.0:9090",
            "",
        ] {
            assert!(!passes(&Method::GET, &[("host", host)]), "{host}");
        }
        assert!(!passes(&Method::GET, &[]));
        assert!(!passes(&Method::GET, &[HOST, ("host", "evil.example")]));
    }

    #[test]
    fn only_its_own_pages_and_programs_may_call() {
        let (get, post) = (&Method::GET, &Method::POST);
        let site = |site| ("sec-fetch-site", site);
        assert!(passes(post, &[HOST, JSON]), "a program");
        assert!(passes(post, &[HOST, JSON, ("origin", "http://127.0.0.1:9090"), site("same-origin")]));
        assert!(passes(get, &[HOST, site("none")]), "typed by a person");
        let link = [HOST, site("cross-site"), ("sec-fetch-dest", "document")];
        assert!(passes_at(get, "/playground", &link));
        assert!(!passes_at(get, "/playground/api/notices", &link));
        assert!(!passes_at(get, "/playground", &[HOST, site("cross-site"), ("sec-fetch-dest", "iframe")]));
        for origin in ["https://evil.example", "http://127.0.0.1:3000", "http://localhost:9090", "null", ""] {
            assert!(!passes(post, &[HOST, JSON, ("origin", origin)]), "{origin}");
            assert!(!passes(get, &[HOST, ("origin", origin)]), "{origin}");
        }
        for from in ["cross-site", "same-site", "anything"] {
            assert!(!passes(get, &[HOST, site(from)]), "{from}");
            assert!(!passes(post, &[HOST, JSON, site(from)]), "{from}");
            assert!(
                !passes_at(post, "/playground", &[HOST, JSON, site(from), ("sec-fetch-dest", "document")]),
                "{from}"
            );
        }
        for form in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"] {
            assert!(!passes(post, &[HOST, ("content-type", form)]), "{form}");
        }
        assert!(!passes(post, &[HOST]));
    }
}
