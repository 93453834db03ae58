//! A client of the edge's HTTP interface.

use std::time::Duration;

use anyhow::{Context, bail};
use reqwest::{Client, RequestBuilder, StatusCode, Url, header::RETRY_AFTER};
use serde::Deserialize;
use serde_json::Value;

/// Where `wirepost dev` listens.
pub(crate) const DEFAULT_URL: &str = "http://127.0.0.1:8080";
/// Variable with the API key.
pub(crate) const API_KEY: &str = "WIREPOST_API_KEY";
/// Longer than the edge waits for the broker, even for a batch.
const TIMEOUT: Duration = Duration::from_secs(15);

/// The key that `wirepost dev` gives a business.
pub(crate) fn dev_key(business: &str) -> String {
    format!("dev-{business}")
}

/// The caller's credential.
#[derive(Clone)]
pub(crate) enum Credential {
    /// A key of the business's services.
    ApiKey(String),
    /// A client's own token.
    Jwt(String),
}

/// One edge, or the address of many.
#[derive(Clone)]
pub(crate) struct Edge {
    http: Client,
    base: Url,
}

/// An answer of the edge.
#[derive(Debug, Deserialize)]
pub(crate) struct Answer {
    /// 0, or the number of the error.
    pub result: u32,
    /// For people.
    pub description: String,
    /// The result of the call.
    #[serde(default)]
    pub data: Value,
    /// HTTP status.
    #[serde(skip)]
    pub status: StatusCode,
    /// `Retry-After`.
    #[serde(skip)]
    pub retry_after: Option<Duration>,
}

/// Why a call got no answer from an edge.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    /// No answer.
    #[error("cannot reach {url}: {cause}; is `wirepost dev` (or an edge) running there? --url sets another address")]
    Unreachable {
        /// The edge.
        url: String,
        /// Why.
        cause: String,
    },
    /// The answer is not that of an edge.
    #[error("{url} answered {status}, but is not an edge: {body:?}; check --url")]
    NotAnEdge {
        /// The called URL.
        url: String,
        /// HTTP status.
        status: StatusCode,
        /// The beginning of the answer.
        body: String,
        /// `Retry-After`.
        retry_after: Option<Duration>,
    },
}

impl Edge {
    /// # Errors
    /// Not an `http(s)` URL.
    pub(crate) fn new(url: &str) -> anyhow::Result<Self> {
        Self::trusting(url, None)
    }

    /// The same, trusting this certificate (PEM) as well.
    ///
    /// # Errors
    /// Not an `http(s)` URL, or no certificate.
    pub(crate) fn trusting(url: &str, certificate: Option<&[u8]>) -> anyhow::Result<Self> {
        let base: Url = url.parse().with_context(|| format!("--url {url:?} is not a URL; write {DEFAULT_URL}"))?;
        if !matches!(base.scheme(), "http" | "https") || base.host_str().is_none() {
            bail!("--url {url:?} must begin with http:// or https://");
        }
        let mut http = Client::builder().timeout(TIMEOUT);
        if base.host_str().is_some_and(is_loopback) {
            // The environment's proxy is for other machines.
            http = http.no_proxy();
        }
        if let Some(pem) = certificate {
            http = http.tls_certs_merge([reqwest::Certificate::from_pem(pem).context("not a certificate")?]);
        }
        let http = http.build().context("cannot set up HTTP")?;
        Ok(Self { http, base })
    }

    /// Its address.
    pub(crate) fn url(&self) -> &str {
        self.base.as_str().trim_end_matches('/')
    }

    fn call_url(&self, business: &str, call: &str) -> Url {
        let mut url = self.base.clone();
        // Never fails: http URLs have a path.
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend([business, "websocket", call]);
        }
        url
    }

    /// The token call: on success `data` is the URL to connect to.
    pub(crate) async fn token(
        &self,
        business: &str,
        credential: &Credential,
        query: &[(&str, &str)],
    ) -> Result<Answer, CallError> {
        let mut url = self.call_url(business, "token");
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        self.send(authorize(self.http.get(url), credential)).await
    }

    /// The token call as a page of this origin makes it, without an identity: it hands out no ticket.
    pub(crate) async fn called_from(
        &self,
        business: &str,
        credential: &Credential,
        origin: &str,
    ) -> Result<Answer, CallError> {
        let request = self.http.get(self.call_url(business, "token"));
        self.send(authorize(request, credential).header("origin", origin)).await
    }

    /// Publishes an envelope or an array of them.
    pub(crate) async fn push(&self, business: &str, api_key: &str, body: String) -> Result<Answer, CallError> {
        let request = self.http.post(self.call_url(business, "messages"));
        self.send(request.header("x-api-key", api_key).header("content-type", "application/json").body(body)).await
    }

    /// Ends sessions.
    pub(crate) async fn revoke(
        &self,
        business: &str,
        api_key: &str,
        query: &[(&str, &str)],
    ) -> Result<Answer, CallError> {
        let mut url = self.call_url(business, "sessions");
        url.query_pairs_mut().extend_pairs(query);
        self.send(self.http.delete(url).header("x-api-key", api_key)).await
    }

    async fn send(&self, request: RequestBuilder) -> Result<Answer, CallError> {
        let unreachable =
            |error: reqwest::Error| CallError::Unreachable { url: self.url().to_owned(), cause: cause(&error) };
        let response = request.send().await.map_err(unreachable)?;
        let (status, url) = (response.status(), response.url().clone());
        let seconds = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
        let retry_after = seconds.map(Duration::from_secs);
        let body = response.text().await.map_err(unreachable)?;
        serde_json::from_str(&body).map(|answer| Answer { status, retry_after, ..answer }).map_err(|_| {
            CallError::NotAnEdge {
                url: format!("{}{}", url.origin().ascii_serialization(), url.path()),
                status,
                body: body.chars().take(200).collect(),
                retry_after,
            }
        })
    }
}

fn authorize(request: RequestBuilder, credential: &Credential) -> RequestBuilder {
    match credential {
        Credential::ApiKey(key) => request.header("x-api-key", key),
        Credential::Jwt(token) => request.bearer_auth(token),
    }
}

fn is_loopback(host: &str) -> bool {
    host == "localhost"
        || host.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// The innermost cause: reqwest's own message repeats the URL and hides the cause.
fn cause(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_business_is_one_part_of_the_path() {
        let edge = Edge::new("http://127.0.0.1:1/prefix/").unwrap();
        assert_eq!(edge.call_url("a/b", "token").as_str(), "http://127.0.0.1:1/prefix/a%2Fb/websocket/token");
        assert!(Edge::new("127.0.0.1:8080").is_err());
    }
}
