//! Where a client is: the address of its connection, or what a trusted proxy says it is.
//!
//! *Trust*: anybody can write `X-Forwarded-For`, so it counts only on connections of the proxies that the settings
//! list, and of several addresses in it the last one that is not a listed proxy's. *Use*: limits for each address
//! ([`limits`]), and log lines. An edge that was told nothing about proxies does not know whether an address is one
//! client's or that of a proxy in front of all of them: then nothing is limited by it.

pub mod forwarded;
pub mod limits;
pub mod proxy_protocol;

use std::{
    convert::Infallible,
    fmt,
    net::{IpAddr, Ipv6Addr},
    str::FromStr,
};

use axum::{
    extract::FromRequestParts,
    http::{HeaderMap, request::Parts},
};
use ipnet::IpNet;

pub use forwarded::ForwardedHeader;

/// Leading bits of an IPv6 address that belong to one site: whoever has one such address has them all (RFC 6177).
const SITE_BITS: u32 = 64;

/// The address of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientAddress(pub IpAddr);

impl ClientAddress {
    /// Whom its limits are shared with.
    pub fn site(self) -> Site {
        match self.0.to_canonical() {
            IpAddr::V4(address) => Site(address.to_ipv6_mapped().to_bits()),
            IpAddr::V6(address) => Site(address.to_bits() >> (128 - SITE_BITS) << (128 - SITE_BITS)),
        }
    }
}

impl fmt::Display for ClientAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.to_canonical().fmt(f)
    }
}

/// What limits are counted by: an IPv4 address, or the first 64 bits of an IPv6 address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Site(u128);

/// Which proxies are believed, and how they name the client.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Proxies {
    /// `None`: not known whether there are any.
    trusted: Option<Vec<IpNet>>,
    /// The header that they set.
    pub header: ForwardedHeader,
    /// They begin each connection with the PROXY protocol.
    pub proxy_protocol: bool,
}

/// Proxies that can't be believed as set.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProxiesError {
    /// Neither an address nor a network.
    #[error(
        "--trusted-proxies: {0:?} is neither an address nor a network such as 10.0.0.0/8; write `none` where no proxy is in front of the edges"
    )]
    NotANetwork(String),
    /// `none` beside others.
    #[error("--trusted-proxies: `none` stands alone")]
    NoneAndOthers,
    /// Nobody may use it.
    #[error(
        "--proxy-protocol needs --trusted-proxies: the protocol is understood on connections of trusted proxies only"
    )]
    NobodyIsTrusted,
}

impl Proxies {
    /// Stands for "there are no proxies".
    const NONE: &str = "none";

    /// From a list of addresses and networks. An empty one says nothing, `none` says that there are none.
    ///
    /// # Errors
    /// See [`ProxiesError`].
    pub fn new(listed: &[String], header: ForwardedHeader, proxy_protocol: bool) -> Result<Self, ProxiesError> {
        let listed: Vec<&str> = listed.iter().map(|text| text.trim()).filter(|text| !text.is_empty()).collect();
        let none = listed.contains(&Self::NONE);
        if none && listed.len() > 1 {
            return Err(ProxiesError::NoneAndOthers);
        }
        let networks = listed.iter().filter(|_| !none).map(|text| network(text)).collect::<Result<Vec<_>, _>>()?;
        if proxy_protocol && networks.is_empty() {
            return Err(ProxiesError::NobodyIsTrusted);
        }
        Ok(Self { trusted: (!listed.is_empty()).then_some(networks), header, proxy_protocol })
    }

    /// Whether an address that is no proxy's is a client's own.
    pub fn are_known(&self) -> bool {
        self.trusted.is_some()
    }

    /// Whether this address is one of them.
    pub fn trust(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.trusted.iter().flatten().any(|network| network.contains(&address))
    }

    /// Whose request it is that came on a connection of `peer`.
    pub fn client(&self, peer: IpAddr, headers: &HeaderMap) -> ClientAddress {
        if !self.trust(peer) {
            return ClientAddress(peer);
        }
        let mut nearest = peer;
        // From the nearest proxy to the client: each says who connected to it, and is believed if it is trusted.
        for said in self.header.addresses(headers) {
            let Some(address) = said else { break };
            nearest = address;
            if !self.trust(address) {
                break;
            }
        }
        ClientAddress(nearest)
    }
}

/// A network, or an address as the network of itself.
fn network(text: &str) -> Result<IpNet, ProxiesError> {
    IpNet::from_str(text)
        .or_else(|_| text.parse::<IpAddr>().map(IpNet::from))
        .map_err(|_| ProxiesError::NotANetwork(text.to_owned()))
}

