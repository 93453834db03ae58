//! One fetch of a key set, by rules that keep a declaration's author from reaching what only the edge reaches.

use std::{error::Error, fmt, net::SocketAddr, sync::LazyLock, time::Duration};

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use serde::Deserialize;
use serde_json::Value;
use wirepost_core::issuer_address::{self, AddressDefect};

use crate::identity::key_set::{KeySet, KeySetError};

/// Longest time for a fetch, the discovery document included. A token call promises an answer within two seconds.
pub(in crate::identity) const TIMEOUT: Duration = Duration::from_millis(1500);
/// Largest answer.
pub(super) const MAX_BYTES: usize = 256 << 10;
/// OpenID Connect Discovery 1.0, section 4.
const DISCOVERY: &str = "/.well-known/openid-configuration";

/// Where keys are.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(in crate::identity) enum Location {
    /// At this address.
    Set(String),
    /// Where this issuer says.
    OfIssuer(String),
}

impl Location {
    /// What is asked first.
    fn address(&self) -> String {
        match self {
            Self::Set(uri) => uri.clone(),
            Self::OfIssuer(issuer) => format!("{}{DISCOVERY}", issuer.trim_end_matches('/')),
        }
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&issuer_address::shown(&self.address()))
    }
}

/// Why there is no key set. For logs: callers must not learn what the edge reaches.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FetchError {
    /// Not attempted, because an attempt just failed.
    #[error("the last try failed a moment ago")]
    CoolDown,
    /// Not asked.
    #[error("its address is not permitted: {0}")]
    Address(#[from] AddressDefect),
    /// No connection.
    #[error("no connection to it")]
    Connect,
    /// Too slow.
    #[error("it did not answer in time")]
    Timeout,
    /// Not 200.
    #[error("it answered with status {0}")]
    Status(u16),
    /// Too much.
    #[error("its answer is larger than {MAX_BYTES} bytes")]
    TooLarge,
    /// Not JSON.
    #[error("its answer is not JSON")]
    NotJson,
    /// No discovery document.
    #[error("its discovery document lacks issuer or jwks_uri")]
    NotDiscovery,
    /// The discovery document of another issuer.
    #[error("its discovery document is that of another issuer")]
    OtherIssuer,
    /// No usable key set.
    #[error(transparent)]
    KeySet(#[from] KeySetError),
}

/// The members of a discovery document that matter here.
#[derive(Deserialize)]
struct Discovery {
    issuer: String,
    jwks_uri: String,
}

/// Fetches a key set. `trusted`: the hosts that the platform team trusts.
pub(super) async fn fetch(location: &Location, trusted: &[String]) -> Result<KeySet, FetchError> {
    let set = async {
        let document = get(&location.address(), trusted).await?;
        let Location::OfIssuer(issuer) = location else {
            return Ok(document);
        };
        let discovery: Discovery = serde_json::from_value(document).map_err(|_| FetchError::NotDiscovery)?;
        // Section 4.3: else one issuer could answer for another.
        if discovery.issuer != *issuer {
            return Err(FetchError::OtherIssuer);
        }
        get(&discovery.jwks_uri, trusted).await
    };
    let set = tokio::time::timeout(TIMEOUT, set).await.map_err(|_| FetchError::Timeout)??;
    Ok(KeySet::parse(&set)?)
}

async fn get(address: &str, trusted: &[String]) -> Result<Value, FetchError> {
    let address = issuer_address::check(address, trusted)?;
    let client = if address.trusted { &TRUSTING } else { &STRICT };
    let client = client.as_ref().ok_or(FetchError::Connect)?;
    let mut response =
        client.get(address.url).header("accept", "application/json").send().await.map_err(|error| classify(&error))?;
    if response.status() != reqwest::StatusCode::OK {
        return Err(FetchError::Status(response.status().as_u16()));
    }
    let mut body = Vec::new();
    while let Some(part) = response.chunk().await.map_err(|error| classify(&error))? {
        if body.len() + part.len() > MAX_BYTES {
            return Err(FetchError::TooLarge);
        }
        body.extend_from_slice(&part);
    }
    // Some serve a file with a byte order mark.
    let json = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&body);
    serde_json::from_slice(json).map_err(|_| FetchError::NotJson)
}

fn classify(error: &reqwest::Error) -> FetchError {
    if error.is_timeout() {
        return FetchError::Timeout;
    }
    let mut cause: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(defect) = error.downcast_ref::<AddressDefect>() {
            return FetchError::Address(*defect);
        }
        cause = error.source();
    }
    FetchError::Connect
}

/// One client for all issuers, because each carries the machine's root certificates. It connects to public addresses
/// only.
static STRICT: LazyLock<Option<reqwest::Client>> =
    LazyLock::new(|| client(reqwest::Client::builder().dns_resolver(PublicOnly)));
/// The same for the hosts that the platform team trusts.
static TRUSTING: LazyLock<Option<reqwest::Client>> = LazyLock::new(|| client(reqwest::Client::builder()));

/// It keeps no connections: fetches are rare. It follows no redirect: one could lead anywhere.
fn client(builder: reqwest::ClientBuilder) -> Option<reqwest::Client> {
    builder
        .timeout(TIMEOUT)
        .connect_timeout(TIMEOUT)
        .redirect(reqwest::redirect::Policy::none())
        .pool_max_idle_per_host(0)
        .user_agent(concat!("wirepost-edge/", env!("CARGO_PKG_VERSION")))
        .build()
        .inspect_err(|error| tracing::error!(%error, "key sets can't be fetched: no HTTP client"))
        .ok()
}

/// Resolves names to public addresses only. The connection goes to what was checked, so a name that resolves
/// differently a moment later gains nothing.
struct PublicOnly;

impl Resolve for PublicOnly {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let found: Vec<SocketAddr> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            // A proxy is the platform team's choice, and connects where its own rules permit.
            let permitted: Vec<_> = if is_proxy(name.as_str()) {
                found
            } else {
                found.into_iter().filter(|found| issuer_address::is_public(found.ip())).collect()
            };
            if permitted.is_empty() {
                return Err(AddressDefect::NotPublic.into());
            }
            Ok(Box::new(permitted.into_iter()) as Addrs)
        })
    }
}

/// Is it the host of a proxy that the environment names?
fn is_proxy(host: &str) -> bool {
    ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"].iter().filter_map(|name| std::env::var(name).ok()).any(
        |proxy| {
            let host_of = |text: &str| reqwest::Url::parse(text).ok()?.host_str().map(str::to_owned);
            host_of(&proxy).or_else(|| host_of(&format!("http://{proxy}"))).is_some_and(|proxy| proxy == host)
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_name_that_resolves_to_a_private_address_is_not_asked() {
        // `localhost.` resolves by the hosts file; a name in public DNS with such an address looks the same here.
        let name = "localhost".parse::<Name>().unwrap();
        let error = PublicOnly.resolve(name).await.err().unwrap();
        assert_eq!(error.downcast_ref(), Some(&AddressDefect::NotPublic));
    }

    #[tokio::test]
    async fn the_resolvers_refusal_is_the_reason_of_the_fetch() {
        let client = STRICT.as_ref().unwrap();
        let error = client.get("https://localhost:9/keys").send().await.unwrap_err();
        assert_eq!(classify(&error), FetchError::Address(AddressDefect::NotPublic));
    }
}