/// For handlers: set by the public port.
impl<S: Sync> FromRequestParts<S> for ClientAddress {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        // Absent only if a test calls without a listener.
        Ok(parts.extensions.get().copied().unwrap_or(Self(IpAddr::V6(Ipv6Addr::UNSPECIFIED))))
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;
    use rstest::rstest;

    use super::*;

    fn proxies(listed: &str) -> Proxies {
        let listed: Vec<String> = listed.split(',').map(str::to_owned).collect();
        Proxies::new(&listed, ForwardedHeader::XForwardedFor, false).unwrap()
    }

    fn client(trusted: &str, peer: &str, lines: &[&str]) -> String {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append("x-forwarded-for", HeaderValue::from_str(line).unwrap());
        }
        proxies(trusted).client(peer.parse().unwrap(), &headers).to_string()
    }

    #[rstest]
    #[case::no_proxies("none", "203.0.113.9", &["198.51.100.1"], "203.0.113.9")]
    #[case::not_told("", "203.0.113.9", &["198.51.100.1"], "203.0.113.9")]
    #[case::from_a_stranger("10.0.0.0/8", "203.0.113.9", &["198.51.100.1"], "203.0.113.9")]
    #[case::from_a_proxy("10.0.0.0/8", "10.1.2.3", &["198.51.100.1"], "198.51.100.1")]
    #[case::forged_in_front("10.0.0.0/8", "10.1.2.3", &["1.1.1.1, 198.51.100.1"], "198.51.100.1")]
    #[case::a_line_of_each_proxy("10.0.0.0/8", "10.1.2.3", &["1.1.1.1", "198.51.100.1, 10.9.9.9"], "198.51.100.1")]
    #[case::proxies_only("10.0.0.0/8", "10.1.2.3", &["10.4.4.4, 10.5.5.5"], "10.4.4.4")]
    #[case::nothing_said("10.0.0.0/8", "10.1.2.3", &[], "10.1.2.3")]
    #[case::nothing_readable("10.0.0.0/8", "10.1.2.3", &["198.51.100.1, unknown"], "10.1.2.3")]
    #[case::a_port("10.0.0.0/8", "10.1.2.3", &["198.51.100.1:4711"], "198.51.100.1")]
    #[case::ipv6("fd00::/8", "fd00::1", &["[2001:db8::7]:4711, fd00::2"], "2001:db8::7")]
    #[case::mapped("10.0.0.0/8", "::ffff:10.1.2.3", &["::ffff:198.51.100.1"], "198.51.100.1")]
    #[case::one_address("10.1.2.3", "10.1.2.3", &["198.51.100.1"], "198.51.100.1")]
    #[case::another_address("10.1.2.4", "10.1.2.3", &["198.51.100.1"], "10.1.2.3")]
    fn the_client_is_the_last_address_that_no_trusted_proxy_has(
        #[case] trusted: &str,
        #[case] peer: &str,
        #[case] lines: &[&str],
        #[case] expected: &str,
    ) {
        assert_eq!(client(trusted, peer, lines), expected);
    }

    #[test]
    fn limits_are_shared_by_an_ipv6_site_and_by_no_two_ipv4_addresses() {
        let site = |text: &str| ClientAddress(text.parse().unwrap()).site();
        assert_eq!(site("2001:db8:1:2::1"), site("2001:db8:1:2:ffff::9"));
        assert_ne!(site("2001:db8:1:2::1"), site("2001:db8:1:3::1"));
        assert_ne!(site("192.0.2.1"), site("192.0.2.2"));
        assert_eq!(site("192.0.2.1"), site("::ffff:192.0.2.1"));
    }

    #[test]
    fn what_can_not_be_trusted_is_refused_at_the_start() {
        let new = |listed: &[&str], proxy_protocol| {
            let listed: Vec<String> = listed.iter().map(|&text| text.to_owned()).collect();
            Proxies::new(&listed, ForwardedHeader::XForwardedFor, proxy_protocol)
        };
        assert_eq!(new(&["10.0.0.0/40"], false), Err(ProxiesError::NotANetwork("10.0.0.0/40".into())));
        assert_eq!(new(&["none", "10.0.0.0/8"], false), Err(ProxiesError::NoneAndOthers));
        assert_eq!(new(&["none"], true), Err(ProxiesError::NobodyIsTrusted));
        assert_eq!(new(&[], true), Err(ProxiesError::NobodyIsTrusted));
        assert!(new(&["10.0.0.0/8", "fd00::1"], true).is_ok_and(|proxies| proxies.are_known()));
        assert!(new(&["none"], false).is_ok_and(|proxies| proxies.are_known()));
        assert!(new(&[""], false).is_ok_and(|proxies| !proxies.are_known()));
    }
}
